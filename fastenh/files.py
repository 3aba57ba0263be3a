"""Photo files through an `Enhancer`: colours, depth, and pictures larger than memory.

Whatever the file's colours are, models see sRGB in [0, 1]. With x the file's numbers, F the way from them to sRGB and B
the way back (`fastenh.io.colour.ColourSpace`), both in floats that have no bounds:

    s = F(x)        c = s within [0, 1]        out = x + B(s + model(c) − c) − B(s)

so that colours outside sRGB, and light above white in OpenEXR and float TIFF, go around the model as what they are more
than c; and where the model changes nothing, neither does the way there and back. Alpha and further channels stay.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastenh.atomic import check_free, make_folder
from fastenh.compare import write_comparison
from fastenh.finish import HALO, finish
from fastenh.io.colour import bands, within
from fastenh.io.complete import is_complete
from fastenh.io.header import RAW_SUFFIXES, SUFFIXES, Header, format_of
from fastenh.io.photos import (
    BY_WHOLE,
    Photo,
    all_rows,
    from_float,
    multiplied,
    planes,
    read_photo,
    restored,
    row_writer,
    stored_as,
    straight,
    turned,
    write_photo,
)
from fastenh.ops import op

if TYPE_CHECKING:
    from fastenh.enhance import Enhancer
    from fastenh.io.rows import Rows

STRIP = 2**20  # pixels of a picture by strips that are in memory at once
LARGE = 2**26  # pixels beyond which a picture goes by strips, where the model lets it
SEEN = 2048  # pixels a side of what a model sees of such a picture, at most


@dataclass(frozen=True)
class Options:
    """How a photo is retouched and written; `Enhancer.enhance` and `fastenh.io.write_photo` say what each does."""

    strength: float = 1.0
    denoise: bool = False
    protect_highlights: bool = False
    dither: bool = False
    quality: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength: expected a number from 0 to 1, got {self.strength}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"quality: expected 1 to 100, got {self.quality}")


class Job(NamedTuple):
    """One photo to do: where it is, where the result goes, and the before/after picture if one is wanted. A subfolder
    that cannot be listed is a job that has failed, with its `error`."""

    photo: Path
    target: Path
    comparison: Path | None = None
    error: OSError | None = None

    @property
    def outputs(self) -> list[Path]:
        return [self.target, self.comparison] if self.comparison else [self.target]


class Done(NamedTuple):
    """What became of a job: an error, or nothing to say, or that the result had been there already.

    The error has no traceback of its own, which would keep pixels and open files: `traceback` is that as text."""

    job: Job
    error: Exception | None = None
    skipped: bool = False
    traceback: str = ""


# ---- which files


def find(folder: Path, recursive: bool = False) -> tuple[list[Path], list[OSError]]:
    """The photos in a folder, by their names, in order; those below it too if `recursive`. Hidden ones are left out.
    And an error for each folder that cannot be listed."""
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
    """Which photo goes where; [] for a folder without photos. ValueError where it cannot be told.

    `inputs` are files, or one folder. `output` names a folder, which may be new, or, for one photo, a file, which must
    not be there, or FileExistsError is raised, unless `overwrite` is true or it was cut short and is another than the
    photo. Without it a folder's photos go to `enhanced` in it, and others beside where they are, with `suffix`,
    "_enhanced", in their names. In other folders names stay, unless `suffix` is given. RAW becomes TIFF. `compare` adds
    a comparison of each: of a.jpg a_compare.jpg, or where that would be another's too (a.jpg and a.cr2)
    a.jpg_compare.jpg. Of a folder, what is there as the result of another photo in it is no photo to do. Links count as
    the files that they point to.
    """
    folder = inputs[0] if len(inputs) == 1 and os.path.isdir(inputs[0]) else None
    for path in [] if folder else inputs:
        if os.path.isdir(path):
            raise ValueError(f"expected files, or one folder alone, got the folder {path} among others")
    if suffix is not None and (not suffix or "/" in suffix):
        raise ValueError(f"suffix: expected a few letters to add to names, got {suffix!r}")
    photos, errors = find(folder, recursive) if folder else (inputs, [])
    into: Path | None = None  # the folder to write to; None is beside each photo
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
        check_free(only, overwrite or not (_real(only) == _real(inputs[0]) or is_done(only)))

    if folder and into and _real(into) != _real(folder):  # what an earlier run wrote there is no photo to do
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
        jobs = _without_results(jobs) if folder else jobs  # those of the new names
    given = {_real(job.photo) for job in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for path in job.outputs:
            other = writers.setdefault(_real(path), job.photo)
            if other is not job.photo:
                raise ValueError(f"{path}: expected one photo to be written there, got {other} and {job.photo}")
            in_place = path is job.target and _real(path) == _real(job.photo)  # as asked for, with overwrite
            if in_place and compare:
                raise ValueError(f"{path}: expected an output beside the photo to compare it with, got the photo")
            if _real(path) in given and not in_place:
                raise ValueError(f"{path}: expected outputs apart from the photos given, got one of them")
    return jobs + [Job(Path(error.filename), Path(error.filename), error=error) for error in errors]


def is_done(path: Path) -> bool:
    """Whether an output is there, as a whole: one that is empty or cut short, as after a power cut, is still to do.

    FileExistsError where something else is there, which is not ours to replace; OSError where no file can be."""
    check_free(path, overwrite=True)
    if not path.exists():
        return False
    try:
        return is_complete(path)
    except ValueError:
        raise FileExistsError(f"{path}: already there, as no photo, and overwrite was not asked for") from None


def _real(path: Path) -> Path:
    """Without links; `Path.resolve` fails for a link to itself."""
    return Path(os.path.realpath(path))


def _without_results(jobs: list[Job]) -> list[Job]:
    results = {_real(path) for job in jobs for path in job.outputs if path != job.photo}
    return [job for job in jobs if _real(job.photo) not in results]


# ---- what is done with them


def retouch_files(
    enhancer: Enhancer, jobs: Iterable[Job], options: Options, *, workers: int = 1, overwrite: bool = False
) -> Iterator[Done]:
    """Process the jobs, `workers` at a time, and yield the outcome of each, in order. Jobs whose results exist and are
    complete (`is_done`) are skipped unless `overwrite` is true, so a run can be resumed by starting it again.

    A photo that fails does not stop the run; its outcome has the error. Several runs may share a folder.
    """

    def do(job: Job) -> Done:
        try:
            if job.error:
                raise job.error
            return Done(job, skipped=not write(job))
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            error.__traceback__ = error.__cause__ = error.__context__ = None
            return Done(job, error, traceback=text)

    def write(job: Job) -> bool:
        """Whether anything was left to write."""
        wrote = False
        missing = [path for path in job.outputs if overwrite or not is_done(path)]
        for path, replace in [(path, overwrite or path.exists()) for path in missing]:  # that exists is cut short
            try:
                if path == job.target:
                    make_folder(path.parent)
                    retouch_file(enhancer, job.photo, path, options, replace)
                else:
                    write_comparison(job.photo, job.target, path, replace)
                wrote = True
            except FileExistsError:
                if not is_done(path):
                    raise
                # Another run was faster.
        return wrote

    if workers == 1:
        yield from map(do, jobs)
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(do, jobs)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C ends the photos in hand, and begins no other


def retouch_file(enhancer: Enhancer, source: Path, target: Path, options: Options, overwrite: bool = False) -> None:
    """Retouches one file into another, whole or not at all. A new file gets the photo's permissions.

    A PNG, TIFF or OpenEXR of more than 2²⁶ pixels goes by strips where the model maps colours alike all over the
    picture (`pointwise`), and then takes a few hundred megabytes whatever its size, and what a TIFF stores as one piece
    (a row of tiles, a compressed strip): the model decides by every k-th pixel, 2048 a side at most, and pixels lie as
    they did, with their orientation tag. One on its side, to be written in another format, is turned in memory.
    """
    format = format_of(source)
    if format in BY_WHOLE:
        photo = read_photo(source)
    else:
        from fastenh.io.rows import Rows

        rows = Rows(source, format)
        old, new = rows.header, stored_as(rows.header, target)
        can = new.format not in BY_WHOLE and (old.orientation == 1 or new.format == old.format)
        if can and old.height * old.width > LARGE and getattr(enhancer.model, "pointwise", False):
            return _retouch_by_strips(enhancer, rows, target, new, options, overwrite)
        photo = all_rows(rows)
    header = stored_as(photo.header, target)
    write_photo(retouch_photo(enhancer, photo, options, header), target, options.quality, overwrite, like=source)


@torch.inference_mode()
def retouch_photo(enhancer: Enhancer, photo: Photo, options: Options, header: Header | None = None) -> Photo:
    """The photo retouched, stored as `header` says, or as it was."""
    old, new = photo.header, header or photo.header
    if options.strength == 0:
        return Photo(new, restored(photo.pixels, old, new, options.dither and new.dtype != old.dtype))

    def model(seen: Tensor) -> Tensor:
        finishing = {"denoise": options.denoise, "protect_highlights": options.protect_highlights}
        return enhancer.enhance(seen, options.strength, **finishing)

    plain = old.colour_space.is_srgb and old.dtype.kind == "u" and not old.premultiplied
    if plain and (new.dtype, new.linear) == (old.dtype, old.linear) and not options.dither:
        pixels = photo.pixels.copy()
        pixels[..., :3] = model(torch.from_numpy(pixels[..., :3]).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        return Photo(new, pixels)

    retouched = model(_seen(photo.pixels, old))
    return Photo(new, _back(photo.pixels, retouched, old, new, options.dither))


@torch.inference_mode()
def _retouch_by_strips(
    enhancer: Enhancer, rows: Rows, target: Path, new: Header, options: Options, overwrite: bool
) -> None:
    old = rows.header
    height, width = old.height, old.width
    tall = max(STRIP // width, 1)
    tops = range(0, height, tall)

    step = -(-max(height, width) // SEEN)
    few = [rows.read(top, min(top + tall, height))[-top % step :: step, ::step].copy() for top in tops]
    image = _seen(turned(np.concatenate(few), old.orientation), old)[None]
    look = enhancer._look(image.to(enhancer.device))

    margin = HALO if options.denoise else 0  # rows around a strip that smoothing looks at
    with row_writer(target, new, overwrite, like=rows.path) as writer:
        for top in tops:
            first, last = max(top - margin, 0), min(top + tall + margin, height)
            strip = rows.read(first, last)
            inner = slice(top - first, min(top + tall, height) - first)
            if options.strength == 0:
                writer.write(restored(strip[inner], old, new, options.dither and new.dtype != old.dtype, top))
                continue
            seen = _seen(strip, old)[None].to(enhancer.device)
            after = enhancer._retouch(seen, options.strength, look)
            if options.denoise or options.protect_highlights:
                after = finish(seen, after, noise=options.denoise, highlights=options.protect_highlights)
            writer.write(_back(strip[inner], after[0, :, inner].cpu(), old, new, options.dither, top))


def _seen(pixels: np.ndarray, header: Header) -> Tensor:
    """(3, H, W): what a model sees of these rows."""
    x, space = planes(np.ascontiguousarray(pixels)), header.colour_space
    seen = torch.from_numpy(np.empty((3, *x.shape[1:]), np.float32))  # in large pages, which PyTorch does not ask for
    if not header.premultiplied:
        return space.seen(x[: header.colours], seen)
    for band in bands(x):
        space.seen(straight(op.to_float(x[:, band]), header)[: header.colours], seen[:, band])
    return seen


def _back(pixels: np.ndarray, retouched: Tensor, old: Header, new: Header, dither: bool, top: int = 0) -> np.ndarray:
    """What a model made of rows, from `top` on, stored as `new` says; `pixels` are those rows as they were."""
    x, colours, space = planes(np.ascontiguousarray(pixels)), old.colours, old.colour_space
    result = np.empty(pixels.shape, new.dtype)
    if (old.linear, old.premultiplied) == (new.linear, False) and not (dither or new.premultiplied):
        out = planes(result)
        space.back(x[:colours], retouched, out[:colours])
        for band in bands(x) if old.channels > colours else ():
            out[colours:, band] = op.from_float(op.to_float(x[colours:, band]), out.dtype)
        return result
    for band in bands(x):
        numbers = straight(op.to_float(x[:, band]), old)
        if new.linear == old.linear:
            after = space.back(numbers[:colours], retouched[:, band])
        else:
            encoded = space.to_srgb(numbers[:colours])
            after = new.colour_space.from_srgb(encoded + (retouched[:, band] - within(encoded)))
        numbers = multiplied(torch.cat([after, numbers[colours:]]), new)
        result[band] = from_float(numbers, new.dtype, dither, top + band.start)
    return result
