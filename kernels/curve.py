"""curve_iterate in Triton: iterates x <- x + r·(x² − x), with a curve parameter r for every pixel and channel. There is
one map of parameters per iteration, or one for all iterations, of the image's size or resampled to it on the fly.

Fused multiply-adds are used only where the code writes them (`enable_fp_fusion=False`), because positions in a map must
be rounded exactly as F.interpolate rounds them.
"""
# ruff: noqa: RUF005 (Triton does not unpack tuples)

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .pixels import at, end_of_row, joined, launch, load, split_program, store, with_strides

TILE = 1024  # pixels per program
BACKWARD_TILE = 512
AT_ONCE = 8  # iterations whose maps are read together and whose states the backward pass keeps
SUMMED = 256  # pixels of a row over which one program sums gradients of maps of another size
ROWS = 16  # and the number of such rows


# ---- maps ----


@triton.jit
def _between(i, size, scale):
    """The cell, between two rows or columns of a map of `size`, that contains row or column i of the image, and the
    fraction within it, as F.interpolate computes them with align_corners=True."""
    position = tl.cast(i, tl.float32) * scale
    cell = tl.maximum(tl.minimum(tl.cast(position, tl.int32), size - 2), 0)
    return cell, position - tl.cast(cell, tl.float32)


@triton.jit
def _curve(curves, strides, map, place, steps, RESIZED: tl.constexpr):
    """A map at the pixels of a row. place: batch, row, first column, columns relative to it, which of them exist, and
    the cells of row and columns in a map of another size. steps: distances to that map's next row and next column."""
    batch, y, start, x, exists, down, across = place
    if RESIZED:
        upper = at(curves, strides, batch, map, down[0], 0, across[0])
        lower = upper + steps[0]
        left, left_below = load(upper, None), load(lower, None)
        right, right_below = load(upper + steps[1], None), load(lower + steps[1], None)
        left = tl.fma(left_below - left, down[1], left)
        right = tl.fma(right_below - right, down[1], right)
        return tl.fma(right - left, across[1], left)
    else:
        return load(at(curves, strides, batch, map, y, start, x), exists, 0.0)


@triton.jit
def _curves(curves, strides, c, first, place, steps, COUNT: tl.constexpr, SHARED: tl.constexpr, RESIZED: tl.constexpr):
    """The maps of channel c for COUNT iterations."""
    maps = ()
    if SHARED:
        map = _curve(curves, strides, c, place, steps, RESIZED)
        for _ in tl.static_range(COUNT):
            maps += (map,)
    else:
        for k in tl.static_range(COUNT):
            maps += (_curve(curves, strides, 3 * (first + k) + c, place, steps, RESIZED),)
    return maps


