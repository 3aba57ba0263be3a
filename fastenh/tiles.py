"""Tiles of an image: their places, their blending, and the enlargement of reduced maps for one tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.ops.op import to_float


class Place(NamedTuple):
    """The position of a tile's first pixel in its image, and the size of that image; all in pixels of the image."""

    top: int
    left: int
    height: int
    width: int


class Tile(NamedTuple):
    """A rectangle of an image, from `top` and `left` up to `bottom` and `right`."""

    top: int
    bottom: int
    left: int
    right: int

    def grown(self, halo: int, height: int, width: int) -> Tile:
        """This tile with `halo` more pixels on each side, clipped to the image."""
        top, left = max(self.top - halo, 0), max(self.left - halo, 0)
        return Tile(top, min(self.bottom + halo, height), left, min(self.right + halo, width))

    def within(self, other: Tile, scale: int = 1) -> tuple[slice, slice]:
        """The rows and columns of this tile in a tensor that holds `other`, enlarged by `scale`."""
        rows = slice(scale * (self.top - other.top), scale * (self.bottom - other.top))
        return rows, slice(scale * (self.left - other.left), scale * (self.right - other.left))


def tiles(height: int, width: int, side: int | None) -> Iterator[Tile]:
    """Tiles of at most `side` × `side` pixels that cover an image, row by row; None: one tile."""
    down, across = (height, width) if side is None else (side, side)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield Tile(top, min(top + down, height), left, min(left + across, width))


def feather(tile: Tile, read: Tile, scale: int, device: torch.device) -> Tensor:
    """(rows, columns) weights for blending a tile's result, which covers `read`, the tile with its halo. They fall
    linearly across the part shared with neighbours. Divide the weighted sum by the sum of all tiles' weights."""

    def ramp(first: int, last: int, start: int, stop: int) -> Tensor:
        x = (torch.arange(scale * start, scale * stop, device=device) + 0.5) / scale
        rising = (x - start) / (2 * (first - start)) if start < first else torch.ones_like(x)
        falling = (stop - x) / (2 * (stop - last)) if last < stop else torch.ones_like(x)
        return rising.minimum(falling).clamp_(max=1)

    rows = ramp(tile.top, tile.bottom, read.top, read.bottom)
    return rows[:, None] * ramp(tile.left, tile.right, read.left, read.right)


def upscale(image: Tensor, scale: int) -> Tensor:
    """(B, C, h, w) of any dtype → (B, C, scale·h, scale·w) floats, bilinear; the image itself if the scale is 1."""
    if scale == 1:
        return image
    return F.interpolate(to_float(image), scale_factor=scale, mode="bilinear", align_corners=False)


def enlarge(maps: Tensor, place: Place, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """(B, C, h, w) maps of a whole image → (B, C, *size), bilinear: the part of
    `F.interpolate(maps, (place.height, place.width))` for the tile of this size at `place`."""
    if size == (place.height, place.width):
        return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)
    for dim, first, count, whole in ((2, place.top, size[0], place.height), (3, place.left, size[1], place.width)):
        length = maps.shape[dim]
        if count == whole == length:
            continue
        x = torch.arange(first, first + count, device=maps.device, dtype=torch.float64)
        if align_corners:
            x = x * ((length - 1) / max(whole - 1, 1))
        else:
            x = ((x + 0.5) * (length / whole) - 0.5).clamp(min=0)
        x = x.clamp(max=length - 1)  # of pixels that pad the image, too
        low = x.long()
        fraction = (x - low).to(maps.dtype).view([-1 if d == dim else 1 for d in range(4)])
        maps = maps.index_select(dim, low).lerp(maps.index_select(dim, (low + 1).clamp(max=length - 1)), fraction)
    return maps
