"""lut_1d_transform: a 1D lookup table for each channel, optionally followed by a 3D LUT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastenh.backends import Kernels
from fastenh.ops import lut
from fastenh.ops.op import FULL_SCALE, Op, check_image, check_is_tensor, check_tensor, from_float, to_float


def lut_1d_transform(
    image: Tensor,
    tables: Tensor,
    luts: Tensor | None = None,
    *,
    domain: Tensor | None = None,
    interpolation: str = "trilinear",
    out: Tensor | None = None,
) -> Tensor:
    """Applies a 1D table to each channel and then, if `luts` is given, a 3D LUT.

        position = (x − low_c) / (high_c − low_c) · (S − 1), clamped to 0 ... S − 1
        out(c, p) = tables[b, c] at the position of x = image(c, p), linearly interpolated

    With `luts`, the result is lut_transform(out, luts), computed in one pass over the image, without rounding or
    clamping in between. Tables of two entries, [0, 1], scale the domain of a 3D LUT to [0, 1] at almost no cost.

    Positions are more precise than float32: a value on an entry returns exactly that entry, and 65536 entries are as
    exact as 2. Values outside the domain, including infinity, get the first or the last entry. NaN stays NaN; with
    `luts`, all three channels become NaN.

    Args:
        image: (B, 3, H, W), float16, bfloat16, float32, float64, or uint8 and uint16 at full scale; any strides.
        tables: (B, 3, S), or (1, 3, S) for all images, 2 <= S <= 65536: the entries for R, G and B, evenly spaced over
            the domain.
        luts: (B, 3, D, D, D), or (1, 3, D, D, D), one 3D LUT for each image, as in `lut_transform`; 2 <= D <= 256.
        domain: (B, 2, 3), or (1, 2, 3) for all images: for R, G and B, the values at the first entries and those at the
            last entries; low < high. Default: 0 and 1.
        interpolation: "trilinear" or "tetrahedral", for `luts`.
        out: the tensor to write to, with the shape and dtype of `image`; may be `image` itself.

    `tables`, `luts` and `domain` may have any float dtype. Intermediate values are float32, on a GPU too.

    Returns:
        A tensor with the shape, dtype and memory format of `image`. Floats are not clamped; integers are clamped and
        rounded to nearest. Differentiable in all four tensors. The gradient by the image is zero at the ends of the
        domain and outside it; on an entry, it is the slope of the cell above. On a GPU the gradients of `tables` and
        `luts` are reproducible only under `torch.use_deterministic_algorithms(True)`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype, device or name, in one line: what, expected, got.
    """
    return _op(Arguments(image, tables, luts, domain, interpolation), out=out)


class Arguments(NamedTuple):
    image: Tensor
    tables: Tensor
    luts: Tensor | None
    domain: Tensor | None
    interpolation: str


def _shape(args: Arguments) -> Sequence[int]:
    op = "lut_1d_transform"
    image, tables, luts, domain, interpolation = args
    check_image(op, image)
    lut.check_interpolation(op, interpolation)
    batch = image.shape[0]
    check_tensor(op, "tables", tables, (batch, 3, "S"), image, shared=True)
    if not 2 <= tables.shape[2] <= 65536:
        raise ValueError(f"{op}: tables: expected 2 <= S <= 65536; got S = {tables.shape[2]}")
    if luts is not None:
        check_is_tensor(op, "luts", luts)
        size = luts.shape[-1] if luts.dim() else 0
        check_tensor(op, "luts", luts, (batch, 3, size, size, size) if size else (batch, 3, *"DDD"), image, shared=True)
        if not 2 <= size <= 256:
            raise ValueError(f"{op}: luts: expected 2 <= D <= 256; got D = {size}")
    if domain is not None:
        check_tensor(op, "domain", domain, (batch, 2, 3), image, shared=True)
    return image.shape


def _reference(args: Arguments) -> Tensor:
    image, tables, luts, domain, interpolation = args
    dtype, last = to_float(*args[:-1]).dtype, tables.shape[-1] - 1
    x = image.double()  # float32 positions in a long table would be off by up to 1/256
    x = x / FULL_SCALE[image.dtype] if image.dtype in FULL_SCALE else x
    ends = x.new_tensor([[[0.0] * 3, [1.0] * 3]]) if domain is None else domain.double()
    low, high = ends[..., None, None].unbind(1)
    inside, scale = (x > low) & (x < high), last / (high - low)
    beyond = ((x - low) * scale).detach().clamp(0, last)
    position = torch.where(inside, (torch.where(inside, x, low.detach()) - low) * scale, beyond)
    cell = position.detach().nan_to_num(0.0).floor().clamp(max=last - 1)
    # The gradient at an entry is the slope of the cell above it.
    on_next = ((position - cell).detach().to(dtype) == 1) & (cell < last - 1)
    cell = cell + on_next
    fraction, cell = (position - cell).to(dtype), cell.long().flatten(2)
    entries = tables.to(dtype).expand(x.shape[0], -1, -1)
    first, second = (entries.gather(2, cell + step).view_as(fraction) for step in (0, 1))
    result = (1 - fraction) * first + fraction * second
    if luts is not None:
        result = lut.reference(lut.Arguments(result, luts[:, None], None, None, None, interpolation))
    return from_float(result, image.dtype)


def _dense(t: Tensor) -> Tensor:
    """Float32 with contiguous values for each image, as kernels require. Keeps a batch stride of 0."""
    return t[:1].float().contiguous().expand(t.shape) if t.stride(0) == 0 else t.float().contiguous()


def _run(kernels: Kernels, out: Tensor, args: Arguments) -> None:
    image, tables, luts, domain, interpolation = args
    shaping = _dense(tables), lut.contiguous(domain)
    if luts is None:
        kernels["lut_1d_transform"](out, image, *shaping)
        return
    copies = 1 if luts.stride(0) == 0 else luts.shape[0]
    luts = luts[:1] if copies == 1 else luts[:, None]
    if "lut_1d_transform_3d" in kernels and not lut.is_small(kernels, image, luts, copies):
        packed = lut.pack(kernels, luts, None, False, torch.float32)
        kernels["lut_1d_transform_3d"](out, image, *shaping, packed, interpolation == "tetrahedral")
        return
    between = torch.empty_like(image, dtype=torch.float32)
    kernels["lut_1d_transform"](between, image, *shaping)
    result = torch.ops.fastenh.lut_transform(between, luts, None, None, None, interpolation)
    out.copy_(from_float(result, out.dtype))


def _run_backward(kernels: Kernels, gradients: Sequence[Tensor | None], grad: Tensor, args: Arguments) -> None:
    image, tables, luts, domain, interpolation = args
    grad_image, grad_tables, grad_luts, grad_domain = gradients
    shaping = _dense(tables), lut.contiguous(domain)
    if luts is not None:
        between = torch.empty_like(image, dtype=torch.float32)
        kernels["lut_1d_transform"](between, image, *shaping)
        further = any(g is not None for g in (grad_image, grad_tables, grad_domain))
        needs = [further, grad_luts is not None, False, False, False]
        found = torch.ops.fastenh.lut_transform_backward(
            grad, between, luts.float()[:, None], None, None, None, interpolation, needs
        )
        if grad_luts is not None:
            grad_luts.copy_(found[-1][:, 0])
        if not further:
            return
        grad = found[0]
    by_image = grad_image
    if grad_domain is not None:
        by_image = torch.empty_like(image, dtype=torch.float32)
    if kernels.gpu:
        sums = scale = None
        if grad_tables is not None:
            deterministic = torch.are_deterministic_algorithms_enabled()
            dtype = torch.int64 if deterministic else torch.float32
            sums = torch.zeros((len(image), *tables.shape[1:]), dtype=dtype, device=image.device)
            scale = lut.fixed_point_scale(image, lut.max_abs(grad)) if deterministic else None
        kernels["lut_1d_transform_backward"](by_image, sums, scale, grad, image, *shaping)
        if grad_tables is not None and sums is not None:
            grad_tables.copy_(sums if scale is None else sums.double() / scale)
    else:
        sums, parts = None, torch.get_num_threads()
        if grad_tables is not None:
            parts = min(parts, 1 + lut.SCRATCH // (12 * tables[0].numel()))
            sums = torch.zeros((len(image), parts, 3, *tables.shape[1:]), dtype=torch.float32)
        kernels["lut_1d_transform_backward"](by_image, sums, grad, image, *shaping, parts)
        if grad_tables is not None and sums is not None:
            grad_tables.copy_(sums[:, :, :, 2].sum(1))
    if grad_domain is not None and domain is not None and by_image is not None:
        low, high = domain.float()[..., None, None].unbind(1)
        place = ((image.float() - low) / (high - low)).nan_to_num(0.0).clamp(0, 1)
        shares = (by_image * (place - 1)).sum((2, 3)), -(by_image * place).sum((2, 3))
        grad_domain.copy_(torch.stack(shares, 1))
        if grad_image is not None:
            grad_image.copy_(by_image)


_op = Op(
    "lut_1d_transform",
    Arguments,
    shape=_shape,
    reference=_reference,
    run=_run,
    run_backward=_run_backward,
    pointwise=True,
    dims=(4, 3, 5, 3),
)
