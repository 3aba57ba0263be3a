"""WebP, through Pillow."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import WebPImagePlugin

from fastenh.io.formats import base
from fastenh.io.formats.base import QUALITY, Format, Header
from fastenh.io.metadata import EXIF_START, Metadata, exif_orientation


class WebP(Format):
    name = "WebP"
    suffixes = (".webp",)
    start = re.compile(rb"RIFF....WEBP", re.S)
    depths = ("uint8",)
    any_name = True

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        data = path.read_bytes()
        image, about, orientation = _opened(data)
        pixels = base.load_image(image)
        lossless = data[12:16] == b"VP8L" or (data[12:16] == b"VP8X" and _has_chunk(data, b"VP8L"))
        return Header.of(self.name, pixels, about, orientation, lossless=lossless), pixels

    def size(self, path: Path) -> tuple[int, int]:
        """As in `Format`; through Pillow, because OpenImageIO ignores an orientation that only XMP states."""
        image, _, orientation = _opened(path.read_bytes())
        return (image.width, image.height) if orientation >= 5 else (image.height, image.width)

    def encode(self, header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
        """Without `quality`, lossless where the photo was."""
        lossless = bool(header.storage.get("lossless")) and quality is None
        level = 75 if lossless else QUALITY if quality is None else quality  # of lossless compression: the effort
        if header.colours == 1:  # WebP has no gray
            pixels = np.concatenate([np.repeat(pixels[..., :1], 3, 2), pixels[..., 1:]], 2)
        options = {"lossless": lossless, "quality": level, "exact": True}  # exact: keep colours of transparent pixels
        return base.save_image(pixels, self.name, header.metadata, options)

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """All the bytes that the header counts."""
        file.seek(4)
        return struct.unpack("<I", base.take(file, 4))[0] + 8 <= size


def _opened(data: bytes) -> tuple[WebPImagePlugin.WebPImageFile, Metadata, int]:
    """The image, not yet decoded, its metadata and its orientation. Raises Unsupported for an animation or more than
    `MAX_PIXELS`."""
    size = _size(data)
    base.check_size(*size)
    try:
        image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    except Exception:
        base.check_memory(*size)
        raise
    if getattr(image, "is_animated", False):
        raise base.Unsupported("expected one picture, got an animation")
    exif, xmp = image.info.get("exif", b"").removeprefix(EXIF_START), image.info.get("xmp", b"")
    about = Metadata(image.info.get("icc_profile", b""), exif, xmp)
    return image, about, exif_orientation(exif, xmp)


def _size(data: bytes) -> tuple[int, int]:
    """Width and height, by whichever of the three kinds of header there is; 0, 0 where there is none."""
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    width, height = struct.unpack("<HH", head[6:10]) if kind == b"VP8 " else (0, 0)
    return width % 2**14, height % 2**14


def _has_chunk(data: bytes, kind: bytes) -> bool:
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        if name == kind:
            return True
        place += 8 + size + size % 2
    return False
