"""AdaInt: an image-adaptive 3D LUT whose grid is fine where the photo needs it and coarse elsewhere.

Yang, Jin, Jia, Xu, Chen: "AdaInt: Learning Adaptive Intervals for 3D Lookup Tables on Real-time Image Enhancement",
CVPR 2022. As in `lut3d.py`, inference costs a thumbnail and one lookup per pixel.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh import ops
from fastenh.models.lut3d import first_luts
from fastenh.models.published import exactly, read_state
from fastenh.models.system import Picture, System
from fastenh.ops.op import check_image
from fastenh.tiles import Place


class AdaInt(System):
    """out = LUT(image), interpolated between vertices predicted for each photo: (B, 3, H, W) RGB in [0, 1] → the same
    shape and dtype, floats unclamped.

        f = backbone(thumbnail of 256×256)                         (B, 512)
        LUT = Σₙ wₙ · lutsₙ, w = Linear(f)                         (B, 3, D, D, D), weights raw
        vertices = [0, cumsum(softmax(Linear(f)))]                 (B, 3, D), from 0 to 1 for each of R, G and B

    `luts` is (N, 3, D, D, D), axes (C, B, G, R); it starts as one identity table and N−1 tables of zeros, and the
    vertices start about equidistant, so that an untrained model returns roughly its input. Images are floats of any
    size, or uint8 and uint16 at full scale. Values outside [0, 1] clamp to the border of the grid; the authors' own
    code extrapolates the first and last cells there.

    Raises:
        ValueError, TypeError: on a wrong argument or image, in one line.
    """

    reach = 0
    colour_map = True

    def __init__(self, n_luts: int = 3, size: int = 33) -> None:
        super().__init__()
        if n_luts < 1 or not 2 <= size <= 256:
            raise ValueError(f"need at least one LUT of 2 to 256 vertices per axis, got n_luts={n_luts}, size={size}")
        self.arguments: dict[str, Any] = {"n_luts": n_luts, "size": size}
        self.about = {"colour": "RGB, sRGB-encoded, in [0, 1]"}
        self.backbone = Backbone(16)
        self.weights = nn.Linear(512, n_luts)
        self.intervals = nn.Linear(512, 3 * (size - 1))
        for layer in (self.weights, self.intervals):
            nn.init.normal_(layer.weight, std=0.005)
            nn.init.ones_(layer.bias)
        self.luts = nn.Parameter(first_luts(n_luts, size))

    def predict(self, picture: Picture) -> tuple[Tensor, ...]:
        """The fused LUT and the vertices of each photo. A mean of vertices over frames keeps them in order."""
        weights, vertices = self.weights_and_vertices(picture.overview)
        return torch.einsum("bn,n...->b...", weights, self.luts), vertices

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        lut, vertices = params
        return ops.lut_transform(image, lut[:, None], vertices=vertices, out=out)

    def weights_and_vertices(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) → weights (B, N) and vertices (B, 3, D)."""
        check_image("AdaInt", image)
        features = self.backbone(image)
        intervals = self.intervals(features).unflatten(1, (3, -1)).softmax(-1)
        return self.weights(features), F.pad(intervals.cumsum(-1), (1, 0))


class Backbone(nn.Sequential):
    """(B, 3, H, W) → (B, 32·width) features of a 256×256 thumbnail: five strided convolutions with 1, 2, 4, 8 and 8
    times `width` channels, then the means of the four quarters.

    Each block is conv 3×3 stride 2 → LeakyReLU 0.2 → InstanceNorm (affine), the last without norm. Training drops half
    of the features.
    """

    def __init__(self, width: int) -> None:
        channels = (3, width, 2 * width, 4 * width, 8 * width, 8 * width)
        blocks: list[nn.Module] = []
        for a, b in pairwise(channels):
            layers = [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.InstanceNorm2d(b, affine=True)]
            blocks.append(nn.Sequential(*layers[: 3 if len(blocks) < 4 else 2]))
        super().__init__(*blocks, nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(Picture(image).thumbnail(256).to(next(self.parameters()).dtype))


# ---- checkpoints as published

# Files of AdaInt and SepLUT hold the basis LUTs as the weight, (3·D³, N), of a layer without a bias.
LICENCE = "Apache-2.0 where the weights are the published ones"
BANK = "lut_generator.basis_luts_bank.weight"
PUBLISHED_LAYERS = {"lut_generator.weights_generator": "weights", "adaint.intervals_generator": "intervals"}


def convert(path: str | Path) -> AdaInt:
    """Read a published file with the five-layer backbone into a model in eval mode; N and D follow from its shapes.

    Nothing but tensors is unpickled. A missing file raises FileNotFoundError; anything but the keys and shapes
    of AdaInt raises ValueError, in one line.
    """
    found = read_state(path)
    n_luts, size = bank_sizes(found, BANK)
    model = AdaInt(n_luts, size)
    model.load_state_dict(as_ours(model.state_dict(), path, found, PUBLISHED_LAYERS, BANK, "AdaInt"))
    model.about |= {"licence": LICENCE, "note": f"AdaInt, converted from {Path(path).name}"}
    return model.eval()


def bank_sizes(found: dict[str, Any], bank: str) -> tuple[int, int]:
    """N and D of the basis LUTs in a file, or what is usual where it holds none."""
    rows, n_luts = shape_of(found, bank, (3 * 33**3, 3))
    return max(n_luts, 1), min(max(round((rows / 3) ** (1 / 3)), 2), 256)


def shape_of(found: dict[str, Any], key: str, usual: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor in a file, or the usual one where there is none of so many axes."""
    tensor = found.get(key)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) and tensor.ndim == len(usual) else usual


def as_ours(
    state: dict[str, Tensor], path: str | Path, found: dict[str, Any], layers: dict[str, str], bank: str, name: str
) -> dict[str, Tensor]:
    """The tensors of a file as those of `state`, which has a `backbone` and `luts`. `layers`: their names, and ours."""
    names = {key: key for key in state if key.startswith("backbone.")}
    names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in layers.items() for kind in ("weight", "bias")}
    luts = state["luts"]
    expected = {theirs: state[ours] for theirs, ours in names.items()} | {bank: luts.flatten(1).T}
    tensors = exactly(path, found, expected, name)
    return {ours: tensors[theirs] for theirs, ours in names.items()} | {"luts": tensors[bank].T.reshape(luts.shape)}
