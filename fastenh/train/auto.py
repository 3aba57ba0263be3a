"""Trains `auto`, the model that ships with fastenh: bring exposure, white balance and contrast back to normal.

    python -m fastenh.train.auto --out RUN      # makes targets, then trains: some minutes on one CPU core
    python -m fastenh.train.auto --evaluate     # measures the shipped model, rewrites its card

The photographs are those that come inside scikit-image, scikit-learn and matplotlib (`pip install fastenh[train]`),
so anyone can train it again; procedural scenes make up for how few they are. A target is a crop, a collage or a scene;
the input is the target after a random change of exposure and white balance (in linear light), contrast, gamma and
saturation; three inputs in ten are left as they are. The model learns to undo the change, and to leave good photos be.

The shipped file is from before this training had the common loop, with the same losses, optimiser and schedule: what a
run makes today saw other random draws, so its bytes differ from the shipped ones, and its figures a little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastenh import ops
from fastenh.atomic import replacing
from fastenh.losses import monotonicity, total_variation
from fastenh.models import load, save
from fastenh.models.lut3d import ImageAdaptiveLUT
from fastenh.train.config import Settings
from fastenh.train.loop import Networks, Task, run

SEED = 1
SIDE = 32  # targets are SIDE×SIDE pixels, picked from the crop as the classifier picks them
TARGETS = 10000
CARD = Path(__file__).parents[1] / "weights" / "auto.md"


@dataclass(frozen=True)
class Photo:
    name: str
    package: str
    path: str
    licence: str
    held_out: bool = False

    def read(self) -> Tensor:
        """(3, H, W) sRGB in [0, 1]; at most 640 pixels on the longer side."""
        file = resources.files(self.package).joinpath(self.path)
        with file.open("rb") as stream, Image.open(stream) as image:
            rgb = image.convert("RGB")
        rgb.thumbnail((640, 640), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1) / 255


# Held out: people, food, a building and an indoor scene, all normally exposed, as users' photos are.
PHOTOS = [
    Photo("astronaut", "skimage", "data/astronaut.png", "public domain (NASA)", held_out=True),
    Photo("coffee", "skimage", "data/coffee.png", "CC0 (Rachel Michetti)", held_out=True),
    Photo("motorcycle", "skimage", "data/motorcycle_left.png", "Middlebury 2014 stereo benchmark", held_out=True),
    Photo("china", "sklearn", "datasets/images/china.jpg", "CC BY 2.0 (danielbuechele)", held_out=True),
    Photo("grace_hopper", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "public domain", held_out=True),
    Photo("chelsea", "skimage", "data/chelsea.png", "CC0 (Stefan van der Walt)"),
    Photo("rocket", "skimage", "data/rocket.jpg", "public domain (SpaceX)"),
    Photo("flower", "sklearn", "datasets/images/flower.jpg", "CC BY 2.0 (vultilion)"),
    Photo("hubble_deep_field", "skimage", "data/hubble_deep_field.jpg", "public domain (NASA)"),
    Photo("ihc", "skimage", "data/ihc.png", "no known copyright restrictions"),
    Photo("camera", "skimage", "data/camera.png", "CC0 (Lav Varshney)"),
    Photo("brick", "skimage", "data/brick.png", "CC0 (CC0Textures)"),
    Photo("grass", "skimage", "data/grass.png", "CC0"),
    Photo("gravel", "skimage", "data/gravel.png", "CC0 (CC0Textures)"),
    Photo("coins", "skimage", "data/coins.png", "no known copyright restrictions"),
]


# ---- colour


def to_linear(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def luma(rgb: Tensor) -> Tensor:
    return (rgb * torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)).sum(-3, keepdim=True)


def degrade(
    image: Tensor,
    stops: np.ndarray | float = 0.0,
    gains: np.ndarray | tuple[float, float, float] = (1.0, 1.0, 1.0),
    contrast: np.ndarray | float = 1.0,
    gamma: np.ndarray | float = 1.0,
    saturation: np.ndarray | float = 1.0,
) -> Tensor:
    """(B, 3, H, W) sRGB → the photo a camera set wrongly would have stored, in 8 bits.

    Exposure and white balance act on linear light and clip, as a sensor does; contrast (about mid-grey), gamma and
    saturation act on the encoded values, as an editor's sliders do. Each may be one number, or one per image.
    """

    def per_image(value: np.ndarray | float) -> Tensor:
        return torch.as_tensor(value, dtype=image.dtype).reshape(-1, 1, 1, 1)

    light = to_linear(image) * 2 ** per_image(stops) * torch.as_tensor(gains, dtype=image.dtype).view(-1, 3, 1, 1)
    encoded = to_srgb(light.clamp(0, 1))
    encoded = ((encoded - 0.5) * per_image(contrast) + 0.5).clamp(0, 1) ** per_image(gamma)
    grey = luma(encoded)
    return ((grey + (encoded - grey) * per_image(saturation)).clamp(0, 1) * 255).round() / 255


def degrade_at_random(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Three in ten stay as they are; of the rest, six in ten are tinted, and each other change befalls one in three."""
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


