"""`fastenh evaluate`."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import fastenh
from fastenh.cli.options import Debug, Device, ModelOptions, Overwrite, expand_options, message, one_line, say


@expand_options
def evaluate(
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Photos with an expert's retouches, photos alone, or Cityscapes."),
    ],
    model: ModelOptions,
    expert: Annotated[
        Literal["a", "b", "c"] | None,
        typer.Option(help="Compare with target_a/, target_b/ or target_c/.", show_default="a"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Subfolder of DIR to measure.", show_default="val where there is one")
    ] = None,
    size: Annotated[
        Literal["360p", "full"] | None,
        typer.Option(help="360p: photos reduced to a short side of 360 pixels, antialiased.", show_default="both"),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Write one line per photo here, and one line per group to FILE_groups.csv."
        ),
    ] = None,
    niqe: Annotated[
        Path | None,
        typer.Option(
            metavar="PARAMS.npz", help="Also measure NIQE, with these pristine parameters, such as BasicSR's."
        ),
    ] = None,
    segmentation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measure segmentation accuracy with the weights of this network, an --arch with --encoder.",
        ),
    ] = None,
    arch: Annotated[str, typer.Option(help="Architecture, as segmentation-models-pytorch names it.")] = "deeplabv3plus",
    encoder: Annotated[str, typer.Option(help="Encoder, as segmentation-models-pytorch names it.")] = "resnet50",
    device: Device = "auto",
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Measure a model against an expert's retouches.

    DIR has the layout of PPR10K: val/ with source/, target_a/, target_b/ or target_c/, and masks/; photos are named
    GROUP_INDEX, such as 12_3.png.

    Or pairs, as FiveK is usually kept: input/ and target/. In both layouts val/ and masks/ are optional.

    Prints PSNR, ΔE_ab, both human-centred (HC: pixels outside people count half), group consistency (M_GLC) and SSIM,
    before and after. --niqe adds NIQE, for photos of at least two blocks of 96×96 pixels.

    Photos directly in DIR have no target: use --niqe.

    With --segmentation, DIR has the layout of Cityscapes (leftImg8bit/, gtFine/). Prints the mean IoU of a segmentation
    network on photos darkened by γ = 1, 2, 6, 10, before and after the model.

    Results are rounded to 8 bits before they are compared. Photos are PNG, TIFF or JPEG of 8 or 16 bits.
    """
    if segmentation:
        with one_line(debug):
            if expert or size or niqe:
                raise ValueError("expected --segmentation without --expert, --size and --niqe, got both")
        _evaluate_segmentation(data, model, split, segmentation, arch, encoder, csv, device, overwrite, debug)
        return
    with one_line(debug):
        from fastenh import backends, evaluate, metrics
        from fastenh.atomic import check_free, make_folder

        if csv:
            for path in (csv, evaluate.groups_csv(csv)):
                check_free(path, overwrite)
        examples, title, notes = evaluate.find_examples(data, split, expert)
        if any(example.target for example in examples):
            _need_torchmetrics()
        elif niqe is None:
            raise ValueError(f"{data}: expected targets, or --niqe to measure photos alone, got neither")
        pristine = metrics.load_pristine(niqe) if niqe else None
        backends.check_chosen()
        module, conditions = model.load()
        enhancer = fastenh.Enhancer(module, device)
        if csv:
            make_folder(csv.parent)
    for note in notes:
        say(note, err=True)

    sizes = [size] if size else list(evaluate.SIZES)
    rows: list[evaluate.Row] = []

    def measure(example: evaluate.Example) -> None:
        rows.extend(evaluate.measure(example, enhancer, sizes, pristine, **conditions))

    failures = _each(examples, [example.source for example in examples], measure, debug)
    if rows:
        say(f"{title}: {len(examples) - len(failures)} of {len(examples)} photos")
        lines = evaluate.summaries(rows)
        measured = [name for name in evaluate.HEADINGS if any(name in means for means in lines.values())]
        table = [["", "", *(evaluate.HEADINGS[name] for name in measured)]]
        for (at, image), means in lines.items():
            figures = (f"{means[name]:.{4 if name == 'ssim' else 2}f}" for name in measured)
            table.append([at, image if image == "input" else Path(model.model).stem, *figures])
        _print(table)
        if alone := evaluate.groups_of_one(rows):
            say(f"M_GLC leaves out groups of one photo, which has no variance: {evaluate.some(alone)}", err=True)
    with one_line(debug):
        if csv and rows:
            evaluate.write_csv(rows, csv, overwrite)
            say(f"Wrote {csv} and {evaluate.groups_csv(csv)}")
    _say_failures(failures)


def _evaluate_segmentation(
    data: Path,
    model: ModelOptions,
    split: str | None,
    weights: Path,
    arch: str,
    encoder: str,
    csv: Path | None,
    device: str,
    overwrite: bool,
    debug: bool,
) -> None:
    with one_line(debug):
        from fastenh import backends, evaluate
        from fastenh.atomic import check_free, make_folder
        from fastenh.data import cityscapes
        from fastenh.models.segmentation import Segmentation

        _need_torchmetrics()
        if csv:
            check_free(csv, overwrite)
        scenes = cityscapes(data, split or "val")
        backends.check_chosen()
        module, conditions = model.load()
        enhancer = fastenh.Enhancer(module, device)
        recognition = evaluate.Recognition(
            enhancer, Segmentation(weights, arch, encoder).to(enhancer.device), **conditions
        )
        if csv:
            make_folder(csv.parent)

    failures = _each(scenes, [scene.image for scene in scenes], recognition.add, debug)
    if ious := recognition.ious():
        say(f"{data}, {split or 'val'}: {len(scenes) - len(failures)} of {len(scenes)} photos, mean IoU in %")
        table = [["", *(f"γ = {gamma}" for gamma in evaluate.GAMMAS)]]
        for image in ("input", "output"):
            figures = (f"{100 * ious[gamma, image].nanmean().item():.2f}" for gamma in evaluate.GAMMAS)
            table.append([image if image == "input" else Path(model.model).stem, *figures])
        _print(table)
    with one_line(debug):
        if csv and ious:
            evaluate.write_ious(ious, csv, overwrite)
            say(f"Wrote {csv}")
    _say_failures(failures)


def _each(items: Sequence[Any], paths: Sequence[Path], do: Callable[[Any], None], debug: bool) -> list[str]:
    """Call `do` on each item and show the progress; returns a line for each that failed, with its path."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    failures = []
    for item, path in zip(
        track(items, "Measuring", console=console, transient=True, disable=hidden), paths, strict=True
    ):
        try:
            do(item)
        except Exception as error:
            if debug:
                traceback.print_exc()
            failures.append(f"{path}: {message(error).removeprefix(f'{path}: ')}")
    return failures


def _say_failures(failures: list[str]) -> None:
    for line in failures:
        say(f"Failed: {line}", err=True)
    if failures:
        raise typer.Exit(1)


def _print(rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], box=box.MARKDOWN)
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=120, markup=False, highlight=False).print(table)


def _need_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        raise ValueError("expected torchmetrics to be installed, got none: pip install 'fastenh[evaluate]'")
