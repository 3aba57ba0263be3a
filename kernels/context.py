"""context_voxels in Triton: the k x k neighbours of every pixel, each multiplied by the pixel's attention to it."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .pixels import aligned, at, columns, end_of_row, from_columns, launch, load, split_program, store, with_strides

THREADS = 128
INTERLEAVED = 2048  # values per program where channels are interleaved


@triton.jit
def _place(height, width, TILE: tl.constexpr):
    """The program's pixels: batch, row, first column and, relative to it, the columns and the row's begin and end."""
    piece, rest = split_program((width - 1) // TILE + 1)
    start = piece * TILE
    begin = tl.maximum(-start, -TILE).to(tl.int32)
    return rest // height, rest % height, start, tl.arange(0, TILE), begin, end_of_row(start, width)


@triton.jit
def _end_in(y, height, begin, end):
    """The end of row y; its begin where it lies outside the image, so that the row is empty."""
    return tl.where((y >= 0) & (y < height), end, begin)


@triton.jit
def _neighbours(tensor, strides, batch, c, y, start, x, dx: tl.constexpr, begin, end, V: tl.constexpr):
    """Pixels start + x + dx of a row, zero outside it. Where a thread has V adjacent pixels, most of them come from one
    wide load at x, and only the others are loaded one by one."""
    if V == 1 or dx == 0:
        return load(at(tensor, strides, batch, c, y, start + dx, x), (x >= begin - dx) & (x < end - dx))
    else:
        here = columns(load(at(tensor, strides, batch, c, y, start, x), x < end), V)
        first = tl.arange(0, x.shape[0] // V) * V
        there = ()
        for i in tl.static_range(dx, dx + V):
            if i >= 0 and i < V:
                there += (here[i],)
            else:
                exists = (first >= begin - i) & (first < end - i)
                there += (load(at(tensor, strides, batch, c, y, start + i, first), exists),)
        return from_columns(there, V)


@triton.jit
def _voxels(
    out, out_strides, image, image_strides, attention, attention_strides,
    height, width, k: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    batch, y, start, x, begin, end = _place(height, width, TILE)
    for dy in range(-(k // 2), k // 2 + 1):
        row_end = _end_in(y + dy, height, begin, end)
        j = (dy + k // 2) * k
        weights = ()
        for i in tl.static_range(k):
            weights += (load(at(attention, attention_strides, batch, j + i, y, start, x), x < end),)
        for c in tl.static_range(3):
            row = ()
            for i in tl.static_range(k):
                row += (_neighbours(image, image_strides, batch, c, y + dy, start, x, i - k // 2, begin, row_end, V),)
            for i in tl.static_range(k):
                store(at(out, out_strides, batch, c * k * k + j + i, y, start, x), weights[i] * row[i], x < end)


@triton.jit
def _voxels_interleaved(
    out, out_strides, image, image_strides, attention, attention_strides,
    height, width, k: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """For channels_last: adjacent threads have the channels of one pixel."""
    batch, y, start, x, begin, end = _place(height, width, COLUMNS)
    channel, x = tl.arange(0, CHANNELS)[None, :], x[:, None]
    c, j = channel // (k * k), channel % (k * k)
    dy, dx = j // k - k // 2, j % k - k // 2
    exists = (channel < 3 * k * k) & (x < end)
    inside = exists & (y + dy >= 0) & (y + dy < height) & (x + dx >= begin) & (x + dx < end)
    weight = load(at(attention, attention_strides, batch, j, y, start, x), exists)
    neighbour = load(at(image, image_strides, batch, c, y + dy, start + dx, x), inside)
    store(at(out, out_strides, batch, channel, y, start, x), weight * neighbour, exists)


@triton.jit
def _backward(
    grad_image, grad_image_strides, grad_attention, grad_attention_strides,
    grad, grad_strides, image, image_strides, attention, attention_strides,
    height, width, k: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    batch, y, start, x, begin, end = _place(height, width, TILE)
    if grad_attention is not None:
        for dy in range(-(k // 2), k // 2 + 1):
            row_end = _end_in(y + dy, height, begin, end)
            for i in tl.static_range(k):
                j = (dy + k // 2) * k + i
                total = tl.zeros([TILE], tl.float32)
                for c in tl.static_range(3):
                    g = load(at(grad, grad_strides, batch, c * k * k + j, y, start, x), x < end)
                    total += g * _neighbours(
                        image, image_strides, batch, c, y + dy, start, x, i - k // 2, begin, row_end, V
                    )
                store(at(grad_attention, grad_attention_strides, batch, j, y, start, x), total, x < end)
    if grad_image is not None:
        # Pixel p is neighbour j of pixel p - j and gathers from there, so that no two programs add to the same address.
        total = (tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32))
        for dy in range(-(k // 2), k // 2 + 1):
            row_end = _end_in(y - dy, height, begin, end)
            for i in tl.static_range(k):
                j = (dy + k // 2) * k + i
                weight = _neighbours(
                    attention, attention_strides, batch, j, y - dy, start, x, k // 2 - i, begin, row_end, V
                )
                sums = ()
                for c in tl.static_range(3):
                    g = _neighbours(
                        grad, grad_strides, batch, c * k * k + j, y - dy, start, x, k // 2 - i, begin, row_end, V
                    )
                    sums += (total[c] + weight * g,)
                total = sums
        for c in tl.static_range(3):
            store(at(grad_image, grad_image_strides, batch, c, y, start, x), total[c], x < end)


def _launch(kernel: Any, tensors: tuple[Tensor | None, ...], like: Tensor, k: int) -> None:
    batch, _, height, width = like.shape
    per_load = 16 // like.element_size() if aligned(width, *tensors) else 1
    tile = THREADS * max(per_load, 2)
    programs = batch * height * triton.cdiv(width, tile)
    launch(kernel, programs, like, *with_strides(*tensors), height, width, k, per_load, tile, num_warps=THREADS // 32)


def context_voxels(out: Tensor, image: Tensor, attention: Tensor, kernel_size: int) -> None:
    """Fills `out` (B, 3k², H, W) from `image` (B, 3, H, W) and `attention` (B, k², H, W)."""
    if out.stride(1) == 1:
        batch, channels, height, width = out.shape
        channels = triton.next_power_of_2(channels)
        columns = triton.cdiv(INTERLEAVED, channels)
        programs, tensors = batch * height * triton.cdiv(width, columns), with_strides(out, image, attention)
        launch(_voxels_interleaved, programs, out, *tensors, height, width, kernel_size, channels, columns)
    else:
        _launch(_voxels, (out, image, attention), image, kernel_size)


def context_voxels_backward(
    grad_image: Tensor | None,
    grad_attention: Tensor | None,
    grad: Tensor,
    image: Tensor,
    attention: Tensor,
    kernel_size: int,
) -> None:
    """grad_attention[j] = Σ_c grad[c·k² + j] · neighbour j; grad_image sums attention · grad over the pixels of which a
    pixel is a neighbour."""
    _launch(_backward, (grad_image, grad_attention, grad, image, attention), image, kernel_size)
