"""What the ops are measured against: the same in plain PyTorch, as users write it and at its best, with reused buffers.
These run on every device. Peers for one device (OpenColorIO, rows that fit into a CPU's cache) are in benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- forward and backward ----


def with_gradients(out: Tensor, of: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return (out.detach(), *torch.autograd.grad(out, of, grad))


# ---- lut_transform ----

BORDER = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}


def make_grid(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)[:, None] * 2 - 1


def sample(luts: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(luts, grid, **BORDER).squeeze(2)


def weighted_sum(image: Tensor, luts: Tensor, pixel_weights: Tensor) -> Tensor:
    grid = make_grid(image)
    return sum(pixel_weights[:, i : i + 1] * sample(luts[i : i + 1], grid) for i in range(len(luts)))


def blend_into(out: Tensor, grid: Tensor, luts: Tensor, pixel_weights: Tensor) -> Tensor:
    """The same with the LUTs as one table of 3·N channels, so that cells are computed once."""
    values = sample(luts.flatten(0, 1).expand(grid.shape[0], -1, -1, -1, -1), grid)
    torch.mul(values[:, :3], pixel_weights[:, :1], out=out)
    for i in range(1, len(luts)):
        out.addcmul_(values[:, 3 * i : 3 * i + 3], pixel_weights[:, i : i + 1])
    return out


# ---- lut_1d_transform ----


def between_entries(image: Tensor, tables: Tensor) -> Tensor:
    """Applies to each channel of one image its row of `tables` (1, 3, S), with linear interpolation."""
    size = tables.shape[-1]
    position = image[0].flatten(1).clamp(0, 1) * (size - 1)
    cell = position.long().clamp_(max=size - 2)
    low, high = tables[0].gather(1, cell), tables[0].gather(1, cell + 1)
    return torch.lerp(low, high, position - cell).view(image.shape)


def between_entries_into(out: Tensor, image: Tensor, tables: Tensor) -> Tensor:
    """The same with `grid_sample` of one row for each channel, which computes positions and interpolates itself."""
    grid = torch.stack([image[0] * 2 - 1, torch.zeros_like(image[0])], -1)
    return torch.stack([F.grid_sample(tables[0, :, None, None], grid, **BORDER)[:, 0]], out=out)


# ---- curve_iterate ----


def upsample(curves: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(curves, image.shape[-2:], mode="bilinear", align_corners=True)


def upsample_into(out: Tensor, curves: Tensor) -> Tensor:
    return torch.ops.aten.upsample_bilinear2d.out(curves, out.shape[-2:], True, out=out)


def iterate(x: Tensor, curves: Tensor) -> Tensor:
    """The loop as users of Zero-DCE write it."""
    for r in curves.split(3, dim=1) if curves.shape[1] > 3 else [curves] * 8:
        x = x + r * (torch.pow(x, 2) - x)
    return x


def iterate_into(out: Tensor, x: Tensor, curves: Tensor, scratch: Tensor) -> Tensor:
    """The loop with two passes per iteration, x - x² and x - r·(x - x²), and no memory but `out` and `scratch`."""
    for r in curves.split(3, dim=1) if curves.shape[1] > 3 else [curves] * 8:
        torch.addcmul(x, x, x, value=-1, out=scratch)
        x = torch.addcmul(x, r, scratch, value=-1, out=out)
    return out


# ---- context_voxels ----


def unfolded(image: Tensor, attention: Tensor) -> Tensor:
    k = math.isqrt(attention.shape[1])
    neighbours = F.unfold(image, k, padding=k // 2).view(*image.shape[:2], k * k, *image.shape[2:])
    return (neighbours * attention[:, None]).flatten(1, 2)


def shifts(image: Tensor) -> list[Tensor]:
    """The 3 x 3 neighbours of every pixel: nine views of a padded copy of the image; the fifth is the image itself."""
    padded, (height, width) = F.pad(image, [1] * 4), image.shape[-2:]
    return [padded[:, :, j // 3 : j // 3 + height, j % 3 : j % 3 + width] for j in range(9)]


def nine_products(out: Tensor, attention: Tensor, *shifts: Tensor) -> Tensor:
    voxels = out.unflatten(1, (3, 9))
    for j in range(9):
        torch.mul(shifts[j], attention[:, j, None], out=voxels[:, :, j])
    return out


def nine_stacked(image: Tensor, attention: Tensor) -> Tensor:
    """The same in new memory, as gradients need it."""
    return torch.stack([s * attention[:, j, None] for j, s in enumerate(shifts(image))], 2).flatten(1, 2)


# ---- local_context_retouch ----


def layer_after_layer(image: Tensor, luts: Tensor, weights: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The local-context module as users write it: torch's convolutions, and one LUT after the other."""
    w1, b1, w2, b2, w3, b3, w4, b4 = params
    attention = F.conv2d(F.conv2d(image, w1, b1, padding=w1.shape[-1] // 2).relu(), w2, b2).softmax(1)
    pixel_weights = F.conv2d(F.conv2d(unfolded(image, attention), w3, b3).relu(), w4, b4)
    return weighted_sum(image, luts, weights[..., None, None] * pixel_weights)


STRIP = 1080  # rows at a time: the hidden channels of a whole 8K frame are more than 2^31 numbers


def local_context(image: Tensor, *params: Tensor) -> Tensor:
    """The pixel weights, in the image's dtype."""
    weights, biases = ([p.to(image.dtype) for p in params[i::2]] for i in (0, 1))
    padded, strips = F.pad(image, [1] * 4), []
    for top in range(0, image.shape[2], STRIP):
        strip = padded[:, :, top : top + STRIP + 2]
        attention = F.conv2d(F.relu(F.conv2d(strip, weights[0], biases[0])), weights[1], biases[1]).softmax(1)
        neighbours = F.unfold(strip, 3).view(*image.shape[:2], 9, *attention.shape[2:])
        hidden = F.relu(F.conv2d((neighbours * attention[:, None]).flatten(1, 2), weights[2], biases[2]))
        strips.append(F.conv2d(hidden, weights[3], biases[3]))
    return torch.cat(strips, 2)


class LocalContextInStrips:
    """The same for a few rows of one image at a time, with reused buffers. Layers are matrix products; the matrices
    have a column for the bias and are padded to full steps of a tensor core."""

    ROWS = 128

    def __init__(self, image: Tensor, params: list[Tensor]) -> None:
        def full(channels: int) -> int:
            return -(-(channels + 1) // 8) * 8

        self.width, dtype = image.shape[3], image.dtype
        self.layers, self.buffers = [], []
        for weight, bias in zip(params[::2], params[1::2], strict=True):
            inputs = weight[0].numel()
            layer = weight.new_zeros(len(weight), full(inputs), dtype=dtype)
            layer[:, :inputs], layer[:, inputs] = weight.flatten(1), bias
            self.layers.append(layer)
            if len(self.buffers) != 2:  # the third layer reuses the first one's, in place
                self.buffers.append(layer.new_zeros(full(inputs), self.ROWS * self.width))
                self.buffers[-1][inputs] = 1
            else:
                self.buffers.append(self.buffers[0])
        self.attention = self.layers[0].new_empty(9, self.ROWS * self.width)
        self.pixel_weights = self.layers[0].new_empty(len(self.layers[3]), self.ROWS * self.width)

    def __call__(self, shifts: list[Tensor]) -> Tensor:
        """(1, N, rows, W) from the nine shifted views of these rows."""
        rows = shifts[0].shape[2]
        pixels = rows * self.width
        neighbours, features, _, hidden = (buffer[:, :pixels] for buffer in self.buffers)
        attention, pixel_weights = self.attention[:, :pixels], self.pixel_weights[:, :pixels]
        by_colour = neighbours[:27].view(3, 9, rows, self.width)
        for j, shift in enumerate(shifts):
            by_colour[:, j].copy_(shift[0])
        torch.mm(self.layers[0], neighbours, out=features[: len(self.layers[0])]).relu_()
        torch.softmax(torch.mm(self.layers[1], features, out=attention), 0, out=attention)
        by_colour.mul_(attention.view(9, rows, self.width))
        torch.mm(self.layers[2], neighbours, out=hidden[: len(self.layers[2])]).relu_()
        return torch.mm(self.layers[3], hidden, out=pixel_weights).view(1, -1, rows, self.width)


# ---- channel_split_transform ----


def concatenated(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    same, transformed = torch.split(features, features.shape[1] // 2, dim=1)
    return torch.cat([same, transformed * scale + shift], dim=1)


def in_two_parts(out: Tensor, features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    half = features.shape[1] // 2
    out[:, :half].copy_(features[:, :half])
    torch.addcmul(shift, features[:, half:], scale, out=out[:, half:])
    return out
