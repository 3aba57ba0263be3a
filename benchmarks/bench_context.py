"""context_voxels against unfold times attention."""

from __future__ import annotations

from typing import Any

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
    contest.peer("nine torch.mul, reused buffers, by rows", by_rows, goal=1.8)
    contest(
        "context_voxels, 3 x 3, photo",
        lambda: context_voxels(photo, attention, out=out),
        fresh=lambda: context_voxels(photo, attention),
    )
