"""Reads LUT files: .cube (Adobe's and Resolve's dialects), Hald CLUTs, and other formats through OpenColorIO.

`read_lut` returns a `fastenh.models.LutFile`, which is a system: `Enhancer(read_lut("warm.cube"))("a.jpg")`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from fastenh.io.pixels import read_pixels, read_size
from fastenh.models.lut_file import INTERPOLATIONS, LutFile
from fastenh.models.lut_stages import (
    SHAPER_SIZES,
    TABLE_SIZES,
    UNIT,
    Domain,
    Matrix,
    OpenColorIOSteps,
    Stage,
    Table,
    Table1D,
    Table3D,
    check_domain,
    domain_in_words,
)

OPENCOLORIO_SUFFIXES = (
    ".3dl", ".cc", ".ccc", ".cdl", ".clf", ".csp", ".ctf", ".cub", ".itx", ".look", ".lut", ".m3d", ".mga",
    ".spi1d", ".spi3d", ".spimtx", ".vf",
)  # fmt: skip
LUT_SUFFIXES = (".cube", ".png", *OPENCOLORIO_SUFFIXES)

BLOCK = 2**24  # characters of a .cube read at once
MAX_LINE = 2**16  # characters
MAX_COMMENTS = 1000  # lines; checked once per block, so that a file may keep more


def read_lut(path: str | os.PathLike[str], interpolation: str = "tetrahedral") -> LutFile:
    """Reads a LUT file. The suffix of `path` chooses the format. `interpolation` applies to 3D tables if the file
    specifies none.

    - .cube: Adobe's (Iridas') dialect has a 1D or a 3D table, and DOMAIN_MIN and DOMAIN_MAX for each channel. Resolve's
      dialect has a 1D table, a 3D table, or a 1D table before a 3D table, with LUT_1D_INPUT_RANGE and
      LUT_3D_INPUT_RANGE. Keywords come before the numbers, in upper or lower case. Comments and blank lines may be
      anywhere. Lines end in LF, CR LF or CR. The comments `# TITLE "…"` and `# INTERPOLATION trilinear`, which
      `write_lut` writes, set title and interpolation.
    - .png: L³×L³ pixels of 8 or 16 bits, L from 2 to 16, hold a 3D table of D = L²: either a Hald CLUT or L×L tiles,
      such as the 512×512 pixels of GPUImage and OBS. The reader detects the layout: neighbouring vertices differ less
      in the right one.
    - `OPENCOLORIO_SUFFIXES`: through OpenColorIO (`fastenh[luts]`). All stages of the file are kept. fastenh computes
      tables and matrices, OpenColorIO's processor computes other stages. In .clf and .ctf, 3D tables without an
      `interpolation` attribute are trilinear, as these formats define.

    Raises OSError if the file cannot be read, ModuleNotFoundError without OpenColorIO, and a one-line ValueError for
    invalid content, with the number of the faulty line in .cube. Sizes are checked before memory is allocated.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in LUT_SUFFIXES:
        raise ValueError(
            f"{path}: expected a LUT whose name ends in {', '.join(LUT_SUFFIXES)}, got {suffix or 'none'!r}"
        )
    if not stat.S_ISREG(os.stat(path).st_mode):  # before open(), which would wait forever for a writer to a pipe
        raise ValueError(f"{path}: expected a file, got a folder, pipe or device")
    if suffix == ".cube":
        return _read_cube(path, interpolation)
    return _read_picture(path, interpolation) if suffix == ".png" else _read_through_opencolorio(path, interpolation)


# ---- .cube

COUNTS = {  # how many numbers follow each keyword
    "LUT_1D_SIZE": 1, "LUT_3D_SIZE": 1, "DOMAIN_MIN": 3, "DOMAIN_MAX": 3,
    "LUT_1D_INPUT_RANGE": 2, "LUT_3D_INPUT_RANGE": 2,
}  # fmt: skip
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MAX_FLOAT = torch.finfo(torch.float32).max
Header = dict[str, tuple[float, ...]]


