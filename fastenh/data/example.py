"""A small data set in PPR10K's layout, made by code: to try training with no data, and for tests.

    python -m fastenh.data.example portraits       # 24 photos to train with, 8 to measure with

A photo is a figure before a background. Photos of a group share both, under light that shifts from shot to shot. The
expert brings the light back to the group's own, then makes the figure lighter and warmer and the background darker and
cooler, though the two share colours: only their texture, fine on the figure and coarse behind it, tells them apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import OpenImageIO as oiio


def make_portraits(
    root: Path,
    split: str = "train",
    groups: int = 6,
    photos: int = 4,
    augmentations: int = 2,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> None:
    """Writes `split/{source, source_aug, target_a, target_b, target_c, masks}` under `root`.

    Sources are 16-bit TIFFs, targets 8-bit TIFFs, masks 8-bit PNGs, all (height, width) = `size`. FileExistsError where
    `split` is there: PPR10K's own photos have the same names.
    """
    folder = root / split
    if folder.exists():
        raise FileExistsError(f"{folder}: expected nothing there, got what may be photos of yours")
    for name in ("source", "target_a", "target_b", "target_c", "masks", *["source_aug"] * (augmentations > 0)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / min(size)
    middle = size[1] / min(size) / 2

    def noise(rng: np.random.Generator, cells: int) -> np.ndarray:
        """(H, W) in [−1, 1], a random grid of cells, each of one value."""
        grid = rng.uniform(-1, 1, (cells, cells))
        return grid[np.ix_(np.arange(size[0]) * cells // size[0], np.arange(size[1]) * cells // size[1])]

    for group in range(groups):
        rng = np.random.default_rng([seed, group])
        colours = rng.uniform(0.15, 0.6, (2, 3))
        for index in range(photos):
            centre = middle + rng.uniform(-0.2, 0.2)
            head = np.hypot(x - centre, (y - 0.35) / 1.2) < 0.16
            body = (np.hypot((x - centre) / 1.3, (y - 1.05) / 1.6) < 0.28) & (y > 0.4)
            figure = head | body
            blend = noise(rng, 6)[..., None] / 2 + 0.5  # figure and background take the same colours
            light = colours[0] * blend + colours[1] * (1 - blend)
            fine, coarse = noise(rng, max(size) // 2), noise(rng, 8)
            light = light * np.exp(np.where(figure, 0.35 * fine, 0.15 * coarse))[..., None]

            def source(stops: float, tint: np.ndarray, light: np.ndarray = light) -> np.ndarray:
                return np.clip(light * 2**stops * np.exp(tint), 0, 1) ** (1 / 2.2)

            def expert(warmth: float, light: np.ndarray = light, figure: np.ndarray = figure) -> np.ndarray:
                tone = np.where(figure[..., None], 1.3 * np.exp([warmth, 0, -warmth]), 0.75 * np.exp([-0.1, 0, 0.1]))
                return np.clip(light * tone, 0, 1) ** (1 / 2.2)

            name = f"{group}_{index}"
            write(folder / "source" / f"{name}.tif", source(rng.normal(-0.5, 0.3), rng.normal(0, 0.08, 3)), 65535)
            for n in range(augmentations):
                augmented = source(rng.normal(-0.5, 0.6), rng.normal(0, 0.15, 3))
                write(folder / "source_aug" / f"{name}_{n}.tif", augmented, 65535)
            for letter, warmth in zip("abc", (0.1, 0.0, 0.2), strict=True):
                write(folder / f"target_{letter}" / f"{name}.tif", expert(warmth), 255)
            write(folder / "masks" / f"{name}.png", figure[..., None].astype(float), 255)


def write(path: Path, image: np.ndarray, scale: int) -> None:
    """An (H, W, C) image in [0, 1] in integers up to `scale`, 255 or 65535."""
    kind = "uint8" if scale == 255 else "uint16"
    file = oiio.ImageOutput.create(str(path))
    height, width, channels = image.shape
    if file is None or not file.open(str(path), oiio.ImageSpec(width, height, channels, kind)):
        raise OSError(f"{path}: could not be opened ({oiio.geterror()})")
    if not file.write_image((image * scale).round().astype(kind)) or not file.close():
        raise OSError(f"{path}: could not be written ({file.geterror()})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder to write to")
    root = parser.parse_args().root
    try:
        make_portraits(root)
        make_portraits(root, "val", groups=2, seed=1)
    except OSError as error:
        parser.error(str(error))
    print(f"wrote {root}")
