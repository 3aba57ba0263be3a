"""Networks that see what is where in a photo: SCL-LLE trains through one, `fastenh evaluate` asks one what it sees.

They are those of segmentation-models-pytorch (MIT): `pip install 'fastenh[segmentation]'`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.models.tensors import as_float32, open_safetensors, read_pth

STRIDE = 32  # sides that every network takes are multiples of it
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
CLASSES = 19  # of Cityscapes, where no file says how many


class Segmentation(nn.Module):
    """DeepLabv3+ (Chen et al., ECCV 2018) or its like: (B, 3, H, W) sRGB in [0, 1] → scores (B, S, H, W) of S classes.

    Images of any size enter less ImageNet's mean, over its deviation, their right and lower edges repeated until the
    sides are multiples of 32.

    Args:
        weights: a .safetensors or .pth file with the `state_dict` of such a network, as segmentation-models-pytorch
            names it; or "random". It says how many classes there are; of random ones there are 19.
        arch, encoder: names of segmentation-models-pytorch, such as "deeplabv3plus" and "resnet50".

    Nothing is unpickled but tensors, nothing is downloaded. FileNotFoundError, or ValueError in one line if the package
    is not there or the file holds other weights.
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
    """The tensors of a .safetensors file, or what is in a .pth file, by `read_pth`; errors are of one line."""
    if Path(path).suffix.lower() != ".safetensors":
        return read_pth(path)
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
