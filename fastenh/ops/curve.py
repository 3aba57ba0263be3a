"""curve_iterate: light-enhancement curves, applied iteratively (Zero-DCE, Zero-DCE++, SCL-LLE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.backends import Kernels
from fastenh.ops.op import Op, check_image, check_int, check_tensor, from_float, to_float


def curve_iterate(image: Tensor, curves: Tensor, iterations: int = 8, *, out: Tensor | None = None) -> Tensor:
    """Applies x <- x + r·(x² - x) `iterations` times, with a curve parameter r for every pixel and channel.

    These are the light-enhancement curves of Zero-DCE (Guo et al., CVPR 2020). Note the sign: r > 0 darkens, as in the
    published code, where LE(x) = x + r·(x² - x).

    Args:
        image: (B, 3, H, W), float16, bfloat16, float32, float64, or uint8 and uint16 at full scale; any strides.
        curves: (B, 3·iterations, h, w), with channels 3·i to 3·i + 2 for R, G and B of iteration i; or (B, 3, h, w),
            shared by all iterations. Any float dtype. Where (h, w) is not (H, W), the curves are resampled on the fly:
            bilinear, align_corners=True.
        iterations: 1 to 1024.
        out: the tensor to write to, with the shape and dtype of `image`; may be `image` itself.

    Returns:
        Shape, dtype and memory format of `image`. Floats are not clamped; integers are clamped and rounded to nearest.
        Differentiable in `image` and `curves`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype or device, in one line: what, expected, got.
    """
    return _op(Arguments(image, curves, iterations), out=out)


class Arguments(NamedTuple):
    image: Tensor
    curves: Tensor
    iterations: int


def _shape(args: Arguments) -> Sequence[int]:
    image, curves, iterations = args
    check_image("curve_iterate", image)
    check_int("curve_iterate", "iterations", iterations, 1, 1024)
    check_tensor("curve_iterate", "curves", curves, (image.shape[0], "C", "h", "w"), image)
    if curves.shape[1] not in (3, 3 * iterations):
        raise ValueError(
            f"curve_iterate: curves: expected 3·iterations = {3 * iterations} channels, or 3; got {curves.shape[1]}"
        )
    return image.shape


def _reference(args: Arguments) -> Tensor:
    image, curves, iterations = args
    x = to_float(image, curves)
    r = curves.to(x.dtype)
    if r.shape[-2:] != x.shape[-2:]:
        r = F.interpolate(r, x.shape[-2:], mode="bilinear", align_corners=True)
    for i in range(iterations):
        x = x + (r if r.shape[1] == 3 else r[:, 3 * i : 3 * i + 3]) * (x * x - x)
    return from_float(x, image.dtype)


def _run(kernels: Kernels, out: Tensor, args: Arguments) -> None:
    kernels["curve_iterate"](out, *args)


def _run_backward(kernels: Kernels, gradients: Sequence[Tensor | None], grad: Tensor, args: Arguments) -> None:
    image, curves, _ = args
    grad_image, grad_curves = gradients
    scratch = None
    if curves.shape[-2:] != image.shape[-2:]:
        batch, channels, height, width = curves.shape
        if kernels.gpu:
            scratch = _corners(image, curves, needed=grad_curves is not None)
        elif grad_curves is not None:
            # The kernel sums bands of a map's rows in parallel and keeps three float32 rows per band, 16 MiB in total.
            bands = max(1, min(height, 64, 2**24 // (batch * channels * 3 * (width + 1) * 4)))
            shape = (batch, 3, bands, 3, channels // 3, width + 1)
            scratch = torch.empty(shape, dtype=torch.float32, device=image.device)
    kernels["curve_iterate_backward"](grad_image, grad_curves, scratch, grad, *args)


def _corners(image: Tensor, curves: Tensor, needed: bool) -> Tensor:
    """Scratch memory for the gradients of resampled curves on a GPU. Each tile of the image writes four sums for each
    map cell that it touches, one for each of the map's points at the cell's corners. Empty if not needed.

    (B, C, bands of rows, tiles in a band, cells, 4): a tile is up to 128 columns of up to 16 rows that lie in one row
    of cells. (Triton's kernels use the same memory in another layout, which never needs more.)
    """
    (height, width), (batch, channels, map_height, map_width) = image.shape[-2:], curves.shape
    bands = height  # each row is in a separate cell
    if map_height < height:
        rows = height if map_height == 1 else -(-(height - 1) // (map_height - 1))
        bands = map_height * -(-rows // 16)
    cells = min(128, width)
    if map_width < width:  # as many as 128 columns can span, plus what rounding of positions can add
        cells = min(map_width, int(127 * (map_width - 1) / (width - 1) + width / 2**21) + 3)
    shape = (batch, channels, bands, -(-width // 128), cells if needed else 0, 4)
    return torch.empty(shape, dtype=torch.float32, device=image.device)


_op = Op(
    "curve_iterate",
    Arguments,
    shape=_shape,
    reference=_reference,
    run=_run,
    run_backward=_run_backward,
    pointwise=True,
    dims=(4, 4),
)
