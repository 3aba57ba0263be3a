"""CSRNet: three layers that see one pixel's colour, and a condition, seen in the whole photo, that modulates them.

He, Liu, Qiao, Dong: "Conditional Sequential Modulation for Efficient Global Image Retouching", ECCV 2020. As small as
36 thousand parameters, but 64 channels wide at every pixel; here no map of those is ever as large as the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.models.published import exactly, read_state
from fastenh.models.system import Picture, System
from fastenh.ops.op import check_image, from_float, gradient_wanted, to_float
from fastenh.tiles import Place

# On a CPU, what its caches hold; elsewhere, what keeps it busy.
CPU_PIXELS, PIXELS = 1 << 13, 1 << 18  # that pass through the layers at a time
CPU_BAND, BAND = 1 << 18, 1 << 23  # whose rows the condition sees at a time


class CSRNet(System):
    """x₁ = relu(m₁(W₁x + b₁)), x₂ = relu(m₂(W₂x₁ + b₂)), out = m₃(W₃x₂ + b₃), where mₖ(y) = y·scaleₖ + shiftₖ + y:
    (B, 3, H, W) RGB in [0, 1] → the same shape and dtype, floats unclamped, 3 → 64 → 64 → 3 channels at each pixel.

        c = mean over the maps of conv 7×7 → relu → conv 3×3 → relu → conv 3×3 → relu, stride 2, padded by 1   (B, 32)
        scaleₖ = Linear(c), shiftₖ = Linear(c)

    Each mₖ is linear, so that for a photo it folds into its layer: (1 + scaleₖ)·Wₖ and (1 + scaleₖ)·bₖ + shiftₖ.
    Images are floats, or uint8 and uint16 at full scale, of at least 5×5 pixels. The result is contiguous.

    Raises:
        ValueError, TypeError: on a wrong image, in one line.
    """

    reach = 0
    colour_map = True

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}
        self.about = {"colour": "RGB, sRGB-encoded, in [0, 1]"}
        self.cond_net = ConditionNetwork()
        self.cond_scale1, self.cond_shift1 = nn.Linear(32, 64), nn.Linear(32, 64)
        self.cond_scale2, self.cond_shift2 = nn.Linear(32, 64), nn.Linear(32, 64)
        self.cond_scale3, self.cond_shift3 = nn.Linear(32, 3), nn.Linear(32, 3)
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 3, 1)

    def predict(self, picture: Picture) -> tuple[Tensor, ...]:
        """The condition of each photo.

        It is computed at the photo's full size, as in training. From a thumbnail, which has sharper edges, it comes
        out somewhat different, and so does the result."""
        return (self.predict_condition(picture.overview),)

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        return through(image, self.fold(params[0]), out)

    def predict_condition(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → c (B, 32)."""
        check_image("CSRNet", image)
        if min(image.shape[2:]) < 5:
            raise ValueError(f"CSRNet: image: expected H, W >= 5; got {tuple(image.shape)}")
        return self.cond_net(image)

    def fold(self, condition: Tensor) -> list[Tensor]:
        """c (B, 32) → the layers of each picture, (B, channels out, channels in + 1): [(1 + scaleₖ)·Wₖ | the bias]."""
        layers = []
        for conv, scale, shift in (
            (self.conv1, self.cond_scale1, self.cond_shift1),
            (self.conv2, self.cond_scale2, self.cond_shift2),
            (self.conv3, self.cond_scale3, self.cond_shift3),
        ):
            factor = 1 + scale(condition)[..., None]
            assert conv.bias is not None
            bias = conv.bias[:, None] * factor + shift(condition)[..., None]
            layers.append(torch.cat([conv.weight.flatten(1) * factor, bias], dim=-1))
        return layers


