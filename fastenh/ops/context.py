"""context_voxels: the neighbours of every pixel, each weighted by its attention (LAM's local context voxel)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.backends import Kernels
from fastenh.ops.op import Op, check_image, check_tensor, from_float, to_float


def context_voxels(image: Tensor, attention: Tensor, kernel_size: int = 3, *, out: Tensor | None = None) -> Tensor:
    """The k x k neighbours of every pixel, each weighted by the pixel's attention to it.

        v[c·k² + j](p) = attention[j](p) · image[c](p + offset_j),   j = (dy + r)·k + (dx + r),  r = k // 2

    with dy, dx from -r to r and zero outside the image. This is the context voxel of "Learning Pixel-Adaptive Weights
    for Portrait Photo Retouching" before its 1x1 convolution.

    Args:
        image: (B, 3, H, W), float16, bfloat16, float32 or float64, any strides.
        attention: (B, k², H, W), any float dtype. Arithmetic is in float32.
        kernel_size: k, odd, >= 1.
        out: the tensor to write to, (B, 3·k², H, W) with the dtype of `image`, in separate memory.

    Returns:
        (B, 3·k², H, W), dtype and memory format of `image`. Differentiable in `image` and `attention`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype or device, in one line: what, expected, got.
    """
    return _op(Arguments(image, attention, kernel_size), out=out)


class Arguments(NamedTuple):
    image: Tensor
    attention: Tensor
    kernel_size: int


def _shape(args: Arguments) -> Sequence[int]:
    image, attention, kernel_size = args
    check_image("context_voxels", image, integers=False)
    if not isinstance(kernel_size, int):
        raise TypeError(f"context_voxels: kernel_size: expected an int; got {type(kernel_size).__name__}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"context_voxels: kernel_size: expected an odd number >= 1; got {kernel_size}")
    batch, _, height, width = image.shape
    check_tensor("context_voxels", "attention", attention, (batch, kernel_size**2, height, width), image)
    return (batch, 3 * kernel_size**2, height, width)


def reference(args: Arguments) -> Tensor:
    image, attention, kernel_size = args
    x = to_float(image, attention)
    height, width = x.shape[-2:]
    padded = F.pad(x, [kernel_size // 2] * 4)
    neighbours = [
        padded[..., dy : dy + height, dx : dx + width] for dy in range(kernel_size) for dx in range(kernel_size)
    ]
    voxels = torch.stack(neighbours, dim=2) * attention.to(x.dtype)[:, None]
    return from_float(voxels.flatten(1, 2), image.dtype)


def _run(kernels: Kernels, out: Tensor, args: Arguments) -> None:
    kernels["context_voxels"](out, *args)


def _run_backward(kernels: Kernels, gradients: Sequence[Tensor | None], grad: Tensor, args: Arguments) -> None:
    kernels["context_voxels_backward"](*gradients, grad, *args)


_op = Op(
    "context_voxels",
    Arguments,
    shape=_shape,
    reference=reference,
    run=_run,
    run_backward=_run_backward,
    pointwise=False,
    dims=(4, 4),
)
