"""Trains `lowlight`, the model that ships with fastenh for dark photos: it brightens them and leaves others alone.

    python -m fastenh.train.lowlight --out RUN      # makes targets, then trains: some minutes on one CPU core
    python -m fastenh.train.lowlight --evaluate     # measures the shipped model and writes its card

Photographs and procedural scenes are those of `fastenh.train.correct`, with the same photographs held out. A target is
a whole photo or a part of one, reduced to 20×20 pixels, about what the network sees of it. The input is the target in
the dark: less light on the sensor, a darker tone curve, sensor noise, 8 bits. Half of the inputs are left unchanged.
The curves learn to undo the darkening by ordinary regression.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastenh import ops
from fastenh.data.bundled import PHOTOS, held_out_photos
from fastenh.data.degrade import darken, quantise
from fastenh.data.synthetic import draw_targets, training_targets
from fastenh.losses import illumination_smoothness
from fastenh.metrics import mean_ab
from fastenh.models import ZeroDCE
from fastenh.train.card import Measures, arrow, command, mean, measure, page, save_trained, table
from fastenh.train.config import Settings
from fastenh.train.loop import Networks, Task

SEED = 1
SIDE = 20  # of targets, in pixels: about what the network sees of a small photo
TARGETS = 4000
MAP_SCALE = 32  # of the finished model; in training, targets are already reduced


# ---- training


def darken_at_random(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Leaves half unchanged; each of the others loses much light, by gamma, by exposure, or by both."""
    batch = len(image)
    dark = rng.random(batch) < 0.5
    kind = rng.choice(3, p=(0.5, 0.3, 0.2), size=batch)  # 0 gamma, 1 exposure, 2 both
    share = np.where(kind == 2, 0.5, 1.0)
    return darken(
        image,
        gamma=np.where(dark & (kind != 1), 1 + share * rng.uniform(0.7, 2.6, batch), 1.0),
        stops=np.where(dark & (kind != 0), -share * rng.uniform(1.2, 4.0, batch), 0.0),
        noise=np.where(dark, rng.uniform(0, 0.03, batch), 0.0),
        rng=rng,
    )


@dataclass(frozen=True)
class Config(Settings):
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 2e-3  # the peak of the one-cycle schedule
    colour: float = 1.0  # weight of the colour term
    smoothness: float = 0.05  # weight of the smoothness of curves
    seed: int = SEED
    log_every: int = 200

    FREE: ClassVar = ("device", "workers", "log_every", "picture_every", "checkpoint_every")


