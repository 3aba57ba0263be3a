"""JPEG XL: pixels through OpenImageIO, because imagecodecs neither tells the ICC profile of pixels nor writes one; the
boxes of EXIF and XMP are read and written here."""

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
MAX_HEAD = 2**14  # bytes at the start of the codestream, in which its header must lie
MAX_UNPACKED = 2**24  # bytes of a compressed box
SHORTEST = 128  # bytes that OpenImageIO reads of a file, no less
LOSSY_EFFORT, LOSSLESS_EFFORT, FLOAT_EFFORT = 5, 3, 4  # of libjxl, up to 10; below 4 it fails for more floats
BT2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
LINEAR, SRGB = 8, 13  # codes of curves, in ITU-T H.273
CHROMATICITIES = {0: (), 1: (), 9: (*BT2020, *WHITE), 12: (*DISPLAY_P3, *WHITE)}  # by the code of primaries; 0 is gray
ALPHA, BLACK = 0, 4  # kinds of further channels


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
        if BLACK in image.further:
            raise Unsupported("expected RGB or gray, got CMYK")
        if image.further not in ([], [ALPHA]):
            raise Unsupported(f"expected colours and alpha alone, got {len(image.further)} further channels")
        lost = image.perceptual and image.has_profile and not image.floats
        try:
            pixels, spec = _decoded(_as_floats(codestream, image) if lost else codestream)
        except Exception:
            check_memory(image.width, image.height)
            raise

        exif = parts.get(b"Exif", b"")
        exif = exif[int.from_bytes(exif[:4], "big") + 4 :].removeprefix(EXIF_START)
        height, width = pixels.shape[:2]  # which are upright already
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
        """Without `quality`, lossless where the photo was, and for floats."""
        lossless = header.storage.get("lossless", header.dtype.kind == "f")
        level = quality or (100 if lossless else QUALITY)  # 100 is lossless
        about, gray_floats = header.metadata, header.dtype.kind == "f" and header.colours == 1 and not header.linear
        if pixels.shape[2] == 2 or (gray_floats and not about.icc):  # OpenImageIO writes these as RGB alone
            pixels = np.concatenate([np.repeat(pixels[..., :1], 3, 2), pixels[..., 1:]], 2)
            header = replace(header, channels=pixels.shape[2], colours=3, alpha=3 if pixels.shape[2] == 4 else None)
        codes = (header.storage["primaries"], LINEAR) if header.linear else (1, SRGB)
        try:
            codestream = _encoded(header, pixels, level, codes)
        except WriteError:  # libjxl takes differences of floats as integers, which overflow where signs differ
            if level < 100 or pixels.dtype != np.float32 or not (pixels < 0).any():
                raise
            got = "some below 0 that it cannot; use TIFF or a quality below 100"
            raise ValueError(f"expected 32-bit floats that JPEG XL can store without loss, got {got}") from None
        parts = _read_parts(io.BytesIO(codestream))
        data = SIGNATURE
        if b"jxll" in parts:  # the level of the standard, which the codestream does not say
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
        """All boxes, the last of the pixels among them. A file without boxes, which is never written here, counts as
        complete."""
        if file.read(2) == b"\xff\x0a":
            return True
        last = False
        for kind, content, _ in boxes(file, 0, size):
            file.seek(content)
            last |= kind == b"jxlc" or (kind == b"jxlp" and file.read(1) >= b"\x80")
        return last


# ---- boxes


def _read_parts(file: BinaryIO) -> dict[bytes, bytes]:
    """The contents of boxes by their kind, of several the first; the codestream, in one piece, is "jxlc"."""
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
            pieces.append(file.read(end - content)[4:])  # after its number
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
    """b"" where it is damaged or too large."""
    import imagecodecs

    try:
        return bytes(imagecodecs.brotli_decode(data, out=MAX_UNPACKED))
    except imagecodecs.BrotliError:
        return b""


# ---- the header of a codestream, ISO/IEC 18181-1


@dataclass
class Head:
    width: int = 0  # as stored
    height: int = 0
    orientation: int = 1
    bits: int = 8
    floats: bool = False
    further: list[int] = field(default_factory=list)  # kinds of channels beyond the colours
    premultiplied: bool = False
    animated: bool = False
    perceptual: bool = True  # pixels are XYB, the space of lossy files, and no profile applies to them
    has_profile: bool = False
    depth: tuple[int, int] = (0, 0)  # between which bits of the file the depth is stated
    extensions: int = 0  # the bit where extensions are stated


class Bits:
    """Reads numbers, their lowest bits first."""

    def __init__(self, data: bytes) -> None:
        self._number, self._end, self.place = int.from_bytes(data, "little"), 8 * len(data), 0

    def __call__(self, count: int) -> int:
        self.place += count
        if self.place > self._end:
            raise EOFError("the header is cut short or too long")
        return self._number >> self.place - count & (1 << count) - 1

    def one_of(self, *choices: tuple[int, int]) -> int:
        """By two bits one of four ranges, each with its lowest number and how many bits follow."""
        lowest, count = choices[self(2)]
        return lowest + self(count)

    def enum(self) -> int:
        return self.one_of((0, 0), (1, 0), (2, 4), (18, 6))


