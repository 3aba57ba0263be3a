"""PNG, and TIFF compressed by ZIP, by rows: both are deflate, which ISA-L does ten times as fast as zlib, into files as
small. What other programs make of them is the same."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from isal import isal_zlib

from fastenh.io import metadata
from fastenh.io.header import Header
from fastenh.io.metadata import Directory, Tag

LEVEL = 2  # of ISA-L's 0 to 3: above it nothing gets smaller
CLASSIC = 2**32 - 2**27  # bytes of pixels up to which a TIFF's offsets need no 64 bits
AT_ONCE = 2**18  # bytes that are worked on at once: they stay in the cache; so large is a strip of a TIFF


class PngWriter:
    """Writes a PNG of 8 or 16 bits by rows, from the first to the last."""

    def __init__(self, path: Path, header: Header) -> None:
        bits = 8 * header.dtype.itemsize
        kind = {(1, 1): 0, (3, 3): 2, (1, 2): 4, (3, 4): 6}[header.colours, header.channels]
        self._path, self._pixel = path, header.channels * header.dtype.itemsize
        self._above = np.zeros(header.width * self._pixel, np.uint8)
        self._stream = isal_zlib.compressobj(LEVEL)
        shape = struct.pack(">IIBBBBB", header.width, header.height, bits, kind, 0, 0, 0)
        chunks = metadata.png_chunks(header.storage.get("chunks", []), header.metadata)
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
        self._append((b"IHDR", shape), *chunks)

    def write(self, rows: np.ndarray) -> None:
        few = max(1, AT_ONCE // len(self._above))
        for top in range(0, len(rows), few):
            self._append((b"IDAT", self._stream.compress(self._filtered(rows[top : top + few]))))

    def close(self) -> None:
        self._append((b"IDAT", self._stream.flush()), (b"IEND", b""))

    def _filtered(self, rows: np.ndarray) -> np.ndarray:
        """Each byte less the mean, rounded down, of that to the left and that above: "average", number 3."""
        data = rows.astype(rows.dtype.newbyteorder(">"), order="C").view(np.uint8).reshape(len(rows), -1)
        above, left = np.empty_like(data), np.zeros_like(data)
        above[0], above[1:] = self._above, data[:-1]
        left[:, self._pixel :] = data[:, : -self._pixel]
        self._above = data[-1]
        result = np.full((len(data), 1 + data.shape[1]), 3, np.uint8)
        np.subtract(data, ((above ^ left) >> 1) + (above & left), out=result[:, 1:])
        return result

    def _append(self, *chunks: tuple[bytes, bytes]) -> None:
        with open(self._path, "ab") as file:
            for kind, data in chunks:
                if data or kind != b"IDAT":
                    crc = isal_zlib.crc32(data, isal_zlib.crc32(kind))
                    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc))


class ZipTiffWriter:
    """Writes a TIFF of 8 or 16 bits by rows, from the first to the last."""

    def __init__(self, path: Path, header: Header) -> None:
        row = header.width * header.channels * header.dtype.itemsize
        self._path, self._header = path, header
        self._tall = max(1, AT_ONCE // row)  # rows of a strip
        self._big = row * header.height > CLASSIC
        self._pending = np.empty((0, header.width, header.channels), header.dtype)
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        path.write_bytes(b"II\x2b\0\x08\0\0\0" + bytes(8) if self._big else b"II*\0" + bytes(4))

    def write(self, rows: np.ndarray) -> None:
        rows = np.concatenate([self._pending, rows]) if len(self._pending) else rows
        whole = len(rows) // self._tall * self._tall
        self._pending = rows[whole:].copy()
        self._append(rows[:whole])

    def _append(self, rows: np.ndarray) -> None:
        with open(self._path, "ab") as file:
            for top in range(0, len(rows), self._tall):
                strip = np.array(rows[top : top + self._tall], order="C")
                strip[:, 1:] -= rows[top : top + self._tall, :-1]  # of each number how it differs from that to its left
                data = _deflated(strip)
                self._offsets.append(file.tell())
                self._sizes.append(file.write(data))
                file.write(bytes(len(data) % 2))  # what a TIFF points to begins at an even place

    def close(self) -> None:
        self._append(self._pending)
        header, (kind, letter) = self._header, (16, "Q") if self._big else (4, "I")

        def numbers(kind: int, letter: str, *values: int) -> Tag:
            return Tag(kind, len(values), struct.pack(f"<{len(values)}{letter}", *values))

        shorts = {
            258: [8 * header.dtype.itemsize] * header.channels,
            259: [8],  # ZIP
            274: [header.orientation],
            277: [header.channels],
            284: [1],  # channels of a pixel beside each other
            317: [2],  # differences
        }
        tags = Directory({tag: numbers(3, "H", *values) for tag, values in shorts.items()} | header.tiff_channels())
        for tag, value in ((256, header.width), (257, header.height), (278, self._tall)):
            tags[tag] = numbers(4, "I", value)
        tags[273], tags[279] = numbers(kind, letter, *self._offsets), numbers(4, "I", *self._sizes)
        with open(self._path, "r+b") as file:
            end = file.seek(0, 2)
            file.write(metadata.written({**tags, **metadata.tiff_tags(header.metadata)}, end, self._big))
            file.seek(8 if self._big else 4)
            file.write(struct.pack("<" + letter, end))


def _deflated(strip: np.ndarray) -> bytes:
    """As ISA-L deflates it, or stored where that would be larger: ISA-L expands noise beyond zlib's `compressBound`,
    and readers such as OpenImageIO make room for no more than that."""
    data = isal_zlib.compress(strip, LEVEL)
    return data if len(data) < strip.nbytes else zlib.compress(strip.tobytes(), 0)
