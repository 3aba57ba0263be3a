"""`fastenh enhance`."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastenh.cli.options import (
    Compare,
    Debug,
    Device,
    Dither,
    Jobs,
    Model,
    Output,
    Overwrite,
    Quality,
    Recursive,
    Suffix,
    Watch,
    message,
    one_line,
    say,
)

if TYPE_CHECKING:
    from fastenh.files import Done, Job


def enhance(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="Photos (JPEG, PNG, TIFF, WebP, EXR, HEIC, RAW), or one folder of them."),
    ],
    output: Output = None,
    model: Model = "auto",
    strength: Annotated[float, typer.Option(help="0 leaves the photo as it is, 1 is the whole retouch.")] = 1.0,
    denoise: Annotated[
        bool, typer.Option("--denoise", help="Smooth what becomes lighter, more where more, and keep edges.")
    ] = False,
    protect_highlights: Annotated[
        bool, typer.Option("--protect-highlights", help="Let nothing become white that was not.")
    ] = False,
    dither: Dither = False,
    quality: Quality = None,
    suffix: Suffix = None,
    recursive: Recursive = False,
    watch: Watch = False,
    jobs: Jobs = 2,
    device: Device = "auto",
    compare: Compare = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Retouch photos.

    Every photo is tried; those that fail are named at the end. Run again, it goes on where it was ended.

    Depth, colours with their ICC profile, EXIF, XMP, IPTC, resolution and alpha stay as they are; orientation is
    applied. A JPEG keeps its quality, unless --quality is given. RAW becomes a 16-bit TIFF.
    """
    with one_line(debug):
        from fastenh import backends, files
        from fastenh.atomic import make_folder
        from fastenh.enhance import Enhancer
        from fastenh.io import SUFFIXES

        options = files.Options(strength, denoise, protect_highlights, dither, quality)
        folder = inputs[0] if len(inputs) == 1 and os.path.isdir(inputs[0]) else None
        if (watch or recursive) and not folder:
            raise ValueError(f"{'--watch' if watch else '--recursive'}: expected one folder, got {inputs[0]}")
        planned = files.plan(inputs, output, suffix, recursive, compare, overwrite)
        if folder and not watch:
            if not planned:
                known = ", ".join(SUFFIXES)
                raise ValueError(f"{folder}: expected a folder with photos ({known}, RAW), got none to do in it")
            _say_passed_over(folder)
        backends.check_chosen()
        enhancer = Enhancer(model, device)
        places = [job.target.parent for job in planned if not job.error]
        if places and (output or folder):  # report an output folder that cannot be made before any work starts
            make_folder(Path(os.path.commonpath(places)))

    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what matters raises

    def do(some: list[Job]) -> Iterator[Done]:
        return files.retouch_files(enhancer, some, options, workers=jobs, overwrite=overwrite)

    if watch and folder:
        with one_line(debug):
            _watch(folder, lambda: files.plan(inputs, output, suffix, recursive, compare), do, debug)
        return

    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    done = list(track(do(planned), "Retouching", len(planned), console=console, transient=True, disable=hidden))
    failures = [one for one in done if one.error]
    skipped = sum(one.skipped for one in done)
    written = len(done) - len(failures) - skipped
    folders = {one.job.target.parent for one in done if not one.job.error}
    if len(done) == written == 1:
        say(f"Wrote {done[0].job.target}")
    elif written:
        where = folders.pop() if len(folders) == 1 else output
        say(f"Wrote {written} of {len(done)} photos" + (f" to {where}" if where else ""))
    if skipped:
        say(f"Passed over {skipped} of {len(done)} photos that were done already; --overwrite does them again")
    for one in failures:
        _say_failed(one, debug)
    if failures:
        raise typer.Exit(1)


def _watch(
    folder: Path, plan: Callable[[], list[Job]], do: Callable[[list[Job]], Iterator[Done]], debug: bool = False
) -> None:
    """Photos that are there and those that come, until Ctrl-C. A file is taken once it stays as it is for a second."""
    say(f"Watching {folder}; Ctrl-C ends it")
    before: dict[Path, tuple[int, int]] = {}
    tried: dict[Path, tuple[int, int]] = {}
    wrong = ""  # with what is in the folder, such as two photos that would have one result
    try:
        while True:
            if not os.path.isdir(folder):
                raise ValueError(f"{folder}: expected the folder that is watched, got none there any more")
            now, ready, jobs = {}, [], []
            try:
                jobs, said = plan(), ""
            except (OSError, ValueError) as error:
                said = message(error)
            if said and said != wrong:
                say(f"Waiting: {said}", err=True)
            wrong = said
            for job in jobs:
                try:
                    state = job.photo.stat()
                    now[job.photo] = (state.st_size, state.st_mtime_ns)
                except FileNotFoundError:  # it came and went
                    continue
                except OSError:  # a link to itself: tried once, to say what is wrong with it
                    now[job.photo] = (0, 0)
                if before.get(job.photo) == now[job.photo] != tried.get(job.photo):
                    ready.append(job)
            tried |= {job.photo: now[job.photo] for job in ready}
            for one in do(ready):
                if one.error:
                    _say_failed(one, debug)
                elif not one.skipped:
                    say(f"Wrote {one.job.target}")
            before = now
            time.sleep(1)
    except KeyboardInterrupt:
        say("Ended")


def _say_passed_over(folder: Path) -> None:
    from fastenh.files import is_photo

    files = [path for path in folder.iterdir() if os.path.isfile(path) and not path.name.startswith(".")]
    if others := sum(not is_photo(path) for path in files):
        say(f"Passing over {others} of {len(files)} files in {folder}, by their names no photos", err=True)


def _say_failed(done: Done, debug: bool) -> None:
    assert done.error
    if debug:
        typer.echo(done.traceback, err=True, nl=False)
    say(f"Failed: {done.job.photo}: {message(done.error).removeprefix(f'{done.job.photo}: ')}", err=True)
