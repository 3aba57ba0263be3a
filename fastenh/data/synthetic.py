"""Images made by code, for training: procedural scenes, recoloured crops of photographs, drawn portraits.

Scenes and crops are targets: well-exposed images of all kinds, for systems that learn to undo what `degrade` does.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.data.bundled import training_photos
from fastenh.data.degrade import luma, to_linear, to_srgb


def training_targets(count: int, side: int, seed: int) -> Tensor:
    """(count, 3, side, side): targets from the photographs that are not held out."""
    return make_targets(count, training_photos(), np.random.default_rng(seed), side)


def make_targets(count: int, photos: list[Tensor], rng: np.random.Generator, side: int) -> Tensor:
    """(count, 3, side, side): six in ten are scenes, the others crops of photos."""

    def target() -> Tensor:
        return resize_nearest(scene(rng), side) if rng.random() < 0.6 else photo_target(photos, rng, side)

    return torch.stack([target() for _ in range(count)])


def draw_targets(targets: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """`count` targets at random; four in ten are collages of two, so that no distribution of colours comes twice."""
    one, other = (targets[torch.from_numpy(rng.integers(len(targets), size=count))] for _ in range(2))
    side = targets.shape[-1]
    cut = np.where(rng.random(count) < 0.4, rng.uniform(0.2, 0.8, count), 1) * side
    return torch.where(torch.arange(side) < torch.from_numpy(cut).view(-1, 1, 1, 1), one, other)


def photo_target(photos: list[Tensor], rng: np.random.Generator, side: int) -> Tensor:
    """(3, side, side): a crop of a photo, recoloured in ways that keep neutrals neutral, so that few photos suffice."""
    image = photos[rng.integers(len(photos))]
    height, width = (round(length * rng.uniform(0.4, 1.0)) for length in image.shape[1:])
    top, left = rng.integers(image.shape[1] - height + 1), rng.integers(image.shape[2] - width + 1)
    image = resize_nearest(image[:, top : top + height, left : left + width], side)
    if torch.equal(image[0], image[1]) and rng.random() < 0.8:  # a grey photo illuminates the surfaces of a scene
        light = to_linear(image) * to_linear(resize_nearest(scene(rng), side))
        image = to_srgb((light * rng.uniform(0.85, 1.15) / light.quantile(0.995)).clamp(0, 1))
    elif rng.random() < 0.6:
        image = rotate_hues(image, rng)
    return vary_tone(image, rng)


def scene(rng: np.random.Generator, side: int = 48) -> Tensor:
    """(3, side, side): objects of natural colours before a backdrop or a sky, in uneven light, exposed for highlights.

    Computed in linear light: reflectance × illumination + highlights; then exposure, clipping and encoding.
    """
    y, x = np.mgrid[0:side, 0:side] / side

    def noise(slope: float) -> np.ndarray:
        """1/f^slope noise of zero mean and unit variance: textures at slope 1, clouds and soft light at slope 2."""
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
        frequency[0, 0] = np.inf
        spectrum = frequency**-slope * np.exp(2j * np.pi * rng.random(frequency.shape))
        field = np.fft.irfft2(spectrum, (side, side))
        return (field - field.mean()) / field.std()

    # A photo seldom contains all colours: most surfaces of a scene take theirs from a palette of one to three.
    def any_colour() -> tuple[float, float]:
        """Hue and saturation: a grey, a brown or skin tone, a green, a blue, or in one case of ten any colour."""
        kind = rng.choice(5, p=[0.28, 0.4, 0.12, 0.1, 0.1])
        hue = [rng.random(), rng.normal(0.07, 0.03), rng.normal(0.27, 0.06), rng.normal(0.6, 0.05), rng.random()][kind]
        return hue, [rng.beta(1, 12), rng.beta(3, 2.5), rng.beta(2.5, 3.5), rng.beta(2.5, 3.5), rng.beta(4, 2)][kind]

    palette = [any_colour() for _ in range(rng.integers(1, 4))]
    palette_share = rng.random() ** 0.5

    def surface() -> np.ndarray:
        """(3,) linear reflectance."""
        hue, saturation = palette[rng.integers(len(palette))] if rng.random() < palette_share else any_colour()
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
    if rng.random() < 0.5:  # a shadow over a part
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
    return vary_tone(to_srgb(torch.from_numpy(light * anchor / top).float().clamp(0, 1)), rng)


def vary_tone(image: Tensor, rng: np.random.Generator) -> Tensor:
    """As good photos vary: a small gamma and a gentle S-curve, which keep black and white, and a little saturation."""
    image = image ** float(np.exp(rng.normal(0, 0.12)))
    strength = rng.uniform(-0.1, 0.4)
    image = image + strength * (image * image * (3 - 2 * image) - image)
    grey = luma(image)
    return (grey + (image - grey) * float(np.exp(rng.normal(0, 0.15)))).clamp(0, 1)


def rotate_hues(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Rotates colours about the grey axis by an angle that depends smoothly on the hue."""
    red, green, blue = image
    hue = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)
    angle = rng.normal(0, 0.4) + rng.normal(0, 0.4) * torch.cos(hue - rng.uniform(0, 2 * np.pi))
    grey = image.mean(0, keepdim=True)
    chroma = image - grey
    across = (chroma.roll(1, 0) - chroma.roll(-1, 0)) / 3**0.5
    return (grey + chroma * torch.cos(angle) + across * torch.sin(angle)).clamp(0, 1)


def resize_nearest(image: Tensor, side: int) -> Tensor:
    """(3, H, W) → (3, side, side) by picking pixels, as `StatisticsClassifier` does: averaging hides highlights."""
    return F.interpolate(image[None], (side, side), mode="nearest-exact")[0]


def portrait(colours: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A figure, head and body, before a background: linear light (H, W, 3) and where the figure is, (H, W) bool.

    Both take the two `colours`, (2, 3). Only texture tells them apart: fine on the figure, coarse behind it.
    """
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / min(size)

    def checks(cells: int) -> np.ndarray:
        """(H, W) in [−1, 1]: cells × cells rectangles of random values."""
        grid = rng.uniform(-1, 1, (cells, cells))
        return grid[np.ix_(np.arange(height) * cells // height, np.arange(width) * cells // width)]

    centre = width / min(size) / 2 + rng.uniform(-0.2, 0.2)
    head = np.hypot(x - centre, (y - 0.35) / 1.2) < 0.16
    body = (np.hypot((x - centre) / 1.3, (y - 1.05) / 1.6) < 0.28) & (y > 0.4)
    figure = head | body
    blend = checks(6)[..., None] / 2 + 0.5
    light = colours[0] * blend + colours[1] * (1 - blend)
    fine, coarse = checks(max(size) // 2), checks(8)
    return light * np.exp(np.where(figure, 0.35 * fine, 0.15 * coarse))[..., None], figure
