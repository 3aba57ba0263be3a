"""Photos taken in low light, without targets: the layouts they come in, and what training sees of them.

To brighten them without targets, SCL-LLE shows its network photos that do not belong together: one in low light, of a
street whose classes are known, a well-lit one (the positive) and one that is under- or overexposed (the negative).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh import io
from fastenh.data.photos import UnreadablePhoto, find_photos, read_size, read_tensor
from fastenh.data.samples import Samples, random_window
from fastenh.losses.semantic import IGNORE

# Of Cityscapes' labelIds those of the 19 classes that count, which trainIds number from 0: road, sidewalk, building,
# wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus, train,
# motorcycle, bicycle.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class Scene:
    """A photo, and the class of each of its pixels where they are known."""

    name: str
    image: Path
    labels: Path | None = None


def cityscapes(root: Path, split: str = "train") -> list[Scene]:
    """Cityscapes: `leftImg8bit/split/city/NAME_leftImg8bit.png`, `gtFine/split/city/NAME_gtFine_labelTrainIds.png`.

    Where there is no labelTrainIds, `NAME_gtFine_labelIds.png` is taken; `gtFine` may be missing. ValueError, in one
    line, where there are no photos.
    """
    folder = root / "leftImg8bit" / split
    scenes = []
    for image in sorted(folder.glob("*/*_leftImg8bit.png")):
        name = image.name.removesuffix("_leftImg8bit.png")
        beside = root / "gtFine" / split / image.parent.name
        kinds = [beside / f"{name}_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
        scenes.append(Scene(name, image, next((path for path in kinds if path.is_file()), None)))
    if not scenes:
        got = "none in it" if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder}: expected photos, CITY/NAME_leftImg8bit.png, got {got}")
    return scenes


def find_scenes(root: Path, split: str = "train") -> list[Scene]:
    """Cityscapes, where its layout is there, or else all photos that lie in the folder itself. Errors as `cityscapes`.

    The photos of multi-exposure sets may be fed as such a folder, as Zero-DCE's authors do.
    """
    if (root / "leftImg8bit").is_dir():
        return cityscapes(root, split)
    return [Scene(name, path) for name, path in find_photos(root).items()]


class References(NamedTuple):
    """Photos to compare with: well lit, underexposed, overexposed."""

    well: list[Scene]
    under: list[Scene]
    over: list[Scene]


def find_references(root: Path) -> References:
    """SICE Part 1, `Label/SCENE.JPG` (or `label`) and `SCENE/1.JPG`, `2.JPG` …, or `{well,under,over}`, any names.

    Of each scene of SICE, whose exposures are numbered from dark to bright, the first is underexposed, the last over.
    ValueError, in one line, where neither layout is there, or a scene has less than two exposures.
    """
    if (root / "well").is_dir():
        return References(*([Scene(n, p) for n, p in find_photos(root / part).items()] for part in References._fields))
    label = next((root / name for name in ("Label", "label") if (root / name).is_dir()), None)
    if label is None:
        got = "neither layout" if root.is_dir() else "no such folder"
        raise ValueError(
            f"{root}: expected Label/ and a folder for each scene, as SICE, or well/, under/ and over/, got {got}"
        )
    references = References([], [], [])
    for scene, well in find_photos(label).items():
        exposures = find_photos(root / scene)
        ordered = sorted(exposures, key=lambda name: (int(name), "") if name.isdecimal() else (10**9, name))
        if len(ordered) < 2:
            raise ValueError(f"{root / scene}: expected at least two exposures, got {len(ordered)}")
        references.well.append(Scene(scene, well))
        references.under.append(Scene(scene, exposures[ordered[0]]))
        references.over.append(Scene(scene, exposures[ordered[-1]]))
    return references


def read_labels(path: Path) -> Tensor:
    """(H, W) uint8: a class, or 255 for none. Files named *_labelIds are taken for Cityscapes' and turned to its 19.

    UnreadablePhoto, in one line, where the file is missing or damaged, or of more than 8 bits.
    """
    try:
        pixels = io.read_pixels(path)
    except (OSError, ValueError) as error:
        raise UnreadablePhoto(f"{path}: expected a map of labels, got none that can be read ({error})") from None
    if pixels.dtype != np.uint8:
        raise UnreadablePhoto(f"{path}: expected labels of 8 bits, got {pixels.dtype}")
    labels = pixels[..., 0]
    if path.stem.endswith("_labelIds"):
        table = np.full(256, IGNORE, np.uint8)
        table[list(LABEL_IDS)] = range(len(LABEL_IDS))
        labels = table[labels]
    return torch.from_numpy(np.ascontiguousarray(labels))


def darkened(image: Tensor, gamma: float) -> Tensor:
    """image^γ, rounded to 8 bits, as a photo that was stored in the dark; γ = 1 is the image as it is."""
    return image if gamma == 1 else (image.clamp(0, 1) ** gamma * 255).round() / 255


class Scenes(Samples[Scene]):
    """Random crops of photos, made darker: {"image": (3, S, S) in [0, 1]}, and "labels" (S, S) uint8 if asked for.

    A crop takes 0.6 to 1 of the photo's height and, independently, of its width, is resized to side×side (labels
    without blending), and half of them are flipped. Then it becomes `darkened` with a γ whose logarithm is uniform from
    0 to that of `darken`.

    A photo that cannot be read is passed over, see `Samples`. ValueError, at once and in one line, for a photo without
    labels or with those of another size, where they are asked for.
    """

    def __init__(
        self, scenes: Sequence[Scene], side: int, seed: int = 0, darken: float = 1.0, labels: bool = False
    ) -> None:
        super().__init__(scenes, side, seed)
        self.darken, self.labels = darken, labels
        for scene in scenes if labels else ():
            if scene.labels is None:
                raise ValueError(f"{scene.image}: expected a map of its labels, as Cityscapes' gtFine, got none")
            try:
                sizes = [read_size(path) for path in (scene.image, scene.labels)]
            except UnreadablePhoto as error:
                self._pass_over(scene, error)
                continue
            if sizes[0] != sizes[1]:
                (height, width), (got_height, got_width) = sizes
                raise ValueError(
                    f"{scene.labels}: expected the size of {scene.image.name}, {width}×{height}, "
                    f"got {got_width}×{got_height}"
                )

    def _crop(self, photo: Scene, rng: np.random.Generator) -> dict[str, Tensor]:
        image = read_tensor(photo.image)
        window = (slice(None), *random_window(image.shape[1], image.shape[2], rng))
        size, flipped = (self.side, self.side), [2] if rng.random() < 0.5 else []
        crop = F.interpolate(image[window][None], size, mode="bilinear", antialias=True)[0].clamp(0, 1).flip(flipped)
        sample = {"image": darkened(crop, float(self.darken ** rng.random()))}
        if self.labels:
            assert photo.labels
            labels = read_labels(photo.labels)[None]
            sample["labels"] = F.interpolate(labels[window][None], size, mode="nearest-exact")[0].flip(flipped)[0]
        return sample


class Contrasts:
    """Unpaired samples for contrastive learning: those of `scenes`, and beside each "positive" and "negative".

    Both are crops of `references` of their own, each in an order of its own, so that what stands beside a photo is
    another in each epoch. The negative is under- or overexposed with equal chances, or as `negatives` says: "both",
    "under", "over" or "none".
    """

    def __init__(self, scenes: Scenes, references: References, negatives: str = "both") -> None:
        self.scenes, self.seed = scenes, scenes.seed

        def crops(photos: list[Scene], number: int) -> Scenes:
            return Scenes(photos, scenes.side, scenes.seed + number)

        self.positives = crops(references.well, 1)
        under, over = crops(references.under, 2), crops(references.over, 3)
        self.negatives = {"both": [under, over], "under": [under], "over": [over], "none": []}[negatives]

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        batch = self.scenes.batch(positions)
        batch["positive"] = self.positives.batch(positions)["image"]
        if self.negatives:
            batch["negative"] = torch.stack([self._negative(position)["image"] for position in positions])
        return batch

    def _negative(self, position: int) -> dict[str, Tensor]:
        kind = np.random.default_rng([self.seed, 2, position]).integers(len(self.negatives))
        return self.negatives[kind].sample(position)
