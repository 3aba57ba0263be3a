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
from fastenh.io.xmp import naming, upright_xmp, with_gain_map

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame, by how it is coded
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
SCAN, END = 0xDA, 0xD9
ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers without a segment
APP0, APP1, APP2, APP13, COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xFE
METADATA = {*range(0xE1, 0xF0)} - {0xEE}  # all but JFIF's and Adobe's segments, which say how colours are coded
XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
ICC, PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a segment, or the end
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
    resolution = True
    suffixes = (".jpg", ".jpeg")
    start = re.compile(rb"\xff\xd8\xff")
    depths = ("uint8",)
    alpha = False
    holds = ("exif", "xmp", "iptc")
    max_exif = 65_527
    any_name = True

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        """Of a file that holds several pictures, the first, which is the one that viewers show. A gain map is kept,
        already turned as the upright photo needs it."""
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
                gain_map = gain_map._replace(picture=self._turned(gain_map.picture, fields.orientation))
        except MemoryError:
            raise
        except Exception:  # of a dozen kinds, where it is damaged
            gain_map, notes = None, (*notes, "left out the gain map, which is damaged")
        if extended:
            xmp, extended = _upright_extended(xmp, extended, fields.orientation, *pixels.shape[:2])
        icc = _profile(_contents(segments, APP2, ICC))
        if not icc and fields.adobe_rgb and image.mode == "RGB":
            icc = adobe_rgb()
        if image.mode == "CMYK":
            profile = cmyk_profile(icc)
            if "adobe" not in image.info:  # only Adobe's programs store 255 for no ink, which Pillow takes for granted
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
        """Without `quality`, with the quantisation tables and subsampling that the photo came with."""
        about, storage = header.metadata, header.storage
        options: dict[str, Any] = {"quality": QUALITY if quality is None else quality, "subsampling": 0}
        if storage:
            options["subsampling"] = max(storage["subsampling"], 0)  # -1 has no name: keep the full colour resolution
            options["progressive"] = storage["progressive"]
            if storage["rgb"]:
                options["keep_rgb"], options["subsampling"] = True, 0  # the only one that Pillow takes with RGB
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
        if gain_map and gain_map.attributes:  # of the right size; the numbers follow
            segments.append((APP2, MPF + mpf_of(gain_map.attributes, 0, 0, 0)))
        segments += [(APP13, PHOTOSHOP + about.iptc[at : at + PART]) for at in range(0, len(about.iptc), PART)]
        *comments, options["comment"] = storage.get("comments") or [b""]  # Pillow writes one, as the last segment
        segments += [(COMMENT, comment) for comment in comments]
        options["extra"] = _joined(segments)
        photo = save_image(pixels, self.name, replace(about, xmp=b""), options)
        if not gain_map:
            return photo
        if gain_map.attributes:
            place = _place(io.BytesIO(photo), APP2, MPF)
            mpf = mpf_of(gain_map.attributes, len(photo), len(gain_map.picture), len(photo) - place)
            photo = photo[:place] + mpf + photo[place + len(mpf) :]
        return photo + gain_map.picture

    def size(self, path: Path) -> tuple[int, int]:
        """By the first frame. OpenImageIO does not know the orientation that only XMP states."""
        with open(path, "rb") as file:
            segments = read_segments(file)
        frames = [data for marker, data in segments if marker in FRAMES and len(data) > 5]
        if not frames:
            raise ValueError(f"{path}: expected a whole {self.name}, got a damaged one (no frame)")
        height, width = struct.unpack(">HH", frames[0][1:5])
        orientation = exif_orientation(exif_of(segments), _xmp_of(segments)[0])
        return (width, height) if orientation >= 5 else (height, width)

    def _turned(self, picture: bytes, orientation: int) -> bytes:
        """The same JPEG with its pixels turned, and its metadata as they were."""
        file = io.BytesIO(picture)
        segments = read_segments(file)
        image, pixels = _picture(segments, file.read())
        pixels = apply_orientation(pixels, orientation)
        turned = self.encode(Header.of(self.name, pixels, Metadata(), **_coding(image)), pixels, None)
        after_jfif = 4 + int.from_bytes(turned[4:6], "big")
        kept = ((marker, data) for marker, data in segments if marker in METADATA and not data.startswith(MPF))
        return turned[:after_jfif] + _joined(kept) + turned[after_jfif:]

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


