"""What "Learning Pixel-Adaptive Weights for Portrait Photo Retouching" claims, tried on a set made by code.

    python benchmarks/claims/lam.py [--minutes M | --steps S]

Makes the set (`portraits.py`), trains the rows of the paper's Table 3 at three seeds and the settings of its Table 2 at
one, all alike and for the same number of steps, by `fastenh.train` on one thread, and measures each as `fastenh
evaluate` does. `--minutes` says how long all trainings together may take; from it follows the number of steps, unless
`--steps` says that. With `--unet` the UNet of Table 4 is trained as well, which takes over twenty times as long as LAM.

After each training benchmarks/results/claims-lam-<date>.json and .md are written anew. An interrupted run goes on from
the JSON file when it is started again, with its number of steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import portraits
import torch
from journal import Clocked, Journal, seconds_a_step, spread, told, train

from fastenh import metrics
from fastenh.data.photos import read_tensor
from fastenh.enhance import Enhancer
from fastenh.evaluate import HEADINGS, Row, find_examples, measure, summaries
from fastenh.models.lut3d import StatisticsClassifier
from fastenh.train.config import configure
from fastenh.train.lam import PRESETS, Config, Retouching

sys.path.insert(0, str(Path(__file__).parent.parent))
from tables import header, row

GROUPS = {"train": 60, "val": 12}
SEEDS = (0, 1, 2)

# Of all trainings. The paper: ResNet-18 with ImageNet weights, 448² crops, 16 a step, Adam at 1e-4, 110,000 steps.
COMMON = configure(
    Config,
    {
        "classifier": "statistics",
        "size": 17,
        "side": 48,
        "batch": 4,
        "learning_rate": 5e-3,
        "ema": 0.98,
        "workers": 1,
        "device": "cpu",
        "steps": 1,
        "log_every": 10**6,
        "picture_every": 10**6,
        "checkpoint_every": 10**6,
    },
)
EDGE, GAM = "+ LAM, edge supervision", "+ LAM, edge supervision, GAM"
ROWS: dict[str, dict[str, Any]] = {  # of Table 3; each differs from COMMON in what stands here
    "3D LUT, plain MSE": PRESETS["3dlut"],
    "baseline (Liang), human-region MSE": PRESETS["liang"],
    "+ LAM": {"supervision": "none"},
    "+ LAM, full supervision": {"supervision": "full"},
    EDGE: PRESETS["lam"],
    GAM: PRESETS["lam-gam"],
}
LUT, LIANG, LAM, FULL = list(ROWS)[:4]
UNET = {"UNet in LAM's place": {"context": "unet", "supervision": "none"}}
SWEEPS: dict[str, tuple[str, tuple[Any, ...]]] = {  # of Table 2: setting and its values, else as the row EDGE
    "λ of GAM": ("gam", (1e-2, 5e-3, 1e-3, 1e-4)),
    "k": ("kernel_size", (3, 5, 7)),
    "N": ("n_luts", (3, 5, 7)),
    "D": ("size", (17, 33, 49)),
}
MEASURES = ("psnr", "psnr_hc", "delta_e", "glc")


# ---- training


class Claim(Clocked, Retouching):
    """The project's training, from where few steps lead somewhere: the classifier knows the spread of its statistics
    and says about 1, as ResNet-18 does at its start."""

    def __init__(self, config: Config, data: Path) -> None:
        super().__init__(config, data)
        classifier = self.model.classifier
        assert isinstance(classifier, StatisticsClassifier)
        photos = torch.stack([read_tensor(photo.sources[-1]) for photo in self.samples.photos])
        classifier.calibrate(classifier.statistics(classifier.pick(photos)))
        torch.nn.init.ones_(classifier.head.bias)


def name(config: Config) -> str:
    """What sets this training apart from the others."""
    ours, common = asdict(config), asdict(COMMON)
    changes = {key: value for key, value in ours.items() if value != common[key] and key not in ("steps", "seed")}
    return ", ".join(f"{key}={value}" for key, value in [*changes.items(), ("seed", config.seed)])


def planned(unet: bool) -> dict[str, Config]:
    """All trainings by their names, in the order in which they are done: first, at all seeds, what matters most."""
    first = (LUT, EDGE, GAM)
    changes = [(seed, ROWS[title]) for seed in SEEDS for title in first]
    changes += [(seed, ROWS[title]) for seed in SEEDS for title in ROWS if title not in first]
    changes += [(0, {key: value}) for key, values in SWEEPS.values() for value in values]
    changes += [(seed, change) for seed in SEEDS for change in UNET.values() if unet]
    configs = [configure(Config, asdict(COMMON), change, {"seed": seed}) for seed, change in changes]
    return {name(config): config for config in configs}


def measured(data: Path, model: Enhancer) -> dict[str, dict[str, float]]:
    """Means over the validation photos, of the model's "output" and of the "input" as it is."""
    rows: list[Row] = []
    for example in find_examples(data, "val", "a").examples:
        rows += measure(example, model, ["full"])
    return {image: means for (_, image), means in summaries(rows).items()}


