"""Trains `lowlight`, the model that ships with fastenh for dark photos: bring them back to daylight, leave others be.

    python -m fastenh.train.lowlight --out RUN      # makes targets, then trains: some minutes on one CPU core
    python -m fastenh.train.lowlight --evaluate     # measures the shipped model, rewrites its card

Photographs and procedural scenes are those of `fastenh.train.auto`, and the same photographs are held out. A target is
a whole photo or a part of one, as the network sees it, reduced to 20×20 pixels; the input is the target in the dark:
less light on the sensor, a darker tone curve, the sensor's noise, 8 bits. Half of the inputs stay as they are. The
curves learn to undo the dark, as an ordinary regression.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from skimage.color import rgb2lab
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastenh import ops
from fastenh.losses import illumination_smoothness
from fastenh.models import ZeroDCE, save
from fastenh.train.auto import (
    PHOTOS,
    command,
    delta_e,
    draw,
    held_out,
    psnr,
    to_linear,
    to_srgb,
    training_targets,
)
from fastenh.train.config import Settings
from fastenh.train.loop import Networks, Task

SEED = 1
SIDE = 20  # of targets, in pixels: about what the network sees of a small photo
TARGETS = 4000
MAP_SCALE = 32  # of the finished model; in training, targets are as the network sees them
CARD = Path(__file__).parents[1] / "weights" / "lowlight.md"


def darken(
    image: Tensor,
    gamma: np.ndarray | float = 1.0,
    stops: np.ndarray | float = 0.0,
    noise: np.ndarray | float = 0.0,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """(B, 3, H, W) sRGB → the same in the dark, in 8 bits: ((light · 2^stops + noise) encoded)^gamma.

    `noise` is its standard deviation at white, in linear light; it falls with the root of the light, as that of
    photons does, down to a tenth, which the electronics add. Each may be one number, or one per image.
    """

    def per_image(value: np.ndarray | float) -> Tensor:
        return torch.as_tensor(value, dtype=image.dtype).reshape(-1, 1, 1, 1)

    light = to_linear(image) * 2 ** per_image(stops)
    if rng is not None:
        grain = torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32))
        light = light + per_image(noise) * (light + 0.01).sqrt() * grain
    return (to_srgb(light.clamp(0, 1)) ** per_image(gamma) * 255).round() / 255


def darken_at_random(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Half stay as they are; of the others each loses much light by gamma, by exposure, or by both."""
    batch = len(image)
    dark = rng.random(batch) < 0.5
    kind = rng.choice(3, p=(0.5, 0.3, 0.2), size=batch)  # gamma, exposure, both
    share = np.where(kind == 2, 0.5, 1.0)
    return darken(
        image,
        gamma=np.where(dark & (kind != 1), 1 + share * rng.uniform(0.7, 2.6, batch), 1.0),
        stops=np.where(dark & (kind != 0), -share * rng.uniform(1.2, 4.0, batch), 0.0),
        noise=np.where(dark, rng.uniform(0, 0.03, batch), 0.0),
        rng=rng,
    )


# ---- training


@dataclass(frozen=True)
class Config(Settings):
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 2e-3  # the highest of the cycle
    colour: float = 1.0
    smoothness: float = 0.05
    seed: int = SEED
    log_every: int = 200

    FREE: ClassVar = ("device", "workers", "log_every", "picture_every", "checkpoint_every")


