"""The command line: `fastenh enhance`, `fastenh train`, `fastenh evaluate`, `fastenh convert`, `fastenh info`.

Trouble is one line on stderr (what, expected, got) and an exit code: 1 where a photo failed and the rest were done,
2 where nothing was begun. What is slow to import is imported by the commands that need it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

import fastenh

if TYPE_CHECKING:
    from PIL import Image

app = typer.Typer(
    help="Retouch photos, fast.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
convert = typer.Typer(help="Turn published weights into files of fastenh.", no_args_is_help=True)
app.add_typer(convert, name="convert")
train = typer.Typer(help="Train models.", no_args_is_help=True)
app.add_typer(train, name="train")

Model = Annotated[
    str,
    typer.Option(
        "--model", "--weights", metavar="W", help="Name of a model that comes with fastenh, or a .safetensors file."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]


class Job(NamedTuple):
    """One photo to do: where it is, where the result goes, and the before/after picture if one is wanted."""

    photo: Path
    target: Path
    comparison: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [self.target, self.comparison] if self.comparison else [self.target]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"fastenh {fastenh.__version__}")
        raise typer.Exit


@app.command()
def enhance(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", help="Photos (8-bit JPEG or PNG), or one folder of them.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", help="File or folder to write to.", show_default="photo_enhanced.jpg beside photo.jpg"
        ),
    ] = None,
    model: Model = "auto",
    strength: Annotated[float, typer.Option(help="0 leaves the photo as it is, 1 is the whole retouch.")] = 1.0,
    denoise: Annotated[
        bool, typer.Option("--denoise", help="Smooth what becomes lighter, more where more, and keep edges.")
    ] = False,
    protect_highlights: Annotated[
        bool, typer.Option("--protect-highlights", help="Let nothing become white that was not.")
    ] = False,
    device: Device = "auto",
    compare: Annotated[bool, typer.Option("--compare", help="Also write a before/after picture.")] = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Retouch photos.

    Every photo is tried; those that fail are named at the end.

    ICC profile, EXIF, XMP and alpha are kept; orientation is applied. JPEG is written at quality 95, 4:4:4.
    """
    with _one_line(debug):
        if not 0 <= strength <= 1:
            raise ValueError(f"--strength: expected a number from 0 to 1, got {strength}")
        jobs = _plan(inputs, output, compare)
        from fastenh import backends
        from fastenh.enhance import Enhancer

        backends.check_chosen()
        enhancer = Enhancer(model, device)
        for folder in {job.target.parent for job in jobs}:
            folder.mkdir(parents=True, exist_ok=True)

    from rich.console import Console
    from rich.progress import track

    from fastenh.io import check_free, read_photo, write_photo

    console = Console(stderr=True)
    failures = []
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what matters raises
    for job in track(jobs, "Retouching", console=console, transient=True, disable=not console.is_terminal):
        try:
            for path in job.outputs:
                check_free(path, overwrite)
            before = read_photo(job.photo)
            after = enhancer(before, strength, denoise=denoise, protect_highlights=protect_highlights)
            write_photo(after, job.target, overwrite)
            if job.comparison:
                write_photo(_side_by_side(before, after), job.comparison, overwrite)
        except Exception as error:
            if debug:
                traceback.print_exc()
            failures.append(f"{job.photo}: {_line(error).removeprefix(f'{job.photo}: ')}")

    done = len(jobs) - len(failures)
    folders = {job.target.parent for job in jobs}
    if len(jobs) == done == 1:
        _say(f"Wrote {jobs[0].target}")
    elif done:
        _say(f"Wrote {done} of {len(jobs)} photos" + (f" to {folders.pop()}" if len(folders) == 1 else ""))
    for line in failures:
        _say(f"Failed: {line}", err=True)
    if failures:
        raise typer.Exit(1)