def consistency_of_targets(data: Path) -> float:
    examples = find_examples(data, "val", "a").examples
    colours = torch.cat([metrics.mean_ab(read_tensor(example.target)[None]) for example in examples])
    values = metrics.group_level_consistency(colours, [example.group for example in examples]).values()
    return mean(values)


# ---- the report


def report(journal: dict[str, Any]) -> str:
    trainings = journal["trainings"]

    def figures(changes: dict[str, Any], measure: str, seeds: Sequence[int] = SEEDS) -> dict[int, float]:
        """By seed, of those that are done."""
        names = {seed: name(configure(Config, asdict(COMMON), changes, {"seed": seed})) for seed in seeds}
        return {seed: trainings[n]["output"][measure] for seed, n in names.items() if n in trainings}

    titles = [HEADINGS[measure] for measure in MEASURES]
    table = header("", "seeds", *titles, "s a step")
    rows = {title: changes for title, changes in (ROWS | UNET).items() if figures(changes, "psnr")}
    first = next(iter(trainings.values()), None)
    if first:
        table.append(row("the photos as they are", "", *(f"{first['input'][m]:.2f}" for m in MEASURES), ""))
        table.append(row("the expert's", "", "", "", "", f"{journal['target_glc']:.2f}", ""))
    for title, changes in rows.items():
        seeds = figures(changes, "psnr")
        names = [name(configure(Config, asdict(COMMON), changes, {"seed": seed})) for seed in seeds]
        spreads = [spread(list(figures(changes, m).values())) for m in MEASURES]
        table.append(row(title, len(seeds), *spreads, f"{mean(trainings[n]['seconds_a_step'] for n in names):.2f}"))

    sweeps = []
    for label, (key, values) in SWEEPS.items():
        done = {value: [figures({key: value}, measure, [0]) for measure in MEASURES] for value in values}
        done = {value: cells for value, cells in done.items() if all(cells)}
        if len(done) > 1:
            sweeps += [row(f"{label} = {v:g}", *(f"{cell[0]:.2f}" for cell in cells)) for v, cells in done.items()]

    claims = header("claim", "the paper", "here", "in how many seeds", "")

    def claim(text: str, paper: str, one: str, other: str, measure: str, least: float, percent: bool = False) -> None:
        """`one` above `other` by `least` or, where that is negative, below it; in percent of `other` if asked for."""
        these, those = figures(ROWS[one], measure), figures(ROWS[other], measure)
        changes = [(these[s] - those[s]) * (100 / those[s] if percent else 1) for s in these if s in those]
        if changes:
            holds = [change >= least if least >= 0 else change <= least for change in changes]
            held = mean(changes) >= least if least >= 0 else mean(changes) <= least
            cells = (f"{spread(changes, '+')}{' %' if percent else ''}", f"{sum(holds)} of {len(holds)}")
            claims.append(row(text, paper, *cells, "held" if held else "**did not hold**"))

    claim("edge-supervised LAM over 3D LUT, dB (≥ 0.5)", "+0.59 to +0.99", EDGE, LUT, "psnr", 0.5)
    claim("edge-supervised LAM over the baseline, dB (> 0)", "+0.24", EDGE, LIANG, "psnr", 1e-9)
    claim("LAM alone over the baseline, dB (> 0)", "+0.14", LAM, LIANG, "psnr", 1e-9)
    claim("LAM alone raises M_GLC of the baseline", "+7 %", LAM, LIANG, "glc", 1e-9, True)
    claim("edge supervision over none, dB (> 0)", "+0.10", EDGE, LAM, "psnr", 1e-9)
    claim("edge supervision over full, dB (> 0)", "+0.10", EDGE, FULL, "psnr", 1e-9)
    claim("GAM lowers M_GLC by 20 % or more", "−40 %", GAM, EDGE, "glc", -20, True)
    claim("GAM costs PSNR, dB", "−0.57", GAM, EDGE, "psnr", -1e-9)
    for label, best in {"k": 3, "N": 5, "D": 33}.items():
        key, values = SWEEPS[label]
        reached = {v: psnr for v in values for psnr in figures({key: v}, "psnr", [0]).values()}
        if len(reached) == len(values):
            won = max(values, key=lambda v: reached[v])
            verdict = "held" if won == best else "**did not hold**"
            claims.append(
                row(f"{label} = {best} has the best PSNR", f"{label} = {best}", f"{label} = {won}", "", verdict)
            )
    key, values = SWEEPS["λ of GAM"]
    pairs = [(figures({key: v}, "psnr", [0]), figures({key: v}, "glc", [0])) for v in sorted(values)]
    if all(psnr for psnr, _ in pairs):
        ordered = [all(a[0] > b[0] for a, b in pairwise(p)) for p in zip(*pairs, strict=True)]
        falls = [title for title, falling in zip(("PSNR", "M_GLC"), ordered, strict=True) if falling]
        claims.append(row("PSNR and M_GLC both fall as λ rises", "both", " and ".join(falls) or "neither", "",
                          "held" if all(ordered) else "**did not hold**"))  # fmt: skip

    settings, steps = journal["settings"], journal["steps"]
    common = ", ".join(f"{key} {settings[key]}" for key in ("classifier", "side", "batch", "learning_rate", "ema"))
    photos = f"{settings['groups']['train']} groups of 5 photos to train with, {settings['groups']['val']} to measure"
    return "\n".join(
        [
            "# The claims of LAM and GAM, on a set made by code",
            "",
            told(journal["about"]),
            "",
            f"{photos} with, {portraits.SIDE}×{portraits.SIDE}. {steps} steps each, one thread; {common}. "
            f"Trainings done: {len(trainings)} of {journal['planned']}, "
            f"{sum(training['seconds'] for training in trainings.values()) / 60:.0f} minutes.",
            "",
            "Rows as in Table 3: mean ± standard deviation over seeds. PSNR in dB, 8-bit outputs. Of the rows, the "
            "baseline alone has the human-region MSE; those with LAM have plain MSE.",
            "",
            *table,
            "",
            f"Settings as in Table 2, else the row with edge supervision, D = {settings['size']}; one seed (0), so "
            "differences below the spread above say nothing.",
            "",
            *([*header("", *titles), *sweeps] if sweeps else ["Not done."]),
            "",
            "Claims. Differences are of trainings of one seed, then mean ± standard deviation over seeds.",
            "",
            *claims,
            "",
        ]
    )