def _read_cube(path: Path, interpolation: str) -> LutFile:
    """Follows Adobe's "Cube LUT Specification 1.0" (2013) and DaVinci Resolve's documentation of its dialect."""
    comments: list[str] = []
    title, header, blocks = _read_header(path, comments)
    sizes = {key: int(header[key][0]) for key in ("LUT_1D_SIZE", "LUT_3D_SIZE") if key in header}
    if not sizes:
        raise ValueError(f"{path}: expected LUT_1D_SIZE or LUT_3D_SIZE before any numbers, got neither")
    shaper_size, table_size = (sizes.get(key, 0) for key in ("LUT_1D_SIZE", "LUT_3D_SIZE"))
    shaper_domain, table_domain = (_read_domain(path, header, kind) for kind in ("1D", "3D"))

    expected, got, rows = shaper_size + table_size**3, 0, [np.empty((0, 3), np.float32)]
    for number, lines in blocks:
        numbers = [line for line in lines if not _is_blank(line)]
        comments += _comments(lines) if len(numbers) < len(lines) and len(comments) < MAX_COMMENTS else ()
        if not numbers:
            continue
        try:
            block = np.loadtxt(numbers, np.float32, ndmin=2)
        except ValueError:
            _refuse_row(path, number, lines)
        if block.shape[1] != 3 or not np.isfinite(block).all():
            _refuse_row(path, number, lines)
        if got + len(block) > expected:
            extra = [n for n, line in enumerate(lines, number) if not _is_blank(line)][expected - got]
            raise ValueError(f"{path}: line {extra}: expected at most {expected} rows of numbers, got another")
        got += len(block)
        rows.append(block)
    if got < expected:
        declared = " and ".join(f"{key} {size}" for key, size in sizes.items())
        raise ValueError(f"{path}: expected {expected} rows of numbers for {declared}, got {got}")

    entries = torch.from_numpy(np.concatenate(rows))
    lut = LutFile(
        entries[shaper_size:].reshape(*[table_size] * 3, 3).permute(3, 0, 1, 2) if table_size else None,
        entries[:shaper_size].T if shaper_size else None,
        table_domain=table_domain,
        shaper_domain=shaper_domain,
        title=title,
        interpolation=interpolation,
    )
    _describe(lut, comments)
    resolve = len(sizes) == 2 or any(key.endswith("RANGE") for key in header)
    adobe = any(key.startswith("DOMAIN") for key in header)
    lut.format = ".cube, " + (
        "Resolve's dialect" if resolve else "Adobe's dialect" if adobe else "the same in both dialects"
    )
    return lut


def _read_header(path: Path, comments: list[str]) -> tuple[str, Header, Iterator[tuple[int, list[str]]]]:
    """Returns the title, the numbers of each keyword, and the remaining lines from the first row of numbers on. Appends
    comments to `comments`."""
    title, header, blocks = "", Header(), _lines(path)
    for start, lines in blocks:
        for number, line in enumerate(lines, start):
            if _is_blank(line):
                comments += _comments([line]) if len(comments) < MAX_COMMENTS else ()
                continue
            keyword, _, rest = re.sub(r"\s+", " ", line.strip(), count=1).partition(" ")
            if keyword[0] in "+-.0123456789":
                return title, header, chain([(number, lines[number - start :])], blocks)
            if keyword.upper() == "TITLE":
                title = rest.strip().strip('"')
                continue
            at, name, words = f"{path}: line {number}: expected", keyword.upper(), rest.partition("#")[0].split()
            if name not in COUNTS:
                raise ValueError(f"{at} three numbers or one of TITLE, {', '.join(COUNTS)}, got {line.strip()[:60]!r}")
            if name in header:
                raise ValueError(f"{at} {name} once, got it again")
            if len(words) != COUNTS[name] or not all(map(NUMBER.fullmatch, words)):
                plural = "s" if COUNTS[name] > 1 else ""
                raise ValueError(f"{at} {COUNTS[name]} number{plural} after {name}, got {' '.join(words)[:60]!r}")
            if name.endswith("SIZE"):
                low, high = SHAPER_SIZES if name == "LUT_1D_SIZE" else TABLE_SIZES
                if not (words[0].isdecimal() and low <= float(words[0]) <= high):
                    raise ValueError(f"{at} {name} from {low} to {high}, got {words[0][:60]}")
            header[name] = tuple(map(float, words))
    return title, header, blocks