def read_head(codestream: bytes) -> Head:
    """Raises EOFError where the header is cut short."""
    bits, head = Bits(codestream[:MAX_HEAD]), Head()
    bits(16)
    head.width, head.height = _size(bits)
    if bits(1):  # all else as most files have it
        return head
    more = bits(1)
    if more:
        head.orientation = 1 + bits(3)
        if bits(1):
            _size(bits)  # to be shown in
        if bits(1):
            _preview_size(bits)
        head.animated = bool(bits(1))
        if head.animated:
            return head
    start = bits.place
    head.bits, head.floats = _depth(bits)
    head.depth = start, bits.place
    bits(1)
    for _ in range(bits.one_of((0, 0), (1, 0), (2, 4), (1, 12))):
        _read_channel(bits, head)
    head.perceptual = bool(bits(1))
    if not bits(1):
        head.has_profile = bool(bits(1))
        bits.enum()  # RGB or gray
    if head.has_profile:
        if more and not bits(1):  # how bright white is
            bits(16 + 16 + 1 + 16)
        head.extensions = bits.place
    return head


def _size(bits: Bits) -> tuple[int, int]:
    small = bits(1)
    ranges = (1, 9), (1, 13), (1, 18), (1, 30)
    height = 8 * (1 + bits(5)) if small else bits.one_of(*ranges)
    ratio = bits(3)
    if not ratio:
        return 8 * (1 + bits(5)) if small else bits.one_of(*ranges), height
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * across // down, height


def _preview_size(bits: Bits) -> None:
    small = bits(1)
    ranges = ((16, 0), (32, 0), (1, 5), (33, 9)) if small else ((1, 6), (65, 8), (321, 10), (1345, 12))
    bits.one_of(*ranges)
    if not bits(3):
        bits.one_of(*ranges)


def _depth(bits: Bits) -> tuple[int, bool]:
    if not bits(1):
        return bits.one_of((8, 0), (10, 0), (12, 0), (1, 6)), False
    count = bits.one_of((32, 0), (16, 0), (24, 0), (1, 6))
    bits(4)  # of them, the exponent's
    return count, True


def _read_channel(bits: Bits, head: Head) -> None:
    """One beyond the colours."""
    kind = ALPHA
    if not bits(1):
        kind = bits.enum()
        _depth(bits)
        bits.one_of((0, 0), (3, 0), (4, 0), (1, 3))
        bits(8 * bits.one_of((0, 0), (0, 4), (16, 5), (48, 10)))  # a name
        if kind == ALPHA:
            head.premultiplied |= bool(bits(1))
        elif kind == 2:  # a spot colour
            bits(4 * 16)
        elif kind == 5:  # of a sensor's colour filters
            bits.one_of((1, 0), (0, 2), (3, 4), (19, 8))
    head.further.append(kind)


def _as_floats(codestream: bytes, head: Head) -> bytes:
    """The codestream with 32-bit floats as its stated depth, so that libjxl decodes XYB to unbounded linear sRGB.

    With the stated 8 bits, libjxl would quantise linear light to 8 bits and clip it to sRGB. The new header is a whole
    number of bytes longer: an empty extension pads it, so the bytes that follow need no shift."""
    (start, stop), place = head.depth, head.extensions
    number = int.from_bytes(codestream[: place // 8 + 2], "little")
    if number >> place & 3:  # two bits, zero where there are none
        raise Unsupported("expected a JPEG XL without extensions, got one with")
    result, length = number & (1 << start) - 1, start

    def put(value: int, count: int) -> None:
        nonlocal result, length
        result |= value << length
        length += count

    put(0b0111_00_1, 7)  # floats; of 32 bits; of which the exponent has 1 + 7
    put(number >> stop & (1 << place - stop) - 1, place - stop)
    filling = 1 + (place + 2 - (length + 12) - 1) % 8
    put(0b0000_01, 6)  # extension 0 alone
    put(filling - 1 << 2 | 0b01, 6)  # the number of its bits, 1 to 16
    put(0, filling)
    put(codestream[(place + 2) // 8] >> (place + 2) % 8, 8 - length % 8)
    return result.to_bytes(length // 8, "little") + codestream[(place + 2) // 8 + 1 :]


# ---- pixels, through OpenImageIO


def _decoded(codestream: bytes) -> tuple[np.ndarray, Any]:
    """Upright pixels and OpenImageIO's description of them."""
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
    """The file that OpenImageIO writes, without metadata but for the profile or, without one, these codes."""
    import OpenImageIO as oiio

    spec, icc = new_spec(header), header.metadata.icc
    spec["compression"] = f"jpegxl:{level}"
    lossless_effort = FLOAT_EFFORT if pixels.dtype.kind == "f" else LOSSLESS_EFFORT
    spec["jpegxl:effort"] = lossless_effort if level == 100 else LOSSY_EFFORT
    spec["jpegxl:use_boxes"] = 0
    if icc:
        spec.attribute("ICCProfile", oiio.TypeDesc(f"uint8[{len(icc)}]"), np.frombuffer(icc, np.uint8))
    elif header.colours == 3:  # gray is sRGB's or, in floats, linear
        spec.attribute("CICP", oiio.TypeDesc("int[4]"), (*codes, 0, 1))
    with tempfile.NamedTemporaryFile(suffix=".jxl") as copy:
        file = oiio.ImageOutput.create(copy.name)
        if not (file and file.open(copy.name, spec) and file.write_image(pixels) and file.close()):
            check_memory(header.width, header.height)
            raise WriteError(first_line(file.geterror() if file else oiio.geterror()))
        return Path(copy.name).read_bytes()


def _codes(spec: Any) -> tuple[int, int]:
    """Codes of primaries and curve; those of gray and of none where they are not stated."""
    primaries, curve = (spec.getattribute("CICP") or (0, 2))[:2]
    return primaries, curve


def _colours(decoded: Header, spec: Any) -> dict[str, Any]:
    """The fields of a header for pixels that OpenImageIO has described. Raises Unsupported for PQ and HLG."""
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
