"""Reading the bare pixels of a data set's photo: 8 or 16 bit, PNG, TIFF or JPEG. Profiles and metadata are let go."""

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastenh.io.photos import MAX_PIXELS

if TYPE_CHECKING:
    from OpenImageIO import ImageInput, ImageSpec

PIXEL_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


def read_pixels(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a PNG, TIFF or JPEG, upright, as an array (H, W, 3) of its own depth, uint8 or uint16 at full scale.

    Gray becomes R = G = B; alpha is let go. Values stay in the file's own encoding, which for retouching data is sRGB.

    Raises OSError where the file cannot be read, and ValueError, before any pixel is decoded, for other depths and for
    more than 2²⁸ pixels; ValueError too where the file is damaged.
    """
    file = _open(Path(path))
    spec = file.spec()
    pixels = file.read_image(0, 0, 0, 3 if spec.nchannels > 2 else 1, spec.format)
    problem = file.geterror()  # of a JPEG cut short too, whose missing part comes back gray
    if pixels is None or problem:
        raise ValueError(f"{path}: expected a whole photo, got a damaged one ({_first_line(problem)})")
    orientation = _orientation(spec)
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.repeat(pixels, 3 // pixels.shape[2], axis=2)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of what `read_pixels` would give, by the file's header. Raises as it does before decoding."""
    spec = _open(Path(path)).spec()
    return (spec.width, spec.height) if _orientation(spec) >= 5 else (spec.height, spec.width)


def _open(path: Path) -> "ImageInput":
    import OpenImageIO as oiio

    if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a pipe would wait for a writer for ever
        raise ValueError(f"{path}: expected a file, got a folder, pipe or device")
    open(path, "rb").close()  # so that a file that may not be read says so itself
    as_stored = oiio.ImageSpec()
    as_stored["oiio:UnassociatedAlpha"] = 1  # else colours are multiplied by alpha
    file = oiio.ImageInput.open(str(path), as_stored)
    if file is None:
        raise ValueError(f"{path}: expected a PNG, TIFF or JPEG photo, got none ({_first_line(oiio.geterror())})")
    spec = file.spec()
    if spec.width * spec.height > MAX_PIXELS:
        raise ValueError(f"{path}: expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got {spec.width}×{spec.height}")
    if str(spec.format) not in ("uint8", "uint16") or spec.nchannels > 4:
        raise ValueError(
            f"{path}: expected RGB or gray of 8 or 16 bits, got {spec.nchannels} channels of {spec.format}"
        )
    return file


def _orientation(spec: "ImageSpec") -> int:
    return spec.get_int_attribute("Orientation", 1)  # as EXIF counts them


def _first_line(text: str) -> str:
    return (text.splitlines() or ["unknown"])[0]
