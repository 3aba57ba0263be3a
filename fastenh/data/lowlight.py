"""Photos without targets, for training on low light: data set layouts, and the crops that training takes from them.

SCL-LLE learns from unpaired photos: one of a street in low light, with a class for each pixel, a well-lit one (the
positive) and an under- or overexposed one (the negative).
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
from fastenh.data.degrade import apply_gamma
from fastenh.data.photos import UnreadablePhoto, find_photos, read_size, read_tensor
from fastenh.data.samples import Samples, random_window
from fastenh.losses.semantic import IGNORE

# Cityscapes' labelIds of the 19 classes that are evaluated, in the order of trainIds 0 to 18: road, sidewalk, building,
# wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus, train,
# motorcycle, bicycle.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo, and the map of its pixels' classes if there is one."""

    name: str
    image: Path
    labels: Path | None = None


def cityscapes(root: Path, split: str = "train") -> list[LabelledPhoto]:
    """Cityscapes: `leftImg8bit/split/city/NAME_leftImg8bit.png`, `gtFine/split/city/NAME_gtFine_labelTrainIds.png`.

    Without a labelTrainIds file, `NAME_gtFine_labelIds.png` is used. `gtFine` may be missing. Raises ValueError, in one
    line, if there are no photos.
    """
    folder = root / "leftImg8bit" / split
    photos = []
    for image in sorted(folder.glob("*/*_leftImg8bit.png")):
        name = image.name.removesuffix("_leftImg8bit.png")
        beside = root / "gtFine" / split / image.parent.name
        kinds = [beside / f"{name}_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
        photos.append(LabelledPhoto(name, image, next((path for path in kinds if path.is_file()), None)))
    if not photos:
        got = "none" if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder}: expected photos, CITY/NAME_leftImg8bit.png, got {got}")
    return photos


def find_labelled_photos(root: Path, split: str = "train") -> list[LabelledPhoto]:
    """Cityscapes if `root` has that layout, otherwise the photos in `root` itself, without labels.

    A multi-exposure set, as Zero-DCE's authors use, goes into one folder. Raises as `cityscapes` does.
    """
    if (root / "leftImg8bit").is_dir():
        return cityscapes(root, split)
    return [LabelledPhoto(name, path) for name, path in find_photos(root).items()]


class References(NamedTuple):
    """Photos to compare with: well exposed, underexposed, overexposed."""

    well: list[LabelledPhoto]
    under: list[LabelledPhoto]
    over: list[LabelledPhoto]


def find_references(root: Path) -> References:
    """SICE Part 1: `Label/SCENE.JPG` (or `label`) and `SCENE/1.JPG`, `2.JPG` …; or `{well,under,over}`, any names.

    The exposures of a SICE scene are numbered from dark to bright: the first is underexposed, the last overexposed.
    Raises ValueError, in one line, if `root` has neither layout or a scene has fewer than two exposures.
    """
    if (root / "well").is_dir():
        folders = [find_photos(root / part) for part in References._fields]
        return References(*([LabelledPhoto(*item) for item in photos.items()] for photos in folders))
    label = next((root / name for name in ("Label", "label") if (root / name).is_dir()), None)
    if label is None:
        got = "neither layout" if root.is_dir() else "no such folder"
        raise ValueError(
            f"{root}: expected Label/ and a folder for each scene, as in SICE, or well/, under/ and over/, got {got}"
        )
    references = References([], [], [])
    for scene, well in find_photos(label).items():
        exposures = find_photos(root / scene)
        ordered = sorted(exposures, key=lambda name: (int(name), "") if name.isdecimal() else (10**9, name))
        if len(ordered) < 2:
            raise ValueError(f"{root / scene}: expected at least two exposures, got {len(ordered)}")
        references.well.append(LabelledPhoto(scene, well))
        references.under.append(LabelledPhoto(scene, exposures[ordered[0]]))
        references.over.append(LabelledPhoto(scene, exposures[ordered[-1]]))
    return references


