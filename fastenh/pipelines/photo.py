"""Retouch one photo: convert its pixels to a model's input, run the engine, convert back; in memory or by strips."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastenh.engine import Engine, Options
from fastenh.io.encoding import apply_change, convert, model_input
from fastenh.io.formats.base import Header
from fastenh.io.formats.registry import FORMATS
from fastenh.io.photos import Photo, all_rows, in_rgb, open_photo, stored_as, write_stored
from fastenh.pipelines.large import LARGE, enhance_by_strips


@dataclass(frozen=True)
class FileOptions(Options):
    """How a photo is retouched and written: `dither` and `quality` as `fastenh.io.write_photo` documents them;
    `keep_times` gives results the modification and access time of their photos."""

    dither: bool = False
    quality: int | None = None
    keep_times: bool = False
    RANGES = Options.RANGES | {"quality": ("1 to 100", 1, 100)}

    def for_photo(self, engine: Engine, header: Header) -> FileOptions:
        """The options with a `space`, if none is given: "file" for linear light and floats in a system without bounds,
        else "srgb"."""
        own = not engine.system.bounded and (header.linear or header.dtype.kind == "f")
        return self if self.space else replace(self, space="file" if own else "srgb")


def enhance_file(
    engine: Engine, source: Path, target: Path, options: FileOptions, overwrite: bool = False
) -> tuple[str, ...]:
    """Retouch one file into another, atomically; returns the notes of reading and of the system. A new file gets the
    photo's permissions.

    A PNG, TIFF or OpenEXR of more than 2²⁶ pixels is processed by strips if the system can render parts of an image.
    This takes a few hundred megabytes of memory for any size, plus the largest piece that a TIFF stores as a whole (a
    row of tiles, a compressed strip). Pixels keep their stored order and orientation tag. A rotated photo that changes
    its format is turned upright in memory instead.
    """
    times = os.stat(source) if options.keep_times else None  # before reading, which changes the access time
    notes = _enhance_file(engine, source, target, options, overwrite)
    if times:  # after the rename: a temporary file with an old time would count as abandoned
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    return notes


def _enhance_file(engine: Engine, source: Path, target: Path, options: FileOptions, overwrite: bool) -> tuple[str, ...]:
    photo = open_photo(source)
    if options.strength and not engine.system.keeps_gray:
        photo = in_rgb(photo)
    if not isinstance(photo, Photo):
        old, new = photo.header, stored_as(photo.header, target)
        can = FORMATS[new.format].by_rows and (old.orientation == 1 or new.format == old.format) and engine.tileable
        if can and old.height * old.width * engine.scale**2 > LARGE:
            options = options.for_photo(engine, old)
            return new.notes + enhance_by_strips(engine, photo, target, new, options, options.dither, overwrite)
        photo = all_rows(photo)
    after, notes = enhance_photo(engine, photo, options, stored_as(photo.header, target))
    write_stored(after, target, options.quality, overwrite, source)
    return after.header.notes + notes


@torch.inference_mode()
def enhance_photo(
    engine: Engine, photo: Photo, options: FileOptions, header: Header | None = None
) -> tuple[Photo, tuple[str, ...]]:
    """The retouched photo, stored as `header` describes or else as before, and the system's notes."""
    if options.strength and not engine.system.keeps_gray:
        photo = in_rgb(photo)
    options = options.for_photo(engine, photo.header)
    old, new = photo.header, header or photo.header
    if options.strength == 0 and engine.scale == 1:
        return Photo(new, convert(photo.pixels, old, new, options.dither and new.dtype != old.dtype)), ()

    bounded, same = options.space == "srgb", (new.dtype, new.encoding) == (old.dtype, old.encoding)
    numbers = old.colour_space.is_srgb or (old.colours == 3 and not bounded)  # those of the file
    plain = numbers and old.dtype.kind == "u" and not old.premultiplied
    if plain and same and engine.scale == 1 and not options.dither:  # integers need no conversion to floats
        pixels = photo.pixels.copy()
        colours = torch.from_numpy(pixels[..., :3]).permute(2, 0, 1)[None]
        after, notes = engine.enhance(colours, options)
        colours.copy_(after)
        return Photo(new, pixels), notes
    after, notes = engine.enhance(model_input(photo.pixels, old, bounded)[None], options)
    pixels = apply_change(photo.pixels, after[0], old, new, dither=options.dither, bounded=bounded)
    return Photo(new.enlarged(engine.scale) if engine.scale > 1 else new, pixels), notes
