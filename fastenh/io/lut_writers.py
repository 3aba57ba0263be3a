"""Writing LUT files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fastenh.atomic import replacing
from fastenh.io.formats.base import Header
from fastenh.io.photos import Photo, write_photo
from fastenh.models.lut_file import LutFile
from fastenh.models.lut_stages import UNIT
from fastenh.ops.op import from_float


def write_lut(lut: LutFile, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a .cube, which keeps every float32 exactly, or a 16-bit Hald CLUT (.png), atomically.

    A .cube is written in Adobe's dialect, or in Resolve's if it has both tables; the domains of the two must not differ
    between channels. A Hald CLUT holds a single 3D LUT, of D = L² for a level L from 2 to 16, over colours from 0 to 1.
    Its values are clipped to [0, 1] and rounded to 1/65535.

    Raises ValueError if the format cannot hold the LUT, FileExistsError if the file exists and `overwrite` is false,
    OSError if it cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".cube", ".png"):
        raise ValueError(f"{path}: expected a name that ends in .cube or .png (Hald CLUT), got {suffix or 'none'!r}")
    if suffix == ".png":
        pixels = _hald(lut, path)
        side = len(pixels)
        write_photo(Photo(Header("PNG", side, side, 3, pixels.dtype, 3), pixels), path, overwrite=overwrite)
        return
    if not lut.simple:
        raise ValueError(f"{path}: expected a 1D LUT, a 3D LUT or one after the other for a .cube, got {lut.contents}")
    header = _cube_header(lut, path)
    with replacing(path, overwrite) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in header)
        for rows in (lut.shaper, lut.table):
            if rows is not None:
                for block in rows.detach().cpu().flatten(1).T.split(2**16):
                    # 9 digits identify every float32.
                    file.write("%.9g %.9g %.9g\n" * len(block) % tuple(block.flatten().tolist()))


def _cube_header(lut: LutFile, path: Path) -> list[str]:
    def numbers(values: tuple[float, ...]) -> str:
        return " ".join(repr(float(value)) for value in values)

    title = _line(lut.title).replace('"', "")
    header = [f'TITLE "{title}"'] if title else []
    header += [f"# INTERPOLATION {lut.interpolation}"] if lut.table is not None else []
    header += [f"#{_line(comment)}" for comment in lut.comments]
    if lut.shaper is not None and lut.table is not None:
        if title:  # OpenColorIO refuses the keyword in this dialect
            header[0] = f"# {header[0]}"
        for kind, size, domain in (
            ("1D", lut.shaper.shape[1], lut.domain),
            ("3D", lut.table.shape[1], lut.table_domain),
        ):
            if len(set(domain[0])) > 1 or len(set(domain[1])) > 1:
                raise ValueError(
                    f"{path}: expected one domain for R, G and B, which is all a .cube of two tables holds, got "
                    f"{domain[0]} to {domain[1]}"
                )
            ends = numbers((domain[0][0], domain[1][0]))
            header += [f"LUT_{kind}_SIZE {size}", f"LUT_{kind}_INPUT_RANGE {ends}"]
        return header
    header += [f"LUT_1D_SIZE {lut.shaper.shape[1]}"] if lut.shaper is not None else []
    header += [f"LUT_3D_SIZE {lut.table.shape[1]}"] if lut.table is not None else []
    if lut.domain != UNIT:  # not every program reads these keywords
        header += [f"DOMAIN_MIN {numbers(lut.domain[0])}", f"DOMAIN_MAX {numbers(lut.domain[1])}"]
    return header


def _hald(lut: LutFile, path: Path) -> np.ndarray:
    level = lut.hald_level
    if lut.table is None or level is None:
        raise ValueError(
            f"{path}: expected a 3D LUT of 4, 9, 16, … or 256 vertices over 0 to 1 for a Hald CLUT, got {lut.contents}"
        )
    pixels = from_float(lut.table.detach().cpu().permute(1, 2, 3, 0), torch.uint16)
    return np.ascontiguousarray(pixels.reshape(level**3, level**3, 3).numpy())


def _line(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c == "\t")
