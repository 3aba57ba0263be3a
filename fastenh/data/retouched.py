"""What the model `auto` learns from: photos, how two published models retouch them, and graphics.

A sample is a picture seen through its 64×64 grid of pixels: what the classifier computes from them, some of the pixels
and their targets. For a photo the target is the mean of the two models' results in CIELAB, also where the photo was
degraded first, so that a model learns to undo that as well. Graphics are their own targets.
"""

from __future__ import annotations

import csv
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastenh.atomic import replacing
from fastenh.data.bundled import PHOTOS
from fastenh.data.degrade import degrade, luma, quantise, to_linear, to_srgb
from fastenh.data.graphics import graphic
from fastenh.data.synthetic import rotate_hues, scene
from fastenh.losses import rgb_to_lab
from fastenh.models import Picture, System, load
from fastenh.models.checkpoint import WEIGHTS
from fastenh.models.lut3d import HistogramClassifier
from fastenh.tiles import Place

SIDE = 768  # pixels of a photo's longer side, at most
GRID = HistogramClassifier.GRID
PIXELS = 512  # of each sample
CHUNK = 64  # pictures that one seed makes
PHOTO, GRAPHIC, DEGRADED = range(3)  # kinds of samples

# Gains of R, G and B for tints, in linear light.
TINTS = {"warm": (1.4, 1.0, 0.65), "cool": (0.7, 1.0, 1.4), "green": (0.8, 1.15, 0.8), "magenta": (1.2, 0.85, 1.2)}


# ---- photos, and the models to learn from


class Source(NamedTuple):
    """A picture that fastenh/weights/auto.csv lists. `path` is relative to the folder of all pictures.

    `use` is "train" (a photo), "portrait" or "drawing" for training, and "validate" (a photo), "chart" (a photo of a
    colour chart) or "graphic" for measuring."""

    use: str
    source: str
    path: str
    author: str
    licence: str


def sources() -> list[Source]:
    with open(WEIGHTS / "auto.csv", encoding="utf-8", newline="") as file:
        return [Source(**row) for row in csv.DictReader(file)]


def read_sources(folder: str, use: str, side: int = SIDE) -> list[Tensor]:
    """(3, H, W) uint8 each, reduced to at most `side` pixels on the longer side."""
    listed = [source for source in sources() if source.use == use]
    if missing := [source for source in listed if not Path(folder, source.path).is_file()]:
        raise ValueError(
            f"{folder}: expected {len(listed)} pictures for {use}, got no {missing[0].path} (of {missing[0].source})"
        )
    return [_read(Path(folder, source.path), side) for source in listed]


