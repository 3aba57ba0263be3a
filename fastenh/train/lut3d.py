"""Trains `ImageAdaptiveLUT` on unpaired photos (Zeng et al., TPAMI 2020): a Wasserstein GAN with gradient penalty.

    critic:     mean D(fake) − mean D(real) + 10 · gradient penalty
    generator:  −mean D(fake) + 1000 · MSE(fake, input) + 1e-4 · (Σ TV + mean(w²)) + 10 · Σ MN

A step updates both once, each with Adam at 1e-4. TV and MN are total variation and monotonicity of the basis LUTs, w
their weights. The critic is the paper's unpaired classifier with one output. To train the same model on pairs, use
`lam.py` with context none, classifier paired and three LUTs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from fastenh import losses, ops
from fastenh.data import Unpaired
from fastenh.models import ImageAdaptiveLUT, save
from fastenh.models.lut3d import ConvClassifier
from fastenh.train.config import Settings
from fastenh.train.loop import Networks, Task, run


@dataclass(frozen=True)
class Config(Settings):
    """Settings of unpaired training.

    Args:
        n_luts, size: of `ImageAdaptiveLUT`; its classifier is "unpaired".
        penalty: weight of the gradient penalty.
        fidelity: weight of MSE(fake, input).
        smoothness, monotonicity: weights of the LUTs' regularisation.
        side: of the training crops, in pixels.
    """

    n_luts: int = 3
    size: int = 33
    penalty: float = 10.0
    fidelity: float = 1000.0
    smoothness: float = 1e-4
    monotonicity: float = 10.0
    side: int = 448

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("penalty", "fidelity", "smoothness", "monotonicity"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a weight of at least 0, got {getattr(self, name)}")
        if self.side < 8:
            raise ValueError(f"side: expected at least 8 pixels, got {self.side}")


class UnpairedRetouching(Task):
    """Learns to make photos of `train/input` look like photos of `train/target`, which may show something else."""

    def __init__(self, config: Config, data: Path) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.model = ImageAdaptiveLUT(config.n_luts, config.size, "unpaired")
        self.critic = ConvClassifier(1, paired=False)
        self.networks = {"model": self.model, "critic": self.critic}
        self.samples = Unpaired(data, "train", config.side, config.seed)
        self.epoch = len(self.samples)

    def optimisers(self) -> dict[str, Optimizer]:
        return {name: Adam(self.networks[name].parameters(), self.config.learning_rate) for name in ("critic", "model")}

    def batch(self, positions: range) -> dict[str, Tensor]:
        return self.samples.batch(positions)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        config, image, real = self.config, batch["input"], batch["target"]
        weights = self.model.predict_weights(image)
        fake = ops.lut_transform(image, self.model.luts, weights)
        yield (
            "critic",
            {
                "wasserstein": self.critic(fake.detach()).mean() - self.critic(real).mean(),
                "penalty": config.penalty * losses.gradient_penalty(self.critic, real, fake),
            },
        )
        luts = self.model.luts
        yield (
            "model",
            {
                "adversarial": -self.critic(fake).mean(),
                "fidelity": config.fidelity * (fake - image).square().mean(),
                "smoothness": config.smoothness * (losses.total_variation(luts).sum() + weights.square().mean()),
                "monotonicity": config.monotonicity * losses.monotonicity(luts).sum(),
            },
        )

    def pictures(self, networks: Networks) -> dict[str, Tensor]:
        """Before and after, side by side, of the first three samples."""
        before = self.samples.batch(range(3))["input"]
        after = networks["model"](before.to(self.model.luts.device)).cpu()
        return {f"before, after/{n}": pair for n, pair in enumerate(torch.cat([before, after], 3))}

    def finish(self, networks: Networks, folder: Path) -> None:
        model = networks["model"]
        assert isinstance(model, ImageAdaptiveLUT)
        model.about |= {"training": f"{len(self.samples)} unpaired photos; settings in config.json of the run"}
        save(model, folder / "model.safetensors")


def train(config: Config, data: Path, out: Path, resume: bool = False) -> None:
    """Trains on `data/train/input` and `data/train/target`; writes model.safetensors and the run's files to `out`."""
    run(UnpairedRetouching(config, data), config, out, resume)