class Relighting(Task):
    """Minimises the mean over photos of √MSE, which makes it worth leaving a light photo exactly as it is.

    Two terms are added: `colour` × the error of the photo's mean R, G and B, against colour casts, and `smoothness` ×
    that of the curves.
    """

    def __init__(self, config: Config, targets: Tensor) -> None:
        self.config, self.targets = config, targets
        torch.manual_seed(config.seed)
        self.model = ZeroDCE(map_scale=1)
        for name, parameter in self.model.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        nn.init.normal_(self.model.get_parameter("e_conv7.weight"), std=0.01)
        self.model.to(memory_format=torch.channels_last)  # nearly twice as fast
        self.networks = {"model": self.model}

    def optimisers(self) -> dict[str, Optimizer]:
        return {"model": torch.optim.Adam(self.model.parameters())}

    def schedules(self, optimisers: dict[str, Optimizer]) -> dict[str, LRScheduler]:
        peak, steps = self.config.learning_rate, self.config.steps
        return {"model": torch.optim.lr_scheduler.OneCycleLR(optimisers["model"], peak, total_steps=steps)}

    def batch(self, positions: range) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.seed, positions.start])
        target = draw_targets(self.targets, len(positions), rng)
        return darken_at_random(target, rng).contiguous(memory_format=torch.channels_last), target

    def losses(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        image, target = batch
        curves = self.model.predict_curves(image)
        error = ops.curve_iterate(image, curves) - target
        yield (
            "model",
            {
                "error": (error.square().mean((1, 2, 3)) + 1e-6).sqrt().mean(),
                "colour": self.config.colour * (error.mean((2, 3)).square().sum(1) + 1e-6).sqrt().mean(),
                "smoothness": self.config.smoothness * illumination_smoothness(curves),
            },
        )

    def finish(self, networks: Networks, folder: Path) -> None:
        model = networks["model"]
        assert isinstance(model, ZeroDCE)
        model.map_scale = MAP_SCALE
        note = "lowlight: brings dark photos back to daylight, and leaves others nearly as they are"
        save_trained(model, note, self.config, len(self.targets), folder)


# ---- evaluation

CHANGES: dict[str, dict[str, Any]] = {
    "gamma 2": {"gamma": 2.0},
    "gamma 3": {"gamma": 3.0},
    "gamma 4": {"gamma": 4.0},
    "2 stops": {"stops": -2.0},
    "4 stops": {"stops": -4.0},
}


def measure_photos(model: nn.Module) -> dict[str, Measures]:
    return {
        name: measure(model, photo, darken, CHANGES) | {"cast": measure_cast(model, photo)}
        for name, photo in held_out_photos().items()
    }


@torch.no_grad()
def measure_cast(model: nn.Module, photo: Tensor) -> tuple[float, float]:
    """The colour cast of a (1, 3, H, W) photo darkened by gamma 3, before and after the model.

    The photo is balanced to grey first: its channels are scaled to equal means, in 8 bits. The cast is the difference
    in mean a* or mean b* from the balanced photo, whichever is larger.
    """
    means = photo.mean((2, 3), keepdim=True)
    balanced = quantise(photo * (means.mean(1, keepdim=True) / means))
    dark = darken(balanced, gamma=3.0)
    before, after = ((mean_ab(image) - mean_ab(balanced)).abs().max().item() for image in (dark, quantise(model(dark))))
    return before, after


def card(model: ZeroDCE, size: int, settings: Config) -> str:
    photos = measure_photos(model)

    def cells(name: str, result: Measures) -> list[str]:
        return [name, f"{result['untouched'][1]:.1f}", *(arrow(*result[key]) for key in (*CHANGES, "cast"))]

    rows = [cells(name, result) for name, result in photos.items()] + [cells("**mean**", mean(photos.values()))]
    gains = [result["gamma 3"][1] - result["gamma 3"][0] for result in photos.values()]
    seen = sum(not photo.held_out for photo in PHOTOS)
    return page(
        "lowlight",
        about=f"""\
For photos taken in the dark: `fastenh enhance --model lowlight` brightens them to daylight and leaves a light photo
nearly unchanged. {size / 1e6:.2f} MB. {model.about["colour"]}.
It is Zero-DCE's network, `ZeroDCE(map_scale={model.map_scale})`, trained on pairs of dark and light photos.""",
        measured=f"""\
ΔE*ab (CIE76, mean over pixels) between a photo and the model's output for it; then PSNR in dB, before → after, of the
photo darkened in a known way; then the colour cast at gamma 3, before → after: of the grey-balanced photo, darkened by
gamma 3, the difference in mean a* or mean b* from the light one, whichever is larger. Outputs are rounded to 8 bits;
photos are at most 640 pixels wide or high.

{table(["", "ΔE untouched", *CHANGES, "a*, b* at gamma 3"], rows)}

At gamma 3 photos gain {min(gains):.1f} to {max(gains):.1f} dB. Stops act on linear light, gamma on encoded values.""",
        photographs="""\
Those of [correct](correct.md), with the same ones held out; the rest of the training set is procedural scenes.""",
        training=model.about["training"],
        limits=f"""\
- It was trained on {seen} photographs darkened by a formula: it has seen no real night, lamps or camera noise.
- It decides by the surroundings, {7 * model.map_scale} pixels to each side: in a light photo it also brightens a
  black object that fills more than that. `--strength` reduces the effect.
- It brightens noise with the rest of a dark photo: use `--denoise`.
- It does not restore what 8 bits have lost: steps remain in deep shadows.""",
    )


if __name__ == "__main__":
    command(
        "lowlight",
        str(__doc__),
        Config,
        lambda config, folder: Relighting(config, training_targets(TARGETS, SIDE, SEED)),
        card,
    )
