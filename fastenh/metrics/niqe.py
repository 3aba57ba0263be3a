"""NIQE: how natural a photo looks, without a reference (Mittal, Soundararajan, Bovik, "Making a 'Completely Blind'
Image Quality Analyzer", IEEE Signal Processing Letters 2013).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 96  # side of a block in pixels, at full size; half of that at half size
LUMA = (65.481, 128.553, 24.966)  # Y of ITU-R BT.601, 16 to 235
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


class Pristine(NamedTuple):
    """Statistics of the features of pristine photos, to which NIQE measures the distance. float64."""

    mean: Tensor  # (36,)
    covariance: Tensor  # (36, 36)
    window: Tensor  # (7, 7), the Gaussian of local means and deviations


def load_pristine(path: str | Path) -> Pristine:
    """Reads pristine parameters from a .npz file with `mu_pris_param`, `cov_pris_param` and `gaussian_window`.

    fastenh contains none: those of NIQE's authors are published as niqe_pris_params.npz, for example in BasicSR.
    Nothing is unpickled. Raises FileNotFoundError, or ValueError in one line if the file contains anything else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile):
        raise ValueError(f"{path}: expected NIQE's pristine parameters as .npz, got no such file") from None
    tensors = []
    for name, shape in (("mu_pris_param", (1, 36)), ("cov_pris_param", (36, 36)), ("gaussian_window", (7, 7))):
        array = found.get(name)
        if array is None or array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            got = "none" if array is None else f"{array.dtype} of {array.shape}"
            raise ValueError(f"{path}: expected {name}, finite floats of {shape}, got {got}")
        tensors.append(torch.from_numpy(array).double())
    return Pristine(tensors[0][0], *tensors[1:])


def niqe(image: Tensor, pristine: Pristine) -> Tensor:
    """The Natural Image Quality Evaluator, lower is better: √((μ − μₚ)ᵀ · pinv((Σ + Σₚ) / 2) · (μ − μₚ)).

    μ and Σ are mean and covariance, over blocks of 96×96 pixels, of 36 features of luma (BT.601, rounded). The features
    are, at full and at half size (bicubic, antialiased), the parameters of generalised Gaussians that are fitted to the
    locally normalised luma (I − m) / (s + 1) and to its products with four neighbours. Incomplete blocks are left out.

    image (B, 3, H, W) floats, sRGB in [0, 1] → (B,) float32; NaN if fewer than two blocks have texture. Papers measure
    outputs rounded to 8 bits: round them first. Raises ValueError for other shapes and for photos of fewer than two
    blocks.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"image: expected shape (B, 3, H, W), got {tuple(image.shape)}")
    height, width = image.shape[-2:]
    rows, columns = height // BLOCK, width // BLOCK
    if rows * columns < 2:
        raise ValueError(
            f"NIQE: expected at least two blocks of {BLOCK}×{BLOCK} pixels, got a photo of {width}×{height}"
        )
    mean, covariance, window = (tensor.to(image.device) for tensor in pristine)
    results = []
    for photo in image[..., : rows * BLOCK, : columns * BLOCK]:
        red, green, blue = (factor * channel for factor, channel in zip(LUMA, photo.double(), strict=True))
        luma = (red + green + blue + 16).round()
        features = torch.cat([_features(luma, window, BLOCK), _features(_half(luma), window, BLOCK // 2)], 1)
        textured = features[~features.isnan().any(1)]
        if len(textured) < 2:
            results.append(luma.new_tensor(torch.nan))
            continue
        distance = features.nanmean(0) - mean
        both = (covariance + textured.T.cov()) / 2
        results.append((distance @ torch.linalg.pinv(both) @ distance).sqrt())
    return torch.stack(results).float()


def _features(luma: Tensor, window: Tensor, size: int) -> Tensor:
    """(H, W) → (blocks, 18); computed by rows of blocks, since each pixel needs many floats."""
    padded = F.pad(luma[None, None], [3] * 4, mode="replicate")
    rows = []
    for top in range(0, len(luma), size):
        band = padded[..., top : top + size + 6, :]
        local = F.conv2d(torch.cat([band, band.square()]), window[None, None])
        mean, deviation = local[0], (local[1] - local[0].square()).abs().sqrt()
        normalised = (band[0, :, 3:-3, 3:-3] - mean) / (deviation + 1)
        blocks = normalised.unflatten(2, (-1, size))[0].movedim(1, 0)  # (blocks, size, size)
        alpha, left, right = _asymmetric_gaussian(blocks)
        features = [alpha, (left + right) / 2]
        for shift in NEIGHBOURS:
            alpha, left, right = _asymmetric_gaussian(blocks * blocks.roll(shift, (1, 2)))
            mean = (right - left) * ((2 / alpha).lgamma() - (1 / alpha).lgamma()).exp()
            features += [alpha, mean, left, right]
        rows.append(torch.stack(features, 1))
    return torch.cat(rows)


def _asymmetric_gaussian(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape α and scales βₗ, βᵣ of each of (N, H, W), by matching moments (Lasmar, Stitou, Berthoumieu, ICIP 2009)."""
    x = blocks.flatten(1)
    square, negative, positive = x.square(), x < 0, x > 0
    left = ((square * negative).sum(1) / negative.sum(1)).sqrt()  # NaN where a block is flat
    right = ((square * positive).sum(1) / positive.sum(1)).sqrt()
    ratio = left / right
    moments = x.abs().mean(1).square() / square.mean(1)
    moments = moments * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    shapes = torch.arange(200, 10001, dtype=x.dtype, device=x.device) / 1000
    one, two, three = ((n / shapes).lgamma() for n in (1, 2, 3))
    distance = ((2 * two - one - three).exp() - moments[:, None]).abs()
    alpha = shapes[distance.argmin(1)]
    scale = (((1 / alpha).lgamma() - (3 / alpha).lgamma()) / 2).exp()
    return alpha, left * scale, right * scale


def _half(luma: Tensor) -> Tensor:
    """(H, W), even → (H/2, W/2): bicubic, antialiased, mirrored at the edges, as MATLAB's imresize."""
    for _ in range(2):
        mirrored = torch.cat([luma[:4].flip(0), luma, luma[-4:].flip(0)])
        size = (len(mirrored) // 2, luma.shape[1])
        half = F.interpolate(mirrored[None, None], size, mode="bicubic", antialias=True, align_corners=False)[0, 0]
        luma = half[2:-2].T
    return luma
