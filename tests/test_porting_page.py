"""What docs/porting.md shows runs, and gives what SciPy and PyTorch give."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from fastenh import ops

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "porting.md").read_text()


@pytest.fixture(scope="module")
def names() -> dict[str, Tensor]:
    torch.manual_seed(0)
    names: dict[str, Tensor] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    return names


def look_up(image: Tensor, lut: Tensor, vertices: Tensor | None = None) -> Tensor:
    """One image (3, H, W) through one LUT [c, b, g, r], by SciPy in float64."""
    even = np.linspace(0, 1, lut.shape[-1])
    r, g, b = [even] * 3 if vertices is None else vertices.double().numpy()
    table = RegularGridInterpolator((b, g, r), lut.permute(1, 2, 3, 0).double().numpy(), bounds_error=False)
    colours = np.clip(image.double().numpy()[::-1].transpose(1, 2, 0), [b[0], g[0], r[0]], [b[-1], g[-1], r[-1]])
    return torch.from_numpy(table(colours)).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", ["after", "on_even_grid", "on_own_grid", "by_one", "by_blend", "by_curves"])
def test_values(names: dict[str, Tensor], name: str) -> None:
    image, luts, vertices, curves = (names[key] for key in ("image", "luts", "vertices", "curves"))
    lut, basis, pred = (names[key] for key in ("lut", "basis", "pred"))
    expected = []
    for b in range(len(image)):
        if name == "by_one":
            expected.append(look_up(image[b], lut))
        elif name == "by_blend":
            expected.append(sum(pred[b, n] * look_up(image[b], basis[n]) for n in range(3)))
        elif name == "by_curves":
            points = np.linspace(0, 1, curves.shape[-1])
            between = np.stack([np.interp(image[b, c], points, curves[b, c]) for c in range(3)])
            expected.append(look_up(torch.from_numpy(between), luts[b]))
        else:
            expected.append(look_up(image[b], luts[b], vertices[b] if name == "on_own_grid" else None))
    torch.testing.assert_close(names[name], torch.stack(expected), rtol=0, atol=2e-5)


def test_orders() -> None:
    """The table: what is indexed as it says becomes [c, b, g, r]."""
    lut = torch.rand(3, 4, 4, 4)
    rows = [line.split("|")[1:4] for line in PAGE.splitlines() if re.match(r"\| \(.*D", line)]
    assert len(rows) == 3
    for shape, index, expression in rows:
        letters = re.findall(r"\[([rgbc, ]+)\]", index)
        order = letters[0].split(", ") if letters else ["b", "g", "r", "c"]
        theirs = lut.permute(["cbgr".index(letter) for letter in order])
        theirs = theirs.reshape(-1, 3) if "D³" in shape else theirs
        assert torch.equal(eval(expression.strip(" `"), {"lut": theirs, "rows": theirs, "D": 4}), lut)


def test_nan_and_the_border() -> None:
    lut = torch.rand(1, 3, 5, 5, 5)
    image = torch.tensor([[0.3, float("nan"), 0.6], [0.3, 1.0, 0.6], [0.0, 0.5, 1.0], [-0.1, 0.5, 1.2]])
    image = image.T.reshape(1, 3, 1, 4).clone().requires_grad_()
    grid = (image * 2 - 1).permute(0, 2, 3, 1)[:, None]
    theirs = F.grid_sample(lut, grid, padding_mode="border", align_corners=True)[:, :, 0]
    ours = ops.lut_transform(image, lut)
    assert ours[..., 0].isnan().all()
    torch.testing.assert_close(theirs[..., 0], theirs[..., 1])
    torch.testing.assert_close(ours[..., 1:], theirs[..., 1:])
    gradients = [torch.autograd.grad(result[..., 2:].sum(), image)[0] for result in (ours, theirs)]
    for gradient in gradients:
        assert (gradient[0, [0, 2], 0, 2:] == 0).all()
        assert (gradient[0, 1, 0, 2:] != 0).all()
