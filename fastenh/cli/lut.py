"""`fastenh lut`: inspect LUT files, apply them to photos, bake them from models, convert them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastenh.cli.enhance import retouch
from fastenh.cli.options import Debug, ModelOptions, Overwrite, RunOptions, Strength, expand_options, one_line, say
from fastenh.io.lut_writers import WRITTEN_SUFFIXES
from fastenh.io.luts import OPENCOLORIO_SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

    from fastenh.models import LutFile

app = typer.Typer(help="Inspect, apply, bake and convert LUT files.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(metavar="LUT", help=f".cube, .png (Hald CLUT or tiles), {', '.join(OPENCOLORIO_SUFFIXES)}.")
]
OUTPUT = f"The file to write: {', '.join(WRITTEN_SUFFIXES)}; .png is a Hald CLUT."
Written = Annotated[Path, typer.Option("-o", "--output", help=OUTPUT)]

Interpolation = Literal["tetrahedral", "trilinear"]
WRITTEN_FOR = "Interpolation that the 3D LUT is written for; recorded in the file if its format allows."

COLOURS = {
    "black": (0, 0, 0), "dark grey": (0.25, 0.25, 0.25), "grey": (0.5, 0.5, 0.5), "light grey": (0.75, 0.75, 0.75),
    "white": (1, 1, 1), "red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "cyan": (0, 1, 1),
    "blue": (0, 0, 1), "magenta": (1, 0, 1),
}  # fmt: skip
UNIT_TABLES = {".png": "a Hald CLUT", ".3dl": "a .3dl", ".spi3d": "a .spi3d"}  # formats that hold a 3D LUT over 0 to 1
HALD_SIZE = 64  # level 8, which most programs read
FINER_SIZE = 65  # also read by most programs


@app.command("info")
def lut_info(lut: File, debug: Debug = False) -> None:
    """Print the contents of a LUT file and its results for a few colours."""
    with one_line(debug):
        import torch

        from fastenh.models.lut3d import identity_lut
        from fastenh.models.lut_stages import Table, domain_in_words

        look = _read(lut)
        # Sample at the entries of the tables, so that no extreme is missed.
        low, high = (torch.tensor(end)[:, None, None] for end in look.domain)
        tables = [stage.entries for stage in look.stages if isinstance(stage, Table)]
        inputs = [low + (high - low) * identity_lut(33).flatten(2)] if not tables else []
        for entries in tables:
            size = entries.shape[1]
            steps = torch.linspace(0, 1, size).expand(3, 1, -1) if entries.ndim == 2 else identity_lut(size).flatten(2)
            inputs.append(low + (high - low) * steps)
        results = [look(colours[None])[0] for colours in inputs]
        off = max((result - colours).abs().max().item() for colours, result in zip(inputs, results, strict=True))
        values = torch.cat([result.flatten(1) for result in results], 1)
        ranges = [f"{c} {v.min().item():.4g} to {v.max().item():.4g}" for c, v in zip("RGB", values, strict=True)]

        lines = [("format", look.format), ("title", look.title), ("holds", look.contents)]
        lines += [("note", note) for note in look.notes]
        lines += [("takes", domain_in_words(look.domain) if look.stages and look.stages[0].domain else "any number")]
        lines += [("gives", ", ".join(ranges))]
        rounding = 1e-6 * (high - low).max().clamp_min(1).item()
        lines += [("identity", "yes" if off < rounding else f"no, off by up to {off:.4g}")]
        if len(tables) == len(look.stages):
            lines += [("monotonic", "no: " + ", ".join(falls) if (falls := _falls(tables)) else "yes")]
        for name, colour in COLOURS.items():
            result = look(torch.tensor(colour, dtype=torch.float32).reshape(1, 3, 1, 1)).flatten().tolist()
            text = "{:.2f} {:.2f} {:.2f} → {:.4f} {:.4f} {:.4f}".format(*colour, *result)
            lines.append((name, text))
        if not look.keeps_gray:
            lines.append(("gray photos", "become RGB, because the LUT gives gray a colour"))
    for name, text in lines:
        if text:
            say(f"{name:<12}{text}")


@app.command("apply")
@expand_options
def lut_apply(
    lut: File,
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO", help="Photos, or one folder of them.")],
    run: RunOptions,
    then: Annotated[
        list[Path] | None,
        typer.Option(metavar="LUT", help="Another LUT, applied to the result; may be repeated."),
    ] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Apply the inverse; of several LUTs, from the last to the first.")
    ] = False,
    space: Annotated[
        Literal["file", "srgb"] | None,
        typer.Option(
            help="Input of the LUT: the file's own numbers, of any range, or sRGB in [0, 1].",
            show_default="file for OpenEXR and float TIFF, srgb for others",
        ),
    ] = None,
    range: Annotated[
        Literal["full", "legal"],
        typer.Option(help="legal: input and output of the LUT are video numbers, black 16/255 and white 235/255."),
    ] = "full",
    interpolation: Annotated[
        Interpolation | None,
        typer.Option(
            help="Interpolation of 3D LUTs: tetrahedral as in ffmpeg, trilinear as in Resolve and in models.",
            show_default="the one that the file specifies, else tetrahedral",
        ),
    ] = None,
    strength: Strength = 1.0,
) -> None:
    """Apply one or more LUT files to photos.

    Reads and writes the same formats as `fastenh enhance`. If the LUT gives gray a colour, gray photos become RGB.
    """

    def load() -> tuple[LutFile, dict[str, Any]]:
        from fastenh.models.lut_file import chain

        looks = [_read(path) for path in (lut, *(then or []))]
        look = chain(looks)
        if interpolation:
            look.interpolation = interpolation
        if inverse:
            with needing_opencolorio():
                look = look.inverse()
        for note in look.notes:
            say(note, err=True)
        return look.in_legal_range() if range == "legal" else look, {}

    retouch(photos, load, run, strength, space=space)


@app.command("bake")
@expand_options
def lut_bake(
    output: Written,
    model: ModelOptions,
    photo: Annotated[Path | None, typer.Option(help="Bake the model's retouch of this photo.")] = None,
    basis: Annotated[
        bool, typer.Option("--basis", help="Write the LUTs that the model blends: OUT_1.cube, OUT_2.cube …")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(help="Vertices of the 3D LUT along each side.", show_default="the model's own, or 33"),
    ] = None,
    interpolation: Annotated[
        Interpolation | None,
        typer.Option(
            help=WRITTEN_FOR,
            show_default="trilinear at the size of the model's own LUTs, else the one closer to the model",
        ),
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a model's retouch of a photo as a LUT file for other programs.

    Requires --photo or --basis. Only models that map equal colours to equal colours anywhere in the photo, such as
    `auto`, can be baked. Prints the largest difference from the model, on the photo and on any colours.
    """
    with one_line(debug):
        if basis == (photo is not None):
            raise ValueError(f"expected --photo PHOTO or --basis, got {'both' if basis else 'neither'}")
        from fastenh.atomic import check_free
        from fastenh.models import ImageAdaptiveLUT
        from fastenh.models.lut_file import LutFile, as_map, bake, sample

        system, conditions = model.load()
        name = Path(model.model).stem
        if size is None and _is_hald(output):
            size = HALD_SIZE
        if photo is not None:
            check_free(output, overwrite)
            image = _model_input(photo)
            retouch = as_map(system, image, **conditions)
            look = bake(system, image, size, interpolation, **conditions)
            look.title = f"{name}, {photo.stem}"
            _write(look, output, overwrite, retouch, name, image)
            error, finer = _on_photo(look, retouch, image), FINER_SIZE
            if error > 1 / 255 and not _is_hald(output) and (size or 0) < finer:
                better = _on_photo(bake(system, image, finer, interpolation, **conditions), retouch, image)
                if better < 0.8 * error:
                    say(f"--size {finer} would be closer: {255 * better:.2f}/255 on the photo")
            return
        if not isinstance(system, ImageAdaptiveLUT):
            raise ValueError(f"--basis: expected a model that only blends LUTs, got {type(system).__name__}")
        looks = {}
        for n, table in enumerate(system.luts, 1):
            number = str(n).zfill(len(str(len(system.luts))))  # zero-padded, so that names sort in order
            title = f"{name}, LUT {n} of {len(system.luts)}"
            looks[output.with_stem(f"{output.stem}_{number}")] = LutFile(table, interpolation="trilinear", title=title)
        for path in looks:
            check_free(path, overwrite)
        for path, look in looks.items():
            made = copy.deepcopy(look) if size is None else sample(look, size, title=look.title)
            made.interpolation = interpolation or look.interpolation
            _write(made, path, overwrite, look, "the model's table")


