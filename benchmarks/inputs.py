"""The inputs of all benchmarks: photographed pixels, noise, maps like those of networks, and LUTs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import skimage.data
import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import Tensor


def photo(size: Sequence[int]) -> Tensor:
    """(1, 3, H, W) of photographed pixels in float32: a mosaic of crops of photos, none enlarged, so that adjacent
    pixels differ as much as in a photo straight from a camera."""
    photos = [
        skimage.data.coffee(),
        skimage.data.astronaut(),
        skimage.data.stereo_motorcycle()[0],
        *sklearn.datasets.load_sample_images().images,  # china, flower
    ]
    random = np.random.default_rng(0)
    height, width = size
    mosaic = np.empty((height, width, 3), np.uint8)
    for i, (top, left) in enumerate((top, left) for top in range(0, height, 360) for left in range(0, width, 480)):
        source = photos[i % len(photos)]
        y, x = random.integers(source.shape[0] - 359), random.integers(source.shape[1] - 479)
        place = mosaic[top : top + 360, left : left + 480]
        place[:] = source[y : y + place.shape[0], x : x + place.shape[1]]
    return torch.from_numpy(mosaic).permute(2, 0, 1)[None].float().contiguous() / 255


def noise(size: Sequence[int], device: str | torch.device = "cpu") -> Tensor:
    """The worst case for lookups: no two adjacent pixels are similar."""
    return torch.rand(1, 3, *size, generator=torch.Generator(device).manual_seed(0), device=device)


def maps(channels: int, noise: float, size: Sequence[int], device: str | torch.device = "cpu") -> Tensor:
    """Maps like those of a network, smooth with some noise, in [-1, 1]."""
    random = torch.Generator(device).manual_seed(channels)
    coarse = torch.randn(1, channels, 10, 18, generator=random, device=device)
    smooth = F.interpolate(coarse, tuple(size), mode="bicubic")
    return smooth.add_(torch.randn(smooth.shape, generator=random, device=device), alpha=noise).tanh_()


def luts(count: int, vertices: int = 33) -> Tensor:
    """(count, 3, D, D, D): the identity with smooth distortions."""
    axis = torch.linspace(0, 1, vertices)
    identity = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1])
    bends = torch.randn(count, 3, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    return identity + 0.1 * F.interpolate(bends, identity.shape[1:], mode="trilinear", align_corners=True)


def layers(features: int, hidden: int, count: int) -> list[Tensor]:
    """The convolutions of local context, 3 x 3, initialised as for training; the last one returns about 1."""
    random = torch.Generator().manual_seed(0)
    params = []
    for shape in ((features, 3, 3, 3), (9, features, 1, 1), (hidden, 27, 1, 1), (count, hidden, 1, 1)):
        params += [
            (torch.rand(s, generator=random) * 2 - 1) / (shape[1] * shape[2] ** 2) ** 0.5 for s in (shape, shape[:1])
        ]
    params[-1] += 1
    return params
