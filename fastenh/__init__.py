"""fastenh: the fast engine for photo enhancement in PyTorch."""

__version__ = "0.1.0"
