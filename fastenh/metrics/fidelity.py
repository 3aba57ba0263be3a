"""How close a retouch is to the expert's: PSNR, SSIM, ΔE_ab, and the human-centred PSNR and ΔE.

Human-centred metrics (Liang et al., "PPR10K", 2021) weight pixels by w = 1 on people and w = 0.5 elsewhere. Images are
(B, 3, H, W) floats, sRGB in [0, 1]; `human` is (B, 1, H, W), bool, True on people. All return (B,) float32.

Papers measure outputs rounded to 8 bits: round them first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh.losses.lab import rgb_to_lab
from fastenh.metrics.bands import bands

SSIM_REACH = 5  # rows of SSIM's 11×11 window above and below its centre


def psnr(image: Tensor, target: Tensor, human: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB: 10·log₁₀(1 / mean((image − target)²)), ∞ for equal images.

    With `human`, PSNR^HC: the PSNR of w·image and w·target, still with peak 1.

    Raises ValueError for shapes that do not match.
    """
    from torchmetrics.image import PeakSignalNoiseRatio

    _check(image, target, human)
    weights = _weights(human, image)
    results = []
    for photo, expert, weight in zip(image, target, weights, strict=True):
        metric = PeakSignalNoiseRatio(data_range=1.0).to(image.device)
        for rows in bands(photo[None]):
            metric.update(photo[:, rows].float() * weight[:, rows], expert[:, rows].float() * weight[:, rows])
        results.append(metric.compute())
    return torch.stack(results)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) in [−1, 1], 1 for equal images: the mean over pixels and channels.

    Gaussian window of 11×11, σ = 1.5, K₁ = 0.01, K₂ = 0.03; the image is mirrored at its edges.

    Raises ValueError for shapes that do not match, and for sides of fewer than 6 pixels, which cannot be mirrored.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(image, target, None)
    height, width = image.shape[-2:]
    if min(height, width) <= SSIM_REACH:
        raise ValueError(f"SSIM: expected at least {SSIM_REACH + 1} pixels on each side, got {width}×{height}")
    total = torch.zeros(len(image), device=image.device)
    for rows in bands(image):
        around = slice(max(0, rows.start - SSIM_REACH), rows.stop + SSIM_REACH)
        _, similarity = structural_similarity_index_measure(
            image[..., around, :].float(),
            target[..., around, :].float(),
            data_range=1.0,
            reduction="none",
            return_full_image=True,
        )
        total += similarity[..., rows.start - around.start :, :][..., : rows.stop - rows.start, :].sum((1, 2, 3))
    return total / image[0].numel()


def delta_e(image: Tensor, target: Tensor, human: Tensor | None = None) -> Tensor:
    """ΔE_ab: the mean over pixels of the Euclidean distance in CIE L*a*b* (CIE 1976, sRGB, D65).

    With `human`, ΔE^HC: the distance of w·Lab(image) and w·Lab(target), i.e. each pixel's distance times w.

    Raises ValueError for shapes that do not match.
    """
    _check(image, target, human)
    weights = _weights(human, image)
    total = torch.zeros(len(image), device=image.device)
    for rows in bands(image):
        difference = rgb_to_lab(image[..., rows, :].float()) - rgb_to_lab(target[..., rows, :].float())
        distance = difference.square().sum(1, keepdim=True).sqrt()  # several times as fast as norm on the CPU
        total += (distance * weights[..., rows, :]).sum((1, 2, 3))
    return total / image[0, 0].numel()


def _weights(human: Tensor | None, image: Tensor) -> Tensor:
    """(B, 1, H, W): 1 on people and 0.5 elsewhere; 1 without a mask."""
    if human is None:
        return torch.ones(1, device=image.device).expand(len(image), 1, *image.shape[-2:])
    return torch.where(human, 1.0, 0.5)


def _check(image: Tensor, target: Tensor, human: Tensor | None) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"image: expected shape (B, 3, H, W), got {tuple(image.shape)}")
    if target.shape != image.shape:
        raise ValueError(f"target: expected the image's shape {tuple(image.shape)}, got {tuple(target.shape)}")
    shape = (len(image), 1, *image.shape[-2:])
    if human is not None and (human.shape != shape or human.dtype != torch.bool):
        raise ValueError(f"human: expected bool of shape {shape}, got {human.dtype} of {tuple(human.shape)}")
