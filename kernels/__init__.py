"""Triton kernels, compiled at first use: one file per op, with functions named and called like those of the core."""

import pkgutil


def stems() -> list[str]:
    """The names of the modules here."""
    return [module.name for module in pkgutil.iter_modules(__path__)]
