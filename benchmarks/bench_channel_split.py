"""channel_split_transform against the split, transform and concatenation of GFP-GAN."""

from __future__ import annotations

from typing import Any

import peers
import torch

from fastenh.ops import channel_split_transform


def test_channel_split_transform(contest: Any, maps: Any) -> None:
    features, scale, shift = (maps(channels, 0.3, (512, 512)) for channels in (64, 32, 33))
    shift = shift[:, :32].contiguous()
    out, other = torch.empty_like(features), torch.empty_like(features)
    contest.peer("torch.cat", lambda: peers.concatenated(features, scale, shift), goal=12)
    contest.peer(
        "copy_ and addcmul, reused buffer", lambda: peers.in_two_parts(other, features, scale, shift), goal=0.95
    )
    contest(
        "channel_split_transform, 64 x 512 x 512",
        lambda: channel_split_transform(features, scale, shift, out=out),
        fresh=lambda: channel_split_transform(features, scale, shift),
    )


def test_backward(contest: Any, maps: Any) -> None:
    of = features, scale, shift = tuple(maps(channels, 0.3, (512, 512)).requires_grad_() for channels in (64, 32, 32))
    grad = maps(64, 0.1, (512, 512))
    compiled = torch.compile(peers.concatenated, fullgraph=True)
    contest.peer("torch.cat", lambda: peers.with_gradients(peers.concatenated(features, scale, shift), of, grad))
    contest.peer("torch.compile", lambda: peers.with_gradients(compiled(features, scale, shift), of, grad))
    contest(
        "channel_split_transform, 64 x 512 x 512, forward and backward",
        lambda: peers.with_gradients(channel_split_transform(features, scale, shift), of, grad),
    )
