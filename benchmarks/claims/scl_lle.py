"""What "Semantically Contrastive Learning for Low-light Image Enhancement" claims, tried on scenes drawn by code.

    python benchmarks/claims/scl_lle.py [--minutes M | --steps S] [--vgg FILE] [--niqe PARAMS.npz]

Draws street scenes with the class of each pixel (`streets.py`), and trains a small segmentation network on them as
they are. Then it trains the rows of the paper's Table 3 at three seeds, all alike and for the same number of steps, by
`fastenh.train` on one thread: the scenes darkened; for positives photographs that come inside packages, as they are;
for negatives the same under- and overexposed. Each is measured on scenes it has not seen. `--minutes` says how long all
trainings together may take; from it follows the number of steps, unless `--steps` says that.

VGG-16 has random weights, unless `--vgg` names a file of torchvision's; the features of random weights tell textures
and brightness apart, not things. NIQE is measured on photographs, not on drawn scenes, where `--niqe` names its
pristine parameters.

After each training benchmarks/results/claims-scl-lle-<date>.json and .md are written anew, after the first a picture
beside them. An interrupted run goes on
from the JSON file when it is started again, with its number of steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import streets
import torch
import torch.nn.functional as F
from journal import Clocked, Journal, seconds_a_step, spread, told, train
from PIL import Image
from torch import Tensor, nn

from fastenh import losses, metrics
from fastenh.data import Contrasts, Crops, apply_gamma, cityscapes, find_references, read_labels, read_tensor
from fastenh.enhance import Enhancer
from fastenh.evaluate import GAMMAS, Recognition
from fastenh.losses.semantic import IGNORE
from fastenh.train.config import configure
from fastenh.train.zero_dce import SEMANTIC_PRESETS, SemanticConfig, SemanticContrast

sys.path.insert(0, str(Path(__file__).parent.parent))
from tables import header, row

SCENES = {"train": 200, "val": 24}
SEEDS = (0, 1, 2)
SEGMENTATION = {"steps": 400, "batch": 8, "rate": 3e-3, "lightness": 1.3}  # how its network is trained
DARK = 3  # the γ at which brightness is compared with that in normal light

# Of all trainings. The paper: VGG-16 with ImageNet weights, 384², 2 a step, Adam at 1e-4, 50 epochs of 2975 scenes.
COMMON = configure(
    SemanticConfig,
    {
        "vgg": "random",
        "segmentation": "the small network of this trial",
        "side": 48,
        "batch": 2,
        "learning_rate": 3e-3,
        "workers": 1,
        "device": "cpu",
        "steps": 1,
        "log_every": 10**6,
        "picture_every": 10**6,
        "checkpoint_every": 10**6,
    },
)
ROWS = {  # of Table 3: titles, and presets of `fastenh train scl-lle`
    "all": "scl-lle",
    "without L_c": "no-contrast",
    "without L_sc": "no-semantic",
    "without L_fr": "no-retention",
    "without negatives": "no-negatives",
    "without overexposed": "no-overexposed",
    "without underexposed": "no-underexposed",
}
COLOURS = torch.tensor(  # of the classes, in pictures
    [[90, 90, 110], [190, 170, 150], [140, 70, 60], [60, 140, 60], [140, 190, 230], [220, 60, 120], [240, 190, 40]],
    dtype=torch.uint8,
)
MEASURES = {
    "error": f"brightness error, γ = {DARK}",
    "brightness": f"brightness, γ = {DARK}",
    "psnr": f"PSNR, γ = {DARK}",
    "niqe": f"NIQE of photographs, γ = {DARK}",
    **{f"miou_{gamma}": f"mIoU, γ = {gamma}" for gamma in GAMMAS},
}


# ---- the segmentation network


class SmallSegmentation(nn.Module):
    """(B, 3, H, W) → scores (B, 7, H, W): three scales, the coarser ones added to the finer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)

        def block(channels_in: int, channels: int) -> nn.Sequential:
            convolutions = (nn.Conv2d(n, channels, 3, padding=1, bias=False) for n in (channels_in, channels))
            return nn.Sequential(*(m for c in convolutions for m in (c, nn.BatchNorm2d(channels), nn.ReLU())))

        self.down = nn.ModuleList(block(a, b) for a, b in zip((5, *widths), widths, strict=False))
        self.heads = nn.ModuleList(nn.Conv2d(width, len(streets.CLASSES), 1) for width in widths)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        y, x = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        place = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(image), -1, -1, -1)
        features, scores = torch.cat([image - 0.5, place], 1), image.new_zeros(())
        for depth, (block, head) in enumerate(zip(self.down, self.heads, strict=True)):
            features = block(F.max_pool2d(features, 2) if depth else features)
            scores = scores + F.interpolate(head(features), (height, width), mode="bilinear")
        return scores


