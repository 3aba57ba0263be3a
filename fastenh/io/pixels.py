"""The bare pixels of a data set's photo: 8 or 16 bits, without profile and metadata."""

import os
from pathlib import Path

import numpy as np

from fastenh.io.formats.registry import format_of
from fastenh.io.photos import read_photo

PIXEL_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


def read_pixels(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a photo, upright, as an array (H, W, 3) of its own depth, uint8 or uint16 at full scale.

    Gray becomes R = G = B; alpha is dropped. Values stay in the file's own encoding, which for retouching data is sRGB.

    Raises what `read_photo` raises, and ValueError for floats.
    """
    photo = read_photo(path)
    if photo.pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: expected 8 or 16 bits, got {photo.pixels.dtype}")
    colours = photo.pixels[..., : photo.header.colours]
    return np.repeat(colours, 3, axis=2) if photo.header.colours == 1 else np.ascontiguousarray(colours)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of what `read_pixels` would return, by the file's header. ValueError where it has none."""
    return format_of(Path(path)).size(Path(path))
