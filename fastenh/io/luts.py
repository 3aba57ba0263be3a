"""LUT files: .cube (Adobe's and Resolve's dialect) and Hald CLUT PNGs by ourselves, others through OpenColorIO.

Whatever a file holds becomes a `LutFile`, which is a module as models are: `Enhancer(read_lut("look.cube"))("a.jpg")`.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from fastenh import ops
from fastenh.atomic import replacing
from fastenh.io.header import PNG
from fastenh.io.header import Header as PhotoHeader
from fastenh.io.photos import Photo, write_photo
from fastenh.io.pixels import read_pixels, read_size
from fastenh.models.lut3d import identity_lut
from fastenh.ops.op import check_image, from_float, to_float

OPENCOLORIO_SUFFIXES = (".3dl", ".clf", ".csp", ".spi1d", ".spi3d")
LUT_SUFFIXES = (".cube", ".png", *OPENCOLORIO_SUFFIXES)

Domain = tuple[tuple[float, float, float], tuple[float, float, float]]  # the lowest R, G, B, and the highest
UNIT: Domain = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

SHAPER_SIZES = (2, 65536)
TABLE_SIZES = (2, 256)

BAND = 2**20  # pixels that are worked on at once
BLOCK = 2**24  # characters of a .cube that are read at once
MAX_LINE = 2**16  # characters


class LutFile(nn.Module):
    """What a LUT file holds: out = table(shaper(image)), (B, 3, H, W) → the same shape and dtype.

    Args:
        table: a 3D LUT, (3, D, D, D), axes (C, B, G, R), 2 <= D <= 256; or None.
        shaper: a 1D LUT for each of R, G, B, (3, S), 2 <= S <= 65536; or None. A 1D LUT file is a shaper alone.
        table_domain, shaper_domain: the input colours of the first and the last entry, ((R, G, B), (R, G, B)).
        title: what the file calls itself.
        interpolation: of the table, "tetrahedral" or "trilinear". A shaper's is linear.

    A value x stands at the place (x − lowest) / (highest − lowest) of its domain, clamped to [0, 1]: outside the domain
    the border's colour holds. Entries are float32 of any value; float images come out unclamped, uint8 and uint16,
    which are full scale, clamped and rounded to nearest.

    Raises ValueError, in one line, for tensors of other sizes, for NaN or infinity, and for an empty domain.
    """

    pointwise = True  # colours are mapped alike all over a photo

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
            _check_domain(domain)
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
        """L where it is a 3D LUT of L² vertices over [0, 1] and nothing else, which a Hald CLUT can hold, else None."""
        if self.table is None or self.shaper is not None or self.table_domain != UNIT:
            return None
        level = math.isqrt(self.table.shape[1])
        return level if level > 1 and level**2 == self.table.shape[1] else None

    def look(self, image: Tensor) -> tuple[Tensor, ...]:
        """Nothing: it is one for all photos."""
        return ()

    def render(self, image: Tensor, look: tuple[Tensor, ...] = (), out: Tensor | None = None) -> Tensor:
        """`forward`, into `out` if given, which may be `image` itself."""
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

    def forward(self, image: Tensor) -> Tensor:
        return self.render(image)


def read_lut(path: str | os.PathLike[str]) -> LutFile:
    """Read a LUT file, by its suffix.

    - .cube: 1D or 3D, Adobe's (Iridas') dialect with DOMAIN_MIN and DOMAIN_MAX for each channel, or Resolve's with
      LUT_1D_INPUT_RANGE and LUT_3D_INPUT_RANGE and, if it has both tables, the 1D one first. Keywords come before the
      numbers and in any case, comments and blank lines anywhere, lines end in LF, CR LF or CR.
    - .png: a Hald CLUT of level L, 2 to 16, 8 or 16 bits: L³×L³ pixels are a 3D LUT of D = L², R fastest.
    - .3dl, .clf, .csp, .spi1d, .spi3d through OpenColorIO (`fastenh[luts]`), for colours from 0 to 1. Its steps up to
      the first that mixes channels become the shaper: a lone 1D LUT as it is, anything else sampled at 65536 places.
      The rest becomes the table: sampled at the vertices of its first 3D LUT, or at 65 for each channel where it has
      none (a matrix, which that is exact for). So 1D, 3D and 1D before 3D are exact, and what follows a 3D LUT, or a
      curve after a matrix, is so at the vertices and interpolated between.

    Raises OSError where the file cannot be read, ModuleNotFoundError without OpenColorIO, and ValueError, in one line
    with the number of the line at fault, for everything else. Sizes are checked before memory is taken for them.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in LUT_SUFFIXES:
        raise ValueError(
            f"{path}: expected a LUT whose name ends in {', '.join(LUT_SUFFIXES)}, got {suffix or 'none'!r}"
        )
    if not stat.S_ISREG(os.stat(path).st_mode):  # before open(): a pipe would wait for a writer for ever
        raise ValueError(f"{path}: expected a file, got a folder, pipe or device")
    if suffix == ".cube":
        return _read_cube(path)
    return _read_hald(path) if suffix == ".png" else _read_through_opencolorio(path)


