"""The contrastive and semantic terms of SCL-LLE, which train curves for low light.

Liang, Li, Wei, Yang, Zhang, Yang, Du, Zhou: "Semantically Contrastive Learning for Low-light Image Enhancement", AAAI
2022. The terms and margins are the paper's. What it leaves open follows the authors' code, but means replace sums that
would grow with the photo. The total:

    5 · gram_contrast + 10 · brightness_contrast            L_c, Eq. 5
    + brightness_consistency + label_cross_entropy          L_sc, Eq. 7
    + feature_retention                                     L_fr, Eq. 8
    + 8 · colour_constancy(order=1) + 200 · curve_variation L_cc, Eq. 9

The paper states only the weight 200; 5, 10 and 8 are from the code, which has the two margins swapped.

Images are (B, 3, H, W) sRGB floats in [0, 1]; brightness is the mean of R, G and B. Every term is a mean over the
photos of a batch, in float32 or wider, so the mean over equal parts of a batch equals that of the batch. Gradients flow
through `frozen` networks to the enhanced photo; the networks themselves get none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.losses.curve import brightness, gradients
from fastenh.models.published import as_float32, check_tensors

IGNORE = 255  # the label of pixels without a class
N_LABELS = 256

Network = TypeVar("Network", bound=nn.Module)


def frozen(network: Network) -> Network:
    """The network itself, in eval mode, with no trainable parameters."""
    return network.eval().requires_grad_(False)


class VGGFeatures(nn.Module):
    """Features of a frozen VGG-16 (Simonyan and Zisserman, ICLR 2015): (B, 3, H, W) → one tensor per requested layer.

    relu1_2 is (B, 64, H, W), relu2_2 (B, 128, H/2, W/2), relu4_3 (B, 512, H/8, W/8), sizes rounded down. As in
    SCL-LLE's code, relu1_2 and relu2_2 are for `gram_contrast` and relu4_3 for `feature_retention`, and images are not
    normalised by ImageNet's mean and deviation.

    Args:
        weights: "imagenet", which torchvision downloads once; a .pth or .safetensors file of torchvision's `vgg16`; or
            "random".

    Only tensors are unpickled. Raises FileNotFoundError, or ValueError in one line, if there are no such weights.
    """

    LAYERS = {"relu1_2": 4, "relu2_2": 9, "relu4_3": 23}  # depth in torchvision's `vgg16().features`

    def __init__(self, weights: str | Path = "imagenet") -> None:
        super().__init__()
        try:
            from torchvision.models import VGG16_Weights, vgg16
        except ImportError:
            raise ValueError("VGG-16: expected torchvision to be installed: pip install 'fastenh[train]'") from None
        with torch.device("meta"):  # allocates nothing for the large layers that are not used
            self.features = vgg16(init_weights=False).features[: max(self.LAYERS.values())]
        expected = self.state_dict()
        if weights == "random":
            found = {key: torch.zeros(t.shape) for key, t in expected.items()}
            for tensor in found.values():
                if tensor.ndim == 4:
                    nn.init.kaiming_normal_(tensor, nonlinearity="relu")
        elif weights == "imagenet":
            published = VGG16_Weights.IMAGENET1K_V1
            try:
                found = dict(published.get_state_dict(progress=False, check_hash=True, weights_only=True))
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"VGG-16: expected to download its ImageNet weights, got {type(error).__name__}; without network, "
                    f"fetch and name this file: {published.url}"
                ) from None
        else:
            from fastenh.models.segmentation import read_weights

            found = read_weights(weights)
        check_tensors(weights, found, expected, "a VGG-16 as torchvision names it")
        self.load_state_dict({key: as_float32(weights, key, found[key]) for key in expected}, assign=True)
        frozen(self)

    def forward(self, image: Tensor, *layers: str) -> list[Tensor]:
        found = {}
        for depth, layer in enumerate(self.features[: max(self.LAYERS[name] for name in layers)], 1):
            image = layer(image)
            found[depth] = image
        return [found[self.LAYERS[name]] for name in layers]


def gram_matrix(features: Tensor) -> Tensor:
    """G_ij = Σ_k f_ik f_jk / (C·H·W), k over pixels (Eq. 2, normalised as in the code): (B, C, H, W) → (B, C, C)."""
    with torch.autocast(features.device.type, enabled=False):  # sums over a whole photo overflow half precision
        f = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)
        return f @ (f.mT / f[0].numel())


def gram_contrast(
    output: Sequence[Tensor],
    positive: Sequence[Tensor],
    negative: Sequence[Tensor] | None,
    margin: float = 0.3,
) -> Tensor:
    """mean over photos of max(d(o, p) − d(o, n) + margin, 0): towards the style of p, well lit, and away from n.

    d = Σ over layers of ‖G − G'‖², the squared Frobenius norm; G is the `gram_matrix` of a layer's features. Each
    argument has one tensor (B, C, H, W) per layer; photo b of `output` is compared with photo b of the others, whose
    sizes may differ. Without negatives d(o, n) is 0.
    """
    near = torch.stack([_gram_distance(o, p) for o, p in zip(output, positive, strict=True)]).sum(0)
    far = near.new_zeros(())
    if negative is not None:
        far = torch.stack([_gram_distance(o, n) for o, n in zip(output, negative, strict=True)]).sum(0)
    return F.relu(near - far + margin).mean()


def brightness_contrast(output: Tensor, positive: Tensor, negative: Tensor | None, margin: float = 0.04) -> Tensor:
    """mean over photos of max(d(o, p) − d(o, n) + margin, 0): towards the brightness of p, well lit, and away from n.

    d = |E − E'|, E the mean brightness of a photo. (The code compares unpaired photos pixel by pixel.) All arguments
    are (B, 3, H, W) with the same B; sizes may differ. Without negatives d(o, n) is 0.
    """
    o, p = (brightness(image).mean((1, 2, 3)) for image in (output, positive))
    far = 0 if negative is None else (o - brightness(negative).mean((1, 2, 3))).abs()
    return F.relu((o - p).abs() - far + margin).mean()


def brightness_consistency(output: Tensor, labels: Tensor) -> Tensor:
    """Evens the brightness within each class: mean over photos of (1/N) Σ_s Σ_{i∈s} (Bᵢ − B_s)² (Eq. 6 and 7).

    B_s is the mean brightness of class s in the photo, N the number of pixels with a class (the paper has no 1/N).
    Classes without pixels, and photos without classes, add 0.

    output (B, 3, H, W); labels (B, H, W), integers from 0 to 254, or 255 for no class.
    """
    values = brightness(output).squeeze(1)
    known = _known(labels, values.shape)
    bins = labels.long() + N_LABELS * torch.arange(len(labels), device=labels.device)[:, None, None]
    count = torch.bincount(bins.flatten(), minlength=N_LABELS * len(labels)).clamp_min(1)
    mean = values.new_zeros(len(count)).index_add(0, bins.flatten(), values.flatten()) / count
    return _mean_where((values - mean[bins]).square(), known)


def label_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Keeps photos recognisable to a segmentation network: mean over photos of the mean over pixels of −log q.

    q is the softmax of the network's scores for the enhanced photo at the pixel's own class (Eq. 7). Pixels without a
    class are left out; a photo without any other adds 0.

    scores (B, S, H, W); labels (B, H, W), integers from 0 to S − 1, or 255 for no class.
    """
    known = _known(labels, scores[:, 0].shape, scores.shape[1])
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    losses = F.cross_entropy(scores, labels.long(), ignore_index=IGNORE, reduction="none")
    return _mean_where(losses, known)


