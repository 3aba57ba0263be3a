"""context_voxels against unfold times attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import inputs
import peers
import torch
from torch import Tensor

from fastenh.ops import context_voxels


def test_context_voxels(contest: Any, photo: Tensor, maps: Any) -> None:
    attention = maps(9).mul_(2).softmax(1)
    out, other = (torch.empty(1, 27, *photo.shape[-2:]) for _ in range(2))
    shifts = peers.shifts(photo)

    def whole() -> Tensor:
        shifts[4].copy_(photo)
        return peers.nine_products(other, attention, *shifts)

    def by_rows() -> Tensor:
        shifts[4].copy_(photo)
        contest.by_rows(peers.nine_products, other, attention, *shifts)
        return other

    contest.peer("F.unfold times attention", lambda: peers.unfolded(photo, attention), goal=10)
    contest.peer("nine torch.mul, reused buffers", whole, goal=1.8)
    contest.peer("nine torch.mul, reused buffers, in bands of rows", by_rows, goal=1.8)
    contest(
        "context_voxels, 3 x 3, photo",
        lambda: context_voxels(photo, attention, out=out),
        fresh=lambda: context_voxels(photo, attention),
    )


def test_backward(contest: Any) -> None:
    size = (1080, 1920)
    image, attention = of = (
        inputs.photo(size).requires_grad_(),
        inputs.maps(9, 0.1, size).mul_(2).softmax(1).requires_grad_(),
    )
    grad = inputs.maps(27, 0.1, size)

    def entered(voxels: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
        return lambda: peers.with_gradients(voxels(image, attention), of, grad)

    contest.peer("F.unfold times attention", entered(peers.unfolded))
    contest.peer("nine products, stacked", entered(peers.nine_stacked))
    contest("context_voxels, 3 x 3, forward and backward, photo of 1920 x 1080", entered(context_voxels))
