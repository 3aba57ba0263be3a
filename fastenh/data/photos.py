"""Photos as training reads them: tensors, from files of 8 or 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastenh import io
from fastenh.io import PIXEL_SUFFIXES


class UnreadablePhoto(ValueError):
    """The file is missing, damaged or not a photo."""


def read_tensor(path: Path) -> Tensor:
    """(3, H, W) float32 in [0, 1] with the stored colours, from any file that `fastenh.io.read_pixels` reads.

    Raises UnreadablePhoto, in one line, if the file is missing, damaged or not a photo.
    """
    try:
        pixels = io.read_pixels(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header. Raises as `read_tensor` does if the header is damaged."""
    try:
        return io.read_size(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UnreadablePhoto:
    if isinstance(error, OSError):
        return UnreadablePhoto(f"{path}: expected a photo, got a file that cannot be read ({error.strerror})")
    return UnreadablePhoto(str(error))


def find_photos(folder: Path) -> dict[str, Path]:
    """The photos in a folder, by name without suffix. ValueError, in one line, for no photo or two of one name."""
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise ValueError(f"{folder}: expected a folder of photos, got {got}")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in PIXEL_SUFFIXES and not file.name.startswith("."):
            if other := found.get(file.stem):
                raise ValueError(f"{folder}: expected one file for each photo, got {other.name} and {file.name}")
            found[file.stem] = file
    if not found:
        raise ValueError(f"{folder}: expected photos ({', '.join(PIXEL_SUFFIXES)}), got none")
    return found


def group_of(name: str) -> str:
    """The group of a photo named group_index: `12` for `12_3`. A photo named otherwise is a group of its own."""
    return name.rpartition("_")[0] or name
