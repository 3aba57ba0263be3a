"""Measures an embedded model and writes its model card: what the scripts that train such models share.

`python -m fastenh.train.NAME` trains the model NAME; its card is `fastenh/weights/NAME.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastenh.atomic import replacing
from fastenh.data.degrade import quantise
from fastenh.metrics import delta_e
from fastenh.models import System, load, save
from fastenh.models.checkpoint import WEIGHTS
from fastenh.train.config import Settings, configure, parse_assignments
from fastenh.train.loop import Task, run

S = TypeVar("S", bound=Settings)
Measures = dict[str, tuple[float, float]]  # by name: a figure before and after the model


# ---- measuring


@torch.no_grad()
def measure(
    model: nn.Module, photo: Tensor, damage: Callable[..., Tensor], changes: Mapping[str, Mapping[str, Any]]
) -> Measures:
    """What a model does to a (1, 3, H, W) photo as it is, and after each of `changes`. Outputs are rounded to 8 bits.

    "untouched": 0 and the mean ΔE*ab between the photo and the model's output for it. For each change: the PSNR in dB,
    against the photo, of damage(photo, **change) and of the model's output for that.
    """
    result = {"untouched": (0.0, delta_e(quantise(model(photo)), photo).item())}
    for name, change in changes.items():
        image = damage(photo, **change)
        result[name] = psnr(image, photo), psnr(quantise(model(image)), photo)
    return result


def psnr(image: Tensor, target: Tensor) -> float:
    """In dB, peak 1, over all pixels and channels. (`fastenh.metrics.psnr` needs the extra `evaluate`.)"""
    return -10 * (image - target).square().mean().log10().item()


def mean(results: Iterable[Measures]) -> Measures:
    """Means over results of the same names."""
    results = list(results)
    return {name: tuple(np.mean([result[name] for result in results], 0)) for name in results[0]}


def gain(results: Iterable[Measures], names: Iterable[str]) -> float:
    """Mean of after − before, over results and names."""
    return float(np.mean([result[name][1] - result[name][0] for result in results for name in names]))


# ---- the card


def page(
    name: str, about: str, measured: str, photographs: str, training: str, limits: str, arguments: str = ""
) -> str:
    """A model card in Markdown. `about` to `limits` are the texts of its sections; `arguments` are the command-line
    arguments of training besides --out."""
    return f"""# {name}

<!-- Written by `python -m fastenh.train.{name} --evaluate`; do not edit. -->

{about}

## Measured on photographs that training did not see

{measured}

## Photographs

{photographs}

## Training it again

    pip install fastenh[train]
    python -m fastenh.train.{name} --out RUN{arguments}

The shipped file: {training}.

## Limits

{limits}
- The held-out photographs were looked at many times while the model was designed, so they flatter it a little.
"""


def degradations_in_words(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """The arguments of `degrade` for each degradation, after its name."""
    return "; ".join(f"{name}: {' '.join(map(str, *change.items()))}" for name, change in changes.items())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def arrow(before: float, after: float) -> str:
    return f"{before:.1f} → {after:.1f}"


# ---- the script


def save_trained(model: System, note: str, config: Settings, targets: int, folder: Path) -> None:
    """Writes `folder/model.safetensors`, which states its licence, a note and how it was trained."""
    budget = f"seed {config.seed}, {targets} targets, {config.steps} steps of {config.batch}"
    training = f"{budget}, threads: {torch.get_num_threads()}"
    model.about |= {"licence": "Apache-2.0", "note": note, "training": training}
    save(model, folder / "model.safetensors")


def command(
    name: str, about: str, config: type[S], task: Callable[[S, Path], Task], card: Callable[[Any, int, S], str]
) -> None:
    """What `python -m fastenh.train.NAME` does: train, or measure the shipped model and write its card, or both.

    `config` is the class of settings, `task` makes a task from them and the run's folder, and `card` the card's text
    from the model, the size of its file in bytes and the settings.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="train, and write model.safetensors and more to this folder")
    parser.add_argument("--resume", action="store_true", help="resume the run in --out")
    parser.add_argument("--evaluate", action="store_true", help="measure the shipped model and write its card")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, such as steps=100")
    options = parser.parse_args()
    if options.out is None and not options.evaluate:
        parser.error("nothing to do: expected --out FOLDER, --evaluate, or both")

    try:
        settings = configure(config, parse_assignments(options.set))
        if options.out:
            run(task(settings, options.out), settings, options.out, options.resume)
        if options.evaluate:
            path = WEIGHTS / f"{name}.md"
            text = card(load(name), path.with_suffix(".safetensors").stat().st_size, settings)
            with replacing(path, overwrite=True) as part:
                part.write_text(text)
            print(f"wrote {path}")
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
