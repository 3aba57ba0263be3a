"""Photos in and out, as their files have them: `read_photo` and `write_photo`, and `row_writer` for rows.

The depth is the file's, never guessed: 8 or 16 bits, or floats of 16 or 32. What is kept: the pixels' own colour space
with its ICC profile, byte for byte; EXIF with maker notes, XMP, IPTC and resolution; alpha and further channels; the
quantisation tables and subsampling of a JPEG, and its gain map if the size is unchanged; the compression of a TIFF;
whether a WebP, AVIF or JPEG XL is lossless. What changes: the orientation is applied to the pixels once, and updated in
orientation tags, sizes and face regions; thumbnails, videos, further pictures and layers, which show the unprocessed
photo, are dropped; CMYK becomes sRGB; byte order, strips and the offset of EXIF in a TIFF may change.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from fastenh.atomic import replacing
from fastenh.io.encoding import apply_orientation, convert
from fastenh.io.formats.base import MAX_PIXELS, Format, Header, Rows, RowWriter, Unsupported, WriteError, first_line
from fastenh.io.formats.registry import FORMATS, format_for, format_of
from fastenh.io.metadata import check_exif
from fastenh.io.xmp import check_xmp
from fastenh.memory import is_out_of_memory


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo in memory: `pixels`, (height, width, channels), as its file has them, and `header`, all else it says."""

    header: Header
    pixels: np.ndarray

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.pixels, dtype=dtype, copy=copy)

    def save(self, path: str | os.PathLike[str], quality: int | None = None, overwrite: bool = False) -> None:
        """`write_photo`."""
        write_photo(self, path, quality, overwrite)


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Read a photo, upright, in any format of `fastenh.io.formats.registry`; some need a package to be installed.

    Raises OSError where the file cannot be read, and ValueError, in one line and before any pixel is decoded, for what
    is no photo of one picture in RGB, gray or CMYK of at most 2²⁸ pixels; ValueError too where the pixels are damaged.
    """
    photo = open_photo(Path(path))
    return photo if isinstance(photo, Photo) else all_rows(photo)


def open_photo(path: Path) -> Photo | Rows:
    """The photo; or, in a format that is read by rows, the open file, whose pixels are yet to be read."""
    format = format_of(path)
    if format.by_rows:
        return format.open(path)
    header, pixels = _decoded(path, format)
    if header.orientation != 1:
        pixels = apply_orientation(pixels, header.orientation)
    return Photo(header.upright(), pixels)


def all_rows(rows: Rows) -> Photo:
    """The photo in a file that was opened for reading by rows, as `read_photo` returns it."""
    header = rows.header
    if header.height * header.width > MAX_PIXELS:
        size = f"{header.width}×{header.height}"
        raise ValueError(f"{rows.path}: expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got {size}")
    return Photo(header.upright(), apply_orientation(rows.read(0, header.height), header.orientation))


@overload
def in_rgb(photo: Photo) -> Photo: ...
@overload
def in_rgb(photo: Photo | Rows) -> Photo | Rows: ...
def in_rgb(photo: Photo | Rows) -> Photo | Rows:
    """A gray photo as RGB, with R = G = B; other photos unchanged."""
    if photo.header.colours == 3:
        return photo
    return Photo(photo.header.in_rgb(), _in_rgb(photo.pixels)) if isinstance(photo, Photo) else RGBRows(photo)


class RGBRows:
    """A gray file, open for reading by rows as RGB."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self.path, self.header = rows, rows.path, rows.header.in_rgb()

    def read(self, top: int, bottom: int) -> np.ndarray:
        return _in_rgb(self._rows.read(top, bottom))


def _in_rgb(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[..., :1]] * 3 + [pixels[..., 1:]], axis=-1)


