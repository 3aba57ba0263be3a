"""JPEG, WebP, HEIC and cameras' RAW: formats that are read and written as a whole.

JPEG and WebP go through Pillow and not OpenImageIO, since Pillow gives and takes EXIF, XMP, ICC profile and the
quantisation tables as they are; OpenImageIO writes EXIF and XMP anew, without maker notes and what it does not know.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, WebPImagePlugin

from fastenh.io import metadata
from fastenh.io.colour import profile_of
from fastenh.io.header import HEIC, JPEG, MAX_PIXELS, RAW, WEBP, Header
from fastenh.io.metadata import Metadata
from fastenh.memory import is_out_of_memory

QUALITY = 95  # where a photo comes from a format that has none
PACKAGES = {HEIC: "pillow-heif", RAW: "rawpy"}
EXIF, ICC, PHOTOSHOP = b"Exif\0\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0"
XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"


def read(path: Path, format: str) -> tuple[Header, np.ndarray]:
    """Header and pixels, as they are stored. ValueError where the file is damaged or holds something else, MemoryError
    where there is not enough for it."""
    try:
        header, pixels = {JPEG: _read_jpeg, WEBP: _read_webp, HEIC: _read_heic, RAW: _read_raw}[format](path)
    except ModuleNotFoundError as error:
        need = f"expected the package {error.name} to read {format}, got none: pip install {PACKAGES[format]}"
        raise ValueError(f"{path}: {need}") from None
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # decoders meet a damaged file with a dozen kinds of exception
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: out of memory") from error
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(error)  # LibRaw speaks in bytes
        first = (text.splitlines() or ["unknown"])[0]
        raise ValueError(f"{path}: expected a whole {format}, got a damaged one ({first})") from error
    try:
        metadata.check_exif(header.metadata.exif)
    except ValueError as error:
        warnings.warn(f"{path}: left out EXIF: {error}", stacklevel=2)
        header = replace(header, metadata=replace(header.metadata, exif=b""))
    return header, pixels


def encode(header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
    """The file, in memory. Without `quality` a JPEG keeps the quantisation tables and subsampling that it came with."""
    return {JPEG: _jpeg, WEBP: _webp, HEIC: _heic}[header.format](header, pixels, quality)


@contextlib.contextmanager
def _coding(width: int, height: int) -> Iterator[None]:
    """Some codecs say of too little memory what they say of a damaged file: then ask for what they need at most."""
    try:
        yield
    except Exception:
        np.empty((height, width, 8), np.uint8)  # or MemoryError
        raise


class _Refused(Exception):
    """What was expected and what came, of a whole file that is not taken."""


def _check(image: Image.Image) -> None:
    _check_size(*image.size)
    if image.mode not in ("L", "RGB", "RGBA"):
        raise _Refused(f"expected RGB or gray, got {image.mode}")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _Refused(f"expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got {width}×{height}")


def _header(
    format: str, pixels: np.ndarray, orientation: int, about: Metadata, storage: dict[str, Any] | None = None
) -> Header:
    height, width, channels = pixels.shape
    colours = 3 if channels > 2 else 1
    alpha = colours if channels > colours else None
    return Header(
        format, height, width, channels, pixels.dtype, colours, alpha, False, orientation, metadata=about,
        storage=storage or {},
    )  # fmt: skip


# ---- JPEG

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame, by how it is coded
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers without a segment
METADATA = {*range(0xE1, 0xF0)} - {0xEE}  # but for JFIF's and Adobe's, which say how colours are coded
SEGMENTS = 4096  # before the pixels, of up to 64 KiB each; photos have a few hundred at most
JPEG_XMP = 65_502  # bytes of a packet that a segment holds
NAMING_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="%s"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def _read_jpeg(path: Path) -> tuple[Header, np.ndarray]:
    """A file that holds several pictures (gain map, stereo) is its first, the one every viewer shows."""
    data = path.read_bytes()
    segments, scan = _segments(data)
    kind, bits = next(((kind, content[0]) for kind, content in segments if kind in FRAMES and content), (0, 8))
    if kind in LOSSLESS or bits != 8:
        got = "a lossless one" if kind in LOSSLESS else f"one of {bits}"
        raise _Refused(f"expected a lossy JPEG of 8 bits, got {got}")
    # Pillow looks for the resolution in EXIF and reads all of it for that, whatever it takes: it gets no metadata.
    bare = b"\xff\xd8" + _joined((kind, content) for kind, content in segments if kind not in METADATA) + data[scan:]
    del data
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(bare))  # not Image.open, which has one limit for the process
    _check(image)
    with _coding(*image.size):
        image.load()
    exif = _exif(segments)
    extended = [content for kind, content in segments if kind == 0xE1 and content.startswith(EXTENDED_XMP)]
    packets = [content[len(XMP) :] for kind, content in segments if kind == 0xE1 and content.startswith(XMP)]
    xmp, extended = _joined_xmp(packets[-1] if packets else b"", extended)
    blocks = [content for kind, content in segments if kind == 0xED and content.startswith(PHOTOSHOP)]
    icc = _profile(segments) or (metadata.exif_profile(exif) if image.mode == "RGB" else b"")
    about = Metadata(
        icc, exif, xmp,
        metadata.without_thumbnails(b"".join(block[len(PHOTOSHOP) :] for block in blocks)),
        _dpi(image) or metadata.exif_dpi(exif),
    )  # fmt: skip
    storage = {
        "qtables": image.quantization,
        "subsampling": JpegImagePlugin.get_sampling(image),
        "progressive": bool(image.info.get("progressive")),
        "rgb": _is_rgb(image),
        "comment": image.info.get("comment", b""),
        "extended xmp": extended,
    }
    pixels = np.array(image).reshape(image.height, image.width, -1)
    return _header(JPEG, pixels, metadata.exif_orientation(exif), about, storage), pixels


def _segments(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Marker and content of each segment before the pixels of a JPEG, and where these begin. As in libjpeg, other bytes
    between segments are skipped. More than `SEGMENTS` are refused: millions of small ones would exhaust memory."""
    found: list[tuple[int, bytes]] = []
    place = data.find(b"\xff", 2)
    while 0 <= place < len(data) - 3:
        marker = data[place + 1]
        if marker in (0xD9, 0xDA):  # the end, or the first scan
            break
        if marker == 0xFF:  # a byte to fill up
            place += 1
        elif marker in ALONE:
            place = data.find(b"\xff", place + 2)
        elif len(found) == SEGMENTS:
            raise _Refused(f"expected at most {SEGMENTS} segments before the pixels of a JPEG, got more")
        else:
            end = place + 2 + max(int.from_bytes(data[place + 2 : place + 4], "big"), 2)
            found.append((marker, data[place + 4 : end]))
            place = data.find(b"\xff", end)
    return found, place if place >= 0 else len(data)


