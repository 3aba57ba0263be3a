"""What the commands share: options, and errors as one line on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model", "--weights", metavar="W", help="Name of a model that comes with fastenh, or a .safetensors file."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
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
