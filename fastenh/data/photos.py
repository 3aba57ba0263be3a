"""Photos as training reads them: tensors, from files of 8 or 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastenh import io
from fastenh.io import PIXEL_SUFFIXES


class UnreadablePhoto(ValueError):
    """A file that holds no whole photo."""


def read_tensor(path: Path) -> Tensor:
    """(3, H, W) float32 in [0, 1], colours as they are stored, from what `fastenh.io.read_pixels` reads.

    UnreadablePhoto, in one line, where the file is missing, damaged or no photo.
    """
    try:
        pixels = io.read_pixels(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) by the file's header. Raises as `read_tensor` does, if that is damaged."""
    try:
        return io.read_size(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UnreadablePhoto:
    if isinstance(error, OSError):
        return UnreadablePhoto(f"{path}: expected a photo, got none that can be read ({error.strerror})")
    return UnreadablePhoto(str(error))


def find_photos(folder: Path) -> dict[str, Path]:
    """The photos in a folder by their names without suffix. ValueError, in one line, if none or two of a name."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of photos, got {'a file' if folder.exists() else 'none there'}")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in PIXEL_SUFFIXES and not file.name.startswith("."):
            if other := found.get(file.stem):
                raise ValueError(f"{folder}: expected one file for each photo, got {other.name} and {file.name}")
            found[file.stem] = file
    if not found:
        raise ValueError(f"{folder}: expected photos ({', '.join(PIXEL_SUFFIXES)}), got none in it")
    return found


def group_of(name: str) -> str:
    """Which photos were taken together, by their names group_index: `12` of `12_3`; one named otherwise is alone."""
    return name.rpartition("_")[0] or name
