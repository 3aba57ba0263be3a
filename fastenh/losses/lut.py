"""Regularisers that keep learned LUTs smooth and monotonic (Zeng et al., TPAMI 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def total_variation(luts: Tensor) -> Tensor:
    """Smoothness of each LUT: (N, 3, D, D, D) → (N,), Σ over the axes R, G, B of mean(wt · d²).

    d is the difference of neighbours along the axis; wt is 2 in the first and last interval of the axis, else 1.
    """
    total = luts.new_zeros(len(luts))
    for axis in (2, 3, 4):
        d2 = luts.diff(dim=axis).square().movedim(axis, -1)
        ends = d2[..., 0].mean((1, 2, 3)) + d2[..., -1].mean((1, 2, 3))
        total = total + d2.mean((1, 2, 3, 4)) + ends / d2.shape[-1]
    return total


def monotonicity(luts: Tensor) -> Tensor:
    """How much each LUT decreases along its axes: (N, 3, D, D, D) → (N,), Σ over the axes of mean(relu(−d))."""
    return torch.stack([F.relu(-luts.diff(dim=axis)).mean((1, 2, 3, 4)) for axis in (2, 3, 4)]).sum(0)
