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
from fastenh.io.encoding import apply_orientation
from fastenh.io.formats.base import QUALITY, Format, Header, Unsupported, cmyk_note, load_image, save_image
from fastenh.io.formats.companions import ISO_GAIN_MAP, MPF, GainMap, companions, mpf_of
from fastenh.io.metadata import EXIF_START, ExifFields, Metadata, exif_orientation, read_exif, without_thumbnails
from fastenh.io.xmp import upright_xmp, with_extension_name, with_gain_map

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame, by how it is coded
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
SCAN, END = 0xDA, 0xD9
STANDALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers without a segment
APP0, APP1, APP2, APP13, COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xFE
METADATA = {*range(0xE1, 0xF0)} - {0xEE}  # all but JFIF's and Adobe's segments, which say how colours are coded
XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
ICC, PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a segment or of the end of image
MAX_SEGMENTS = 4096  # before the pixels, each up to 64 KiB; photos have at most a few hundred
MAX_XMP = 65_502  # bytes of a packet that fits into one segment
PART = 65_000  # bytes of metadata per segment, where it is split
EXTENDED_XMP_STUB = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="%s"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
Segments = list[tuple[int, bytes]]  # marker and content


class Jpeg(Format):
    name = "JPEG"
    resolution = True
    suffixes = (".jpg", ".jpeg")
    start = re.compile(rb"\xff\xd8\xff")
    depths = ("uint8",)
    alpha = False
    holds = ("exif", "xmp", "iptc")
    max_exif = 65_527
    any_name = True

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        """As in `Format`. If the file contains several pictures, the first is read, as viewers do. The gain map is
        in `storage`, with the orientation already applied."""
        with open(path, "rb") as file:
            segments = read_segments(file)
            rest, size = file.read(), file.tell()
            image, pixels = _picture(segments, rest)

            exif, (xmp, extended) = exif_of(segments), _xmp_of(segments)
            fields = read_exif(exif, xmp) if exif or xmp else ExifFields()
            end = size - len(rest) + _photo_end(rest)
            iso = next(iter(_contents(segments, APP2, ISO_GAIN_MAP)), b"")
            mpf = next(iter(_contents(segments, APP2, MPF)), b"")
            gain_map: GainMap | None = None
            notes: tuple[str, ...] = ()
            if end < size or xmp or iso:
                origin = _place(file, APP2, MPF) if mpf else 0
                gain_map, notes = companions(file, end, xmp, iso, mpf, origin)
        del rest
        try:
            if gain_map and fields.orientation != 1:
                gain_map = gain_map._replace(picture=self._oriented(gain_map.picture, fields.orientation))
        except MemoryError:
            raise
        except Exception:  # Pillow reports damage by many kinds of exception
            gain_map, notes = None, (*notes, "left out the gain map, which is damaged")
        if extended:
            xmp, extended = _upright_extended(xmp, extended, fields.orientation, *pixels.shape[:2])
        icc = _profile(_contents(segments, APP2, ICC))
        if not icc and fields.adobe_rgb and image.mode == "RGB":
            icc = adobe_rgb()
        if image.mode == "CMYK":
            profile = cmyk_profile(icc)
            if "adobe" not in image.info:  # only Adobe's programs store 255 for no ink; Pillow always assumes it
                pixels = 255 - pixels
            pixels, icc, notes = cmyk_to_srgb(pixels, profile), profile_of(), (*notes, cmyk_note(profile))
        resources = b"".join(_contents(segments, APP13, PHOTOSHOP))
        dpi = image.info.get("dpi", (0, 0))
        about = Metadata(
            icc, exif, xmp,
            without_thumbnails(resources) if resources else b"",
            (float(dpi[0]), float(dpi[1])) if min(dpi) > 0 else fields.dpi,
        )  # fmt: skip
        comments = [data for marker, data in segments if marker == COMMENT]
        storage = _coding(image) | {"comments": comments, "extended_xmp": extended, "gain_map": gain_map}
        header = Header.of(self.name, pixels, about, fields.orientation, **storage)
        return replace(header, notes=notes), pixels

    def encode(self, header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
        """Without `quality`, with the photo's own quantisation tables and subsampling."""
        about, storage = header.metadata, header.storage
        options: dict[str, Any] = {"quality": QUALITY if quality is None else quality, "subsampling": 0}
        if storage:
            options["subsampling"] = max(storage["subsampling"], 0)  # -1, an unusual one, becomes 4:4:4
            options["progressive"] = storage["progressive"]
            if storage["rgb"]:
                options["keep_rgb"], options["subsampling"] = True, 0  # the only value that Pillow accepts with RGB
            if quality is None:  # Pillow would scale the tables by a quality
                options["qtables"] = storage["qtables"]
                del options["quality"]
        gain_map: GainMap | None = storage.get("gain_map")
        xmp, extended = about.xmp, storage.get("extended_xmp", [])
        if gain_map:
            xmp = with_gain_map(xmp, len(gain_map.picture))
        if len(xmp) > MAX_XMP:
            xmp, extended = _split_xmp(xmp)
        segments = [(APP1, XMP + xmp)] if xmp else []
        segments += [(APP1, EXTENDED_XMP + part) for part in extended]
        if gain_map and gain_map.iso:
            segments.append((APP2, ISO_GAIN_MAP + gain_map.iso))
        if gain_map and gain_map.attributes:  # a placeholder of the right size, filled in below
            segments.append((APP2, MPF + mpf_of(gain_map.attributes, 0, 0, 0)))
        segments += [(APP13, PHOTOSHOP + about.iptc[n : n + PART]) for n in range(0, len(about.iptc), PART)]
        *comments, options["comment"] = storage.get("comments") or [b""]  # Pillow writes this one, last
        segments += [(COMMENT, comment) for comment in comments]
        options["extra"] = _serialised(segments)
        photo = save_image(pixels, self.name, replace(about, xmp=b""), options)
        if not gain_map:
            return photo
        if gain_map.attributes:
            place = _place(io.BytesIO(photo), APP2, MPF)
            mpf = mpf_of(gain_map.attributes, len(photo), len(gain_map.picture), len(photo) - place)
            photo = photo[:place] + mpf + photo[place + len(mpf) :]
        return photo + gain_map.picture

    def size(self, path: Path) -> tuple[int, int]:
        """As in `Format`, from the first frame header. OpenImageIO ignores an orientation that only XMP states."""
        with open(path, "rb") as file:
            segments = read_segments(file)
        frames = [data for marker, data in segments if marker in FRAMES and len(data) > 5]
        if not frames:
            raise ValueError(f"{path}: expected a whole {self.name}, got a damaged one (no frame header)")
        height, width = struct.unpack(">HH", frames[0][1:5])
        orientation = exif_orientation(exif_of(segments), _xmp_of(segments)[0])
        return (width, height) if orientation >= 5 else (height, width)

    def _oriented(self, picture: bytes, orientation: int) -> bytes:
        """The JPEG with the orientation applied to its pixels, coded with its own tables; metadata are unchanged."""
        file = io.BytesIO(picture)
        segments = read_segments(file)
        image, pixels = _picture(segments, file.read())
        pixels = apply_orientation(pixels, orientation)
        turned = self.encode(Header.of(self.name, pixels, Metadata(), **_coding(image)), pixels, None)
        after_jfif = 4 + int.from_bytes(turned[4:6], "big")
        kept = ((marker, data) for marker, data in segments if marker in METADATA and not data.startswith(MPF))
        return turned[:after_jfif] + _serialised(kept) + turned[after_jfif:]

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """The end-of-image marker after the start of the scan; a thumbnail in EXIF, before it, has one, too. Other
        bytes, such as a second picture, may follow."""
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


def _picture(segments: Segments, rest: bytes) -> tuple[JpegImagePlugin.JpegImageFile, np.ndarray]:
    """Image and pixels of a file with these segments, followed by the bytes `rest`. Raises Unsupported for a lossless
    JPEG or one of more than 8 bits."""
    frames = [(marker, data[0]) for marker, data in segments if marker in FRAMES and data]
    marker, bits = frames[0] if frames else (0, 8)
    if marker in LOSSLESS or bits != 8:
        got = "a lossless one" if marker in LOSSLESS else f"one of {bits}"
        raise Unsupported(f"expected a lossy JPEG of 8 bits, got {got}")
    # Pillow gets a file without metadata, because it would parse all of EXIF for the resolution, and without JFIF
    # segments that are too short, which libjpeg ignores but Pillow does not.
    kept = ((marker, data) for marker, data in segments if marker not in METADATA)
    bare = b"\xff\xd8" + _serialised(one for one in kept if one[0] != APP0 or len(one[1]) >= 14) + rest
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(bare))  # Image.open has a size limit that is global to the process
    return image, load_image(image, ("L", "RGB", "CMYK"))