class ConditionNetwork(nn.Module):
    """(B, 3, H, W) → (B, 32), computed in bands of rows, so that each layer reads from the cache what the last
    wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 7, stride=2, padding=(0, 1))  # rows are padded where a band needs them
        self.conv2 = nn.Conv2d(32, 32, 3, stride=2, padding=(0, 1))
        self.conv3 = nn.Conv2d(32, 32, 3, stride=2, padding=(0, 1))

    def forward(self, image: Tensor) -> Tensor:
        convs = (self.conv1, self.conv2, self.conv3)
        heights = [image.shape[2]]
        for conv in convs:
            heights.append((heights[-1] + 2 - conv.kernel_size[0]) // 2 + 1)

        def rows(depth: int, top: int, bottom: int) -> Tensor:
            """These rows of the output of the first `depth` layers."""
            if depth == 0:
                part = to_float(image[:, :, top:bottom]).to(self.conv1.weight.dtype)
                return part.contiguous(memory_format=torch.channels_last)  # faster
            conv, height = convs[depth - 1], heights[depth - 1]
            first, last = 2 * top - 1, 2 * bottom - 3 + conv.kernel_size[0]
            x = rows(depth - 1, max(first, 0), min(last, height))
            if first < 0 or last > height:
                x = F.pad(x, (0, 0, max(-first, 0), max(last - height, 0)))
            return F.relu_(conv(x))

        band = CPU_BAND if image.device.type == "cpu" else BAND
        step = max(1, band // (8 * len(image) * image.shape[3]))  # the last layer has a row for eight of the image
        sums = []
        for top in range(0, heights[3], step):
            maps = rows(3, top, min(top + step, heights[3]))
            sums.append(maps.sum((2, 3)) / maps.shape[3])
        return torch.stack(sums).sum(0) / heights[3]


def through(pixels: Tensor, layers: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """(B, 3, H, W) through a perceptron with relu between its layers, (B, channels out, channels in + 1), the last
    column the bias. Without gradients it runs on some thousand pixels at a time, in buffers that stay in the cache.
    """
    check_image("CSRNet", pixels)
    if len(pixels) != len(layers[0]):
        raise ValueError(f"CSRNet: image: expected B = {len(layers[0])}, as many as params; got {len(pixels)}")
    if gradient_wanted([pixels, *layers]):
        x = to_float(pixels, *layers).flatten(2)
        for k, layer in enumerate(layers):
            layer = layer.to(x.dtype)
            x = torch.baddbmm(layer[..., -1:], layer[..., :-1], F.relu(x) if k else x)
        return from_float(x.view(pixels.shape), pixels.dtype)

    result = torch.empty_like(pixels, memory_format=torch.contiguous_format) if out is None else out
    colours, results = pixels.flatten(2), result.flatten(2)
    step = min(CPU_PIXELS if pixels.device.type == "cpu" else PIXELS, colours.shape[2])
    dtype = to_float(layers[0][:0], pixels[:0]).dtype
    layers = [layer.to(dtype) for layer in layers]
    # Each layer's input, with a row of ones that the bias multiplies.
    buffers = [layers[0].new_ones(layer.shape[2], step) for layer in layers]
    for b in range(len(pixels)):
        for start in range(0, colours.shape[2], step):
            part = to_float(colours[b, :, start : start + step])
            first, second, third = (buffer[:, : part.shape[1]] for buffer in buffers)
            first[:-1] = part
            torch.mm(layers[0][b], first, out=second[:-1]).relu_()
            torch.mm(layers[1][b], second, out=third[:-1]).relu_()
            mixed = torch.mm(layers[2][b], third, out=first[:-1])
            results[b, :, start : start + step] = from_float(mixed, pixels.dtype)
    return result


# ---- checkpoints as published


def convert(path: str | Path) -> CSRNet:
    """Read the published file, a dict of tensors, into a model in eval mode.

    Nothing but tensors is unpickled. A missing file raises FileNotFoundError; anything but the keys and shapes
    of CSRNet raises ValueError, in one line.
    """
    model = CSRNet()
    model.load_state_dict(exactly(path, read_state(path), model.state_dict(), "CSRNet"))
    model.about |= {
        "licence": "none given with the published weights",
        "note": f"CSRNet, converted from {Path(path).name}",
    }
    return model.eval()
