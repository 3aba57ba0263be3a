"""JPEG XL. OpenImageIO decodes and encodes pixels, because imagecodecs can neither read nor write the ICC profile. The
boxes with EXIF and XMP are read and written here."""

from __future__ import annotations

import io
import re
import struct
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastenh.io.colour import WHITE
from fastenh.io.encoding import convert
from fastenh.io.formats.base import (
    QUALITY,
    Format,
    Header,
    Unsupported,
    WriteError,
    check_memory,
    check_size,
    first_line,
)
from fastenh.io.formats.boxes import box, boxes
from fastenh.io.formats.rows import new_spec
from fastenh.io.metadata import DISPLAY_P3, EXIF_START, Metadata, coded_profile

SIGNATURE = bytes.fromhex("0000000c4a584c200d0a870a00000014667479706a786c20000000006a786c20")  # with the "ftyp" box
MAX_HEAD = 2**14  # bytes at the start of the codestream that must contain its header
MAX_UNPACKED = 2**24  # bytes of a compressed box
SHORTEST = 128  # bytes; OpenImageIO fails to read a shorter file
LOSSY_EFFORT, LOSSLESS_EFFORT, FLOAT_EFFORT = 5, 3, 4  # of libjxl, up to 10; below 4 more pictures of floats fail
BT2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
LINEAR, SRGB = 8, 13  # codes of curves in ITU-T H.273
CHROMATICITIES = {0: (), 1: (), 9: (*BT2020, *WHITE), 12: (*DISPLAY_P3, *WHITE)}  # by the code of primaries; 0 is gray
ALPHA, BLACK = 0, 4  # kinds of extra channels


