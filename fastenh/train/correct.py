"""Trains `correct`, which restores normal exposure, white balance and contrast, and otherwise leaves photos alone.

    python -m fastenh.train.correct --out RUN      # makes targets, then trains: some minutes on one CPU core
    python -m fastenh.train.correct --evaluate     # measures the shipped model and writes its card

Anyone can train it again: the photographs come inside Python packages (`fastenh.data.bundled`), and procedural scenes
make up for their small number (`fastenh.data.synthetic`). A target is a crop, a collage or a scene. The input is the
target after a random change of exposure and white balance (in linear light), contrast, gamma and saturation; three
inputs in ten are left unchanged. The model learns to undo the change and to leave good photos alone.

The shipped file is older than the common training loop. Its losses, optimiser and schedule were the same, but a new run
draws other random numbers, so its bytes differ from the shipped ones, and its figures a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastenh import ops
from fastenh.data.bundled import PHOTOS, held_out_photos
from fastenh.data.degrade import degrade
from fastenh.data.synthetic import draw_targets, scene, training_targets
from fastenh.losses import monotonicity, total_variation
from fastenh.models import ImageAdaptiveLUT
from fastenh.train.card import (
    Measures,
    arrow,
    command,
    degradations_in_words,
    gain,
    mean,
    measure,
    page,
    save_trained,
    table,
)
from fastenh.train.config import Settings
from fastenh.train.loop import Networks, Task

SEED = 1
SIDE = 32  # of targets, in pixels; picked from the crop as the classifier picks them
TARGETS = 10000


# ---- training


def degrade_at_random(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Leaves three in ten unchanged; of the others six in ten are tinted, and each other change hits 35 in 100."""
    batch = len(image)
    touched = rng.random(batch) < 0.7

    def sometimes(change: np.ndarray, share: float = 0.35) -> np.ndarray:
        return change * (touched & (rng.random(batch) < share)).reshape(-1, *[1] * (change.ndim - 1))

    warmth, magenta = rng.normal(0, 0.35, (batch, 1)), rng.normal(0, 0.2, (batch, 1))
    tint = np.hstack([warmth + magenta, -magenta, -warmth * rng.uniform(0.7, 1.3, (batch, 1)) + magenta])
    return degrade(
        image,
        stops=sometimes(rng.uniform(-2.0, 0.7, batch)),
        gains=np.exp(sometimes(tint, 0.6)),
        contrast=np.exp(sometimes(rng.normal(0, 0.2, batch))),
        gamma=np.exp(sometimes(rng.normal(0, 0.2, batch))),
        saturation=np.exp(sometimes(rng.normal(0, 0.25, batch))),
    )


@dataclass(frozen=True)
class Config(Settings):
    steps: int = 12000
    batch: int = 32
    learning_rate: float = 4e-3  # the peak of the one-cycle schedule
    seed: int = SEED
    log_every: int = 500

    # Not the steps, on which the schedule depends.
    FREE: ClassVar = ("device", "workers", "log_every", "picture_every", "checkpoint_every")


