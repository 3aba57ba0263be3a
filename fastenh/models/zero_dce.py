"""Low-light enhancement by curves: a small network draws a curve for every pixel, which is applied eight times over.

ZeroDCE: Guo, Li, Guo, Loy, Hou, Kwong, Cong: "Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement",
CVPR 2020. SCL-LLE is the same network, trained another way: Liang, Li, Yang, Wang, Lan, Huang: "Semantically
Contrastive Learning for Low-Light Image Enhancement", AAAI 2022. ZeroDCEPlusPlus: Li, Guo, Loy: "Learning to Enhance
Low-Light Image via Zero-Reference Deep Curve Estimation", TPAMI 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh import ops
from fastenh.models.lut3d import exactly, thumbnail
from fastenh.models.tensors import read_pth
from fastenh.ops.op import check_image, check_int, gradient_wanted, to_float

ITERATIONS = 8
HALO = 7  # how far a pixel of the maps looks: one pixel for each of the seven convolutions of 3×3
Activation = Callable[[Tensor], Tensor]  # in place
CPU_TILE, TILE = 256, 1024  # on a CPU, what its caches hold; elsewhere, what keeps it busy


class ZeroDCE(nn.Module):
    """x ← x + r_k·(x² − x) for k = 1 … 8: (B, 3, H, W) RGB in [0, 1] → the same shape and dtype, in [0, 1] as well.

    The curves r = tanh(network(x)), eight maps of three channels, lie in (−1, 1), so that each step maps [0, 1] onto
    itself, rising; r < 0 brightens. Seven convolutions of 3×3 (padded by zeros, no pooling), the later ones fed with
    earlier results a second time:

        x₁ = relu(c₁ x)   x₂ = relu(c₂ x₁)   x₃ = relu(c₃ x₂)   x₄ = relu(c₄ x₃)
        x₅ = relu(c₅ [x₃, x₄])   x₆ = relu(c₆ [x₂, x₅])   r = tanh(c₇ [x₁, x₆])

    Images are floats of any size, or uint8 and uint16 at full scale. An untrained model returns about its input.

    `map_scale` s: the network sees the image at 1/s (bilinear, from ⌈H/s⌉ × ⌈W/s⌉ places) and its maps are enlarged
    (bilinear, align_corners=True) pixel by pixel as the curves are applied, so that no map is ever as large as the
    image. It may be set anew at any time: larger is faster, and follows edges less closely.

    `same_reach`: at 1/s a kernel of 3×3 reaches a pixel to each side, which is s pixels of the image, so that the
    network sees other surroundings than at s = 1. With same_reach=True its kernels are resampled to reach 1/s of a
    pixel, between a pixel and its neighbours by bilinear interpolation: as far into the image as at s = 1. The curves
    are then nearer to those of s = 1, at edges as elsewhere, and cost the same. Published weights for s = 12 are meant
    without.

    Raises:
        ValueError, TypeError: on a wrong argument or image, in one line.
    """

    MAPS = 3 * ITERATIONS  # a curve for every iteration

    def __init__(self, map_scale: int = 1, same_reach: bool = False) -> None:
        super().__init__()
        check_int(type(self).__name__, "map_scale", map_scale, 1, 1024)
        if not isinstance(same_reach, bool):
            raise TypeError(f"{type(self).__name__}: same_reach: expected a bool; got {type(same_reach).__name__}")
        self.map_scale = map_scale
        self.same_reach = same_reach
        self.about = {"colour": "RGB, sRGB-encoded, in [0, 1]"}
        self.e_conv1 = self.convolution(3, 32)
        self.e_conv2 = self.convolution(32, 32)
        self.e_conv3 = self.convolution(32, 32)
        self.e_conv4 = self.convolution(32, 32)
        self.e_conv5 = self.convolution(64, 32)
        self.e_conv6 = self.convolution(64, 32)
        self.e_conv7 = self.convolution(64, self.MAPS, torch.tanh_)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"map_scale": self.map_scale} | ({"same_reach": True} if self.same_reach else {})

    @staticmethod
    def convolution(channels_in: int, channels: int, activation: Activation = F.relu_) -> nn.Module:
        return Convolution(channels_in, channels, activation)

    def forward(self, image: Tensor, tile: int | None = None) -> Tensor:
        """Where no gradient is asked for, the network sees at most `tile` × `tile` pixels at a time, and as many around
        them as their curves depend on: what memory it takes does not grow with the image, and the result is the same.
        By default 256 on a CPU, which is also the fastest there, and 1024 elsewhere."""
        if gradient_wanted([image, *self.parameters()]):
            return ops.curve_iterate(image, self.predict_curves(image), ITERATIONS)
        return self.render(image, tile=tile)

    def look(self, image: Tensor) -> tuple[Tensor, ...]:
        """Nothing is decided of a photo as a whole: its curves follow its pixels."""
        return ()

    def render(
        self, image: Tensor, look: tuple[Tensor, ...] = (), out: Tensor | None = None, tile: int | None = None
    ) -> Tensor:
        """As `forward` without gradients, into `out` if given."""
        seen = self.reduced(image)
        if tile is None:
            tile = CPU_TILE if image.device.type == "cpu" else TILE
        check_int(type(self).__name__, "tile", tile, 1, 2**31)
        if self.map_scale == 1:
            out = torch.empty_like(image) if out is None else out
            for part, curves in self.tiles(seen, tile):
                ops.curve_iterate(image[part], curves, ITERATIONS, out=out[part])
            return out
        maps = next(self.parameters()).new_empty(len(seen), self.MAPS, *seen.shape[2:])
        for part, curves in self.tiles(seen, tile):
            maps[part] = curves
        return ops.curve_iterate(image, maps, ITERATIONS, out=out)

    def predict_curves(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 24, ⌈H/s⌉, ⌈W/s⌉): r₁ … r₈, each of R, G, B; of ZeroDCEPlusPlus (B, 3, ⌈H/s⌉, ⌈W/s⌉).

        Losses need them beside the result, ops.curve_iterate(image, curves), which can be had after fewer iterations
        as well: ops.curve_iterate(image, curves[:, :12], 4)."""
        return self.network(self.reduced(image))

    def reduced(self, image: Tensor) -> Tensor:
        """The image as the network sees it, at 1/s. At s = 1 it is the image itself."""
        check_image(type(self).__name__, image)
        s = self.map_scale
        return image if s == 1 else thumbnail(image, (-(-image.shape[2] // s), -(-image.shape[3] // s)))

    def network(self, seen: Tensor) -> Tensor:
        for layer in self.children():
            assert isinstance(layer, (Convolution, SeparableConvolution))
            layer.reach = 1 / self.map_scale if self.same_reach else 1
        x = to_float(seen).to(next(self.parameters()).dtype).contiguous(memory_format=torch.channels_last)  # faster
        x1 = self.e_conv1(x)
        x2 = self.e_conv2(x1)
        x3 = self.e_conv3(x2)
        x4 = self.e_conv4(x3)
        x5 = self.e_conv5(x3, x4)
        del x3, x4  # memory that the next layers can have
        x6 = self.e_conv6(x2, x5)
        del x2, x5
        return self.e_conv7(x1, x6)

    def tiles(self, seen: Tensor, tile: int) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Where each tile lies, and its curves, for which the network sees the tile's surroundings, too. At the edges
        of the image it sees none, as it sees none in the whole image there."""
        height, width = seen.shape[-2:]
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                bottom, right = min(top + tile, height), min(left + tile, width)
                y, x = max(top - HALO, 0), max(left - HALO, 0)
                curves = self.network(seen[..., y : bottom + HALO, x : right + HALO])
                part = (slice(None), slice(None), slice(top, bottom), slice(left, right))
                yield part, curves[..., top - y : bottom - y, left - x : right - x]


class ZeroDCEPlusPlus(ZeroDCE):
    """ZeroDCE with an eighth of its parameters: one curve a pixel and channel, shared by all eight iterations, and
    each convolution parted in two, 3×3 of every channel on its own, then 1×1. By default at map scale 12, as published.
    """

    MAPS = 3

    def __init__(self, map_scale: int = 12, same_reach: bool = False) -> None:
        super().__init__(map_scale, same_reach)

    @staticmethod
    def convolution(channels_in: int, channels: int, activation: Activation = F.relu_) -> nn.Module:
        return SeparableConvolution(channels_in, channels, activation)


# ---- layers: convolutions of x or, without laying them beside each other in memory, of [x, y], and what follows them


class Convolution(nn.Conv2d):
    """3×3, padded by zeros, then `activation`. `reach`: how far its outer weights lie from the middle one."""

    reach: float = 1

    def __init__(self, channels_in: int, channels: int, activation: Activation) -> None:
        super().__init__(channels_in, channels, 3, padding=1)
        self.activation = activation

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        kernel, n = resampled(self.weight, self.reach), x.shape[1]
        if y is None:
            return convolve(x, kernel, self.bias, 1, self.activation)
        return convolve(y, kernel[:, n:], self.bias, 1, self.activation, F.conv2d(x, kernel[:, :n], padding=1))


class SeparableConvolution(nn.Module):
    """The same in two: 3×3 of every channel on its own, then 1×1."""

    reach: float = 1

    def __init__(self, channels_in: int, channels: int, activation: Activation) -> None:
        super().__init__()
        self.depth_conv = nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in)
        self.point_conv = nn.Conv2d(channels_in, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        depth, point, n = self.depth_conv, self.point_conv, x.shape[1]
        kernel, bias = resampled(depth.weight, self.reach), depth.bias
        assert bias is not None
        each = F.conv2d(x, kernel[:n], bias[:n], padding=1, groups=n)
        if y is None:
            return convolve(each, point.weight, point.bias, 0, self.activation)
        first = F.conv2d(each, point.weight[:, :n])
        each = F.conv2d(y, kernel[n:], bias[n:], padding=1, groups=y.shape[1])
        return convolve(each, point.weight[:, n:], point.bias, 0, self.activation, first)


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor | None, padding: int, activation: Activation, plus: Tensor | None = None
) -> Tensor:
    """activation(kernel ∗ x + bias + plus); `plus` may be overwritten. What cuDNN does in one pass goes to it."""
    if activation is F.relu_ and torch.version.cuda and x.is_cuda and not gradient_wanted([x, kernel]):
        if torch.is_autocast_enabled("cuda"):
            x, kernel = (t.to(torch.get_autocast_dtype("cuda")) for t in (x, kernel))
        bias = None if bias is None else bias.to(x.dtype)
        where = (1, 1), (padding, padding), (1, 1), 1  # stride, padding, dilation, groups
        if plus is None:
            return torch.cudnn_convolution_relu(x, kernel, bias, *where)
        return torch.cudnn_convolution_add_relu(x, kernel, plus, 1, bias, *where)
    result = F.conv2d(x, kernel, bias, padding=padding)
    return activation(result if plus is None else plus.add_(result))


def resampled(kernel: Tensor, reach: float) -> Tensor:
    """(O, I, 3, 3) whose outer weights lie `reach` ≤ 1 pixels from the middle one → the kernel on whole pixels that
    computes the same of what lies between them by bilinear interpolation."""
    for dim in (2, 3) if reach != 1 else ():
        before, middle, behind = kernel.unbind(dim)
        kernel = torch.stack([reach * before, middle + (1 - reach) * (before + behind), reach * behind], dim)
    return kernel


# ---- checkpoints as published

# What the commands `fastenh convert ...` read: the system, and on which terms its authors gave their weights away.
PUBLISHED: dict[str, tuple[type[ZeroDCE], str]] = {
    "zero-dce": (ZeroDCE, "CC BY-NC 4.0 where the weights are the published ones: not for commercial use"),
    "zero-dce++": (ZeroDCEPlusPlus, "CC BY-NC 4.0 where the weights are the published ones: not for commercial use"),
    "scl-lle": (ZeroDCE, "none given with the published weights"),
}


def convert(path: str | Path, name: str) -> ZeroDCE:
    """Reads a published file of one of PUBLISHED, a dict of tensors, into a model in eval mode.

    Nothing is unpickled but tensors. A missing file raises FileNotFoundError; anything else than the keys and shapes
    of that system raises ValueError, in one line.
    """
    system, licence = PUBLISHED[name]
    model = system()
    model.load_state_dict(exactly(path, read_pth(path), model.state_dict(), name))
    model.about |= {"licence": licence, "note": f"{name}, converted from {Path(path).name}"}
    return model.eval()