def _picture(segments: Segments, rest: bytes) -> tuple[JpegImagePlugin.JpegImageFile, np.ndarray]:
    """Image and pixels of a file of these segments and what follows them. Raises Unsupported for another kind."""
    frames = [(marker, data[0]) for marker, data in segments if marker in FRAMES and data]
    marker, bits = frames[0] if frames else (0, 8)
    if marker in LOSSLESS or bits != 8:
        got = "a lossless one" if marker in LOSSLESS else f"one of {bits}"
        raise Unsupported(f"expected a lossy JPEG of 8 bits, got {got}")
    # Pillow looks for the resolution in EXIF, and parses all of it for that: it gets a file without metadata, and
    # without JFIF segments that are too short, which libjpeg passes over.
    kept = ((marker, data) for marker, data in segments if marker not in METADATA)
    bare = b"\xff\xd8" + _joined(one for one in kept if one[0] != APP0 or len(one[1]) >= 14) + rest
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(bare))  # Image.open has a limit that all of a process shares
    return image, load_image(image, ("L", "RGB", "CMYK"))


def _coding(image: JpegImagePlugin.JpegImageFile) -> dict[str, Any]:
    """How the picture is coded, to code another one so."""
    return {
        "qtables": image.quantization,
        "subsampling": JpegImagePlugin.get_sampling(image),
        "rgb": _is_rgb(image),
        "progressive": bool(image.info.get("progressive")),
    }


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


def _place(file: BinaryIO, marker: int, start: bytes) -> int:
    """The offset of what follows `start` in the first segment that begins so."""
    return next(file.tell() for kind, _ in _walk(file) if kind == marker and file.read(len(start)) == start)


def _photo_end(rest: bytes) -> int:
    """The end of a JPEG in the bytes from its first scan on, which other pictures may follow."""
    place = 0
    while match := NEXT_MARKER.search(rest, place):
        if match[0][1] == END:
            return match.end()
        place = match.end() + int.from_bytes(rest[match.end() : match.end() + 2], "big")
    return len(rest)


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


def _xmp_of(segments: Segments) -> tuple[bytes, list[bytes]]:
    """The packet, and the parts of another one that continues it. What `_split_xmp` has split is joined. What another
    program has split stays split: there the first packet has a share of the metadata."""
    packet = b"".join(_contents(segments, APP1, XMP)[-1:])
    extended = sorted(_contents(segments, APP1, EXTENDED_XMP))
    full = _joined_parts(extended)
    return (full, []) if extended and _split_xmp(full) == (packet, extended) else (packet, extended)


def _joined_parts(extended: list[bytes]) -> bytes:
    return b"".join(part[40:] for part in sorted(extended))  # all with one name and size, and so by their place


def _upright_extended(
    packet: bytes, extended: list[bytes], orientation: int, height: int, width: int
) -> tuple[bytes, list[bytes]]:
    """A packet and the parts that continue it, with the orientation of a photo of this size applied to those parts,
    which are named by their content."""
    before = _joined_parts(extended)
    after = upright_xmp(before, orientation, *((height, width) if orientation >= 5 else (width, height)))
    if after == before:
        return packet, extended
    extended = _split_xmp(after)[1]
    return naming(packet, extended[0][:32].decode()), extended


def _is_rgb(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether the file is coded as RGB and not as YCbCr, by libjpeg's rules."""
    if "jfif" in image.info or image.mode != "RGB":
        return False
    if "adobe" in image.info:
        return image.info.get("adobe_transform") == 0
    return bytes(component[0] for component in image.layer) == b"RGB"
