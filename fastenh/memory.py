"""Telling that memory ran out, which libraries say in many ways, from a file that is damaged."""

from __future__ import annotations

import errno
import re

SAYINGS = re.compile(
    "out of memory|bad_alloc|memory allocation|allocate memory|unable to allocate|[iu]nsufficient memory", re.IGNORECASE
)


def is_out_of_memory(error: BaseException | str) -> bool:
    """Of an error, or of what a library says. ValueErrors are not looked into: they name files."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno:
        return error.errno == errno.ENOMEM
    return not isinstance(error, ValueError) and SAYINGS.search(str(error)) is not None
