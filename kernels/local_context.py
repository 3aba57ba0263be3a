"""local_context_retouch in Triton: LUTs weighted at every pixel by its local context, in one pass over the image.

Layers are matrix products, rows of pixels times weights, on tensor cores: neighbours -> features -> scores of the
neighbours, and voxels -> hidden channels -> factors of the tables. Only a few features or hidden channels exist at a
time: what they contribute to the next layer is accumulated. Between the products, for softmax, voxels and tables, every
thread has one pixel. The weights stay in shared memory while a program works down its rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lut import _cell, _corners, _look_up, lut_pack
from .pixels import at, columns, end_of_row, launch, load, split_program, store, with_strides

__all__ = ["local_context_retouch", "lut_pack"]

# By the tables' dtype: pixels of a row that a program computes at a time, channels of a layer that it computes at a
# time, and warps. The sizes for float16 suit Hopper's tensor cores; those for float32 keep everything in registers.
SIZES = {torch.float16: (128, 64, 4), torch.float32: (64, 16, 2)}
ROWS = 8  # rows per program
KEPT = 80 << 10  # bytes of weights that a program keeps in shared memory at most
DEPTH = tl.constexpr(16)  # columns of a matrix, the minimum of tensor cores
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _neighbour(image, strides, batch, y, start, x, height, begin, end, q: tl.constexpr, k: tl.constexpr):
    """Neighbour q, in the order of `context_voxels`, of pixels start + x of row y; zero outside the image."""
    dy: tl.constexpr = q // k % k - k // 2
    dx: tl.constexpr = q % k - k // 2
    row_end = tl.where((y + dy >= 0) & (y + dy < height), end, begin)  # rows outside the image are empty
    inside = (x >= begin - dx) & (x < row_end - dx)
    return load(at(image, strides, batch, q // (k * k), y + dy, start, x) + dx * strides[3], inside, 0)


@triton.jit
def _matrices(values, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """Joins columns to matrices of DEPTH columns. After the last one come a column of ones, whose weight is the layer's
    bias, and zeros."""
    matrices = ()
    for first in tl.static_range(0, len(values) + 1, DEPTH):
        parts = ()
        for q in tl.static_range(first, first + DEPTH):
            if q < len(values):
                parts += (values[q].to(DTYPE),)
            else:
                parts += (tl.full([TILE], 1.0 if q == len(values) else 0.0, DTYPE),)
        for bit in tl.static_range(4):
            pairs = ()
            for i in tl.static_range(DEPTH >> (bit + 1)):
                pairs += (tl.join(parts[i], parts[i + (DEPTH >> (bit + 1))]),)
            parts = pairs
        matrices += (parts[0].reshape(TILE, DEPTH),)
    return matrices


@triton.jit
def _layers(
    first, first_bias, second, inputs: tl.constexpr, channels, outputs, start, scale, output,
    C: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Weights of channels start to start + C of a layer, and those of the next layer from them to channels `output`."""
    channel = start + tl.arange(0, C)
    weights = ()
    for begin in tl.static_range(0, inputs + 1, DEPTH):
        q = begin + tl.arange(0, DEPTH)[:, None]
        exists = (channel < channels)[None, :]
        weight = tl.load(first + channel[None, :] * inputs + q, exists & (q < inputs), 0.0)
        weight += tl.load(first_bias + channel[None, :] + 0 * q, exists & (q == inputs), 0.0)
        weights += (weight.to(DTYPE),)
    exists = (channel < channels)[:, None] & (output < outputs)[None, :]
    weight = tl.load(second + output[None, :] * channels + channel[:, None], exists, 0.0)
    return weights, (weight * scale).to(DTYPE)


@triton.jit
def _through(total, matrices, layers, C: tl.constexpr, PRECISION: tl.constexpr):
    """Adds to `total` what some channels of a layer contribute to the next layer."""
    channels = tl.zeros([matrices[0].shape[0], C], tl.float32)
    for i in tl.static_range(len(matrices)):
        channels = tl.dot(matrices[i], layers[0][i], channels, input_precision=PRECISION)
    channels = channels.to(matrices[0].dtype)
    channels = tl.maximum(channels, tl.zeros_like(channels), tl.PropagateNan.ALL)
    return tl.dot(channels, layers[1], total, input_precision=PRECISION)