class JpegXl(Format):
    name = "JPEG XL"
    suffixes = (".jxl",)
    start = re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n")
    depths = ("uint8", "uint16", "float16", "float32")
    any_name = True

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        with open(path, "rb") as file:
            parts = _read_parts(file)
        codestream = parts[b"jxlc"]
        image = read_head(codestream)
        check_size(image.width, image.height)
        if image.animated:
            raise Unsupported("expected one picture, got an animation")
        if BLACK in image.extra:
            raise Unsupported("expected RGB or gray, got CMYK")
        if image.extra not in ([], [ALPHA]):
            raise Unsupported(f"expected colours and alpha alone, got {len(image.extra)} further channels")
        lost = image.perceptual and image.has_profile and not image.floats
        try:
            pixels, spec = _decoded(_as_floats(codestream, image) if lost else codestream)
        except Exception:
            check_memory(image.width, image.height)
            raise

        exif = parts.get(b"Exif", b"")
        exif = exif[int.from_bytes(exif[:4], "big") + 4 :].removeprefix(EXIF_START)
        height, width = pixels.shape[:2]  # already upright
        about = Metadata(exif=exif, xmp=parts.get(b"xml ", b"")).upright(image.orientation, width, height)
        decoded = Header.of(self.name, pixels, about)
        decoded = replace(decoded, premultiplied=image.premultiplied, **_colours(decoded, spec))
        storage = {"lossless": not image.perceptual and b"jbrd" not in parts, "primaries": _codes(spec)[0]}
        header = replace(decoded, premultiplied=False, storage=storage)
        if lost:
            icc = coded_profile(12, SRGB, header.colours)
            space = "Display P3" if icc else "the gray of sRGB"
            notes = (f"left out the ICC profile; colours were converted to {space}",)
            header = replace(
                header, dtype=np.dtype("uint8" if image.bits <= 8 else "uint16"), linear=False, chromaticities=(),
                metadata=replace(about, icc=icc), notes=notes,
            )  # fmt: skip
        return header, convert(pixels, decoded, header)

    def encode(self, header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
        """Without `quality`, lossless for floats and for photos that were lossless."""
        lossless = header.storage.get("lossless", header.dtype.kind == "f")
        level = quality or (100 if lossless else QUALITY)  # 100 is lossless
        about, gray_floats = header.metadata, header.dtype.kind == "f" and header.colours == 1 and not header.linear
        if pixels.shape[2] == 2 or (gray_floats and not about.icc):  # OpenImageIO can write these only as RGB
            pixels = np.concatenate([np.repeat(pixels[..., :1], 3, 2), pixels[..., 1:]], 2)
            header = replace(header, channels=pixels.shape[2], colours=3, alpha=3 if pixels.shape[2] == 4 else None)
        codes = (header.storage["primaries"], LINEAR) if header.linear else (1, SRGB)
        try:
            codestream = _encoded(header, pixels, level, codes)
        except WriteError:  # libjxl subtracts floats as integers, which overflow if signs differ
            if level < 100 or pixels.dtype != np.float32 or not (pixels < 0).any():
                raise
            got = "negative values that it cannot store; use TIFF or a quality below 100"
            raise ValueError(f"expected 32-bit floats that lossless JPEG XL can store, got {got}") from None
        parts = _read_parts(io.BytesIO(codestream))
        data = SIGNATURE
        if b"jxll" in parts:  # the conformance level, which the codestream does not contain
            data += box(b"jxll", parts[b"jxll"])
        if about.exif:
            data += box(b"Exif", bytes(4), about.exif)
        if about.xmp:
            data += box(b"xml ", about.xmp)
        return data + box(b"jxlc", parts[b"jxlc"])

    def size(self, path: Path) -> tuple[int, int]:
        try:
            with open(path, "rb") as file:
                image = read_head(_read_parts(file)[b"jxlc"])
        except (EOFError, KeyError, struct.error) as error:
            raise ValueError(f"{path}: expected a whole JPEG XL, got a damaged one ({error})") from None
        return (image.width, image.height) if image.orientation >= 5 else (image.height, image.width)

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """All boxes, including the last one of the codestream. A file without boxes, which is never written here,
        counts as complete."""
        if file.read(2) == b"\xff\x0a":
            return True
        last = False
        for kind, content, _ in boxes(file, 0, size):
            file.seek(content)
            last |= kind == b"jxlc" or (kind == b"jxlp" and file.read(1) >= b"\x80")
        return last


# ---- boxes


def _read_parts(file: BinaryIO) -> dict[bytes, bytes]:
    """The contents of the boxes by kind, the first of each kind; "jxlc" is the codestream, joined from its parts.
    Raises EOFError if the boxes are damaged."""
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(2) == b"\xff\x0a":
        file.seek(0)
        return {b"jxlc": file.read()}
    parts: dict[bytes, bytes] = {}
    pieces = []
    for kind, content, end in boxes(file, 0, size):
        file.seek(content)
        if kind == b"jxlp":
            pieces.append(file.read(end - content)[4:])  # without its number
        elif kind == b"brob":
            inner, data = file.read(4), file.read(end - content - 4)
            if inner in (b"Exif", b"xml ") and inner not in parts:
                parts[inner] = _unpacked(data)
        elif kind in (b"jxlc", b"jxll", b"Exif", b"xml "):
            parts.setdefault(kind, file.read(end - content))
        elif kind == b"jbrd":
            parts[kind] = b""
    parts.setdefault(b"jxlc", b"".join(pieces))
    return parts


def _unpacked(data: bytes) -> bytes:
    """The decompressed bytes; b"" if `data` is damaged or the result is too large."""
    import imagecodecs

    try:
        return bytes(imagecodecs.brotli_decode(data, out=MAX_UNPACKED))
    except imagecodecs.BrotliError:
        return b""


# ---- the header of a codestream, ISO/IEC 18181-1


@dataclass
class Head:
    """The fields of the codestream header that are needed here."""

    width: int = 0  # as stored
    height: int = 0
    orientation: int = 1
    bits: int = 8
    floats: bool = False
    extra: list[int] = field(default_factory=list)  # kinds of the channels beyond the colours
    premultiplied: bool = False
    animated: bool = False
    perceptual: bool = True  # pixels are XYB, as in lossy files; the profile does not apply to them
    has_profile: bool = False
    depth: tuple[int, int] = (0, 0)  # the range of bits of the file that states the depth
    extensions: int = 0  # the bit at which extensions begin


class Bits:
    """Reads numbers from bytes, lowest bit first. Raises EOFError at the end."""

    def __init__(self, data: bytes) -> None:
        self._number, self._end, self.place = int.from_bytes(data, "little"), 8 * len(data), 0

    def __call__(self, count: int) -> int:
        self.place += count
        if self.place > self._end:
            raise EOFError("the header is truncated or too long")
        return self._number >> self.place - count & (1 << count) - 1

    def u32(self, *choices: tuple[int, int]) -> int:
        """The standard's U32: two bits select a lowest number and the count of the bits to add to it."""
        lowest, count = choices[self(2)]
        return lowest + self(count)

    def enum(self) -> int:
        """The standard's Enum."""
        return self.u32((0, 0), (1, 0), (2, 4), (18, 6))


def read_head(codestream: bytes) -> Head:
    """Parse the header of a codestream. Raises EOFError if it is truncated."""
    bits, head = Bits(codestream[:MAX_HEAD]), Head()
    bits(16)
    head.width, head.height = _size(bits)
    if bits(1):  # all other fields have their defaults
        return head
    extra_fields = bits(1)
    if extra_fields:
        head.orientation = 1 + bits(3)
        if bits(1):
            _size(bits)  # the intrinsic size
        if bits(1):
            _preview_size(bits)
        head.animated = bool(bits(1))
        if head.animated:
            return head
    start = bits.place
    head.bits, head.floats = _depth(bits)
    head.depth = start, bits.place
    bits(1)
    for _ in range(bits.u32((0, 0), (1, 0), (2, 4), (1, 12))):
        _read_channel(bits, head)
    head.perceptual = bool(bits(1))
    if not bits(1):
        head.has_profile = bool(bits(1))
        bits.enum()  # RGB or gray
    if head.has_profile:
        if extra_fields and not bits(1):  # tone mapping
            bits(16 + 16 + 1 + 16)
        head.extensions = bits.place
    return head


def _size(bits: Bits) -> tuple[int, int]:
    """Width and height."""
    small = bits(1)
    ranges = (1, 9), (1, 13), (1, 18), (1, 30)
    height = 8 * (1 + bits(5)) if small else bits.u32(*ranges)
    ratio = bits(3)
    if not ratio:
        return 8 * (1 + bits(5)) if small else bits.u32(*ranges), height
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * across // down, height


def _preview_size(bits: Bits) -> None:
    small = bits(1)
    ranges = ((16, 0), (32, 0), (1, 5), (33, 9)) if small else ((1, 6), (65, 8), (321, 10), (1345, 12))
    bits.u32(*ranges)
    if not bits(3):
        bits.u32(*ranges)


def _depth(bits: Bits) -> tuple[int, bool]:
    """Bits per sample, and whether samples are floats."""
    if not bits(1):
        return bits.u32((8, 0), (10, 0), (12, 0), (1, 6)), False
    count = bits.u32((32, 0), (16, 0), (24, 0), (1, 6))
    bits(4)  # the size of the exponent
    return count, True


def _read_channel(bits: Bits, head: Head) -> None:
    """Read an extra channel."""
    kind = ALPHA
    if not bits(1):
        kind = bits.enum()
        _depth(bits)
        bits.u32((0, 0), (3, 0), (4, 0), (1, 3))
        bits(8 * bits.u32((0, 0), (0, 4), (16, 5), (48, 10)))  # a name
        if kind == ALPHA:
            head.premultiplied |= bool(bits(1))
        elif kind == 2:  # a spot colour
            bits(4 * 16)
        elif kind == 5:  # a colour filter array
            bits.u32((1, 0), (0, 2), (3, 4), (19, 8))
    head.extra.append(kind)


def _as_floats(codestream: bytes, head: Head) -> bytes:
    """The codestream with 32-bit floats as its stated depth, so that libjxl decodes XYB to unbounded linear sRGB.

    With the stated 8 bits, libjxl would quantise linear light to 8 bits and clip it to sRGB. The new header is a whole
    number of bytes longer: an empty extension pads it, so the bytes that follow need no shift."""
    (start, stop), place = head.depth, head.extensions
    number = int.from_bytes(codestream[: place // 8 + 2], "little")
    if number >> place & 3:  # two bits that are 0 if there are no extensions
        raise Unsupported("expected a JPEG XL without extensions, got some")
    result, length = number & (1 << start) - 1, start

    def put(value: int, count: int) -> None:
        nonlocal result, length
        result |= value << length
        length += count

    put(0b0111_00_1, 7)  # floats; of 32 bits; with an exponent of 1 + 7 bits
    put(number >> stop & (1 << place - stop) - 1, place - stop)
    padding = 1 + (place + 2 - (length + 12) - 1) % 8
    put(0b0000_01, 6)  # only extension 0
    put(padding - 1 << 2 | 0b01, 6)  # its size in bits, 1 to 16
    put(0, padding)
    put(codestream[(place + 2) // 8] >> (place + 2) % 8, 8 - length % 8)
    return result.to_bytes(length // 8, "little") + codestream[(place + 2) // 8 + 1 :]


# ---- pixels, through OpenImageIO


def _decoded(codestream: bytes) -> tuple[np.ndarray, Any]:
    """Upright pixels, (height, width, channels), and OpenImageIO's description of them. Raises RuntimeError if the
    codestream cannot be decoded."""
    import OpenImageIO as oiio  # not on every machine that runs the ops

    with tempfile.NamedTemporaryFile(suffix=".jxl") as copy:
        copy.write(codestream.ljust(SHORTEST, b"\0"))
        copy.flush()
        file = oiio.ImageInput.open(copy.name)
        if file is None:
            raise RuntimeError(first_line(oiio.geterror()))
        spec = file.spec()
        pixels = file.read_image(spec.format)
        if pixels is None:
            raise RuntimeError(first_line(file.geterror()))
    return pixels.reshape(spec.height, spec.width, -1), spec


def _encoded(header: Header, pixels: np.ndarray, level: int, codes: tuple[int, int]) -> bytes:
    """The file that OpenImageIO writes, with the ICC profile or, without one, the codes of primaries and curve, and no
    other metadata. Raises WriteError."""
    import OpenImageIO as oiio

    spec, icc = new_spec(header), header.metadata.icc
    spec["compression"] = f"jpegxl:{level}"
    lossless_effort = FLOAT_EFFORT if pixels.dtype.kind == "f" else LOSSLESS_EFFORT
    spec["jpegxl:effort"] = lossless_effort if level == 100 else LOSSY_EFFORT
    spec["jpegxl:use_boxes"] = 0
    if icc:
        spec.attribute("ICCProfile", oiio.TypeDesc(f"uint8[{len(icc)}]"), np.frombuffer(icc, np.uint8))
    elif header.colours == 3:  # gray has sRGB's curve or, in floats, is linear
        spec.attribute("CICP", oiio.TypeDesc("int[4]"), (*codes, 0, 1))
    with tempfile.NamedTemporaryFile(suffix=".jxl") as copy:
        file = oiio.ImageOutput.create(copy.name)
        if not (file and file.open(copy.name, spec) and file.write_image(pixels) and file.close()):
            check_memory(header.width, header.height)
            raise WriteError(first_line(file.geterror() if file else oiio.geterror()))
        return Path(copy.name).read_bytes()


def _codes(spec: Any) -> tuple[int, int]:
    """Codes of primaries and curve; (0, 2), gray and unspecified, if the file does not state them."""
    primaries, curve = (spec.getattribute("CICP") or (0, 2))[:2]
    return primaries, curve


def _colours(decoded: Header, spec: Any) -> dict[str, Any]:
    """The fields of the header that describe the colour space. Raises Unsupported for PQ and HLG."""
    primaries, curve = _codes(spec)
    if curve in (16, 18):
        try:
            coded_profile(primaries or 1, curve, decoded.colours)
        except ValueError as error:
            raise Unsupported(error) from None
    if curve == LINEAR and decoded.dtype.kind == "f" and primaries in CHROMATICITIES:
        return {"linear": True, "chromaticities": CHROMATICITIES[primaries]}
    if curve == SRGB and primaries in (0, 1):
        return {}
    return {"metadata": replace(decoded.metadata, icc=bytes(np.asarray(spec.getattribute("ICCProfile"), np.uint8)))}
