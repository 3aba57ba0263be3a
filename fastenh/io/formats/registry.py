"""The list of formats, and the format of a file, by its content or by its name."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from fastenh.io.formats.avif import Avif
from fastenh.io.formats.base import Format
from fastenh.io.formats.exr import OpenExr
from fastenh.io.formats.heic import Heic
from fastenh.io.formats.jpeg import Jpeg
from fastenh.io.formats.jxl import JpegXl
from fastenh.io.formats.png import Png
from fastenh.io.formats.raw import Raw
from fastenh.io.formats.tiff import Tiff
from fastenh.io.formats.webp import WebP

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Jpeg(),
        Png(),
        Raw(),  # before Tiff: many RAW files begin like a TIFF
        Tiff(),
        WebP(),
        OpenExr(),
        JpegXl(),
        Avif(),  # before Heic, which accepts the brand mif1 that some AVIFs start with
        Heic(),
    )
}
WRITTEN = [format for format in FORMATS.values() if format.depths]
READ_ONLY = [format for format in FORMATS.values() if not format.depths]
SUFFIXES = {suffix: format.name for format in WRITTEN for suffix in format.suffixes}
RAW_SUFFIXES = tuple(suffix for format in READ_ONLY for suffix in format.suffixes)
KNOWN = " or ".join(", ".join(format.name for format in formats) for formats in (WRITTEN, READ_ONLY))
OTHERS = [
    (re.compile(rb"GIF8"), "GIF"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"%PDF"), "PDF"),
]  # that are recognised but not read


def format_of(path: Path) -> Format:
    """The format of a file by its first bytes. Raises ValueError where it has none, OSError where it cannot be read."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # before open(), which would wait for a pipe's writer for ever
        raise ValueError(f"{path}: expected a file, got a folder, pipe or device")
    with open(path, "rb") as file:
        head = file.read(32)
    for format in FORMATS.values():
        named = format.start_if_named if path.suffix.lower() in format.suffixes else None
        if format.start.match(head) or (named and named.match(head)):
            _check_name(path, format)
            return format
    others = (name for pattern, name in OTHERS if pattern.match(head))
    got = next(others, f"a file that starts with {head[:12]!r}" if head else "an empty file")
    raise ValueError(f"{path}: expected a photo ({KNOWN}), got {got}")


def format_for(path: Path) -> Format:
    """The format to write a file of this name in. Raises ValueError for a name that no format takes."""
    name = SUFFIXES.get(path.suffix.lower())
    if name is None:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}, got {path.suffix or 'none'!r}")
    _check_name(path, FORMATS[name])
    return FORMATS[name]


def _check_name(path: Path, format: Format) -> None:
    """Raise ValueError for a name that the format's library does not take."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        if not format.any_name:
            raise ValueError(f"{path}: expected a name in UTF-8 for {format.name}, got other bytes") from None


def is_complete(path: Path) -> bool:
    """Whether a photo's file has its beginning and its end; False for one that is empty, all zeros, or cut short, as a
    power cut or an interrupted copy leaves it. ValueError for what is no photo, OSError where it cannot be read."""
    with open(path, "rb") as file:
        while block := file.read(2**12):
            if block.count(0) < len(block):
                return format_of(path).is_complete(file)
    return False
