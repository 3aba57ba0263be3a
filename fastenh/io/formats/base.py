"""The contract of a format (`Format`), what a file says beside its pixels (`Header`), and what formats share."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from fastenh.io.colour import ColourSpace, declared, from_profile, linear_light, profile_of, rgb_profile
from fastenh.io.metadata import EXIF_START, Metadata, exif_of_resolution, exif_within, iptc_records
from fastenh.io.xmp import with_extension_name, without_gain_map

MAX_PIXELS = 2**28  # of a photo in memory: 268 megapixels, above any single shot of a camera sold today
QUALITY = 95  # of a lossy format, for photos from a format without a quality
DEFLATE_LEVEL = 2  # ISA-L has 0 to 3; above 2 files do not get smaller


class Format:
    """A file format: how its files are recognised, what they can hold, and how they are read, written and checked.

    A format is a subclass in a file of its own and an entry in `registry.py`. A format that is read and written in one
    piece implements `decode` and, if it is written, `encode`. A format with `by_rows`, whose pictures may be larger
    than memory, implements `open` and `writer` instead.
    """

    name: str
    suffixes: tuple[str, ...]  # of file names, in lower case
    start: re.Pattern[bytes]  # matches the first bytes of a file, of which 32 are read
    start_if_named: re.Pattern[bytes] | None = None  # the same, but only for files with one of the suffixes
    depths: tuple[str, ...] = ()  # the dtypes that can be written, smallest first; () for a format that is only read
    by_rows = False
    alpha = True
    extra_channels = False  # beyond colours and alpha
    linear = False  # pixel values are proportional to light
    holds: tuple[str, ...] = ("exif", "xmp")  # metadata kept from other formats, besides profile and resolution
    resolution = False  # whether files can state it outside EXIF
    max_exif: int | None = None  # bytes of EXIF that a file holds
    any_name = False  # file names need not be UTF-8
    package = ""  # what to install to read and write it, where that is optional

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        """The photo as it is stored, not yet upright, in a new array. Raises Unsupported for an intact file that is not
        accepted, ModuleNotFoundError without its package; any other exception means damage or too little memory."""
        raise NotImplementedError

    def encode(self, header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
        """The bytes of a file. Without `quality` it is stored as `header.storage` says, or in `QUALITY`."""
        raise NotImplementedError

    def open(self, path: Path) -> Rows:
        """The file, opened for reading. Raises ValueError where it is damaged or not accepted."""
        raise NotImplementedError

    def writer(self, path: Path, header: Header) -> RowWriter:
        """A new file, opened for writing. The writer and its methods raise OSError or WriteError."""
        raise NotImplementedError

    def size(self, path: Path) -> tuple[int, int]:
        """(height, width) of the upright photo, read from the file's header alone. ValueError where it has none."""
        if self.by_rows:
            header = self.open(path).header.upright()
            return header.height, header.width
        import OpenImageIO as oiio  # not on every machine that runs the ops

        file = oiio.ImageInput.open(str(path))
        if file is None:
            reason = first_line(oiio.geterror())
            raise ValueError(f"{path}: expected a whole {self.name}, got a damaged one ({reason})")
        spec = file.spec()
        size = spec.height, spec.width
        return size[::-1] if spec.get_int_attribute("Orientation", 1) >= 5 else size

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """Whether a file of `size` bytes, whose start matches, reaches to its end. Judged by its structure: no pixel is
        decoded, and little is read but what says where the file must end. May raise EOFError where it ends too soon."""
        return True

    def is_complete(self, file: BinaryIO) -> bool:
        """Whether a file whose start matches reaches to its end."""
        size = file.seek(0, 2)
        file.seek(0)
        try:
            return self.has_end(file, size)
        except EOFError:
            return False


