"""lut_1d_transform in Triton: applies a 1D table to each channel. `lut_transform` applies the 3D LUT after it, if any.

A position is the sum of two float32 numbers, as in csrc/lut_1d.cu. The rounding error of each operation counts, so the
compiler must not fuse multiplications with additions (`enable_fp_fusion=False`); the code calls `tl.fma` itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lut import TRIES, _add
from .pixels import at, end_of_row, joined, launch, load, split_program, store, with_strides

TILE = 512  # pixels per program
BACKWARD_TILE = 256
FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}


@triton.jit
def _line(domain, batch, c, size):
    """Returns the values of the first and the last entry, and the number of cells per unit as a sum of two floats."""
    steps = tl.cast(size - 1, tl.float32)
    if domain is None:
        return 0.0, 1.0, steps, 0.0
    else:
        low, high = tl.load(domain + batch * 6 + c), tl.load(domain + batch * 6 + 3 + c)
        width = high - low
        part = width - high
        lost = (high - (width - part)) - (low + part)
        scale = steps / width
        return low, high, scale, (tl.fma(-scale, width, steps) - scale * lost) / width


@triton.jit
def _find(x, line, size, FULL: tl.constexpr):
    """For values x / FULL, returns their cells (a cell lies between two entries), the fractions within the cells, and
    whether the values are strictly inside the domain. A value on an entry is in the cell above. NaN has fraction NaN.
    """
    low, high, scale, rest = line
    number, beyond = x, 0.0
    if FULL != 1.0:
        number = x * (1 / FULL)
        beyond = tl.fma(-number, FULL, x) * (1 / FULL)  # the rounding error of `number`
    above = number - low
    part = above - number
    lost = ((number - (above - part)) - (low + part)) + beyond
    product = above * scale
    more = tl.fma(lost, scale, tl.fma(above, rest, tl.fma(above, scale, -product)))
    position = product + more
    little = more - (position - product)
    little = tl.where((number <= low) | (number >= high), 0.0, little)
    position = tl.where(number <= low, 0.0, tl.where(number >= high, tl.cast(size - 1, tl.float32), position))
    cell = tl.minimum(tl.where(position > 0, position, 0.0).to(tl.int32), size - 2)
    fraction = (position - cell.to(tl.float32)) + little
    before = (fraction < 0) & (cell > 0)  # rounded up to an entry: the value is in the cell below
    cell, fraction = tl.where(before, cell - 1, cell), tl.where(before, fraction + 1, fraction)
    on_next = (fraction == 1) & (cell < size - 2)
    inside = (number > low) & (number < high)
    return tl.where(on_next, cell + 1, cell), tl.where(on_next, 0.0, fraction), inside


@triton.jit
def _tile(height, width, TILE: tl.constexpr):
    """This program's image, row and first column; its columns from there; and which of them exist."""
    piece, rest = split_program((width - 1) // TILE + 1)
    x, start = tl.arange(0, TILE), piece * TILE
    return rest // height, rest % height, start, x, x < end_of_row(start, width)


@triton.jit
def _transform(
    out, out_strides, image, image_strides, tables, tables_strides, domain, size, height, width,
    FULL: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    batch, y, start, x, exists = _tile(height, width, TILE)
    for c in tl.static_range(3):
        value = tl.load(at(image, image_strides, batch, c, y, start, x), exists, 0).to(tl.float32)
        cell, fraction, _ = _find(value, _line(domain, batch, c, size), size, FULL)
        entries = tables + batch * tables_strides[0] + c * tables_strides[1] + cell
        first, second = tl.load(entries), tl.load(entries + 1)
        result = tl.fma(fraction, second, (1 - fraction) * first)
        store(at(out, out_strides, batch, c, y, start, x), result, exists)


def lut_1d_transform(out: Tensor, image: Tensor, tables: Tensor, domain: Tensor | None) -> None:
    """Fills `out` (B, 3, H, W), of the dtype of `image` or float32. `tables` (B, 3, S): float32 with contiguous rows;
    `domain` (B, 2, 3): float32 and contiguous, or None for [0, 1]."""
    height, width = joined(*image.shape[2:], out, image)
    launch(
        _transform, image.shape[0] * height * triton.cdiv(width, TILE), image, *with_strides(out, image, tables),
        domain, tables.shape[2], height, width, FULL_SCALE.get(image.dtype, 1.0), TILE, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _scatter(sums, scale, cells, by_low, by_high, exists, TILE: tl.constexpr):
    """Adds each pixel's contributions to the lower and the upper entry of its cell. Pixels that share a cell with many
    others are summed first, because atomic additions to the same address serialise."""
    x = tl.arange(0, TILE)
    separate, untried = exists, exists
    for _ in range(TRIES):
        first = tl.min(tl.where(untried, x, TILE))
        cell = tl.sum(tl.where(x == first, cells, 0))
        here = untried & (cells == cell)
        untried = untried & (cells != cell)
        if tl.sum(here.to(tl.int32)) > TILE // 16:
            separate = separate & (cells != cell)
            _add(sums + cell, tl.sum(tl.where(here, by_low, 0.0)), scale)
            _add(sums + cell + 1, tl.sum(tl.where(here, by_high, 0.0)), scale)
    _add(sums + cells, by_low, scale, separate)
    _add(sums + cells + 1, by_high, scale, separate)


@triton.jit
def _backward(
    grad_image, grad_image_strides, grad, grad_strides, image, image_strides, tables, tables_strides, domain,
    sums, sums_scale, size, height, width, TILE: tl.constexpr,
):  # fmt: skip
    batch, y, start, x, exists = _tile(height, width, TILE)
    for c in tl.static_range(3):
        value = load(at(image, image_strides, batch, c, y, start, x), exists, 0.0)
        g = load(at(grad, grad_strides, batch, c, y, start, x), exists, 0.0)
        line = _line(domain, batch, c, size)
        cell, fraction, inside = _find(value, line, size, 1.0)
        if grad_image is not None:
            entries = tables + batch * tables_strides[0] + c * tables_strides[1] + cell
            rise = (tl.load(entries + 1) - tl.load(entries)) * line[2]
            store(at(grad_image, grad_image_strides, batch, c, y, start, x), tl.where(inside, g * rise, 0.0), exists)
        if sums is not None:
            to = sums + (batch * 3 + c) * size
            _scatter(to, sums_scale, cell, (1 - fraction) * g, fraction * g, exists, TILE)


def lut_1d_transform_backward(
    grad_image: Tensor | None,
    sums: Tensor | None,
    scale: Tensor | None,
    grad: Tensor,
    image: Tensor,
    tables: Tensor,
    domain: Tensor | None,
) -> None:
    """Fills `grad_image`, and adds the gradient of the tables to `sums` (B, 3, S), which are float32 or, for
    reproducible results, int64 in units of 1 / scale; `scale` is one float32. Either output may be None."""
    height, width = joined(*image.shape[2:], grad_image, grad, image)
    launch(
        _backward, image.shape[0] * height * triton.cdiv(width, BACKWARD_TILE), image,
        *with_strides(grad_image, grad, image, tables), domain, sums, scale, tables.shape[2], height, width,
        BACKWARD_TILE, enable_fp_fusion=False,
    )  # fmt: skip
