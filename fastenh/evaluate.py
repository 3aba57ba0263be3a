"""Measure a model on photos that an expert retouched: find the photos, retouch them, compare, summarise.

`_measures` computes every measure of a photo, and `HEADINGS` has its heading; a new measure needs a line in each.
`group_level_consistency` measures a group. `Recognition` measures how well a segmentation network does on dark photos.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh import metrics
from fastenh.atomic import replacing
from fastenh.data import LabelledPhoto, apply_gamma, find_photos, group_of, read_labels
from fastenh.enhance import Enhancer
from fastenh.io import PIXEL_SUFFIXES, read_pixels
from fastenh.losses.semantic import IGNORE
from fastenh.ops.op import FULL_SCALE
from fastenh.tiles import upscale

GAMMAS = (1, 2, 6, 10)  # by which photos are darkened for a segmentation network, as in SCL-LLE's paper
SIZES = {"360p": 360, "full": None}  # pixels of the short side
SOURCES = ("source", "input")

# Headings of the table's columns, in the order of the paper; only `glc` is a measure of groups.
HEADINGS = {
    "psnr": "PSNR",
    "delta_e": "ΔE_ab",
    "psnr_hc": "PSNR^HC",
    "delta_e_hc": "ΔE^HC",
    "glc": "M_GLC",
    "ssim": "SSIM",
    "niqe": "NIQE",
}


class Example(NamedTuple):
    """A photo of a data set: its source file and, if there are any, its target and its mask of people."""

    name: str
    source: Path
    target: Path | None
    mask: Path | None

    @property
    def group(self) -> str:
        return group_of(self.name)


class Row(NamedTuple):
    """The measures of one photo."""

    size: str  # a key of SIZES
    image: str  # "input", the source, or "output", the model's result
    example: Example
    measures: dict[str, float]  # by name: those of HEADINGS, `mean_a` and `mean_b`


class DataSet(NamedTuple):
    examples: list[Example]
    title: str  # the folder and its subfolder
    notes: list[str]  # for the reader, a line each


def find_examples(folder: Path, split: str | None = None, expert: str | None = None) -> DataSet:
    """The photos of a folder with the layout of PPR10K, `val/{source,target_a,target_b,target_c,masks}`, or of pairs,
    `{input,target}`.

    These subfolders may be in the folder itself or in a subfolder for each split (default: val if it exists). Sources
    are in `source` or `input`, targets in `target` or in the folder of an expert (default: a). `masks` may be missing.
    The files of one photo have the same name, with any suffix. Photos directly in the folder, without these subfolders,
    have no target.

    Raises ValueError, in one line, if a folder or its photos are missing or a name occurs twice.
    """
    root = folder / (split or "val")
    if split is None and not root.is_dir():
        root = folder
    source = next((root / name for name in SOURCES if (root / name).is_dir()), None)
    if source is None and split is expert is None and _holds_photos(root):
        photos = find_photos(root)
        names = sorted(photos, key=_natural)
        return DataSet([Example(name, photos[name], None, None) for name in names], f"{root}, no targets", [])
    if source is None:
        got = "none in it" if root.is_dir() else "no such folder"
        raise ValueError(f"{root}: expected a folder with {' or '.join(f'{name}/' for name in SOURCES)}, got {got}")
    plain = root / "target"
    target = plain if expert is None and plain.is_dir() else root / f"target_{expert or 'a'}"
    if not target.is_dir():
        raise ValueError(f"{target}: expected a folder with the expert's photos, got no such folder")
    sources, targets = find_photos(source), find_photos(target)
    masks = find_photos(root / "masks") if any((root / "masks").glob("*")) else {}

    notes = []
    if not masks:
        notes.append(f"No masks in {root}: human-centred measures are left out")
    if unused := sorted(targets.keys() - sources.keys()):
        notes.append(f"Skipping {len(unused)} photos of {target} that have no source ({some(unused)})")
    examples = []
    for name in sorted(sources, key=_natural):
        # A missing file fails when it is read: the error names it, and other photos are measured.
        mask = masks.get(name, root / "masks" / f"{name}.png") if masks else None
        examples.append(Example(name, sources[name], targets.get(name, target / sources[name].name), mask))
    return DataSet(examples, f"{root}, {target.name}", notes)


@torch.inference_mode()
def measure(
    example: Example,
    enhancer: Enhancer,
    sizes: Sequence[str],
    pristine: metrics.Pristine | None = None,
    **conditions: Any,
) -> list[Row]:
    """Measure a photo, before and after the model, at each of the sizes.

    At 360p, source, target and mask are reduced to a short side of 360 pixels with a triangle filter as wide as the
    reduction (antialiased bilinear), and the model runs at that size; smaller photos are not changed. Sources keep
    their depth. Outputs, targets and the input are rounded to 8 bits before they are compared. A pixel shows a person
    if the mask is at least half its range there. NIQE is measured if its pristine parameters are given, everything else
    if there is a target. If the model enlarges by s, targets are s times as large as sources, and the input is enlarged
    bilinearly before it is measured. `conditions` are those of the model.

    Raises what `read_pixels` raises, and ValueError if sizes differ.
    """
    source = _tensor(example.source, enhancer.device)
    scale = enhancer.engine.scale
    target = human = None
    if example.target is not None:
        target = _tensor(example.target, enhancer.device)
        _check_size(example.target, target, source, scale)
    if example.mask is not None:
        human = _tensor(example.mask, enhancer.device)[:, :1]
        _check_size(example.mask, human, source)

    rows = []
    for size in sizes:
        height, width = _reduced_size(source, SIZES[size])
        before, full = _resized(source, height, width), (scale * height, scale * width)
        expert = None if target is None else _rounded(_resized(target, *full))
        people = None if human is None else _resized(upscale(human, scale), *full) >= 0.5
        for image, retouched in (("input", upscale(before, scale)), ("output", enhancer(before, **conditions))):
            measures = _measures(_rounded(retouched), expert, people, pristine)
            rows.append(Row(size, image, example, measures))
    return rows


def _measures(
    image: Tensor, target: Tensor | None, human: Tensor | None, pristine: metrics.Pristine | None
) -> dict[str, float]:
    measures: dict[str, Tensor] = {}
    if target is not None:
        measures |= {"psnr": metrics.psnr(image, target), "delta_e": metrics.delta_e(image, target)}
        if human is not None:
            measures["psnr_hc"] = metrics.psnr(image, target, human)
            measures["delta_e_hc"] = metrics.delta_e(image, target, human)
        measures["ssim"] = metrics.ssim(image, target)
        measures["mean_a"], measures["mean_b"] = metrics.mean_ab(image)[0, :, None]
    if pristine is not None:
        measures["niqe"] = metrics.niqe(image, pristine)
    return {name: value.item() for name, value in measures.items()}


def by_group(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """By group: its count of photos, the means over them, and `glc` if there are at least two. For rows of one size and
    image."""
    rows = list(rows)
    consistency = {}
    if all("mean_a" in row.measures for row in rows):
        colours = torch.tensor([[row.measures["mean_a"], row.measures["mean_b"]] for row in rows])
        consistency = metrics.group_level_consistency(colours, [row.example.group for row in rows])
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.example.group, []).append(row)
    return {
        group: {"photos": len(photos), **_means(photos)} | ({"glc": consistency[group]} if group in consistency else {})
        for group, photos in members.items()
    }


def summaries(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """The table: for each size and image the means over photos, and `glc`, the mean over groups, if any has one."""
    table = {}
    for key, chosen in _by_size_and_image(rows).items():
        consistencies = [means["glc"] for means in by_group(chosen).values() if "glc" in means]
        table[key] = _means(chosen) | ({"glc": float(np.mean(consistencies))} if consistencies else {})
    return table


def groups_of_one(rows: Iterable[Row]) -> list[str]:
    """The groups of one photo, which M_GLC omits."""
    photos: dict[str, set[str]] = {}
    for row in rows:
        if "mean_a" in row.measures:
            photos.setdefault(row.example.group, set()).add(row.example.name)
    return [group for group, names in photos.items() if len(names) == 1]


class Recognition:
    """How well a segmentation network recognises darkened photos, before and after they are enhanced: mean IoU.

    The network gets photo^γ for each γ of GAMMAS, rounded to 8 bits, and then the model's output for it, also rounded.
    IoU = true positives / (true + false positives + false negatives) of a class, over the pixels of all photos except
    those without a class. The mean is over the classes that occur in labels or predictions.

    Args:
        network: (B, 3, H, W) in [0, 1] → scores (B, S, H, W), on the enhancer's device.
    """

    def __init__(self, enhancer: Enhancer, network: nn.Module, **conditions: Any) -> None:
        if enhancer.engine.scale != 1:
            raise ValueError(f"expected a model that keeps the photo's size, got one of scale {enhancer.engine.scale}")
        self.enhancer, self.network, self.conditions = enhancer, network, conditions
        self.counts: dict[tuple[int, str], Tensor] = {}

    @torch.inference_mode()
    def add(self, scene: LabelledPhoto) -> None:
        """Counts the pixels of one photo. Raises what `read_pixels` raises, and ValueError for labels of another size
        or of a class beyond S."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        if scene.labels is None:
            raise ValueError(f"{scene.image}: expected a map of its labels, as Cityscapes' gtFine, got none")
        source = _tensor(scene.image, self.enhancer.device)
        labels = read_labels(scene.labels).to(source.device).long()[None]
        _check_size(scene.labels, labels, source)
        counts = {}
        for gamma in GAMMAS:
            before = apply_gamma(source, gamma)
            for image, seen in (("input", before), ("output", self.enhancer(before, **self.conditions))):
                scores = self.network(_rounded(seen))
                classes = scores.shape[1]
                if unknown := labels[(labels != IGNORE) & (labels >= classes)].unique().tolist():
                    raise ValueError(f"{scene.labels}: expected labels below {classes} or {IGNORE}, got {unknown[:4]}")
                chosen = scores.argmax(1)
                counts[gamma, image] = multiclass_confusion_matrix(chosen, labels, classes, ignore_index=IGNORE)
        self.counts = {key: count + self.counts.get(key, 0) for key, count in counts.items()}  # once all succeeded

    def ious(self) -> dict[tuple[int, str], Tensor]:
        """(S,) for each γ and image; NaN for classes that occur neither in labels nor in predictions."""
        result = {}
        for key, count in self.counts.items():
            right = count.diagonal().double()
            result[key] = right / (count.sum(0) + count.sum(1) - right)
        return result


