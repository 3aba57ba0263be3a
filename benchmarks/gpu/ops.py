"""What is measured on a GPU: each op, its inputs, and its equivalents in plain PyTorch, as users write it and at its
best."""

from __future__ import annotations

from collections.abc import Callable

import inputs
import peers
import torch
from torch import Tensor

from fastenh.ops import (
    channel_split_transform,
    context_voxels,
    curve_iterate,
    local_context_retouch,
    lut_1d_transform,
    lut_transform,
)


def as_float(t: Tensor) -> Tensor:
    """float32 at least, uint8 divided by its full scale."""
    x = t.to(torch.promote_types(t.dtype, torch.float32))
    return x / 255 if t.dtype is torch.uint8 else x


def as_dtype(result: Tensor, dtype: torch.dtype) -> Tensor:
    return (result.clamp(0, 1) * 255).round().to(dtype) if dtype is torch.uint8 else result.to(dtype)


def float_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of maps and weights for an image of this dtype."""
    return torch.float16 if dtype is torch.uint8 else dtype


class OneLUT:
    """LUTs stay float32, like learned parameters; grid_sample then computes in float32, as under autocast."""

    name = "lut_transform, one LUT"
    integers, looks_up, gradients = True, True, True

    def inputs(self, picture: Tensor, dtype: torch.dtype) -> list[Tensor]:
        return [as_dtype(picture, dtype), inputs.luts(1).to(picture.device)]

    def ours(self, image: Tensor, luts: Tensor, out: Tensor | None = None) -> Tensor:
        return lut_transform(image, luts, out=out)

    def written(self, image: Tensor, luts: Tensor) -> Tensor:
        return as_dtype(peers.sample(luts, peers.make_grid(as_float(image))), image.dtype)

    def reusing(self, image: Tensor, luts: Tensor) -> Callable[[], Tensor]:
        dtype, full = float_of(image.dtype), 255 if image.dtype is torch.uint8 else 1
        table, out = (luts * full).to(dtype), torch.empty_like(image)
        grid = torch.empty_like(image.permute(0, 2, 3, 1)[:, None], dtype=dtype, memory_format=torch.contiguous_format)

        def call() -> Tensor:
            torch.mul(image.permute(0, 2, 3, 1)[:, None], 2 / full, out=grid).sub_(1)
            colours = peers.sample(table, grid)
            return colours if full == 1 else out.copy_(colours.round_().clamp_(0, 255))

        return call

    def bytes_backward(self, *tensors: Tensor) -> int:
        """The bytes of inputs read and gradients written, without the output's gradient."""
        return 2 * sum(t.nbytes for t in tensors)


class FiveLUTs(OneLUT):
    name = "lut_transform, 5 LUTs, pixel weights"

    def inputs(self, picture: Tensor, dtype: torch.dtype) -> list[Tensor]:
        pixel_weights = inputs.maps(5, 0.1, picture.shape[-2:], picture.device).mul_(2).softmax(1)
        return [as_dtype(picture, dtype), inputs.luts(5).to(picture.device), pixel_weights.to(float_of(dtype))]

    def ours(self, image: Tensor, luts: Tensor, pixel_weights: Tensor, out: Tensor | None = None) -> Tensor:
        return lut_transform(image, luts, None, pixel_weights, out=out)

    def written(self, image: Tensor, luts: Tensor, pixel_weights: Tensor) -> Tensor:
        return as_dtype(peers.weighted_sum(as_float(image), luts, pixel_weights), image.dtype)

    def reusing(self, image: Tensor, luts: Tensor, pixel_weights: Tensor) -> Callable[[], Tensor]:
        dtype, full = float_of(image.dtype), 255 if image.dtype is torch.uint8 else 1
        tables, out = (luts * full).to(dtype), torch.empty_like(image)
        total = torch.empty_like(image, dtype=dtype)
        grid = torch.empty_like(image.permute(0, 2, 3, 1)[:, None], dtype=dtype, memory_format=torch.contiguous_format)

        def call() -> Tensor:
            torch.mul(image.permute(0, 2, 3, 1)[:, None], 2 / full, out=grid).sub_(1)
            peers.blend_into(total, grid, tables, pixel_weights)
            return total if full == 1 else out.copy_(total.round_().clamp_(0, 255))

        return call


