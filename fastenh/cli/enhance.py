"""`fastenh enhance`."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastenh.cli.options import ModelOptions, RunOptions, Strength, expand_options, message, one_line, say
from fastenh.io.formats.registry import KNOWN, SUFFIXES

if TYPE_CHECKING:
    from torch import nn

    from fastenh.pipelines.batch import Job, Outcome


@expand_options
def enhance(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help=f"Photos ({KNOWN}), or one folder of them."),
    ],
    model: ModelOptions,
    run: RunOptions,
    strength: Strength = 1.0,
    denoise: Annotated[
        bool,
        typer.Option(
            "--denoise",
            help="Reduce noise where the model brightens the photo, in proportion to the gain; edges are kept.",
        ),
    ] = False,
    protect_highlights: Annotated[
        bool, typer.Option("--protect-highlights", help="Keep highlights from clipping to white.")
    ] = False,
) -> None:
    """Retouch photos.

    A failed photo does not stop the run; failures are listed at the end. Run the command again to resume: photos whose
    output exists are skipped.

    Depth, colours with their ICC profile, EXIF, XMP, IPTC, resolution and alpha are kept where the output format can
    store them. Photos are turned upright. A JPEG is written with the quality it had, and keeps its HDR gain map. RAW
    becomes a 16-bit TIFF.
    """
    retouch(inputs, model.load, run, strength, denoise=denoise, protect_highlights=protect_highlights)


def retouch(
    inputs: list[Path],
    load: Callable[[], tuple[nn.Module, dict[str, Any]]],
    run: RunOptions,
    strength: float,
    *,
    denoise: bool = False,
    protect_highlights: bool = False,
    space: str | None = None,
) -> None:
    """Photos through the model that `load` gives, with its conditions."""
    with one_line(run.debug):
        from fastenh import backends
        from fastenh.atomic import make_folder
        from fastenh.engine import Engine
        from fastenh.pipelines import batch
        from fastenh.pipelines.photo import FileOptions

        FileOptions(strength, quality=run.quality)  # refuses what is wrong before the model is loaded
        folder = inputs[0] if len(inputs) == 1 and os.path.isdir(inputs[0]) else None
        if (run.watch or run.recursive) and not folder:
            raise ValueError(f"{'--watch' if run.watch else '--recursive'}: expected one folder, got {inputs[0]}")
        planned = batch.plan(inputs, run.output, run.suffix, run.recursive, run.compare, run.overwrite)
        if folder and not run.watch:
            if not planned:
                known = ", ".join(SUFFIXES)
                raise ValueError(f"{folder}: expected a folder with photos ({known}, RAW), got none")
            _say_passed_over(folder)
        backends.check_chosen()
        model, conditions = load()
        engine = Engine(model, run.device, "float32")
        conditions = engine.system.check_conditions(conditions)
        finishing = denoise, protect_highlights
        options = FileOptions(strength, *finishing, conditions, space, run.dither, run.quality, run.keep_times)
        places = [job.target.parent for job in planned if not job.error]
        if places and (run.output or folder):  # report an output folder that cannot be made before any work starts
            make_folder(Path(os.path.commonpath(places)))

    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what matters raises

    def do(some: list[Job]) -> Iterator[Outcome]:
        return batch.enhance_files(engine, some, options, workers=run.jobs, overwrite=run.overwrite)

    if run.watch and folder:
        with one_line(run.debug):
            plan = functools.partial(batch.plan, inputs, run.output, run.suffix, run.recursive, run.compare)
            _watch(folder, plan, do, run.debug)
        return

    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    outcomes = list(track(do(planned), "Retouching", len(planned), console=console, transient=True, disable=hidden))
    failures = [outcome for outcome in outcomes if outcome.error]
    skipped = sum(outcome.skipped for outcome in outcomes)
    written = len(outcomes) - len(failures) - skipped
    folders = {outcome.job.target.parent for outcome in outcomes if not outcome.job.error}
    for outcome in outcomes:
        _say_notes(outcome)
    if len(outcomes) == written == 1:
        say(f"Wrote {outcomes[0].job.target}")
    elif written:
        where = folders.pop() if len(folders) == 1 else run.output
        say(f"Wrote {written} of {len(outcomes)} photos" + (f" to {where}" if where else ""))
    if skipped:
        say(f"Skipped {skipped} of {len(outcomes)} photos whose results exist; --overwrite replaces them")
    for outcome in failures:
        _say_failed(outcome, run.debug)
    if failures:
        raise typer.Exit(1)


def _watch(
    folder: Path, plan: Callable[[], list[Job]], do: Callable[[list[Job]], Iterator[Outcome]], debug: bool = False
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
            for outcome in do(ready):
                _say_notes(outcome)
                if outcome.error:
                    _say_failed(outcome, debug)
                elif not outcome.skipped:
                    say(f"Wrote {outcome.job.target}")
            before = now
            time.sleep(1)
    except KeyboardInterrupt:
        say("Ended")


def _say_passed_over(folder: Path) -> None:
    from fastenh.pipelines.batch import is_photo

    files = [path for path in folder.iterdir() if os.path.isfile(path) and not path.name.startswith(".")]
    if others := sum(not is_photo(path) for path in files):
        say(f"Skipping {others} of {len(files)} files in {folder}, by their names no photos", err=True)


def _say_notes(outcome: Outcome) -> None:
    for note in outcome.notes:
        say(f"{outcome.job.photo}: {note}", err=True)


def _say_failed(outcome: Outcome, debug: bool) -> None:
    assert outcome.error
    if debug:
        typer.echo(outcome.traceback, err=True, nl=False)
    say(f"Failed: {outcome.job.photo}: {message(outcome.error).removeprefix(f'{outcome.job.photo}: ')}", err=True)
