"""A small data set in PPR10K's layout, made by code: for trying training without data, and for tests.

    python -m fastenh.data.example portraits       # 24 photos for training, 8 for validation

Each photo is a `synthetic.portrait`. Photos of a group share the colours of figure and background, in light that
differs from shot to shot. The expert restores the group's light, then makes the figure lighter and warmer and the
background darker and cooler.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import OpenImageIO as oiio

from fastenh.data.synthetic import portrait


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

    Sources are 16-bit TIFFs, targets 8-bit TIFFs, masks 8-bit PNGs, all (height, width) = `size`. Raises
    FileExistsError if `split` exists: the photos of PPR10K itself have the same names.
    """
    folder = root / split
    if folder.exists():
        raise FileExistsError(f"{folder}: expected a folder that does not exist yet, got one that may hold your photos")
    for name in ("source", "target_a", "target_b", "target_c", "masks", *["source_aug"] * (augmentations > 0)):
        (folder / name).mkdir(parents=True, exist_ok=True)

    for group in range(groups):
        rng = np.random.default_rng([seed, group])
        colours = rng.uniform(0.15, 0.6, (2, 3))
        for index in range(photos):
            name = f"{group}_{index}"
            light, figure = portrait(colours, size, rng)
            write(folder / "source" / f"{name}.tif", shot(light, rng.normal(-0.5, 0.3), rng.normal(0, 0.08, 3)), 65535)
            for n in range(augmentations):
                augmented = shot(light, rng.normal(-0.5, 0.6), rng.normal(0, 0.15, 3))
                write(folder / "source_aug" / f"{name}_{n}.tif", augmented, 65535)
            for letter, warmth in zip("abc", (0.1, 0.0, 0.2), strict=True):
                write(folder / f"target_{letter}" / f"{name}.tif", retouch(light, figure, warmth), 255)
            write(folder / "masks" / f"{name}.png", figure[..., None].astype(float), 255)


def shot(light: np.ndarray, stops: float, tint: np.ndarray) -> np.ndarray:
    """What the camera makes of linear light (H, W, 3) at an exposure, the tint being the logarithm of R, G, B gains."""
    return encode(light * 2**stops * np.exp(tint))


def retouch(light: np.ndarray, figure: np.ndarray, warmth: float) -> np.ndarray:
    """What the expert makes of it, whatever the exposure."""
    tone = np.where(figure[..., None], 1.3 * np.exp([warmth, 0, -warmth]), 0.75 * np.exp([-0.1, 0, 0.1]))
    return encode(light * tone)


def encode(light: np.ndarray) -> np.ndarray:
    return np.clip(light, 0, 1) ** (1 / 2.2)


def write(path: Path, image: np.ndarray, scale: int) -> None:
    """Writes an (H, W, C) image in [0, 1] as integers at full scale, 255 or 65535."""
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
