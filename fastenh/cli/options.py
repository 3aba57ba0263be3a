"""What the commands share: options, and errors as one line on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

from fastenh.memory import is_out_of_memory

Model = Annotated[
    str,
    typer.Option(
        "--model", "--weights", metavar="W", help="Name of a model that comes with fastenh, or a .safetensors file."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        help="File or folder to write to.",
        show_default="photo_enhanced.jpg beside photo.jpg; of a folder, enhanced/ in it",
    ),
]
Dither = Annotated[bool, typer.Option("--dither", help="Round by a pattern, so that gradients show no bands.")]
Quality = Annotated[
    int | None, typer.Option(metavar="1-100", help="Of JPEG, WebP and HEIC.", show_default="a JPEG's own; else 95")
]
Suffix = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Add it to names.", show_default="_enhanced, beside the photo only")
]
Recursive = Annotated[bool, typer.Option("--recursive", help="Take the folders in the folder, too.")]
Watch = Annotated[bool, typer.Option("--watch", help="Go on with photos that come into the folder.")]
Jobs = Annotated[int, typer.Option(metavar="N", help="Photos at a time.", min=1)]
Compare = Annotated[bool, typer.Option("--compare", help="Also write a before/after picture.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]


@contextlib.contextmanager
def one_line(debug: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if debug:
            raise
        say(f"fastenh: {message(error)}", err=True)
        raise typer.Exit(2) from None


def message(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out of memory"
    if isinstance(error, OSError) and error.errno:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    known = isinstance(error, (ValueError, OSError, FloatingPointError)) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}"


def say(line: str, err: bool = False) -> None:
    """One line, whatever a file name or a library put in it: newlines, terminal codes, bytes that are no text."""
    typer.echo("".join(c if c.isprintable() else " " for c in line), err=err)


@contextlib.contextmanager
def needing_extra(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"expected the package {error.name}, got none: pip install 'fastenh[{extra}]'") from None
