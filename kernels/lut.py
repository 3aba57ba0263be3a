"""lut_transform in Triton: colours through 3D lookup tables.

The tables are packed so that all numbers of a vertex are adjacent and are read at once:
  4 lanes   one table:              R G B 0
  16 lanes  a panel of five tables: R0 G0 B0 R4 | R1 G1 B1 G4 | R2 G2 B2 B4 | R3 G3 B3 0
Adjacent threads have adjacent pixels, whose vertices are often the same. So each thread reads and writes one number of
an image at a time, and not 16 bytes as in the other kernels (`do_not_specialize_on_alignment`).
"""
# ruff: noqa: RUF005 (Triton does not unpack tuples)

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .pixels import at, columns, end_of_row, from_columns, joined, launch, load, split_program, store, with_strides

PACK_TILE = 2048  # numbers that one program packs
TILE = 512  # pixels per program
PANEL_TILE = 256  # the same with panels of tables
BACKWARD_TILE = 256
TRIES = tl.constexpr(4)  # cells per program for which it checks whether many of its pixels share them


# ---- packing ----


@triton.jit
def _pack(packed, luts, luts_strides, weights, panels, count, size, LANES: tl.constexpr, TILE: tl.constexpr):
    piece, rest = split_program((size * size * size + TILE - 1) // TILE)
    panel, batch = rest % panels, rest // panels
    vertex = (piece * TILE).to(tl.int32) + tl.arange(0, TILE)[:, None]
    r, g, b = vertex % size, vertex // size % size, (vertex // (size * size)).to(tl.int64)
    lane = tl.arange(0, LANES)[None, :]
    exists = (vertex < size * size * size) & (lane % 4 < 3)
    place = luts + batch * luts_strides[0] + b * luts_strides[3] + g.to(tl.int64) * luts_strides[4]
    place += r.to(tl.int64) * luts_strides[5]
    if LANES == 4:
        values = tl.zeros([TILE, LANES], tl.float32)
        for n in range(count):
            factor = 1.0 if weights is None else tl.load(weights + batch * count + n)
            table = place + tl.cast(n, tl.int64) * luts_strides[1] + lane.to(tl.int64) * luts_strides[2]
            values += factor * load(table, exists, 0.0)
    else:
        last = lane % 4 == 3  # table 4, whose channels come after those of tables 0 to 2
        n = panel * 5 + tl.where(last, 4, lane // 4)
        channel = tl.where(last, lane // 4, lane % 4)
        exists = (vertex < size * size * size) & (n < count) & (channel < 3)
        values = load(place + n * luts_strides[1] + channel.to(tl.int64) * luts_strides[2], exists, 0.0)
    if packed.dtype.element_ty == tl.float16:  # keep entries finite, as in CUDA
        values = tl.clamp(values, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    to = packed + ((batch * panels + panel) * size * size * size + vertex) * LANES + lane
    tl.store(to, values, vertex < size * size * size)


def lut_pack(packed: Tensor, luts: Tensor, weights: Tensor | None) -> None:
    """packed (B or 1, panels, D, D, D, 4 or 16) from luts (B or 1, N, 3, D, D, D). With 4 lanes the tables are blended:
    Σₙ weights[b, n] · luts[n], weights (B, N) contiguous float32."""
    own, panels, size, _, _, lanes = packed.shape
    strides = (luts.stride(0) if luts.shape[0] > 1 else 0, *luts.stride()[1:])
    tile = PACK_TILE // lanes
    programs = own * panels * triton.cdiv(size**3, tile)
    launch(_pack, programs, packed, packed, luts, strides, weights, panels, luts.shape[1], size, lanes, tile)


# ---- cells ----


@triton.jit
def _cell(x, size, vertices, BITS: tl.constexpr):
    """For one channel: the grid cell of a value, the fraction within it, and the derivative of the fraction, which is
    zero at the border of the grid and beyond. NaN passes through to the fraction."""
    if vertices is None:
        position = tl.clamp(x, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL) * (size - 1)
        cell = tl.minimum(position, size - 1.5).to(tl.int32)
        return cell, position - cell.to(tl.float32), tl.where((x > 0) & (x < 1), size - 1.0, 0.0)
    else:
        cell = tl.zeros_like(x).to(tl.int32)
        for bit in tl.static_range(BITS):
            higher = cell + (1 << (BITS - 1 - bit))
            cell = tl.where(x > tl.load(vertices + higher, higher < size - 1, float("inf")), higher, cell)
        low = tl.load(vertices + cell)
        rise = 1 / (tl.load(vertices + cell + 1) - low + 1e-10)
        fraction = (x - low) * rise
        inside = (x > tl.load(vertices)) & (x < tl.load(vertices + size - 1))
        clamped = tl.clamp(fraction, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        return cell, tl.where(inside, fraction, clamped), tl.where(inside, rise, 0.0)


@triton.jit
def _corners(r, g, b, size, TETRAHEDRAL: tl.constexpr):
    """The vertices that a pixel with these fractions reads, relative to the lowest of its cell, and their weights."""
    if TETRAHEDRAL:
        # Walk from the lowest vertex to the highest along the axes, in order of decreasing fractions.
        rg_most, rg_least = tl.maximum(r, g), tl.minimum(r, g)
        most = tl.maximum(tl.maximum(r, g, tl.PropagateNan.ALL), b, tl.PropagateNan.ALL)
        between, least = tl.maximum(rg_least, tl.minimum(rg_most, b)), tl.minimum(rg_least, b)
        second = tl.where(rg_most >= b, tl.where(r >= g, 1, size), size * size)
        last = tl.where(rg_least < b, tl.where(r >= g, size, 1), size * size)
        end = 1 + size + size * size
        return (0, second[:, None], (end - last)[:, None], end), (1 - most, most - between, between - least, least)
    else:
        offsets, weights = (), ()
        for i in tl.static_range(8):
            offsets += (i % 2 + (i // 2 % 2 + i // 4 * size) * size,)
            weights += ((b if i // 4 else 1 - b) * (g if i // 2 % 2 else 1 - g) * (r if i % 2 else 1 - r),)
        return offsets, weights


# ---- forward ----


@triton.jit
def _blend(totals, lane: tl.constexpr, value, factors):
    """Adds the value of a lane of a panel, times the factor of its table, to the lane's channel."""
    c: tl.constexpr = lane % 4 if lane % 4 < 3 else lane // 4
    if c < 3:
        product = value * factors[lane // 4 if lane % 4 < 3 else 4]
        return totals[0:c] + (totals[c] + product,) + totals[c + 1 : 3]
    else:
        return totals


@triton.jit
def _look_up(totals, place, offsets, shares, factors, LANES: tl.constexpr, TILE: tl.constexpr):
    """Interpolates between the vertices at these offsets from `place`. One table: returns the colour. A panel: adds its
    tables' colours, times their factors, to `totals`."""
    # As many lanes at a time as fit into 16 bytes.
    AT_ONCE: tl.constexpr = min(LANES, 128 // place.dtype.element_ty.primitive_bitwidth)
    for first in tl.static_range(0, LANES, AT_ONCE):
        values = tl.zeros([TILE, AT_ONCE], tl.float32)
        for i in tl.static_range(len(offsets)):
            vertex = place + offsets[i] * LANES + first + tl.arange(0, AT_ONCE)[None, :]
            values += shares[i][:, None] * tl.load(vertex).to(tl.float32)
        values = columns(values.reshape(TILE * AT_ONCE), AT_ONCE)
        if LANES == 4:
            totals = values[0:3]
        else:
            for lane in tl.static_range(first, first + AT_ONCE):
                totals = _blend(totals, lane, values[lane - first], factors)
    return totals


@triton.jit(do_not_specialize_on_alignment=["out", "image", "pixel_weights"])
def _transform(
    out, out_strides, image, image_strides, pixel_weights, pixel_weights_strides,
    packed, packed_stride, weights, vertices, panels, count, size, height, width,
    LANES: tl.constexpr, BITS: tl.constexpr, TETRAHEDRAL: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    piece, rest = split_program((width - 1) // TILE + 1)
    y, batch, start = rest % height, rest // height, piece * TILE
    x = tl.arange(0, TILE)
    end = end_of_row(start, width)
    exists = x < end
    cells, fractions = (), ()
    for c in tl.static_range(3):
        value = load(at(image, image_strides, batch, c, y, start, x), exists)
        cell, fraction, _ = _cell(value, size, None if vertices is None else vertices + (batch * 3 + c) * size, BITS)
        cells += (cell,)
        fractions += (fraction,)
    offsets, shares = _corners(fractions[0], fractions[1], fractions[2], size, TETRAHEDRAL)
    corner = cells[0] + size * (cells[1] + size * cells[2])
    place = packed + batch * packed_stride * LANES + corner[:, None] * LANES
    totals = (tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32))
    for panel in range(panels):
        factors = ()
        for k in tl.static_range(5 if LANES == 16 else 0):
            n = panel * 5 + k
            weighted = x < tl.where(n < count, end, 0)
            factor = load(at(pixel_weights, pixel_weights_strides, batch, n, y, start, x), weighted, 0.0)
            factors += (factor if weights is None else factor * tl.load(weights + batch * count + n, n < count, 0.0),)
        totals = _look_up(totals, place, offsets, shares, factors, LANES, TILE)
        place += size * size * size * LANES
    for c in tl.static_range(3):
        store(at(out, out_strides, batch, c, y, start, x), totals[c], exists)


def lut_transform(
    out: Tensor,
    image: Tensor,
    packed: Tensor,
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    vertices: Tensor | None,
    tetrahedral: bool,
) -> None:
    """Fills `out` (B, 3, H, W) from `image`, packed tables (float16 or float32), weights (B, N) and vertices (B, 3, D),
    both contiguous float32, and pixel_weights (B, N, H, W). Without pixel_weights, `packed` includes `weights`."""
    own, panels, size, _, _, lanes = packed.shape
    height, width = joined(*image.shape[2:], out, image, pixel_weights)
    tile = TILE if lanes == 4 else PANEL_TILE
    launch(
        _transform, image.shape[0] * height * triton.cdiv(width, tile), out,
        *with_strides(out, image, pixel_weights), packed, panels * size**3 if own > 1 else 0,
        weights if pixel_weights is not None else None, vertices, panels,
        0 if pixel_weights is None else pixel_weights.shape[1], size, height, width, lanes,
        0 if vertices is None else (size - 2).bit_length(), bool(tetrahedral), tile,
    )  # fmt: skip


# ---- backward ----


@triton.jit
def _add(pointers, values, scale, exists=None):
    """Adds to float32 sums or, where `scale` is given, to int64 sums of values · scale, which do not depend on the
    order."""
    if scale is not None:
        values = tl.floor(values * tl.load(scale) + 0.5).to(tl.int64)
    tl.atomic_add(pointers, values, exists, sem="relaxed")


@triton.jit
def _across(s00, s10, s01, s11, f, g):
    """Bilinear interpolation. (s00 + f · (s10 - s00) would be NaN between infinite corners.)"""
    return (1 - g) * ((1 - f) * s00 + f * s10) + g * ((1 - f) * s01 + f * s11)


@triton.jit
def _slopes(s, r, g, b, offsets, size, TETRAHEDRAL: tl.constexpr):
    """The derivatives by r, g and b of the interpolation between values `s` at the vertices of `_corners`."""
    if TETRAHEDRAL:
        first, second, third = s[1] - s[0], s[2] - s[1], s[3] - s[2]
        one, two = offsets[1].reshape(r.shape[0]), (offsets[2] - offsets[1]).reshape(r.shape[0])
        by_r = tl.where(one == 1, first, tl.where(two == 1, second, third))
        by_g = tl.where(one == size, first, tl.where(two == size, second, third))
        by_b = tl.where(one == size * size, first, tl.where(two == size * size, second, third))
        return by_r, by_g, by_b
    else:
        by_r = _across(s[1], s[3], s[5], s[7], g, b) - _across(s[0], s[2], s[4], s[6], g, b)
        by_g = _across(s[2], s[3], s[6], s[7], r, b) - _across(s[0], s[1], s[4], s[5], r, b)
        by_b = _across(s[4], s[5], s[6], s[7], r, g) - _across(s[0], s[1], s[2], s[3], r, g)
        return by_r, by_g, by_b


@triton.jit
def _all_weights(r, g, b, TETRAHEDRAL: tl.constexpr):
    """The weights of all eight vertices of a cell. Tetrahedral: the smallest fraction along axes where the vertex is
    the upper one, minus the largest along the others, or zero if that is negative; so four or more are zero."""
    shares = ()
    for i in tl.static_range(8):
        if TETRAHEDRAL:
            low, high = tl.zeros_like(r), tl.zeros_like(r) + 1
            for c in tl.static_range(3):
                if i >> c & 1:
                    high = tl.minimum(high, (r, g, b)[c])
                else:
                    low = tl.maximum(low, (r, g, b)[c])
            shares += (tl.maximum(high - low, 0.0),)
        else:
            shares += ((b if i // 4 else 1 - b) * (g if i // 2 % 2 else 1 - g) * (r if i % 2 else 1 - r),)
    return shares


@triton.jit
def _scatter(
    sums, scale, gradients, corner, offsets, shares, fractions, exists, size,
    LANES: tl.constexpr, TETRAHEDRAL: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Adds share · gradient to the vertices of every pixel's cell.

    Atomic additions of many pixels to the same cell would serialise. So the program checks the cells of a few pixels,
    and where many of its pixels share one, sums them first."""
    lanes, which, x = tl.arange(0, 4), tl.arange(0, 8), tl.arange(0, TILE)
    vertices = which % 2 + size * (which // 2 % 2 + size * (which // 4))
    separate, untried = exists, exists
    for _ in range(TRIES):
        first = tl.min(tl.where(untried, x, TILE))
        cell = tl.sum(tl.where(x == first, corner, 0))
        here = untried & (corner == cell)
        untried = untried & (corner != cell)
        if tl.sum(here.to(tl.int32)) > TILE // 16:
            separate = separate & (corner != cell)
            s = _all_weights(fractions[0], fractions[1], fractions[2], TETRAHEDRAL)
            for group in tl.static_range(LANES // 4):
                gradient = tl.where(here[:, None], gradients[group], 0.0)
                p = ()
                for i in tl.static_range(8):
                    p += (s[i][:, None] * gradient,)
                even = tl.join(tl.join(p[0], p[4]), tl.join(p[2], p[6]))
                odd = tl.join(tl.join(p[1], p[5]), tl.join(p[3], p[7]))
                total = tl.sum(tl.join(even, odd), 0).reshape(4, 8)
                to = sums + (cell + vertices)[None, :] * LANES + group * 4 + lanes[:, None]
                _add(to, total, scale)
    for group in tl.static_range(LANES // 4):
        for i in tl.static_range(4 if TETRAHEDRAL else 8):
            to = sums + (corner[:, None] + offsets[i]) * LANES + group * 4 + lanes[None, :]
            _add(to, shares[i][:, None] * gradients[group], scale, separate[:, None])


@triton.jit
def _add_by_cell(sums, scale, cells, by_low, by_high, left, size):
    """Adds the contributions to the lower and the upper end of each pixel's cell on one axis, cell by cell, so that a
    program adds to an address at most twice."""
    while tl.max(left.to(tl.int32)) > 0:
        cell = tl.min(tl.where(left, cells, size))
        here = left & (cells == cell)
        left = left & (cells != cell)
        _add(sums + cell, tl.sum(tl.where(here, by_low, 0.0)), scale)
        _add(sums + cell + 1, tl.sum(tl.where(here, by_high, 0.0)), scale)


@triton.jit
def _gradient(g, factors, group: tl.constexpr, LANES: tl.constexpr):
    """The gradient of four lanes of a table: the output's, times the factors of the tables."""
    if LANES == 4:
        parts = (g[0], g[1], g[2], tl.zeros_like(g[0]))
    else:
        last = g[group] * factors[4] if group < 3 else tl.zeros_like(g[0])
        parts = (g[0] * factors[group], g[1] * factors[group], g[2] * factors[group], last)
    return from_columns(parts, 4).reshape(g[0].shape[0], 4)


@triton.jit
def _store_weight_gradient(by_table, n, to, strides, weights, batch, y, start, x, end, count):
    """The gradient of the pixel weight of table n: `by_table`, times the table's weight for the image."""
    factor = 1.0 if weights is None else tl.load(weights + batch * count + n, n < count, 0.0)
    store(at(to, strides, batch, n, y, start, x), by_table * factor, x < tl.where(n < count, end, 0))


@triton.jit(do_not_specialize_on_alignment=["grad_image", "grad_pixel_weights", "grad", "image", "pixel_weights"])
def _backward(
    grad_image, grad_image_strides, grad_pixel_weights, grad_pixel_weights_strides,
    grad, grad_strides, image, image_strides, pixel_weights, pixel_weights_strides,
    table_sums, vertex_sums, packed, packed_stride, weights, vertices, table_scale, vertex_scale,
    panels, count, size, height, width,
    LANES: tl.constexpr, BITS: tl.constexpr, TETRAHEDRAL: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    piece, rest = split_program((width - 1) // TILE + 1)
    y, batch, start = rest % height, rest // height, piece * TILE
    x = tl.arange(0, TILE)
    end = end_of_row(start, width)
    exists = x < end
    cells, fractions, rises, g = (), (), (), ()
    for c in tl.static_range(3):
        value = load(at(image, image_strides, batch, c, y, start, x), exists)
        cell, fraction, rise = _cell(value, size, None if vertices is None else vertices + (batch * 3 + c) * size, BITS)
        cells += (cell,)
        fractions += (fraction,)
        rises += (rise,)
        g += (load(at(grad, grad_strides, batch, c, y, start, x), exists, 0.0),)
    offsets, shares = _corners(fractions[0], fractions[1], fractions[2], size, TETRAHEDRAL)
    corner = cells[0] + size * (cells[1] + size * cells[2])
    zero = tl.zeros([TILE], tl.float32)
    by_fraction = (zero, zero, zero)
    for panel in range(panels):
        table = packed + (batch * packed_stride + tl.cast(panel, tl.int64) * size * size * size) * LANES
        factors, blend = (), ()  # per table of the panel: the pixel's weight, and the same times the image's weight
        for k in tl.static_range(5 if LANES == 16 else 0):
            n = panel * 5 + k
            weighted = x < tl.where(n < count, end, 0)
            factor = load(at(pixel_weights, pixel_weights_strides, batch, n, y, start, x), weighted, 0.0)
            factors += (factor,)
            blend += (factor if weights is None else factor * tl.load(weights + batch * count + n, n < count, 0.0),)
        if table_sums is not None:
            gradients = ()
            for group in tl.static_range(LANES // 4):
                gradients += (_gradient(g, factors, group, LANES),)
            _scatter(
                table_sums + (batch * panels + panel) * size * size * size * LANES, table_scale, gradients, corner,
                offsets, shares, fractions, exists, size, LANES, TETRAHEDRAL, TILE,
            )  # fmt: skip
        if grad_image is not None or vertex_sums is not None or grad_pixel_weights is not None:
            at_vertices = (zero, zero, zero, zero) if TETRAHEDRAL else (zero, zero, zero, zero, zero, zero, zero, zero)
            by_last = zero
            for group in tl.static_range(LANES // 4):
                gradient = _gradient(g, blend, group, LANES)
                values = tl.zeros([TILE, 4], tl.float32)
                for i in tl.static_range(4 if TETRAHEDRAL else 8):
                    lanes = group * 4 + tl.arange(0, 4)[None, :]
                    vertex = tl.load(table + (corner[:, None] + offsets[i]) * LANES + lanes)
                    values += shares[i][:, None] * vertex
                    total = at_vertices[i] + tl.sum(vertex * gradient, 1)
                    at_vertices = at_vertices[0:i] + (total,) + at_vertices[i + 1 : 8]
                if grad_pixel_weights is not None:
                    by_lane = columns(values.reshape(TILE * 4), 4)
                    _store_weight_gradient(
                        g[0] * by_lane[0] + g[1] * by_lane[1] + g[2] * by_lane[2], panel * 5 + group,
                        grad_pixel_weights, grad_pixel_weights_strides, weights, batch, y, start, x, end, count,
                    )  # fmt: skip
                    if group < 3:
                        by_last += g[group] * by_lane[3]
            if grad_pixel_weights is not None:
                _store_weight_gradient(
                    by_last, panel * 5 + 4,
                    grad_pixel_weights, grad_pixel_weights_strides, weights, batch, y, start, x, end, count,
                )  # fmt: skip
            slopes = _slopes(at_vertices, fractions[0], fractions[1], fractions[2], offsets, size, TETRAHEDRAL)
            by_fraction = (by_fraction[0] + slopes[0], by_fraction[1] + slopes[1], by_fraction[2] + slopes[2])
    for c in tl.static_range(3):
        by_value = tl.where(rises[c] > 0, by_fraction[c] * rises[c], 0.0)
        if grad_image is not None:
            store(at(grad_image, grad_image_strides, batch, c, y, start, x), by_value, exists)
        if vertex_sums is not None:
            by_low, by_high = by_value * (fractions[c] - 1), -by_value * fractions[c]
            there = exists & (rises[c] > 0)
            _add_by_cell(vertex_sums + (batch * 3 + c) * size, vertex_scale, cells[c], by_low, by_high, there, size)


def lut_transform_backward(
    grad_image: Tensor | None,
    table_sums: Tensor | None,
    grad_pixel_weights: Tensor | None,
    vertex_sums: Tensor | None,
    grad: Tensor,
    image: Tensor,
    packed: Tensor,
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    vertices: Tensor | None,
    table_scale: Tensor | None,
    vertex_scale: Tensor | None,
    tetrahedral: bool,
) -> None:
    """Fills grad_image and grad_pixel_weights. Adds to table_sums (B, panels, D, D, D, lanes) the gradient of packed
    tables, which excludes `weights` where there are pixel_weights; and to vertex_sums (B, 3, D) that of vertices.

    Sums are float32 or, for reproducible results, int64, scaled by `table_scale` and `vertex_scale` (float32, one
    element). packed is float32."""
    own, panels, size, _, _, lanes = packed.shape
    height, width = joined(*image.shape[2:], grad_image, grad_pixel_weights, grad, image, pixel_weights)
    tables = (packed, panels * size**3 if own > 1 else 0, weights if pixel_weights is not None else None, vertices)
    count = 0 if pixel_weights is None else pixel_weights.shape[1]
    bits = 0 if vertices is None else (size - 2).bit_length()
    # With panels of tables, a thread has enough registers for one pixel, and for the sums of the tables or the other
    # gradients, but not for both in one pass.
    passes = [(grad_image, grad_pixel_weights, table_sums, vertex_sums)]
    if lanes == 16:
        passes = [(None, None, table_sums, None), (grad_image, grad_pixel_weights, None, vertex_sums)]
    for to_image, to_weights, to_tables, to_vertices in passes:
        if to_image is None and to_weights is None and to_tables is None and to_vertices is None:
            continue
        launch(
            _backward, image.shape[0] * height * triton.cdiv(width, BACKWARD_TILE), image,
            *with_strides(to_image, to_weights, grad, image, pixel_weights), to_tables, to_vertices, *tables,
            table_scale, vertex_scale, panels, count, size, height, width,
            lanes, bits, bool(tetrahedral), BACKWARD_TILE, num_warps=8 if lanes == 16 else 4,
        )  # fmt: skip
