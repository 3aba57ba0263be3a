"""fastenh: the fast engine for photo enhancement in PyTorch."""

__version__ = "0.1.0"

from fastenh import ops
from fastenh.backends import backend

__all__ = ["__version__", "backend", "ops"]
