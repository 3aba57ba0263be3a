"""`fastenh train`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fastenh.cli.options import Debug, expand_options, needing_extra, one_line, say

app = typer.Typer(help="Train models.", no_args_is_help=True)

Data = Annotated[Path, typer.Option(metavar="DATA", help="Folder of the data set.")]


@dataclass
class TrainOptions:
    """Where a training run is kept, and with which settings it starts or resumes."""

    out: Annotated[
        Path, typer.Option(help="Folder of the run, with its checkpoint, model.safetensors and TensorBoard events.")
    ]
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file with settings.")] = None
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as steps=2000; may be repeated."),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out, with its settings.")] = False
    debug: Debug = False

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Errors are one line; at the end a line names the model."""
        with one_line(self.debug), needing_extra("train"):
            yield
        if os.environ.get("RANK", "0") == "0":  # torchrun numbers its processes; the first one writes
            say(f"Wrote {self.out / 'model.safetensors'}")

    def settings(self, kind: Any, preset: dict[str, Any]) -> Any:
        """The preset, or the settings of the run to resume, overridden by the file and then by single settings."""
        from fastenh.train.config import CONFIG, configure, parse_assignments, read_config

        if self.resume and not (self.out / CONFIG).is_file():
            raise ValueError(f"--resume: expected a run in {self.out}, got none there")
        first = read_config(self.out / CONFIG) if self.resume else preset
        file = read_config(self.config) if self.config else {}
        return configure(kind, first, file, parse_assignments(self.assignments or []))


@app.command("lam")
@expand_options
def train_lam(
    data: Data,
    run: TrainOptions,
    preset: Annotated[
        str | None, typer.Option(help="3dlut, liang, liang-glc, lam or lam-gam.", show_default="lam")
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="The expert whose targets to use: a, b or c.", show_default="a")
    ] = None,
) -> None:
    """Portrait retouching with local context (LAM, GAM), and its baselines.

    DATA has the layout of PPR10K, or train/input and train/target. On two GPUs:
    torchrun --nproc-per-node 2 --no-python fastenh train lam ...
    """
    with run.reporting():
        from fastenh.train import lam

        chosen = _preset(lam.PRESETS, preset or "lam") | ({"expert": expert} if expert else {})
        if run.resume and (preset or expert):
            raise ValueError("expected --resume, or --preset and --expert for a new run, got both")
        settings = run.settings(lam.Config, chosen)
        lam.train(settings, data, run.out, run.resume)


@app.command("unpaired")
@expand_options
def train_unpaired(
    data: Data,
    run: TrainOptions,
) -> None:
    """Image-adaptive 3D LUTs from unpaired photos (Zeng et al., WGAN-GP).

    DATA has train/input with photos to improve and train/target with photos that look as desired.
    """
    with run.reporting():
        from fastenh.train import lut3d

        settings = run.settings(lut3d.Config, {})
        lut3d.train(settings, data, run.out, run.resume)


@app.command("zero-dce")
@expand_options
def train_zero_dce(
    data: Annotated[Path, typer.Option(metavar="DATA", help="Folder of photos, or Cityscapes.")],
    run: TrainOptions,
    preset: Annotated[str | None, typer.Option(help="zero-dce, zero-dce++ or fit.", show_default="zero-dce")] = None,
) -> None:
    """Low-light enhancement by curves, trained without targets (Zero-DCE, Zero-DCE++).

    Fine-tune on your own photos: fastenh train zero-dce --data FOLDER --out RUN --preset fit --set weights=MODEL
    """
    with run.reporting():
        from fastenh.train import zero_dce

        chosen = _preset(zero_dce.PRESETS, preset or "zero-dce", again=bool(run.resume and preset))
        settings = run.settings(zero_dce.Config, chosen)
        _check_fit(preset, settings.weights)
        zero_dce.train(settings, data, run.out, run.resume)


@app.command("scl-lle")
@expand_options
def train_scl_lle(
    data: Annotated[
        Path, typer.Option(metavar="DATA", help="Cityscapes, or a folder of photos if no loss needs labels.")
    ],
    run: TrainOptions,
    references: Annotated[
        Path | None, typer.Option(help="Well and badly exposed photos: SICE Part 1, or well/, under/ and over/.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="scl-lle, fit, no-contrast, no-semantic, no-retention, no-negatives, no-overexposed, no-underexposed.",
            show_default="scl-lle",
        ),
    ] = None,
) -> None:
    """Low-light enhancement by curves, trained with contrastive and semantic losses (SCL-LLE).

    --set segmentation=FILE names the weights of a DeepLabv3+ of segmentation-models-pytorch for the classes of DATA.
    """
    with run.reporting():
        from fastenh.train import zero_dce

        chosen = _preset(zero_dce.SEMANTIC_PRESETS, preset or "scl-lle", again=bool(run.resume and preset))
        settings = run.settings(zero_dce.SemanticConfig, chosen)
        _check_fit(preset, settings.weights)
        zero_dce.train_semantic(settings, data, references, run.out, run.resume)


def _preset(presets: dict[str, dict[str, Any]], name: str, again: bool = False) -> dict[str, Any]:
    """`again`: the preset was given with --resume, for a run that already has its settings."""
    if name not in presets:
        raise ValueError(f"--preset: expected one of {', '.join(presets)}, got {name!r}")
    if again:
        raise ValueError("expected --resume, or --preset for a new run, got both")
    return presets[name]


def _check_fit(preset: str | None, weights: str) -> None:
    if preset == "fit" and not weights:
        raise ValueError("--preset fit: expected a model to start from, --set weights=MODEL, got none")
