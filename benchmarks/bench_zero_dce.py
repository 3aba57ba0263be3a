"""Low-light models against the same networks composed in eager PyTorch: maps enlarged whole, eight passes of curves."""

from __future__ import annotations

import math
from typing import Any

import inputs
import pytest
import torch
import torch.nn.functional as F
from peers import iterate, upsample
from torch import Tensor, nn

from fastenh.models import ZeroDCE, ZeroDCEPlusPlus


def convolved(layer: Any, x: Tensor) -> Tensor:
    """A layer of the model without its activation."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, layer.weight, layer.bias, padding=1)
    return layer.point_conv(layer.depth_conv(x))


@pytest.mark.parametrize(
    ("name", "system", "map_scale", "goal"), [("Zero-DCE++", ZeroDCEPlusPlus, 12, 5), ("Zero-DCE", ZeroDCE, 4, None)]
)
def test_low_light(contest: Any, name: str, system: type[ZeroDCE], map_scale: int, goal: float | None) -> None:
    torch.manual_seed(0)
    model = system(map_scale).eval()
    for parameter in model.parameters():  # curves that differ from pixel to pixel
        nn.init.normal_(parameter, std=1.2 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1)
    photo = inputs.photo((1080, 1920))

    @torch.inference_mode()
    def eager() -> Tensor:
        c1, c2, c3, c4, c5, c6, c7 = model.children()
        x = F.interpolate(photo, scale_factor=1 / map_scale, mode="bilinear")
        x1 = F.relu(convolved(c1, x))
        x2 = F.relu(convolved(c2, x1))
        x3 = F.relu(convolved(c3, x2))
        x4 = F.relu(convolved(c4, x3))
        x5 = F.relu(convolved(c5, torch.cat([x3, x4], 1)))
        x6 = F.relu(convolved(c6, torch.cat([x2, x5], 1)))
        return iterate(photo, upsample(torch.tanh(convolved(c7, torch.cat([x1, x6], 1))), photo))

    contest.peer("eager PyTorch", eager, goal=goal)
    contest(f"{name}, maps at 1/{map_scale}, photo of 1920 x 1080", torch.inference_mode()(lambda: model(photo)))
