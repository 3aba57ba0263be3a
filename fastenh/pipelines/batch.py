"""Many photos: plan which result is written where, skip results that exist, process the rest."""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fastenh.atomic import check_free, make_folder
from fastenh.engine import Engine
from fastenh.io.formats.registry import RAW_SUFFIXES, SUFFIXES, is_complete
from fastenh.pipelines.compare import write_comparison
from fastenh.pipelines.photo import FileOptions, enhance_file


class Job(NamedTuple):
    """One photo to process: its path, that of its result, and that of a before/after picture if requested. A subfolder
    that cannot be listed is a job with an `error`."""

    photo: Path
    target: Path
    comparison: Path | None = None
    error: OSError | None = None

    @property
    def outputs(self) -> list[Path]:
        return [self.target, self.comparison] if self.comparison else [self.target]


class Outcome(NamedTuple):
    """The outcome of a job: it failed with `error`, or it was `skipped` because its results exist, or it was written.

    `traceback` is the error's traceback as text; the error itself has none, since it would keep pixels in memory and
    files open. `notes` are the system's messages for the user."""

    job: Job
    error: Exception | None = None
    skipped: bool = False
    traceback: str = ""
    notes: tuple[str, ...] = ()


# ---- which files


def find(folder: Path, recursive: bool = False) -> tuple[list[Path], list[OSError]]:
    """The photos in a folder, recognised by their suffixes, in order; with those of subfolders if `recursive`. Hidden
    files are skipped. Also returns an error for each folder that cannot be listed."""
    found: list[Path] = []
    errors: list[OSError] = []
    for here, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        found += [Path(here, name) for name in sorted(names) if not name.startswith(".") and is_photo(Path(name))]
    return found, errors


