"""Reading the bare pixels of a data set's photo: 8 or 16 bits. Profiles and metadata are let go."""

import os
from pathlib import Path

import numpy as np

from fastenh.io.header import format_of
from fastenh.io.photos import BY_WHOLE, read_photo

PIXEL_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


def read_pixels(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a photo, upright, as an array (H, W, 3) of its own depth, uint8 or uint16 at full scale.

    Gray becomes R = G = B; alpha is let go. Values stay in the file's own encoding, which for retouching data is sRGB.

    Raises what `read_photo` raises, and ValueError for floats.
    """
    photo = read_photo(path)
    if photo.pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: expected 8 or 16 bits, got {photo.pixels.dtype}")
    colours = photo.pixels[..., : photo.header.colours]
    return np.repeat(colours, 3, axis=2) if photo.header.colours == 1 else np.ascontiguousarray(colours)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of what `read_pixels` would give, by the file's header. ValueError where it has none."""
    import OpenImageIO as oiio

    format = format_of(Path(path))
    if format not in BY_WHOLE:
        from fastenh.io.rows import Rows  # OpenImageIO on its own may read metadata that exhaust memory

        header = Rows(Path(path), format).header.upright()
        return header.height, header.width
    file = oiio.ImageInput.open(str(path))
    if file is None:
        reason = (oiio.geterror().splitlines() or ["unknown"])[0]
        raise ValueError(f"{path}: expected a whole {format}, got a damaged one ({reason})")
    spec = file.spec()
    return (spec.width, spec.height) if spec.get_int_attribute("Orientation", 1) >= 5 else (spec.height, spec.width)
