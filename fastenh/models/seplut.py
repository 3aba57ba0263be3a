"""SepLUT: a curve for each channel, then a small 3D LUT that mixes the channels, both predicted for the photo.

Yang, Jin, Xu, Zhang, Chen, Liu: "SepLUT: Separable Image-adaptive Lookup Tables for Real-time Image Enhancement",
ECCV 2022. The curves spread the photo's colours over the grid, which can then have far fewer points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastenh import ops
from fastenh.models.adaint import LICENCE, Backbone, as_ours, bank_sizes, shape_of
from fastenh.models.lut3d import first_luts
from fastenh.models.published import read_state
from fastenh.models.system import Picture, System
from fastenh.ops.op import check_image
from fastenh.tiles import Place


class SepLUT(System):
    """out = LUT(curves(image)): (B, 3, H, W) RGB in [0, 1] → the same shape and dtype, floats unclamped.

        f = backbone(thumbnail of 256×256)                   (B, 32·width)
        curves = sigmoid(Linear(f))                          (B, 3, S): a 1D LUT for each channel, linear in between
        LUT = Σₙ wₙ · lutsₙ, w = Linear(f)                   (B, 3, D, D, D), weights raw; trilinear

    `luts` is (N, 3, D, D, D), axes (C, B, G, R); it starts as one identity table and N−1 tables of zeros, and the
    curves start about straight, so that an untrained model returns roughly its input. Images are floats of any size, or
    uint8 and uint16 at full scale. The output of the curves is always float32, never rounded to the image's dtype.
    Values outside [0, 1] clamp.

    Args:
        n_luts, size: N and D.
        size_1d: S.
        width: channels of the backbone's first layer; 6 and 8 are the paper's M6 and M8.

    Raises:
        ValueError, TypeError: on a wrong argument or image, in one line.
    """

    reach = 0
    colour_map = True

    def __init__(self, n_luts: int = 3, size: int = 17, size_1d: int = 17, width: int = 8) -> None:
        super().__init__()
        if n_luts < 1 or not 2 <= size <= 256:
            raise ValueError(f"need at least one LUT of 2 to 256 vertices per axis, got n_luts={n_luts}, size={size}")
        if not 2 <= size_1d <= 256 or width < 1:
            raise ValueError(f"need curves of 2 to 256 points and a width, got size_1d={size_1d}, width={width}")
        self.arguments: dict[str, Any] = {"n_luts": n_luts, "size": size, "size_1d": size_1d, "width": width}
        self.about = {"colour": "RGB, sRGB-encoded, in [0, 1]"}
        self.backbone = Backbone(width)
        self.weights = nn.Linear(32 * width, n_luts)
        self.curves = nn.Linear(32 * width, 3 * size_1d)
        for layer in (self.weights, self.curves):
            nn.init.normal_(layer.weight, std=0.005)
        nn.init.ones_(self.weights.bias)
        steps = np.linspace(0, 1, size_1d).clip(0.01, 0.99)
        with torch.no_grad():
            self.curves.bias.copy_(torch.as_tensor(np.tile(np.log(steps / (1 - steps)), 3)))
        self.luts = nn.Parameter(first_luts(n_luts, size))

    def predict(self, picture: Picture) -> tuple[Tensor, ...]:
        """The curves and the fused LUT of each photo."""
        weights, curves = self.weights_and_curves(picture.overview)
        return curves, torch.einsum("bn,n...->b...", weights, self.luts)

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        curves, lut = params
        return ops.lut_1d_transform(image, curves, lut, out=out)

    def weights_and_curves(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) → weights (B, N) and curves (B, 3, S) in (0, 1)."""
        check_image("SepLUT", image)
        features = self.backbone(image)
        return self.weights(features), self.curves(features).unflatten(1, (3, -1)).sigmoid()


# ---- checkpoints as published

BANK = "lut3d_generator.basis_luts_bank.weight"
PUBLISHED_LAYERS = {"lut3d_generator.weights_generator": "weights", "lut1d_generator.lut1d_generator": "curves"}


def convert(path: str | Path) -> SepLUT:
    """Read a published file into a model in eval mode: M6 or M8, N, D and S follow from its shapes.

    Nothing but tensors is unpickled. A missing file raises FileNotFoundError; anything but the keys and shapes
    of SepLUT raises ValueError, in one line.
    """
    found = read_state(path)
    n_luts, size = bank_sizes(found, BANK)
    (points,) = shape_of(found, "lut1d_generator.lut1d_generator.bias", (3 * 17,))
    (width,) = shape_of(found, "backbone.0.0.bias", (8,))
    model = SepLUT(n_luts, size, min(max(points // 3, 2), 256), min(max(width, 1), 64))
    model.load_state_dict(as_ours(model.state_dict(), path, found, PUBLISHED_LAYERS, BANK, "SepLUT"))
    model.about |= {"licence": LICENCE, "note": f"SepLUT, converted from {Path(path).name}"}
    return model.eval()
