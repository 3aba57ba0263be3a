"""`fastenh convert`: published weights to fastenh's .safetensors files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fastenh.cli.options import Debug, Overwrite, one_line, say

app = typer.Typer(help="Convert published weights to .safetensors files that fastenh runs.", no_args_is_help=True)

Weights = Annotated[Path, typer.Argument(metavar="FILE.pth", help="The published weights.")]
Converted = Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")]


@app.command("lut3d")
def convert_lut3d(
    luts: Annotated[Path, typer.Argument(metavar="LUTS.pth", help="The published basis LUTs.")],
    classifier: Annotated[Path, typer.Argument(metavar="CLASSIFIER.pth", help="The published classifier.")],
    output: Converted,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Image-adaptive 3D LUT (Zeng et al.), paired or unpaired variant."""
    _convert(lambda models: models.lut3d.convert(luts, classifier), output, overwrite, debug)


@app.command("adaint")
def convert_adaint(weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """AdaInt (Yang et al.), a 3D LUT whose grid adapts to each photo. Its published weights are Apache-2.0."""
    _convert(lambda models: models.adaint.convert(weights), output, overwrite, debug)


@app.command("seplut")
def convert_seplut(weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """SepLUT (Yang et al.), 1D LUTs followed by a 3D LUT, variant M6 or M8. Its published weights are Apache-2.0."""
    _convert(lambda models: models.seplut.convert(weights), output, overwrite, debug)


@app.command("csrnet")
def convert_csrnet(weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """CSRNet (He et al.), a small network applied to the colour of each pixel. Its published weights come without a
    licence."""
    _convert(lambda models: models.csrnet.convert(weights), output, overwrite, debug)


@app.command("zero-dce")
def convert_zero_dce(weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """Zero-DCE (Guo et al.) for low light. Its published weights are CC BY-NC 4.0."""
    _convert(lambda models: models.zero_dce.convert(weights, "zero-dce"), output, overwrite, debug)


@app.command("zero-dce++")
def convert_zero_dce_pp(
    weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False
) -> None:
    """Zero-DCE++ (Li et al.) for low light, with curves predicted at 1/12 of the size. Published as CC BY-NC 4.0."""
    _convert(lambda models: models.zero_dce.convert(weights, "zero-dce++"), output, overwrite, debug)


@app.command("scl-lle")
def convert_scl_lle(weights: Weights, output: Converted, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """SCL-LLE (Liang et al.) for low light. Its published weights come without a licence."""
    _convert(lambda models: models.zero_dce.convert(weights, "scl-lle"), output, overwrite, debug)


def _convert(read: Callable[[Any], Any], output: Path, overwrite: bool, debug: bool) -> None:
    """`read` makes a model, given the package `models`, which is slow to import."""
    with one_line(debug):
        if output.suffix != ".safetensors":
            raise ValueError(f"-o: expected a name that ends in .safetensors, got {output}")
        from fastenh import models
        from fastenh.atomic import check_free

        check_free(output, overwrite)
        models.save(read(models), output)
    say(f"Wrote {output}")