def _joined(segments: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content for kind, content in segments)


def _exif(segments: list[tuple[int, bytes]]) -> bytes:
    """The EXIF block, which goes on in further segments where one does not hold it."""
    return b"".join(content[len(EXIF) :] for kind, content in segments if kind == 0xE1 and content.startswith(EXIF))


def _profile(segments: list[tuple[int, bytes]]) -> bytes:
    """The ICC profile, whose parts say which of how many they are; b"" where one is missing."""
    parts = sorted(content for kind, content in segments if kind == 0xE2 and content.startswith(ICC))
    whole = parts and len(parts[0]) > 13 and parts[0][13] == len(parts)
    return b"".join(part[14:] for part in parts) if whole else b""


def _split_xmp(packet: bytes) -> tuple[bytes, list[bytes]]:
    """A packet that is too large for a segment as XMP's part 3 has it: one that names the other, and that in parts."""
    name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper().encode()
    starts = range(0, len(packet), 65_000)
    parts = [struct.pack(">II", len(packet), at) + packet[at : at + 65_000] for at in starts]
    return NAMING_XMP % name, [EXTENDED_XMP + name + part for part in parts]


def _joined_xmp(packet: bytes, extended: list[bytes]) -> tuple[bytes, list[bytes]]:
    """The way back. What another program has split stays so: there the first packet has a part of what is said."""
    parts = sorted(part[len(EXTENDED_XMP) :] for part in extended)  # all with one name and size, and by their place
    whole = b"".join(part[40:] for part in parts)
    return (whole, []) if extended and _split_xmp(whole) == (packet, sorted(extended)) else (packet, extended)