def read_labels(path: Path) -> Tensor:
    """(H, W) uint8: the class of each pixel, 255 for no class. Files named *_labelIds are mapped to Cityscapes' 19.

    Raises UnreadablePhoto, in one line, if the file is missing or damaged or has more than 8 bits.
    """
    try:
        pixels = io.read_pixels(path)
    except (OSError, ValueError) as error:
        raise UnreadablePhoto(f"{path}: expected a label map, got a file that cannot be read ({error})") from None
    if pixels.dtype != np.uint8:
        raise UnreadablePhoto(f"{path}: expected labels of 8 bits, got {pixels.dtype}")
    labels = pixels[..., 0]
    if path.stem.endswith("_labelIds"):
        table = np.full(256, IGNORE, np.uint8)
        table[list(LABEL_IDS)] = range(len(LABEL_IDS))
        labels = table[labels]
    return torch.from_numpy(np.ascontiguousarray(labels))


class Crops(Samples[LabelledPhoto]):
    """Random crops of photos, darkened: {"image": (3, S, S) in [0, 1]}, with `labels` also "labels" (S, S) uint8.

    A crop spans 0.6 to 1 of the photo's height and, independently, of its width, and is resized to side×side, its
    labels by nearest neighbour. Half of the crops are flipped. Then the image is raised to the power γ and rounded to
    8 bits (`apply_gamma`); log γ is uniform between 0 and log `darken`.

    Unreadable photos are skipped, see `Samples`. The constructor raises ValueError, in one line, if labels are wanted
    and a photo has none or they differ from it in size.
    """

    def __init__(
        self, photos: Sequence[LabelledPhoto], side: int, seed: int = 0, darken: float = 1.0, labels: bool = False
    ) -> None:
        super().__init__(photos, side, seed)
        self.darken, self.labels = darken, labels
        for photo in photos if labels else ():
            if photo.labels is None:
                raise ValueError(f"{photo.image}: expected a label map, as in Cityscapes' gtFine, got none")
            try:
                sizes = [read_size(path) for path in (photo.image, photo.labels)]
            except UnreadablePhoto as error:
                self.skip(photo, error)
                continue
            if sizes[0] != sizes[1]:
                (height, width), (got_height, got_width) = sizes
                raise ValueError(
                    f"{photo.labels}: expected the size of {photo.image.name}, {width}×{height}, "
                    f"got {got_width}×{got_height}"
                )

    def crop(self, photo: LabelledPhoto, rng: np.random.Generator) -> dict[str, Tensor]:
        image = read_tensor(photo.image)
        window = (slice(None), *random_window(image.shape[1], image.shape[2], rng))
        size, flipped = (self.side, self.side), [2] if rng.random() < 0.5 else []
        crop = F.interpolate(image[window][None], size, mode="bilinear", antialias=True)[0].clamp(0, 1).flip(flipped)
        sample = {"image": apply_gamma(crop, float(self.darken ** rng.random()))}
        if self.labels:
            assert photo.labels
            labels = read_labels(photo.labels)[None]
            sample["labels"] = F.interpolate(labels[window][None], size, mode="nearest-exact")[0].flip(flipped)[0]
        return sample


class Contrasts:
    """Unpaired samples for contrastive learning: those of `crops`, and for each a "positive" and a "negative".

    Both are crops of `references`. Each kind has its own order, so a photo meets other references in every epoch. The
    negative is under- or overexposed with equal probability, or as `negatives` says: "both", "under", "over" or "none".
    """

    def __init__(self, crops: Crops, references: References, negatives: str = "both") -> None:
        self.crops, self.seed = crops, crops.seed

        def reference_crops(photos: list[LabelledPhoto], number: int) -> Crops:
            return Crops(photos, crops.side, crops.seed + number)

        self.positives = reference_crops(references.well, 1)
        under, over = reference_crops(references.under, 2), reference_crops(references.over, 3)
        self.negatives = {"both": [under, over], "under": [under], "over": [over], "none": []}[negatives]

    def __len__(self) -> int:
        return len(self.crops)

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """{"image", "positive", "negative"}, (B, 3, S, S) each, and "labels" if `crops` have them."""
        batch = self.crops.batch(positions)
        batch["positive"] = self.positives.batch(positions)["image"]
        if self.negatives:
            batch["negative"] = torch.stack([self._negative(position)["image"] for position in positions])
        return batch

    def _negative(self, position: int) -> dict[str, Tensor]:
        kind = np.random.default_rng([self.seed, 2, position]).integers(len(self.negatives))
        return self.negatives[kind].sample(position)
