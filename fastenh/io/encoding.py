"""Stored pixels, (height, width, channels) as a `Header` describes them, to what a model sees, and back.

Whatever a file's colours are, models see sRGB in [0, 1]. With x the file's numbers, F the conversion to sRGB and B the
conversion back (`fastenh.io.colour.ColourSpace`), both in floats without bounds:

    s = F(x)        c = s within [0, 1]        out = x + B(s + model(c) − c) − B(s)

so that colours outside sRGB, and light above white in OpenEXR and float TIFF, keep what they have beyond c; and where
the model changes nothing, neither does the conversion there and back. With a model that enlarges, and U for bilinear
enlargement by its scale, out = B(U(s) + model(c) − U(c)) + U(x − B(s)). Alpha and further channels are kept, enlarged
by U. A model without bounds sees x itself, and out is its result.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastenh.io.colour import LUMINANCE, bands, clamp
from fastenh.io.formats.base import Header
from fastenh.ops import op
from fastenh.tiles import upscale


def model_input(pixels: np.ndarray, header: Header, bounded: bool = True) -> Tensor:
    """(3, H, W) float32: sRGB within [0, 1], or where not `bounded` the numbers as they are, gray as R = G = B."""
    x, space = planes(np.ascontiguousarray(pixels)), header.colour_space
    if not bounded:
        return unpremultiply(op.to_float(x), header)[: header.colours].expand(3, -1, -1).contiguous()
    result = torch.from_numpy(np.empty((3, *x.shape[1:]), np.float32))  # in large pages, unlike torch.empty
    if not header.premultiplied:
        return space.model_input(x[: header.colours], result)
    for band in bands(x):
        space.model_input(unpremultiply(op.to_float(x[:, band]), header)[: header.colours], result[:, band])
    return result


def apply_change(
    pixels: np.ndarray,
    retouched: Tensor,
    old: Header,
    new: Header,
    *,
    dither: bool = False,
    bounded: bool = True,
    top: int = 0,
) -> np.ndarray:
    """What a model made of `pixels`, which are described by `old`, stored as `new` says. They are rows of the photo
    from `top` on, which dithering needs to know; `retouched` is (3, H, W), or larger by the model's scale."""
    x, colours, space = planes(np.ascontiguousarray(pixels)), old.colours, old.colour_space
    scale = retouched.shape[1] // x.shape[1]
    if not bounded or scale > 1:
        result = np.empty((scale * x.shape[1], scale * x.shape[2], old.channels), new.dtype)
        for band in bands(x):  # with a row above and below, which bilinear enlargement reaches
            first, last = max(band.start - 1, 0), min(band.stop + 1, x.shape[1])
            numbers = unpremultiply(op.to_float(x[:, first:last]), old)
            after = _enlarged(numbers, retouched[:, scale * first : scale * last], old, new, scale, bounded)
            after = after[:, scale * (band.start - first) : scale * (band.stop - first)]
            place = scale * band.start
            result[place : scale * band.stop] = from_float(
                premultiply(after, new), new.dtype, dither, scale * top + place
            )
        return result
    result = np.empty(pixels.shape, new.dtype)
    if (old.encoding, old.premultiplied) == (new.encoding, False) and not (dither or new.premultiplied):
        out = planes(result)
        space.apply_change(x[:colours], retouched, out[:colours])
        for band in bands(x) if old.channels > colours else ():
            out[colours:, band] = op.from_float(op.to_float(x[colours:, band]), out.dtype)
        return result
    for band in bands(x):
        numbers = unpremultiply(op.to_float(x[:, band]), old)
        if new.encoding == old.encoding:
            after = space.apply_change(numbers[:colours], retouched[:, band])
        else:
            encoded = space.to_srgb(numbers[:colours])
            after = new.colour_space.from_srgb(encoded + (retouched[:, band] - clamp(encoded)))
        numbers = premultiply(torch.cat([after, numbers[colours:]]), new)
        result[band] = from_float(numbers, new.dtype, dither, top + band.start)
    return result


