"""curve_iterate against the light-enhancement loop of Zero-DCE, in eager PyTorch and compiled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.ops import curve_iterate


def iterate(x: Tensor, curves: Tensor) -> Tensor:
    """The loop as Zero-DCE's users write it."""
    for r in curves.split(3, dim=1) if curves.shape[1] > 3 else [curves] * 8:
        x = x + r * (torch.pow(x, 2) - x)
    return x


def iterate_into(out: Tensor, x: Tensor, curves: Tensor, scratch: Tensor) -> Tensor:
    """The loop in two passes an iteration, x - x² and x - r·(x - x²), and no memory but `out` and `scratch`."""
    for r in curves.split(3, dim=1) if curves.shape[1] > 3 else [curves] * 8:
        torch.addcmul(x, x, x, value=-1, out=scratch)
        x = torch.addcmul(x, r, scratch, value=-1, out=out)
    return out


def test_24_maps(contest: Any, photo: Tensor, maps: Any) -> None:
    curves = maps(24, noise=0.02)
    out, other, scratch, compiled_out = (torch.empty_like(photo) for _ in range(4))
    contest.peer("eager PyTorch", lambda: iterate(photo, curves), goal=18)
    contest.peer("eager PyTorch, reused buffers", lambda: iterate_into(other, photo, curves, scratch), goal=4.5)

    contest.peer(
        "eager PyTorch, reused buffers, by rows",
        lambda: contest.by_rows(iterate_into, other, photo, curves, scratch),
        goal=4.5,
        view=lambda _: other,
    )
    compiled = torch.compile(iterate, fullgraph=True)
    compiled_into = torch.compile(lambda: compiled_out.copy_(iterate(photo, curves)), fullgraph=True)
    contest.peer("torch.compile", lambda: compiled(photo, curves), goal=3)
    contest.peer("torch.compile, reused output", compiled_into, goal=3)
    contest(
        "curve_iterate, 8 iterations, 24 maps, photo",
        lambda: curve_iterate(photo, curves, out=out),
        fresh=lambda: curve_iterate(photo, curves),
    )


def test_shared_low_resolution_map(contest: Any, photo: Tensor, maps: Any) -> None:
    curves = maps(3, noise=0.02, size=(180, 320))
    out, other, scratch, upsampled, compiled_out = (torch.empty_like(photo) for _ in range(5))

    def upsample() -> Tensor:
        return F.interpolate(curves, photo.shape[-2:], mode="bilinear", align_corners=True)

    def reusing_by_rows() -> Tensor:
        torch.ops.aten.upsample_bilinear2d.out(curves, photo.shape[-2:], True, out=upsampled)
        contest.by_rows(iterate_into, other, photo, upsampled, scratch)
        return other

    contest.peer("eager PyTorch", lambda: iterate(photo, upsample()), goal=45)
    contest.peer("eager PyTorch, reused buffers, by rows", reusing_by_rows)
    compiled = torch.compile(lambda: iterate(photo, upsample()), fullgraph=True)
    compiled_into = torch.compile(lambda: compiled_out.copy_(iterate(photo, upsample())), fullgraph=True)
    contest.peer("torch.compile", compiled, goal=3)
    contest.peer("torch.compile, reused output", compiled_into, goal=3)
    contest(
        "curve_iterate, 8 iterations, one map of 180 x 320, photo",
        lambda: curve_iterate(photo, curves, out=out),
        fresh=lambda: curve_iterate(photo, curves),
    )