@app.command()
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
        with _one_line(debug):
            if expert or size or niqe:
                raise ValueError("expected --segmentation without --expert, --size and --niqe, got both")
        _evaluate_segmentation(data, model, split, segmentation, arch, encoder, csv, device, overwrite, debug)
        return
    with _one_line(debug):
        from fastenh import backends, evaluate, metrics
        from fastenh.io import check_free

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
            csv.parent.mkdir(parents=True, exist_ok=True)
    for note in notes:
        _say(note, err=True)

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
            failures.append(f"{example.source}: {_line(error).removeprefix(f'{example.source}: ')}")

    if rows:
        _say(f"{title}: {len(examples) - len(failures)} of {len(examples)} photos")
        lines = evaluate.summaries(rows)
        measured = [name for name in evaluate.HEADINGS if any(name in means for means in lines.values())]
        table = Table("", "", *(evaluate.HEADINGS[name] for name in measured), box=box.MARKDOWN)
        for (at, image), means in lines.items():
            figures = (f"{means[name]:.{4 if name == 'ssim' else 2}f}" for name in measured)
            table.add_row(at, image if image == "input" else Path(model).stem, *figures)
        Console(width=120, markup=False, highlight=False).print(table)
        if alone := evaluate.groups_of_one(rows):
            _say(f"M_GLC leaves out groups of one photo, which has no variance: {evaluate.some(alone)}", err=True)
    with _one_line(debug):
        if csv and rows:
            evaluate.write_csv(rows, csv, overwrite)
            _say(f"Wrote {csv} and {evaluate.groups_csv(csv)}")
    for line in failures:
        _say(f"Failed: {line}", err=True)
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
    with _one_line(debug):
        from fastenh import backends, evaluate
        from fastenh.data import cityscapes
        from fastenh.io import check_free
        from fastenh.models.segmentation import Segmentation

        _need_torchmetrics()
        if csv:
            check_free(csv, overwrite)
        scenes = cityscapes(data, split or "val")
        backends.check_chosen()
        enhancer = fastenh.Enhancer(model, device)
        recognition = evaluate.Recognition(enhancer, Segmentation(weights, arch, encoder).to(enhancer.device))
        if csv:
            csv.parent.mkdir(parents=True, exist_ok=True)

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
            failures.append(f"{scene.image}: {_line(error).removeprefix(f'{scene.image}: ')}")

    if ious := recognition.ious():
        _say(f"{data}, {split or 'val'}: {len(scenes) - len(failures)} of {len(scenes)} photos, mean IoU in %")
        table = Table("", *(f"γ = {gamma}" for gamma in evaluate.GAMMAS), box=box.MARKDOWN)
        for image in ("input", "output"):
            figures = (f"{100 * ious[gamma, image].nanmean().item():.2f}" for gamma in evaluate.GAMMAS)
            table.add_row(image if image == "input" else Path(model).stem, *figures)
        Console(width=120, markup=False, highlight=False).print(table)
    with _one_line(debug):
        if csv and ious:
            evaluate.write_ious(ious, csv, overwrite)
            _say(f"Wrote {csv}")
    for line in failures:
        _say(f"Failed: {line}", err=True)
    if failures:
        raise typer.Exit(1)


def _need_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        raise ValueError("expected torchmetrics to be installed, got none: pip install 'fastenh[evaluate]'")


Weights = Annotated[Path, typer.Argument(metavar="FILE.pth", help="The published weights.")]
Converted = Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")]


