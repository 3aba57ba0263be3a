"""Semantic segmentation networks, which SCL-LLE trains with and `fastenh evaluate --segmentation` measures.

They come from segmentation-models-pytorch (MIT): `pip install 'fastenh[segmentation]'`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.models.checkpoint import open_safetensors
from fastenh.models.published import as_float32, read_pth

STRIDE = 32  # the networks require sides that are multiples of it
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
CLASSES = 19  # of random networks, as in Cityscapes


class Segmentation(nn.Module):
    """DeepLabv3+ (Chen et al., ECCV 2018) or a similar network: (B, 3, H, W) sRGB in [0, 1] → scores (B, S, H, W) of S
    classes.

    Images may have any size. They are normalised with ImageNet's mean and standard deviation, and their right and lower
    edges are repeated until the sides are multiples of 32.

    Args:
        weights: a .safetensors or .pth file with the `state_dict` of such a network, with the keys of
            segmentation-models-pytorch; or "random". The file determines the number of classes; random weights have 19.
        arch, encoder: names of segmentation-models-pytorch, such as "deeplabv3plus" and "resnet50".

    Only tensors are unpickled, and nothing is downloaded. Raises FileNotFoundError, or ValueError in one line if the
    package is missing or the file contains other weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: str | Path, arch: str = "deeplabv3plus", encoder: str = "resnet50") -> None:
        super().__init__()
        try:
            import segmentation_models_pytorch as smp
        except ImportError:
            raise ValueError(
                "segmentation: expected segmentation-models-pytorch to be installed, got none: "
                "pip install 'fastenh[segmentation]'"
            ) from None
        found = None if weights == "random" else read_weights(weights)
        heads = [t for key, t in (found or {}).items() if key.startswith("segmentation_head.") and t.ndim == 4]
        try:
            self.network = smp.create_model(
                arch, encoder, encoder_weights=None, classes=len(heads[0]) if heads else CLASSES
            )
        except KeyError as error:
            raise ValueError(f"segmentation: expected names that segmentation-models-pytorch knows: {error}") from None
        if found is not None:
            for key, tensor in found.items():
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    found[key] = as_float32(weights, key, tensor)
            try:
                self.network.load_state_dict(found)
            except RuntimeError as error:
                line = " ".join(str(error).split())
                raise ValueError(
                    f"{weights}: expected the weights of {arch} on {encoder}, got others ({line:.160})"
                ) from None
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        padded = F.pad(
            (image - self.mean) / self.deviation, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate"
        )
        return self.network(padded)[..., :height, :width]


def read_weights(path: str | Path) -> dict[str, Any]:
    """The tensors of a .safetensors file, or the content of a .pth file from `read_pth`; errors are one line."""
    if Path(path).suffix.lower() != ".safetensors":
        return read_pth(path)
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
