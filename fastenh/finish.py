"""Remedies for the side effects of brightening: amplified noise, and highlights clipped to white.

Both compare a photo before and after any model, (B, 3, H, W) floats in [0, 1], on any device, and return the corrected
photo. `finish` applies them to photos of any dtype, in bands of rows, so that they need little memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.ops.op import from_float, to_float

RADIUS = 4  # of the guided filter's windows, in pixels
NOISE = 0.015  # standard deviation of noise in the photo before
KNEE, WHITE = 0.8, 254 / 255  # where the shoulder of highlights starts, and the value it approaches
HALO = 2 * RADIUS  # the reach of a denoised pixel: windows of windows
BAND = 2**20  # pixels processed at once


def finish(before: Tensor, after: Tensor, *, noise: bool, highlights: bool) -> Tensor:
    """`denoise` if `noise`, then `protect_highlights` if `highlights`; returns the shape and dtype of `after`.

    float16, bfloat16, float32, float64 in [0, 1], or uint8 and uint16 at full scale.
    """
    height, width = after.shape[2:]
    out, rows = torch.empty_like(after), max(64, BAND // width)
    for top in range(0, height, rows):
        bottom, start = min(top + rows, height), max(top - HALO, 0)
        was, now = (to_float(photo[:, :, start : bottom + HALO]) for photo in (before, after))
        if noise:
            now = denoise(was, now)
        if highlights:
            now = protect_highlights(was, now)
        out[:, :, top:bottom] = from_float(now[:, :, top - start : bottom - start], out.dtype)
    return out


def protect_highlights(before: Tensor, after: Tensor) -> Tensor:
    """min(after, max(before, shoulder(after))) in each channel: no value that was not white becomes white.

    The shoulder keeps values up to 0.8 and compresses those above towards 254/255, which they approach. Values that
    were already lighter are kept, and nothing becomes darker than it was.
    """
    room = WHITE - KNEE
    over = (after - KNEE).clamp_min(0) / room
    return torch.minimum(after, torch.maximum(before, torch.where(over > 0, KNEE + room * over / (1 + over), after)))


def denoise(before: Tensor, after: Tensor) -> Tensor:
    """A guided filter of the photo after, with its own colours as guide, in proportion to the gain.

    He, Sun, Tang: "Guided Image Filtering", TPAMI 2013. A window of 9×9 pixels becomes a · after + (1 − a) · mean, with
    a = v / (v + ε), v the variance over all channels and ε the variance of noise of 0.015 before, amplified by the
    window's gain g = mean(after) / mean(before). Each pixel is blended with the mean over the windows that contain it,
    with weight 1 − 1/g: one half where the photo is twice as light, 0 where it is not lighter than before.
    """
    mean, mean_before = box(after), box(before).mean(1, keepdim=True)
    variance = (box(after.square().mean(1, keepdim=True)) - mean.square().mean(1, keepdim=True)).clamp_min(0)
    gain = (mean.mean(1, keepdim=True) / mean_before.clamp_min(1e-3)).clamp_min(1)
    kept = variance / (variance + (NOISE * gain).square())
    smooth = box(kept) * after + box((1 - kept) * mean)
    return after.lerp(smooth, 1 - 1 / gain)


def box(x: Tensor) -> Tensor:
    """The mean over the window around each pixel, of the pixels inside the photo."""
    for size in ((1, 2 * RADIUS + 1), (2 * RADIUS + 1, 1)):
        x = F.avg_pool2d(x, size, 1, (size[0] // 2, size[1] // 2), count_include_pad=False)
    return x