@app.command("convert")
def lut_convert(
    lut: File,
    output: Annotated[Path, typer.Argument(metavar="OUT", help=OUTPUT)],
    size: Annotated[
        int | None,
        typer.Option(help="Resample to one 3D LUT with this many vertices along each side.", show_default="unchanged"),
    ] = None,
    interpolation: Annotated[
        Interpolation | None,
        typer.Option(
            help=WRITTEN_FOR,
            show_default="the one that LUT specifies, else tetrahedral",
        ),
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Convert a LUT file to another format, as exactly as that format allows, or to another size.

    .png, .3dl and .spi3d hold a 3D LUT over 0 to 1; other LUTs are resampled. For .png, a LUT whose size is not a
    square number is resampled to 64 vertices (level 8). If LUT specifies no interpolation, it is read with
    --interpolation. Prints the largest difference between the two files, over their whole range.
    """
    with one_line(debug):
        from fastenh.atomic import check_free
        from fastenh.models.lut_file import as_tables, sample
        from fastenh.models.lut_stages import UNIT, Table3D, domain_in_words

        check_free(output, overwrite)
        source = _read(lut, interpolation or "tetrahedral")
        suffix = output.suffix.lower()
        if size is None and _is_hald(output) and not source.hald_level:
            size = HALD_SIZE
        elif size is None and suffix in (".3dl", ".spi3d") and source.unit_table is None:
            size = max([stage.entries.shape[1] for stage in source.stages if isinstance(stage, Table3D)], default=65)
        if size is not None:
            domain = UNIT if suffix in UNIT_TABLES else source.domain
            if domain != source.domain:
                holder, given = UNIT_TABLES[suffix], domain_in_words(source.domain)
                say(f"{output}: {holder} has the domain 0 to 1; the domain of {lut.name} is {given}", err=True)
            look = sample(source, size, domain, source.title, interpolation)
            look.comments, look.notes = source.comments, source.notes
        else:
            look = copy.deepcopy(source if suffix == ".clf" else as_tables(source))
            look.interpolation = interpolation or look.interpolation
        for note in look.notes:
            say(note, err=True)
        _write(look, output, overwrite, source, lut.name)


@contextlib.contextmanager
def needing_opencolorio() -> Iterator[None]:
    """Turns the error for the missing package into a one-line ValueError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"expected the package {error.name}, got none: pip install opencolorio") from None


def _read(path: Path, interpolation: str = "tetrahedral") -> LutFile:
    from fastenh.io import read_lut

    with needing_opencolorio():
        return read_lut(path, interpolation)


def _write(
    look: LutFile,
    path: Path,
    overwrite: bool,
    source: Callable[[Tensor], Tensor],
    name: str,
    image: Tensor | None = None,
) -> None:
    """Writes `look`, reads the file back, and prints its largest difference from `source`: on any colours and, if
    given, on `image`."""
    from fastenh.atomic import make_folder
    from fastenh.io import write_lut

    make_folder(path.parent)
    with needing_opencolorio():
        write_lut(look, path, overwrite)
    if path.suffix.lower() in (".png", ".3dl") and look.table is not None:
        low, high = look.table.min().item(), look.table.max().item()
        if min(low, 1 - high) < -0.5 / 65535:
            holder = UNIT_TABLES[path.suffix.lower()]
            say(
                f"{path}: {holder} holds values from 0 to 1; values from {low:.4g} to {high:.4g} were clipped", err=True
            )
    written = _read(path, look.interpolation)
    error = written.difference(source)
    off = f"{255 * error:.2f}/255 from {name}"
    if image is not None:
        shown = _on_photo(written, source, image)
        off = f"{255 * shown:.2f}/255 from {name} on the photo, {255 * max(error, shown):.2f}/255 on any colours"
    how = f", with {written.interpolation} interpolation" if written.table is not None else ""
    say(f"Wrote {path}: at most {off}{how}")


def _on_photo(look: LutFile, source: Callable[[Tensor], Tensor], image: Tensor) -> float:
    """The largest difference between two retouched photos."""
    return (look(image).clamp(0, 1) - source(image).clamp(0, 1)).abs().max().item()


def _is_hald(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _model_input(photo: Path) -> Tensor:
    """Returns the photo as the model's input, (1, 3, H, W)."""
    from fastenh.io import read_photo
    from fastenh.io.encoding import model_input

    content = read_photo(photo)
    return model_input(content.pixels, content.header)[None]


def _falls(tables: list[Tensor]) -> list[str]:
    """Describes where a channel of the tables falls while its own input rises."""
    found = []
    for c, name in enumerate("RGB"):
        for entries in tables:
            kind = "1D" if entries.ndim == 2 else "3D"
            steps = entries[c].diff(dim=-1 if kind == "1D" else 2 - c)
            if count := (steps < 0).sum().item():
                found.append(f"{name} falls at {count} of {steps.numel()} steps of the {kind} LUT")
    return found
