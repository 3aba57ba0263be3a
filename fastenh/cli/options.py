"""What the commands share: options, each declared once, and errors as one line on stderr.

A command whose parameter is annotated with one of the dataclasses below, under `@expand_options`, takes all of its
fields as options, and gets them as one object.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from fastenh.memory import is_out_of_memory

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Strength = Annotated[float, typer.Option(help="0 leaves the photo as it is, 1 is the whole retouch.")]


@dataclass
class ModelOptions:
    """Which model runs, and with which conditions."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "--weights",
            metavar="MODEL",
            help="auto retouches, correct only corrects exposure and tints, lowlight brightens dark photos; "
            "or a .safetensors file.",
        ),
    ] = "auto"
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set a condition of the model, such as a style; may be repeated."
        ),
    ] = None

    def load(self) -> tuple[Any, dict[str, Any]]:
        """The model, and the values of its conditions, which are valid. ValueError for a wrong name or value."""
        from fastenh.models import load

        model = load(self.model)
        values = {}
        for text in self.conditions or []:
            name, equals, value = text.partition("=")
            if name in values:
                raise ValueError(f"--set {name}: expected one value, got another")
            if not equals or name not in model.conditions:
                known = ", ".join(model.conditions) or "it has none"
                raise ValueError(f"--set: expected NAME=VALUE for a condition of {self.model} ({known}), got {text!r}")
            try:
                values[name] = model.conditions[name].parse(value)
            except (ValueError, TypeError, LookupError) as error:
                raise ValueError(f"--set {name}: {error}") from None
        model.check_conditions(values)
        return model, values


@dataclass
class RunOptions:
    """Where photos go, how they are written, and how many run at once."""

    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="File or folder to write to.",
            show_default="photo_enhanced.jpg beside photo.jpg; for a folder, its subfolder enhanced/",
        ),
    ] = None
    dither: Annotated[bool, typer.Option("--dither", help="Dither when rounding, so that gradients show no bands.")] = (
        False
    )
    quality: Annotated[
        int | None,
        typer.Option(
            metavar="1-100",
            help="Quality of lossy formats; 100 is lossless in AVIF and JPEG XL.",
            show_default="a JPEG keeps its own; else 95",
        ),
    ] = None
    suffix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Text appended to output file names.",
            show_default="_enhanced if written beside the photo, else none",
        ),
    ] = None
    recursive: Annotated[bool, typer.Option("--recursive", help="Include subfolders.")] = False
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep running, and process photos that are added to the folder.")
    ] = False
    jobs: Annotated[int, typer.Option(metavar="N", help="Photos processed at the same time.", min=1)] = 2
    device: Device = "auto"
    keep_times: Annotated[
        bool, typer.Option("--keep-times", help="Give results the modification and access time of their photos.")
    ] = False
    compare: Annotated[bool, typer.Option("--compare", help="Also write a before/after picture.")] = False
    overwrite: Overwrite = False
    debug: Debug = False


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a dataclass replaced by the dataclass's fields, as typer reads them."""
    hints = get_type_hints(command, include_extras=True)
    required: list[Any] = []
    optional: list[Any] = []
    kinds: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if is_dataclass(kind):
            kinds[name] = kind
            types = get_type_hints(kind, include_extras=True)
            for f in fields(kind):
                option = f.name, types[f.name], parameter.empty if f.default is MISSING else f.default
                (required if f.default is MISSING else optional).append(option)
        elif parameter.default is parameter.empty:
            required.append((name, kind, parameter.empty))
        else:
            optional.append((name, kind, parameter.default))

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        objects = {name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in kinds.items()}
        command(**values, **objects)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in required + optional
    ]
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {name: kind for name, kind, _ in required + optional}
    return expanded


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