def is_photo(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or path.suffix.lower() in RAW_SUFFIXES


def plan(
    inputs: list[Path],
    output: str | None = None,
    suffix: str | None = None,
    recursive: bool = False,
    compare: bool = False,
    overwrite: bool = False,
) -> list[Job]:
    """Decide where the result of each photo is written; [] for a folder without photos. ValueError if that is unclear.

    `inputs` are files, or one folder. `output` is a folder, which may be new, or, for one photo, a file. If that file
    exists, FileExistsError is raised, unless `overwrite` is true or the file is incomplete and not the photo itself.
    Without `output`, the results of a folder go to its subfolder `enhanced`, and those of single photos beside the
    photos, with `suffix` ("_enhanced") appended to their names. In other folders names are kept unless `suffix` is
    given. RAW becomes TIFF. `compare` adds a comparison for each photo: a_compare.jpg for a.jpg, or a.jpg_compare.jpg
    if two photos (a.jpg and a.cr2) would share it. Files in a folder that are results of other photos in it are
    skipped. Links count as the files that they point to.
    """
    folder = inputs[0] if len(inputs) == 1 and os.path.isdir(inputs[0]) else None
    for path in [] if folder else inputs:
        if os.path.isdir(path):
            raise ValueError(f"expected files, or one folder alone, got the folder {path} among others")
    if suffix is not None and (not suffix or "/" in suffix):
        raise ValueError(f"suffix: expected text without / to append to names, got {suffix!r}")
    photos, errors = find(folder, recursive) if folder else (inputs, [])
    into: Path | None = None  # the folder to write to; None: beside each photo
    only: Path | None = None  # the one file to write
    if output is None:
        into = folder / "enhanced" if folder else None
    elif Path(output).is_dir() or output.endswith("/") or not (Path(output).suffix or Path(output).exists()):
        into = Path(output)
    elif folder or len(inputs) > 1:
        raise ValueError(f"-o: expected a folder for {len(photos)} photos (end a new one with /), got {output}")
    elif Path(output).suffix.lower() not in SUFFIXES:
        raise ValueError(f"-o: expected a folder or a name that ends in {', '.join(SUFFIXES)}, got {output}")
    else:
        only = Path(output)
        if overwrite or _real(only) == _real(inputs[0]) or is_done(only):
            check_free(only, overwrite)

    if folder and into and _real(into) != _real(folder):  # skip the results of an earlier run
        photos = [photo for photo in photos if not _real(photo).is_relative_to(_real(into))]
    jobs = []
    for photo in photos:
        target = only
        if target is None:
            place = into / photo.parent.relative_to(folder) if folder and into else into or photo.parent
            target = place / photo.name
            if photo.suffix.lower() in RAW_SUFFIXES:
                target = target.with_suffix(".tif")
            if suffix or _real(target) == _real(photo):
                target = target.with_stem(target.stem + (suffix or "_enhanced"))
        comparison = target.with_name(f"{target.stem.removesuffix('_enhanced')}_compare.jpg")
        jobs.append(Job(photo, target, comparison if compare else None))

    jobs = _without_results(jobs) if folder else jobs
    if compare:
        shared = Counter(job.comparison for job in jobs)
        jobs = [
            job._replace(comparison=job.target.with_name(f"{job.photo.name}_compare.jpg"))
            if shared[job.comparison] > 1
            else job
            for job in jobs
        ]
        jobs = _without_results(jobs) if folder else jobs  # again, for the new names
    photos_given = {_real(job.photo) for job in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for path in job.outputs:
            other = writers.setdefault(_real(path), job.photo)
            if other is not job.photo:
                raise ValueError(f"{path}: expected the result of one photo there, got {other} and {job.photo}")
            in_place = path is job.target and _real(path) == _real(job.photo)  # allowed with `overwrite`
            if in_place and compare:
                raise ValueError(f"{path}: expected another file than the photo, to compare them, got the photo itself")
            if _real(path) in photos_given and not in_place:
                raise ValueError(f"{path}: expected a result that replaces no other input photo, got one that does")
    return jobs + [Job(Path(error.filename), Path(error.filename), error=error) for error in errors]


def is_done(path: Path) -> bool:
    """Whether an output exists and is complete. An empty or truncated one, as after a power cut, is written again.

    FileExistsError if another kind of file is there, which must not be replaced; OSError for an impossible path."""
    check_free(path, overwrite=True)
    if not path.exists():
        return False
    try:
        return is_complete(path)
    except ValueError:
        raise FileExistsError(f"{path}: exists but is no photo, and overwriting was not requested") from None


def _real(path: Path) -> Path:
    """The path with links resolved. `Path.resolve` fails for a link to itself."""
    return Path(os.path.realpath(path))


def _without_results(jobs: list[Job]) -> list[Job]:
    results = {_real(path) for job in jobs for path in job.outputs if path != job.photo}
    return [job for job in jobs if _real(job.photo) not in results]


# ---- process them


def enhance_files(
    engine: Engine, jobs: Iterable[Job], options: FileOptions, *, workers: int = 1, overwrite: bool = False
) -> Iterator[Outcome]:
    """Process the jobs, `workers` at a time, and yield the outcome of each, in order. Jobs whose results exist and are
    complete (`is_done`) are skipped unless `overwrite` is true, so a run can be resumed by starting it again.

    A failed photo does not stop the run; its outcome has the error. Several runs may share a folder.
    """

    def do(job: Job) -> Outcome:
        try:
            if job.error:
                raise job.error
            wrote, notes = write(job)
            return Outcome(job, skipped=not wrote, notes=notes)
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            error.__traceback__ = error.__cause__ = error.__context__ = None
            return Outcome(job, error, traceback=text)

    def write(job: Job) -> tuple[bool, tuple[str, ...]]:
        """Whether this call wrote any output, and the system's notes."""
        wrote = False
        notes: tuple[str, ...] = ()
        missing = [path for path in job.outputs if overwrite or not is_done(path)]
        for path, replace in [(path, overwrite or path.exists()) for path in missing]:  # if it exists, it is incomplete
            try:
                if path == job.target:
                    if not os.path.isdir(path.parent):
                        make_folder(path.parent)
                    notes = enhance_file(engine, job.photo, path, options, replace)
                else:
                    write_comparison(job.photo, job.target, path, replace)
                wrote = True
            except FileExistsError:
                if not is_done(path):
                    raise
                # Another run has written it in the meantime.
        return wrote, notes

    if workers == 1:
        yield from map(do, jobs)
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(do, jobs)
        finally:
            pool.shutdown(cancel_futures=True)  # on Ctrl-C, finish the photos in progress and start no others
