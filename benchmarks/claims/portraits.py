"""A portrait-like set in PPR10K's layout, made of photographs that come inside scikit-image and scikit-learn.

A scene is a window of a photograph, out of focus as behind a portrait, with a figure or two before it. A figure takes
its colours from the scene's own, so that no colour says what it belongs to; it is woven, in fine checks, where the
background is soft, so that the 3×3 pixels around each tell. A group is one scene in several shots: camera and figures
move a little, exposure and tint of the light shift.

The expert brings every shot back to one light for the whole group, in which the scene is of middling lightness and has
little of a cast; so it can be told from a shot what is to be done. Then figures become lighter and warmer and the
background darker and cooler.

Scenes of training come from the left parts of the photographs and those of validation from the right: no pixel is in
both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from fastenh.data.example import write

SIDE = 72  # of a photo
SHARE = {"train": (0.0, 0.6), "val": (0.6, 1.0)}  # of the photographs' width
MOVES = 1.15  # a scene is that much larger than a photo, so that the camera can move
GAMMA = 2.2
BLUR = 2.5  # of the background, σ in pixels
CAST = 0.3  # how much of a scene's cast the expert leaves
EXPERT = {"figure": 1.25 * np.exp([0.07, 0, -0.07]), "background": 0.8 * np.exp([-0.07, 0, 0.07])}
SHOT, AUGMENTED = (0.3, 0.08), (0.5, 0.12)  # how far light shifts: stops of exposure; log of tint, each channel


def make(root: Path, groups: dict[str, int], photos: int = 5, augmentations: int = 2, seed: int = 0) -> None:
    """Writes `split/{source, source_aug, target_a, masks}` under `root`, `groups[split]` groups of `photos` photos."""
    photographs = [
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.stereo_motorcycle()[0],
        *sklearn.datasets.load_sample_images().images,  # china, flower
    ]
    for number, (split, count) in enumerate(groups.items()):
        for kind in ("source", "source_aug", "target_a", "masks"):
            (root / split / kind).mkdir(parents=True)
        for group in range(count):
            rng = np.random.default_rng([seed, number, group])
            scene = background(photographs[group % len(photographs)], SHARE[split], rng)
            palette = scene.reshape(-1, 3)[rng.integers(scene.shape[0] * scene.shape[1], size=(2, 4))]
            persons = list(zip(palette, middles(rng), rng.uniform(0.8, 1.1, 2), strict=False))
            for index in range(photos):
                light, figure = shot(scene, persons, rng)
                name, folder = f"{group}_{index}", root / split
                retouched = light * np.where(figure, EXPERT["figure"], EXPERT["background"])
                write(folder / "source" / f"{name}.tif", encoded(light * shifted(rng, *SHOT)), 65535)
                for n in range(augmentations):
                    augmented = encoded(light * shifted(rng, *AUGMENTED))
                    write(folder / "source_aug" / f"{name}_{n}.tif", augmented, 65535)
                write(folder / "target_a" / f"{name}.tif", encoded(retouched), 255)
                write(folder / "masks" / f"{name}.png", figure.astype(float), 255)


def background(photograph: np.ndarray, share: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """A window, linear light, (S, S, 3): half of what `share` of the photograph's width leaves, or more."""
    left, right = (round(part * photograph.shape[1]) for part in share)
    part = photograph[:, left:right]
    side = round(min(part.shape[:2]) * rng.uniform(0.5, 1))
    y, x = (rng.integers(length - side + 1) for length in part.shape[:2])
    window = part[y : y + side, x : x + side] / 255.0
    if rng.random() < 0.5:
        window = window[:, ::-1]
    size = round(SIDE * MOVES)
    light = resize(window, (size, size), anti_aliasing=True) ** GAMMA
    light *= 0.2 / light.mean() * (light.mean() / light.mean((0, 1))) ** (1 - CAST)
    return gaussian_filter(light, (BLUR, BLUR, 0))


def middles(rng: np.random.Generator) -> list[float]:
    """Where one or two figures stand, in parts of the width."""
    return [0.5] if rng.random() < 0.5 else [0.3, 0.72]


def shot(scene: np.ndarray, persons: list, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Linear light (SIDE, SIDE, 3) in the scene's own light, and figures (SIDE, SIDE, 1), bool."""
    top, left = rng.integers(scene.shape[0] - SIDE + 1, size=2)
    light = scene[top : top + SIDE, left : left + SIDE].copy()
    figures = np.zeros((SIDE, SIDE, 1), bool)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    for colours, middle, scale in persons:
        across, down = (x - middle - rng.uniform(-0.08, 0.08)) / scale, (y - 0.35 - rng.uniform(-0.05, 0.05)) / scale
        head = np.hypot(across, down / 1.2) < 0.14
        body = (np.hypot(across / 1.2, (down - 0.65) / 1.8) < 0.26) & (down > 0.1)
        figure = head | body
        clothes = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 6)  # which colour is where
        edges = np.quantile(clothes, [0.25, 0.5, 0.75])
        blend = colours[np.digitize(clothes, edges)]
        weave = np.kron(rng.uniform(0.5, 1, (SIDE // 2, SIDE // 2)), np.ones((2, 2)))  # checks of 2×2 pixels
        weave *= 1 - 2 * ((np.indices((SIDE, SIDE)) // 2).sum(0) % 2)
        light[figure] = (blend * np.exp(0.4 * weave)[..., None])[figure]
        figures[figure] = True
    return light, figures


def shifted(rng: np.random.Generator, stops: float, tint: float) -> np.ndarray:
    return 2 ** rng.normal(-0.3, stops) * np.exp(rng.normal(0, tint, 3))


def encoded(light: np.ndarray) -> np.ndarray:
    return np.clip(light, 0, 1) ** (1 / GAMMA)
