"""Streamed video frames against an Enhancer called for each frame and against the models in plain PyTorch.

Eight frames, a window that moves over photos, in a loop: uint8 arrays, as decoders return them. Peers predict
parameters for every frame, the stream once in eight frames, so results differ by a few levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import inputs
import numpy as np
import peers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh import Enhancer
from fastenh.models import LocalContextLUT

COUNT, STEP = 8, 4


def frames() -> list[np.ndarray]:
    photo = inputs.photo((1080, 1920 + STEP * (COUNT - 1)))[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    return [np.ascontiguousarray(photo[:, STEP * k : STEP * k + 1920]) for k in range(COUNT)]


def auto(model: Any, x: Tensor) -> Tensor:
    return peers.sample(model.fused_lut(x), peers.make_grid(x))


def lowlight(model: Any, x: Tensor) -> Tensor:
    c1, c2, c3, c4, c5, c6, c7 = model.children()
    seen = F.interpolate(x, (-(-x.shape[2] // model.map_scale), -(-x.shape[3] // model.map_scale)), mode="bilinear")
    x1 = F.relu(c1(seen))
    x2 = F.relu(c2(x1))
    x3 = F.relu(c3(x2))
    x4 = F.relu(c4(x3))
    x5 = F.relu(c5(torch.cat([x3, x4], 1)))
    x6 = F.relu(c6(torch.cat([x2, x5], 1)))
    return peers.iterate(x, peers.upsample(torch.tanh(c7(torch.cat([x1, x6], 1))), x))


def portraits() -> LocalContextLUT:
    torch.manual_seed(0)
    model = LocalContextLUT().eval()
    model.luts.data.add_(0.1 * torch.rand_like(model.luts))
    return model


@pytest.mark.parametrize(
    ("name", "model", "composed"),
    [
        ("auto", lambda: "auto", auto),
        ("lowlight", lambda: "lowlight", lowlight),
        ("LAM with ResNet-18", portraits, None),  # bench_local_context.py has it in plain PyTorch: seconds a frame
    ],
)
def test_stream(
    contest: Any, name: str, model: Callable[[], Any], composed: Callable[[Any, Tensor], Tensor] | None
) -> None:
    enhancer, clip = Enhancer(model(), "cpu"), frames()
    stream = enhancer.stream(itertools.cycle(clip), renew=COUNT)

    for _ in clip:  # warms up: only the first frames of a video allocate buffers
        next(stream)

    def last(of: Callable[[np.ndarray], Any]) -> Callable[[], Tensor]:
        return lambda: [torch.as_tensor(of(frame)) for frame in clip][-1]

    @torch.inference_mode()
    def plain(frame: np.ndarray) -> Tensor:
        x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
        assert composed is not None
        return composed(enhancer.model, x).clamp(0, 1).mul(255).round().byte()[0].permute(1, 2, 0).contiguous()

    contest.peer("Enhancer, frame by frame", last(enhancer.enhance))
    if composed:
        contest.peer("plain PyTorch", last(plain))
    contest(f"stream, {name}, {COUNT} frames of 1920 x 1080 uint8", last(lambda _: next(stream)), tolerance=3)
