"""Random crops of a data set's photos, for training.

The crop at a position in training depends on the seed and the position alone, so ranks and resumed runs agree. Every
epoch takes each photo once, in an order of its own.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from fastenh.data.photos import UnreadablePhoto


class Named(Protocol):
    @property
    def name(self) -> str: ...


Entry = TypeVar("Entry", bound=Named)


class Samples(Generic[Entry]):
    """Crops of photos that are identified by their names; subclasses implement `crop`.

    A photo that cannot be read is reported once on stderr, and the next one in the epoch's order takes its place. If
    more than 1 % of the photos cannot be read, ValueError is raised.
    """

    def __init__(self, photos: Sequence[Entry], side: int, seed: int) -> None:
        self.photos, self.side, self.seed = list(photos), side, seed
        self.unreadable: dict[str, str] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.photos)

    def batch(self, positions: Iterable[int]) -> dict[str, Tensor]:
        """The samples at these positions, stacked."""
        return default_collate([self.sample(position) for position in positions])

    def sample(self, position: int) -> dict[str, Tensor]:
        """The sample at a position, which counts through all epochs."""
        epoch, place = divmod(position, len(self.photos))
        order = epoch_order(self.seed, epoch, len(self.photos))
        for attempt in range(len(order)):
            photo = self.photos[order[(place + attempt) % len(order)]]
            if photo.name in self.unreadable:
                continue
            try:
                return self.crop(photo, np.random.default_rng([self.seed, 1, position, attempt]))
            except UnreadablePhoto as error:
                self.skip(photo, error)
        raise AssertionError("more than 1 % unreadable")

    def crop(self, photo: Any, rng: np.random.Generator) -> dict[str, Tensor]:
        """One sample of a photo."""
        raise NotImplementedError

    def skip(self, photo: Entry, error: UnreadablePhoto) -> None:
        """Leaves a photo out from now on, and reports it the first time."""
        with self.lock:
            if photo.name in self.unreadable:
                return
            self.unreadable[photo.name] = str(error)
            print(f"Skipping {error}", file=sys.stderr, flush=True)
            if len(self.unreadable) > len(self.photos) / 100:
                raise ValueError(
                    f"expected at most 1 % of the photos to be unreadable, got {len(self.unreadable)} of "
                    f"{len(self.photos)}; the last: {error}"
                )


@functools.lru_cache(8)
def epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of an epoch, a permutation of range(count)."""
    return np.random.default_rng([seed, 0, epoch]).permutation(count).tolist()


def random_window(height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of 0.6 to 1 of the photo's height and, independently, of its width."""
    rows, columns = (round(side * rng.uniform(0.6, 1.0)) for side in (height, width))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    return slice(top, top + rows), slice(left, left + columns)
