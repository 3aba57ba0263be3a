"""What portrait retouching adds to the error: people first, and photos of one group alike.

Liang, Zeng, Cui, Xie, Zhang: "PPR10K", CVPR 2021 (human-region priority, group-level consistency of two crops).
Wang, Lu, Yan, Zhao: "Learning Pixel-Adaptive Weights for Portrait Photo Retouching" (edge supervision, GAM).

All are means over the photos of a batch, in float32, so that the mean over the parts of a batch is that of the whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.losses.lab import rgb_to_lab


def human_region_mse(output: Tensor, target: Tensor, mask: Tensor, weight: float = 5.0) -> Tensor:
    """mean((W · output − W · target)²), W = `weight` on human pixels and 1 elsewhere: people's errors count weight².

    output and target (B, 3, H, W), mask (B, 1, H, W), 1 on human pixels and 0 elsewhere → a scalar.
    """
    weights = 1 + (weight - 1) * mask.float()
    return (weights * (output.float() - target.float())).square().mean()


def overlap_mse(first: Tensor, second: Tensor, corners: Tensor) -> Tensor:
    """Group-level consistency (GLC): how two crops of one photo differ where they overlap, mean over the batch.

    first and second (B, 3, H, W) are retouched crops, `corners` (B, 2, 2), int, says where in the photo each begins:
    corners[b, i] = (top, left) of crop i. Crops that do not overlap add 0.
    """
    height, width = first.shape[2:]
    total = first.new_zeros((), dtype=torch.float32)
    for one, other, ((top, left), (other_top, other_left)) in zip(first, second, corners.tolist(), strict=True):
        down, right = other_top - top, other_left - left  # where the second crop begins in the first
        if abs(down) < height and abs(right) < width:
            mine = one[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
            its = other[:, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
            total = total + (mine.float() - its.float()).square().mean()
    return total / len(first)


def affinity(mask: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Which neighbours of each pixel are of its kind, and which pixels lie on an edge.

    mask (B, 1, H, W), 1 on human pixels and 0 elsewhere → affinity (B, k², H, W), 1 where the neighbour's label equals
    the pixel's (the paper's "inclusive-or", read as XNOR), in the order of `context_voxels`; and edge (B, 1, H, W),
    true where the k×k window holds both labels. What lies outside the frame is of no kind: its affinity is 0, and it
    makes no edge.
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

    A softmax over the k² neighbours sums to 1 and cannot be 1 at several of them, so its target is normalised alike:
    equal shares for all neighbours of the pixel's kind. Sigmoids can, and take the affinity itself.

    Args:
        attention: (B, k², H, W) in [0, 1].
        mask: (B, 1, H, W), 1 on human pixels and 0 elsewhere.
        edge: over edge pixels alone, whose window holds both labels; a photo that has none adds 0. Else over all.
        normalised: whether attention is a softmax.
    """
    target, on_edge = affinity(mask, round(attention.shape[1] ** 0.5))
    if normalised:
        target = target / target.sum(1, keepdim=True)  # each pixel is of its own kind: never 0
    a = attention.float()
    tiny = 1e-12  # keeps gradients finite; torch's own cross-entropy refuses NaN, on GPUs by an assertion
    losses = -(target * (a + tiny).log() + (1 - target) * (1 - a + tiny).log()).mean(1, keepdim=True)
    if not edge:
        return losses.mean()
    return ((losses * on_edge).sum((1, 2, 3)) / on_edge.sum((1, 2, 3)).clamp_min(1)).mean()


def mean_colour(image: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB in [0, 1] → (B, 2), mean a* and mean b* (Lab, D65) of each photo."""
    return rgb_to_lab(image)[:, 1:].mean((2, 3))


def group_style(output: Tensor, count: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """GAM: Var(mean a*) + Var(mean b*) over a retouched photo and the other targets of its group, mean over the batch.

    The variance is unbiased, as in the measure of group-level consistency. Of the m other targets their values v, mean
    a* and mean b*, enter as sums made once, in advance:

        Var = (spread + (x − mean)² · m / (m + 1)) / m,   x of the retouched photo

    Args:
        output: (B, 3, H, W), retouched, sRGB in [0, 1].
        count: (B,), m, at least 1.
        mean: (B, 2), mean of v.
        spread: (B, 2), Σ (v − mean)².
    """
    count = count[:, None].float()
    variance = (spread + (mean_colour(output) - mean).square() * count / (count + 1)) / count
    return variance.sum(1).mean()
