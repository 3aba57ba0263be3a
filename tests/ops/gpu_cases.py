"""What every kernel for GPUs is held to, in calls small enough for Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from laws import FLOATS, lay_out
from torch import Tensor

from fastenh import ops

CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {  # a function and the shapes of its tensors
    "split": (ops.channel_split_transform, [(2, 5, 7, 9), (2, 3, 7, 9), (2, 3, 7, 9)]),
    "split, broadcast": (ops.channel_split_transform, [(2, 4, 3, 1100), (2, 2, 1, 1), (2, 1, 1100)]),
    "split, nothing passes": (lambda *t: ops.channel_split_transform(*t, 0), [(1, 2, 1, 1), (1, 2, 1, 1), (1,)]),
    "split, all passes": (lambda *t: ops.channel_split_transform(*t, 2), [(1, 2, 4, 4), (1, 0, 4, 4), (1, 0, 4, 4)]),
    "voxels": (ops.context_voxels, [(2, 3, 3, 5), (2, 9, 3, 5)]),
    "voxels, k = 1": (lambda *t: ops.context_voxels(*t, 1), [(1, 3, 2, 1100), (1, 1, 2, 1100)]),
    "voxels, k = 5": (lambda *t: ops.context_voxels(*t, 5), [(1, 3, 2, 3), (1, 25, 2, 3)]),
    "voxels, aligned rows": (ops.context_voxels, [(1, 3, 2, 16), (1, 9, 2, 16)]),
}


def every_case(test: Callable[..., None]) -> Callable[..., None]:
    """Parametrizes a test by `case`, `dtype` (of the first tensor; the others are float32) and `layout`."""
    test = pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every other"])(test)
    test = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))(test)
    return pytest.mark.parametrize("case", CASES)(test)


def run(case: str, dtype: torch.dtype, layout: str, device: str) -> list[Tensor]:
    """The op's output and its gradients."""
    function, shapes = CASES[case]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(shape, generator=generator) for shape in shapes]
    tensors[0] = tensors[0].to(dtype)
    tensors = [lay_out(t, layout).to(device).requires_grad_() for t in tensors]
    output = function(*tensors)
    grad = torch.rand(output.shape, generator=generator).to(dtype).to(device)
    return [t.detach().cpu() for t in (output, *torch.autograd.grad(output, tensors, grad))]
