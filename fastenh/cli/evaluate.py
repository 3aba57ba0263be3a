"""`fastenh evaluate`."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

import fastenh
from fastenh.cli.options import Debug, Device, Model, Overwrite, message, one_line, say


def evaluate(
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Photos and an expert's retouches of them; or photos alone; or Cityscapes."),
    ],
    model: Model = "auto",
    expert: Annotated[
        Literal["a", "b", "c"] | None, typer.Option(help="Whose target_* to compare with.", show_default="a")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which part of DIR.", show_default="val where there is one")] = None,
    size: Annotated[
        Literal["360p", "full"] | None,
        typer.Option(help="360p: the short side reduced to 360 pixels, antialiased.", show_default="both"),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write there a line per photo, and to FILE_groups.csv one per group."),
    ] = None,
    niqe: Annotated[
        Path | None,
        typer.Option(metavar="PARAMS.npz", help="Measure NIQE too, with these pristine parameters, as of BasicSR."),
    ] = None,
    segmentation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measure what this network still recognises: weights of ARCH on ENCODER."),
    ] = None,
    arch: Annotated[str, typer.Option(help="Of segmentation-models-pytorch.")] = "deeplabv3plus",
    encoder: Annotated[str, typer.Option(help="Of segmentation-models-pytorch.")] = "resnet50",
    device: Device = "auto",
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Measure a model against an expert's retouches.

    DIR is laid out as PPR10K: val/ with source/, target_a/ (b, c) and masks/, photos named group_index.

    Or in pairs, as people keep FiveK: input/ and target/. In both val/ and masks/ may be missing.

    Prints PSNR, ΔE_ab, both human-centred (HC: all but people at half weight), M_GLC, and SSIM, before and after.
    With --niqe also NIQE, which needs photos of at least two blocks of 96×96 pixels.

    Photos that lie in DIR itself have no target: NIQE is all that can be said of them.

    With --segmentation, DIR is laid out as Cityscapes (leftImg8bit/, gtFine/): prints the mean IoU of a segmentation
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
        enhancer = fastenh.Enhancer(model, device)
        if csv:
            make_folder(csv.parent)
    for note in notes:
        say(note, err=True)

    from rich import box
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console(stderr=True)
    sizes = [size] if size else list(evaluate.SIZES)
    rows = []
    failures = []
    for example in track(examples, "Measuring", console=console, transient=True, disable=not console.is_terminal):
        try:
            rows += evaluate.measure(example, enhancer, sizes, pristine)
        except Exception as error:
            if debug:
                traceback.print_exc()
            failures.append(f"{example.source}: {message(error).removeprefix(f'{example.source}: ')}")

    if rows:
        say(f"{title}: {len(examples) - len(failures)} of {len(examples)} photos")
        lines = evaluate.summaries(rows)
        measured = [name for name in evaluate.HEADINGS if any(name in means for means in lines.values())]
        table = Table("", "", *(evaluate.HEADINGS[name] for name in measured), box=box.MARKDOWN)
        for (at, image), means in lines.items():
            figures = (f"{means[name]:.{4 if name == 'ssim' else 2}f}" for name in measured)
            table.add_row(at, image if image == "input" else Path(model).stem, *figures)
        Console(width=120, markup=False, highlight=False).print(table)
        if alone := evaluate.groups_of_one(rows):
            say(f"M_GLC leaves out groups of one photo, which has no variance: {evaluate.some(alone)}", err=True)
    with one_line(debug):
        if csv and rows:
            evaluate.write_csv(rows, csv, overwrite)
            say(f"Wrote {csv} and {evaluate.groups_csv(csv)}")
    for line in failures:
        say(f"Failed: {line}", err=True)
    if failures:
        raise typer.Exit(1)


def _evaluate_segmentation(
    data: Path,
    model: str,
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
        enhancer = fastenh.Enhancer(model, device)
        recognition = evaluate.Recognition(enhancer, Segmentation(weights, arch, encoder).to(enhancer.device))
        if csv:
            make_folder(csv.parent)

    from rich import box
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console(stderr=True)
    failures = []
    for scene in track(scenes, "Measuring", console=console, transient=True, disable=not console.is_terminal):
        try:
            recognition.add(scene)
        except Exception as error:
            if debug:
                traceback.print_exc()
            failures.append(f"{scene.image}: {message(error).removeprefix(f'{scene.image}: ')}")

    if ious := recognition.ious():
        say(f"{data}, {split or 'val'}: {len(scenes) - len(failures)} of {len(scenes)} photos, mean IoU in %")
        table = Table("", *(f"γ = {gamma}" for gamma in evaluate.GAMMAS), box=box.MARKDOWN)
        for image in ("input", "output"):
            figures = (f"{100 * ious[gamma, image].nanmean().item():.2f}" for gamma in evaluate.GAMMAS)
            table.add_row(image if image == "input" else Path(model).stem, *figures)
        Console(width=120, markup=False, highlight=False).print(table)
    with one_line(debug):
        if csv and ious:
            evaluate.write_ious(ious, csv, overwrite)
            say(f"Wrote {csv}")
    for line in failures:
        say(f"Failed: {line}", err=True)
    if failures:
        raise typer.Exit(1)


def _need_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        raise ValueError("expected torchmetrics to be installed, got none: pip install 'fastenh[evaluate]'")