def write_ious(ious: dict[tuple[int, str], Tensor], path: Path, overwrite: bool = False) -> None:
    """Write `path`, a line for each γ and image: the mean IoU, and the IoU of each class."""
    with replacing(path, overwrite) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for n, ((gamma, image), values) in enumerate(ious.items()):
            if not n:
                writer.writerow(["gamma", "image", "miou", *(f"class_{s}" for s in range(len(values)))])
            writer.writerow([gamma, image, *(f"{v:.6g}" for v in (values.nanmean().item(), *values.tolist()))])


def write_csv(rows: Sequence[Row], path: Path, overwrite: bool = False) -> None:
    """Write `path`, a line per photo, and beside it `groups_csv(path)`, a line per group; each atomically."""
    photos = [
        {"size": row.size, "image": row.image, "photo": row.example.name, "group": row.example.group}
        | _figures(row.measures)
        for row in rows
    ]
    groups = [
        {"size": size, "image": image, "group": group} | _figures(means)
        for (size, image), chosen in _by_size_and_image(rows).items()
        for group, means in by_group(chosen).items()
    ]
    for target, lines in ((path, photos), (groups_csv(path), groups)):
        columns = dict.fromkeys(column for line in lines for column in line)
        with replacing(target, overwrite) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(lines)


def groups_csv(path: Path) -> Path:
    return path.with_stem(f"{path.stem}_groups")