class Restoration(Task):
    """Minimises the mean over photos of √MSE, which makes it worth leaving a good photo exactly as it is.

    Two regularisers are added: the total variation of the difference between the fused LUTs and the identity, which
    extends corrections to colours that no target has, and 10 × the monotonicity term of the fused LUTs.
    """

    def __init__(self, config: Config, targets: Tensor) -> None:
        self.config, self.targets = config, targets
        torch.manual_seed(config.seed)
        self.model = model = ImageAdaptiveLUT(n_luts=20, size=9, classifier="statistics")
        self.identity = model.luts[:1].detach().clone()
        with torch.no_grad():
            model.luts[1:].normal_(0, 0.02)
            model.classifier.head.weight.mul_(0.1)
            model.classifier.head.bias.copy_(F.one_hot(torch.tensor(0), len(model.luts)))
        sample = degrade_at_random(targets, np.random.default_rng(config.seed))
        model.classifier.calibrate(model.classifier.statistics(model.classifier.pick(sample)))
        self.networks = {"model": model}

    def optimisers(self) -> dict[str, Optimizer]:
        return {"model": torch.optim.AdamW(self.model.parameters(), weight_decay=0.05)}

    def schedules(self, optimisers: dict[str, Optimizer]) -> dict[str, LRScheduler]:
        peak, steps = self.config.learning_rate, self.config.steps
        return {"model": torch.optim.lr_scheduler.OneCycleLR(optimisers["model"], peak, total_steps=steps)}

    def batch(self, positions: range) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.seed, positions.start])
        target = draw_targets(self.targets, len(positions), rng)
        return degrade_at_random(target, rng), target

    def losses(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        image, target = batch
        luts = self.model.fused_lut(image)
        output = ops.lut_transform(image, luts[:, None])
        sampled = luts[: max(1, len(luts) // 4)]  # enough for the regularisers, at a quarter of their cost
        yield (
            "model",
            {
                "error": ((output - target).square().mean((1, 2, 3)) + 1e-6).sqrt().mean(),
                "smoothness": total_variation(sampled - self.identity.to(sampled.device)).mean(),
                "monotonicity": 10 * monotonicity(sampled).mean(),
            },
        )

    def finish(self, networks: Networks, folder: Path) -> None:
        model = networks["model"]
        assert isinstance(model, ImageAdaptiveLUT)
        note = "correct: brings exposure, white balance and contrast back to normal"
        save_trained(model, note, self.config, len(self.targets), folder)


# ---- evaluation

DEGRADATIONS: dict[str, dict[str, Any]] = {
    "one stop dark": {"stops": -1.0},
    "warm": {"gains": (1.4, 1.0, 0.65)},
    "cool": {"gains": (0.7, 1.0, 1.4)},
    "green": {"gains": (0.8, 1.15, 0.8)},
    "magenta": {"gains": (1.2, 0.85, 1.2)},
    "half a stop light": {"stops": 0.5},
    "contrast × 0.7": {"contrast": 0.7},
    "saturation × 0.6": {"saturation": 0.6},
}
TINTS = ("warm", "cool", "green", "magenta")


def measure_photos(model: nn.Module) -> dict[str, Measures]:
    return {name: measure(model, photo, degrade, DEGRADATIONS) for name, photo in held_out_photos().items()}


def measure_scenes(model: nn.Module, count: int = 40) -> list[Measures]:
    rng = np.random.default_rng(SEED + 1)  # these scenes are not in the training set
    return [measure(model, scene(rng)[None], degrade, DEGRADATIONS) for _ in range(count)]


def card(model: ImageAdaptiveLUT, size: int, settings: Config) -> str:
    photos, scenes = measure_photos(model), measure_scenes(model)

    def cells(name: str, result: Measures) -> list[str]:
        return [name, f"{result['untouched'][1]:.1f}", *(arrow(*result[change]) for change in DEGRADATIONS)]

    rows = [cells(name, result) for name, result in photos.items()]
    rows.append(cells("**mean of the photos**", mean(photos.values())))
    rows.append(cells(f"mean of {len(scenes)} procedural scenes, not in training", mean(scenes)))
    mean_gains = f"{gain(photos.values(), ['one stop dark']):+.1f} dB when one stop dark"
    mean_gains += f", {gain(photos.values(), TINTS):+.1f} dB over the four tints"
    listing = [[p.name, p.package, p.licence, "held out" if p.held_out else "training"] for p in PHOTOS]
    arguments = ", ".join(f"{name}={value!r}" for name, value in model.arguments.items())
    seen = sum(not photo.held_out for photo in PHOTOS)
    return page(
        "correct",
        about=f"""\
It restores normal exposure, white balance and contrast, and leaves a good photo
nearly unchanged. {size / 1e6:.2f} MB. {model.about["colour"]}.
It is an image-adaptive 3D LUT: `ImageAdaptiveLUT({arguments})`.""",
        measured=f"""\
ΔE*ab (CIE76, mean over pixels) between a photo and the model's output for it; then PSNR in dB, before → after, of the
photo degraded in a known way. Outputs are rounded to 8 bits; photos are at most 640 pixels wide or high.

{table(["", "ΔE untouched", *DEGRADATIONS], rows)}

Mean gain on the photos: {mean_gains}.
Exposure and gains (R, G, B) act on linear light and clip; contrast and saturation act on encoded values:
{degradations_in_words(DEGRADATIONS)}.""",
        photographs=f"""\
{table(["name", "package that contains it", "licence", "use"], listing)}

The rest of the training set is procedural scenes, made by code (`fastenh.data.synthetic`).""",
        training=model.about["training"],
        limits=f"""\
- It was trained on {seen} photographs: most of what it knows about normal photos comes from procedural scenes.
- It knows the distribution of colours, not their meaning: it corrects a photo that is dark, tinted or faded on purpose,
  and mistakes a subject of one strong colour, with nothing white or grey, for a tint.
- It does not restore values that a wrong exposure has clipped, and hardly corrects a photo that is too light or too
  pale: see above.
- It estimates exposure from the ends of the histogram: shade under a bright sky stays dark.""",
    )


if __name__ == "__main__":
    command(
        "correct",
        str(__doc__),
        Config,
        lambda config, folder: Restoration(config, training_targets(TARGETS, SIDE, SEED)),
        card,
    )
