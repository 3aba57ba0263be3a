"""`fastenh enhance`."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fastenh.cli.options import Debug, Device, Model, Overwrite, message, one_line, say

if TYPE_CHECKING:
    from PIL import Image


class Job(NamedTuple):
    """One photo to do: where it is, where the result goes, and the before/after picture if one is wanted."""

    photo: Path
    target: Path
    comparison: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [self.target, self.comparison] if self.comparison else [self.target]


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
    with one_line(debug):
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
            failures.append(f"{job.photo}: {message(error).removeprefix(f'{job.photo}: ')}")

    done = len(jobs) - len(failures)
    folders = {job.target.parent for job in jobs}
    if len(jobs) == done == 1:
        say(f"Wrote {jobs[0].target}")
    elif done:
        say(f"Wrote {done} of {len(jobs)} photos" + (f" to {folders.pop()}" if len(folders) == 1 else ""))
    for line in failures:
        say(f"Failed: {line}", err=True)
    if failures:
        raise typer.Exit(1)


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
            say(f"Passing over {others} of {len(files)} files in {folder}: so far only {', '.join(SUFFIXES)}", err=True)

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