def feature_retention(output: Tensor, image: Tensor) -> Tensor:
    """Keeps the content of the photo: the mean squared difference of one layer's features before and after (Eq. 8).

    output and image (B, C, H, W) are features of the enhanced photo and of the photo itself.
    """
    kind = torch.promote_types(output.dtype, torch.float32)
    return (output.to(kind) - image.to(kind)).square().mean()


def curve_variation(curves: Tensor) -> Tensor:
    """Keeps curve maps smooth: mean over photos and iterations of Σ_c (mean|∇x A_c| + mean|∇y A_c|).

    The second part of Eq. 9: not squared, c over R, G and B, with means over pixels where the paper writes sums.
    curves (B, 3·M, H, W) are the maps of M iterations; maps that all iterations share occur once.
    """
    across, down = gradients(curves)
    return 3 * (across.abs().mean() + down.abs().mean())


def _gram_distance(features: Tensor, others: Tensor) -> Tensor:
    return (gram_matrix(features) - gram_matrix(others)).square().sum((1, 2))


def _known(labels: Tensor, shape: torch.Size, classes: int = IGNORE) -> Tensor:
    """Where labels name a class. Raises ValueError; on a GPU a label out of range would abort the process."""
    if labels.shape != shape or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: expected integers of shape {tuple(shape)}, got {labels.dtype} {tuple(labels.shape)}")
    known = labels != IGNORE
    if wrong := labels[known & ((labels < 0) | (labels >= classes))].unique().tolist():
        raise ValueError(f"labels: expected 0 to {classes - 1}, or {IGNORE} for no class, got {wrong[:4]}")
    return known


def _mean_where(values: Tensor, known: Tensor) -> Tensor:
    """Mean over photos of the mean over known pixels, 0 if there are none: (B, H, W) → a scalar."""
    return ((values * known).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)).mean()
