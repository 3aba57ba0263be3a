"""The whole of SepLUT against the same composed in eager PyTorch: grid_sample for the 3D LUT, and for the curves either
grid_sample again, on images of one row, or gathering both ends of each interval."""

from __future__ import annotations

from typing import Any

import inputs
import pytest
import torch
import torch.nn.functional as F
from peers import BORDER, make_grid, sample
from torch import Tensor, nn

from fastenh.models import SepLUT


def network(model: SepLUT, photo: Tensor) -> tuple[Tensor, Tensor]:
    """The photo's curves (1, 3, S) and LUT (1, 3, D, D, D)."""
    features = nn.Sequential.forward(model.backbone, F.interpolate(photo, (256, 256), mode="bilinear"))
    luts = (model.weights(features) @ model.luts.flatten(1)).view(1, *model.luts.shape[1:])
    return torch.sigmoid(model.curves(features)).view(1, 3, -1), luts


def by_grid_sample(model: SepLUT, photo: Tensor) -> Tensor:
    curves, luts = network(model, photo)
    x = photo[0] * 2 - 1
    grid = torch.stack([x, torch.zeros_like(x)], -1)  # (3, H, W, 2): an image of one row for each channel
    return sample(luts, make_grid(F.grid_sample(curves[0, :, None, None], grid, **BORDER)[None, :, 0]))


def by_ends(model: SepLUT, photo: Tensor) -> Tensor:
    curves, luts = network(model, photo)
    place = photo[0].flatten(1) * (curves.shape[-1] - 1)
    low = place.floor().clamp_(0, curves.shape[-1] - 2)
    fraction, low = place.sub_(low), low.long()
    between = torch.lerp(curves[0].gather(1, low), curves[0].gather(1, low.add_(1)), fraction)
    return sample(luts, make_grid(between.view(photo.shape)))


@pytest.mark.parametrize("size", [(1080, 1920), (2160, 3840)], ids=["1080p", "4K"])
@pytest.mark.parametrize(("vertices", "width"), [(9, 6), (17, 8), (33, 8)], ids=["M6-9", "M8-17", "M8-33"])
def test_seplut(contest: Any, size: tuple[int, int], vertices: int, width: int) -> None:
    torch.manual_seed(0)
    model, photo = SepLUT(3, vertices, vertices, width).eval(), inputs.photo(size)
    model.luts.data = F.interpolate(inputs.luts(3), (vertices,) * 3, mode="trilinear", align_corners=True)
    nn.init.normal_(model.weights.bias, 1 / 3, 0.2)
    nn.init.normal_(model.curves.weight, std=0.2)
    run = torch.inference_mode()
    contest.peer("eager PyTorch, grid_sample twice", run(lambda: by_grid_sample(model, photo)), goal=3)
    contest.peer("eager PyTorch, gather and grid_sample", run(lambda: by_ends(model, photo)), goal=3)
    contest(f"SepLUT, M{width}, {vertices} and {vertices} points, photo of {size[1]} x {size[0]}",
            run(lambda: model(photo)))  # fmt: skip
