"""The whole of AdaInt against the same composed in eager PyTorch. PyTorch has no lookup on a non-uniform grid, so cells
are found by searchsorted; then either grid_sample reads the LUT, at positions in units of cells, or the eight corners
are gathered and blended."""

from __future__ import annotations

from typing import Any

import inputs
import pytest
import torch
import torch.nn.functional as F
from peers import sample
from torch import Tensor, nn

from fastenh.models import AdaInt


def network(model: AdaInt, photo: Tensor) -> tuple[Tensor, Tensor]:
    """The photo's LUT (1, 3, D, D, D) and vertices (1, 3, D)."""
    features = nn.Sequential.forward(model.backbone, F.interpolate(photo, (256, 256), mode="bilinear"))
    intervals = model.intervals(features).view(1, 3, -1).softmax(-1)
    luts = (model.weights(features) @ model.luts.flatten(1)).view(1, *model.luts.shape[1:])
    return luts, F.pad(intervals.cumsum(-1), (1, 0))


def cells(photo: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """The grid interval of every value, and the fraction within it."""
    values, grid = photo[0].flatten(1), vertices[0]
    cell = torch.searchsorted(grid, values).sub_(1).clamp_(0, grid.shape[1] - 2)
    low = grid.gather(1, cell)
    return cell, (values - low) / (grid.gather(1, cell + 1) - low)


def by_grid_sample(model: AdaInt, photo: Tensor) -> Tensor:
    luts, vertices = network(model, photo)
    cell, fraction = cells(photo, vertices)
    grid = fraction.add_(cell).mul_(2 / (luts.shape[-1] - 1)).sub_(1)
    return sample(luts, grid.T.view(1, 1, *photo.shape[2:], 3))


def by_corners(model: AdaInt, photo: Tensor) -> Tensor:
    luts, vertices = network(model, photo)
    cell, fraction = cells(photo, vertices)
    size, result = luts.shape[-1], torch.zeros_like(photo[0].flatten(1))
    table = luts[0].flatten(1)
    corner = cell[0] + size * (cell[1] + size * cell[2])
    for which in range(8):
        r, g, b = (fraction[c] if which >> c & 1 else 1 - fraction[c] for c in range(3))
        place = corner + ((which & 1) + size * (which >> 1 & 1) + size * size * (which >> 2))
        result.addcmul_(table.index_select(1, place), r * g * b)
    return result.view(photo.shape)


@pytest.mark.parametrize("size", [(1080, 1920), (2160, 3840)], ids=["1080p", "4K"])
def test_adaint(contest: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, photo = AdaInt().eval(), inputs.photo(size)
    model.luts.data = inputs.luts(3)
    nn.init.normal_(model.weights.bias, 1 / 3, 0.2)
    nn.init.normal_(model.intervals.weight, std=0.2)  # so that intervals differ widely
    with torch.inference_mode():
        assert model.weights_and_vertices(photo)[1].diff().std() > 0.01
    run = torch.inference_mode()
    contest.peer("eager PyTorch, searchsorted and grid_sample", run(lambda: by_grid_sample(model, photo)), goal=3)
    contest.peer("eager PyTorch, searchsorted and eight corners", run(lambda: by_corners(model, photo)), goal=3)
    contest(f"AdaInt, 33 vertices, photo of {size[1]} x {size[0]}", run(lambda: model(photo)))