def trained_segmentation(data: Path) -> SmallSegmentation:
    """On the scenes in normal light, a little lighter and darker: photo^γ, |log γ| ≤ log `lightness`."""
    torch.manual_seed(0)
    network = SmallSegmentation()
    scenes = cityscapes(data, "train")
    images = torch.stack([read_tensor(scene.image) for scene in scenes])
    labels = torch.stack([read_labels(scene.labels) for scene in scenes if scene.labels]).long()
    steps, rate = int(SEGMENTATION["steps"]), SEGMENTATION["rate"]
    optimiser = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (int(SEGMENTATION["batch"]),))
        gammas = SEGMENTATION["lightness"] ** (2 * torch.rand(len(chosen), 1, 1, 1) - 1)
        loss = F.cross_entropy(network(images[chosen] ** gammas), labels[chosen], ignore_index=IGNORE)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return losses.frozen(network)


# ---- training


class Claim(Clocked, SemanticContrast):
    """The project's training, clocked."""


def task_of(config: SemanticConfig, data: Path, segmentation: nn.Module) -> Claim:
    """Weights of VGG-16 are random in the same way for all trainings: seeds change the curve network and the data."""
    torch.manual_seed(0)
    vgg = losses.VGGFeatures(config.vgg)
    scenes = Crops(cityscapes(data, "train"), config.side, config.seed, config.darken, labels=True)
    return Claim(config, Contrasts(scenes, find_references(data), config.negatives), vgg, segmentation)


def planned(vgg: str) -> dict[str, SemanticConfig]:
    """All trainings by their names, in the order in which they are done: first, at all seeds, what matters most."""
    first = ("all", "without underexposed", "without L_c")
    order = [(seed, title) for seed in SEEDS for title in first]
    order += [(seed, title) for seed in SEEDS for title in ROWS if title not in first]
    return {
        name(title, seed): configure(
            SemanticConfig, asdict(COMMON), SEMANTIC_PRESETS[ROWS[title]], {"seed": seed, "vgg": vgg}
        )
        for seed, title in order
    }


def name(title: str, seed: int) -> str:
    return f"{title}, seed {seed}"


# ---- measuring


def measured(data: Path, model: Enhancer, segmentation: nn.Module, pristine: metrics.Pristine | None) -> dict[str, Any]:
    """Means over the scenes of validation of the model's "output" and of the "input" as it is."""
    recognition = Recognition(model, segmentation)
    result: dict[str, dict[str, list[float]]] = {"input": {}, "output": {}}

    def note(image: str, measure: str, value: float) -> None:
        result[image].setdefault(measure, []).append(value)

    for scene in cityscapes(data, "val"):
        recognition.add(scene)
        normal = read_tensor(scene.image)[None]
        before = apply_gamma(normal, DARK)
        for image, seen in (("input", before), ("output", model(before))):
            seen = (seen * 255).round() / 255
            note(image, "error", abs(seen.mean().item() - normal.mean().item()))
            note(image, "brightness", seen.mean().item())
            note(image, "psnr", metrics.psnr(seen, normal).item())
    photographs = list(streets.photographs(640).values())[:4] if pristine else []
    for photograph in photographs:
        before = apply_gamma(torch.from_numpy(photograph).permute(2, 0, 1)[None].float(), DARK)
        for image, seen in (("input", before), ("output", model(before))):
            assert pristine
            note(image, "niqe", metrics.niqe((seen * 255).round() / 255, pristine).item())
    for (gamma, image), ious in recognition.ious().items():
        note(image, f"miou_{gamma}", 100 * ious.nanmean().item())
    return {image: {measure: mean(values) for measure, values in found.items()} for image, found in result.items()}


