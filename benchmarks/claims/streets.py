"""Street scenes with the class of each pixel, drawn by code, in Cityscapes' layout; and photographs that come inside
scikit-image and scikit-learn, well, under- and overexposed.

A scene looks down a street: road and pavement in perspective, house fronts with windows on both sides, trees, the sky
where they leave a gap; cars and people stand on the ground, smaller the farther away. Colours are drawn anew for each
thing, and those of different classes overlap: place, shape and texture tell them apart. A strip at the bottom, where a
camera's own car would be, has no class.

What is encoded is linear light, so that stops of exposure and clipping are those of a camera.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from scipy.ndimage import gaussian_filter
from skimage.transform import rescale

from fastenh.data.example import write

CLASSES = ("road", "pavement", "building", "tree", "sky", "person", "car")
ROAD, PAVEMENT, BUILDING, TREE, SKY, PERSON, CAR = range(len(CLASSES))
HEIGHT, WIDTH = 64, 128
GAMMA = 2.2
STOPS = {"well": 0.0, "under": -3.5, "over": 2.5}  # of photographs, from as they are


def make_streets(root: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Writes `leftImg8bit/split/town` and `gtFine/split/town` under `root`, counts[split] scenes."""
    for number, (split, count) in enumerate(counts.items()):
        folders = {kind: root / kind / split / "town" for kind in ("leftImg8bit", "gtFine")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        for n in range(count):
            light, labels = street(np.random.default_rng([seed, number, n]))
            write(folders["leftImg8bit"] / f"{n}_leftImg8bit.png", encoded(light), 255)
            write(folders["gtFine"] / f"{n}_gtFine_labelTrainIds.png", labels[..., None] / 255, 255)


def make_exposures(root: Path) -> None:
    """Writes `well`, `under` and `over` under `root`: photographs at three exposures, at most 320 pixels wide."""
    for kind, stops in STOPS.items():
        (root / kind).mkdir(parents=True)
        for name, photograph in photographs().items():
            write(root / kind / f"{name}.png", encoded(photograph**GAMMA * 2**stops), 255)


def photographs(width: int = 320) -> dict[str, np.ndarray]:
    """(H, W, 3) in [0, 1], sRGB, at most so wide."""
    china, flower = sklearn.datasets.load_sample_images().images
    found = {
        "chelsea": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "motorcycle": skimage.data.stereo_motorcycle()[0],
        "china": china,
        "flower": flower,
        "astronaut": skimage.data.astronaut(),
        "rocket": skimage.data.rocket(),
    }

    def reduced(photograph: np.ndarray) -> np.ndarray:
        factor = min(1, width / photograph.shape[1])
        return rescale(photograph / 255.0, factor, channel_axis=2, anti_aliasing=factor < 1).clip(0, 1)

    return {name: reduced(photograph) for name, photograph in found.items()}


def street(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Linear light (H, W, 3), and classes (H, W) uint8."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    horizon, middle = HEIGHT * rng.uniform(0.38, 0.5), WIDTH * rng.uniform(0.4, 0.6)
    depth = (y - horizon) / (HEIGHT - horizon)  # of the ground: 0 at the horizon, 1 before the camera
    labels = np.full((HEIGHT, WIDTH), SKY, np.uint8)
    light = np.ones((HEIGHT, WIDTH, 3)) * rng.uniform([0.35, 0.4, 0.45], [0.7, 0.75, 0.9])
    light *= (0.7 + 0.5 * y / HEIGHT)[..., None]

    def paint(where: np.ndarray, kind: int, colour: np.ndarray, grain: float, coarse: float = 0) -> None:
        labels[where] = kind
        texture = grain * rng.normal(size=where.shape)
        if coarse:
            blobs = gaussian_filter(rng.normal(size=where.shape), coarse)
            texture += 0.4 * blobs / blobs.std()
        light[where] = (colour * np.exp(texture)[..., None])[where]

    def drab() -> np.ndarray:
        return rng.uniform(0.06, 0.3) * np.exp(rng.normal(0, 0.12, 3))

    # Houses on both sides, towards the middle and the horizon smaller.
    for side in (-1, 1):
        edge = 0.0
        while edge < 1:
            far = edge + rng.uniform(0.15, 0.4)
            out = side * (x - middle) / (WIDTH / 2)
            here = (out > 1 - far) & (out <= 1 - edge if edge else out > -9) & (out > 0.1)
            if rng.random() < 0.85:
                roof = horizon * rng.uniform(0.05, 0.75)
                wall = here & (y > roof + (1 - out) * 8) & (y < horizon + 6)
                paint(wall, BUILDING, drab(), 0.05)
                columns, rows = rng.integers(4, 8, 2)
                windows = wall & (x % columns < columns / 2) & (y % rows < rows / 2)
                light[windows] *= rng.choice([0.25, 2.0])
            edge = far

    ground = depth > 0
    paint(ground, PAVEMENT, drab() * 1.2, 0.06)
    slabs = ground & ((x + 40 * depth) % 9 < 1)
    light[slabs] *= 0.75
    width = WIDTH * (0.05 + rng.uniform(0.3, 0.5) * depth)
    road = ground & (np.abs(x - middle) < width)
    paint(road, ROAD, drab() * 0.8, 0.1)
    dashes = road & (np.abs(x - middle) < 0.6 + 1.5 * depth) & ((1 / (depth + 0.12)) % 2 < 1)
    light[dashes] = 0.55

    for _ in range(rng.integers(1, 5)):
        across, scale = rng.uniform(0, WIDTH), rng.uniform(0.5, 1.3)
        base = horizon + 8 * scale
        crown = np.hypot((x - across) / (9 * scale), (y - base + 22 * scale) / (11 * scale)) < 1
        trunk = (np.abs(x - across) < 1.2 * scale) & (y > base - 16 * scale) & (y < base)
        paint(crown | trunk, TREE, rng.uniform([0.03, 0.07, 0.02], [0.1, 0.22, 0.07]), 0.35, 1.5)

    places = sorted(rng.uniform(0.08, 0.75, rng.integers(3, 8)))
    for near in places:  # what is near comes last, before what is far
        foot, size = horizon + near * (HEIGHT - horizon), 6 + 34 * near
        if rng.random() < 0.5:
            across = middle + rng.uniform(-1, 1) * WIDTH * (0.05 + 0.45 * near)
            wide, high = size * rng.uniform(0.6, 0.8), size * rng.uniform(0.4, 0.55)
            body = (np.abs(x - across) < wide / 2) & (y < foot) & (y > foot - 0.65 * high)
            cabin = (np.abs(x - across) < wide * 0.34) & (y < foot - 0.6 * high) & (y > foot - high)
            paint(body | cabin, CAR, rng.uniform(0.03, 0.7, 3), 0.03)
            light[cabin & (y > foot - 0.92 * high)] = rng.uniform(0.02, 0.1)
            wheels = (np.abs(np.abs(x - across) - wide * 0.34) < wide * 0.09) & (y > foot - 0.2 * high) & (y < foot)
            light[wheels] = 0.01
        else:
            across = rng.uniform(0, WIDTH)
            high = size * 0.75
            head = np.hypot(x - across, y - foot + high * 0.9) < high * 0.1
            torso = (np.abs(x - across) < high * 0.14) & (y < foot - 0.4 * high) & (y > foot - 0.82 * high)
            legs = (np.abs(np.abs(x - across) - high * 0.07) < high * 0.05) & (y < foot) & (y >= foot - 0.42 * high)
            paint(torso, PERSON, rng.uniform(0.03, 0.6, 3), 0.05)
            paint(legs, PERSON, rng.uniform(0.02, 0.3, 3), 0.05)
            paint(head, PERSON, rng.uniform([0.2, 0.12, 0.08], [0.6, 0.42, 0.32]), 0.02)

    labels[HEIGHT - 3 :] = 255
    light[HEIGHT - 3 :] = 0.03
    return light * 2 ** rng.normal(0, 0.25), labels


def encoded(light: np.ndarray) -> np.ndarray:
    return np.clip(light, 0, 1) ** (1 / GAMMA)