class Relighting(Task):
    """Minimises the mean over photos of √MSE, so that a photo recognised as light is worth leaving exactly as it is.

    Added are `colour` times how far the mean R, G and B of a photo are off, against casts, and the curves' smoothness.
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
        highest, steps = self.config.learning_rate, self.config.steps
        return {"model": torch.optim.lr_scheduler.OneCycleLR(optimisers["model"], highest, total_steps=steps)}

    def batch(self, positions: range) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.seed, positions.start])
        target = draw(self.targets, len(positions), rng)
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
        config = self.config
        model.map_scale = MAP_SCALE
        budget = f"seed {config.seed}, {len(self.targets)} targets, {config.steps} steps of {config.batch}"
        model.about |= {
            "licence": "Apache-2.0",
            "note": "lowlight: brings dark photos back to daylight, and leaves others nearly as they are",
            "training": f"{budget}, threads: {torch.get_num_threads()}",
        }
        save(model, folder / "model.safetensors")


# ---- evaluation

GAMMAS = (2.0, 3.0, 4.0)
STOPS = (-2.0, -4.0)


def mean_colour(image: Tensor) -> np.ndarray:
    """Mean a*, b* of a (1, 3, H, W) photo."""
    return rgb2lab(image[0].permute(1, 2, 0).double().numpy()).mean((0, 1))[1:]


def grey_balanced(image: Tensor) -> Tensor:
    """The photo with channels scaled so that their means are alike, in 8 bits."""
    means = image.mean((2, 3), keepdim=True)
    return ((image * (means.mean(1, keepdim=True) / means)).clamp(0, 1) * 255).round() / 255


@torch.no_grad()
def measure(model: nn.Module, target: Tensor) -> dict[str, tuple[float, float]]:
    """What the model does to a (1, 3, H, W) photo. "untouched" and "brighter": (0, ΔE) of the photo as it is and a
    little lighter; then PSNR before and after each way to darken it; "cast": what a* and b* of the grey-balanced
    photo, darkened by gamma 3, end up away from the light one's, each at most. Outputs are rounded to 8 bits."""

    def relit(image: Tensor) -> Tensor:
        return (model(image).clamp(0, 1) * 255).round() / 255

    result = {"untouched": (0.0, delta_e(relit(target), target))}
    for name, change in CHANGES.items():
        dark = darken(target, **change)
        result[name] = psnr(dark, target), psnr(relit(dark), target)
    balanced = grey_balanced(target)
    dark = darken(balanced, gamma=3.0)
    was, now = (np.abs(mean_colour(x) - mean_colour(balanced)).max() for x in (dark, relit(dark)))
    result["cast"] = float(was), float(now)
    return result


CHANGES: dict[str, dict[str, Any]] = {f"gamma {gamma:g}": {"gamma": gamma} for gamma in GAMMAS} | {
    f"{-stops:g} stops": {"stops": stops} for stops in STOPS
}


def measure_photos(model: nn.Module) -> dict[str, dict[str, tuple[float, float]]]:
    return {name: measure(model, photo) for name, photo in held_out().items()}


# ---- the card


def card(model: ZeroDCE, size: int) -> str:
    photos = measure_photos(model)

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    def measured(name: str, result: dict[str, tuple[float, float]]) -> str:
        changes = (f"{result[change][0]:.1f} → {result[change][1]:.1f}" for change in CHANGES)
        return row(
            name, f"{result['untouched'][1]:.1f}", *changes, f"{result['cast'][0]:.1f} → {result['cast'][1]:.1f}"
        )

    mean = {key: tuple(np.mean([r[key] for r in photos.values()], 0)) for key in next(iter(photos.values()))}
    gains = [result["gamma 3"][1] - result["gamma 3"][0] for result in photos.values()]
    seen = sum(not photo.held_out for photo in PHOTOS)
    return f"""# lowlight

<!-- Written by `python -m fastenh.train.lowlight --evaluate`; do not edit. -->

For photos taken in the dark: `fastenh enhance --model lowlight` lifts them to daylight and leaves a light photo
nearly as it is. {size / 1e6:.2f} MB. {model.about["colour"]}.
It is Zero-DCE's network, `ZeroDCE(map_scale={model.map_scale})`, trained on pairs, dark and light.

## Measured on photographs it has never seen

ΔE*ab (CIE76, mean over pixels) between a photo and what the model makes of it; then PSNR in dB, before → after, of the
photo darkened in a known way; then how far mean a* or b*, whichever is further, of the grey-balanced photo darkened by
gamma 3 is from the light one's, before → after. Outputs are rounded to 8 bits; photos have at most 640 pixels a side.

{row("", "ΔE untouched", *CHANGES, "a*, b* at gamma 3")}
{row("---", *["---"] * (2 + len(CHANGES)))}
{chr(10).join(measured(name, result) for name, result in photos.items())}
{measured("**mean**", mean)}

At gamma 3 photos gain {min(gains):.1f} to {max(gains):.1f} dB. Stops act on linear light, gamma on encoded values.

## Photographs

Those of [auto](auto.md), the same ones held out; the rest of the training set is procedural scenes.

## Training it again

    pip install fastenh[train]
    python -m fastenh.train.lowlight --out RUN

The shipped file: {model.about["training"]}.

## Limits

- It has seen {seen} photographs, darkened by a formula; of night, lamps and cameras' own noise it knows nothing.
- It judges by what lies around, {7 * model.map_scale} pixels to each side: a black thing that fills more than that is
  lifted in a light photo, too. `--strength` takes it back.
- Noise in the dark is lifted with the rest: `--denoise`.
- What 8 bits hold no more does not come back: in deep shadows steps remain.
- While it was designed, the photos held out above were looked at again and again, so they flatter it a little.
"""


if __name__ == "__main__":
    command(str(__doc__), Config, lambda config: Relighting(config, training_targets(TARGETS, SIDE)), card, CARD)
