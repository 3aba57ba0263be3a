"""lut_transform: colours through 3D lookup tables, blended with weights per image and per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastenh.backends import Kernels
from fastenh.ops.op import Op, check_float, check_image, check_tensor, from_float, to_float

LUTS_PER_PANEL = 5  # with weights per pixel: 5 LUTs x 3 channels in 16 adjacent floats
SMALL = 1 << 12  # lookups, up to which packing even a small LUT costs more than it saves
SCRATCH = 16 << 20  # bytes that a backward pass may use beyond the sums of its first thread


def lut_transform(
    image: Tensor,
    luts: Tensor,
    weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    *,
    vertices: Tensor | None = None,
    interpolation: str = "trilinear",
    out: Tensor | None = None,
) -> Tensor:
    """Maps every pixel's colour through N 3D lookup tables and blends the results.

        out(p) = Σₙ weights[b, n] · pixel_weights[b, n, p] · LUTₙ(image(p))

    Missing weights are ones; N > 1 requires `weights` or `pixel_weights`. A LUT holds output colours on a D x D x D
    grid of input colours, with axes (channel, B, G, R), R fastest, like the rows of a .cube file. Colours between grid
    points are interpolated. Without `vertices`, grid point i is at i / (D - 1). Values outside the grid clamp to its
    border; NaN in one channel makes the pixel NaN. Without `pixel_weights` the LUTs are blended first and looked up
    once, which gives the same up to rounding.

    Args:
        image: (B, 3, H, W) RGB in [0, 1], float16, bfloat16, float32, float64, or uint8 and uint16 at full scale; any
            strides.
        luts: (N, 3, D, D, D), or (B, N, 3, D, D, D) with separate LUTs for each image; 2 <= D <= 256. If you have one
            LUT for each image, (B, 3, D, D, D), pass `luts[:, None]`.
        weights: (B, N), or (1, N) for all images.
        pixel_weights: (B, N, H, W), or (1, N, H, W).
        vertices: (B, 3, D), or (1, 3, D), the positions of the grid points for R, G and B, increasing (AdaInt, Yang et
            al., CVPR 2022).
        interpolation: "trilinear" (8 vertices) or "tetrahedral" (4 vertices; Kasson et al. 1995).
        out: the tensor to write to, with the shape and dtype of `image`; may be `image` itself.

    LUTs, weights and vertices may be of any float dtype. Arithmetic is in float32, except on a GPU for float16 and
    uint8 images: there LUT entries are rounded to float16 and interpolated in float16. The error is at most 0.002 of
    the largest entry, and entries beyond ±65504 count as ±65504.

    Returns:
        Shape, dtype and memory format of `image`. Floats are not clamped; integers are clamped and rounded to nearest.
        Differentiable in all five tensors. The gradient of a value at or beyond the border of the grid is zero, as in
        `grid_sample`. Differences in `vertices` below 1e-10 count as 1e-10. On a GPU the gradients of `luts`, `weights`
        and `vertices` are reproducible only under `torch.use_deterministic_algorithms(True)`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype, device or name, in one line: what, expected, got.
    """
    return _op(Arguments(image, luts, weights, pixel_weights, vertices, interpolation), out=out)


class Arguments(NamedTuple):
    image: Tensor
    luts: Tensor
    weights: Tensor | None
    pixel_weights: Tensor | None
    vertices: Tensor | None
    interpolation: str


def _shape(args: Arguments) -> Sequence[int]:
    op = "lut_transform"
    image, luts, weights, pixel_weights, vertices, interpolation = args
    check_image(op, image)
    check_interpolation(op, interpolation)
    batch, _, height, width = image.shape
    check_luts(op, luts, image)
    count, size = luts.shape[-5], luts.shape[-1]
    if count > 1 and weights is None and pixel_weights is None:
        raise ValueError(
            f"{op}: weights: expected weights or pixel_weights to blend {count} LUTs; got neither"
            + (" (for one LUT per image, pass luts[:, None])" if luts.dim() == 5 else "")
        )
    if weights is not None:
        check_tensor(op, "weights", weights, (batch, count), image, shared=True)
    if pixel_weights is not None:
        check_tensor(op, "pixel_weights", pixel_weights, (batch, count, height, width), image, shared=True)
    if vertices is not None:
        check_tensor(op, "vertices", vertices, (batch, 3, size), image, shared=True)
    return image.shape


def check_interpolation(op: str, interpolation: str) -> None:
    """Raises ValueError unless `interpolation` is "trilinear" or "tetrahedral"."""
    if interpolation not in ("trilinear", "tetrahedral"):
        raise ValueError(f"{op}: interpolation: expected 'trilinear' or 'tetrahedral'; got {interpolation!r}")


def check_luts(op: str, luts: Tensor, image: Tensor, count: int | str = "N") -> None:
    """Raises unless `luts` are `count` LUTs (a letter stands for any number) for all images, or `count` for each."""
    check_float(op, "luts", luts, image)
    shape, batch, size = luts.shape, image.shape[0], luts.shape[-1] if luts.dim() else 0
    right = shape[-4:] == (3, size, size, size) and (len(shape) == 5 or (len(shape) == 6 and shape[0] == batch))
    if not right or (shape[-5] < 1 if isinstance(count, str) else shape[-5] != count):
        raise ValueError(f"{op}: luts: expected shape ({count}, 3, D, D, D) or (B, {count}, 3, D, D, D) with "
                         f"B = {batch}; got {tuple(luts.shape)}")  # fmt: skip
    if not 2 <= size <= 256:
        raise ValueError(f"{op}: luts: expected 2 <= D <= 256; got D = {size}")


def reference(args: Arguments) -> Tensor:
    image, luts, weights, pixel_weights, vertices, interpolation = args
    x = to_float(image, luts, weights, pixel_weights, vertices).flatten(2)  # (B, 3, P)
    size = luts.shape[-1]
    tables = luts.to(x.dtype).flatten(-3)  # (N, 3, D³) or (B, N, 3, D³)
    tables = tables.expand(x.shape[0], *tables.shape[-3:])
    if pixel_weights is None:
        factors = 1 if weights is None else weights.to(x.dtype)[:, :, None, None]
        tables, blend = (factors * tables).sum(1, keepdim=True), None
    else:
        blend = pixel_weights.to(x.dtype).flatten(2)[:, :, None]  # (B, N, 1, P)
        blend = blend if weights is None else blend * weights.to(x.dtype)[:, :, None, None]

    if vertices is None:
        inside = (x > 0) & (x < 1)
        position = torch.where(inside, x, x.detach().clamp(0, 1)) * (size - 1)
        cell = position.detach().nan_to_num(0.0).floor().clamp(max=size - 2)
        fraction = position - cell
    else:
        grid = vertices.to(x.dtype).expand(x.shape[0], -1, -1)
        cell = torch.zeros_like(x)
        for i in range(1, size - 1):
            cell = cell + (x.detach() > grid[:, :, i, None])
        low = grid.gather(2, cell.long())
        width = grid.gather(2, cell.long() + 1) - low
        fraction = (x - low) / (width + 1e-10)
        inside = (x > grid[:, :, :1]) & (x < grid[:, :, -1:])
        fraction = torch.where(inside, fraction, fraction.detach().clamp(0, 1))
    steps = torch.tensor([1, size, size * size], device=x.device)[:, None]
    corner = (cell.long() * steps).sum(1)  # (B, P): the lowest vertex of each pixel's cell

    def vertex(offset: Tensor | int) -> Tensor:  # (B, N, 3, P)
        index = (corner + offset)[:, None, None]
        return tables.gather(3, index.expand(*tables.shape[:3], index.shape[-1]))

    if interpolation == "trilinear":
        result = torch.zeros_like(tables[..., :1])
        for which in range(8):
            upper = [which >> c & 1 for c in range(3)]
            weight = torch.ones_like(x[:, 0])
            for c in range(3):
                weight = weight * (fraction[:, c] if upper[c] else 1 - fraction[:, c])
            result = result + weight[:, None, None] * vertex(upper[0] + size * upper[1] + size * size * upper[2])
    else:
        # Walk from the lowest vertex to the highest, one axis after the other, in order of decreasing fractions.
        ordered, order = fraction.sort(dim=1, descending=True, stable=True)
        path = steps.expand_as(order).gather(1, order).cumsum(1)
        spread = fraction.sum(1) * 0  # NaN where any channel is
        edges = [
            1 - ordered[:, 0] + spread,
            ordered[:, 0] - ordered[:, 1],
            ordered[:, 1] - ordered[:, 2],
            ordered[:, 2],
        ]
        result = edges[0][:, None, None] * vertex(0)
        for i in range(3):
            result = result + edges[i + 1][:, None, None] * vertex(path[:, i])
    result = result.sum(1) if blend is None else (blend * result).sum(1)
    return from_float(result.reshape(image.shape), image.dtype)


def _copies(luts: Tensor, weights: Tensor | None, per_pixel: bool) -> int:
    """How many packed copies of the LUTs are needed: one for all images, or one for each."""
    if luts.dim() == 6:
        return luts.shape[0]
    if per_pixel or weights is None or weights.stride(0) == 0:  # a stride of 0: the same weights for all images
        return 1
    return weights.shape[0]


def pack(kernels: Kernels, luts: Tensor, weights: Tensor | None, per_pixel: bool, dtype: torch.dtype) -> Tensor:
    """A packed copy of the LUTs, blended unless they are weighted per pixel: (B or 1, panels, D, D, D, lanes), with the
    lanes that csrc/lut.h describes."""
    copies = _copies(luts, weights, per_pixel)
    luts = luts[None] if luts.dim() == 5 else luts
    panels, lanes = (-(-luts.shape[1] // LUTS_PER_PANEL), 16) if per_pixel else (1, 4)
    packed = torch.empty((copies, panels, *luts.shape[3:], lanes), dtype=dtype, device=luts.device)
    kernels["lut_pack"](packed, luts, None if per_pixel else contiguous(weights))
    return packed


def _is_small(pixels: int, luts: Tensor) -> bool:
    """Whether a CPU transforms this many pixels faster with the LUTs as they are than with a packed copy."""
    return luts.shape[-5] * pixels <= max(luts.shape[-1] ** 3, SMALL)


def is_small(kernels: Kernels, image: Tensor, luts: Tensor, copies: int) -> bool:
    """Whether kernels should use the LUTs as they are, on any device; else `pack` makes this many packed copies."""
    pixels = image.numel() // 3
    if kernels.gpu:
        return "lut_transform_small" in kernels and 8 * pixels <= luts.shape[-1] ** 3
    return _is_small(pixels // copies, luts)


def contiguous(t: Tensor | None) -> Tensor | None:
    """Contiguous and float32, as kernels require."""
    return None if t is None else t.float().contiguous()


def _run(kernels: Kernels, out: Tensor, args: Arguments) -> None:
    image, luts, weights, pixel_weights, vertices, interpolation = args
    per_pixel = pixel_weights is not None
    name, tables = "lut_transform_small", luts
    if not is_small(kernels, image, luts, _copies(luts, weights, per_pixel)):
        # For results no finer than float16, a GPU reads half as much and interpolates two numbers per instruction.
        half = kernels.gpu and image.dtype in (torch.float16, torch.uint8)
        tables = pack(kernels, luts, weights, per_pixel, torch.float16 if half else torch.float32)
        name = "lut_transform"
    weights, vertices = contiguous(weights), contiguous(vertices)
    kernels[name](out, image, tables, weights, pixel_weights, vertices, interpolation == "tetrahedral")


def _run_backward(kernels: Kernels, gradients: Sequence[Tensor | None], grad: Tensor, args: Arguments) -> None:
    image, luts, weights, pixel_weights, vertices, interpolation = args
    if weights is not None or vertices is not None:
        args = Arguments(image, luts, contiguous(weights), pixel_weights, contiguous(vertices), interpolation)
    # With packed LUTs a backward pass has four times as much to clear, sum and pack as a forward pass.
    if not kernels.gpu and _is_small(image.shape[2] * image.shape[3] // 4, luts):
        _backward_small(kernels, gradients, grad, args)
        return
    packed = pack(kernels, luts, weights, pixel_weights is not None, torch.float32)
    run = _backward_on_gpu if kernels.gpu else _backward_on_cpu
    run(kernels, gradients, grad, packed, args)


def _backward_small(kernels: Kernels, gradients: Sequence[Tensor | None], grad: Tensor, args: Arguments) -> None:
    """All images in one call, without a packed copy of the LUTs."""
    image, luts, weights, pixel_weights, vertices, interpolation = args
    grad_image, grad_luts, grad_weights, grad_pixel_weights, grad_vertices = gradients
    parts = min(torch.get_num_threads(), 1 + image.numel() // (3 * SMALL))
    lut_sums = weight_sums = vertex_sums = None
    if grad_luts is not None:
        exact = grad_luts.dtype is torch.float32
        lut_sums = grad_luts.zero_() if exact else grad_luts.new_zeros(grad_luts.shape, dtype=torch.float32)
    if grad_weights is not None:
        weight_sums = grad_weights.new_zeros((len(image), parts, *grad_weights.shape[1:]), dtype=torch.float32)
    if grad_vertices is not None:
        vertex_sums = grad_vertices.new_zeros((len(image), parts, *grad_vertices.shape[1:]), dtype=torch.float32)
    kernels["lut_transform_backward_small"](
        grad_image, lut_sums, weight_sums, grad_pixel_weights, vertex_sums, grad, image, luts, weights, pixel_weights,
        vertices, interpolation == "tetrahedral", parts,
    )  # fmt: skip
    if grad_luts is not None and lut_sums is not None and lut_sums is not grad_luts:
        grad_luts.copy_(lut_sums)
    if grad_weights is not None and weight_sums is not None:
        grad_weights.copy_(weight_sums.sum(1))
    if grad_vertices is not None and vertex_sums is not None:
        grad_vertices.copy_(vertex_sums.sum(1))


# With packed LUTs, the kernels sum over the pixels the gradient of the packed tables. The gradients of LUTs and weights
# both follow from it.


def _backward_on_cpu(
    kernels: Kernels, gradients: Sequence[Tensor | None], grad: Tensor, packed: Tensor, args: Arguments
) -> None:
    """One image at a time, divided among as many threads as there are and as memory allows."""
    image, luts, weights, pixel_weights, vertices, interpolation = args
    grad_image, grad_luts, grad_weights, grad_pixel_weights, grad_vertices = gradients
    sum_tables = grad_luts is not None or grad_weights is not None
    bytes_per_part = 2 * packed[0].numel() * packed.element_size()
    parts = torch.get_num_threads()
    if sum_tables:
        parts = min(parts, 1 + SCRATCH // bytes_per_part)
    elif grad_vertices is None:
        parts *= 8  # nothing to sum: small parts balance the load
    tables = luts.float().expand(image.shape[0], *luts.shape[-5:])
    sums = None if grad_luts is None else tables.new_zeros(tables.shape[1:] if luts.dim() == 5 else tables.shape)
    for b in range(image.shape[0]):
        grad_packed = packed.new_zeros((parts, 2, *packed.shape[1:])) if sum_tables else None
        vertex_sums = packed.new_zeros((parts, 3, packed.shape[2])) if grad_vertices is not None else None
        kernels["lut_transform_backward"](
            grad_image, grad_packed, grad_pixel_weights, vertex_sums, grad, image, packed, weights, pixel_weights,
            vertices, interpolation == "tetrahedral", b, parts,
        )  # fmt: skip
        if grad_vertices is not None and vertex_sums is not None:
            grad_vertices[b] = vertex_sums.sum(0)
        if grad_packed is None:
            continue
        gradient = _unpack(grad_packed[:, 1].sum(0), luts.shape[-5])
        if sums is not None:
            factor = 1 if weights is None else weights[b][:, None, None, None, None]
            (sums if luts.dim() == 5 else sums[b]).add_(factor * gradient)
        if grad_weights is not None:
            grad_weights[b] = (gradient * tables[b]).sum((1, 2, 3, 4))
    if grad_luts is not None and sums is not None:
        grad_luts.copy_(sums)


def _backward_on_gpu(
    kernels: Kernels, gradients: Sequence[Tensor | None], grad: Tensor, packed: Tensor, args: Arguments
) -> None:
    """All images in one call. For torch's deterministic algorithms it sums integers, whose order does not matter."""
    image, luts, weights, pixel_weights, vertices, interpolation = args
    grad_image, grad_luts, grad_weights, grad_pixel_weights, grad_vertices = gradients
    batch, count = image.shape[0], luts.shape[-5]
    deterministic = torch.are_deterministic_algorithms_enabled()
    dtype = torch.int64 if deterministic else torch.float32
    table_sums = table_scale = vertex_sums = vertex_scale = None
    if grad_luts is not None or grad_weights is not None:
        table_sums = torch.zeros((batch, *packed.shape[1:]), dtype=dtype, device=image.device)
        if deterministic:
            table_scale = fixed_point_scale(image, max_abs(grad) * max_abs(pixel_weights))
    if grad_vertices is not None and vertices is not None:
        vertex_sums = torch.zeros((batch, 3, packed.shape[2]), dtype=dtype, device=image.device)
        if deterministic:
            slope = 6 * count * max_abs(packed) * max_abs(weights) / (vertices.diff().amin() + 1e-10)
            vertex_scale = fixed_point_scale(image, max_abs(grad) * max_abs(pixel_weights) * slope)
    kernels["lut_transform_backward"](
        grad_image, table_sums, grad_pixel_weights, vertex_sums, grad, image, packed, weights, pixel_weights,
        vertices, table_scale, vertex_scale, interpolation == "tetrahedral",
    )  # fmt: skip
    if grad_vertices is not None and vertex_sums is not None:
        grad_vertices.copy_(vertex_sums if vertex_scale is None else vertex_sums.double() / vertex_scale)
    if table_sums is None:
        return
    grad_tables = table_sums if table_scale is None else (table_sums.double() / table_scale).float()
    gradient = torch.stack([_unpack(table, count) for table in grad_tables])  # (B, N, 3, D, D, D)
    factor = 1 if weights is None else weights[..., None, None, None, None]
    if grad_luts is not None:
        product = factor * gradient
        grad_luts.copy_(product if luts.dim() == 6 else product.sum(0))
    if grad_weights is not None:
        grad_weights.copy_((gradient * luts.float()).sum((2, 3, 4, 5)))


