"""LUT files as systems. Also bakes a model, and samples any map of colours, as a 3D LUT."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastenh.models.lut3d import ImageAdaptiveLUT, identity_lut
from fastenh.models.lut_stages import (
    SHAPER_SIZES,
    TABLE_SIZES,
    UNIT,
    Domain,
    Matrix,
    Stage,
    Table1D,
    Table3D,
    check_size,
)
from fastenh.models.system import Picture, System
from fastenh.ops.op import check_image, from_float, to_float
from fastenh.tiles import Place

BAND = 2**20  # pixels processed at once
NEUTRAL = 1 / 510  # half an 8-bit level: a colour whose channels differ by less counts as gray
INTERPOLATIONS = ("tetrahedral", "trilinear")
LEGAL: Domain = ((16 / 255,) * 3, (235 / 255,) * 3)  # video black and white in legal range


class LutFile(System):
    """A LUT file: applies its stages in order, (B, 3, H, W) → the same shape and dtype.

    Args:
        table: a 3D LUT, (3, D, D, D), axes (C, B, G, R), 2 <= D <= 256; or None.
        shaper: a 1D LUT for each of R, G, B, (3, S), 2 <= S <= 65536, applied before the table; or None.
        table_domain, shaper_domain: the input colours of the first and the last entry, ((R, G, B), (R, G, B)).
        title: the title in the file.
        interpolation: between vertices of the table, "tetrahedral" or "trilinear". The shaper is interpolated linearly.
        stages: any stages (`fastenh.models.lut_stages`). They replace every argument above except `title`.

    The system is unbounded: it maps the numbers of a file, also those below 0 and above 1. Tables clamp their input to
    their domain. Float results are not clamped. uint8 and uint16 are at full scale; their results are clamped and
    rounded to nearest.

    Raises a one-line ValueError for tensors of other sizes, for NaN or infinity, and for an empty domain.
    """

    reach = 0
    colour_map = True
    bounded = False

    def __init__(
        self,
        table: Tensor | None = None,
        shaper: Tensor | None = None,
        *,
        table_domain: Domain = UNIT,
        shaper_domain: Domain = UNIT,
        title: str = "",
        interpolation: str = "tetrahedral",
        stages: Sequence[Stage] | None = None,
    ) -> None:
        super().__init__()
        if stages is None:
            stages = [] if shaper is None else [Table1D(shaper, shaper_domain)]
            stages += [] if table is None else [Table3D(table, table_domain, interpolation)]
            if not stages:
                raise ValueError("expected a 3D LUT, a 1D LUT or both, got neither")
        self.chain = nn.ModuleList(stages)
        self.title = title
        self.format = ""  # describes the format of the file, for `lut info`
        self.comments: tuple[str, ...] = ()  # the comment lines of the file
        self.notes: tuple[str, ...] = ()  # messages for the user, such as the error of an approximation
        self.keeps_gray = self._keeps_gray()

    @property
    def stages(self) -> list[Stage]:
        return [stage for stage in self.chain if isinstance(stage, Stage)]

    @property
    def shaper(self) -> Tensor | None:
        """The entries of the first stage, (3, S), if it is a 1D table; else None."""
        first = self.stages[0] if self.stages else None
        return first.entries if isinstance(first, Table1D) else None

    @property
    def table(self) -> Tensor | None:
        """The entries of the last stage, (3, D, D, D), if it is a 3D table; else None."""
        last = self.stages[-1] if self.stages else None
        return last.entries if isinstance(last, Table3D) else None

    @property
    def simple(self) -> bool:
        """Whether the stages are a 1D table, a 3D table, or a 1D table before a 3D table."""
        return [type(stage) for stage in self.stages] in ([Table1D], [Table3D], [Table1D, Table3D])

    @property
    def unit_table(self) -> Tensor | None:
        """`table` if it is the only stage and its domain is 0 to 1; else None."""
        return self.table if len(self.stages) == 1 and self.domain == UNIT else None

    @property
    def domain(self) -> Domain:
        """The domain of the first stage; 0 to 1 if that stage has none or there are no stages."""
        return (self.stages[0].domain if self.stages else None) or UNIT

    @property
    def table_domain(self) -> Domain:
        """The domain of the last stage; 0 to 1 if that stage has none or there are no stages."""
        return (self.stages[-1].domain if self.stages else None) or UNIT

    @property
    def interpolation(self) -> str:
        """The interpolation of the first 3D table. Setting it sets it for all 3D tables."""
        tables = [stage for stage in self.stages if isinstance(stage, Table3D)]
        return tables[0].interpolation if tables else "tetrahedral"

    @interpolation.setter
    def interpolation(self, value: str) -> None:
        for stage in self.stages:
            if isinstance(stage, Table3D):
                stage.interpolation = value

    @property
    def contents(self) -> str:
        """A description, such as "1D LUT of 1024 entries, then 3D LUT of 33×33×33"."""
        return ", then ".join(stage.contents for stage in self.stages) or "nothing"

    def extra_repr(self) -> str:
        return f"{self.title!r}, {self.contents}" if self.title else self.contents

    @property
    def hald_level(self) -> int | None:
        """The level L >= 2 of the Hald CLUT that holds this LUT: `unit_table` has L² vertices a side. None if there is
        no such CLUT."""
        size = 0 if self.unit_table is None else self.unit_table.shape[1]
        level = math.isqrt(size)
        return level if level > 1 and level**2 == size else None

    @torch.no_grad()
    def difference(self, look: Callable[[Tensor], Tensor]) -> float:
        """The largest absolute difference, in any channel, from another map of colours, (B, 3, H, W) → the same shape.
        It is measured in the whole domain: at random colours, near the lowest values, where most curves are steep, and
        at the centres of the table's cells."""
        random, count = torch.Generator().manual_seed(0), (3, 2**17)
        cells = max([stage.entries.shape[1] for stage in self.stages if isinstance(stage, Table3D)], default=33) - 1
        anywhere = torch.rand(count, generator=random)
        centres = (torch.randint(cells, count, generator=random) + 0.5) / cells
        positions = torch.cat([anywhere, anywhere**4, centres, identity_lut(9).flatten(1)], 1)
        low, high = (torch.tensor(end)[:, None] for end in self.domain)
        colours = (low + (high - low) * positions)[None, :, None].to(self._device)
        return (self(colours) - look(colours)).abs().max().item()

    def inverse(self) -> LutFile:
        """Returns the inverse LUT. OpenColorIO inverts all stages except matrices. If the inverse restores colours to
        worse than 1e-4, its notes give the error.

        Raises ValueError if a stage has no inverse, ModuleNotFoundError without OpenColorIO."""
        stages = [step for stage in reversed(self.stages) for step in stage.inverse()]
        inverse = LutFile(title=self.title, stages=stages)
        colours = _spread(33, self.domain).to(self._device)
        error = (inverse(self(colours)) - colours).abs()
        inverse.format = f"the inverse of {self.format}" if self.format else ""
        inverse.notes = self.notes
        if error.max() > 1e-4:
            inverse.notes += (
                f"the inverse restores colours to within {error.max():.2g}, {error.mean():.2g} on average",
            )
        return inverse

    def in_legal_range(self) -> LutFile:
        """Returns this LUT with scaling before and after it: full-range input becomes legal-range video numbers (black
        16/255, white 235/255) for the LUT, and its results become full-range again."""
        stages = [Matrix.between(UNIT, LEGAL), *self.stages, Matrix.between(LEGAL, UNIT)]
        return _describe_as(self, LutFile(title=self.title, stages=stages))

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        """Returns the mapped image, in its shape and dtype. `out` may be `image` itself."""
        check_image("LutFile", image)
        passes = self._passes()
        if self.simple:
            return passes[0](image, out=out)
        out, rows = torch.empty_like(image) if out is None else out, max(1, BAND // image.shape[3])
        for b in range(len(image)):
            for top in range(0, image.shape[2], rows):
                x = to_float(image[b : b + 1, :, top : top + rows])
                for map_colours in passes:
                    x = map_colours(x)
                out[b : b + 1, :, top : top + rows] = from_float(x, image.dtype)
        return out

    def _passes(self) -> list[Callable[..., Tensor]]:
        """The passes over the image: one per stage, but one for a 1D table and the 3D table after it."""
        passes: list[Callable[..., Tensor]] = []
        for stage in self.stages:
            if isinstance(stage, Table3D) and passes and isinstance(passes[-1], Table1D):
                passes[-1] = partial(stage, shaper=passes[-1])
            else:
                passes.append(stage)
        return passes

    @property
    def _device(self) -> torch.device:
        return next(self.buffers(), torch.empty(0)).device

    @torch.no_grad()
    def _keeps_gray(self) -> bool:
        low, high = (torch.tensor(end, device=self._device) for end in self.domain)
        ramp = torch.linspace(low.min().item(), high.max().item(), 1025, device=self._device).expand(1, 3, 1, -1)
        result = self(ramp)[0, :, 0]
        return bool((result.amax(0) - result.amin(0) <= NEUTRAL * result.abs().amax(0).clamp_min(1)).all())


def chain(luts: Sequence[LutFile]) -> LutFile:
    """Returns one LUT that applies several in order."""
    if len(luts) == 1:
        return luts[0]
    joined = LutFile(stages=[stage for lut in luts for stage in lut.stages])
    joined.notes = tuple(note for lut in luts for note in lut.notes)
    return joined


@torch.no_grad()
def as_tables(lut: LutFile) -> LutFile:
    """Returns the LUT as a 1D table, a 3D table, or a 1D table before a 3D table: most formats hold nothing else.

    Other LUTs are sampled. The stages before the first one that mixes channels become a 1D table of 65536 entries; the
    rest becomes a 3D table, with as many vertices as the first 3D table among them, or 65 a side. If the error exceeds
    1e-5, the notes give it."""
    if lut.simple:
        return lut
    first = next((index for index, stage in enumerate(lut.stages) if stage.mixes), len(lut.stages))
    before, after = LutFile(stages=lut.stages[:first]), LutFile(stages=lut.stages[first:])
    tables: list[Stage] = []
    domain = lut.domain
    if before.stages or not after.stages:
        shaper = _as_shaper(before)
        low, high = shaper.entries.min().item(), shaper.entries.max().item()
        tables, domain = [shaper], ((low,) * 3, (max(high, low + 1e-6),) * 3)
    if after.stages:
        size = next((stage.entries.shape[1] for stage in after.stages if isinstance(stage, Table3D)), 65)
        tables += sample(after, size, after.stages[0].domain or domain).stages
    result = _describe_as(lut, LutFile(title=lut.title, stages=tables))
    colours = torch.cat([_spread(47, lut.domain), _spread(47, lut.domain, 4)])  # more of them near the lowest values
    error = (result(colours) - lut(colours)).abs().max().item()
    result.notes += (f"sampled as {result.contents}; differs by up to {error:.2g}",) if error > 1e-5 else ()
    return result


def _as_shaper(lut: LutFile) -> Table1D:
    """A LUT whose stages do not mix channels, as a 1D table."""
    if len(lut.stages) == 1 and isinstance(lut.stages[0], Table1D):
        return lut.stages[0]
    low, high = (torch.tensor(end)[:, None] for end in lut.domain)
    ramps = low + (high - low) * torch.linspace(0, 1, SHAPER_SIZES[1])
    return Table1D(lut(ramps[None, :, None])[0, :, 0], lut.domain)


@torch.no_grad()
def sample(
    look: Callable[[Tensor], Tensor],
    size: int,
    domain: Domain = UNIT,
    title: str = "",
    interpolation: str | None = None,
) -> LutFile:
    """Returns a 3D LUT of `size`³ vertices, sampled from `look`, any map of colours (B, 3, H, W) → the same shape.

    `interpolation` defaults to that of `look` if `look` is a LUT with a 3D table, else to the one closer to `look`.

    Raises ValueError unless 2 <= size <= 256."""
    check_size("size", size, TABLE_SIZES)
    lut = LutFile(look(_spread(size, domain)).reshape(3, size, size, size), table_domain=domain, title=title)
    if interpolation is None and isinstance(look, LutFile) and any(isinstance(step, Table3D) for step in look.stages):
        interpolation = look.interpolation
    if interpolation is None:
        errors = {}
        for how in INTERPOLATIONS:
            lut.interpolation = how
            errors[how] = lut.difference(look)
        interpolation = min(INTERPOLATIONS, key=errors.__getitem__)
    lut.interpolation = interpolation
    return lut


@torch.no_grad()
def bake(
    model: nn.Module, image: Tensor, size: int | None = None, interpolation: str | None = None, **conditions: Any
) -> LutFile:
    """Returns a model's retouch of one image, (1, 3, H, W), as a 3D LUT of `size`³ vertices, unclamped.

    The LUT of an `ImageAdaptiveLUT` is exact at the size of the model's own LUTs and with trilinear interpolation; both
    are the defaults. Other models are sampled; the defaults are 33³ vertices and the interpolation closer to the model.

    Raises ValueError for models that `as_map` refuses.
    """
    look = as_map(model, image, **conditions)
    if isinstance(model, ImageAdaptiveLUT):
        table = model.predict(Picture(image), **model.check_conditions(conditions))[0][0]
        if size in (None, table.shape[-1]):
            return LutFile(table, interpolation=interpolation or "trilinear")
    return sample(look, 33 if size is None else size, interpolation=interpolation)


@torch.no_grad()
def as_map(model: nn.Module, image: Tensor, **conditions: Any) -> Callable[[Tensor], Tensor]:
    """Returns a model's retouch of one image, (1, 3, H, W), as a map of colours, (B, 3, H, W) → the same shape.

    Raises ValueError if the model's result depends on a pixel's position or neighbours: no LUT can represent it.
    """
    if not isinstance(model, System) or not model.colour_map:
        raise ValueError(
            "expected a model that maps equal colours to equal colours, "
            f"got {type(model).__name__}, whose result for a pixel depends on its position or neighbours"
        )
    system, picture, values = model, Picture(image), model.check_conditions(conditions)
    params = system.predict(picture, **values)
    local = system.prepare(picture, params, **values).local

    @torch.no_grad()
    def render(colours: Tensor) -> Tensor:
        return system.render(colours.to(image.device), params, local, Place(0, 0, *colours.shape[2:]))

    return render


def _describe_as(lut: LutFile, derived: LutFile) -> LutFile:
    """Copies format, notes and comments of a LUT to one derived from it, and returns that."""
    derived.format, derived.notes, derived.comments = lut.format, lut.notes, lut.comments
    return derived


def _spread(size: int, domain: Domain, power: float = 1) -> Tensor:
    """A grid of colours over a domain, (1, 3, size, size²). A power above 1 moves them towards its lower end."""
    low, high = (torch.tensor(end)[:, None, None, None] for end in domain)
    return (low + (high - low) * identity_lut(size) ** power).reshape(1, 3, size, size * size)
