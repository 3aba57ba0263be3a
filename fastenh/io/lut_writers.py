"""Writes LUT files: .cube, Hald CLUTs, .3dl, .csp, .spi1d, .spi3d, and .clf through OpenColorIO."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastenh.atomic import replacing
from fastenh.io.formats.base import Header
from fastenh.io.photos import Photo, write_photo
from fastenh.models.lut_file import LutFile
from fastenh.models.lut_stages import UNIT, Domain, Table3D
from fastenh.ops.op import from_float

MAX_3D = 129  # OpenColorIO reads at most so many vertices a side
PRELUT = 2**14  # the least number of points of a curve in a .csp
DARK_3DL = 2**13 - 3  # of 65535: programs read a table without larger values as one of 12 bits or fewer


def write_lut(lut: LutFile, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Writes a LUT file atomically. The suffix of `path` chooses the format. Floats are written with 9 digits, which
    restore every float32 exactly; .clf has 8.

    - .cube: a 1D table, a 3D table, or a 1D table before a 3D table. One table is written in Adobe's dialect; two are
      written in Resolve's, where each must have the same domain for R, G and B.
    - .csp: the same tables. Domains may differ between channels. A 1D table before a 3D table gets at least 2¹⁴ points,
      because programs draw a smooth curve through them.
    - .spi1d: a 1D table with the same domain for R, G and B.
    - .spi3d: a 3D table over 0 to 1.
    - .3dl (Flame, Lustre): a 3D table over 0 to 1. Values are clipped to [0, 1] and rounded to 1/65535. The largest
      must exceed 1/8, because programs guess the bit depth from it.
    - .png: a Hald CLUT, that is, a 3D table over 0 to 1 with D = L² for a level L from 2 to 16. Values are clipped and
      rounded as in .3dl.
    - .clf: any stages, through OpenColorIO (`fastenh[luts]`).

    .cube, .3dl, .csp and .clf keep the title, the comments and the interpolation of 3D tables.

    Raises ValueError if the format cannot hold the LUT, FileExistsError if the file exists and `overwrite` is false,
    OSError if the file cannot be written, ModuleNotFoundError without OpenColorIO.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITTEN_SUFFIXES:
        raise ValueError(
            f"{path}: expected a name that ends in {', '.join(WRITTEN_SUFFIXES)}, got {suffix or 'none'!r}"
        )
    try:
        sizes = [stage.entries.shape[1] for stage in lut.stages if isinstance(stage, Table3D)]
        if suffix not in (".cube", ".png") and max(sizes, default=0) > MAX_3D:
            raise ValueError(f"expected a 3D LUT of at most {MAX_3D} vertices a side for a {suffix}, got {max(sizes)}")
        if suffix == ".png":
            pixels = _hald(lut)
            header = Header("PNG", len(pixels), len(pixels), 3, pixels.dtype, 3)
            write_photo(Photo(header, pixels), path, overwrite=overwrite)
            return
        with replacing(path, overwrite) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(WRITERS[suffix](lut))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _cube(lut: LutFile) -> Iterator[str]:
    _check_simple(lut, ".cube")
    both = lut.shaper is not None and lut.table is not None
    title, *comments = _comments(lut)
    # With two tables the title stays a comment: OpenColorIO refuses the keyword in Resolve's dialect.
    yield f"{title if both else title.removeprefix('# ')}\n" if title else ""
    yield from (f"{line}\n" for line in comments)
    tables = [(kind, table) for kind, table in (("1D", lut.shaper), ("3D", lut.table)) if table is not None]
    for (kind, table), domain in zip(tables, (lut.domain, lut.table_domain), strict=False):
        yield f"LUT_{kind}_SIZE {table.shape[1]}\n"
        if both:
            low, high = _one_range(domain, "a .cube of two tables")
            yield f"LUT_{kind}_INPUT_RANGE {low!r} {high!r}\n"
    if not both and lut.domain != UNIT:  # not every program reads these keywords
        for name, end in zip(("MIN", "MAX"), lut.domain, strict=True):
            yield f"DOMAIN_{name} {' '.join(repr(float(value)) for value in end)}\n"
    for _, table in tables:
        yield from _rows(table.flatten(1).T)


def _csp(lut: LutFile) -> Iterator[str]:
    _check_simple(lut, ".csp")
    yield f"CSPLUTV100\n{'1D' if lut.table is None else '3D'}\n\nBEGIN METADATA\n"
    yield from (f"{line}\n" for line in _comments(lut) if line)
    yield "END METADATA\n\n"
    for c, (low, high) in enumerate(zip(*lut.domain, strict=True)):
        curve = np.array([0.0, 1.0])
        if lut.shaper is not None and lut.table is not None:
            entries, (first, last) = lut.shaper[c].double().cpu().numpy(), (end[c] for end in lut.table_domain)
            points = (len(entries) - 1) * math.ceil(PRELUT / (len(entries) - 1)) + 1
            curve = np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(entries)), entries)
            curve = (curve - first) / (last - first)
        yield f"{len(curve)}\n"
        for values in (np.linspace(low, high, len(curve)), curve):
            yield " ".join(f"{value:.9g}" for value in values) + "\n"
    table = lut.shaper if lut.table is None else lut.table
    if table is not None:
        yield "\n" + " ".join(map(str, table.shape[1:])) + "\n"
        yield from _rows(table.flatten(1).T)


def _spi1d(lut: LutFile) -> Iterator[str]:
    if lut.shaper is None or len(lut.stages) > 1:
        raise ValueError(f"expected a 1D LUT for a .spi1d, got {lut.contents}")
    low, high = _one_range(lut.domain, "a .spi1d")
    yield f"Version 1\nFrom {low:.9g} {high:.9g}\nLength {lut.shaper.shape[1]}\nComponents 3\n{{\n"
    yield from _rows(lut.shaper.T)
    yield "}\n"


def _spi3d(lut: LutFile) -> Iterator[str]:
    entries = _unit_table(lut, ".spi3d")
    size = len(entries)
    yield f"SPILUT 1.0\n3 3\n{size} {size} {size}\n"
    grid = torch.cartesian_prod(*[torch.arange(float(size))] * 3)
    yield from _rows(torch.cat([grid, entries.reshape(-1, 3)], 1), "%d %d %d %.9g %.9g %.9g\n")


def _3dl(lut: LutFile) -> Iterator[str]:
    entries = from_float(_unit_table(lut, ".3dl"), torch.uint16).int()
    if entries.max() <= DARK_3DL:
        raise ValueError(f"expected a colour lighter than 1/8 in a .3dl, got at most {entries.max() / 65535:.4g}")
    yield from (f"{line}\n" for line in _comments(lut) if line)
    size = len(entries)
    mesh = (size - 1).bit_length() - 1
    if size == 2**mesh + 1:
        yield f"3DMESH\nMesh {mesh} 16\n"
    yield " ".join(str(round(1023 * i / (size - 1))) for i in range(size)) + "\n"
    yield from _rows(entries.reshape(-1, 3), "%d %d %d\n")


def _clf(lut: LutFile) -> Iterator[str]:
    import PyOpenColorIO as ocio

    group = ocio.GroupTransform([transform for stage in lut.stages for transform in stage.as_transforms()])
    about = group.getFormatMetadata()
    if lut.title:
        about.setName(_line(lut.title))
    for comment in lut.comments:
        about.addChildElement("Description", _line(comment).strip())
    try:
        yield group.write("Academy/ASC Common LUT Format", ocio.Config.CreateRaw())
    except ocio.Exception as error:
        raise ValueError(f"expected stages that a .clf can hold ({' '.join(str(error).split()):.200})") from None


def _hald(lut: LutFile) -> np.ndarray:
    level = lut.hald_level
    if lut.table is None or level is None:
        raise ValueError(
            f"expected a 3D LUT of 4, 9, 16, … or 256 vertices over 0 to 1 for a Hald CLUT, got {lut.contents}"
        )
    pixels = from_float(lut.table.detach().cpu().permute(1, 2, 3, 0), torch.uint16)
    return np.ascontiguousarray(pixels.reshape(level**3, level**3, 3).numpy())


WRITERS: dict[str, Callable[[LutFile], Iterator[str]]] = {
    ".cube": _cube, ".3dl": _3dl, ".clf": _clf, ".csp": _csp, ".spi1d": _spi1d, ".spi3d": _spi3d,
}  # fmt: skip
WRITTEN_SUFFIXES = (".cube", ".png", *list(WRITERS)[1:])


def _check_simple(lut: LutFile, suffix: str) -> None:
    if not lut.simple:
        raise ValueError(f"expected a 1D LUT, a 3D LUT or a 1D LUT before a 3D LUT for a {suffix}, got {lut.contents}")


def _unit_table(lut: LutFile, suffix: str) -> Tensor:
    """The entries of a LUT that is a 3D table over 0 to 1, (R, G, B, 3), so that B varies fastest in a list of rows."""
    if lut.unit_table is None:
        raise ValueError(f"expected a 3D LUT over 0 to 1 for a {suffix}, got {lut.contents}")
    return lut.unit_table.detach().cpu().permute(3, 2, 1, 0)


def _one_range(domain: Domain, holder: str) -> tuple[float, float]:
    (low, *lows), (high, *highs) = domain
    if {low} != {*lows} or {high} != {*highs}:
        raise ValueError(f"expected the same domain for R, G and B in {holder}, got {domain[0]} to {domain[1]}")
    return float(low), float(high)


def _comments(lut: LutFile) -> list[str]:
    """The title as a comment, or an empty string, and then the other comments: `read_lut` reads them back."""
    title = "".join(c for c in lut.title if c.isprintable() and c != '"')
    lines = [f'# TITLE "{title}"' if title else ""]
    lines += [f"# INTERPOLATION {lut.interpolation}"] if lut.table is not None else []
    return lines + [f"#{_line(comment)}" for comment in lut.comments]


def _rows(rows: Tensor, row: str = "%.9g %.9g %.9g\n") -> Iterator[str]:
    for block in rows.detach().cpu().split(2**16):
        yield row * len(block) % tuple(block.flatten().tolist())


def _line(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c == "\t")