def write_lut(lut: LutFile, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a .cube, from which the same numbers are read again, or a Hald CLUT of 16 bits (.png), whole or not at all.

    A .cube is in Adobe's dialect; in Resolve's where it holds both tables, whose domains then must not vary by channel.
    A Hald CLUT takes a 3D LUT alone, of D = L² for a level L from 2 to 16, over colours from 0 to 1. Its values are
    clipped to [0, 1] and rounded to 1/65535.

    Raises ValueError where the format cannot hold the LUT, FileExistsError where the file is there and `overwrite` is
    false, OSError where it cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".cube", ".png"):
        raise ValueError(f"{path}: expected a name that ends in .cube or .png (Hald CLUT), got {suffix or 'none'!r}")
    if suffix == ".png":
        pixels = _hald(lut, path)
        side = len(pixels)
        write_photo(Photo(PhotoHeader(PNG, side, side, 3, pixels.dtype, 3), pixels), path, overwrite=overwrite)
        return
    header = _cube_header(lut, path)
    with replacing(path, overwrite) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in header)
        for rows in (lut.shaper, lut.table):
            if rows is not None:
                for block in rows.detach().cpu().flatten(1).T.split(2**16):
                    # 9 digits tell every float32 from its neighbours.
                    file.write("%.9g %.9g %.9g\n" * len(block) % tuple(block.flatten().tolist()))


@torch.no_grad()
def sample(look: Callable[[Tensor], Tensor], size: int, domain: Domain = UNIT, title: str = "") -> LutFile:
    """The 3D LUT that agrees with `look`, any map of colours (B, 3, H, W) → the same shape, at `size`³ vertices."""
    _check_size("size", size, TABLE_SIZES)
    low, high = (torch.tensor(end)[:, None, None, None] for end in domain)
    vertices = low + (high - low) * identity_lut(size)
    table = look(vertices.reshape(1, 3, size, size * size)).reshape(vertices.shape)
    return LutFile(table, table_domain=domain, title=title)


@torch.no_grad()
def bake(model: nn.Module, image: Tensor, size: int | None = None) -> LutFile:
    """The look of a model for one image, (1, 3, H, W), as a 3D LUT of `size`, unclamped.

    A model that is a LUT itself (`fused_lut`) gives that, exactly, if `size` is its own, which is the default, and
    interpolation trilinear. Another that is `pointwise` is sampled at the vertices, 33³ by default.

    Raises ValueError for other models: where a pixel lies changes its colour, so no LUT can stand for them.
    """
    if not getattr(model, "pointwise", False):
        raise ValueError(
            "expected a model that is one map of colours for the whole photo, "
            f"got {type(model).__name__}, which treats a colour by what lies around it"
        )
    system: Any = model
    look = system.look(image)
    if hasattr(system, "fused_lut") and size in (None, look[0].shape[-1]):
        return LutFile(look[0][0], interpolation="trilinear")
    render: Callable[[Tensor], Tensor] = lambda colours: system.render(colours.to(image.device), look)  # noqa: E731
    return sample(render, 33 if size is None else size)