class Rows(Protocol):
    """A file open for reading by rows."""

    path: Path
    header: Header

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows from `top` up to `bottom`, (rows, width, channels), as they are stored."""


class RowWriter(Protocol):
    """A file open for writing by rows, from the first to the last."""

    def write(self, rows: np.ndarray) -> None: ...

    def close(self) -> None:
        """Finish the file."""


@dataclass(frozen=True)
class Header:
    """What a photo's file says beside its pixels.

    The pixels are (height, width, channels) of `dtype`, integers at full scale, floats with 1 for white. The channels
    begin with the `colours`, 3 or for a gray photo 1; one of the others may be alpha. `orientation` is EXIF's, 1 to 8;
    photos from `read_photo` have 1. `storage` belongs to the format: how the file was compressed, and blocks of bytes
    that only the same format can store again. `notes` tell the user, one line each, what reading changed.
    """

    format: str  # the name of a `Format`
    height: int
    width: int
    channels: int
    dtype: np.dtype
    colours: int
    alpha: int | None = None  # the index of its channel
    premultiplied: bool = False  # colours are multiplied by alpha
    orientation: int = 1
    linear: bool = False  # pixel values are proportional to light
    gamma: float | None = None  # light = (pixel value) ** gamma
    chromaticities: tuple[float, ...] = ()  # x, y of red, green, blue, white, for linear values or without a profile
    metadata: Metadata = field(default=Metadata(), repr=False)
    storage: dict[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, format: str, pixels: np.ndarray, about: Metadata, orientation: int = 1, **storage: Any) -> Header:
        """The header of gray or RGB pixels, with or without alpha."""
        height, width, channels = pixels.shape
        colours = 3 if channels > 2 else 1
        return cls(
            format, height, width, channels, pixels.dtype, colours, colours if channels > colours else None,
            orientation=orientation, metadata=about, storage=storage,
        )  # fmt: skip

    @property
    def colour_space(self) -> ColourSpace:
        if self.linear:
            return linear_light(self.colours, self.chromaticities[:6], self.chromaticities[6:])
        if self.declares_colours:
            return declared(self.colours, self.gamma, self.chromaticities[:6], self.chromaticities[6:])
        return from_profile(self.metadata.icc, self.colours)

    @property
    def declares_colours(self) -> bool:
        """Whether gamma or chromaticities, which only files of the same format can state, replace the ICC profile."""
        return not self.linear and (self.gamma is not None or bool(self.chromaticities))

    @property
    def encoding(self) -> tuple[bool, bool]:
        """A key: two headers of one photo with equal keys need no conversion of pixel values from one to the other."""
        return self.linear, self.declares_colours

    def upright(self) -> Header:
        """The header of the same photo with its orientation applied."""
        on_its_side = self.orientation >= 5
        height, width = (self.width, self.height) if on_its_side else (self.height, self.width)
        metadata = self.metadata.upright(self.orientation, width, height)
        return replace(self, height=height, width=width, orientation=1, metadata=metadata)

    def in_rgb(self) -> Header:
        """The header of a gray photo after its gray channel has been replaced by R, G and B."""
        metadata = replace(self.metadata, icc=rgb_profile(self.metadata.icc))
        alpha = None if self.alpha is None else self.alpha + 2
        return replace(self, channels=self.channels + 2, colours=3, alpha=alpha, metadata=metadata)

    def enlarged(self, scale: int) -> Header:
        """The header of the photo enlarged `scale` times, without thumbnails and, if `scale` is above 1, a gain map."""
        height, width = scale * self.height, scale * self.width
        result = replace(self, height=height, width=width, metadata=self.metadata.enlarged(scale, width, height))
        return result._without_gain_map() if scale > 1 else result

    def _without_gain_map(self) -> Header:
        """Without the gain map and the XMP that announces it; a note tells the user if there was a gain map."""
        xmp = self.metadata.xmp
        metadata = replace(self.metadata, xmp=xmp and without_gain_map(xmp))
        storage, notes = dict(self.storage), self.notes
        if storage.pop("gain_map", None):
            notes += ("left out the gain map; only a JPEG of the same size keeps it",)
        return replace(self, metadata=metadata, storage=storage, notes=notes)

    def stored_as(self, format: Format) -> Header:
        """The header of the same photo in a file of this format: with the smallest depth that loses nothing, or the
        format's largest, and as much EXIF as it holds.

        Raises ValueError, without the file's name, where the format cannot hold the photo."""
        keeps = format.name == self.format and self.storage.get("gain_map")
        header = self if keeps else self._without_gain_map()
        about = header.metadata
        if format.max_exif is not None and len(about.exif) > format.max_exif:
            about = replace(about, exif=exif_within(about.exif, format.max_exif))
        if format.name == self.format:
            return replace(header, metadata=about)
        icc = b"" if format.linear or self.linear else about.icc
        about = replace(about, xmp=about.xmp and with_extension_name(about.xmp, ""), icc=icc)
        if about.dpi and not about.exif and "exif" in format.holds and not format.resolution:
            about = replace(about, exif=exif_of_resolution(about.dpi))
        present = {"exif": about.exif, "xmp": about.xmp, "iptc": iptc_records(about.iptc)}
        if lost := ", ".join(name.upper() for name in present if present[name] and name not in format.holds):
            header = replace(header, notes=(*header.notes, f"left out {lost}: not written to {format.name} files"))
        has_alpha = self.alpha is not None
        if self.channels > self.colours + has_alpha and not format.extra_channels:
            raise ValueError(f"expected colours and alpha alone for {format.name}, got {self.channels} channels")
        if has_alpha and not format.alpha:
            raise ValueError(f"expected a photo without transparency for {format.name}, got one with; PNG keeps it")
        if self.declares_colours:  # keep the primaries; change the curve to sRGB's, which suits 8 bits
            primaries, white = self.chromaticities[:6], self.chromaticities[6:]
            about = replace(about, icc=profile_of(None, primaries, white) if primaries and not format.linear else b"")
        dtype = next((depth for depth in format.depths if np.can_cast(self.dtype, depth)), format.depths[-1])
        return replace(
            header, format=format.name, dtype=np.dtype(dtype), linear=format.linear,
            premultiplied=format.linear and has_alpha, gamma=None,
            chromaticities=self.chromaticities if format.linear and self.linear else (),
            metadata=about, storage={},
        )  # fmt: skip


