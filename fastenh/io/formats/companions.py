"""What follows the photo in a JPEG file: its gain map, which makes an HDR picture of it; further pictures; a video.

Two tables say where they are. XMP may have a directory of items with their lengths, in their order (Google's container,
as in Ultra HDR and motion photos). The Multi-Picture Format (MPF, CIPA DC-007) is a TIFF directory in a segment APP2;
its offsets count from the start of that directory.

A gain map holds log2(HDR / SDR) for each pixel. It is relative to the photo, so it stays valid after a retouch: HDR
displays add the same number of stops to the new photo. Further pictures and videos show the photo before the retouch,
so they are dropped.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from fastenh.io.metadata import Directory, Tag, exif_block, read_directory
from fastenh.io.xmp import announced

MPF, ISO_GAIN_MAP = b"MPF\0", b"urn:iso:std:iso:ts:21496:-1\0"  # how segments APP2 begin
MP_VERSION, MP_COUNT, MP_ENTRIES = 0xB000, 0xB001, 0xB002
KIND, PREVIEW, UNDEFINED = 0xFFFFFF, 0x01, 0  # of a picture, in its attributes; a preview has 1 in bits 16 to 23
GAIN_MAP_MARKS = (ISO_GAIN_MAP, b"http://ns.adobe.com/hdr-gain-map/1.0/", b"http://ns.apple.com/HDRGainMap/1.0/")
MAX_PICTURES = 64  # read from MPF; each may claim the size of the whole file
VIDEO = re.compile(rb"ftyp(mp4|iso|avc1|qt  |MSNV|3gp)")


class GainMap(NamedTuple):
    """A JPEG, and what the photo's segments say of it: by ISO 21496-1, b"" without; the attributes of photo and gain
    map in MPF, () without."""

    picture: bytes
    iso: bytes = b""
    attributes: tuple[int, ...] = ()


def companions(
    file: BinaryIO, end: int, xmp: bytes, iso: bytes, mpf: bytes, origin: int
) -> tuple[GainMap | None, tuple[str, ...]]:
    """The gain map in a file whose photo ends at `end`, and a line for the user about what is there and not kept.

    `xmp`, `iso` and `mpf` are the photo's, b"" where it has none; `origin` is the offset of `mpf` in the file."""
    size, says = file.seek(0, 2), announced(xmp)
    entries = [(attributes, origin + at, length) for attributes, length, at in _mpf_entries(mpf)][:MAX_PICTURES]
    items = [item for item in says.items if item.meaning != "Primary"]
    padding = sum(item.padding for item in says.items if item.meaning == "Primary")

    def read(start: int, length: int) -> bytes:
        file.seek(start)
        data = file.read(length) if end <= start <= size - length else b""
        return data if data.startswith(b"\xff\xd8\xff") else b""

    def candidates() -> Iterator[bytes]:
        for start in (end + padding, size - sum(item.length for item in items)):
            for item in items:
                if item.meaning == "GainMap":
                    yield read(start, item.length)
                start += item.length
        for attributes, start, length in entries[1:]:
            picture = read(start, length)
            if any(mark in picture for mark in GAIN_MAP_MARKS) or (says.gain_map and attributes & KIND == UNDEFINED):
                yield picture

    picture = next(filter(None, candidates()), b"")
    of_gain_map = [attributes for attributes, *place in entries[1:] if picture and read(*place) == picture]
    others = sum((attributes & KIND) >> 16 != PREVIEW for attributes, *_ in entries[1:]) - len(of_gain_map)
    file.seek(end)
    tail = file.read()
    alone = tail.startswith(b"\xff\xd8\xff") and not picture and not entries  # as two files one after the other
    others = others or sum(item.meaning not in ("GainMap", "MotionPhoto") for item in items)
    others = others or int(says.others or alone)
    left_out = ["the gain map, which is missing or damaged"] if (says.gain_map or iso) and not picture else []
    left_out += ["the video"] if says.video or VIDEO.search(tail) else []
    left_out += [f"{others} other picture{'s' if others > 1 else ''}"] if others else []
    attributes = (entries[0][0], *of_gain_map, 0)[:2] if entries else ()
    gain_map = GainMap(picture, iso, attributes) if picture else None
    return gain_map, (f"left out {' and '.join(left_out)}",) if left_out else ()


def mpf_of(attributes: tuple[int, ...], photo: int, gain_map: int, offset: int) -> bytes:
    """The directory of MPF for a photo of so many bytes and the gain map at this offset from the directory's start."""
    first, second = attributes
    entries = struct.pack("<IIIHH", first, photo, 0, 0, 0) + struct.pack("<IIIHH", second, gain_map, offset, 0, 0)
    count = Tag(4, 1, struct.pack("<I", 2))
    tags = {MP_VERSION: Tag(7, 4, b"0100"), MP_COUNT: count, MP_ENTRIES: Tag(7, len(entries), entries)}
    return exif_block(Directory(tags))


def _mpf_entries(mpf: bytes) -> Iterator[tuple[int, int, int]]:
    """Attributes, size and offset of each picture, the photo first."""
    try:
        entries = read_directory(mpf).block(MP_ENTRIES)
    except ValueError:
        return
    order = "<" if mpf.startswith(b"II") else ">"
    for at in range(0, len(entries) // 16 * 16, 16):
        yield struct.unpack_from(order + "III", entries, at)
