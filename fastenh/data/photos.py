"""Reading what training and measuring read: photos of 8 or 16 bits, at full scale, as tensors."""

from __future__ import annotations

from pathlib import Path

import OpenImageIO as oiio
import torch
from torch import Tensor

_AS_STORED = oiio.ImageSpec()
_AS_STORED.attribute("oiio:UnassociatedAlpha", 1)  # else colours come multiplied by alpha

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


class UnreadablePhoto(ValueError):
    """A file that holds no whole photo."""


def read_tensor(path: Path) -> Tensor:
    """(3, H, W) float32 in [0, 1], colours as they are stored, from a TIFF, PNG or JPEG of 8 or 16 bits per channel.

    Gray is repeated, alpha left out. UnreadablePhoto, in one line, where the file is missing, damaged or no photo.
    """
    file = _open(path)
    pixels = file.read_image("uint16")  # exact for 8 bits too: times 257
    problem = file.geterror()
    file.close()
    if pixels is None:
        raise UnreadablePhoto(f"{path}: expected a whole photo, got a damaged one ({_first_line(problem)})")
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 65535
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) by the file's header. Raises as `read_tensor` does, if that is damaged."""
    file = _open(path)
    spec = file.spec()
    file.close()
    return spec.height, spec.width


def find_photos(folder: Path) -> dict[str, Path]:
    """The photos in a folder by their names without suffix.

    ValueError, in one line, where there are none, or two of one name.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of photos, got {'a file' if folder.exists() else 'none there'}")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not files:
        raise ValueError(f"{folder}: expected photos ({', '.join(SUFFIXES)}), got none in it")
    photos: dict[str, Path] = {}
    for file in files:
        if (other := photos.setdefault(file.stem, file)) is not file:
            raise ValueError(f"{folder}: expected one file for each photo, got {other.name} and {file.name}")
    return photos


def _open(path: Path) -> oiio.ImageInput:
    file = oiio.ImageInput.open(str(path), _AS_STORED)
    if file is None:
        raise UnreadablePhoto(f"{path}: expected a photo, got none that can be read ({_first_line(oiio.geterror())})")
    return file


def _first_line(problem: str) -> str:
    return problem.strip().partition("\n")[0] or "no reason given"