@torch.inference_mode()
def picture(data: Path, model: Enhancer, segmentation: nn.Module) -> Image.Image:
    """A scene at each γ, side by side: as it is, what is recognised in it, the model's output, and what in that."""
    normal = read_tensor(cityscapes(data, "val")[0].image)[None]
    rows: list[list[Tensor]] = [[], [], [], []]
    for gamma in GAMMAS:
        before = apply_gamma(normal, gamma)
        for n, seen in enumerate((before, model(before))):
            rows[2 * n].append((seen[0] * 255).round().byte().permute(1, 2, 0))
            rows[2 * n + 1].append(COLOURS[segmentation(seen).argmax(1)[0]])
    canvas = Image.fromarray(torch.cat([torch.cat(row, 1) for row in rows]).numpy())
    return canvas.resize((2 * canvas.width, 2 * canvas.height), Image.Resampling.NEAREST)


# ---- the report


def report(journal: dict[str, Any]) -> str:
    trainings, settings = journal["trainings"], journal["settings"]

    def figures(title: str, measure: str, seeds: Sequence[int] = SEEDS) -> dict[int, float]:
        """By seed, of those that are done."""
        found = {seed: trainings.get(name(title, seed)) for seed in seeds}
        return {seed: training["output"][measure] for seed, training in found.items() if training}

    first = next(iter(trainings.values()))
    shown = {measure: heading for measure, heading in MEASURES.items() if measure in first["input"]}

    def cell(values: Sequence[float], measure: str) -> str:
        digits = 3 if measure in ("error", "brightness") else 2
        return spread(values, digits=digits)

    table = header("", "seeds", *shown.values(), "s a step")
    table.append(row("as they are", "", *(cell([first["input"][m]], m) for m in shown), ""))
    table.append(row("in normal light", "", "0", f"{journal['brightness']:.3f}", *[""] * (len(shown) - 2), ""))
    for title in ROWS:
        if seeds := figures(title, "error"):
            pace = mean(trainings[name(title, seed)]["seconds_a_step"] for seed in seeds)
            spreads = (cell(list(figures(title, m).values()), m) for m in shown)
            table.append(row(title, len(seeds), *spreads, f"{pace:.2f}"))

    claims = header("claim", "the paper", "here", "in how many seeds", "")

    def verdict(text: str, paper: str, changes: Sequence[float], digits: int) -> None:
        """Held where `changes`, one for each seed, are above 0 by more than their standard deviation."""
        if changes:
            clear = len(changes) > 1 and abs(mean(changes)) > stdev(changes)
            held = ("held" if mean(changes) > 0 else "**did not hold**") if clear else "not clear"
            count = f"{sum(change > 0 for change in changes)} of {len(changes)}"
            claims.append(row(text, paper, spread(changes, "+", digits), count, held))

    paper = {"without L_c": 4.27, "without L_sc": 3.49, "without L_fr": 3.50, "without negatives": 3.49,
             "without overexposed": 3.54, "without underexposed": 4.38}  # fmt: skip
    worst = "without underexposed"
    for measure, label, digits in (("error", "the brightness error", 3), ("niqe", "NIQE of photographs", 2)):
        if measure not in shown:
            continue
        whole = figures("all", measure)
        added = {
            title: {s: value - whole[s] for s, value in figures(title, measure).items() if s in whole}
            for title in paper
        }
        for title, changes in added.items():
            verdict(f"{title}, {label} is greater", f"NIQE 3.46 → {paper[title]:.2f}", list(changes.values()), digits)
        others = [title for title in added if title != worst]
        leads = [
            change - max(added[title][s] for title in others)
            for s, change in added[worst].items()
            if all(s in added[title] for title in others)
        ]
        verdict(f"{worst}, {label} is the greatest of all", "4.38 against at most 4.27", leads, digits)
    frankfurt = {1: (73.8, 67.4), 2: (72.5, 70.1), 6: (49.9, 58.5), 10: (33.6, 42.0)}
    for gamma in GAMMAS:
        sign = 1 if gamma > 2 else -1
        gains = [sign * (value - first["input"][f"miou_{gamma}"]) for value in figures("all", f"miou_{gamma}").values()]
        text = f"enhancement {'raises' if sign > 0 else 'lowers'} mIoU at γ = {gamma}"
        verdict(text, "{} → {} (Frankfurt)".format(*frankfurt[gamma]), gains, 2)

    common_text = ", ".join(f"{key} {settings[key]}" for key in ("side", "batch", "learning_rate", "darken", "vgg"))
    return "\n".join(
        [
            "# The claims of SCL-LLE, on street scenes drawn by code",
            "",
            told(journal["about"]),
            "",
            f"{settings['scenes']['train']} scenes to train with, {settings['scenes']['val']} to measure with, "
            f"{streets.WIDTH}×{streets.HEIGHT}, {len(streets.CLASSES)} classes; {len(streets.photographs())} "
            f"photographs as positives, {streets.STOPS['under']:+g} and {streets.STOPS['over']:+g} stops as negatives. "
            f"{journal['steps']} steps each, one thread; {common_text}. Trainings done: {len(trainings)} of "
            f"{journal['planned']}, {sum(training['seconds'] for training in trainings.values()) / 60:.0f} minutes.",
            "",
            "Rows as in Table 3: mean ± standard deviation over seeds. Brightness is the mean of R, G and B over a "
            "scene, its error the distance to that in normal light; PSNR, in dB, is to normal light too. mIoU in %, of "
            "one segmentation network that was trained in normal light. Scenes are darkened by photo^γ, 8 bits.",
            "",
            *table,
            "",
            "Claims, each as a difference that is above 0 where it holds: of trainings of one seed, then mean ± "
            "standard deviation over seeds; not clear where that is the larger. NIQE means nothing for drawn scenes: "
            "brightness error stands beside it.",
            "",
            *claims,
            "",
        ]
    )