# ---- targets: well-exposed images of all kinds


def scene(rng: np.random.Generator, side: int = 48) -> Tensor:
    """(3, S, S): things of natural colours before a backdrop or a sky, under uneven light, exposed for the highlights.

    The light is computed linearly: reflectance × illumination + highlights; then camera exposure, clipping, encoding.
    """
    y, x = np.mgrid[0:side, 0:side] / side

    def noise(slope: float) -> np.ndarray:
        """1/f^slope noise, zero mean, unit variance: texture at slope 1, clouds and soft light at slope 2."""
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
        frequency[0, 0] = np.inf
        spectrum = frequency**-slope * np.exp(2j * np.pi * rng.random(frequency.shape))
        field = np.fft.irfft2(spectrum, (side, side))
        return (field - field.mean()) / field.std()

    # Few photos hold all colours: most surfaces of a scene share two or three hues, more or less loyally.
    def any_colour() -> tuple[float, float]:
        """Hue and saturation: greys, browns and skins, greens, blues, now and then anything."""
        kind = rng.choice(5, p=[0.28, 0.4, 0.12, 0.1, 0.1])
        hue = [rng.random(), rng.normal(0.07, 0.03), rng.normal(0.27, 0.06), rng.normal(0.6, 0.05), rng.random()][kind]
        return hue, [rng.beta(1, 12), rng.beta(3, 2.5), rng.beta(2.5, 3.5), rng.beta(2.5, 3.5), rng.beta(4, 2)][kind]

    palette = [any_colour() for _ in range(rng.integers(1, 4))]
    loyalty = rng.random() ** 0.5

    def surface() -> np.ndarray:
        """(3,) linear reflectance."""
        hue, saturation = palette[rng.integers(len(palette))] if rng.random() < loyalty else any_colour()
        hue, saturation = hue + rng.normal(0, 0.015), min(saturation * rng.uniform(0.7, 1.1), 1.0)
        channels = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
        return (rng.beta(1.6, 1.3) * 0.97 * (1 - saturation + saturation * channels)) ** 2.2

    def textured(colour: np.ndarray) -> np.ndarray:
        grain = np.exp(rng.uniform(0.02, 0.4) * noise(rng.uniform(0.8, 1.6)))
        other = colour + rng.uniform(0, 0.3) * (surface() - colour)
        blend = 1 / (1 + np.exp(-2 * noise(rng.uniform(1, 2))))
        return (colour[:, None, None] * blend + other[:, None, None] * (1 - blend)) * grain

    light = textured(surface())
    illumination = np.exp(rng.uniform(0.05, 0.6) * noise(2.0) + rng.normal(0, 0.5) * (y - 0.5))
    for _ in range(rng.integers(2, 14)):
        angle, (cy, cx) = rng.uniform(0, np.pi), rng.random(2)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        a, b = rng.uniform(0.05, 0.45, 2)
        shape = rng.integers(4)
        if shape == 0:
            radius = np.hypot(u / a, v / b)
        elif shape == 1:
            radius = np.maximum(abs(u / a), abs(v / b))
        elif shape == 2:
            radius = 1 - u / 2  # a half-plane: floor, wall, hill
        else:
            radius = 1 - noise(2.0) / 2 + rng.uniform(0, 0.5)  # foliage, rubble
        shading = 1 - rng.uniform(0, 0.8) * np.clip(radius, 0, 1) ** 2
        light = np.where(radius < 1, textured(surface()) * shading, light)
    if rng.random() < 0.5:  # a shadow over part of it
        edge = (x - rng.random()) * rng.normal() + (y - rng.random()) * rng.normal() + rng.uniform(0, 0.1) * noise(1.5)
        illumination *= 1 - rng.uniform(0.4, 0.9) / (1 + np.exp(np.clip(-edge * rng.uniform(5, 60), -50, 50)))
    light = light * illumination
    if rng.random() < 0.35:  # a sky above a horizon, from haze to deep blue or dusk, with clouds
        haze, zenith = np.array([0.8, 0.85, 0.9]), np.array([0.15, 0.35, 0.8]) * rng.uniform(0.3, 1.1)
        if rng.random() < 0.2:
            haze = np.array([1.0, 0.6, 0.3])
        horizon = rng.uniform(0.15, 0.7) + 0.03 * noise(1.5)
        depth = np.clip((horizon - y) / horizon, 0, 1) ** rng.uniform(0.4, 1.5) * rng.random()
        cloud = rng.random() / (1 + np.exp(-3 * noise(1.8) + rng.uniform(-2, 3)))
        sky = haze[:, None, None] * (1 - depth) + zenith[:, None, None] * depth
        sky = sky * (1 - cloud) + cloud * rng.uniform(0.7, 1.2)
        light = np.where(y < horizon, sky * rng.uniform(0.6, 1.4), light)
    if rng.random() < 0.6:  # glints and lamps
        for _ in range(rng.integers(1, 8)):
            spot = np.exp(-((x - rng.random()) ** 2 + (y - rng.random()) ** 2) / rng.uniform(0.005, 0.04) ** 2)
            light = light + spot * rng.uniform(0.5, 3) * np.exp(rng.normal(0, 0.1, (3, 1, 1)))

    light = light * np.exp(rng.normal(0, 0.03, (3, 1, 1)))  # no white balance is perfect
    top = np.quantile(light.max(0), rng.choice([0.95, 0.98, 0.99, 0.995, 0.999]))
    anchor = rng.uniform(0.85, 1.15) if rng.random() < 0.85 else rng.uniform(0.5, 0.85)
    return natural_tone(to_srgb(torch.from_numpy(light * anchor / top).float().clamp(0, 1)), rng)


