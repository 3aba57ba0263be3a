"""Photos in and out, as their files have them: `read_photo`, `write_photo`; `row_writer` where they come by rows.

Depth is the file's, never guessed: 8 or 16 bits, or floats of 16 or 32. Kept are the pixels' own colour space with its
ICC profile, byte for byte; EXIF with maker notes, XMP, IPTC and resolution; alpha and further channels; the
quantisation tables and subsampling of a JPEG, the compression of a TIFF, whether a WebP is lossless. What changes: a
photo stored on its side is turned upright once, and its orientation tags then say so; small pictures of the photo as
it was, gain maps and layers are let go. A TIFF's byte order and strips may change, and where EXIF lies in it.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastenh.atomic import replacing
from fastenh.io import whole
from fastenh.io.header import (
    HEIC,
    JPEG,
    JPEG_EXIF,
    MAX_PIXELS,
    PNG,
    RAW,
    SUFFIXES,
    TIFF,
    WEBP,
    Header,
    check_name,
    format_of,
)
from fastenh.memory import is_out_of_memory
from fastenh.ops import op

if TYPE_CHECKING:
    from fastenh.io.deflate import PngWriter, ZipTiffWriter
    from fastenh.io.rows import Rows, RowWriter

BY_WHOLE = (JPEG, WEBP, HEIC, RAW)


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
    """Read a photo, upright: JPEG, PNG, TIFF, WebP, OpenEXR, and where their packages are installed HEIC and RAW.

    Raises OSError where the file cannot be read, and ValueError, in one line and before any pixel is decoded, for what
    is no photo of one picture in RGB or gray of at most 2²⁸ pixels; ValueError too where the pixels are damaged.
    """
    path = Path(path)
    format = format_of(path)
    if format not in BY_WHOLE:
        from fastenh.io.rows import Rows  # with OpenImageIO, which is not on every machine that runs the ops

        return all_rows(Rows(path, format))
    header, pixels = whole.read(path, format)
    return Photo(header.upright(), turned(pixels, header.orientation))


def all_rows(rows: Rows) -> Photo:
    """The photo that a file by rows holds, as `read_photo` gives it."""
    header = rows.header
    if header.height * header.width > MAX_PIXELS:
        size = f"{header.width}×{header.height}"
        raise ValueError(f"{rows.path}: expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got {size}")
    return Photo(header.upright(), turned(rows.read(0, header.height), header.orientation))


def write_photo(
    photo: Photo,
    path: str | os.PathLike[str],
    quality: int | None = None,
    overwrite: bool = False,
    like: Path | None = None,
) -> None:
    """Write a photo in the format that the suffix of `path` names, whole or not at all.

    `quality`, 1 to 100, is that of JPEG, WebP and HEIC; without it a JPEG keeps its own tables, and what was none has
    95, in JPEG with full colour resolution. Another format takes the nearest depth it has, rounded, and sRGB's curve
    where the photo was linear light, or the reverse. A new file gets the permissions of the file `like`.

    Raises ValueError where the format is another or cannot hold the photo, FileExistsError where the file is there and
    `overwrite` is false, OSError where it cannot be written.
    """
    path = Path(path)
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}")
    header = stored_as(photo.header, path)
    pixels = photo.pixels if header.format == photo.header.format else restored(photo.pixels, photo.header, header)
    if header.format in BY_WHOLE:
        try:
            encoded = whole.encode(header, pixels, quality)  # in memory: then only the write itself wants for space
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        with replacing(path, overwrite, like) as part:
            part.write_bytes(encoded)
    else:
        with row_writer(path, header, overwrite, like) as writer:
            writer.write(pixels)


def stored_as(header: Header, path: Path) -> Header:
    """The header of the photo as a file of this name; ValueError where that cannot be, a warning where the format has
    not room for all of its EXIF."""
    format = SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}, got {path.suffix or 'none'!r}")
    check_name(path, format)
    try:
        stored = header.stored_as(format)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(stored.metadata.exif) < (size := len(header.metadata.exif)):
        room = f"expected {JPEG_EXIF} bytes of EXIF, which is what {format} holds, got {size}"
        warnings.warn(f"{path}: {room}; the largest tags, as maker notes are, were left out", stacklevel=1)
    return stored


@contextlib.contextmanager
def row_writer(
    path: Path, header: Header, overwrite: bool = False, like: Path | None = None
) -> Iterator[PngWriter | ZipTiffWriter | RowWriter]:
    """A writer of rows, whose file is there, whole, once the block has ended without an error, with the permissions of
    `like` where it is new."""
    from fastenh.io.deflate import PngWriter, ZipTiffWriter
    from fastenh.io.rows import RowWriter, WriteError

    zipped = header.format == TIFF and header.dtype.kind == "u" and header.storage.get("compression", "zip") == "zip"
    kind = PngWriter if header.format == PNG else ZipTiffWriter if zipped else RowWriter
    with replacing(path, overwrite, like) as part:
        try:
            writer = kind(part, header)
            yield writer
            writer.close()
        except (OSError, WriteError) as error:
            if is_out_of_memory(error):
                raise MemoryError(f"{path}: out of memory") from None
            if isinstance(error, OSError) and error.errno:
                raise
            raise OSError(f"{path}: could not be written ({str(error).replace(str(part), path.name)})") from None


def restored(pixels: np.ndarray, old: Header, new: Header, dither: bool = False, top: int = 0) -> np.ndarray:
    """Rows of a photo, from `top` on, as another header has them: depth, linear or not, alpha multiplied in or not."""
    if (old.dtype, old.linear, old.premultiplied) == (new.dtype, new.linear, new.premultiplied) and not dither:
        return pixels
    numbers = straight(to_float(pixels), old)
    colours = numbers[: old.colours]
    if old.linear != new.linear:
        colours = new.colour_space.from_srgb(old.colour_space.to_srgb(colours))
        numbers = torch.cat([colours, numbers[old.colours :]])
    return from_float(multiplied(numbers, new), new.dtype, dither, top)


# ---- numbers: (channels, rows, width) float32, 1 for full scale


def to_float(pixels: np.ndarray) -> Tensor:
    return op.to_float(planes(np.ascontiguousarray(pixels)))


def planes(pixels: np.ndarray) -> Tensor:
    """The same memory, (channels, rows, width)."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def from_float(numbers: Tensor, dtype: np.dtype, dither: bool = False, top: int = 0) -> np.ndarray:
    """Rounded to nearest; with `dither` up or down by chance, so that the mean of an area is right and gradients show
    no steps: x + t, rounded down, with t in [0, 1) by interleaved gradient noise (Jimenez, SIGGRAPH 2014), which is
    even at each scale and the same at each place of the photo, wherever rows begin."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    if dither and kind in op.FULL_SCALE:
        channels, height, width = numbers.shape
        y = torch.arange(top, top + height, dtype=torch.float64)[:, None]
        x = torch.arange(width, dtype=torch.float64)
        apart = 61.0 * torch.arange(channels, dtype=torch.float64)[:, None, None]  # else all channels rise at once
        noise = (52.9829189 * ((0.06711056 * (x + apart) + 0.00583715 * y) % 1)) % 1
        numbers = (numbers * op.FULL_SCALE[kind] + noise.float()).floor() / op.FULL_SCALE[kind]
    return np.ascontiguousarray(op.from_float(numbers, kind).permute(1, 2, 0).numpy())


def straight(numbers: Tensor, header: Header) -> Tensor:
    """Colours not multiplied by alpha; where that is 0 they are as they were."""
    if not header.premultiplied or header.alpha is None:
        return numbers
    alpha = numbers[header.alpha]
    return torch.cat([numbers[: header.colours] / torch.where(alpha > 0, alpha, 1), numbers[header.colours :]])


def multiplied(numbers: Tensor, header: Header) -> Tensor:
    if not header.premultiplied or header.alpha is None:
        return numbers
    alpha = numbers[header.alpha]
    return torch.cat([numbers[: header.colours] * torch.where(alpha > 0, alpha, 1), numbers[header.colours :]])


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rows and columns as they are seen, from how they lie, which EXIF counts from 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
