"""Damage to photos, for training and measuring: wrong exposure, tint and tone, darkness, sensor noise, 8 bits.

Images are (B, 3, H, W) sRGB floats in [0, 1]. The strength of a damage is one number, or one per image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Amount = np.ndarray | float


def to_linear(srgb: Tensor) -> Tensor:
    """sRGB-encoded values → linear light (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light → sRGB-encoded values, the inverse of `to_linear`."""
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def luma(rgb: Tensor) -> Tensor:
    """(…, 3, H, W) → (…, 1, H, W): 0.2126 R + 0.7152 G + 0.0722 B (BT.709) of the values as they are encoded."""
    return (rgb * torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)).sum(-3, keepdim=True)


def quantise(image: Tensor) -> Tensor:
    """The image clamped to [0, 1] and rounded to 8 bits."""
    return (image.clamp(0, 1) * 255).round() / 255


def degrade(
    image: Tensor,
    stops: Amount = 0.0,
    gains: np.ndarray | tuple[float, float, float] = (1.0, 1.0, 1.0),
    contrast: Amount = 1.0,
    gamma: Amount = 1.0,
    saturation: Amount = 1.0,
) -> Tensor:
    """The photo that a camera with wrong settings would have stored, in 8 bits.

    Exposure in `stops` and the `gains` of R, G and B, (3,) or (B, 3), act on linear light and clip, as in a sensor.
    Contrast about mid-grey, gamma and saturation act on the encoded values, as sliders in an editor do.
    """
    light = to_linear(image) * 2 ** _per_image(stops, image)
    light = light * torch.as_tensor(gains, dtype=image.dtype).view(-1, 3, 1, 1)
    encoded = to_srgb(light.clamp(0, 1))
    encoded = ((encoded - 0.5) * _per_image(contrast, image) + 0.5).clamp(0, 1) ** _per_image(gamma, image)
    grey = luma(encoded)
    return quantise(grey + (encoded - grey) * _per_image(saturation, image))


def darken(
    image: Tensor,
    gamma: Amount = 1.0,
    stops: Amount = 0.0,
    noise: Amount = 0.0,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """The photo in the dark, in 8 bits: encode(light · 2^stops + noise)^gamma.

    `noise` is the standard deviation of the sensor's noise at white, in linear light. It is proportional to
    √(light + 0.01): photon noise, and a floor of a tenth from the electronics. Without `rng` there is none.
    """
    light = to_linear(image) * 2 ** _per_image(stops, image)
    if rng is not None:
        grain = torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32))
        light = light + _per_image(noise, image) * (light + 0.01).sqrt() * grain
    return quantise(to_srgb(light.clamp(0, 1)) ** _per_image(gamma, image))


def apply_gamma(image: Tensor, gamma: float) -> Tensor:
    """image^gamma, rounded to 8 bits as in a stored photo; with gamma = 1 the image itself, not rounded."""
    return image if gamma == 1 else quantise(image.clamp(0, 1) ** gamma)


def _per_image(amount: Amount, image: Tensor) -> Tensor:
    return torch.as_tensor(amount, dtype=image.dtype).reshape(-1, 1, 1, 1)
