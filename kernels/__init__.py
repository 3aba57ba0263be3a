"""Triton kernels, compiled as they run: one file per op, with functions named and called as those of the core."""

import pkgutil


def stems() -> list[str]:
    """The files here, by name."""
    return [module.name for module in pkgutil.iter_modules(__path__)]