@triton.jit
def _place(height, width, sizes, scales, RESIZED: tl.constexpr, INTERLEAVED: tl.constexpr, TILE: tl.constexpr):
    """The program's pixels, as in `_curve`, and the channel of each where channels are interleaved."""
    COLUMNS: tl.constexpr = TILE // 3 if INTERLEAVED else TILE
    piece, rest = split_program((width - 1) // COLUMNS + 1)
    batch, y, start = rest // height, rest % height, piece * COLUMNS
    value = tl.arange(0, TILE)
    x = value // 3 if INTERLEAVED else value
    exists = (x < end_of_row(start, width)) & (x < COLUMNS)
    down, across = (0, 0.0), (0, 0.0)
    if RESIZED:
        down, across = _between(y, sizes[0], scales[0]), _between(start + x, sizes[1], scales[1])
    return (batch, y, start, x, exists, down, across), value % 3


# ---- forward ----


@triton.jit
def _iterate(
    out, out_strides, image, image_strides, curves, curves_strides, height, width, sizes, scales, steps, chunks,
    COUNT: tl.constexpr, SHARED: tl.constexpr, RESIZED: tl.constexpr,
    INTERLEAVED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    place, channel = _place(height, width, sizes, scales, RESIZED, INTERLEAVED, TILE)
    batch, y, start, x, exists, _, _ = place
    for i in tl.static_range(1 if INTERLEAVED else 3):
        c = channel if INTERLEAVED else i
        v = load(at(image, image_strides, batch, c, y, start, x), exists)
        for done in range(chunks):
            maps = _curves(curves, curves_strides, c, done * COUNT, place, steps, COUNT, SHARED, RESIZED)
            for k in tl.static_range(COUNT):
                v = tl.fma(tl.fma(v, v, -v), maps[k], v)
        store(at(out, out_strides, batch, c, y, start, x), v, exists)


def _launch(
    kernel: Any, tensors: tuple[Tensor | None, ...], image: Tensor, curves: Tensor, iterations: int, tile: int
) -> None:
    height, width = image.shape[2:]
    resized = curves.shape[2:] != image.shape[2:]
    if not resized:
        height, width = joined(height, width, *tensors)
    interleaved = image.stride(1) == 1
    tile //= 1 + interleaved  # where each value has its own address, addresses fill the registers
    columns = tile // 3 if interleaved else tile
    chunks, count = _chunks(iterations)
    launch(
        kernel, image.shape[0] * height * triton.cdiv(width, columns), image, *with_strides(*tensors), height, width,
        *_grid(image, curves), chunks, count, curves.shape[1] == 3, resized, interleaved, tile, enable_fp_fusion=False,
    )  # fmt: skip


def _chunks(iterations: int) -> tuple[int, int]:
    """The number of chunks of iterations, and the number of iterations in each."""
    count = iterations
    if iterations > AT_ONCE:
        count = max(k for k in range(1, AT_ONCE // 2 + 1) if iterations % k == 0)
    return iterations // count, count


def _grid(image: Tensor, curves: Tensor) -> tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
    """The maps' size, the distances in them between adjacent rows and columns of the image, and the distances in memory
    between adjacent rows and columns of a map."""
    sizes, pairs = tuple(curves.shape[2:]), zip(curves.shape[2:], image.shape[2:], strict=True)
    scales = tuple((size - 1) / (picture - 1) if picture > 1 else 0.0 for size, picture in pairs)
    steps = tuple(stride if size > 1 else 0 for size, stride in zip(sizes, curves.stride()[2:], strict=True))
    return sizes, scales, steps


def curve_iterate(out: Tensor, image: Tensor, curves: Tensor, iterations: int) -> None:
    """Fills `out` from `image` (B, 3, H, W) and `curves` (B, 3·iterations or 3, h, w)."""
    _launch(_iterate, (out, image, curves), image, curves, iterations, TILE)


# ---- backward ----


@triton.jit
def _differentiate(
    v, g, curves, strides, c, which, place, steps, COUNT: tl.constexpr, SHARED: tl.constexpr, RESIZED: tl.constexpr
):
    """Backpropagates through iterations COUNT·which to COUNT·(which + 1) - 1: from g, the gradient of their output, to
    the gradient of their input and those of their curves. v: the image."""
    for k in range(which):
        maps = _curves(curves, strides, c, k * COUNT, place, steps, COUNT, SHARED, RESIZED)
        for i in tl.static_range(COUNT):
            v = tl.fma(tl.fma(v, v, -v), maps[i], v)
    maps = _curves(curves, strides, c, which * COUNT, place, steps, COUNT, SHARED, RESIZED)
    states = (v,)
    for i in tl.static_range(COUNT - 1):
        states += (tl.fma(tl.fma(states[i], states[i], -states[i]), maps[i], states[i]),)
    shares = ()
    for i in tl.static_range(COUNT):
        state, map = states[COUNT - 1 - i], maps[COUNT - 1 - i]
        shares = (g * tl.fma(state, state, -state),) + shares
        g = g * tl.fma(tl.fma(state, 2.0, -1.0), map, 1.0)
    return g, shares


@triton.jit
def _total(values):
    total = values[0]
    for i in tl.static_range(1, len(values)):
        total += values[i]
    return total


@triton.jit
def _backward_pixels(
    grad_image, grad_image_strides, grad_curves, grad_curves_strides, grad, grad_strides,
    image, image_strides, curves, curves_strides, height, width, sizes, scales, steps, chunks,
    COUNT: tl.constexpr, SHARED: tl.constexpr, RESIZED: tl.constexpr,
    INTERLEAVED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    place, channel = _place(height, width, sizes, scales, RESIZED, INTERLEAVED, TILE)
    batch, y, start, x, exists, _, _ = place
    for i in tl.static_range(1 if INTERLEAVED else 3):
        c = channel if INTERLEAVED else i
        v = load(at(image, image_strides, batch, c, y, start, x), exists, 0.0)
        g = load(at(grad, grad_strides, batch, c, y, start, x), exists, 0.0)
        total = tl.zeros([TILE], tl.float32)
        for done in range(chunks):
            which = chunks - 1 - done
            g, shares = _differentiate(v, g, curves, curves_strides, c, which, place, steps, COUNT, SHARED, RESIZED)
            if grad_curves is not None:
                if SHARED:
                    total += _total(shares)
                else:
                    for k in tl.static_range(COUNT):
                        map = 3 * (which * COUNT + k) + c
                        store(at(grad_curves, grad_curves_strides, batch, map, y, start, x), shares[k], exists)
        if grad_curves is not None and SHARED:
            store(at(grad_curves, grad_curves_strides, batch, c, y, start, x), total, exists)
        if grad_image is not None:
            store(at(grad_image, grad_image_strides, batch, c, y, start, x), g, exists)


@triton.jit
def _first_in(cell, size, picture, scale):
    """The first row or column of the image that lies in a cell of the map or after it."""
    i = tl.minimum(cell / tl.maximum(scale, 1e-9), picture * 1.0).to(tl.int32) - 2
    for _ in tl.static_range(5):  # corrects for the rounding of the quotient
        i += ((i.to(tl.float32) * scale).to(tl.int32) < cell).to(tl.int32)
    after = (cell >= tl.maximum(size - 1, 1)) | (scale == 0)
    return tl.where(cell <= 0, 0, tl.where(after, picture, tl.minimum(i, picture)))


# The rows or columns of the image that lie in one cell of the map form a run. Where the map is not smaller than the
# image, each row or column is a separate run.


@triton.jit
def _run(i, size, picture, scale):
    """The first row or column of the i-th run, and the first after it."""
    if size < picture:
        return _first_in(i, size, picture, scale), _first_in(i + 1, size, picture, scale)
    else:
        return i, tl.minimum(i + 1, picture)


@triton.jit
def _runs_in(cell, size, picture, scale):
    """The first run in a cell, and the first after it."""
    if size < picture:
        cells = tl.maximum(size - 1, 1)
        return tl.minimum(tl.maximum(cell, 0), cells), tl.minimum(tl.maximum(cell + 1, 0), cells)
    else:
        return _first_in(cell, size, picture, scale), _first_in(cell + 1, size, picture, scale)


@triton.jit
def _sum_runs(
    sums, grad_image, grad_image_strides, grad, grad_strides, image, image_strides, curves, curves_strides,
    batches, height, width, sizes, scales, steps, runs, parts, rows, chunks,
    COUNT: tl.constexpr, SHARED: tl.constexpr, RUNS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """Sums the gradients of the curves at the pixels of a run of rows and a few runs of columns, for each of the four
    map points around them: sums (parts, B, C, runs of rows, runs of columns, 4)."""
    piece, rest = split_program((runs[1] - 1) // RUNS + 1)
    run_y, rest = rest % runs[0], rest // runs[0]
    part_x, rest = rest % parts[1], rest // parts[1]
    part_y, rest = rest % parts[0], rest // parts[0]
    c, rest = rest % 3, rest // 3
    chunk = rest % (1 if SHARED else chunks)
    batch = rest // (1 if SHARED else chunks)
    run_x = (piece * RUNS).to(tl.int32) + tl.arange(0, RUNS)
    first, end = _run(run_x, sizes[1], width, scales[1])
    x = (first + (part_x * LENGTH).to(tl.int32))[:, None] + tl.arange(0, LENGTH)[None, :]
    exists = (x < end[:, None]) & (run_x < runs[1])[:, None]
    across = _between(x, sizes[1], scales[1])
    top, bottom = _run(run_y.to(tl.int32), sizes[0], height, scales[0])
    top += (part_y * rows).to(tl.int32)
    upper, lower = (), ()
    for _ in tl.static_range(1 if SHARED else COUNT):
        upper += (tl.zeros([RUNS, LENGTH], tl.float32),)
        lower += (tl.zeros([RUNS, LENGTH], tl.float32),)
    for row in range(top, tl.minimum(bottom, top + rows)):
        y = tl.cast(row, tl.int64)
        down = _between(y, sizes[0], scales[0])
        place = (batch, y, 0, x, exists, down, across)
        v = load(at(image, image_strides, batch, c, y, 0, x), exists, 0.0)
        g = load(at(grad, grad_strides, batch, c, y, 0, x), exists, 0.0)
        total = tl.zeros([RUNS, LENGTH], tl.float32)
        for done in range(chunks - 1 - chunk):
            g, shares = _differentiate(
                v, g, curves, curves_strides, c, chunks - 1 - done, place, steps, COUNT, SHARED, True
            )
            if SHARED:
                total += _total(shares)
        g, shares = _differentiate(v, g, curves, curves_strides, c, chunk, place, steps, COUNT, SHARED, True)
        if SHARED:
            shares = (total + _total(shares),)
        if grad_image is not None:  # noqa: SIM102 (known at compile time, unlike `chunk`)
            if chunk == 0:
                store(at(grad_image, grad_image_strides, batch, c, y, 0, x), g, exists)
        upper_sums, lower_sums = (), ()
        for k in tl.static_range(1 if SHARED else COUNT):
            upper_sums += (tl.fma(shares[k], 1.0 - down[1], upper[k]),)
            lower_sums += (tl.fma(shares[k], down[1], lower[k]),)
        upper, lower = upper_sums, lower_sums
    for k in tl.static_range(1 if SHARED else COUNT):
        map = c if SHARED else 3 * (chunk * COUNT + k) + c
        left_above, right_above = tl.sum(upper[k] * (1.0 - across[1]), 1), tl.sum(upper[k] * across[1], 1)
        left_below, right_below = tl.sum(lower[k] * (1.0 - across[1]), 1), tl.sum(lower[k] * across[1], 1)
        corners = tl.join(tl.join(left_above, left_below), tl.join(right_above, right_below)).reshape(RUNS, 4)
        plane = ((part_y * parts[1] + part_x) * batches + batch) * (3 if SHARED else 3 * chunks * COUNT) + map
        to = sums + ((plane * runs[0] + run_y) * runs[1] + run_x[:, None]) * 4 + tl.arange(0, 4)[None, :]
        tl.store(to, corners, (run_x < runs[1])[:, None])


@triton.jit
def _sum_corners(
    grad_curves, grad_curves_strides, sums, batches, channels, height, width, sizes, scales, runs, parts,
    TILE: tl.constexpr,
):  # fmt: skip
    """Sums a map's gradient at a point over the four cells around it."""
    piece, rest = split_program((sizes[1] - 1) // TILE + 1)
    j, rest = rest % sizes[0], rest // sizes[0]
    map, batch = rest % channels, rest // channels
    start = piece * TILE
    i = tl.arange(0, TILE)
    exists = i < end_of_row(start, sizes[1])
    total = tl.zeros([TILE], tl.float32)
    for below in tl.static_range(2):
        run_y, end_y = _runs_in(j.to(tl.int32) - below, sizes[0], height, scales[0])
        for right in tl.static_range(2):
            run_x, end_x = _runs_in((start + i).to(tl.int32) - right, sizes[1], width, scales[1])
            for y in range(run_y, end_y):
                for k in range(tl.max(end_x - run_x)):
                    for part in range(parts[0] * parts[1]):
                        plane = ((part * batches + batch) * channels + map) * runs[0] + y
                        corner = sums + (plane * runs[1] + run_x + k) * 4 + 2 * below + right
                        total += tl.load(corner, exists & (run_x + k < end_x), 0.0)
    store(at(grad_curves, grad_curves_strides, batch, map, j, start, i), total, exists)


def curve_iterate_backward(
    grad_image: Tensor | None,
    grad_curves: Tensor | None,
    scratch: Tensor | None,
    grad: Tensor,
    image: Tensor,
    curves: Tensor,
    iterations: int,
) -> None:
    """Fills grad_image and grad_curves. If the curves differ in size from the image, `scratch` (float32) holds the sums
    of `_sum_runs`, from which grad_curves follows."""
    resized = curves.shape[2:] != image.shape[2:]
    if grad_curves is None or not resized:
        tensors = (grad_image, grad_curves, grad, image, curves)
        return _launch(_backward_pixels, tensors, image, curves, iterations, BACKWARD_TILE // (1 + resized))
    batch, channels, *sizes = curves.shape
    picture, shared = tuple(image.shape[2:]), channels == 3
    chunks, count = _chunks(iterations)
    runs = tuple(max(m - 1, 1) if m < p else p for m, p in zip(sizes, picture, strict=True))
    rows, columns = (_longest_run(m, p) for m, p in zip(sizes, picture, strict=True))
    length = min(triton.next_power_of_2(columns), SUMMED)
    parts = (triton.cdiv(max(rows - 1, 1), ROWS), triton.cdiv(columns, length))
    tile = (SUMMED // length, length)
    tiles = triton.cdiv(runs[1], tile[0]) * runs[0] * parts[0] * parts[1]
    launch(
        _sum_runs, batch * (3 if shared else 3 * chunks) * tiles, image, scratch,
        *with_strides(grad_image, grad, image, curves), batch, *picture, *_grid(image, curves), runs, parts,
        triton.cdiv(rows, parts[0]), chunks, count, shared, *tile, enable_fp_fusion=False,
    )  # fmt: skip
    launch(
        _sum_corners, batch * channels * sizes[0] * triton.cdiv(sizes[1], SUMMED), image, *with_strides(grad_curves),
        scratch, batch, channels, *picture, *_grid(image, curves)[:2], runs, parts, SUMMED, enable_fp_fusion=False,
    )  # fmt: skip


def _longest_run(size: int, picture: int) -> int:
    """The largest number of rows or columns of the image that may lie in one cell of a map."""
    if size >= picture:
        return 1
    return picture if size == 1 else -(-(picture - 1) // (size - 1)) + 1
