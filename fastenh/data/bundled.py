"""Photographs that come inside scikit-image, scikit-learn and matplotlib: `pip install fastenh[train]`.

The embedded models are trained on ten of them and measured on the five that are held out, so anyone can repeat both.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class BundledPhoto:
    """A photograph in a Python package: `path` is relative to `package`."""

    name: str
    package: str
    path: str
    licence: str
    held_out: bool = False  # for measuring only, never for training

    def read(self) -> Tensor:
        """(3, H, W) sRGB in [0, 1], reduced to at most 640 pixels on the longer side."""
        file = resources.files(self.package).joinpath(self.path)
        with file.open("rb") as stream, Image.open(stream) as image:
            rgb = image.convert("RGB")
        rgb.thumbnail((640, 640), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1) / 255


# Held out: people, food, a building and an indoor scene, all normally exposed, as users' photos are.
PHOTOS = [
    BundledPhoto("astronaut", "skimage", "data/astronaut.png", "public domain (NASA)", held_out=True),
    BundledPhoto("coffee", "skimage", "data/coffee.png", "CC0 (Rachel Michetti)", held_out=True),
    BundledPhoto(
        "motorcycle", "skimage", "data/motorcycle_left.png", "Middlebury 2014 stereo benchmark", held_out=True
    ),
    BundledPhoto("china", "sklearn", "datasets/images/china.jpg", "CC BY 2.0 (danielbuechele)", held_out=True),
    BundledPhoto("grace_hopper", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "public domain", held_out=True),
    BundledPhoto("chelsea", "skimage", "data/chelsea.png", "CC0 (Stefan van der Walt)"),
    BundledPhoto("rocket", "skimage", "data/rocket.jpg", "public domain (SpaceX)"),
    BundledPhoto("flower", "sklearn", "datasets/images/flower.jpg", "CC BY 2.0 (vultilion)"),
    BundledPhoto("hubble_deep_field", "skimage", "data/hubble_deep_field.jpg", "public domain (NASA)"),
    BundledPhoto("ihc", "skimage", "data/ihc.png", "no known copyright restrictions"),
    BundledPhoto("camera", "skimage", "data/camera.png", "CC0 (Lav Varshney)"),
    BundledPhoto("brick", "skimage", "data/brick.png", "CC0 (CC0Textures)"),
    BundledPhoto("grass", "skimage", "data/grass.png", "CC0"),
    BundledPhoto("gravel", "skimage", "data/gravel.png", "CC0 (CC0Textures)"),
    BundledPhoto("coins", "skimage", "data/coins.png", "no known copyright restrictions"),
]


def training_photos() -> list[Tensor]:
    """The photos to train on, (3, H, W) each."""
    return [photo.read() for photo in PHOTOS if not photo.held_out]


def held_out_photos() -> dict[str, Tensor]:
    """The photos that no training sees, (1, 3, H, W) each, by name."""
    return {photo.name: photo.read()[None] for photo in PHOTOS if photo.held_out}