def _enlarged(x: Tensor, retouched: Tensor, old: Header, new: Header, scale: int, bounded: bool) -> Tensor:
    """All channels of the result, in floats, for models that enlarge or have no bounds."""

    def enlarge(planes: Tensor) -> Tensor:
        return upscale(planes[None], scale)[0]

    colours, space = x[: old.colours], old.colour_space
    if not bounded:
        weights = torch.tensor(LUMINANCE)[:, None, None]
        after = retouched if old.colours == 3 else (retouched * weights).sum(0, keepdim=True)
        if new.encoding != old.encoding:
            after = new.colour_space.from_srgb(space.to_srgb(after))
    else:
        encoded = space.to_srgb(colours)
        wanted = enlarge(encoded.nan_to_num()) + (retouched - enlarge(clamp(encoded)))
        after = new.colour_space.from_srgb(wanted)
        if new.encoding == old.encoding:  # the error of the round trip through sRGB
            after = after + enlarge((colours - space.from_srgb(encoded)).nan_to_num(0, 0, 0))
    return torch.cat([after, enlarge(x[old.colours :])]) if old.channels > old.colours else after


def convert(pixels: np.ndarray, old: Header, new: Header, dither: bool = False, top: int = 0) -> np.ndarray:
    """Rows of a photo, from row `top` on, converted to the depth, encoding and alpha premultiplication of `new`."""
    if (old.dtype, old.encoding, old.premultiplied) == (new.dtype, new.encoding, new.premultiplied) and not dither:
        return pixels
    numbers = unpremultiply(to_float(pixels), old)
    colours = numbers[: old.colours]
    if old.encoding != new.encoding:
        colours = new.colour_space.from_srgb(old.colour_space.to_srgb(colours))
        numbers = torch.cat([colours, numbers[old.colours :]])
    return from_float(premultiply(numbers, new), new.dtype, dither, top)


# ---- numbers: (channels, rows, width) float32, 1 for full scale


def to_float(pixels: np.ndarray) -> Tensor:
    return op.to_float(planes(np.ascontiguousarray(pixels)))


def planes(pixels: np.ndarray) -> Tensor:
    """The same memory, (channels, rows, width)."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def from_float(numbers: Tensor, dtype: np.dtype, dither: bool = False, top: int = 0) -> np.ndarray:
    """Rounded to nearest; with `dither` up or down by chance, so that the mean of an area is right and gradients show
    no steps: x + t, rounded down, with t in [0, 1) by interleaved gradient noise (Jimenez, SIGGRAPH 2014), which is
    even at each scale and the same at each place of the photo, wherever rows begin."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    if dither and kind in op.FULL_SCALE:
        channels, height, width = numbers.shape
        y = torch.arange(top, top + height, dtype=torch.float64)[:, None]
        x = torch.arange(width, dtype=torch.float64)
        apart = 61.0 * torch.arange(channels, dtype=torch.float64)[:, None, None]  # else all channels rise at once
        noise = (52.9829189 * ((0.06711056 * (x + apart) + 0.00583715 * y) % 1)) % 1
        numbers = (numbers * op.FULL_SCALE[kind] + noise.float()).floor() / op.FULL_SCALE[kind]
    return np.ascontiguousarray(op.from_float(numbers, kind).permute(1, 2, 0).numpy())


def unpremultiply(numbers: Tensor, header: Header) -> Tensor:
    """Colours not multiplied by alpha; where that is 0 they are as they were."""
    if not header.premultiplied or header.alpha is None:
        return numbers
    alpha = numbers[header.alpha]
    return torch.cat([numbers[: header.colours] / torch.where(alpha > 0, alpha, 1), numbers[header.colours :]])


def premultiply(numbers: Tensor, header: Header) -> Tensor:
    if not header.premultiplied or header.alpha is None:
        return numbers
    alpha = numbers[header.alpha]
    return torch.cat([numbers[: header.colours] * torch.where(alpha > 0, alpha, 1), numbers[header.colours :]])


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rows and columns as they are seen, from how they are stored, which EXIF counts from 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
