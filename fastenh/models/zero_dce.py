"""Low-light enhancement by curves: a small network predicts a curve for every pixel, which is applied eight times.

ZeroDCE: Guo, Li, Guo, Loy, Hou, Kwong, Cong: "Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement",
CVPR 2020. SCL-LLE is the same network, trained differently: Liang, Li, Yang, Wang, Lan, Huang: "Semantically
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
from fastenh.models.published import exactly, read_pth
from fastenh.models.system import Picture, Prepared, System
from fastenh.ops.op import check_image, check_int, gradient_wanted, to_float
from fastenh.tiles import Place, Tile, enlarge, tiles

ITERATIONS = 8
HALO = 7  # the reach of a pixel of the maps: one pixel for each of the seven 3×3 convolutions
Activation = Callable[[Tensor], Tensor]  # in place
CPU_TILE, TILE = 256, 1024  # on a CPU, as much as its caches hold; elsewhere, enough to keep it busy


class ZeroDCE(System):
    """x ← x + r_k·(x² − x) for k = 1 … 8: (B, 3, H, W) RGB in [0, 1] → the same shape and dtype, in [0, 1] as well.

    The curves r = tanh(network(x)), eight maps of three channels, lie in (−1, 1), so that each step maps [0, 1] onto
    itself, rising; r < 0 brightens. The network has seven 3×3 convolutions (zero-padded, no pooling) with skip
    connections:

        x₁ = relu(c₁ x)   x₂ = relu(c₂ x₁)   x₃ = relu(c₃ x₂)   x₄ = relu(c₄ x₃)
        x₅ = relu(c₅ [x₃, x₄])   x₆ = relu(c₆ [x₂, x₅])   r = tanh(c₇ [x₁, x₆])

    Images are floats of any size, or uint8 and uint16 at full scale. An untrained model returns roughly its input.

    `map_scale` s: the network sees the image at 1/s (bilinear, from ⌈H/s⌉ × ⌈W/s⌉ places) and its maps are enlarged
    (bilinear, align_corners=True) pixel by pixel as the curves are applied, so that no map is ever as large as the
    image. It may be changed at any time: larger is faster, and follows edges less closely.

    `same_reach`: at 1/s a 3×3 kernel reaches one pixel to each side, which is s pixels of the image, so the network
    sees a larger neighbourhood than at s = 1. With same_reach=True its kernels are resampled, by bilinear interpolation
    between a pixel and its neighbours, to reach 1/s of a pixel: as far into the image as at s = 1. The curves are then
    closer to those of s = 1, at edges and elsewhere, at the same cost. Published weights for s = 12 expect False.

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
        """Without gradients the network runs on at most `tile` × `tile` pixels at a time, plus the surrounding pixels
        that their curves depend on, so memory does not grow with the image. The result is the same. The default is 256
        on a CPU, which is also the fastest there, and 1024 elsewhere."""
        check_image(type(self).__name__, image)
        picture = Picture(image)
        reduced = self.reduced(picture)
        if gradient_wanted([image, *self.parameters()]):
            return ops.curve_iterate(image, self.network(reduced), ITERATIONS)
        maps = None if self.map_scale == 1 else self.curves(reduced, tile)
        return self.with_curves(image, maps, Place(0, 0, *picture.size), None, tile)

    @property
    def reach(self) -> int:
        """One pixel for each of the seven convolutions; 0 where `prepare` makes the maps of the whole image."""
        return HALO if self.map_scale == 1 else 0

    def prepare(self, picture: Picture, params: tuple[Tensor, ...]) -> Prepared:
        """The curves of the whole image, at 1/s; at s = 1 they are made tile by tile."""
        return Prepared(None if self.map_scale == 1 else self.curves(self.reduced(picture)))

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        check_image(type(self).__name__, image)
        return self.with_curves(image, local, place, out)

    def with_curves(
        self, image: Tensor, maps: Tensor | None, place: Place, out: Tensor | None, tile: int | None = None
    ) -> Tensor:
        """Apply curves to the image: those of maps at a reduced size, or predicted from its pixels tile by tile."""
        if maps is not None:
            if image.shape[2:] != place[2:]:
                height, width = image.shape[2:]
                if width == place.width:  # of strips the op enlarges the columns, without maps as large as the strip
                    width = maps.shape[3]
                    place = place._replace(width=width)
                maps = enlarge(maps, place, (height, width), align_corners=True)
            return ops.curve_iterate(image, maps, ITERATIONS, out=out)
        out = torch.empty_like(image) if out is None else out
        for part, curves in self.curves_by_tile(image, tile):
            ops.curve_iterate(image[part], curves, ITERATIONS, out=out[part])
        return out

    def curves(self, reduced: Tensor, tile: int | None = None) -> Tensor:
        """`network`, a tile at a time."""
        maps = next(self.parameters()).new_empty(len(reduced), self.MAPS, *reduced.shape[2:])
        for part, curves in self.curves_by_tile(reduced, tile):
            maps[part] = curves
        return maps

    def predict_curves(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 24, ⌈H/s⌉, ⌈W/s⌉): r₁ … r₈, each of R, G, B; for ZeroDCEPlusPlus (B, 3, ⌈H/s⌉, ⌈W/s⌉).

        Losses need the curves besides the result, ops.curve_iterate(image, curves). Fewer iterations are possible, too:
        ops.curve_iterate(image, curves[:, :12], 4)."""
        check_image(type(self).__name__, image)
        return self.network(self.reduced(Picture(image)))

    def reduced(self, picture: Picture) -> Tensor:
        """The network's input, the image at 1/s. At s = 1 it is the image itself."""
        height, width = picture.size
        s = self.map_scale
        return picture.image if s == 1 else picture.thumbnail((-(-height // s), -(-width // s)))

    def network(self, reduced: Tensor) -> Tensor:
        for layer in self.children():
            assert isinstance(layer, (Convolution, SeparableConvolution))
            layer.reach = 1 / self.map_scale if self.same_reach else 1
        x = to_float(reduced).to(next(self.parameters()).dtype).contiguous(memory_format=torch.channels_last)  # faster
        x1 = self.e_conv1(x)
        x2 = self.e_conv2(x1)
        x3 = self.e_conv3(x2)
        x4 = self.e_conv4(x3)
        x5 = self.e_conv5(x3, x4)
        del x3, x4  # memory that the next layers can have
        x6 = self.e_conv6(x2, x5)
        del x2, x5
        return self.e_conv7(x1, x6)

    def curves_by_tile(self, reduced: Tensor, side: int | None) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Where each tile lies, and its curves, predicted from the tile and its surroundings. At the edges of the image
        convolutions are padded as they are for the whole image."""
        if side is None:
            side = CPU_TILE if reduced.device.type == "cpu" else TILE
        check_int(type(self).__name__, "tile", side, 1, 2**31)
        whole = Tile(0, reduced.shape[2], 0, reduced.shape[3])
        for tile in tiles(whole.bottom, whole.right, side):
            read = tile.grown(HALO, whole.bottom, whole.right)
            curves = self.network(reduced[..., *read.within(whole)])
            yield (slice(None), slice(None), *tile.within(whole)), curves[..., *tile.within(read)]


class ZeroDCEPlusPlus(ZeroDCE):
    """ZeroDCE with an eighth of its parameters: one curve per pixel and channel, shared by all eight iterations, and
    depthwise separable convolutions. The default map scale is 12, as published.
    """

    MAPS = 3

    def __init__(self, map_scale: int = 12, same_reach: bool = False) -> None:
        super().__init__(map_scale, same_reach)

    @staticmethod
    def convolution(channels_in: int, channels: int, activation: Activation = F.relu_) -> nn.Module:
        return SeparableConvolution(channels_in, channels, activation)


# ---- layers: convolutions of x or of [x, y], without concatenating these in memory, then an activation


class Convolution(nn.Conv2d):
    """3×3, zero-padded, then `activation`. `reach`: the distance of its outer weights from the centre, in pixels."""

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
    """The same as a depthwise 3×3 and a pointwise 1×1 convolution."""

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
    """activation(kernel ∗ x + bias + plus); `plus` may be overwritten. cuDNN runs it in one pass where it can."""
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
    """(O, I, 3, 3) with outer weights at a distance of `reach` ≤ 1 pixels from the centre → the equivalent kernel on
    whole pixels, by bilinear interpolation between pixels."""
    for dim in (2, 3) if reach != 1 else ():
        before, middle, behind = kernel.unbind(dim)
        kernel = torch.stack([reach * before, middle + (1 - reach) * (before + behind), reach * behind], dim)
    return kernel


# ---- checkpoints as published

# By the name that `fastenh convert` takes: the system, and the licence of its published weights.
PUBLISHED: dict[str, tuple[type[ZeroDCE], str]] = {
    "zero-dce": (ZeroDCE, "CC BY-NC 4.0 where the weights are the published ones: not for commercial use"),
    "zero-dce++": (ZeroDCEPlusPlus, "CC BY-NC 4.0 where the weights are the published ones: not for commercial use"),
    "scl-lle": (ZeroDCE, "none given with the published weights"),
}


def convert(path: str | Path, name: str) -> ZeroDCE:
    """Read a published file of one of PUBLISHED, a dict of tensors, into a model in eval mode.

    Nothing but tensors is unpickled. A missing file raises FileNotFoundError; anything but the keys and shapes of that
    system raises ValueError, in one line.
    """
    system, licence = PUBLISHED[name]
    model = system()
    model.load_state_dict(exactly(path, read_pth(path), model.state_dict(), name))
    model.about |= {"licence": licence, "note": f"{name}, converted from {Path(path).name}"}
    return model.eval()