def max_abs(t: Tensor | None) -> Tensor | float:
    """The largest magnitude, as a tensor, so that nothing waits for the GPU."""
    return 1.0 if t is None else torch.linalg.vector_norm(t, torch.inf, dtype=torch.float32)


def fixed_point_scale(image: Tensor, bound: Tensor | float) -> Tensor:
    """A power of two that scales numbers up to `bound` to integers whose sum over an image fits into 63 bits."""
    total = torch.as_tensor(bound, dtype=torch.float32, device=image.device) * (image.shape[-1] * image.shape[-2])
    return torch.exp2((61 - total.log2().ceil()).clamp(-100, 100))


def _unpack(packed: Tensor, count: int) -> Tensor:
    """(panels, D, D, D, lanes) -> (count, 3, D, D, D); a single blended table is expanded to all."""
    if packed.shape[-1] == 4:
        return packed[0, ..., :3].movedim(-1, 0).expand(count, -1, -1, -1, -1)
    groups = packed.unflatten(-1, (4, 4))  # tables 0 to 3 in lanes 0 to 2 of groups 0 to 3, table 4 in each lane 3
    tables = torch.cat([groups[..., :3], groups[..., :3, 3][..., None, :]], dim=-2)  # (panels, D, D, D, 5, 3)
    return tables.permute(0, 4, 5, 1, 2, 3).flatten(0, 1)[:count]


_op = Op(
    "lut_transform",
    Arguments,
    shape=_shape,
    reference=reference,
    run=_run,
    run_backward=_run_backward,
    pointwise=True,
    dims=(4, 6, 2, 4, 3),
)
