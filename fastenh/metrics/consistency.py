"""Group-level consistency, M_GLC: how similar the photos of a group look (Liang et al., "PPR10K", 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastenh.losses.lab import rgb_to_lab
from fastenh.metrics.bands import bands


def mean_ab(image: Tensor) -> Tensor:
    """The mean colour of each photo: (B, 3, H, W) sRGB in [0, 1] → (B, 2), mean a* and mean b* of CIE L*a*b*."""
    total = torch.zeros(len(image), 2, device=image.device)
    for rows in bands(image):
        total += rgb_to_lab(image[..., rows, :].float())[:, 1:].sum((2, 3))
    return total / image[0, 0].numel()


def group_level_consistency(colours: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """(Var(mean a*) + Var(mean b*)) / 2 of each group, with unbiased variances; M_GLC is the mean over groups.

    `colours` is (P, 2), the `mean_ab` of P photos; `groups` names the group of each. A group of one photo has no
    variance and is left out. Raises ValueError for another shape.
    """
    if colours.shape != (len(groups), 2):
        raise ValueError(f"colours: expected shape {(len(groups), 2)}, got {tuple(colours.shape)}")
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return {group: colours[photos].var(0).mean().item() for group, photos in members.items() if len(photos) > 1}