class ShapedLUT(OneLUT):
    name = "lut_1d_transform, 1024 entries, one LUT"

    def inputs(self, picture: Tensor, dtype: torch.dtype) -> list[Tensor]:
        shaper = torch.linspace(0, 1, 1024, device=picture.device).sqrt().expand(1, 3, -1).contiguous()
        return [as_dtype(picture, dtype), shaper, inputs.luts(1).to(picture.device)]

    def ours(self, image: Tensor, shaper: Tensor, luts: Tensor, out: Tensor | None = None) -> Tensor:
        return lut_1d_transform(image, shaper, luts, out=out)

    def written(self, image: Tensor, shaper: Tensor, luts: Tensor) -> Tensor:
        between = peers.between_entries(as_float(image), shaper)
        return as_dtype(peers.sample(luts, peers.make_grid(between)), image.dtype)

    def reusing(self, image: Tensor, shaper: Tensor, luts: Tensor) -> Callable[[], Tensor]:
        out = torch.empty_like(image)
        return lambda: out.copy_(self.written(image, shaper, luts))


class CurveMaps:
    name = "curve_iterate, 8 iterations, 24 maps"
    integers, looks_up, gradients = True, False, True

    def inputs(self, picture: Tensor, dtype: torch.dtype) -> list[Tensor]:
        curves = inputs.maps(24, 0.02, picture.shape[-2:], picture.device)
        return [as_dtype(picture, dtype), curves.to(float_of(dtype))]

    def ours(self, image: Tensor, curves: Tensor, out: Tensor | None = None) -> Tensor:
        return curve_iterate(image, curves, out=out)

    def written(self, image: Tensor, curves: Tensor) -> Tensor:
        x = as_float(image) if image.dtype is torch.uint8 else image
        return as_dtype(peers.iterate(x, self.resampled(curves, image)), image.dtype)

    def resampled(self, curves: Tensor, image: Tensor) -> Tensor:
        return curves

    def reusing(self, image: Tensor, curves: Tensor) -> Callable[[], Tensor]:
        dtype, full = float_of(image.dtype), 255 if image.dtype is torch.uint8 else 1
        out, total, scratch = torch.empty_like(image), *(torch.empty_like(image, dtype=dtype) for _ in range(2))
        first = image if full == 1 else torch.empty_like(total)
        upsampled = None
        if curves.shape[-2:] != image.shape[-2:]:
            upsampled = curves.new_empty(*curves.shape[:2], *image.shape[-2:])

        def call() -> Tensor:
            maps = curves if upsampled is None else peers.upsample_into(upsampled, curves)
            if full != 1:
                torch.div(image, full, out=first)
            peers.iterate_into(total, first, maps, scratch)
            return total if full == 1 else out.copy_(total.mul_(full).round_().clamp_(0, full))

        return call

    def bytes_backward(self, *tensors: Tensor) -> int:
        return 2 * sum(t.nbytes for t in tensors)


