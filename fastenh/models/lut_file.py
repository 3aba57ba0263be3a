"""A LUT file as a system, a model baked into one, and any map of colours sampled as a 3D LUT."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastenh import ops
from fastenh.models.lut3d import ImageAdaptiveLUT, identity_lut
from fastenh.models.system import Picture, System
from fastenh.ops.op import check_image, from_float, to_float
from fastenh.tiles import Place

Domain = tuple[tuple[float, float, float], tuple[float, float, float]]  # the lowest R, G, B, and the highest
UNIT: Domain = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

SHAPER_SIZES = (2, 65536)
TABLE_SIZES = (2, 256)

BAND = 2**20  # pixels that are worked on at once


class LutFile(System):
    """The content of a LUT file: out = table(shaper(image)), (B, 3, H, W) → the same shape and dtype.

    Args:
        table: a 3D LUT, (3, D, D, D), axes (C, B, G, R), 2 <= D <= 256; or None.
        shaper: a 1D LUT for each of R, G, B, (3, S), 2 <= S <= 65536; or None. A 1D LUT file is a shaper alone.
        table_domain, shaper_domain: the input colours of the first and the last entry, ((R, G, B), (R, G, B)).
        title: what the file calls itself.
        interpolation: of the table, "tetrahedral" or "trilinear". A shaper's is linear.

    A value x has the position (x − lowest) / (highest − lowest) in its domain, clamped to [0, 1]: outside the domain
    the border's colour applies. Entries are float32 of any value. Float results are not clamped; uint8 and uint16, at
    full scale, are clamped and rounded to nearest.

    Raises ValueError, in one line, for tensors of other sizes, for NaN or infinity, and for an empty domain.
    """

    reach = 0
    colour_map = True

    table: Tensor | None
    shaper: Tensor | None

    def __init__(
        self,
        table: Tensor | None = None,
        shaper: Tensor | None = None,
        *,
        table_domain: Domain = UNIT,
        shaper_domain: Domain = UNIT,
        title: str = "",
        interpolation: str = "tetrahedral",
    ) -> None:
        super().__init__()
        if table is None and shaper is None:
            raise ValueError("expected a 3D LUT, a 1D LUT or both, got neither")
        if table is not None:
            if table.ndim != 4 or table.shape != (3, *[table.shape[3]] * 3):
                raise ValueError(f"expected a 3D LUT of shape (3, D, D, D), got {tuple(table.shape)}")
            _check_size("D", table.shape[3], TABLE_SIZES)
        if shaper is not None:
            if shaper.ndim != 2 or shaper.shape[0] != 3:
                raise ValueError(f"expected a 1D LUT of shape (3, S), got {tuple(shaper.shape)}")
            _check_size("S", shaper.shape[1], SHAPER_SIZES)
        for name, entries, domain in (("table", table, table_domain), ("shaper", shaper, shaper_domain)):
            if entries is not None:
                entries = entries.detach().float().contiguous()
                if not entries.isfinite().all():
                    raise ValueError(f"expected finite numbers in the {name}, got NaN or infinity")
            check_domain(domain)
            self.register_buffer(name, entries)
        self.table_domain, self.shaper_domain = table_domain, shaper_domain
        self.title = title
        self.interpolation = interpolation
        self.format = ""  # of the file it was read from, in words

    @property
    def domain(self) -> Domain:
        """Of the colours that go in."""
        return self.table_domain if self.shaper is None else self.shaper_domain

    @property
    def contents(self) -> str:
        """In words, such as "1D LUT of 1024 entries, then 3D LUT of 33×33×33"."""
        parts = []
        for kind, entries, domain in (("1D", self.shaper, self.shaper_domain), ("3D", self.table, self.table_domain)):
            if entries is not None:
                size = "×".join(map(str, entries.shape[1:])) + (" entries" if kind == "1D" else "")
                over = "" if domain == UNIT else f" over {domain_in_words(domain)}"
                parts.append(f"{kind} LUT of {size}{over}")
        return ", then ".join(parts)

    def extra_repr(self) -> str:
        return f"{self.title!r}, {self.contents}" if self.title else self.contents

    @property
    def hald_level(self) -> int | None:
        """L if a Hald CLUT can hold it: if it is a 3D LUT alone, of L² vertices over [0, 1]; else None."""
        if self.table is None or self.shaper is not None or self.table_domain != UNIT:
            return None
        level = math.isqrt(self.table.shape[1])
        return level if level > 1 and level**2 == self.table.shape[1] else None

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        """`out` may be `image` itself."""
        check_image("LutFile", image)
        if self.table is not None and self.shaper is None and self.table_domain == UNIT:
            return ops.lut_transform(image, self.table[None], interpolation=self.interpolation, out=out)
        out, rows = torch.empty_like(image) if out is None else out, max(1, BAND // image.shape[3])
        for b in range(len(image)):
            for top in range(0, image.shape[2], rows):
                x = to_float(image[b : b + 1, :, top : top + rows])
                if self.shaper is not None:
                    x = _look_up(_placed(x, self.shaper_domain), self.shaper.to(x.dtype))
                if self.table is not None:
                    x = _placed(x, self.table_domain)
                    x = ops.lut_transform(x, self.table[None], interpolation=self.interpolation)
                out[b : b + 1, :, top : top + rows] = from_float(x, image.dtype)
        return out


@torch.no_grad()
def sample(look: Callable[[Tensor], Tensor], size: int, domain: Domain = UNIT, title: str = "") -> LutFile:
    """A 3D LUT sampled from `look`, any map of colours (B, 3, H, W) → the same shape, at `size`³ vertices."""
    _check_size("size", size, TABLE_SIZES)
    low, high = (torch.tensor(end)[:, None, None, None] for end in domain)
    vertices = low + (high - low) * identity_lut(size)
    table = look(vertices.reshape(1, 3, size, size * size)).reshape(vertices.shape)
    return LutFile(table, table_domain=domain, title=title)


@torch.no_grad()
def bake(model: nn.Module, image: Tensor, size: int | None = None, **conditions: Any) -> LutFile:
    """A model's retouch of one image, (1, 3, H, W), as a 3D LUT of `size`, unclamped.

    An `ImageAdaptiveLUT` gives its own table, exactly, if `size` is its own, which is the default, and interpolation
    trilinear. Another model that maps equal colours alike is sampled at the vertices, 33³ by default.

    Raises ValueError for other models, whose results depend on where a pixel is, so that no LUT can represent them.
    """
    if not isinstance(model, System) or not model.colour_map:
        raise ValueError(
            "expected a model that maps colours alike all over a photo, "
            f"got {type(model).__name__}, whose result for a colour depends on its position or neighbours"
        )
    system, picture, values = model, Picture(image), model.check_conditions(conditions)
    params = system.predict(picture, **values)
    if isinstance(system, ImageAdaptiveLUT) and size in (None, params[0].shape[-1]):
        return LutFile(params[0][0], interpolation="trilinear")
    local = system.prepare(picture, params, **values).local

    def render(colours: Tensor) -> Tensor:
        return system.render(colours.to(image.device), params, local, Place(0, 0, *colours.shape[2:]))

    return sample(render, 33 if size is None else size)


def _check_size(name: str, size: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= size <= bounds[1]:
        raise ValueError(f"expected {name} from {bounds[0]} to {bounds[1]}, got {size}")


def check_domain(domain: Domain) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.array(domain, np.float32)
        if not (np.isfinite(low).all() and ((high - low) > 0).all() and np.isfinite(high - low).all()):
            raise ValueError(f"expected a domain from lower to higher numbers, got {domain_in_words(domain)}")


def domain_in_words(domain: Domain) -> str:
    """One range, or one for each channel."""
    ranges = [f"{low:g} to {high:g}" for low, high in zip(*domain, strict=True)]
    return ranges[0] if len(set(ranges)) == 1 else ", ".join(ranges)


def _placed(x: Tensor, domain: Domain) -> Tensor:
    """The position of each value in its domain, 0 to 1."""
    if domain == UNIT:
        return x
    low, high = (x.new_tensor(end)[:, None, None] for end in domain)
    return (x - low) / (high - low)


def _look_up(x: Tensor, curves: Tensor) -> Tensor:
    """Each channel through its row of `curves`, linear between entries. NaN stays NaN."""
    size = curves.shape[1]
    position = x.clamp(0, 1) * (size - 1)
    cell = position.detach().nan_to_num(0.0).floor().clamp(max=size - 2)
    index = (cell.int() + size * torch.arange(3, dtype=torch.int32, device=x.device)[:, None, None]).flatten()
    low, high = (curves.flatten().index_select(0, index + step).view_as(x) for step in (0, 1))
    return low.lerp(high, position - cell)