@triton.jit
def _both(
    total, matrices, kept, first, first_bias, second, inputs: tl.constexpr, channels, outputs, scale, output,
    C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the result of a layer and the next one, with weights from `kept` or, if that is empty, from memory."""
    if len(kept) > 0:
        for i in tl.static_range(len(kept)):
            total = _through(total, matrices, kept[i], C, PRECISION)
    else:
        for start in range(0, channels, C):
            layers = _layers(
                first, first_bias, second, inputs, channels, outputs, start, scale, output, C, matrices[0].dtype
            )
            total = _through(total, matrices, layers, C, PRECISION)
    return total


@triton.jit
def _softmax(scores, count: tl.constexpr):
    """Softmax to base 2."""
    largest = scores[0]
    for j in tl.static_range(1, count):
        largest = tl.maximum(largest, scores[j])
    shares, total = (), 0.0
    for j in tl.static_range(count):
        shares += (tl.exp2(scores[j] - largest),)
        total += shares[j]
    factor, attention = 1 / total, ()
    for j in tl.static_range(count):
        attention += (shares[j] * factor,)
    return attention


@triton.jit(do_not_specialize_on_alignment=["out", "image"])
def _retouch(
    out, out_strides, image, image_strides, packed, packed_stride, weights,
    features_weight, features_bias, attention_weight, attention_bias,
    hidden_weight, hidden_bias, head_weight, head_bias, size, height, width, features, hidden, count,
    k: tl.constexpr, J: tl.constexpr, C: tl.constexpr, FEATURES: tl.constexpr, HIDDEN: tl.constexpr,
    PANELS: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    piece, rest = split_program((width - 1) // TILE + 1)
    rows = (height - 1) // ROWS + 1
    top, batch, start = rest % rows * ROWS, rest // rows, piece * TILE
    dtype: tl.constexpr = packed.dtype.element_ty
    x, j, n = tl.arange(0, TILE), tl.arange(0, J), tl.arange(0, 8)
    end = end_of_row(start, width)
    begin = tl.maximum(-start, -TILE).to(tl.int32)

    to_scores, to_factors = (), ()
    for i in tl.static_range(FEATURES):
        to_scores += (_layers(features_weight, features_bias, attention_weight, 3 * k * k, features, k * k, i * C,
                              LOG2E, j, C, dtype),)  # fmt: skip
    for panel in tl.static_range(PANELS):
        layers = ()
        for i in tl.static_range(HIDDEN):
            layers += (_layers(hidden_weight, hidden_bias, head_weight, 3 * k * k, hidden, count, i * C, 1.0,
                               panel * 5 + n, C, dtype),)  # fmt: skip
        to_factors += (layers,)
    for y in range(top, tl.minimum(top + ROWS, height)):
        neighbours = ()
        for q in tl.static_range(3 * k * k):
            neighbours += (_neighbour(image, image_strides, batch, y, start, x, height, begin, end, q, k),)

        scores = tl.zeros([TILE, J], tl.float32)
        matrices = _matrices(neighbours, TILE, dtype)
        scores = _both(scores, matrices, to_scores, features_weight, features_bias, attention_weight, 3 * k * k,
                       features, k * k, LOG2E, j, C, PRECISION)  # fmt: skip
        scores += tl.load(attention_bias + j, j < k * k, 0.0)[None, :] * LOG2E
        attention = _softmax(columns(scores.reshape(TILE * J), J), k * k)
        voxels = ()
        for q in tl.static_range(3 * k * k):
            voxels += (neighbours[q] * attention[q % (k * k)],)
        matrices = _matrices(voxels, TILE, dtype)

        cells, fractions = (), ()
        for c in tl.static_range(3):
            cell, fraction, _ = _cell(neighbours[c * k * k + k * k // 2], size, None, 0)
            cells += (cell,)
            fractions += (fraction,)
        offsets, corners = _corners(fractions[0], fractions[1], fractions[2], size, False)
        corner = cells[0] + size * (cells[1] + size * cells[2])
        place = packed + batch * packed_stride * 16 + corner[:, None] * 16
        totals = (tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32))
        for panel in tl.static_range(PANELS):
            factors = tl.zeros([TILE, 8], tl.float32)
            m = panel * 5 + n
            factors = _both(factors, matrices, to_factors[panel], hidden_weight, hidden_bias, head_weight, 3 * k * k,
                            hidden, count, 1.0, m, C, PRECISION)  # fmt: skip
            factors += tl.load(head_bias + m, m < count, 0.0)[None, :]
            if weights is not None:
                factors *= tl.load(weights + batch * count + m, m < count, 0.0)[None, :]
            totals = _look_up(totals, place, offsets, corners, columns(factors.reshape(TILE * 8), 8), 16, TILE)
            place += size * size * size * 16
        for c in tl.static_range(3):
            store(at(out, out_strides, batch, c, y, start, x), totals[c], x < end)


def local_context_retouch(
    out: Tensor,
    image: Tensor,
    packed: Tensor,
    weights: Tensor | None,
    features_weight: Tensor,
    features_bias: Tensor,
    attention_weight: Tensor,
    attention_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
) -> None:
    tile, channels, warps = SIZES[packed.dtype]
    own, panels, size, *_ = packed.shape
    batch, _, height, width = image.shape
    k, features, hidden = features_weight.shape[-1], features_weight.shape[0], hidden_weight.shape[0]
    programs = batch * triton.cdiv(height, ROWS) * triton.cdiv(width, tile)
    inputs, scores = 3 * k * k, triton.next_power_of_2(k * k)
    weight_bytes = (inputs * (features + hidden) + scores * features + 8 * panels * hidden) * (
        2 if packed.dtype == torch.float16 else 8  # float32 in two parts
    )
    kept = weight_bytes <= KEPT
    launch(
        _retouch, programs, out, *with_strides(out, image), packed, panels * size**3 if own > 1 else 0, weights,
        features_weight, features_bias, attention_weight, attention_bias,
        hidden_weight, hidden_bias, head_weight, head_bias, size, height, width, features, hidden, head_bias.shape[0],
        k, scores, channels, triton.cdiv(features, channels) * kept, triton.cdiv(hidden, channels) * kept, panels,
        "tf32x3", tile, ROWS, num_warps=warps, num_stages=1,  # loads are too narrow for a pipeline
    )  # fmt: skip
