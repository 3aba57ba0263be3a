"""lut_1d_transform in Triton: each channel through a table of its own. (A 3D LUT after it is a call of lut_transform.)

Positions are sums of two float32 numbers, as in csrc/lut_1d.cu. So multiplications and additions are fused only where
the code says so (`enable_fp_fusion=False`).
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
    """The numbers of the first entry and of the last, and the entries per unit as a sum of two."""
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
    """For numbers x / FULL: the cells, each between two entries, the fractions within them, and which numbers are
    within the domain. A number on an entry is in the cell above. NaN passes through to the fraction."""
    low, high, scale, rest = line
    number, beyond = x, 0.0
    if FULL != 1.0:
        number = x * (1 / FULL)
        beyond = tl.fma(-number, FULL, x) * (1 / FULL)  # what rounding took from it
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
    before = (fraction < 0) & (cell > 0)  # just below what it was rounded to
    cell, fraction = tl.where(before, cell - 1, cell), tl.where(before, fraction + 1, fraction)
    on_next = (fraction == 1) & (cell < size - 2)
    inside = (number > low) & (number < high)
    return tl.where(on_next, cell + 1, cell), tl.where(on_next, 0.0, fraction), inside


@triton.jit
def _transform(
    out, out_strides, image, image_strides, tables, tables_strides, domain, size, height, width,
    FULL: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    piece, rest = split_program((width - 1) // TILE + 1)
    y, batch, start = rest % height, rest // height, piece * TILE
    x = tl.arange(0, TILE)
    exists = x < end_of_row(start, width)
    for c in tl.static_range(3):
        value = tl.load(at(image, image_strides, batch, c, y, start, x), exists, 0).to(tl.float32)
        cell, fraction, _ = _find(value, _line(domain, batch, c, size), size, FULL)
        entries = tables + batch * tables_strides[0] + c * tables_strides[1] + cell
        first, second = tl.load(entries), tl.load(entries + 1)
        result = tl.fma(fraction, second, (1 - fraction) * first)
        store(at(out, out_strides, batch, c, y, start, x), result, exists)


def lut_1d_transform(out: Tensor, image: Tensor, tables: Tensor, domain: Tensor | None) -> None:
    """Fills `out` (B, 3, H, W), of the image's dtype or float32, from `image`, tables (B, 3, S) with contiguous rows,
    and domain (B, 2, 3), contiguous; both float32."""
    height, width = joined(*image.shape[2:], out, image)
    launch(
        _transform, image.shape[0] * height * triton.cdiv(width, TILE), image, *with_strides(out, image, tables),
        domain, tables.shape[2], height, width, FULL_SCALE.get(image.dtype, 1.0), TILE, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _scatter(sums, scale, cells, by_low, by_high, exists, TILE: tl.constexpr):
    """Adds the contributions to the lower and the upper end of each pixel's cell; where many pixels share a cell, sums
    them first, because atomic additions to the same address would serialise."""
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
    piece, rest = split_program((width - 1) // TILE + 1)
    y, batch, start = rest % height, rest // height, piece * TILE
    x = tl.arange(0, TILE)
    exists = x < end_of_row(start, width)
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
    """Fills grad_image, and adds to sums (B, 3, S) the gradient of the tables: float32 or, for reproducible results,
    int64, scaled by `scale` (float32, one element)."""
    height, width = joined(*image.shape[2:], grad_image, grad, image)
    launch(
        _backward, image.shape[0] * height * triton.cdiv(width, BACKWARD_TILE), image,
        *with_strides(grad_image, grad, image, tables), domain, sums, scale, tables.shape[2], height, width,
        BACKWARD_TILE, enable_fp_fusion=False,
    )  # fmt: skip
