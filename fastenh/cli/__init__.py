"""The command line: `fastenh enhance`, `fastenh train`, `fastenh evaluate`, `fastenh convert`, `fastenh lut`,
`fastenh info`.

An error is one line on stderr (what, expected, got) and an exit code: 1 where some photos failed and the rest were
processed, 2 where no work was started. Slow imports are left to the commands that need them.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import warnings
from typing import Annotated

import typer

import fastenh
from fastenh.cli import convert, lut, train
from fastenh.cli.enhance import enhance
from fastenh.cli.evaluate import evaluate
from fastenh.cli.options import one_line, say

app = typer.Typer(
    help="Retouch photos, fast.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.command()(enhance)
app.command()(evaluate)
app.add_typer(convert.app, name="convert")
app.add_typer(lut.app, name="lut")
app.add_typer(train.app, name="train")


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    warnings.showwarning = lambda message, *_, **__: say(f"Warning: {message}", err=True)
    with contextlib.suppress(ValueError):  # called from another thread than the main one
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C: leaves no half file
    if version:
        typer.echo(f"fastenh {fastenh.__version__}")
        raise typer.Exit


@app.command()
def info() -> None:
    """Print what is installed and which code runs on this machine. Paste this into bug reports."""
    from rich.console import Console
    from rich.table import Table

    from fastenh import backends

    with one_line(debug=False):
        backends.check_chosen()
    table = Table.grid(padding=(0, 2))
    for label, text in backends.describe():
        table.add_row(label, text)
    Console(markup=False, highlight=False).print(table)