def _figures(measures: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.6g}" for name, value in measures.items()}


def _by_size_and_image(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    chosen: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        chosen.setdefault((row.size, row.image), []).append(row)
    return chosen


def _means(rows: Sequence[Row]) -> dict[str, float]:
    return {name: float(np.mean([row.measures[name] for row in rows])) for name in rows[0].measures}


def _holds_photos(folder: Path) -> bool:
    return folder.is_dir() and any(file.suffix.lower() in PIXEL_SUFFIXES for file in folder.iterdir())


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts 9_1 before 10_0."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split("_"))


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _tensor(path: Path, device: torch.device) -> Tensor:
    """(1, 3, H, W), float32 in [0, 1]."""
    pixels = torch.from_numpy(read_pixels(path)).to(device)
    return pixels.permute(2, 0, 1)[None].float() / FULL_SCALE[pixels.dtype]


def _check_size(path: Path, image: Tensor, source: Tensor, scale: int = 1) -> None:
    height, width = (scale * length for length in source.shape[-2:])
    if image.shape[-2:] != (height, width):
        got_height, got_width = image.shape[-2:]
        times = f"{scale} times " if scale > 1 else ""
        raise ValueError(f"{path}: expected {times}the source's size, {width}×{height}, got {got_width}×{got_height}")


def _reduced_size(image: Tensor, short_side: int | None) -> tuple[int, int]:
    height, width = image.shape[-2:]
    factor = 1 if short_side is None else min(1, short_side / min(height, width))
    return round(height * factor), round(width * factor)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True, align_corners=False)


def _rounded(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round() / 255
