"""context_voxels against unfold times attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.ops import context_voxels


def test_context_voxels(contest: Any, photo: Tensor, maps: Any) -> None:
    attention = maps(9).mul_(2).softmax(1)
    out, other = (torch.empty(1, 27, *photo.shape[-2:]) for _ in range(2))
    padded = F.pad(photo, [1] * 4)
    height, width = photo.shape[-2:]

    def unfolded() -> Tensor:
        neighbours = F.unfold(photo, 3, padding=1).view(1, 3, 9, height, width)
        return (neighbours * attention[:, None]).flatten(1, 2)

    # Nine views of the padded image, the neighbours of every pixel; the image itself is the fifth.
    shifts = [padded[:, :, j // 3 : j // 3 + height, j % 3 : j % 3 + width] for j in range(9)]

    def nine_products(out: Tensor, attention: Tensor, *shifts: Tensor) -> Tensor:
        voxels = out.unflatten(1, (3, 9))
        for j in range(9):
            torch.mul(shifts[j], attention[:, j, None], out=voxels[:, :, j])
        return out

    def whole() -> Tensor:
        shifts[4].copy_(photo)
        return nine_products(other, attention, *shifts)

    def by_rows() -> Tensor:
        shifts[4].copy_(photo)
        contest.by_rows(nine_products, other, attention, *shifts)
        return other

    contest.peer("F.unfold times attention", unfolded, goal=10)
    contest.peer("nine torch.mul, reused buffers", whole, goal=1.8)
    contest.peer("nine torch.mul, reused buffers, by rows", by_rows, goal=1.8)
    contest(
        "context_voxels, 3 x 3, photo",
        lambda: context_voxels(photo, attention, out=out),
        fresh=lambda: context_voxels(photo, attention),
    )
