"""channel_split_transform in Triton: the first `split` channels pass, the rest become x·scale + shift."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .pixels import at, end_of_row, joined, launch, load, split_program, store, with_strides

TILE = 2048  # values per program


@triton.jit
def _place(channels, height, width, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr):
    """The program's values: batch, row, channels, first column, columns relative to it, and which values exist."""
    piece, rest = split_program((width - 1) // COLUMNS + 1)
    start = piece * COLUMNS
    y, rest = rest % height, rest // height
    groups = (channels + CHANNELS - 1) // CHANNELS
    c = rest % groups * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    x = tl.arange(0, COLUMNS)[:, None]
    return rest // groups, y, c, start, x, (c < channels) & (x < end_of_row(start, width))


@triton.jit
def _transform(
    out, out_strides, features, features_strides, scale, scale_strides, shift, shift_strides,
    split, channels, height, width, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, y, c, start, x, exists = _place(channels, height, width, CHANNELS, COLUMNS)
    changes = c >= split
    f = load(at(features, features_strides, batch, c, y, start, x), exists)
    a = load(at(scale, scale_strides, batch, c - split, y, start, x), exists & changes)
    s = load(at(shift, shift_strides, batch, c - split, y, start, x), exists & changes)
    store(at(out, out_strides, batch, c, y, start, x), tl.where(changes, f * a + s, f), exists)


@triton.jit
def _backward(
    grad_features, grad_features_strides, grad_scale, grad_scale_strides,
    grad, grad_strides, features, features_strides, scale, scale_strides,
    split, channels, height, width, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, y, c, start, x, exists = _place(channels, height, width, CHANNELS, COLUMNS)
    changes = c >= split
    g = load(at(grad, grad_strides, batch, c, y, start, x), exists)
    if grad_features is not None:
        a = load(at(scale, scale_strides, batch, c - split, y, start, x), exists & changes)
        store(at(grad_features, grad_features_strides, batch, c, y, start, x), tl.where(changes, g * a, g), exists)
    if grad_scale is not None:
        f = load(at(features, features_strides, batch, c, y, start, x), exists & changes)
        store(at(grad_scale, grad_scale_strides, batch, c - split, y, start, x), g * f, exists & changes)


def _launch(kernel: Any, tensors: tuple[Tensor | None, ...], like: Tensor, split: int) -> None:
    batch, channels, height, width = like.shape
    height, width = joined(height, width, *tensors)
    # A tile is long in the dimension that is contiguous in memory: the row, or (channels_last) the channels.
    tile_channels = min(triton.next_power_of_2(channels), 64) if like.stride(1) == 1 < channels else 1
    columns = TILE // tile_channels
    programs = batch * triton.cdiv(channels, tile_channels) * height * triton.cdiv(width, columns)
    launch(
        kernel, programs, like, *with_strides(*tensors), split, channels, height, width, tile_channels, columns
    )  # fmt: skip


def channel_split_transform(out: Tensor, features: Tensor, scale: Tensor, shift: Tensor, split: int) -> None:
    """Fills `out`; `scale` and `shift` are (B, C - split, H, W), where a broadcast dimension has stride 0."""
    _launch(_transform, (out, features, scale, shift), out, split)


def channel_split_transform_backward(
    grad_features: Tensor | None, grad_scale: Tensor | None, grad: Tensor, features: Tensor, scale: Tensor, split: int
) -> None:
    """grad_features is grad, multiplied by scale from channel `split` on; grad_scale = grad · features."""
    _launch(_backward, (grad_features, grad_scale, grad, features, scale), grad, split)