def _coding(image: JpegImagePlugin.JpegImageFile) -> dict[str, Any]:
    """The coding of the picture, as `encode` needs it in `storage`."""
    return {
        "qtables": image.quantization,
        "subsampling": JpegImagePlugin.get_sampling(image),
        "rgb": _is_rgb(image),
        "progressive": bool(image.info.get("progressive")),
    }


# ---- segments


def _walk(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield marker and content length of each segment before the pixels, with `file` positioned at the content. At the
    end `file` is at the marker of the first scan or of the end of image. Bytes between segments are skipped, as in
    libjpeg."""
    place = 2
    while (place := _find(file, place)) >= 0:
        head = file.read(4)
        if len(head) < 4 or head[1] in (SCAN, END):
            file.seek(place)
            return
        if head[1] == 0xFF:  # a fill byte
            place += 1
        elif head[1] in STANDALONE:
            place += 2
        else:
            length = max(int.from_bytes(head[2:], "big"), 2)
            yield head[1], length - 2
            place += 2 + length


def _find(file: BinaryIO, place: int) -> int:
    """Seek to the next byte 0xFF from `place` on, and return its offset; -1 if there is none."""
    file.seek(place)
    while block := file.read(2**12):
        if (found := block.find(b"\xff")) >= 0:
            return file.seek(found - len(block), 1)
    return -1


def read_segments(file: BinaryIO) -> Segments:
    """The segments before the pixels; `file` is then at the first scan. Raises Unsupported above `MAX_SEGMENTS`, since
    millions of small segments would exhaust memory."""
    segments: Segments = []
    for marker, length in _walk(file):
        if len(segments) == MAX_SEGMENTS:
            raise Unsupported(f"expected at most {MAX_SEGMENTS} segments before the pixels of a JPEG, got more")
        segments.append((marker, file.read(length)))
    return segments


def _place(file: BinaryIO, marker: int, start: bytes) -> int:
    """The file offset after the prefix `start` in the first segment that has it."""
    return next(file.tell() for kind, _ in _walk(file) if kind == marker and file.read(len(start)) == start)


def _photo_end(rest: bytes) -> int:
    """The offset of the end of the photo in `rest`, the bytes of the file from its first scan on."""
    place = 0
    while match := NEXT_MARKER.search(rest, place):
        if match[0][1] == END:
            return match.end()
        place = match.end() + int.from_bytes(rest[match.end() : match.end() + 2], "big")
    return len(rest)


def exif_of(segments: Segments) -> bytes:
    """The EXIF block, joined from all its segments."""
    return b"".join(_contents(segments, APP1, EXIF_START))


def _contents(segments: Segments, marker: int, start: bytes) -> list[bytes]:
    """The contents, after the prefix `start`, of the segments that have it."""
    return [data[len(start) :] for kind, data in segments if kind == marker and data.startswith(start)]


def _serialised(segments: Iterable[tuple[int, bytes]]) -> bytes:
    """The bytes of the segments, with marker and length."""
    return b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments)


def _profile(parts: list[bytes]) -> bytes:
    """The ICC profile from its parts, each of which begins with its number and their count; b"" if any is missing."""
    parts = sorted(parts)
    complete = parts and len(parts[0]) > 1 and parts[0][1] == len(parts)
    return b"".join(part[2:] for part in parts) if complete else b""


def _split_xmp(packet: bytes) -> tuple[bytes, list[bytes]]:
    """Split a packet that is too large for a segment, by part 3 of the XMP standard: into a small packet with the name
    (MD5) of the extended packet, and the parts of the extended packet, each with name, total size and offset."""
    name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper().encode()
    places = range(0, len(packet), PART)
    return EXTENDED_XMP_STUB % name, [name + struct.pack(">II", len(packet), n) + packet[n : n + PART] for n in places]


def _xmp_of(segments: Segments) -> tuple[bytes, list[bytes]]:
    """The packet, and the parts of an extended packet. A packet that `_split_xmp` has split is joined. One that another
    program has split stays split, because there the first packet holds some of the properties."""
    packet = b"".join(_contents(segments, APP1, XMP)[-1:])
    extended = sorted(_contents(segments, APP1, EXTENDED_XMP))
    full = _joined_parts(extended)
    return (full, []) if extended and _split_xmp(full) == (packet, extended) else (packet, extended)


def _joined_parts(extended: list[bytes]) -> bytes:
    return b"".join(part[40:] for part in sorted(extended))  # name and size are equal, so this sorts by offset


def _upright_extended(
    packet: bytes, extended: list[bytes], orientation: int, height: int, width: int
) -> tuple[bytes, list[bytes]]:
    """The packet and the parts of its extended packet after the orientation has been applied to a photo stored as
    `height` by `width`. The name of the extended packet, which depends on its content, is updated in the packet."""
    before = _joined_parts(extended)
    after = upright_xmp(before, orientation, *((height, width) if orientation >= 5 else (width, height)))
    if after == before:
        return packet, extended
    extended = _split_xmp(after)[1]
    return with_extension_name(packet, extended[0][:32].decode()), extended


def _is_rgb(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether the file is coded as RGB rather than YCbCr, by libjpeg's rules."""
    if "jfif" in image.info or image.mode != "RGB":
        return False
    if "adobe" in image.info:
        return image.info.get("adobe_transform") == 0
    return bytes(component[0] for component in image.layer) == b"RGB"