@convert.command("lut3d")
def convert_lut3d(
    luts: Annotated[Path, typer.Argument(help="The published basis LUTs, LUTs.pth.")],
    classifier: Annotated[Path, typer.Argument(help="The published classifier, classifier.pth.")],
    output: Converted,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Image-adaptive 3D LUT (Zeng et al.), paired or unpaired variant."""
    _convert(lambda models: models.lut3d.convert(luts, classifier), output, overwrite, debug)


@convert.command("zero-dce")
def convert_zero_dce(weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """Zero-DCE (Guo et al.) for low light. Its published weights are CC BY-NC 4.0."""
    _convert(lambda models: models.zero_dce.convert(weights, "zero-dce"), output, overwrite, debug)


@convert.command("zero-dce++")
def convert_zero_dce_pp(
    weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False
) -> None:
    """Zero-DCE++ (Li et al.) for low light, at map scale 12. Its published weights are CC BY-NC 4.0."""
    _convert(lambda models: models.zero_dce.convert(weights, "zero-dce++"), output, overwrite, debug)


@convert.command("scl-lle")
def convert_scl_lle(weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """SCL-LLE (Liang et al.) for low light. Its published weights come without a licence."""
    _convert(lambda models: models.zero_dce.convert(weights, "scl-lle"), output, overwrite, debug)


def _convert(read: Callable[[Any], Any], output: Path, overwrite: bool, debug: bool) -> None:
    """`read` makes a model, given the package that is slow to import."""
    with _one_line(debug):
        if output.suffix != ".safetensors":
            raise ValueError(f"-o: expected a name that ends in .safetensors, got {output}")
        from fastenh import models
        from fastenh.io import check_free

        check_free(output, overwrite)
        models.save(read(models), output)
    _say(f"Wrote {output}")


Data = Annotated[Path, typer.Option(help="Folder of the data set.")]
Out = Annotated[Path, typer.Option(help="Folder of the run: checkpoint, model.safetensors, TensorBoard's events.")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML or JSON file of settings.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be given again.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.")]


@train.command("lam")
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
    with _one_line(debug), _needing_extra("train"):
        from fastenh.train import lam

        chosen = _preset(lam.PRESETS, preset or "lam") | ({"expert": expert} if expert else {})
        if resume and (preset or expert):
            raise ValueError("expected --resume, or --preset and --expert for a new run, got both")
        settings = _configure(lam.Config, chosen, config, assignments, out if resume else None)
        lam.train(settings, data, out, resume)
    _say_trained(out)


@train.command("unpaired")
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
    with _one_line(debug), _needing_extra("train"):
        from fastenh.train import lut3d

        settings = _configure(lut3d.Config, {}, config, assignments, out if resume else None)
        lut3d.train(settings, data, out, resume)
    _say_trained(out)


@train.command("zero-dce")
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
    with _one_line(debug), _needing_extra("train"):
        from fastenh.train import zero_dce

        chosen = _preset(zero_dce.PRESETS, preset or "zero-dce", again=bool(resume and preset))
        settings = _configure(zero_dce.Config, chosen, config, assignments, out if resume else None)
        _check_fit(preset, settings.weights)
        zero_dce.train(settings, data, out, resume)
    _say_trained(out)


@train.command("scl-lle")
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
    with _one_line(debug), _needing_extra("train"):
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
        _say(f"Wrote {run / 'model.safetensors'}")


def _configure(
    kind: Any, chosen: dict[str, Any], file: Path | None, assignments: list[str] | None, run: Path | None
) -> Any:
    """What is chosen, or what the run to resume was told; over that the file's settings; over that single ones."""
    from fastenh.train.config import CONFIG, configure, parse_assignments, read_config

    if run and not (run / CONFIG).is_file():
        raise ValueError(f"--resume: expected a run in {run}, got none there")
    first = read_config(run / CONFIG) if run else chosen
    return configure(kind, first, read_config(file) if file else {}, parse_assignments(assignments or []))


@contextlib.contextmanager
def _needing_extra(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"expected the package {error.name}, got none: pip install 'fastenh[{extra}]'") from None


@app.command()
def info() -> None:
    """Say what is installed and what would run here: paste this into bug reports."""
    from rich.console import Console
    from rich.table import Table

    from fastenh import backends

    with _one_line(debug=False):
        backends.check_chosen()
    table = Table.grid(padding=(0, 2))
    for label, text in backends.describe():
        table.add_row(label, text)
    Console(markup=False, highlight=False).print(table)


def _plan(inputs: list[Path], output: str | None, compare: bool) -> list[Job]:
    """Which photo goes where; raises ValueError where that cannot be told, before anything is done."""
    from fastenh.io import SUFFIXES

    folder = inputs[0] if len(inputs) == 1 and inputs[0].is_dir() else None
    if folder is None:
        photos = inputs
        for path in photos:
            if path.is_dir():
                raise ValueError(f"expected files, or one folder alone, got the folder {path} among others")
    else:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        photos = [path for path in files if path.suffix.lower() in SUFFIXES]
        if not photos:
            raise ValueError(f"{folder}: expected a folder with photos ({', '.join(SUFFIXES)}), got none in it")
        if others := len(files) - len(photos):
            _say(
                f"Passing over {others} of {len(files)} files in {folder}: so far only {', '.join(SUFFIXES)}", err=True
            )

    into: Path | None = None  # the folder to write to; None is beside each photo
    only: Path | None = None  # the one file to write
    if output is None:
        into = folder / "enhanced" if folder else None
    elif Path(output).is_dir() or output.endswith("/") or not (Path(output).suffix or Path(output).exists()):
        into = Path(output)
    elif folder or len(photos) > 1:
        raise ValueError(f"-o: expected a folder for {len(photos)} photos (end a new one with /), got {output}")
    elif Path(output).suffix.lower() not in SUFFIXES:
        raise ValueError(f"-o: expected a folder or a name that ends in {', '.join(SUFFIXES)}, got {output}")
    else:
        only = Path(output)

    jobs = []
    for photo in photos:
        target = only or (into or photo.parent) / photo.name
        if not only and target.resolve() == photo.resolve():
            target = target.with_stem(f"{photo.stem}_enhanced")
        comparison = target.with_name(f"{target.stem.removesuffix('_enhanced')}_compare.jpg")
        jobs.append(Job(photo, target, comparison if compare else None))

    given = {photo.resolve() for photo in photos}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for path in job.outputs:
            other = writers.setdefault(path.resolve(), job.photo)
            if other is not job.photo:
                raise ValueError(f"{path}: expected one photo to be written there, got {other} and {job.photo}")
            in_place = path is job.target and path.resolve() == job.photo.resolve()  # as asked for, with --overwrite
            if path.resolve() in given and not in_place:
                raise ValueError(f"{path}: expected outputs apart from the photos given, got one of them")
    return jobs


def _side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """Before on the left, after on the right, each at most 1600 pixels, a white line between."""
    from PIL import Image

    factor = min(1, 1600 / max(before.size))
    width, height = (max(1, round(side * factor)) for side in before.size)
    gap = max(2, width // 100)
    canvas = Image.new("L" if before.mode in ("L", "LA") else "RGB", (2 * width + gap, height), "white")
    for left, photo in ((0, before), (width + gap, after)):
        small = photo.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
        canvas.paste(small, (left, 0), small if small.mode in ("LA", "RGBA") else None)
    if "icc_profile" in before.info:
        canvas.info["icc_profile"] = before.info["icc_profile"]
    return canvas


@contextlib.contextmanager
def _one_line(debug: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if debug:
            raise
        _say(f"fastenh: {_line(error)}", err=True)
        raise typer.Exit(2) from None


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    known = isinstance(error, (ValueError, OSError, FloatingPointError)) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _say(line: str, err: bool = False) -> None:
    """One line, whatever a file name or a library put in it: newlines, terminal codes, bytes that are no text."""
    typer.echo("".join(c if c.isprintable() else " " for c in line), err=err)