def _read(path: Path, side: int) -> Tensor:
    with Image.open(path) as image:
        image.draft("RGB", (side, side))
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "P":  # with a transparent colour, which RGB lacks
        upright = upright.convert("RGBA")
    upright = upright.convert("RGB")
    upright.thumbnail((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


class Experts:
    """The mean of two published models' results, in CIELAB."""

    def __init__(self, adaint: str, lut3d: str) -> None:
        self.models: list[System] = [load(adaint), load(lut3d)]

    @torch.no_grad()
    def __call__(self, image: Tensor, pixels: Tensor | None = None) -> Tensor:
        """(1, 3, H, W) sRGB → (1, 3, h, w) L*a*b* of `pixels`, (1, 3, h, w), as the experts retouch them in `image`."""
        pixels = image if pixels is None else pixels
        results = []
        for model in self.models:
            params = model.predict(Picture(image))
            results.append(rgb_to_lab(quantise(model.render(pixels, params, None, Place(0, 0, *pixels.shape[2:])))))
        return torch.stack(results).mean(0)


# ---- samples


class SampleMaker:
    """Makes samples from the photos in `folder`, with the converted weights `adaint` and `lut3d`.

    Raises ValueError or OSError, in one line, if a picture or the weights are missing.
    """

    def __init__(self, folder: str, adaint: str, lut3d: str, seed: int) -> None:
        torch.set_num_threads(1)
        self.seed, self.experts = seed, Experts(adaint, lut3d)
        cameras: list[Tensor] = []
        wallpapers: list[Tensor] = []
        listed = [source for source in sources() if source.use == "train"]
        for source, photo in zip(listed, read_sources(folder, "train"), strict=True):
            (cameras if source.source == "metadata-extractor-images" else wallpapers).append(photo)
        bundled = [(photo.read() * 255).round().byte() for photo in PHOTOS if not photo.held_out]
        self.photos = [(0.55, cameras), (0.32, wallpapers), (0.13, bundled)]
        self.portraits = read_sources(folder, "portrait")
        self.drawings = read_sources(folder, "drawing")
        self.classifier = HistogramClassifier(1)

    def samples(self, chunk: int) -> dict[str, Tensor]:
        """Of one chunk: "kind" (N,), "statistics" and "histograms" (N, F), "pixels" (N, 3, P) uint8 sRGB and "targets"
        (N, 3, P) float16 L*a*b*. Each photo gives three samples, of which two are degraded."""
        rng = np.random.default_rng([self.seed, chunk])
        made = [self.picture(rng) for _ in range(CHUNK)]
        grids, targets = torch.cat([entry[0] for entry in made]), torch.cat([entry[1] for entry in made])
        kinds = torch.tensor([entry[2] for entry in made])
        photos = kinds == PHOTO
        parts = [self._part(grids, targets, kinds, rng)]
        for _ in range(2):
            degraded = degrade_at_random(grids[photos], rng)
            parts.append(self._part(degraded, targets[photos], torch.full((len(degraded),), DEGRADED), rng))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part(self, grids: Tensor, targets: Tensor, kinds: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        statistics, histograms = self.classifier.features(grids)
        which = torch.from_numpy(rng.permutation(GRID * GRID)[:PIXELS])
        pixels = (grids.flatten(2)[:, :, which] * 255).round().byte()
        targets = targets.flatten(2)[:, :, which].half()
        return {
            "kind": kinds,
            "statistics": statistics,
            "histograms": histograms.half(),
            "pixels": pixels,
            "targets": targets,
        }

    def picture(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, int]:
        """The grid (1, 3, 64, 64) of a random picture, its target in L*a*b*, and its kind."""
        kind = rng.random()
        if kind < 0.16:
            image = self.drawing(rng) if kind < 0.07 else self.graphic(rng)
            pixels = self.grid(image)
            return pixels, rgb_to_lab(pixels), GRAPHIC
        image = self.scene(rng) if kind < 0.27 else self.photo(rng)
        pixels = self.grid(image)
        return pixels, self.experts(image, pixels), PHOTO

    def grid(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) → (1, 3, 64, 64)."""
        return F.interpolate(self.classifier.pick(image), (GRID, GRID), mode="nearest-exact")

    def photo(self, rng: np.random.Generator) -> Tensor:
        """A photo or a part of it, at most 512 pixels a side, (1, 3, H, W); some with other hues, tones and light."""
        portrait = rng.random() < 0.02
        groups = [self.portraits] if portrait else [photos for _, photos in self.photos]
        group = groups[0] if portrait else groups[rng.choice(3, p=[share for share, _ in self.photos])]
        is_part = rng.random() < 0.7
        image = group[rng.integers(len(group))]
        image = any_part(image, rng, 0.35) if is_part else image
        real = image[None].float() / 255
        largest = max(real.shape[2:])
        if largest > 512:
            size = [max(1, round(length * 512 / largest)) for length in real.shape[2:]]
            real = F.interpolate(real, size, mode="bilinear", antialias=True).clamp(0, 1)
        if rng.random() < 0.5:
            real = real.flip(3)
        if not portrait and rng.random() < 0.2:
            real = rotate_hues(real[0], rng)[None]
        return quantise(vary(real, rng) if rng.random() < 0.45 else real)

    def scene(self, rng: np.random.Generator) -> Tensor:
        return quantise(F.interpolate(scene(rng, 96)[None], scale_factor=3, mode="bilinear"))

    def graphic(self, rng: np.random.Generator) -> Tensor:
        cameras = self.photos[0][1]
        photo = Image.fromarray(cameras[rng.integers(len(cameras))].permute(1, 2, 0).numpy())
        return torch.from_numpy(np.array(graphic(rng, photo))).permute(2, 0, 1)[None] / 255

    def drawing(self, rng: np.random.Generator) -> Tensor:
        """A wallpaper that is no photo, or a part of it, in other colours."""
        image = self.drawings[rng.integers(len(self.drawings))]
        real = (any_part(image, rng, 0.3) if rng.random() < 0.8 else image).float() / 255
        real = rotate_hues(real, rng)[None] if rng.random() < 0.6 else real[None]
        return quantise(vary(real, rng) if rng.random() < 0.3 else real)


def any_part(image: Tensor, rng: np.random.Generator, least: float) -> Tensor:
    """A rectangle whose sides are `least` to all of the image's, but at least 64 pixels if it has them."""
    height, width = (min(max(64, round(length * rng.uniform(least, 1))), length) for length in image.shape[1:])
    top, left = rng.integers(image.shape[1] - height + 1), rng.integers(image.shape[2] - width + 1)
    return image[:, top : top + height, left : left + width]


def vary(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Another tone curve and saturation, and for half of the images a little other exposure and light."""
    image = image ** float(np.exp(rng.normal(0, 0.15)))
    image = image + rng.uniform(-0.15, 0.3) * (image * image * (3 - 2 * image) - image)
    grey = luma(image)
    image = (grey + (image - grey) * float(np.exp(rng.normal(0, 0.22)))).clamp(0, 1)
    if rng.random() < 0.5:
        gains = torch.tensor(np.exp(rng.normal(0, 0.04, (3, 1, 1))), dtype=torch.float32)
        image = to_srgb((to_linear(image) * gains * 2 ** rng.normal(0, 0.25)).clamp(0, 1))
    return image


def degrade_at_random(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Seven in ten are tinted, half of them about as one of `TINTS`; each other change hits some."""
    batch = len(image)

    def sometimes(change: np.ndarray, share: float) -> np.ndarray:
        return change * (rng.random(batch) < share).reshape(-1, *[1] * (change.ndim - 1))

    warmth, magenta = rng.normal(0, 0.35, (batch, 1)), rng.normal(0, 0.2, (batch, 1))
    tint = np.hstack([warmth + magenta, -magenta, -warmth * rng.uniform(0.7, 1.3, (batch, 1)) + magenta])
    known = np.log(list(TINTS.values()))[rng.integers(4, size=batch)] * rng.uniform(0.5, 1.2, (batch, 1))
    tint = np.where(rng.random((batch, 1)) < 0.5, known + rng.normal(0, 0.06, (batch, 3)), tint)
    return degrade(
        image,
        stops=sometimes(rng.uniform(-2.0, 0.7, batch), 0.4),
        gains=np.exp(sometimes(tint, 0.7)),
        contrast=np.exp(sometimes(rng.normal(0, 0.15, batch), 0.15)),
        gamma=np.exp(sometimes(rng.normal(0, 0.15, batch), 0.15)),
        saturation=np.exp(sometimes(rng.normal(0, 0.15, batch), 0.15)),
    )


def make_samples(photos: str, adaint: str, lut3d: str, count: int, seed: int, folder: Path) -> dict[str, Tensor]:
    """The samples of `count` pictures, as `SampleMaker.samples` describes them; on all processor cores.

    They are kept in `folder`, and read from there if they were made before.
    """
    path = folder / f"samples_{seed}_{count}.safetensors"
    if not path.exists():
        arguments = photos, adaint, lut3d, seed
        SampleMaker(*arguments)  # reports what is missing before processes start
        folder.mkdir(parents=True, exist_ok=True)
        chunks = range(-(-count // CHUNK))
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _start_process, arguments) as pool:
            made = list(track(pool.map(_make_chunk, chunks), "making samples", len(chunks)))
        with replacing(path, overwrite=True) as part:
            save_file({name: torch.cat([one[name] for one in made]) for name in made[0]}, part)
    return load_file(path)


_maker: SampleMaker | None = None  # of this process


def _start_process(photos: str, adaint: str, lut3d: str, seed: int) -> None:
    global _maker
    _maker = SampleMaker(photos, adaint, lut3d, seed)


def _make_chunk(chunk: int) -> dict[str, Tensor]:
    assert _maker is not None
    return _maker.samples(chunk)