def natural_tone(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The spread of good photos: a gentle S-curve and a gamma that keep black and white, and a little saturation."""
    image = image ** float(np.exp(rng.normal(0, 0.12)))
    strength = rng.uniform(-0.1, 0.4)
    image = image + strength * (image * image * (3 - 2 * image) - image)
    grey = luma(image)
    return (grey + (image - grey) * float(np.exp(rng.normal(0, 0.15)))).clamp(0, 1)


def photo_target(photos: list[Tensor], rng: np.random.Generator, side: int = SIDE) -> Tensor:
    """A crop of a photo, recoloured in ways that leave neutrals neutral, so that one photo stands for many."""
    image = photos[rng.integers(len(photos))]
    height, width = (round(side * rng.uniform(0.4, 1.0)) for side in image.shape[1:])
    top, left = rng.integers(image.shape[1] - height + 1), rng.integers(image.shape[2] - width + 1)
    image = pick(image[:, top : top + height, left : left + width], side)
    if torch.equal(image[0], image[1]) and rng.random() < 0.8:  # a grey photo lights the surfaces of a scene
        light = to_linear(image) * to_linear(pick(scene(rng), side))
        image = to_srgb((light * rng.uniform(0.85, 1.15) / light.quantile(0.995)).clamp(0, 1))
    elif rng.random() < 0.6:
        image = turn_hues(image, rng)
    return natural_tone(image, rng)


def turn_hues(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Rotates colours about the grey axis, by an angle that depends smoothly on their hue."""
    red, green, blue = image
    hue = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)
    angle = rng.normal(0, 0.4) + rng.normal(0, 0.4) * torch.cos(hue - rng.uniform(0, 2 * np.pi))
    grey = image.mean(0, keepdim=True)
    chroma = image - grey
    across = (chroma.roll(1, 0) - chroma.roll(-1, 0)) / 3**0.5
    return (grey + chroma * torch.cos(angle) + across * torch.sin(angle)).clamp(0, 1)


def pick(image: Tensor, side: int) -> Tensor:
    return F.interpolate(image[None], (side, side), mode="nearest-exact")[0]


def make_targets(count: int, photos: list[Tensor], rng: np.random.Generator, side: int = SIDE) -> Tensor:
    """(count, 3, side, side): six scenes to four photos."""

    def target() -> Tensor:
        return pick(scene(rng), side) if rng.random() < 0.6 else photo_target(photos, rng, side)

    return torch.stack([target() for _ in range(count)])


