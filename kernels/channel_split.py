"""channel_split_transform in Triton: the first `split` channels pass, the rest become x·scale + shift."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # neighbours in a row that one program works on


@triton.jit
def _row(tensor, strides, batch, channel, y, x):
    """Pointers to columns `x` of a row of a (B, ·, H, W) tensor."""
    return tensor + batch * strides[0] + channel * strides[1] + y * strides[2] + x * strides[3]


@triton.jit
def _place(channels, height, width, BLOCK: tl.constexpr):
    """Which pixels this program has: batch, channel, row, columns, and which of those columns exist."""
    pieces = (width + BLOCK - 1) // BLOCK
    program = tl.program_id(0).to(tl.int64)
    line, x = program // pieces, program % pieces * BLOCK + tl.arange(0, BLOCK)
    plane = line // height
    return plane // channels, plane % channels, line % height, x, x < width


@triton.jit
def _transform(
    out, out_strides, features, features_strides, scale, scale_strides, shift, shift_strides,
    split, channels, height, width, BLOCK: tl.constexpr,
):  # fmt: skip
    batch, channel, y, x, exists = _place(channels, height, width, BLOCK)
    result = tl.load(_row(features, features_strides, batch, channel, y, x), exists).to(tl.float32)
    if channel >= split:
        a = tl.load(_row(scale, scale_strides, batch, channel - split, y, x), exists).to(tl.float32)
        s = tl.load(_row(shift, shift_strides, batch, channel - split, y, x), exists).to(tl.float32)
        result = result * a + s
    tl.store(_row(out, out_strides, batch, channel, y, x), result, exists)


@triton.jit
def _backward(
    grad_features, grad_features_strides, grad_scale, grad_scale_strides,
    grad, grad_strides, features, features_strides, scale, scale_strides,
    split, channels, height, width, BLOCK: tl.constexpr,
):  # fmt: skip
    batch, channel, y, x, exists = _place(channels, height, width, BLOCK)
    g = tl.load(_row(grad, grad_strides, batch, channel, y, x), exists).to(tl.float32)
    if channel >= split:
        if grad_scale is not None:
            f = tl.load(_row(features, features_strides, batch, channel, y, x), exists).to(tl.float32)
            tl.store(_row(grad_scale, grad_scale_strides, batch, channel - split, y, x), g * f, exists)
        g = g * tl.load(_row(scale, scale_strides, batch, channel - split, y, x), exists).to(tl.float32)
    if grad_features is not None:
        tl.store(_row(grad_features, grad_features_strides, batch, channel, y, x), g, exists)


def _launch(kernel, tensors: tuple[Tensor | None, ...], like: Tensor, split: int) -> None:
    batch, channels, height, width = like.shape
    # Where every tensor's rows follow each other without a gap, the picture is one long row.
    if height == 1 or all(t is None or t.stride(2) == t.stride(3) * width for t in tensors):
        height, width = 1, height * width
    programs = batch * channels * height * triton.cdiv(width, BLOCK)
    arguments = [argument for t in tensors for argument in (t, None if t is None else t.stride())]
    with torch.cuda.device_of(like):
        kernel[(programs,)](*arguments, split, channels, height, width, BLOCK)


def channel_split_transform(out: Tensor, features: Tensor, scale: Tensor, shift: Tensor, split: int) -> None:
    """Fills `out`; `scale` and `shift` are (B, C - split, H, W), where a broadcast dimension has stride 0."""
    _launch(_transform, (out, features, scale, shift), out, split)


def channel_split_transform_backward(
    grad_features: Tensor | None, grad_scale: Tensor | None, grad: Tensor, features: Tensor, scale: Tensor, split: int
) -> None:
    """grad_features is grad, times scale behind the split; grad_scale = grad · features."""
    _launch(_backward, (grad_features, grad_scale, grad, features, scale), grad, split)
