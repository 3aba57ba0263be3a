"""JPEG, through Pillow."""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import JpegImagePlugin

from fastenh.io.colour import adobe_rgb, cmyk_profile, cmyk_to_srgb, profile_of
from fastenh.io.formats.base import QUALITY, Format, Header, Unsupported, cmyk_note, load_image, save_image
from fastenh.io.metadata import EXIF_START, ExifFields, Metadata, read_exif, without_thumbnails

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame, by how it is coded
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
SCAN, END = 0xDA, 0xD9
ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers without a segment
APP0, APP1, APP2, APP13 = 0xE0, 0xE1, 0xE2, 0xED
METADATA = {*range(0xE1, 0xF0)} - {0xEE}  # all but JFIF's and Adobe's segments, which say how colours are coded
XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
ICC, PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
MAX_SEGMENTS = 4096  # before the pixels, of up to 64 KiB each; photos have a few hundred at most
MAX_XMP = 65_502  # bytes of a packet that one segment holds
PART = 65_000  # bytes of metadata in each of several segments
NAMING_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="%s"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
Segments = list[tuple[int, bytes]]  # marker and content


class Jpeg(Format):
    name = "JPEG"
    suffixes = (".jpg", ".jpeg")
    start = re.compile(rb"\xff\xd8\xff")
    depths = ("uint8",)
    alpha = False
    max_exif = 65_527
    any_name = True

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        """Of a file that holds several pictures (gain map, stereo), the first, which is the one that viewers show."""
        with open(path, "rb") as file:
            segments = read_segments(file)
            rest = file.read()
        frames = [(marker, data[0]) for marker, data in segments if marker in FRAMES and data]
        marker, bits = frames[0] if frames else (0, 8)
        if marker in LOSSLESS or bits != 8:
            got = "a lossless one" if marker in LOSSLESS else f"one of {bits}"
            raise Unsupported(f"expected a lossy JPEG of 8 bits, got {got}")
        # Pillow looks for the resolution in EXIF, and parses all of it for that: it gets a file without metadata, and
        # without JFIF segments that are too short, which libjpeg passes over.
        kept = ((marker, data) for marker, data in segments if marker not in METADATA)
        bare = b"\xff\xd8" + _joined(one for one in kept if one[0] != APP0 or len(one[1]) >= 14) + rest
        del rest
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(bare))  # Image.open has a limit that all of a process shares
        pixels = load_image(image, ("L", "RGB", "CMYK"))

        exif = exif_of(segments)
        fields = read_exif(exif) if exif else ExifFields()
        icc = _profile(_contents(segments, APP2, ICC))
        if not icc and fields.adobe_rgb and image.mode == "RGB":
            icc = adobe_rgb()
        notes: tuple[str, ...] = ()
        if image.mode == "CMYK":
            profile = cmyk_profile(icc)
            if "adobe" not in image.info:  # only Adobe's programs store 255 for no ink, which Pillow takes for granted
                pixels = 255 - pixels
            pixels, icc, notes = cmyk_to_srgb(pixels, profile), profile_of(), (cmyk_note(profile),)
        packets = _contents(segments, APP1, XMP)
        xmp, extended = _join_xmp(packets[-1] if packets else b"", _contents(segments, APP1, EXTENDED_XMP))
        resources = b"".join(_contents(segments, APP13, PHOTOSHOP))
        dpi = image.info.get("dpi", (0, 0))
        about = Metadata(
            icc, exif, xmp,
            without_thumbnails(resources) if resources else b"",
            (float(dpi[0]), float(dpi[1])) if min(dpi) > 0 else fields.dpi,
        )  # fmt: skip
        header = Header.of(
            self.name, pixels, about, fields.orientation,
            qtables=image.quantization, subsampling=JpegImagePlugin.get_sampling(image), rgb=_is_rgb(image),
            progressive=bool(image.info.get("progressive")), comment=image.info.get("comment", b""),
            extended_xmp=extended,
        )  # fmt: skip
        return replace(header, notes=notes), pixels

    def encode(self, header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
        """Without `quality`, with the quantisation tables and subsampling that the photo came with."""
        about, storage = header.metadata, header.storage
        options: dict[str, Any] = {"quality": QUALITY if quality is None else quality, "subsampling": 0}
        if storage:
            options["subsampling"] = max(storage["subsampling"], 0)  # -1 has no name: keep the full colour resolution
            options["progressive"], options["comment"] = storage["progressive"], storage["comment"]
            if storage["rgb"]:
                options["keep_rgb"], options["subsampling"] = True, 0  # the only one that Pillow takes with RGB
            if quality is None:  # Pillow would scale the tables by a quality
                options["qtables"] = storage["qtables"]
                del options["quality"]
        xmp, extended = about.xmp, storage.get("extended_xmp", [])
        if len(xmp) > MAX_XMP:
            xmp, extended = _split_xmp(xmp)
        segments = [(APP1, XMP + xmp)] if xmp else []
        segments += [(APP1, EXTENDED_XMP + part) for part in extended]
        segments += [(APP13, PHOTOSHOP + about.iptc[at : at + PART]) for at in range(0, len(about.iptc), PART)]
        options["extra"] = _joined(segments)
        return save_image(pixels, self.name, replace(about, xmp=b""), options)

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """An end of image after the start of the scan; a thumbnail in the EXIF before that has one too. Other bytes,
        such as a second picture, may follow."""
        end = bytes((0xFF, END))
        for _ in _walk(file):
            pass
        if file.read(2) != bytes((0xFF, SCAN)):
            return False
        scan = file.tell()
        file.seek(max(scan, size - 2))
        if file.read() == end:
            return True
        file.seek(scan)
        before = b""
        while block := file.read(2**20):
            if end in before + block:
                return True
            before = block[-1:]
        return False


# ---- segments


def _walk(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Marker and length of each segment before the pixels; meanwhile `file` is at the content. Then it is at the marker
    of the first scan or at the end. As in libjpeg, other bytes between segments are skipped."""
    place = 2
    while (place := _find(file, place)) >= 0:
        head = file.read(4)
        if len(head) < 4 or head[1] in (SCAN, END):
            file.seek(place)
            return
        if head[1] == 0xFF:  # a fill byte
            place += 1
        elif head[1] in ALONE:
            place += 2
        else:
            length = max(int.from_bytes(head[2:], "big"), 2)
            yield head[1], length - 2
            place += 2 + length


def _find(file: BinaryIO, place: int) -> int:
    """Go to the next byte 0xFF from `place` on, and return where it is; -1 where there is none."""
    file.seek(place)
    while block := file.read(2**12):
        if (found := block.find(b"\xff")) >= 0:
            return file.seek(found - len(block), 1)
    return -1


def read_segments(file: BinaryIO) -> Segments:
    """The segments before the pixels; `file` is then at the pixels. Raises Unsupported for more than `MAX_SEGMENTS`:
    millions of small ones would exhaust memory."""
    segments: Segments = []
    for marker, length in _walk(file):
        if len(segments) == MAX_SEGMENTS:
            raise Unsupported(f"expected at most {MAX_SEGMENTS} segments before the pixels of a JPEG, got more")
        segments.append((marker, file.read(length)))
    return segments


def exif_of(segments: Segments) -> bytes:
    """The EXIF block. A block that is too large for a segment continues in the next."""
    return b"".join(_contents(segments, APP1, EXIF_START))


def _contents(segments: Segments, marker: int, start: bytes) -> list[bytes]:
    """What follows `start` in the segments that begin so."""
    return [data[len(start) :] for kind, data in segments if kind == marker and data.startswith(start)]


def _joined(segments: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments)


def _profile(parts: list[bytes]) -> bytes:
    """The ICC profile, each of whose parts begins with its number and how many there are; b"" where one is missing."""
    parts = sorted(parts)
    complete = parts and len(parts[0]) > 1 and parts[0][1] == len(parts)
    return b"".join(part[2:] for part in parts) if complete else b""


def _split_xmp(packet: bytes) -> tuple[bytes, list[bytes]]:
    """A packet that is too large for a segment, as part 3 of the XMP standard stores it: a small packet that names the
    large one, and the large one in parts."""
    name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper().encode()
    places = range(0, len(packet), PART)
    return NAMING_XMP % name, [name + struct.pack(">II", len(packet), at) + packet[at : at + PART] for at in places]


def _join_xmp(packet: bytes, extended: list[bytes]) -> tuple[bytes, list[bytes]]:
    """The inverse of `_split_xmp`. What another program has split stays split: there the first packet has a share of
    the metadata."""
    full = b"".join(part[40:] for part in sorted(extended))  # all with one name and size, and so by their place
    return (full, []) if extended and _split_xmp(full) == (packet, sorted(extended)) else (packet, extended)


def _is_rgb(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether the file is coded as RGB and not as YCbCr, by libjpeg's rules."""
    if "jfif" in image.info or image.mode != "RGB":
        return False
    if "adobe" in image.info:
        return image.info.get("adobe_transform") == 0
    return bytes(component[0] for component in image.layer) == b"RGB"
