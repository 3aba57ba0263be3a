"""curve_iterate: light-enhancement curves, applied again and again (Zero-DCE, Zero-DCE++, SCL-LLE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.backends import Kernels
from fastenh.ops.op import Op, check_image, check_int, check_tensor, from_float, to_float


def curve_iterate(image: Tensor, curves: Tensor, iterations: int = 8, *, out: Tensor | None = None) -> Tensor:
    """Applies x <- x + r·(x² - x) `iterations` times, with a curve r for every pixel and channel.

    These are the light-enhancement curves of Zero-DCE (Guo et al., CVPR 2020); note the sign: r > 0 darkens, as in the
    published code, where LE(x) = x + r·(x² - x).

    Args:
        image: (B, 3, H, W), float16, bfloat16, float32, float64, or uint8 and uint16 at full scale; any strides.
        curves: (B, 3·iterations, h, w), curves 3·i to 3·i + 2 for the i-th iteration's R, G and B; or (B, 3, h, w),
            shared by all iterations. Any float dtype. Where (h, w) is not (H, W) the curves are resampled on the fly:
            bilinear, align_corners=True.
        iterations: how often, 1 to 1024.
        out: where to write, shape and dtype of `image`; may be `image` itself.

    Returns:
        Shape, dtype and memory format of `image`. Floats are not clamped; integers are clamped and rounded to nearest.
        Differentiable in `image` and `curves`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype or device, in one line: what, expected, got.
    """
    return _op(image, curves, iterations, out=out)


def _shape(image: Tensor, curves: Tensor, iterations: int) -> Sequence[int]:
    check_image("curve_iterate", image)
    check_int("curve_iterate", "iterations", iterations, 1, 1024)
    check_tensor("curve_iterate", "curves", curves, (image.shape[0], "C", "h", "w"), image)
    if curves.shape[1] not in (3, 3 * iterations):
        raise ValueError(
            f"curve_iterate: curves: expected 3·iterations = {3 * iterations} channels, or 3; got {curves.shape[1]}"
        )
    return image.shape


def _reference(image: Tensor, curves: Tensor, iterations: int) -> Tensor:
    x = to_float(image, curves)
    r = curves.to(x.dtype)
    if r.shape[-2:] != x.shape[-2:]:
        r = F.interpolate(r, x.shape[-2:], mode="bilinear", align_corners=True)
    for i in range(iterations):
        x = x + (r if r.shape[1] == 3 else r[:, 3 * i : 3 * i + 3]) * (x * x - x)
    return from_float(x, image.dtype)


def _run(kernels: Kernels, out: Tensor, image: Tensor, curves: Tensor, iterations: int) -> None:
    kernels["curve_iterate"](out, image, curves, iterations)


def _run_backward(
    kernels: Kernels,
    gradients: Sequence[Tensor | None],
    grad: Tensor,
    image: Tensor,
    curves: Tensor,
    iterations: int,
) -> None:
    grad_image, grad_curves = gradients
    scratch = None
    if curves.shape[-2:] != image.shape[-2:]:
        batch, channels, height, width = curves.shape
        if kernels.gpu:
            scratch = _corners(image, curves, needed=grad_curves is not None)
        elif grad_curves is not None:
            # The kernel sums bands of the maps' rows side by side and keeps three float32 rows of each, 16 MiB in all.
            bands = max(1, min(height, 64, 2**24 // (batch * channels * 3 * (width + 1) * 4)))
            shape = (batch, 3, bands, 3, channels // 3, width + 1)
            scratch = torch.empty(shape, dtype=torch.float32, device=image.device)
    kernels["curve_iterate_backward"](grad_image, grad_curves, scratch, grad, image, curves, iterations)


def _corners(image: Tensor, curves: Tensor, needed: bool) -> Tensor:
    """Where a GPU's kernels leave the gradients of resampled curves: of each tile of a picture four sums for each cell
    it touches, one for each of the map's points around the cell; empty if not needed.

    (B, C, bands of rows, tiles in a band, cells, 4): a tile is up to 128 columns of up to 16 rows that lie in one row
    of cells. (Triton's kernels fill the same memory their own way: they never need more.)
    """
    (height, width), (batch, channels, map_height, map_width) = image.shape[-2:], curves.shape
    bands = height  # each row in a cell of its own
    if map_height < height:
        rows = height if map_height == 1 else -(-(height - 1) // (map_height - 1))
        bands = map_height * -(-rows // 16)
    cells = min(128, width)
    if map_width < width:  # as many as 128 columns reach, and what rounding of positions adds
        cells = min(map_width, int(127 * (map_width - 1) / (width - 1) + width / 2**21) + 3)
    shape = (batch, channels, bands, -(-width // 128), cells if needed else 0, 4)
    return torch.empty(shape, dtype=torch.float32, device=image.device)


_op = Op(
    "curve_iterate",
    "Tensor image, Tensor curves, int iterations",
    shape=_shape,
    reference=_reference,
    run=_run,
    run_backward=_run_backward,
    pointwise=True,
    dims=(4, 4),
)