class Unsupported(Exception):
    """An intact file with contents that are not accepted; says what was expected and what came."""


class WriteError(Exception):
    """A library's message about a file that it could not write."""


def cmyk_note(icc: bytes) -> str:
    """The note for a CMYK photo that was converted with `icc`, a profile from `cmyk_profile`, or without one (b"")."""
    return f"CMYK was converted to sRGB {'by its' if icc else 'approximately, without a usable'} ICC profile"


def check_size(width: int, height: int) -> None:
    """Raise Unsupported for a picture of more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise Unsupported(f"expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got {width}×{height}")


def check_memory(width: int, height: int) -> None:
    """Raise MemoryError where there is no memory for a picture. Some codecs report too little memory as they report a
    damaged file; to tell the two apart, ask for the most that they may need."""
    np.empty((height, width, 8), np.uint8)


def take(file: BinaryIO, count: int) -> bytes:
    """The next `count` bytes. Raises EOFError where the file has fewer."""
    data = file.read(count)
    if len(data) < count:
        raise EOFError("unexpected end of file")
    return data


def first_line(text: str) -> str:
    return (text.splitlines() or ["unknown"])[0]


# ---- through Pillow, which reads and writes EXIF, XMP, ICC profile and quantisation tables byte for byte; OpenImageIO
# would write EXIF and XMP anew, without maker notes and the tags that it does not know


def load_image(image: Image.Image, modes: tuple[str, ...] = ("L", "RGB", "RGBA")) -> np.ndarray:
    """The pixels, (height, width, channels), of an image that Pillow has opened. Raises Unsupported if it is too
    large or its mode is not one of `modes`."""
    check_size(*image.size)
    if image.mode not in modes:
        raise Unsupported(f"expected RGB or gray, got {image.mode}")
    try:
        image.load()
    except Exception:
        check_memory(*image.size)
        raise
    return np.array(image).reshape(image.height, image.width, -1)


def save_image(pixels: np.ndarray, format: str, about: Metadata, options: dict[str, Any]) -> bytes:
    """The file that Pillow writes with these options."""
    if about.exif:
        options["exif"] = EXIF_START + about.exif
    if about.icc:
        options["icc_profile"] = about.icc
    if about.xmp:
        options["xmp"] = about.xmp
    if about.dpi and max(about.dpi) < 2**16:  # JFIF holds no more; then only EXIF says it
        options["dpi"] = about.dpi
    out = io.BytesIO()
    try:
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, format, **options)
    except Exception:
        check_memory(pixels.shape[1], pixels.shape[0])
        raise
    return out.getvalue()