def _is_rgb(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether it is coded as RGB and not as YCbCr, by the rules that libjpeg reads it by."""
    if "jfif" in image.info or image.mode != "RGB":
        return False
    if "adobe" in image.info:
        return image.info.get("adobe_transform") == 0
    return bytes(component[0] for component in image.layer) == b"RGB"


def _jpeg(header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
    about, storage = header.metadata, header.storage
    how: dict[str, Any] = {"quality": QUALITY if quality is None else quality, "subsampling": 0}
    if storage:
        how["subsampling"] = max(storage["subsampling"], 0)  # -1 is none that can be named: all colour is kept
        how["progressive"], how["comment"] = storage["progressive"], storage["comment"]
        if storage["rgb"]:
            how["keep_rgb"], how["subsampling"] = True, 0  # Pillow takes it in no other way
        if quality is None:  # Pillow would scale the tables by a quality
            how["qtables"] = storage["qtables"]
            del how["quality"]
    extended = storage.get("extended xmp", [])
    if len(about.xmp) > JPEG_XMP:
        xmp, extended = _split_xmp(about.xmp)
        about = replace(about, xmp=xmp)
    segments = [(0xE1, data) for data in ([XMP + about.xmp] if about.xmp else []) + extended]
    if about.iptc:
        whole = [about.iptc[at : at + 65000] for at in range(0, len(about.iptc), 65000)]
        segments += [(0xED, PHOTOSHOP + part) for part in whole]
    how["extra"] = _joined(segments)
    return _saved(_image(pixels), JPEG, how, replace(about, xmp=b""))


def _saved(image: Image.Image, format: str, how: dict[str, Any], about: Metadata) -> bytes:
    if about.exif:
        how["exif"] = EXIF + about.exif
    how |= {key: value for key, value in (("icc_profile", about.icc), ("xmp", about.xmp)) if value}
    if about.dpi and max(about.dpi) < 2**16:  # as JFIF has it; else EXIF alone says so
        how["dpi"] = about.dpi
    out = io.BytesIO()
    with _coding(*image.size):
        image.save(out, format, **how)
    return out.getvalue()


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    dpi = image.info.get("dpi")
    return (float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None


# ---- WebP


def _read_webp(path: Path) -> tuple[Header, np.ndarray]:
    data = path.read_bytes()
    size = _webp_size(data)
    _check_size(*size)
    with _coding(*size):
        image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    _check(image)
    if getattr(image, "is_animated", False):
        raise _Refused("expected one picture, got an animation")
    image.load()
    exif = image.info.get("exif", b"").removeprefix(EXIF)
    about = Metadata(image.info.get("icc_profile", b""), exif, image.info.get("xmp", b""))
    pixels = np.array(image)
    lossless = data[12:16] == b"VP8L" or (data[12:16] == b"VP8X" and _chunk(data, b"VP8L"))
    return _header(WEBP, pixels, metadata.exif_orientation(exif), about, {"lossless": lossless}), pixels


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height, as any of its three kinds of header has them; 0, 0 where it has none."""
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    width, height = struct.unpack("<HH", head[6:10]) if kind == b"VP8 " else (0, 0)
    return width % 2**14, height % 2**14


def _chunk(data: bytes, kind: bytes) -> bool:
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        if name == kind:
            return True
        place += 8 + size + size % 2
    return False


def _webp(header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
    lossless = bool(header.storage.get("lossless")) and quality is None
    level = 75 if lossless else QUALITY if quality is None else quality  # of lossless: how hard it tries
    how = {"lossless": lossless, "quality": level, "exact": True}  # exact: colours under what is transparent stay
    if header.colours == 1:  # WebP knows no gray
        pixels = np.concatenate([np.repeat(pixels[..., :1], 3, 2), pixels[..., 1:]], 2)
    return _saved(_image(pixels), WEBP, how, header.metadata)


# ---- HEIC


def _read_heic(path: Path) -> tuple[Header, np.ndarray]:
    import pillow_heif

    file = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
    image = file[file.primary_index]
    _check_size(*image.size)
    info: dict[str, Any] = image.info
    icc, nclx = info.get("icc_profile") or b"", info.get("nclx_profile") or {}
    codes = nclx.get("color_primaries", 2), nclx.get("transfer_characteristics", 2)
    if not icc:
        try:
            icc = metadata.coded_profile(*codes, 1 if image.mode.startswith("L") else 3)
        except ValueError as error:
            raise _Refused(error) from None
    with _coding(*image.size):
        pixels = np.array(image).reshape(image.size[1], image.size[0], -1)
    exif = (info.get("exif") or b"").removeprefix(EXIF)
    about = Metadata(icc, exif, info.get("xmp") or b"")
    storage = {"chroma": info.get("chroma"), "codes": codes if nclx else (1, 13)}
    return _header(HEIC, pixels, 1, about, storage), pixels  # libheif has turned it upright


def _heic(header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        need = f"expected the package {error.name} to write HEIC, got none: pip install {PACKAGES[HEIC]}"
        raise ValueError(need) from None
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]] + (";16" if pixels.dtype == np.uint16 else "")
    file = pillow_heif.from_bytes(mode, (header.width, header.height), np.ascontiguousarray(pixels).tobytes())
    about, out = header.metadata, io.BytesIO()
    if about.icc:
        file[0].info["icc_profile"] = about.icc
    primaries, curve = header.storage.get("codes", (1, 13))
    how = {"color_primaries": primaries, "transfer_characteristics": curve, "matrix_coefficients": 6}
    if header.storage.get("chroma"):
        how["chroma"] = header.storage["chroma"]
    how |= {"exif": about.exif or None, "xmp": about.xmp or None, "quality": QUALITY if quality is None else quality}
    file.save(out, full_range_flag=1, **how)
    return out.getvalue()


# ---- RAW


def _read_raw(path: Path) -> tuple[Header, np.ndarray]:
    """Developed by LibRaw to 16-bit sRGB, in the camera's white balance, upright, as light as it was taken. EXIF is
    that of the JPEG that cameras put beside their sensor's numbers; the ICC profile goes before what it says of
    colours, which are that JPEG's."""
    import rawpy

    with rawpy.imread(str(path)) as raw:
        pixels = raw.postprocess(output_bps=16, use_camera_wb=True, no_auto_bright=True)
        try:
            thumbnail = raw.extract_thumb()
            preview = bytes(thumbnail.data) if thumbnail.format == rawpy.ThumbFormat.JPEG else b""
        except rawpy.LibRawError:
            preview = b""
    return _header(RAW, pixels, 1, Metadata(profile_of(), _exif(_segments(preview)[0]))), pixels
