"""The companions of the photo in a JPEG file: an HDR gain map, further pictures, a video. They follow the photo.

Two tables locate them. XMP may contain a directory that lists the items in file order, with their lengths (Google's
container, used by Ultra HDR and motion photos). The Multi-Picture Format (MPF, CIPA DC-007) is a TIFF directory in an
APP2 segment; its offsets are relative to the start of that directory.

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

MPF, ISO_GAIN_MAP = b"MPF\0", b"urn:iso:std:iso:ts:21496:-1\0"  # the first bytes of APP2 segments
MP_VERSION, MP_COUNT, MP_ENTRIES = 0xB000, 0xB001, 0xB002
KIND, PREVIEW, UNDEFINED = 0xFFFFFF, 0x01, 0  # mask of the kind in the attributes; a preview has 1 in bits 16 to 23
GAIN_MAP_MARKS = (ISO_GAIN_MAP, b"http://ns.adobe.com/hdr-gain-map/1.0/", b"http://ns.apple.com/HDRGainMap/1.0/")
MAX_PICTURES = 64  # entries of MPF that are read; each may claim the size of the entire file
VIDEO = re.compile(rb"ftyp(mp4|iso|avc1|qt  |MSNV|3gp)")


class GainMap(NamedTuple):
    """The gain map as a JPEG (`picture`), and its description in the photo's segments: the content of the ISO 21496-1
    segment, b"" if there is none; the MPF attributes of photo and gain map, () if there is no MPF."""

    picture: bytes
    iso: bytes = b""
    attributes: tuple[int, ...] = ()


def companions(
    file: BinaryIO, end: int, xmp: bytes, iso: bytes, mpf: bytes, origin: int
) -> tuple[GainMap | None, tuple[str, ...]]:
    """The gain map of a file whose photo ends at offset `end`, or None, and notes that name the companions left out.

    `xmp`, `iso` and `mpf` come from the photo's segments, b"" if missing; `origin` is the file offset of `mpf`."""
    size, listed = file.seek(0, 2), announced(xmp)
    entries = [(attributes, origin + offset, length) for attributes, length, offset in _mpf_entries(mpf)][:MAX_PICTURES]
    items = [item for item in listed.items if item.semantic != "Primary"]
    padding = sum(item.padding for item in listed.items if item.semantic == "Primary")

    def read_jpeg(start: int, length: int) -> bytes:
        file.seek(start)
        data = file.read(length) if end <= start <= size - length else b""
        return data if data.startswith(b"\xff\xd8\xff") else b""

    def candidates() -> Iterator[bytes]:
        for start in (end + padding, size - sum(item.length for item in items)):
            for item in items:
                if item.semantic == "GainMap":
                    yield read_jpeg(start, item.length)
                start += item.length
        for attributes, start, length in entries[1:]:
            picture = read_jpeg(start, length)
            if any(mark in picture for mark in GAIN_MAP_MARKS) or (listed.gain_map and attributes & KIND == UNDEFINED):
                yield picture

    picture = next(filter(None, candidates()), b"")
    gain_map_attributes = [attributes for attributes, *place in entries[1:] if picture and read_jpeg(*place) == picture]
    others = sum((attributes & KIND) >> 16 != PREVIEW for attributes, *_ in entries[1:]) - len(gain_map_attributes)
    file.seek(end)
    tail = file.read()
    unlisted = tail.startswith(b"\xff\xd8\xff") and not picture and not entries  # another JPEG that no table lists
    others = others or sum(item.semantic not in ("GainMap", "MotionPhoto") for item in items)
    others = others or int(listed.others or unlisted)
    left_out = ["the gain map, which is missing or damaged"] if (listed.gain_map or iso) and not picture else []
    left_out += ["the video"] if listed.video or VIDEO.search(tail) else []
    left_out += [f"{others} other picture{'s' if others > 1 else ''}"] if others else []
    attributes = (entries[0][0], *gain_map_attributes, 0)[:2] if entries else ()
    gain_map = GainMap(picture, iso, attributes) if picture else None
    return gain_map, (f"left out {' and '.join(left_out)}",) if left_out else ()


def mpf_of(attributes: tuple[int, ...], photo: int, gain_map: int, offset: int) -> bytes:
    """The MPF directory for a photo of `photo` bytes and a gain map of `gain_map` bytes, at `offset` from the
    start of the directory."""
    first, second = attributes
    entries = struct.pack("<IIIHH", first, photo, 0, 0, 0) + struct.pack("<IIIHH", second, gain_map, offset, 0, 0)
    count = Tag(4, 1, struct.pack("<I", 2))
    tags = {MP_VERSION: Tag(7, 4, b"0100"), MP_COUNT: count, MP_ENTRIES: Tag(7, len(entries), entries)}
    return exif_block(Directory(tags))


def _mpf_entries(mpf: bytes) -> Iterator[tuple[int, int, int]]:
    """Attributes, size and offset of each picture, the photo first; nothing if the directory is damaged."""
    try:
        entries = read_directory(mpf).block(MP_ENTRIES)
    except ValueError:
        return
    order = "<" if mpf.startswith(b"II") else ">"
    for at in range(0, len(entries) // 16 * 16, 16):
        yield struct.unpack_from(order + "III", entries, at)
