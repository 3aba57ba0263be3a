"""`Header`: all that a photo's file says but the pixels; which formats there are, and what each can hold."""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastenh.io import metadata
from fastenh.io.colour import ColourSpace, from_profile, linear_light
from fastenh.io.metadata import Metadata, Tag

JPEG, PNG, TIFF, WEBP, EXR, HEIC, RAW = "JPEG", "PNG", "TIFF", "WebP", "OpenEXR", "HEIC", "camera RAW"
SUFFIXES = {
    ".jpg": JPEG, ".jpeg": JPEG, ".png": PNG, ".tif": TIFF, ".tiff": TIFF, ".webp": WEBP, ".exr": EXR,
    ".heic": HEIC, ".heif": HEIC, ".hif": HEIC,
}  # fmt: skip
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srw", ".x3f",
)  # fmt: skip
DEPTHS = {  # of each format that is written; the first that is no less than what there is will be taken
    JPEG: ("uint8",), WEBP: ("uint8",), PNG: ("uint8", "uint16"), HEIC: ("uint8", "uint16"),
    TIFF: ("uint8", "uint16", "float16", "float32"), EXR: ("float16", "float32"),
}  # fmt: skip
JPEG_EXIF = 65_527  # bytes of EXIF that a JPEG holds
MAX_PIXELS = 2**28  # of a photo in memory: 268 megapixels, above any single shot of a camera sold today

_STARTS = [
    (re.compile(rb"\xff\xd8\xff"), JPEG),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PNG),
    (re.compile(rb"RIFF....WEBP", re.S), WEBP),
    (re.compile(rb"v/1\x01"), EXR),
    (re.compile(rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", re.S), HEIC),
    (re.compile(rb"....ftypcrx |II\*\0....CR|IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb", re.S), RAW),
    (re.compile(rb"II\*\0|MM\0\*|II\x2b\0|MM\0\x2b"), TIFF),
]
_OTHERS = [
    (re.compile(rb"GIF8"), "GIF"),
    (re.compile(rb"....ftypavi[fs]", re.S), "AVIF"),
    (re.compile(rb"\xff\x0a|....JXL ", re.S), "JPEG XL"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"%PDF"), "PDF"),
]


@dataclass(frozen=True)
class Header:
    """`pixels` of a photo are (height, width, channels) of `dtype`: first the `colours`, 3 or for a gray photo 1, then
    others, of which one may be alpha; integers at full scale, floats with 1 for white. `orientation` says, as EXIF
    counts them, how rows and columns lie; it is 1 in what `read_photo` returns. `storage` is the format's own business:
    how the file was compressed, and blocks of bytes that only the same format takes back."""

    format: str
    height: int
    width: int
    channels: int
    dtype: np.dtype
    colours: int
    alpha: int | None = None
    premultiplied: bool = False  # colours are multiplied by alpha
    orientation: int = 1
    linear: bool = False  # numbers are proportional to light
    chromaticities: tuple[float, ...] = ()  # of linear numbers: x, y of red, green, blue and white; () is sRGB's
    metadata: Metadata = field(default=Metadata(), repr=False)
    storage: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def colour_space(self) -> ColourSpace:
        if self.linear:
            return linear_light(self.colours, self.chromaticities[:6], self.chromaticities[6:])
        return from_profile(self.metadata.icc, self.colours)

    def upright(self) -> Header:
        """Of the photo once it is turned: metadata say so, and EXIF lets go its small picture of it as it was."""
        on_its_side = self.orientation >= 5
        about = self.metadata
        turned = replace(
            about, exif=metadata.upright_exif(about.exif, on_its_side), xmp=metadata.upright_xmp(about.xmp),
            dpi=about.dpi[::-1] if about.dpi and on_its_side else about.dpi,
            aspect=about.aspect[::-1] if about.aspect and on_its_side else about.aspect,
        )  # fmt: skip
        height, width = (self.width, self.height) if on_its_side else (self.height, self.width)
        return replace(self, height=height, width=width, orientation=1, metadata=turned)

    def tiff_channels(self) -> dict[int, Tag]:
        """What a TIFF says of its channels: how colours are meant, and of what kind each further one is."""
        extra = [0] * (self.channels - self.colours)  # of no kind
        if self.alpha is not None:
            extra[self.alpha - self.colours] = 1 if self.premultiplied else 2
        tags = {262: Tag(3, 1, struct.pack("<H", 2 if self.colours == 3 else 1))}
        if extra:
            tags[338] = Tag(3, len(extra), struct.pack(f"<{len(extra)}H", *extra))
        return tags

    def stored_as(self, format: str) -> Header:
        """Of the same photo in a file of this format: the nearest depth that it holds, linear light in OpenEXR alone.

        ValueError, without the file's name, where the format cannot hold it."""
        about = self.metadata
        if format == JPEG:
            about = replace(about, exif=metadata.exif_within(about.exif, JPEG_EXIF))
        if format == self.format:
            return replace(self, metadata=about)
        if format not in DEPTHS:
            raise ValueError(f"expected a format that can be written ({', '.join(DEPTHS)}), got {format}")
        alphas = (self.colours,) if self.alpha is not None else ()
        if self.channels > self.colours + len(alphas) and format not in (TIFF, EXR):
            raise ValueError(f"expected colours and alpha alone for {format}, got {self.channels} channels")
        if format == JPEG and alphas:
            raise ValueError("expected a photo without transparency for JPEG, got one with; PNG keeps it")
        depths = DEPTHS[format]
        dtype = next((depth for depth in depths if np.can_cast(self.dtype, depth)), depths[-1])
        if format == EXR and self.dtype == "uint8":
            dtype = "float16"
        linear = format == EXR
        about = replace(about, icc=b"") if linear or self.linear else about
        chromaticities = self.chromaticities if linear and self.linear else ()
        return replace(
            self, format=format, dtype=np.dtype(dtype), linear=linear, chromaticities=chromaticities, metadata=about,
            premultiplied=linear and bool(alphas), storage={},
        )  # fmt: skip


def format_of(path: Path) -> str:
    """The format of a file by how it starts; a TIFF named as a camera's RAW is one. Raises ValueError for any other."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # before open(): a pipe would wait for a writer for ever
        raise ValueError(f"{path}: expected a file, got a folder, pipe or device")
    with open(path, "rb") as file:
        head = file.read(32)
    for pattern, name in _STARTS:
        if pattern.match(head):
            check_name(path, name)
            return RAW if name == TIFF and path.suffix.lower() in RAW_SUFFIXES else name
    others = (name for pattern, name in _OTHERS if pattern.match(head))
    got = next(others, f"a file that starts with {head[:12]!r}" if head else "an empty file")
    known = ", ".join(dict.fromkeys(SUFFIXES.values()))
    raise ValueError(f"{path}: expected a photo ({known} or {RAW}), got {got}")


def check_name(path: Path, format: str) -> None:
    """Raises ValueError for a name that the library for this format would not take."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        if format not in (JPEG, WEBP, HEIC):
            raise ValueError(f"{path}: expected a name in UTF-8 for {format}, got other bytes") from None