def _check_size(name: str, size: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= size <= bounds[1]:
        raise ValueError(f"expected {name} from {bounds[0]} to {bounds[1]}, got {size}")


def _check_domain(domain: Domain) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.array(domain, np.float32)
        if not (np.isfinite(low).all() and ((high - low) > 0).all() and np.isfinite(high - low).all()):
            raise ValueError(f"expected a domain from lower to higher numbers, got {domain_in_words(domain)}")


def domain_in_words(domain: Domain) -> str:
    """One range, or one for each channel."""
    ranges = [f"{low:g} to {high:g}" for low, high in zip(*domain, strict=True)]
    return ranges[0] if len(set(ranges)) == 1 else ", ".join(ranges)


def _placed(x: Tensor, domain: Domain) -> Tensor:
    """Where in its domain each value lies, 0 to 1."""
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


# ---- .cube

COUNTS = {  # keywords, and how many numbers follow
    "LUT_1D_SIZE": 1, "LUT_3D_SIZE": 1, "DOMAIN_MIN": 3, "DOMAIN_MAX": 3,
    "LUT_1D_INPUT_RANGE": 2, "LUT_3D_INPUT_RANGE": 2,
}  # fmt: skip
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MAX_FLOAT = torch.finfo(torch.float32).max
Header = dict[str, tuple[float, ...]]


def _read_cube(path: Path) -> LutFile:
    """By Adobe's "Cube LUT Specification 1.0" (2013), and by what DaVinci Resolve says of its own dialect."""
    title, header, blocks = _read_header(path)
    sizes = {key: int(header[key][0]) for key in ("LUT_1D_SIZE", "LUT_3D_SIZE") if key in header}
    if not sizes:
        raise ValueError(f"{path}: expected LUT_1D_SIZE or LUT_3D_SIZE before any numbers, got neither")
    shaper_size, table_size = (sizes.get(key, 0) for key in ("LUT_1D_SIZE", "LUT_3D_SIZE"))
    shaper_domain, table_domain = (_read_domain(path, header, kind) for kind in ("1D", "3D"))

    expected, got, rows = shaper_size + table_size**3, 0, [np.empty((0, 3), np.float32)]
    for number, lines in blocks:
        numbers = [line for line in lines if not _is_blank(line)]
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
            raise ValueError(f"{path}: line {extra}: expected no more than {expected} rows of numbers, got another")
        got += len(block)
        rows.append(block)
    if got < expected:
        said = " and ".join(f"{key} {size}" for key, size in sizes.items())
        raise ValueError(f"{path}: expected {expected} rows of numbers, as {said} says, got {got}")

    entries = torch.from_numpy(np.concatenate(rows))
    lut = LutFile(
        entries[shaper_size:].reshape(*[table_size] * 3, 3).permute(3, 0, 1, 2) if table_size else None,
        entries[:shaper_size].T if shaper_size else None,
        table_domain=table_domain,
        shaper_domain=shaper_domain,
        title=title,
    )
    resolve = len(sizes) == 2 or any(key.endswith("RANGE") for key in header)
    adobe = any(key.startswith("DOMAIN") for key in header)
    lut.format = ".cube, " + (
        "Resolve's dialect" if resolve else "Adobe's dialect" if adobe else "in both dialects alike"
    )
    return lut


def _read_header(path: Path) -> tuple[str, Header, Iterator[tuple[int, list[str]]]]:
    """Title, numbers by keyword, and the lines from the first row of numbers on."""
    title, header, blocks = "", Header(), _lines(path)
    for start, lines in blocks:
        for number, line in enumerate(lines, start):
            if _is_blank(line):
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
    """Of the 1D or the 3D table, by either dialect's keywords."""
    name = f"LUT_{kind}_INPUT_RANGE"
    resolve: Domain | None = None
    if name in header:
        low, high = header[name]
        resolve = (low, low, low), (high, high, high)
        if f"LUT_{kind}_SIZE" not in header:
            raise ValueError(f"{path}: expected LUT_{kind}_SIZE with {name}, got none")
    adobe: Domain | None = None
    if "DOMAIN_MIN" in header or "DOMAIN_MAX" in header:
        (r, g, b), (red, green, blue) = (header.get(f"DOMAIN_{end}", UNIT[end == "MAX"]) for end in ("MIN", "MAX"))
        adobe = (r, g, b), (red, green, blue)
        if "LUT_1D_SIZE" in header and "LUT_3D_SIZE" in header and adobe != UNIT:
            raise ValueError(
                f"{path}: expected LUT_1D_INPUT_RANGE and LUT_3D_INPUT_RANGE where there are two tables, "
                "got DOMAIN_MIN or DOMAIN_MAX"
            )
        if resolve and resolve != adobe:
            raise ValueError(
                f"{path}: expected DOMAIN_MIN and DOMAIN_MAX to agree with {name}, "
                f"got {domain_in_words(adobe)} and {domain_in_words(resolve)}"
            )
    domain = resolve or adobe or UNIT
    try:
        _check_domain(domain)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return domain


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a text, however they end, many at a time, with the number of the first; never more than a BLOCK."""
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


def _refuse_row(path: Path, start: int, lines: list[str]) -> NoReturn:
    for number, line in enumerate(lines, start):
        words = line.partition("#")[0].split()
        finite = all(NUMBER.fullmatch(word) and abs(float(word)) <= MAX_FLOAT for word in words)
        if _is_blank(line) or (len(words) == 3 and finite):
            continue
        late = words and words[0].upper() in ("TITLE", *COUNTS)
        wanted = "all keywords before the numbers" if late else "three finite numbers"
        raise ValueError(f"{path}: line {number}: expected {wanted}, got {line.strip()[:60]!r}")
    raise ValueError(f"{path}: expected three finite numbers in every row from line {start} on, got others")


def _cube_header(lut: LutFile, path: Path) -> list[str]:
    def numbers(values: tuple[float, ...]) -> str:
        return " ".join(repr(float(value)) for value in values)

    title = "".join(c for c in lut.title if c.isprintable() and c != '"')
    header = [f'TITLE "{title}"'] if title else []
    if lut.shaper is not None and lut.table is not None:
        for kind, size, domain in (
            ("1D", lut.shaper.shape[1], lut.shaper_domain),
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
    if lut.domain != UNIT:  # not every program knows these
        header += [f"DOMAIN_MIN {numbers(lut.domain[0])}", f"DOMAIN_MAX {numbers(lut.domain[1])}"]
    return header


# ---- Hald CLUT


def _read_hald(path: Path) -> LutFile:
    """Eskil Steenberg's layout: the pixels, row after row, are the vertices, R fastest."""
    height, width = read_size(path)
    level = round(width ** (1 / 3))
    if height != width or level**3 != width or not 2 <= level <= 16:
        raise ValueError(
            f"{path}: expected a Hald CLUT, 8×8, 27×27, 64×64, … or 4096×4096 pixels, got {width}×{height}"
        )
    pixels = read_pixels(path)
    table = torch.from_numpy(pixels / np.float32(np.iinfo(pixels.dtype).max)).reshape(*[level**2] * 3, 3)
    lut = LutFile(table.permute(3, 0, 1, 2))
    lut.format = f"Hald CLUT of level {level}, {8 * pixels.itemsize} bits"
    return lut


def _hald(lut: LutFile, path: Path) -> np.ndarray:
    level = lut.hald_level
    if lut.table is None or level is None:
        raise ValueError(
            f"{path}: expected a 3D LUT of 4, 9, 16, … or 256 vertices over 0 to 1 for a Hald CLUT, got {lut.contents}"
        )
    pixels = from_float(lut.table.detach().cpu().permute(1, 2, 3, 0), torch.uint16)
    return np.ascontiguousarray(pixels.reshape(level**3, level**3, 3).numpy())


# ---- what OpenColorIO reads


def _read_through_opencolorio(path: Path) -> LutFile:
    import PyOpenColorIO as ocio

    config = ocio.Config.CreateRaw()

    def look(steps: list[Any]) -> Callable[[Tensor], Tensor]:
        processor = config.getProcessor(ocio.GroupTransform(steps))
        run = processor.getOptimizedCPUProcessor(ocio.OPTIMIZATION_LOSSLESS)

        def map_colours(image: Tensor) -> Tensor:
            pixels = image.movedim(1, 3).contiguous()
            run.applyRGB(pixels.numpy())
            return pixels.movedim(3, 1)

        return map_colours

    open(path, "rb").close()  # so that a file that may not be read says so itself
    try:
        ocio.ClearAllCaches()  # of a file that was at this path before
        transform, bare = ocio.FileTransform(os.path.abspath(path)), ocio.Context()  # to which a $ in a name is a $
        processor = config.getProcessor(bare, transform, ocio.TRANSFORM_DIR_FORWARD)
        steps = list(processor.createGroupTransform())
        mixing = (i for i, step in enumerate(steps) if config.getProcessor(step).hasChannelCrosstalk())
        first = next(mixing, len(steps))
        before, after = steps[:first], steps[first:]

        shaper, table, domain = None, None, UNIT
        if before or not after:
            alone = (
                len(before) == 1 and isinstance(before[0], ocio.Lut1DTransform) and not before[0].getInputHalfDomain()
            )
            size = min(before[0].getLength() if alone else SHAPER_SIZES[1], SHAPER_SIZES[1])
            shaper = look(before)(torch.linspace(0, 1, size).expand(1, 3, 1, size))[0, :, 0]
        if after:
            if shaper is not None and not isinstance(after[0], ocio.Lut3DTransform):  # which clamps to [0, 1] itself
                low, high = shaper.min().item(), shaper.max().item()
                high = high if high > low else low + 1
                domain = (low, low, low), (high, high, high)
            size = next((step.getGridSize() for step in after if isinstance(step, ocio.Lut3DTransform)), 65)
            table = sample(look(after), size, domain).table
        lut = LutFile(table, shaper, table_domain=domain)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (ocio.Exception, ocio.ExceptionMissingFile) as error:
        reason = " ".join(str(error).rpartition("failed with:")[2].split())
        raise ValueError(f"{path}: expected a LUT that OpenColorIO reads, got none ({reason:.200})") from None
    lut.format = f"{path.suffix.lower()}, through OpenColorIO"
    return lut
