"""Photos and experts' retouches of them: data set layouts, and the crops that training takes from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.data.photos import UnreadablePhoto, find_photos, group_of, read_size, read_tensor
from fastenh.data.samples import Samples, random_window
from fastenh.metrics import mean_ab


@dataclass(frozen=True)
class Pair:
    """A photo, its target, and the mask of its people."""

    name: str
    sources: tuple[Path, ...]  # the photo, then its augmentations, such as other exposures of one raw file
    target: Path
    mask: Path | None = None

    @property
    def group(self) -> str:
        return group_of(self.name)


def ppr10k(root: Path, split: str = "train", expert: str = "a") -> list[Pair]:
    """PPR10K: `split/{source, source_aug, target_a|b|c, masks}`, names group_index, augmented group_index_aug.

    Sources have 16 bits, targets 8; masks are bright on people. `source_aug` and `masks` may be missing. Raises
    ValueError, in one line, if a photo has no target or the folders are others.
    """
    folder = root / split
    sources = find_photos(folder / "source")
    versions = {name: [path] for name, path in sources.items()}
    if (folder / "source_aug").is_dir():
        for name, path in find_photos(folder / "source_aug").items():
            photo = name.rpartition("_")[0]
            if photo not in versions:
                raise ValueError(f"{path}: expected {photo} in {folder / 'source'}, got no such photo")
            versions[photo].append(path)
    for name, path in sources.items():
        if name.count("_") < 1:
            raise ValueError(f"{path}: expected a name group_index, got {name}")
    return _match(versions, folder / f"target_{expert}", folder / "masks")


def paired_folders(root: Path, split: str = "train") -> list[Pair]:
    """FiveK and similar: `split/{input, target, masks}`, equal names; `masks` may be missing. Raises as `ppr10k`."""
    folder = root / split
    inputs = find_photos(folder / "input")
    return _match({name: [path] for name, path in inputs.items()}, folder / "target", folder / "masks")


def find_pairs(root: Path, split: str = "train", expert: str = "a") -> list[Pair]:
    """The pairs in either layout. ValueError, in one line, if `root` has neither or none of that expert."""
    if (root / split / "source").is_dir():
        return ppr10k(root, split, expert)
    if (root / split / "input").is_dir():
        if expert != "a":
            raise ValueError(
                f"{root}: expected {split}/source and {split}/target_{expert} for expert {expert}, got {split}/input, "
                "which has the targets of one expert"
            )
        return paired_folders(root, split)
    raise ValueError(
        f"{root}: expected {split}/source and {split}/target_{expert} (PPR10K) or {split}/input and {split}/target, "
        f"got {'neither' if root.is_dir() else 'no such folder'}"
    )


def _match(versions: dict[str, list[Path]], target_folder: Path, mask_folder: Path) -> list[Pair]:
    targets = find_photos(target_folder)
    masks = find_photos(mask_folder) if any(mask_folder.glob("*")) else {}
    for name in versions:
        if name not in targets:
            raise ValueError(f"{target_folder}: expected a target for each photo, got none for {name}")
    return [Pair(name, tuple(paths), targets[name], masks.get(name)) for name, paths in versions.items()]


class Pairs(Samples[Pair]):
    """Random crops of photos and targets, for training.

    A crop spans 0.6 to 1 of the photo's height and, independently, of its width, and is resized to side×side. Half of
    the crops are flipped. The source is the photo or one of its augmentations, at random. With `windows=2` a sample has
    two windows of 3/4 of the crop's sides, for group-level consistency; their sources differ if the photo has
    augmentations.

    A sample holds input and target (K, 3, S, S) in [0, 1], for K windows, and corners (K, 2), the top and left of each
    window in the crop. With `masks` also mask (K, 1, S, S), 0 or 1; with `groups` also count (), mean (2,) and
    spread (2,), the arguments of `group_style`.

    Unreadable photos are skipped, see `Samples`. The constructor raises ValueError, in one line, for a photo without a
    mask if `masks` are wanted, for a target or mask that differs from its photo in size, and with `groups` for a group
    of one photo.

    Args:
        photos: from `find_pairs`.
        side: of the crops, in pixels.
        seed: of order and crops.
        masks: whether to read masks.
        groups: whether samples state the colours of the other targets in their group.
        windows: 1 or 2.
    """

    def __init__(
        self,
        photos: Sequence[Pair],
        side: int = 448,
        seed: int = 0,
        masks: bool = False,
        groups: bool = False,
        windows: int = 1,
    ) -> None:
        super().__init__(photos, side, seed)
        self.masks, self.windows = masks, windows
        if masks:
            for photo in self.photos:
                if photo.mask is None:
                    raise ValueError(f"{photo.name}: expected a mask of its people, got none in the masks folder")
        if groups:
            for group, count in Counter(photo.group for photo in self.photos).items():
                if count == 1:
                    raise ValueError(f"group {group!r}: expected at least two photos for a common style, got one")
        for photo in self.photos:
            self._check_sizes(photo)
        self.others = self._colours_of_others() if groups else None

    def crop(self, photo: Pair, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.choice(len(photo.sources), self.windows, replace=len(photo.sources) < self.windows)
        layers = [read_tensor(photo.sources[index]) for index in chosen] + [read_tensor(photo.target)]
        if self.masks and photo.mask:
            layers.append(read_tensor(photo.mask)[:1])
        image = torch.cat(layers)
        rows, columns = random_window(image.shape[1], image.shape[2], rng)
        crop = image[None, :, rows, columns]
        crop = F.interpolate(crop, (self.side, self.side), mode="bilinear", antialias=True)[0].clamp(0, 1)
        if rng.random() < 0.5:
            crop = crop.flip(2)

        size = self.side if self.windows == 1 else round(self.side * 0.75)
        corners = rng.integers(self.side - size + 1, size=(self.windows, 2))
        windows = [crop[:, y : y + size, x : x + size] for y, x in corners]
        channels = 3 * self.windows
        sample = {
            "input": torch.stack([window[3 * k : 3 * k + 3] for k, window in enumerate(windows)]),
            "target": torch.stack([window[channels : channels + 3] for window in windows]),
            "corners": torch.from_numpy(corners),
        }
        if self.masks:
            sample["mask"] = torch.stack([(window[channels + 3 :] > 0.5).float() for window in windows])
        if self.others is not None:
            if photo.name not in self.others:
                raise UnreadablePhoto(f"{photo.name}: expected another target of its group, got none that can be read")
            sample |= self.others[photo.name]
        return sample

    def _check_sizes(self, photo: Pair) -> None:
        try:
            height, width = read_size(photo.sources[0])
            for path in (*photo.sources[1:], photo.target, photo.mask if self.masks else None):
                if path and read_size(path) != (height, width):
                    got = "×".join(map(str, reversed(read_size(path))))
                    raise ValueError(f"{path}: expected the size of {photo.sources[0]}, {width}×{height}, got {got}")
        except UnreadablePhoto as error:
            self.skip(photo, error)

    def _colours_of_others(self) -> dict[str, dict[str, Tensor]]:
        """For each photo: count, mean and spread of the mean a*, b* of the other targets in its group."""

        def colour(photo: Pair) -> Tensor | None:
            if photo.name in self.unreadable:
                return None
            try:
                return mean_ab(read_tensor(photo.target)[None])[0]  # in bands: a full-size photo would take GBs
            except UnreadablePhoto as error:
                self.skip(photo, error)
                return None

        groups: dict[str, dict[str, Tensor]] = {}
        with ThreadPoolExecutor() as pool:
            for photo, mean in zip(self.photos, pool.map(colour, self.photos), strict=True):
                if mean is not None:
                    groups.setdefault(photo.group, {})[photo.name] = mean
        result = {}
        for means in groups.values():
            for name in means:
                others = [mean for other, mean in means.items() if other != name]
                if others:
                    values = torch.stack(others)
                    mean = values.mean(0)
                    spread = (values - mean).square().sum(0)
                    result[name] = {"count": torch.tensor(len(others)), "mean": mean, "spread": spread}
        return result


class Unpaired:
    """Random crops of photos and, independently, of photos with the wanted look: `split/{input, target}`, any names.

    Crops, order and unreadable photos are as in `Pairs`; a sample is input and target, (3, S, S) each.
    """

    def __init__(self, root: Path, split: str = "train", side: int = 448, seed: int = 0) -> None:
        def crops(kind: str, seed: int) -> Pairs:
            photos = find_photos(root / split / kind).items()
            return Pairs([Pair(name, (path,), path) for name, path in photos], side, seed)

        self.inputs, self.targets = crops("input", seed), crops("target", seed + 1)

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        inputs, targets = self.inputs.batch(positions), self.targets.batch(positions)
        return {"input": inputs["input"][:, 0], "target": targets["input"][:, 0]}
