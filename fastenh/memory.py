"""Recognising that memory ran out, which libraries report in many ways, as opposed to a damaged file."""

from __future__ import annotations

import errno
import re

OUT_OF_MEMORY = re.compile(
    "out of memory|bad_alloc|memory allocation|allocate memory|unable to allocate|[iu]nsufficient memory", re.IGNORECASE
)


def is_out_of_memory(error: BaseException | str) -> bool:
    """For an error or a library's message. The texts of ValueErrors are not searched: they contain file names."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno:
        return error.errno == errno.ENOMEM
    return not isinstance(error, ValueError) and OUT_OF_MEMORY.search(str(error)) is not None
