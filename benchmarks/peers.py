"""What the ops are measured against: the same in plain PyTorch, as its users write it, and at its best, in buffers that
are used again. On every device; what only one device has (OpenColorIO, rows that fit a CPU's cache) stands where it is
measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- lut_transform ----

BORDER = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}


def make_grid(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)[:, None] * 2 - 1


def sample(luts: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(luts, grid, **BORDER).squeeze(2)


def weighted_sum(image: Tensor, luts: Tensor, pixel_weights: Tensor) -> Tensor:
    grid = make_grid(image)
    return sum(pixel_weights[:, i : i + 1] * sample(luts[i : i + 1], grid) for i in range(len(luts)))


def blend_into(out: Tensor, grid: Tensor, luts: Tensor, pixel_weights: Tensor) -> Tensor:
    """The same with the LUTs as one table of 3·N channels, so that cells are found once."""
    values = sample(luts.flatten(0, 1).expand(grid.shape[0], -1, -1, -1, -1), grid)
    torch.mul(values[:, :3], pixel_weights[:, :1], out=out)
    for i in range(1, len(luts)):
        out.addcmul_(values[:, 3 * i : 3 * i + 3], pixel_weights[:, i : i + 1])
    return out


# ---- curve_iterate ----


def upsample(curves: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(curves, image.shape[-2:], mode="bilinear", align_corners=True)


def upsample_into(out: Tensor, curves: Tensor) -> Tensor:
    return torch.ops.aten.upsample_bilinear2d.out(curves, out.shape[-2:], True, out=out)


def iterate(x: Tensor, curves: Tensor) -> Tensor:
    """The loop as Zero-DCE's users write it."""
    for r in curves.split(3, dim=1) if curves.shape[1] > 3 else [curves] * 8:
        x = x + r * (torch.pow(x, 2) - x)
    return x


def iterate_into(out: Tensor, x: Tensor, curves: Tensor, scratch: Tensor) -> Tensor:
    """The loop in two passes an iteration, x - x² and x - r·(x - x²), and no memory but `out` and `scratch`."""
    for r in curves.split(3, dim=1) if curves.shape[1] > 3 else [curves] * 8:
        torch.addcmul(x, x, x, value=-1, out=scratch)
        x = torch.addcmul(x, r, scratch, value=-1, out=out)
    return out


# ---- context_voxels ----


def unfolded(image: Tensor, attention: Tensor) -> Tensor:
    k = math.isqrt(attention.shape[1])
    neighbours = F.unfold(image, k, padding=k // 2).view(*image.shape[:2], k * k, *image.shape[2:])
    return (neighbours * attention[:, None]).flatten(1, 2)


def shifts(image: Tensor) -> list[Tensor]:
    """Nine views of a padded copy of the image, the 3 x 3 neighbours of every pixel; the image itself is the fifth."""
    padded, (height, width) = F.pad(image, [1] * 4), image.shape[-2:]
    return [padded[:, :, j // 3 : j // 3 + height, j % 3 : j % 3 + width] for j in range(9)]


def nine_products(out: Tensor, attention: Tensor, *shifts: Tensor) -> Tensor:
    voxels = out.unflatten(1, (3, 9))
    for j in range(9):
        torch.mul(shifts[j], attention[:, j, None], out=voxels[:, :, j])
    return out


# ---- local_context_retouch ----


def layer_after_layer(image: Tensor, luts: Tensor, weights: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The local-context module as its users write it: torch's convolutions, and a LUT after another."""
    w1, b1, w2, b2, w3, b3, w4, b4 = params
    attention = F.conv2d(F.conv2d(image, w1, b1, padding=w1.shape[-1] // 2).relu(), w2, b2).softmax(1)
    pixel_weights = F.conv2d(F.conv2d(unfolded(image, attention), w3, b3).relu(), w4, b4)
    return weighted_sum(image, luts, weights[..., None, None] * pixel_weights)


# ---- channel_split_transform ----


def concatenated(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    same, transformed = torch.split(features, features.shape[1] // 2, dim=1)
    return torch.cat([same, transformed * scale + shift], dim=1)


def in_two_parts(out: Tensor, features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    half = features.shape[1] // 2
    out[:, :half].copy_(features[:, :half])
    torch.addcmul(shift, features[:, half:], scale, out=out[:, half:])
    return out
