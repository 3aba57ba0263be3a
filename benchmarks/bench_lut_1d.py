"""lut_1d_transform against gather and lerp, grid_sample of one row, and OpenColorIO."""

from __future__ import annotations

from typing import Any

import inputs
import numpy as np
import PyOpenColorIO as ocio
import pytest
import torch
from peers import between_entries, between_entries_into, make_grid, sample
from torch import Tensor

from fastenh.ops import lut_1d_transform

SIZE = (1080, 1920)


def tables(entries: int) -> Tensor:
    """Power curves, (1, 3, S), as in typical shapers."""
    return torch.linspace(0, 1, entries) ** torch.tensor([0.45, 0.5, 0.4])[:, None][None]


def processor(curves: Tensor, luts: Tensor | None) -> ocio.CPUProcessor:
    shaper = ocio.Lut1DTransform(curves.shape[-1], False)
    shaper.setData(curves[0].T.numpy().ravel())
    steps = ocio.GroupTransform([shaper])
    if luts is not None:
        table = ocio.Lut3DTransform(luts.shape[-1])
        table.setInterpolation(ocio.INTERP_TETRAHEDRAL)
        table.setData(luts[0].permute(3, 2, 1, 0).numpy().ravel())  # B fastest
        steps.appendTransform(table)
    return ocio.Config.CreateRaw().getProcessor(steps).getDefaultCPUProcessor()


@pytest.mark.parametrize("entries", [17, 1024, 65536])
def test_tables_alone(contest: Any, entries: int) -> None:
    image, curves = inputs.photo(SIZE), tables(entries)
    out, other = torch.empty_like(image), torch.empty_like(image)
    contest.peer("eager PyTorch, gather and lerp", lambda: between_entries(image, curves))
    contest.peer("F.grid_sample of one row, reused output", lambda: between_entries_into(other, image, curves))
    contest(
        f"lut_1d_transform, {entries} entries, photo of 1920 x 1080",
        lambda: lut_1d_transform(image, curves, out=out),
        fresh=lambda: lut_1d_transform(image, curves),
        tolerance=1e-2 if entries == 65536 else 1e-5,  # the peers compute positions in float32
    )


@pytest.mark.parametrize("entries", [2, 1024])
def test_tables_before_a_3d_lut(contest: Any, entries: int) -> None:
    """Should take at most 2.5 times as long as the case `lut_transform, one LUT, tetrahedral`."""
    image, curves, luts = inputs.photo(SIZE), tables(entries), inputs.luts(1)
    out = torch.empty_like(image)
    if entries > 2:
        steps, packed = processor(curves, luts), image[0].permute(1, 2, 0).numpy().copy()
        changed = np.empty_like(packed)

        def in_place() -> None:
            changed[:] = packed
            steps.applyRGB(changed)

        contest.peer("OpenColorIO, copy and applyRGB", in_place,
                     view=lambda _: torch.from_numpy(changed).permute(2, 0, 1)[None])  # fmt: skip
    contest(
        f"lut_1d_transform, {entries} entries before one LUT, tetrahedral, photo of 1920 x 1080",
        lambda: lut_1d_transform(image, curves, luts, interpolation="tetrahedral", out=out),
        fresh=lambda: lut_1d_transform(image, curves, luts, interpolation="tetrahedral"),
        threads=1,
        tolerance=1e-4,
    )


def test_tables_before_a_3d_lut_trilinear(contest: Any) -> None:
    image, curves, luts = inputs.photo(SIZE), tables(1024), inputs.luts(1)
    contest.peer("eager PyTorch, gather, then F.grid_sample",
                 lambda: sample(luts, make_grid(between_entries(image, curves))))  # fmt: skip
    contest(
        "lut_1d_transform, 1024 entries before one LUT, trilinear, photo of 1920 x 1080",
        lambda: lut_1d_transform(image, curves, luts),
    )