def main(minutes: float, steps: int | None, unet: bool) -> None:
    torch.set_num_threads(1)
    trainings = planned(unet)
    settings = asdict(COMMON) | {"groups": GROUPS, "rows": ROWS, "seeds": SEEDS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "portraits"
        portraits.make(data, GROUPS)
        journal = Journal("claims-lam", settings, trainings, report)
        if "target_glc" not in journal.content:
            journal.content["target_glc"] = consistency_of_targets(data)

        left = {n: config for n, config in trainings.items() if n not in journal.trainings}
        shapes = {(c.context, c.kernel_size, c.n_luts, c.size): c for c in left.values()}
        paces = {shape: seconds_a_step(Claim(config, data), config) for shape, config in shapes.items()}
        pace = sum(paces[c.context, c.kernel_size, c.n_luts, c.size] for c in left.values())
        steps = journal.content.setdefault("steps", steps or max(10, int(minutes * 60 / pace) // 10 * 10))
        print(f"{len(left)} trainings of {steps} steps, {pace / len(left):.2f} s each: {steps * pace / 60:.0f} minutes",
              flush=True)  # fmt: skip

        for number, (title, config) in enumerate(left.items()):
            start = time.monotonic()
            out, task = Path(folder) / f"run-{number}", Claim(config, data)
            train(task, replace(config, steps=steps), out)
            result: dict[str, Any] = measured(data, Enhancer(out / "model.safetensors"))
            seconds = time.monotonic() - start
            result |= {"seconds": seconds, "seconds_a_step": (task.began[-1] - task.began[0]) / (steps - 1)}
            journal.add(title, result)
            figures = ", ".join(f"{HEADINGS[m]} {result['output'][m]:.2f}" for m in MEASURES)
            print(f"{number + 1}/{len(left)} {title}: {figures}; {seconds:.0f} s", flush=True)
    print(f"\n{report(journal.content)}\nwritten: {journal.path} and .md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=35.0, help="for all trainings together (default 35)")
    parser.add_argument("--steps", type=int, help="of each training")
    parser.add_argument("--unet", action="store_true", help="with the UNet of Table 4")
    chosen = parser.parse_args()
    main(chosen.minutes, chosen.steps, chosen.unet)
