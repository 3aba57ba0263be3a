"""Loss terms of portrait retouching: human-region priority, attention supervision, group-level consistency.

Liang, Zeng, Cui, Xie, Zhang: "PPR10K", CVPR 2021 (human-region priority, group-level consistency of two crops).
Wang, Lu, Yan, Zhao: "Learning Pixel-Adaptive Weights for Portrait Photo Retouching" (edge supervision, GAM).

Every term is a mean over the photos of a batch, in float32, so the mean over equal parts of a batch equals that of the
batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.losses.lab import rgb_to_lab


def human_region_mse(output: Tensor, target: Tensor, mask: Tensor, weight: float = 5.0) -> Tensor:
    """mean((W · output − W · target)²), W = `weight` on human pixels and 1 elsewhere: errors on people count weight².

    output and target (B, 3, H, W), mask (B, 1, H, W), 1 on human pixels and 0 elsewhere → a scalar.
    """
    weights = 1 + (weight - 1) * mask.float()
    return (weights * (output.float() - target.float())).square().mean()


def overlap_mse(first: Tensor, second: Tensor, corners: Tensor) -> Tensor:
    """Group-level consistency (GLC): MSE between two crops of one photo where they overlap, mean over the batch.

    first and second (B, 3, H, W) are retouched crops; `corners` (B, 2, 2), int, states their positions in the photo:
    corners[b, i] = (top, left) of crop i. Crops that do not overlap add 0.
    """
    height, width = first.shape[2:]
    total = first.new_zeros((), dtype=torch.float32)
    for one, other, ((top, left), (other_top, other_left)) in zip(first, second, corners.tolist(), strict=True):
        down, right = other_top - top, other_left - left  # position of the second crop in the first
        if abs(down) < height and abs(right) < width:
            one = one[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
            other = other[:, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
            total = total + (one.float() - other.float()).square().mean()
    return total / len(first)


def affinity(mask: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Which neighbours of each pixel have its label, and which pixels lie on an edge.

    mask (B, 1, H, W), 1 on human pixels and 0 elsewhere → affinity (B, k², H, W), 1 where the neighbour's label equals
    the pixel's (the paper's "inclusive-or", read as XNOR), in the order of `context_voxels`; and edge (B, 1, H, W),
    true where the k×k window contains both labels. Neighbours outside the frame have no label: their affinity is 0,
    and they make no edge.
    """
    batch, _, height, width = mask.shape
    reach = kernel_size // 2
    padded = F.pad(mask.float(), [reach] * 4, value=-1.0)
    neighbours = F.unfold(padded, kernel_size).view(batch, kernel_size**2, height, width)
    same = neighbours == mask
    other = ~same & (neighbours >= 0)
    return same.float(), other.any(1, keepdim=True)


def attention_supervision(attention: Tensor, mask: Tensor, edge: bool = True, normalised: bool = True) -> Tensor:
    """Binary cross-entropy between LAM's attention and the affinity of the mask's labels.

        target = affinity / Σ over neighbours of affinity        (with normalised=False: affinity)
        loss = mean over photos of mean over pixels of mean over neighbours of −(t log a + (1 − t) log(1 − a))

    A softmax over the k² neighbours sums to 1 and cannot be 1 at several of them, so its target is normalised in the
    same way: all neighbours with the pixel's label have equal shares. Sigmoids can, so their target is the affinity.

    Args:
        attention: (B, k², H, W) in [0, 1].
        mask: (B, 1, H, W), 1 on human pixels and 0 elsewhere.
        edge: whether to average only over edge pixels, whose window contains both labels; a photo without any adds 0.
        normalised: whether attention is a softmax.
    """
    target, on_edge = affinity(mask, round(attention.shape[1] ** 0.5))
    if normalised:
        target = target / target.sum(1, keepdim=True)  # never 0: each pixel is its own neighbour
    a = attention.float()
    tiny = 1e-12  # keeps gradients finite; torch's own function raises on NaN, on GPUs by a device assertion
    losses = -(target * (a + tiny).log() + (1 - target) * (1 - a + tiny).log()).mean(1, keepdim=True)
    if not edge:
        return losses.mean()
    return ((losses * on_edge).sum((1, 2, 3)) / on_edge.sum((1, 2, 3)).clamp_min(1)).mean()


def mean_colour(image: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB in [0, 1] → (B, 2), mean a* and mean b* (Lab, D65) of each photo."""
    return rgb_to_lab(image)[:, 1:].mean((2, 3))


def group_style(output: Tensor, count: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """GAM: Var(mean a*) + Var(mean b*) over a retouched photo and the other targets of its group, mean over the batch.

    The variance is unbiased, as in the metric M_GLC. The m other targets enter by statistics of their mean a* and
    mean b*, v, computed once in advance:

        Var = (spread + (x − mean)² · m / (m + 1)) / m,   x the value of the retouched photo

    Args:
        output: (B, 3, H, W), retouched, sRGB in [0, 1].
        count: (B,), m, at least 1.
        mean: (B, 2), mean of v.
        spread: (B, 2), Σ (v − mean)².
    """
    count = count[:, None].float()
    variance = (spread + (mean_colour(output) - mean).square() * count / (count + 1)) / count
    return variance.sum(1).mean()
