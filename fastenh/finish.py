"""What takes back the side effects of a lift: noise that came up with the dark, highlights that ran into white.

Both look at a photo before and after whatever model, (B, 3, H, W) floats in [0, 1], on any device, and return what the
photo after is to be. `finish` applies them to photos of any dtype, in bands of rows, so that they take little memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.ops.op import from_float, to_float

RADIUS = 4  # of the guided filter's windows, in pixels
NOISE = 0.015  # standard deviation, in the photo before, of what is taken for noise
KNEE, WHITE = 0.8, 254 / 255  # where highlights begin to be held back, and what they never reach
HALO = 2 * RADIUS  # how far a denoised pixel looks: windows of windows
BAND = 2**20  # pixels that are worked on at once


def finish(before: Tensor, after: Tensor, *, noise: bool, highlights: bool) -> Tensor:
    """`denoise` where noise is to be taken back, then `protect_highlights` where these are; shape and dtype of `after`.

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
    """min(after, max(before, shoulder(after))): what was not white does not become white, in each channel.

    The shoulder leaves values up to 0.8 as they are and bends those above towards 254/255, which none reaches. What was
    already lighter than that stays, and nothing becomes darker than it was.
    """
    room = WHITE - KNEE
    over = (after - KNEE).clamp_min(0) / room
    return torch.minimum(after, torch.maximum(before, torch.where(over > 0, KNEE + room * over / (1 + over), after)))


def denoise(before: Tensor, after: Tensor) -> Tensor:
    """A guided filter of the photo after, with its own colours as guide, in so far as the dark was lifted.

    He, Sun, Tang: "Guided Image Filtering", TPAMI 2013. A window of 9×9 pixels becomes a · after + (1 − a) · mean, with
    a = v / (v + ε), v the variance of all channels and ε that of noise of 0.015 before, lifted as the window is: by
    g = mean(after) / mean(before). Each pixel takes the mean of the windows it lies in, with weight 1 − 1/g: half of it
    where twice as light, nothing where the photo is as dark as before or darker.
    """
    mean, mean_before = box(after), box(before).mean(1, keepdim=True)
    variance = (box(after.square().mean(1, keepdim=True)) - mean.square().mean(1, keepdim=True)).clamp_min(0)
    gain = (mean.mean(1, keepdim=True) / mean_before.clamp_min(1e-3)).clamp_min(1)
    kept = variance / (variance + (NOISE * gain).square())
    smooth = box(kept) * after + box((1 - kept) * mean)
    return after.lerp(smooth, 1 - 1 / gain)


def box(x: Tensor) -> Tensor:
    """The mean over the window around each pixel, of those that lie in the photo."""
    for size in ((1, 2 * RADIUS + 1), (2 * RADIUS + 1, 1)):
        x = F.avg_pool2d(x, size, 1, (size[0] // 2, size[1] // 2), count_include_pad=False)
    return x
