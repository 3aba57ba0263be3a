"""The version of fastenh, which the package, its core and its checkpoints state."""

__version__ = "0.2.0"
