"""Whether the file of a photo is all there, by its structure: no pixel is decoded, and little is read but what says
where the file must end. Each format has one function, which raises EOFError where the file ends too soon."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastenh.io.header import EXR, HEIC, JPEG, PNG, TIFF, WEBP, format_of
from fastenh.io.metadata import SIZES, Tiff

PAGE, BLOCK = 2**12, 2**20  # bytes that are looked at together
END_OF_IMAGE = b"\xff\xd9"  # of a JPEG


def is_complete(path: Path) -> bool:
    """Whether a photo's file has its beginning and its end; False for one that is empty, all zeros, or cut short, as a
    power cut or an interrupted copy leaves it. ValueError for what is no photo, OSError where it cannot be read.

    What is never written here (OpenEXR of several parts, RAW) counts as complete.
    """
    with open(path, "rb") as file:
        if _only_zeros(file):
            return False
        check = {JPEG: _jpeg, PNG: _png, TIFF: _tiff, WEBP: _webp, EXR: _exr, HEIC: _heic}.get(format_of(path))
        size = file.seek(0, 2)
        file.seek(0)
        try:
            return check is None or check(file, size)
        except EOFError:
            return False


def _only_zeros(file: BinaryIO) -> bool:
    while block := file.read(PAGE):
        if block.count(0) < len(block):
            return False
    return True


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _jpeg(file: BinaryIO, size: int) -> bool:
    """An end of image after the start of the scan: the thumbnail in the EXIF before that has one too. Other bytes, such
    as a second picture, may follow."""
    file.seek(2)
    while (marker := _take(file, 2)) != b"\xff\xda":
        if marker[0] != 0xFF or marker[1] == 0xFF:  # a byte to fill up, or a stray one, which decoders skip
            file.seek(-1, 1)
        else:
            file.seek(struct.unpack(">H", _take(file, 2))[0] - 2, 1)
    scan = file.tell()
    file.seek(max(scan, size - 2))
    if file.read() == END_OF_IMAGE:
        return True
    file.seek(scan)
    before = b""
    while block := file.read(BLOCK):
        if END_OF_IMAGE in before + block:
            return True
        before = block[-1:]
    return False


def _png(file: BinaryIO, size: int) -> bool:
    """Chunks up to the last one."""
    file.seek(8)
    while True:
        length, kind = struct.unpack(">I4s", _take(file, 8))
        if not kind.isalpha():
            return False
        if kind == b"IEND":
            return len(_take(file, length + 4)) > 0
        file.seek(length + 4, 1)


def _tiff(file: BinaryIO, size: int) -> bool:
    """The first directory with its values, and all strips or tiles."""
    try:
        tiff = Tiff(file)
        stored = tiff.stored()  # ValueError where the directory is cut short, of which `entries` gives what is there
        entries = {entry.tag: entry for entry in tiff.entries(tiff.first)[0]}
    except ValueError:
        return False
    if not stored or any(entry.place + entry.size > size for entry in entries.values()):
        return False

    def numbers(tag: int) -> np.ndarray:
        entry = entries[tag]
        return np.frombuffer(tiff.value(entry), f"<u{SIZES[entry.type]}").astype(np.uint64)

    # Where strips or tiles are, and how long.
    pairs = [(numbers(a), numbers(b)) for a, b in ((273, 279), (324, 325)) if a in entries and b in entries]
    return all(len(a) == len(b) and (a + b).max(initial=0) <= size for a, b in pairs)


def _webp(file: BinaryIO, size: int) -> bool:
    file.seek(4)
    return struct.unpack("<I", _take(file, 4))[0] + 8 <= size


def _exr(file: BinaryIO, size: int) -> bool:
    """The table of chunks, which is written last, and the last chunk."""
    file.seek(4)
    version = struct.unpack("<I", _take(file, 4))[0]
    if version & 0x1800:  # several parts, or deep pixels
        return True
    while _word(file):
        _word(file)  # the attribute's type
        file.seek(struct.unpack("<I", _take(file, 4))[0], 1)
    first, last = size, 0
    while file.tell() < first:  # the first chunk comes after the table
        place = struct.unpack("<Q", _take(file, 8))[0]
        if not file.tell() <= place < size:
            return False
        first, last = min(first, place), max(last, place)
    file.seek(last + (16 if version & 0x200 else 4))  # after the place of a tile, or of scanlines
    length = struct.unpack("<I", _take(file, 4))[0]
    return last > 0 and file.tell() + length <= size


def _word(file: BinaryIO) -> bytes:
    """Up to the next zero."""
    word = b""
    while (byte := _take(file, 1)) != b"\0" and len(word) < 256:
        word += byte
    return word


def _heic(file: BinaryIO, size: int) -> bool:
    """Boxes one after the other, up to the one that describes the picture and the one that holds it."""
    missing, end = {b"meta", b"mdat"}, 0
    while missing:
        file.seek(end)
        length, kind = struct.unpack(">I4s", _take(file, 8))
        if length == 1:
            length = struct.unpack(">Q", _take(file, 8))[0]
        elif length == 0:  # to the end of the file
            length = size - end
        if not 8 <= length <= size - end:
            return False
        missing.discard(kind)
        end += length
    return True