def write_photo(
    photo: Photo,
    path: str | os.PathLike[str],
    quality: int | None = None,
    overwrite: bool = False,
    like: Path | None = None,
) -> None:
    """Write a photo in the format that the suffix of `path` names; the file is there complete or not at all.

    `quality`, 1 to 100, is that of lossy formats. Without it, a JPEG keeps its own tables, and a photo from another
    format gets 95, in JPEG with full colour resolution. Another format takes the nearest depth it has, rounded, and
    sRGB's curve where the photo was linear light, or the reverse. A new file gets the permissions of the file `like`.

    Warns about what the new file cannot hold (a gain map, IPTC). `photo.header.notes` list what reading changed.

    Raises ValueError where no format has this suffix or it cannot hold the photo, FileExistsError where the file exists
    and `overwrite` is false, OSError where it cannot be written.
    """
    path = Path(path)
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}")
    header = stored_as(photo.header, path)
    for note in header.notes[len(photo.header.notes) :]:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    pixels = photo.pixels if header.format == photo.header.format else convert(photo.pixels, photo.header, header)
    write_stored(Photo(header, pixels), path, quality, overwrite, like)


def write_stored(photo: Photo, path: Path, quality: int | None, overwrite: bool, like: Path | None) -> None:
    """`write_photo` for a photo that is already as the file stores it, with a header from `stored_as`."""
    format = FORMATS[photo.header.format]
    if format.by_rows:
        with row_writer(path, photo.header, overwrite, like) as writer:
            writer.write(photo.pixels)
        return
    try:  # in memory; JPEG XL also needs the system's folder for temporary files
        encoded = format.encode(photo.header, photo.pixels, quality)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: {_missing(error, 'write', format)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except WriteError as error:
        raise OSError(f"{path}: could not be written ({error})") from None
    with replacing(path, overwrite, like) as part:
        part.write_bytes(encoded)


def stored_as(header: Header, path: Path) -> Header:
    """The header of the photo as a file of this name. ValueError where no format has its suffix or it cannot hold the
    photo; a warning where the format does not hold all of its EXIF."""
    format = format_for(path)
    try:
        stored = header.stored_as(format)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(stored.metadata.exif) < (size := len(header.metadata.exif)):
        room = f"expected {format.max_exif} bytes of EXIF, which is what {format.name} holds, got {size}"
        warnings.warn(f"{path}: {room}; the largest tags, as maker notes are, were left out", stacklevel=1)
    return stored


@contextlib.contextmanager
def row_writer(path: Path, header: Header, overwrite: bool = False, like: Path | None = None) -> Iterator[RowWriter]:
    """A writer of rows. Its file is there, complete, once the block has ended without an error; a new file has the
    permissions of `like`."""
    with replacing(path, overwrite, like) as part:
        try:
            writer = FORMATS[header.format].writer(part, header)
            yield writer
            writer.close()
        except (OSError, WriteError) as error:
            if is_out_of_memory(error):
                raise MemoryError(f"{path}: out of memory") from None
            if isinstance(error, OSError) and error.errno:
                raise
            raise OSError(f"{path}: could not be written ({str(error).replace(str(part), path.name)})") from None


def _decoded(path: Path, format: Format) -> tuple[Header, np.ndarray]:
    """Header and pixels as they are stored. ValueError where the file is damaged or not accepted, MemoryError where
    there is too little memory for it."""
    try:
        header, pixels = format.decode(path)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: {_missing(error, 'read', format)}") from None
    except Unsupported as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # decoders report a damaged file by a dozen kinds of exception
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: out of memory") from error
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(error)  # LibRaw's are bytes
        got = f"a damaged one ({first_line(text)})"
        raise ValueError(f"{path}: expected a whole {format.name}, got {got}") from error
    refused: dict[str, Any] = {}
    for name, check in (("exif", check_exif), ("xmp", check_xmp)):
        try:
            if block := getattr(header.metadata, name):
                check(block)
        except ValueError as error:
            warnings.warn(f"{path}: left out {name.upper()}: {error}", stacklevel=2)
            refused[name] = b""
    return replace(header, metadata=replace(header.metadata, **refused)), pixels


def _missing(error: ModuleNotFoundError, verb: str, format: Format) -> str:
    package = format.package or error.name
    return f"expected the package {error.name} to {verb} {format.name}, got none: pip install {package}"