def _read_domain(path: Path, header: Header, kind: str) -> Domain:
    """Returns the domain of the "1D" or "3D" table, from the keywords of either dialect."""
    name = f"LUT_{kind}_INPUT_RANGE"
    resolve: Domain | None = None
    if name in header:
        low, high = header[name]
        resolve = (low, low, low), (high, high, high)
        if f"LUT_{kind}_SIZE" not in header:
            if kind == "1D":  # Resolve and colour-science ignore it for a 3D table
                return UNIT
            raise ValueError(f"{path}: expected LUT_{kind}_SIZE with {name}, got none")
    adobe: Domain | None = None
    if "DOMAIN_MIN" in header or "DOMAIN_MAX" in header:
        (r, g, b), (red, green, blue) = (header.get(f"DOMAIN_{end}", UNIT[end == "MAX"]) for end in ("MIN", "MAX"))
        adobe = (r, g, b), (red, green, blue)
        if "LUT_1D_SIZE" in header and "LUT_3D_SIZE" in header and adobe != UNIT:
            raise ValueError(
                f"{path}: expected LUT_1D_INPUT_RANGE and LUT_3D_INPUT_RANGE for two tables, "
                "got DOMAIN_MIN or DOMAIN_MAX"
            )
        if resolve and resolve != adobe:
            raise ValueError(
                f"{path}: expected DOMAIN_MIN and DOMAIN_MAX to agree with {name}, "
                f"got {domain_in_words(adobe)} and {domain_in_words(resolve)}"
            )
    domain = resolve or adobe or UNIT
    try:
        check_domain(domain)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return domain


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the lines of a text file, with any line ends, in lists, each with its first line number. Reads
    BLOCK characters at a time."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        number, rest = 1, ""
        while chunk := file.read(BLOCK):
            *lines, rest = (rest + chunk).split("\n")
            for index, line in enumerate([*lines, rest]) if max(map(len, [*lines, rest])) > MAX_LINE else ():
                if len(line) > MAX_LINE:
                    raise ValueError(
                        f"{path}: line {number + index}: expected at most {MAX_LINE} characters, got a longer line"
                    )
            yield number, lines
            number += len(lines)
        yield number, [rest]


def _is_blank(line: str) -> bool:
    line = line.lstrip()
    return not line or line[0] == "#"


def _comments(lines: list[str]) -> list[str]:
    """The comments among the lines, without the leading #."""
    return [line.strip()[1:] for line in lines if line.lstrip().startswith("#")]


def _describe(lut: LutFile, comments: list[str]) -> None:
    """Sets title and interpolation from the comments that `write_lut` writes, and keeps the other comments."""
    for comment in comments:
        keyword, _, value = comment.strip().partition(" ")
        if keyword == "INTERPOLATION" and value in INTERPOLATIONS:
            lut.interpolation = value
        elif keyword == "TITLE" and value.startswith('"') and not lut.title:
            lut.title = value.strip('"')
        else:
            lut.comments += (comment,)


def _refuse_row(path: Path, start: int, lines: list[str]) -> NoReturn:
    """Raises the error for the first faulty row in `lines`; `start` is the number of the first line."""
    for number, line in enumerate(lines, start):
        words = line.partition("#")[0].split()
        finite = all(NUMBER.fullmatch(word) and abs(float(word)) <= MAX_FLOAT for word in words)
        if _is_blank(line) or (len(words) == 3 and finite):
            continue
        late = words and words[0].upper() in ("TITLE", *COUNTS)
        wanted = "all keywords before the numbers" if late else "three finite numbers"
        raise ValueError(f"{path}: line {number}: expected {wanted}, got {line.strip()[:60]!r}")
    raise ValueError(f"{path}: expected three finite numbers in every row from line {start} on, got a faulty row")


# ---- pictures

CLEARLY_LESS = 0.75  # steps as tiles / steps as a Hald CLUT: at most 0.24 for published tiles, 1 for noise


def _read_picture(path: Path, interpolation: str) -> LutFile:
    """Reads L³×L³ pixels as a table with L² vertices a side, in one of two layouts:

    - Hald CLUT (Eskil Steenberg): the pixels, row by row, are the vertices; R varies fastest.
    - L rows of L tiles (GPUImage and OBS, with L = 8): one tile for each B. In a tile, R rises to the right and G rises
      downwards.

    The picture is read as tiles if neighbouring vertices along G and B then differ clearly less than in a Hald CLUT."""
    height, width = read_size(path)
    level = round(width ** (1 / 3))
    if height != width or level**3 != width or not 2 <= level <= 16:
        raise ValueError(
            f"{path}: expected a Hald CLUT, 8×8, 27×27, 64×64, … or 4096×4096 pixels, got {width}×{height}"
        )
    pixels = read_pixels(path)
    numbers = torch.from_numpy(pixels / np.float32(np.iinfo(pixels.dtype).max))
    hald = numbers.reshape(*[level**2] * 3, 3).permute(3, 0, 1, 2)
    tiles = numbers.reshape(level, level**2, level, level**2, 3).permute(4, 0, 2, 1, 3).reshape(hald.shape)
    steps = [sum(table.diff(dim=dim).abs().mean().item() for dim in (1, 2)) for table in (hald, tiles)]
    is_hald = steps[1] >= CLEARLY_LESS * steps[0]
    lut = LutFile(hald if is_hald else tiles, interpolation=interpolation)
    layout = f"Hald CLUT of level {level}" if is_hald else f"{level}×{level} tiles of {level**2}×{level**2}"
    lut.format = f"{layout}, {8 * pixels.itemsize} bits"
    return lut


