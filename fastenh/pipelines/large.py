"""Pictures larger than memory: read by rows, predicted from sampled pixels, rendered strip by strip."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastenh.engine import Engine, Options
from fastenh.io.encoding import apply_change, apply_orientation, convert, model_input
from fastenh.io.formats.base import Header, Rows
from fastenh.io.photos import row_writer
from fastenh.models.system import Picture
from fastenh.tiles import Place, Tile, tiles

STRIP = 2**20  # pixels in memory at once
LARGE = 2**26  # pixels above which a picture is processed by strips
OVERVIEW = 2048  # pixels a side, at most, of a picture's overview
INVERSE = {6: 8, 8: 6}  # of an orientation; every other is its own inverse


class FilePicture(Picture):
    """A picture in a file, read by rows: upright, as a model's input."""

    def __init__(self, rows: Rows, engine: Engine, bounded: bool = True) -> None:
        self.rows, self.device, self.bounded = rows, engine.device, bounded
        self.header = rows.header
        self.tall = max(STRIP // self.header.width, 1)

    @property
    def size(self) -> tuple[int, int]:
        upright = self.header.orientation < 5
        return (self.header.height, self.header.width) if upright else (self.header.width, self.header.height)

    @functools.cached_property  # the file is read only if it is asked for
    def overview(self) -> Tensor:  # type: ignore[override]
        step = -(-max(self.size) // OVERVIEW)
        # Every k-th pixel is picked as stored, then turned upright.
        rows, columns = (range(0, length, step) for length in (self.header.height, self.header.width))
        picked = self._stored(torch.tensor(rows), torch.tensor(columns))
        return self._model_input(apply_orientation(picked, self.header.orientation))

    def pick(self, rows: Tensor, columns: Tensor) -> Tensor:
        orientation = self.header.orientation
        height, width = self.size
        rows, columns = rows.cpu(), columns.cpu()
        if orientation in (2, 3, 6, 7):
            columns = width - 1 - columns
        if orientation in (3, 4, 7, 8):
            rows = height - 1 - rows
        if orientation < 5:
            return self._model_input(self._stored(rows, columns))
        return self._model_input(self._stored(columns, rows).swapaxes(0, 1))

    def crop(self, tile: Tile) -> Tensor:
        return self.pick(torch.arange(tile.top, tile.bottom), torch.arange(tile.left, tile.right))

    def tiles(self, halo: int = 0, side: int = 512) -> Iterator[tuple[Tensor, Place, tuple[slice, slice]]]:
        """Band after band as the rows are stored, so that one pass decodes the file once."""
        height, width = self.size
        for first in range(0, self.header.height, side):
            last = min(first + side, self.header.height)
            top, left, *_ = self.place_of_rows(first, last)
            down, across = (last - first, width) if self.header.orientation < 5 else (height, last - first)
            band = Tile(top, top + down, left, left + across).grown(halo, height, width)
            pixels = self.crop(band)
            for tile in tiles(down, across, side):
                tile = Tile(top + tile.top, top + tile.bottom, left + tile.left, left + tile.right)
                read = tile.grown(halo, height, width)
                yield pixels[..., *read.within(band)], Place(read.top, read.left, height, width), tile.within(read)

    def _stored(self, ys: Tensor, xs: Tensor) -> np.ndarray:
        """These stored rows and columns, in any order and with repetitions."""
        result = np.empty((len(ys), len(xs), self.header.channels), self.header.dtype)
        for top in range(0, self.header.height, self.tall):
            bottom = min(top + self.tall, self.header.height)
            here = ((ys >= top) & (ys < bottom)).nonzero()[:, 0]
            if len(here):
                first, last = int(ys[here].min()), int(ys[here].max()) + 1
                result[here.numpy()] = self.rows.read(first, last)[(ys[here] - first).numpy()][:, xs.numpy()]
        return result

    def _model_input(self, pixels: np.ndarray) -> Tensor:
        return model_input(pixels, self.header, self.bounded)[None].to(self.device)

    def place_of_rows(self, first: int, last: int) -> Place:
        """The place of the stored rows from `first` up to `last` in the upright picture."""
        orientation, (height, width) = self.header.orientation, self.size
        if orientation < 5:
            return Place(height - last if orientation in (3, 4) else first, 0, height, width)
        return Place(0, width - last if orientation in (6, 7) else first, height, width)


@torch.inference_mode()
def enhance_by_strips(
    engine: Engine, rows: Rows, target: Path, new: Header, options: Options, dither: bool, overwrite: bool
) -> tuple[str, ...]:
    """Retouch a picture into the file `target`, a strip at a time; returns the system's notes. The options say its
    space."""
    old, scale, bounded = rows.header, engine.scale, options.space == "srgb"
    picture = FilePicture(rows, engine, bounded)
    decision = engine.decide(picture, options)
    orientation = 1 if engine.system.colour_map else old.orientation  # colour maps render rows as they are stored
    halo, m = engine.halo(options), engine.system.sides.multiple_of
    tall = max(picture.tall // m, 1) * m
    # In the upright picture strips begin at multiples of m, wherever its first row is stored.
    offset = old.height % m if orientation in (3, 4, 6, 7) else 0
    cuts = [0, *range(tall + offset, old.height, tall), old.height]
    new = new.enlarged(scale)
    with row_writer(target, new, overwrite, like=rows.path) as writer:
        for top, bottom in pairwise(cuts):
            first, last = max(top - halo, 0), min(bottom + halo, old.height)
            strip = rows.read(first, last)
            inner = slice(top - first, bottom - first)
            if options.strength == 0 and scale == 1:
                writer.write(convert(strip[inner], old, new, dither and new.dtype != old.dtype, top))
                continue
            x = model_input(apply_orientation(strip, orientation), old, bounded)[None].to(engine.device)
            after = engine.render(x, options, decision, picture.place_of_rows(first, last))[0].cpu()
            if orientation != 1:
                turned = apply_orientation(after.permute(1, 2, 0).numpy(), INVERSE.get(orientation, orientation))
                after = torch.from_numpy(turned).permute(2, 0, 1)
            how = {"dither": dither, "bounded": bounded}
            if scale == 1:
                writer.write(apply_change(strip[inner], after[:, inner], old, new, top=top, **how))
            else:  # pixels beyond the strip's edges matter
                pixels = apply_change(strip, after, old, new, top=first, **how)
                writer.write(pixels[scale * inner.start : scale * inner.stop])
    return decision.notes