def draw(targets: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """As many of them, four in ten cut together from two, so that no distribution of colours comes twice."""
    one, other = (targets[torch.from_numpy(rng.integers(len(targets), size=count))] for _ in range(2))
    side = targets.shape[-1]
    cut = np.where(rng.random(count) < 0.4, rng.uniform(0.2, 0.8, count), 1) * side
    return torch.where(torch.arange(side) < torch.from_numpy(cut).view(-1, 1, 1, 1), one, other)


# ---- training


@dataclass(frozen=True)
class Config(Settings):
    steps: int = 12000
    batch: int = 32
    learning_rate: float = 4e-3  # the highest of the cycle
    seed: int = SEED
    log_every: int = 500

    FREE: ClassVar = (
        "device",
        "workers",
        "log_every",
        "picture_every",
        "checkpoint_every",
    )  # the cycle depends on the steps


class Restoration(Task):
    """Minimises the mean over photos of √MSE, so that a photo recognised as good is worth leaving exactly as it is.

    Added are the total variation of what the fused LUTs change, which spreads to colours no target has, and 10 × their
    monotonicity.
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
        model.classifier.calibrate(degrade_at_random(targets, np.random.default_rng(config.seed)))
        self.networks = {"model": model}

    def optimisers(self) -> dict[str, Optimizer]:
        return {"model": torch.optim.AdamW(self.model.parameters(), weight_decay=0.05)}

    def schedules(self, optimisers: dict[str, Optimizer]) -> dict[str, LRScheduler]:
        highest, steps = self.config.learning_rate, self.config.steps
        return {"model": torch.optim.lr_scheduler.OneCycleLR(optimisers["model"], highest, total_steps=steps)}

    def batch(self, positions: range) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.seed, positions.start])
        target = draw(self.targets, len(positions), rng)
        return degrade_at_random(target, rng), target

    def losses(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        image, target = batch
        luts = self.model.fused_lut(image)
        output = ops.lut_transform(image, luts[:, None])
        some = luts[: max(1, len(luts) // 4)]  # enough to keep them smooth, and a quarter of the work
        yield (
            "model",
            {
                "error": ((output - target).square().mean((1, 2, 3)) + 1e-6).sqrt().mean(),
                "smoothness": total_variation(some - self.identity.to(some.device)).mean(),
                "monotonicity": 10 * monotonicity(some).mean(),
            },
        )

    def finish(self, networks: Networks, folder: Path) -> None:
        model = networks["model"]
        assert isinstance(model, ImageAdaptiveLUT)
        config = self.config
        budget = f"seed {config.seed}, {len(self.targets)} targets, {config.steps} steps of {config.batch}"
        model.about |= {
            "licence": "Apache-2.0",
            "note": "auto: brings exposure, white balance and contrast back to normal",
            "training": f"{budget}, threads: {torch.get_num_threads()}",
        }
        save(model, folder / "model.safetensors")


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


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak 1, over all pixels and channels, in dB."""
    return -10 * (image - target).square().mean().log10().item()


def delta_e(image: Tensor, target: Tensor) -> float:
    """Mean over pixels of ΔE*ab (CIE76), sRGB → Lab under D65."""
    lab, lab_target = (rgb2lab(x[0].permute(1, 2, 0).double().numpy()) for x in (image, target))
    return float(np.linalg.norm(lab - lab_target, axis=-1).mean())


@torch.no_grad()
def measure(model: nn.Module, target: Tensor) -> dict[str, tuple[float, float]]:
    """What the model does to a (1, 3, H, W) photo: ΔE as it is ("untouched": 0 → ΔE), PSNR before and after each
    degradation. Outputs are rounded to 8 bits."""

    def retouch(image: Tensor) -> Tensor:
        return (model(image).clamp(0, 1) * 255).round() / 255

    result = {"untouched": (0.0, delta_e(retouch(target), target))}
    for name, change in DEGRADATIONS.items():
        image = degrade(target, **change)
        result[name] = psnr(image, target), psnr(retouch(image), target)
    return result


def held_out() -> dict[str, Tensor]:
    """By name the photos, (1, 3, H, W), that no training has seen."""
    return {photo.name: photo.read()[None] for photo in PHOTOS if photo.held_out}


def measure_photos(model: nn.Module) -> dict[str, dict[str, tuple[float, float]]]:
    return {name: measure(model, photo) for name, photo in held_out().items()}


def measure_scenes(model: nn.Module, count: int = 40) -> list[dict[str, tuple[float, float]]]:
    rng = np.random.default_rng(SEED + 1)  # no scene of the training set
    return [measure(model, scene(rng)[None]) for _ in range(count)]


def gain(results: Iterable[dict[str, tuple[float, float]]], changes: Iterable[str]) -> float:
    """Mean of after − before over the results and the changes."""
    return float(np.mean([result[change][1] - result[change][0] for result in results for change in changes]))


# ---- the card


def card(model: ImageAdaptiveLUT, size: int) -> str:
    photos, scenes = measure_photos(model), measure_scenes(model)

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    def measured(name: str, result: dict[str, tuple[float, float]]) -> str:
        return row(name, f"{result['untouched'][1]:.1f}", *(f"{a:.1f} → {b:.1f}" for a, b in list(result.values())[1:]))

    def mean(results: Iterable[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
        results = list(results)
        return {key: tuple(np.mean([r[key] for r in results], 0)) for key in results[0]}

    arguments = ", ".join(f"{name}={value!r}" for name, value in model.arguments.items())
    mean_gains = f"{gain(photos.values(), ['one stop dark']):+.1f} dB when one stop dark"
    mean_gains += f", {gain(photos.values(), TINTS):+.1f} dB over the four tints"
    changes = [f"{name}: {' '.join(map(str, next(iter(change.items()))))}" for name, change in DEGRADATIONS.items()]
    seen = sum(not photo.held_out for photo in PHOTOS)
    listing = [row(p.name, p.package, p.licence, "held out" if p.held_out else "training") for p in PHOTOS]
    return f"""# auto

<!-- Written by `python -m fastenh.train.auto --evaluate`; do not edit. -->

The model that `fastenh enhance` uses when it is told no other: it brings exposure, white balance and contrast back to
normal, and leaves a good photo nearly as it is. {size / 1e6:.2f} MB. {model.about["colour"]}.
It is an image-adaptive 3D LUT: `ImageAdaptiveLUT({arguments})`.

## Measured on photographs it has never seen

ΔE*ab (CIE76, mean over pixels) between a photo and what the model makes of it; then PSNR in dB, before → after, of the
photo degraded in a known way. Outputs are rounded to 8 bits; photos are at most 640 pixels wide or high.

{row("", "ΔE untouched", *DEGRADATIONS)}
{row("---", *["---"] * (1 + len(DEGRADATIONS)))}
{chr(10).join(measured(name, result) for name, result in photos.items())}
{measured("**mean of the photos**", mean(photos.values()))}
{measured(f"mean of {len(scenes)} procedural scenes, not in training", mean(scenes))}

Mean gain on the photos: {mean_gains}.
Exposure and gains (R, G, B) act on linear light and clip; contrast and saturation act on encoded values:
{"; ".join(changes)}.

## Photographs

{row("name", "package that carries it", "licence", "use")}
{row("---", "---", "---", "---")}
{chr(10).join(listing)}

The rest of the training set is procedural scenes, drawn by the training script.

## Training it again

    pip install fastenh[train]
    python -m fastenh.train.auto --out RUN

The shipped file: {model.about["training"]}.

## Limits

- It has seen {seen} photographs. Its idea of a normal photo comes from procedural scenes more than from the world.
- It knows how colours are distributed, not what they are: a photo that is dark, tinted or faded on purpose looks to it
  like a mistake, and a subject of one strong colour, without anything white or grey, like a tint.
- What a wrong exposure has clipped does not come back, and it hardly corrects too light or too pale a photo: see above.
- It reads exposure from where the histogram ends: shade under a bright sky stays dark.
- While it was designed, the photos held out above were looked at again and again, so they flatter it a little.
"""


def command(
    about: str, config: type[Any], task: Callable[[Any], Task], card: Callable[[Any, int], str], to: Path
) -> None:
    """What `python -m` does for an embedded model, whose card `to` is named as it is: trains a task made of a config,
    measures the shipped file, or both."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="train, and leave model.safetensors and more in this folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--evaluate", action="store_true", help="measure the shipped model and rewrite its card")
    parser.add_argument("--steps", type=int, default=config.steps)
    options = parser.parse_args()
    if options.out is None and not options.evaluate:
        parser.error("nothing to do: give --out FOLDER, --evaluate, or both")

    if options.out:
        settings = config(steps=options.steps)
        run(task(settings), settings, options.out, options.resume)
    if options.evaluate:
        with replacing(to, overwrite=True) as part:
            part.write_text(card(load(to.stem), to.with_suffix(".safetensors").stat().st_size))
        print(f"wrote {to}")


def training_targets(count: int, side: int) -> Tensor:
    photos = [photo.read() for photo in PHOTOS if not photo.held_out]
    return make_targets(count, photos, np.random.default_rng(SEED), side)


if __name__ == "__main__":
    command(str(__doc__), Config, lambda config: Restoration(config, training_targets(TARGETS, SIDE)), card, CARD)
