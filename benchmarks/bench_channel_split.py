"""channel_split_transform against the split, transform and concatenation of GFP-GAN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastenh.ops import channel_split_transform


def test_channel_split_transform(contest: Any, maps: Any) -> None:
    features, scale, shift = (maps(channels, 0.3, (512, 512)) for channels in (64, 32, 33))
    shift = shift[:, :32].contiguous()
    out, other = torch.empty_like(features), torch.empty_like(features)

    def concatenated() -> Tensor:
        same, transformed = torch.split(features, 32, dim=1)
        return torch.cat([same, transformed * scale + shift], dim=1)

    def in_two_parts() -> Tensor:
        other[:, :32].copy_(features[:, :32])
        torch.addcmul(shift, features[:, 32:], scale, out=other[:, 32:])
        return other

    contest.peer("torch.cat", concatenated, goal=12)
    contest.peer("copy_ and addcmul, reused buffer", in_two_parts, goal=0.95)
    contest(
        "channel_split_transform, 64 x 512 x 512",
        lambda: channel_split_transform(features, scale, shift, out=out),
        fresh=lambda: channel_split_transform(features, scale, shift),
    )
