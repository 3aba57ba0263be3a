"""Trains `LocalContextLUT` for portraits: the rows of Table 1 of "Learning Pixel-Adaptive Weights for Portrait Photo
Retouching" (Wang, Lu, Yan, Zhao), and combinations of them.

    loss = MSE + 1e-4 · (Σ TV + mean(wᴵ²)) + 10 · Σ MN + attention supervision + λ · GAM [+ GLC]

TV and MN are total variation and monotonicity of the basis LUTs, wᴵ the image's weights (`fastenh.losses`). Adam at
1e-4, 16 photos a step, 200 epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from fastenh import losses
from fastenh.data import Pairs, find_pairs
from fastenh.models import LocalContextLUT, save
from fastenh.models.lam import ResNet18
from fastenh.train.config import Settings
from fastenh.train.loop import Networks, Task, run

# Rows of Table 1. All use ResNet-18 and five LUTs; they differ only in these settings.
PRESETS: dict[str, dict[str, Any]] = {
    "3dlut": {"context": "none", "supervision": "none"},
    "liang": {"context": "none", "supervision": "none", "human_weight": 5.0},
    "liang-glc": {"context": "none", "supervision": "none", "human_weight": 5.0, "glc": 1.0},
    "lam": {},
    "lam-gam": {"gam": 1e-3},
}


@dataclass(frozen=True)
class Config(Settings):
    """Settings of portrait retouching; the defaults are the preset "lam".

    Args:
        n_luts, size, classifier, context, kernel_size, widths, attention: of `LocalContextLUT`.
        backbone: a .pth file of torchvision's ResNet-18 with ImageNet weights, or "" for random weights.
        human_weight: factor of the errors on people, before they are squared.
        supervision: of LAM's attention by the masks: "edge", "full" or "none".
        glc: weight of group-level consistency, the difference between two retouched windows of a photo, from two
            augmentations, where they overlap.
        gam: λ of the group-style aware loss.
        smoothness, monotonicity: weights of the LUTs' regularisation.
        expert: "a", "b" or "c", whose targets to learn.
        side: of the training crops, in pixels.
    """

    n_luts: int = 5
    size: int = 33
    classifier: str = "resnet18"
    context: str = "lam"
    kernel_size: int = 3
    widths: tuple[int, ...] = (64, 128)
    attention: str = "softmax"
    backbone: str = ""
    human_weight: float = 1.0
    supervision: str = "edge"
    glc: float = 0.0
    gam: float = 0.0
    smoothness: float = 1e-4
    monotonicity: float = 10.0
    expert: str = "a"
    side: int = 448

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_one_of("supervision", ("edge", "full", "none"))
        self.expect_one_of("expert", ("a", "b", "c"))
        for name in ("human_weight", "glc", "gam", "smoothness", "monotonicity"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a weight of at least 0, got {getattr(self, name)}")
        if self.supervision != "none" and self.context != "lam":
            raise ValueError(f"supervision: expected none where context is {self.context}, got {self.supervision}")
        if self.backbone and self.classifier != "resnet18":
            raise ValueError(f"backbone: expected none where classifier is {self.classifier}, got {self.backbone}")
        if self.side < 8:
            raise ValueError(f"side: expected at least 8 pixels, got {self.side}")


class Retouching(Task):
    """Training of `LocalContextLUT` on pairs of photos, see `Config`."""

    def __init__(self, config: Config, data: Path) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        model = LocalContextLUT(
            config.n_luts,
            config.size,
            config.classifier,
            config.context,
            config.kernel_size,
            config.widths,
            config.attention,
        )
        if config.backbone:
            assert isinstance(model.classifier, ResNet18)
            model.classifier.load_backbone(config.backbone)
        self.networks = {"model": model}
        self.model = model
        self.samples = Pairs(
            find_pairs(data, "train", config.expert),
            config.side,
            config.seed,
            masks=config.supervision != "none" or config.human_weight != 1,
            groups=config.gam > 0,
            windows=2 if config.glc else 1,
        )
        self.epoch = len(self.samples)

    def optimisers(self) -> dict[str, Optimizer]:
        return {"model": Adam(self.model.parameters(), self.config.learning_rate)}

    def batch(self, positions: range) -> dict[str, Tensor]:
        return self.samples.batch(positions)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        config, luts = self.config, self.model.luts
        windows = batch["input"].shape[1]
        image, target = batch["input"].flatten(0, 1), batch["target"].flatten(0, 1)
        mask = batch["mask"].flatten(0, 1) if "mask" in batch else torch.zeros_like(image[:, :1])
        output, weights, attention = self.model.compose(image)
        terms = {
            "mse": losses.human_region_mse(output, target, mask, config.human_weight),
            "smoothness": config.smoothness * (losses.total_variation(luts).sum() + weights.float().square().mean()),
            "monotonicity": config.monotonicity * losses.monotonicity(luts).sum(),
        }
        if config.supervision != "none":
            assert attention is not None
            edge, softmax = config.supervision == "edge", config.attention == "softmax"
            terms[config.supervision] = losses.attention_supervision(attention, mask, edge, softmax)
        if config.glc:
            first, second = output.unflatten(0, (-1, windows)).unbind(1)
            terms["glc"] = config.glc * losses.overlap_mse(first, second, batch["corners"])
        if config.gam:
            group = (batch[name].repeat_interleave(windows, 0) for name in ("count", "mean", "spread"))
            terms["gam"] = config.gam * losses.group_style(output, *group)
        yield "model", terms

    def pictures(self, networks: Networks) -> dict[str, Tensor]:
        """Before, after and target, side by side, of the first three samples."""
        samples = self.samples.batch(range(3))
        before, target = samples["input"][:, 0], samples["target"][:, 0]
        after = networks["model"](before.to(self.model.luts.device)).cpu()
        triples = torch.cat([before, after, target], 3)
        return {f"before, after, target/{n}": triple for n, triple in enumerate(triples)}

    def finish(self, networks: Networks, folder: Path) -> None:
        model = networks["model"]
        assert isinstance(model, LocalContextLUT)
        model.about |= {"training": f"{len(self.samples)} photos; settings in config.json of the run"}
        save(model, folder / "model.safetensors")


def train(config: Config, data: Path, out: Path, resume: bool = False) -> None:
    """Trains on `data`, in PPR10K's layout or paired folders; writes model.safetensors and the run's files to `out`.

    The data is checked first: a fault raises ValueError, in one line, before anything is written.
    """
    run(Retouching(config, data), config, out, resume)
