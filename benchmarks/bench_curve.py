"""curve_iterate against the light-enhancement loop of Zero-DCE, in eager PyTorch and compiled."""

from __future__ import annotations

from typing import Any

import inputs
import pytest
import torch
from peers import iterate, iterate_into, upsample, upsample_into, with_gradients
from torch import Tensor

from fastenh.ops import curve_iterate


def test_24_maps(contest: Any, photo: Tensor, maps: Any) -> None:
    curves = maps(24, noise=0.02)
    out, other, scratch, compiled_out = (torch.empty_like(photo) for _ in range(4))
    contest.peer("eager PyTorch", lambda: iterate(photo, curves), goal=18)
    contest.peer("eager PyTorch, reused buffers", lambda: iterate_into(other, photo, curves, scratch), goal=4.5)

    contest.peer(
        "eager PyTorch, reused buffers, in bands of rows",
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

    def upsampling() -> Tensor:
        return iterate(photo, upsample(curves, photo))

    def reusing_by_rows() -> Tensor:
        upsample_into(upsampled, curves)
        contest.by_rows(iterate_into, other, photo, upsampled, scratch)
        return other

    contest.peer("eager PyTorch", upsampling, goal=45)
    contest.peer("eager PyTorch, reused buffers, in bands of rows", reusing_by_rows)
    compiled = torch.compile(upsampling, fullgraph=True)
    compiled_into = torch.compile(lambda: compiled_out.copy_(upsampling()), fullgraph=True)
    contest.peer("torch.compile", compiled, goal=3)
    contest.peer("torch.compile, reused output", compiled_into, goal=3)
    contest(
        "curve_iterate, 8 iterations, one map of 180 x 320, photo",
        lambda: curve_iterate(photo, curves, out=out),
        fresh=lambda: curve_iterate(photo, curves),
    )


@pytest.mark.parametrize(
    ("channels", "size", "name"), [(24, (1080, 1920), "24 maps"), (3, (90, 160), "one map of 90 x 160")]
)
def test_backward(contest: Any, channels: int, size: tuple[int, int], name: str) -> None:
    image, curves = of = inputs.photo((1080, 1920)).requires_grad_(), inputs.maps(channels, 0.02, size).requires_grad_()
    grad = inputs.maps(3, 0.1, (1080, 1920))

    def plain() -> Tensor:
        return iterate(image, curves if channels == 24 else upsample(curves, image))

    contest.peer("eager PyTorch", lambda: with_gradients(plain(), of, grad))
    if channels == 24:  # Inductor did not finish compiling the gradient of the enlarged map in four minutes
        compiled = torch.compile(plain, fullgraph=True)
        contest.peer("torch.compile", lambda: with_gradients(compiled(), of, grad))
    contest(
        f"curve_iterate, 8 iterations, {name}, forward and backward, photo of 1920 x 1080",
        lambda: with_gradients(curve_iterate(image, curves), of, grad),
        tolerance=1e-4,
        relative=1e-3,
    )
