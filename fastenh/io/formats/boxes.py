"""The boxes of HEIC, AVIF and JPEG XL files. A box has a size, a kind of four letters, and contents."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from fastenh.io.formats.base import take


def boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each box from offset `start` to `end`, and the offsets at which its contents start and end. Raises
    EOFError for a box that extends beyond `end`."""
    while start < end:
        file.seek(start)
        length, kind = struct.unpack(">I4s", take(file, 8))
        content = start + 8
        if length == 1:
            length, content = struct.unpack(">Q", take(file, 8))[0], content + 8
        elif length == 0:  # to the end of the file
            length = end - start
        if not content - start <= length <= end - start:
            raise EOFError("a box extends beyond the end of the file")
        start += length
        yield kind, content, start


def box(kind: bytes, *parts: bytes) -> bytes:
    """The bytes of a box, of less than 4 GiB, whose contents are `parts`."""
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)