def main(minutes: float, steps: int | None, vgg: str, niqe: Path | None) -> None:
    torch.set_num_threads(1)
    pristine = metrics.load_pristine(niqe) if niqe else None
    trainings = planned(vgg)
    settings = asdict(COMMON) | {"vgg": "random" if vgg == "random" else Path(vgg).name, "scenes": SCENES, "rows": ROWS}
    settings |= {"seeds": SEEDS, "segmentation": SEGMENTATION, "stops": streets.STOPS, "niqe": niqe is not None}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "streets"
        streets.make_streets(data, SCENES)
        streets.make_exposures(data)
        journal = Journal("claims-scl-lle", settings, trainings, report)
        segmentation = trained_segmentation(data)
        normal = [read_tensor(scene.image).mean().item() for scene in cityscapes(data, "val")]
        journal.content["brightness"] = mean(normal)

        left = {n: config for n, config in trainings.items() if n not in journal.trainings}
        pace = seconds_a_step(task_of(replace(COMMON, vgg=vgg), data, segmentation), COMMON)
        steps = journal.content.setdefault("steps", steps or max(10, int(minutes * 60 / pace / len(left)) // 10 * 10))
        print(f"{len(left)} trainings of {steps} steps, {pace:.2f} s each: {len(left) * steps * pace / 60:.0f} minutes",
              flush=True)  # fmt: skip

        for number, (title, config) in enumerate(left.items()):
            start = time.monotonic()
            out, task = Path(folder) / f"run-{number}", task_of(config, data, segmentation)
            train(task, replace(config, steps=steps), out)
            model = Enhancer(out / "model.safetensors", "cpu")
            result = measured(data, model, segmentation, pristine)
            seconds = time.monotonic() - start
            result |= {"seconds": seconds, "seconds_a_step": (task.began[-1] - task.began[0]) / (steps - 1)}
            journal.add(title, result)
            if title == name("all", SEEDS[0]):
                picture(data, model, segmentation).save(journal.path.with_suffix(".png"))
            figures = ", ".join(f"{m} {value:.3f}" for m, value in result["output"].items())
            print(f"{number + 1}/{len(left)} {title}: {figures}; {seconds:.0f} s", flush=True)
    print(f"\n{report(journal.content)}\nwritten: {journal.path} and .md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=35.0, help="for all trainings together (default 35)")
    parser.add_argument("--steps", type=int, help="of each training")
    parser.add_argument("--vgg", default="random", help="a file of VGG-16's weights, as torchvision names them")
    parser.add_argument("--niqe", type=Path, metavar="PARAMS.npz", help="NIQE's pristine parameters")
    chosen = parser.parse_args()
    main(chosen.minutes, chosen.steps, chosen.vgg, chosen.niqe)
