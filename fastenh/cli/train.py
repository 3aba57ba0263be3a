"""`fastenh train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fastenh.cli.options import Debug, needing_extra, one_line, say

app = typer.Typer(help="Train models.", no_args_is_help=True)

Data = Annotated[Path, typer.Option(help="Folder of the data set.")]
Out = Annotated[Path, typer.Option(help="Folder of the run: checkpoint, model.safetensors, TensorBoard's events.")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML or JSON file of settings.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be given again.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.")]


@app.command("lam")
def train_lam(
    data: Data,
    out: Out,
    preset: Annotated[
        str | None, typer.Option(help="3dlut, liang, liang-glc, lam or lam-gam.", show_default="lam")
    ] = None,
    expert: Annotated[str | None, typer.Option(help="Whose targets: a, b or c.", show_default="a")] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Portrait retouching with local context (LAM, GAM), and what it is compared with.

    DATA is in PPR10K's layout, or holds train/input and train/target. On two GPUs:
    torchrun --nproc-per-node 2 --no-python fastenh train lam ...
    """
    with one_line(debug), needing_extra("train"):
        from fastenh.train import lam

        chosen = _preset(lam.PRESETS, preset or "lam") | ({"expert": expert} if expert else {})
        if resume and (preset or expert):
            raise ValueError("expected --resume, or --preset and --expert for a new run, got both")
        settings = _configure(lam.Config, chosen, config, assignments, out if resume else None)
        lam.train(settings, data, out, resume)
    _say_trained(out)


@app.command("unpaired")
def train_unpaired(
    data: Data,
    out: Out,
    config: ConfigFile = None,
    assignments: Assignments = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Image-adaptive 3D LUTs from photos without targets (Zeng et al., WGAN-GP).

    DATA holds train/input, photos as they are, and train/target, photos as they should look.
    """
    with one_line(debug), needing_extra("train"):
        from fastenh.train import lut3d

        settings = _configure(lut3d.Config, {}, config, assignments, out if resume else None)
        lut3d.train(settings, data, out, resume)
    _say_trained(out)


@app.command("zero-dce")
def train_zero_dce(
    data: Annotated[Path, typer.Option(help="Folder of photos, or Cityscapes.")],
    out: Out,
    preset: Annotated[str | None, typer.Option(help="zero-dce, zero-dce++ or fit.", show_default="zero-dce")] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Curves for photos taken in low light, learnt without targets (Zero-DCE, Zero-DCE++).

    Fit a model to photos of your own: fastenh train zero-dce --data FOLDER --out RUN --preset fit --set weights=MODEL
    """
    with one_line(debug), needing_extra("train"):
        from fastenh.train import zero_dce

        chosen = _preset(zero_dce.PRESETS, preset or "zero-dce", again=bool(resume and preset))
        settings = _configure(zero_dce.Config, chosen, config, assignments, out if resume else None)
        _check_fit(preset, settings.weights)
        zero_dce.train(settings, data, out, resume)
    _say_trained(out)


@app.command("scl-lle")
def train_scl_lle(
    data: Annotated[Path, typer.Option(help="Cityscapes, or a folder of photos where no loss needs labels.")],
    out: Out,
    references: Annotated[
        Path | None, typer.Option(help="Well and badly exposed photos: SICE Part 1, or well/, under/ and over/.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="scl-lle, fit, or no-contrast, -semantic, -retention, -negatives, -overexposed or -underexposed.",
            show_default="scl-lle",
        ),
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Curves for low light, learnt by contrast and by meaning (SCL-LLE).

    --set segmentation=FILE names a DeepLabv3+ of segmentation-models-pytorch that knows the classes of DATA.
    """
    with one_line(debug), needing_extra("train"):
        from fastenh.train import zero_dce

        chosen = _preset(zero_dce.SEMANTIC_PRESETS, preset or "scl-lle", again=bool(resume and preset))
        settings = _configure(zero_dce.SemanticConfig, chosen, config, assignments, out if resume else None)
        _check_fit(preset, settings.weights)
        zero_dce.train_semantic(settings, data, references, out, resume)
    _say_trained(out)


def _preset(presets: dict[str, dict[str, Any]], name: str, again: bool = False) -> dict[str, Any]:
    """`again`: it was named for a run that has its settings already."""
    if name not in presets:
        raise ValueError(f"--preset: expected one of {', '.join(presets)}, got {name!r}")
    if again:
        raise ValueError("expected --resume, or --preset for a new run, got both")
    return presets[name]


def _check_fit(preset: str | None, weights: str) -> None:
    if preset == "fit" and not weights:
        raise ValueError("--preset fit: expected a model to begin with, --set weights=MODEL, got none")


def _say_trained(run: Path) -> None:
    if os.environ.get("RANK", "0") == "0":  # torchrun numbers its processes; one of them has written
        say(f"Wrote {run / 'model.safetensors'}")


def _configure(
    kind: Any, chosen: dict[str, Any], file: Path | None, assignments: list[str] | None, run: Path | None
) -> Any:
    """What is chosen, or what the run to resume was told; over that the file's settings; over that single ones."""
    from fastenh.train.config import CONFIG, configure, parse_assignments, read_config

    if run and not (run / CONFIG).is_file():
        raise ValueError(f"--resume: expected a run in {run}, got none there")
    first = read_config(run / CONFIG) if run else chosen
    return configure(kind, first, read_config(file) if file else {}, parse_assignments(assignments or []))
