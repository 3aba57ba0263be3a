"""local_context_retouch against its layers run one by one: torch's, eager and compiled, and our own ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import inputs
import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.ops import context_voxels, local_context_retouch, lut_transform


def make_params(features: int, hidden: int, count: int) -> list[Tensor]:
    """The module's layers for 3 x 3 neighbours, initialised by torch, around equal weights for all LUTs."""
    torch.manual_seed(0)
    shapes = [(3, features, 3), (features, 9, 1), (27, hidden, 1), (hidden, count, 1)]
    params = [p.detach() for shape in shapes for p in nn.Conv2d(*shape).parameters()]
    params[-1] += 1 / count
    return params


def composed(image: Tensor, luts: Tensor, weights: Tensor, params: list[Tensor]) -> Tensor:
    w1, b1, w2, b2, w3, b3, w4, b4 = params
    attention = F.conv2d(F.conv2d(image, w1, b1, padding=1).relu_(), w2, b2).softmax(1)
    pixel_weights = F.conv2d(F.conv2d(context_voxels(image, attention), w3, b3).relu_(), w4, b4)
    return lut_transform(image, luts, weights, pixel_weights)


@torch.inference_mode()
def test_local_context_retouch(contest: Any) -> None:
    image, luts, weights = inputs.photo((1080, 1920)), inputs.luts(5), torch.tensor([[0.8, 1.2, 1.0, 0.9, 1.1]])
    params, out = make_params(64, 128, 5), torch.empty_like(image)
    compiled = torch.compile(peers.layer_after_layer)
    contest.peer(
        "convolutions, F.unfold, F.grid_sample", lambda: peers.layer_after_layer(image, luts, weights, params), goal=34
    )
    contest.peer("the same by torch.compile", lambda: compiled(image, luts, weights, params), goal=13)
    contest.peer("convolutions, context_voxels, lut_transform", lambda: composed(image, luts, weights, params))
    contest(
        "local_context_retouch, five LUTs, 3 x 3, 64 and 128 channels, 1920 x 1080 photo",
        lambda: local_context_retouch(image, luts, weights, params, out=out),
        fresh=lambda: local_context_retouch(image, luts, weights, params),
    )


def test_backward(contest: Any) -> None:
    """Small, as in training: gradients keep all hidden channels in memory."""
    size = (270, 480)
    of = [inputs.photo(size), inputs.luts(5), torch.tensor([[0.8, 1.2, 1.0, 0.9, 1.1]]), *make_params(64, 128, 5)]
    image, luts, weights, *params = (t.requires_grad_() for t in of)
    grad = inputs.maps(3, 0.1, size)

    def entered(retouch: Callable[..., Tensor]) -> Callable[[], Any]:
        return lambda: peers.with_gradients(retouch(image, luts, weights, params), of, grad)

    contest.peer("convolutions, F.unfold, F.grid_sample", entered(peers.layer_after_layer))
    contest.peer("convolutions, context_voxels, lut_transform", entered(composed))
    contest(
        "local_context_retouch, five LUTs, 3 x 3, forward and backward, photo of 480 x 270",
        entered(local_context_retouch),
        tolerance=1e-3,
        relative=1e-2,
    )