class CurveLowResolution(CurveMaps):
    name = "curve_iterate, 8 iterations, one map of 1/12"

    def inputs(self, picture: Tensor, dtype: torch.dtype) -> list[Tensor]:
        size = [side // 12 for side in picture.shape[-2:]]
        return [as_dtype(picture, dtype), inputs.maps(3, 0.02, size, picture.device).to(float_of(dtype))]

    def resampled(self, curves: Tensor, image: Tensor) -> Tensor:
        return peers.upsample(curves, image)


class ContextVoxels:
    name = "context_voxels, 3 x 3"
    integers, looks_up, gradients = False, False, True

    def inputs(self, picture: Tensor, dtype: torch.dtype) -> list[Tensor]:
        attention = inputs.maps(9, 0.1, picture.shape[-2:], picture.device).mul_(2).softmax(1)
        return [picture.to(dtype), attention.to(dtype)]

    def ours(self, image: Tensor, attention: Tensor, out: Tensor | None = None) -> Tensor:
        return context_voxels(image, attention, out=out)

    def written(self, image: Tensor, attention: Tensor) -> Tensor:
        return peers.unfolded(image, attention)

    def reusing(self, image: Tensor, attention: Tensor) -> Callable[[], Tensor]:
        shifts = peers.shifts(image)
        out = image.new_empty(image.shape[0], 27, *image.shape[-2:])

        def call() -> Tensor:
            shifts[4].copy_(image)
            return peers.nine_products(out, attention, *shifts)

        return call

    def bytes_backward(self, *tensors: Tensor) -> int:
        return 2 * sum(t.nbytes for t in tensors)


class LocalContext:
    """The layers have the image's dtype, as under autocast; LUTs are as in OneLUT."""

    name = "local_context_retouch, 5 LUTs, 3 x 3"
    integers, looks_up, gradients = True, True, False

    def inputs(self, picture: Tensor, dtype: torch.dtype) -> list[Tensor]:
        weights = torch.tensor([[0.3, 0.1, 0.2, 0.15, 0.25]])
        return [
            as_dtype(picture, dtype),
            *(t.to(picture.device) for t in (inputs.luts(5), weights, *inputs.layers(64, 128, 5))),
        ]

    def ours(self, image: Tensor, luts: Tensor, weights: Tensor, *params: Tensor, out: Tensor | None = None) -> Tensor:
        return local_context_retouch(image, luts, weights, params, out=out)

    def written(self, image: Tensor, luts: Tensor, weights: Tensor, *params: Tensor) -> Tensor:
        x = as_float(image)
        pixel_weights = peers.local_context(x.to(float_of(image.dtype)), *params) * weights[..., None, None]
        return as_dtype(peers.weighted_sum(x, luts, pixel_weights), image.dtype)

    def reusing(self, image: Tensor, luts: Tensor, weights: Tensor, *params: Tensor) -> Callable[[], Tensor]:
        dtype, full = float_of(image.dtype), 255 if image.dtype is torch.uint8 else 1
        tables = (luts * weights[0][:, None, None, None, None] * full).to(dtype)
        out, total = torch.empty_like(image), torch.empty_like(image, dtype=dtype)
        shifts = peers.shifts(torch.empty_like(total))
        layers = peers.LocalContextInStrips(total, list(params))
        grid = torch.empty_like(image.permute(0, 2, 3, 1)[:, None], dtype=dtype, memory_format=torch.contiguous_format)

        def call() -> Tensor:
            shifts[4].copy_(image)
            if full != 1:
                shifts[4].div_(full)
            torch.mul(image.permute(0, 2, 3, 1)[:, None], 2 / full, out=grid).sub_(1)
            for top in range(0, image.shape[2], layers.ROWS):
                rows = slice(top, top + layers.ROWS)
                pixel_weights = layers([shift[:, :, rows] for shift in shifts])
                peers.blend_into(total[:, :, rows], grid[:, :, rows], tables, pixel_weights)
            return total if full == 1 else out.copy_(total.round_().clamp_(0, 255))

        return call


class ChannelSplit:
    """64 channels at a quarter of the image's height and width: twice the bytes of OneLUT."""

    name = "channel_split_transform, 64 channels at 1/4"
    integers, looks_up, gradients = False, False, True

    def inputs(self, picture: Tensor, dtype: torch.dtype) -> list[Tensor]:
        size = [side // 4 for side in picture.shape[-2:]]
        features, scale, shift = (inputs.maps(channels, 0.3, size, picture.device) for channels in (64, 32, 33))
        return [t.to(dtype) for t in (features, scale, shift[:, :32])]

    def ours(self, features: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
        return channel_split_transform(features, scale, shift, out=out)

    def written(self, features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return peers.concatenated(features, scale, shift)

    def reusing(self, features: Tensor, scale: Tensor, shift: Tensor) -> Callable[[], Tensor]:
        out = torch.empty_like(features)
        return lambda: peers.in_two_parts(out, features, scale, shift)

    def bytes_backward(self, features: Tensor, scale: Tensor, shift: Tensor) -> int:
        """The passed channels and the shift are not read; the shift's gradient is a view of the output's."""
        return features.nbytes // 2 + features.nbytes + 2 * scale.nbytes


ALL = (
    OneLUT(),
    FiveLUTs(),
    ShapedLUT(),
    CurveMaps(),
    CurveLowResolution(),
    ContextVoxels(),
    ChannelSplit(),
    LocalContext(),
)
OPS = {op.name: op for op in ALL}
ONE_LUT, FIVE_LUTS, SHAPED_LUT, CURVE_MAPS, CURVE_LOW, VOXELS, SPLIT, LOCAL = OPS