# ---- formats that OpenColorIO reads


def _read_through_opencolorio(path: Path, interpolation: str) -> LutFile:
    import PyOpenColorIO as ocio

    open(path, "rb").close()  # so that an unreadable file raises its own OSError
    try:
        ocio.ClearAllCaches()  # they may hold an older version of this file
        context = ocio.Context()  # without variables, so that $ in a path stands for itself
        context.setSearchPath(os.path.abspath(path.parent))  # a .ctf may refer to other files
        transform = ocio.FileTransform(os.path.abspath(path))
        processor = ocio.Config.CreateRaw().getProcessor(context, transform, ocio.TRANSFORM_DIR_FORWARD)
        processor = processor.getOptimizedProcessor(ocio.OPTIMIZATION_LOSSLESS)  # joins adjacent matrices
        default = "trilinear" if path.suffix.lower() in (".clf", ".ctf") else interpolation
        lut = LutFile(stages=_stages(list(processor.createGroupTransform()), default))
        about = processor.getFormatMetadata()
        lut.title = about.getName()
        lut.comments = tuple(
            f" {child.getElementValue()}"
            for child in about.getChildElements()
            if child.getElementName() == "Description"
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (ocio.Exception, ocio.ExceptionMissingFile) as error:
        reason = " ".join(str(error).rpartition("failed with:")[2].split())
        raise ValueError(f"{path}: expected a LUT that OpenColorIO reads, got none ({reason:.200})") from None
    if path.suffix.lower() in (".3dl", ".csp"):
        _describe(lut, _dropped_comments(path))
    lut.format = f"{path.suffix.lower()}, through OpenColorIO"
    return lut


def _dropped_comments(path: Path) -> list[str]:
    """The comments of a .3dl or the metadata of a .csp, which OpenColorIO drops."""
    with open(path, encoding="utf-8", errors="replace") as file:
        head = file.read(MAX_LINE)
    if path.suffix.lower() == ".csp":
        head = head.partition("BEGIN METADATA\n")[2].partition("END METADATA")[0]
        return [line.removeprefix("#") for line in head.splitlines() if line.strip()]
    return _comments(head.splitlines())


def _stages(transforms: list[Any], interpolation: str) -> list[Stage]:
    """Converts OpenColorIO transforms to stages. `interpolation` applies to 3D tables that specify none."""
    stages: list[Stage] = []
    for transform in transforms:
        stage, last = _stage(transform, interpolation), stages[-1] if stages else None
        if isinstance(stage, OpenColorIOSteps) and isinstance(last, OpenColorIOSteps):
            stages[-1] = OpenColorIOSteps(last.transforms + stage.transforms)
        elif isinstance(stage, Table) and isinstance(last, Matrix) and (domain := last.unit_domain):
            stage.domain = domain
            stages[-1] = stage
        else:
            stages.append(stage)
    return stages


def _stage(transform: Any, interpolation: str) -> Stage:
    import PyOpenColorIO as ocio

    forward = transform.getDirection() == ocio.TRANSFORM_DIR_FORWARD
    if forward and isinstance(transform, ocio.MatrixTransform):
        matrix = torch.tensor(transform.getMatrix(), dtype=torch.float64).reshape(4, 4)[:3]
        matrix[:, 3] += torch.tensor(transform.getOffset()[:3], dtype=torch.float64)  # for an alpha of 1
        return Matrix(matrix)
    if forward and isinstance(transform, ocio.Lut1DTransform):
        plain = not transform.getInputHalfDomain() and transform.getHueAdjust() == ocio.HUE_NONE
        if plain and transform.getLength() <= SHAPER_SIZES[1]:
            return Table1D(torch.from_numpy(np.array(transform.getData(), np.float32)).reshape(-1, 3).T)
    if forward and isinstance(transform, ocio.Lut3DTransform):
        size, known = transform.getGridSize(), {ocio.INTERP_LINEAR: "trilinear", ocio.INTERP_TETRAHEDRAL: "tetrahedral"}
        entries = torch.from_numpy(np.array(transform.getData(), np.float32)).reshape(size, size, size, 3)  # B fastest
        how = known.get(transform.getInterpolation(), interpolation)
        return Table3D(entries.permute(3, 2, 1, 0), interpolation=how)
    return OpenColorIOSteps([transform])
