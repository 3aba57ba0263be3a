"""The whole of CSRNet against its layers in eager PyTorch, as published and with the modulation folded into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import inputs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.models import CSRNet


def condition(model: CSRNet, x: Tensor) -> Tensor:
    net = model.cond_net
    for conv in (net.conv1, net.conv2, net.conv3):
        x = F.relu_(F.conv2d(F.pad(x, [1] * 4), conv.weight, conv.bias, stride=2))
    return x.mean((2, 3))


def as_published(model: CSRNet, x: Tensor) -> Tensor:
    seen = condition(model, x)
    for k in (1, 2, 3):
        scale, shift = getattr(model, f"cond_scale{k}")(seen), getattr(model, f"cond_shift{k}")(seen)
        x = getattr(model, f"conv{k}")(x)
        x = x * scale[:, :, None, None] + shift[:, :, None, None] + x
        x = F.relu_(x) if k < 3 else x
    return x


def folded(model: CSRNet, x: Tensor) -> Tensor:
    for k, layer in enumerate(model.fold(condition(model, x))):
        x = F.conv2d(x, layer[0, :, :-1, None, None], layer[0, :, -1])
        x = F.relu_(x) if k < 2 else x
    return x


def available() -> float:
    """GiB of available memory; 0 if unknown (not on Linux)."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), 0)


@pytest.mark.parametrize("size", [(1080, 1920), (2160, 3840)], ids=["1080p", "4K"])
def test_csrnet(contest: Any, size: tuple[int, int]) -> None:
    if size[0] > 1080 and available() < 10:
        pytest.skip("eager CSRNet takes some 8 GiB for a photo of 3840 x 2160, more than there is")
    torch.manual_seed(0)
    model, photo = CSRNet().eval(), inputs.photo(size)
    run = torch.inference_mode()
    contest.peer("eager PyTorch", run(lambda: as_published(model, photo)), goal=3)
    contest.peer("eager PyTorch, modulation folded into its layers", run(lambda: folded(model, photo)))
    contest(f"CSRNet, photo of {size[1]} x {size[0]}", run(lambda: model(photo)))
