"""context_voxels in Triton: the k x k neighbours of every pixel, each times the pixel's attention to it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # neighbours in a row that one program works on


@triton.jit
def _load(tensor, strides, batch, channel, y, x, exists):
    """Columns `x` of a row of a (B, ·, H, W) tensor as float32; zero where they do not exist."""
    pointers = tensor + batch * strides[0] + channel * strides[1] + y * strides[2] + x * strides[3]
    return tl.load(pointers, exists, 0.0).to(tl.float32)


@triton.jit
def _store(tensor, strides, batch, channel, y, x, exists, values):
    pointers = tensor + batch * strides[0] + channel * strides[1] + y * strides[2] + x * strides[3]
    tl.store(pointers, values, exists)


@triton.jit
def _place(height, width, BLOCK: tl.constexpr):
    """Which pixels this program has: batch, row, columns, and which of those columns exist."""
    pieces = (width + BLOCK - 1) // BLOCK
    program = tl.program_id(0).to(tl.int64)
    line, x = program // pieces, program % pieces * BLOCK + tl.arange(0, BLOCK)
    return line // height, line % height, x, x < width


@triton.jit
def _voxels(
    out, out_strides, image, image_strides, attention, attention_strides,
    height, width, k: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch, y, x, exists = _place(height, width, BLOCK)
    for j in range(k * k):
        y2, x2 = y + j // k - k // 2, x + j % k - k // 2
        inside = exists & (y2 >= 0) & (y2 < height) & (x2 >= 0) & (x2 < width)
        weight = _load(attention, attention_strides, batch, j, y, x, exists)
        for c in tl.static_range(3):
            value = weight * _load(image, image_strides, batch, c, y2, x2, inside)
            _store(out, out_strides, batch, c * k * k + j, y, x, exists, value)


@triton.jit
def _backward(
    grad_image, grad_image_strides, grad_attention, grad_attention_strides,
    grad, grad_strides, image, image_strides, attention, attention_strides,
    height, width, k: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch, y, x, exists = _place(height, width, BLOCK)
    if grad_attention is not None:
        for j in range(k * k):
            y2, x2 = y + j // k - k // 2, x + j % k - k // 2
            inside = exists & (y2 >= 0) & (y2 < height) & (x2 >= 0) & (x2 < width)
            total = tl.zeros([BLOCK], tl.float32)
            for c in tl.static_range(3):
                g = _load(grad, grad_strides, batch, c * k * k + j, y, x, exists)
                total += g * _load(image, image_strides, batch, c, y2, x2, inside)
            _store(grad_attention, grad_attention_strides, batch, j, y, x, exists, total)
    if grad_image is not None:
        # The pixel was neighbour j of p - j, and gathers from there, so that no two programs add to the same place.
        for c in tl.static_range(3):
            total = tl.zeros([BLOCK], tl.float32)
            for j in range(k * k):
                y2, x2 = y - j // k + k // 2, x - j % k + k // 2
                inside = exists & (y2 >= 0) & (y2 < height) & (x2 >= 0) & (x2 < width)
                weight = _load(attention, attention_strides, batch, j, y2, x2, inside)
                total += weight * _load(grad, grad_strides, batch, c * k * k + j, y2, x2, inside)
            _store(grad_image, grad_image_strides, batch, c, y, x, exists, total)


def _launch(kernel, tensors: tuple[Tensor | None, ...], like: Tensor, k: int) -> None:
    batch, _, height, width = like.shape
    arguments = [argument for t in tensors for argument in (t, None if t is None else t.stride())]
    with torch.cuda.device_of(like):
        kernel[(batch * height * triton.cdiv(width, BLOCK),)](*arguments, height, width, k, BLOCK)


def context_voxels(out: Tensor, image: Tensor, attention: Tensor, kernel_size: int) -> None:
    """Fills `out` (B, 3k², H, W) from `image` (B, 3, H, W) and `attention` (B, k², H, W)."""
    _launch(_voxels, (out, image, attention), image, kernel_size)


def context_voxels_backward(
    grad_image: Tensor | None,
    grad_attention: Tensor | None,
    grad: Tensor,
    image: Tensor,
    attention: Tensor,
    kernel_size: int,
) -> None:
    """grad_attention[j] = Σ_c grad[c·k² + j] · neighbour j; grad_image sums attention · grad where a pixel was one."""
    _launch(_backward, (grad_image, grad_attention, grad, image, attention), image, kernel_size)
