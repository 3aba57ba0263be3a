"""Stages of LUT files, chains of them, legal range and inverses, against NumPy's and OpenColorIO's."""

import numpy as np
import PyOpenColorIO as ocio
import pytest
import torch
from torch import Tensor

from fastenh.models import LutFile
from fastenh.models.lut3d import identity_lut
from fastenh.models.lut_file import as_tables, chain
from fastenh.models.lut_stages import UNIT, Matrix, OpenColorIOSteps, Table1D, Table3D

MATRIX = torch.tensor([[0.7, 0.2, 0.1, 0.05], [-0.1, 1.1, 0.0, -0.2], [0.0, 0.3, 0.6, 0.0]])
WIDE = ((-1.0, -0.5, 0.0), (2.0, 1.5, 4.0))


def colours(low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (low + (high - low) * torch.rand(2, 3, 17, 19, generator=generator)).to(dtype)


def exponent(value: float) -> OpenColorIOSteps:
    transform = ocio.ExponentTransform([value, value, value, 1.0], ocio.NEGATIVE_MIRROR)
    return OpenColorIOSteps([transform])


def rising(size: int) -> Tensor:
    """A curve for each channel; blue's falls."""
    steps = 0.1 + torch.rand(3, size, generator=torch.Generator().manual_seed(2))
    curves = steps.cumsum(1) / steps.sum(1, keepdim=True)
    return torch.stack([curves[0] * 2 - 0.5, curves[1], 1 - curves[2]])


# ---- forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_by_numpy(dtype):
    x = colours(-2, 3, dtype)
    m = MATRIX.double().numpy()
    expected = np.einsum("oc,bchw->bohw", m[:, :3], x.double().numpy()) + m[:, 3][:, None, None]
    np.testing.assert_allclose(Matrix(MATRIX)(x).numpy(), expected, rtol=1e-6, atol=2e-6)


def test_a_gain_lets_no_infinity_into_other_channels():
    gain = Matrix(torch.eye(3, 4) * 2)
    x = torch.tensor([torch.inf, 1.0, torch.nan])[None, :, None, None]
    assert gain(x).flatten()[:2].tolist() == [torch.inf, 2.0] and gain.contents == "gain and offset"
    assert Matrix(MATRIX).contents == "matrix"


def test_a_range_maps_to_another():
    x = torch.tensor([[-1.0, 2.0], [-0.5, 1.5], [0.0, 4.0]])[None, :, None]
    expected = torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2)
    torch.testing.assert_close(Matrix.between(WIDE, UNIT)(x), expected)
    torch.testing.assert_close(Matrix.between(UNIT, WIDE)(expected), x)
    assert Matrix.between(WIDE, UNIT).unit_domain == WIDE and Matrix(MATRIX).unit_domain is None
    assert Matrix(-torch.eye(3, 4)).unit_domain is None


def test_opencolorio_steps_by_numpy():
    x = colours(-2, 3)
    np.testing.assert_allclose(exponent(1.7)(x), x.sign() * x.abs() ** 1.7, rtol=1e-5, atol=1e-6)
    assert exponent(1.7)(x.half()).dtype == torch.float16


def test_stages_run_in_order_on_every_dtype():
    lut = LutFile(stages=[Matrix(MATRIX), exponent(2.0), Table1D(rising(9), WIDE), Table3D(identity_lut(3) * 0.5)])
    x = colours()
    step = np.einsum("oc,bchw->bohw", MATRIX[:, :3].double(), x.double()) + MATRIX[:, 3].double().numpy()[:, None, None]
    step = np.sign(step) * step**2
    for c in range(3):
        step[:, c] = np.interp(step[:, c], np.linspace(WIDE[0][c], WIDE[1][c], 9), rising(9)[c].double())
    expected = step.clip(0, 1) * 0.5
    np.testing.assert_allclose(lut(x), expected, atol=1e-5)
    for dtype, full in ((torch.uint8, 255), (torch.uint16, 65535)):
        levels = (x * full).round().to(dtype)
        assert np.abs(lut(levels).double().numpy() / full - lut(levels.float() / full).numpy()).max() <= 0.51 / full


def test_a_chain_is_one_after_the_other():
    first, second = LutFile(None, rising(5), title="one"), LutFile(torch.rand(3, 4, 4, 4))
    x = colours(-1, 2)
    assert torch.equal(chain([first, second])(x), second(first(x))) and chain([first]) is first
    with pytest.raises(ValueError, match=r"expected a matrix of shape \(3, 4\), got \(3, 3\)"):
        Matrix(torch.eye(3))
    with pytest.raises(ValueError, match="expected finite numbers in the matrix"):
        Matrix(torch.full((3, 4), torch.inf))


def test_legal_range_is_16_to_235():
    """Of a LUT that clips to legal black and white; and of one that doubles, about legal black."""
    legal = LutFile(2 * identity_lut(2)).in_legal_range()
    levels = torch.tensor([0.0, 0.25, 0.5])
    result = legal(levels.expand(1, 3, 1, 3))[0, 0, 0]
    np.testing.assert_allclose(result, ((16 + 219 * levels) * 2 - 16) / 219, rtol=1e-6)
    assert torch.allclose(LutFile(identity_lut(9)).in_legal_range()(colours()), colours(), atol=1e-6)


# ---- inverses


@pytest.mark.parametrize("domain", [UNIT, WIDE])
def test_the_inverse_of_a_1d_table_by_numpy(domain):
    curves = rising(33)
    inverse = LutFile(None, curves, shaper_domain=domain).inverse()
    y = colours(-1, 2)
    for c in range(3):
        ramp = np.linspace(domain[0][c], domain[1][c], 33)
        entries = curves[c].double().numpy()
        order = np.argsort(entries)
        expected = np.interp(y[:, c], entries[order], ramp[order])
        np.testing.assert_allclose(inverse(y)[:, c], expected, rtol=1e-5, atol=1e-5)
    assert inverse.notes == ()


def test_the_inverse_of_a_matrix_by_numpy():
    y = colours(-1, 2)
    m = MATRIX.double().numpy()
    expected = np.einsum("oc,bchw->bohw", np.linalg.inv(m[:, :3]), y.double().numpy() - m[:, 3][:, None, None])
    np.testing.assert_allclose(LutFile(stages=[Matrix(MATRIX)]).inverse()(y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("domain", [UNIT, WIDE])
def test_the_inverse_of_a_3d_table_restores_colours(domain):
    low, high = (torch.tensor(end)[:, None, None] for end in domain)
    table = identity_lut(9) ** 1.4 * 0.9 + 0.05 * identity_lut(9)[[2, 0, 1]]
    lut = LutFile(table, table_domain=domain)
    inverse = lut.inverse()
    x = low + (high - low) * colours()
    torch.testing.assert_close(inverse(lut(x)), x, rtol=1e-4, atol=1e-4)
    assert inverse.notes == ()


def test_the_inverse_of_a_chain_runs_backwards():
    lut = LutFile(stages=[Matrix(MATRIX), exponent(1.7), Table1D(rising(17), ((-1.0,) * 3, (3.0,) * 3))])
    x = colours()
    torch.testing.assert_close(lut.inverse()(lut(x)), x, rtol=1e-4, atol=1e-4)
    assert lut.inverse().contents.startswith("Lut1D by OpenColorIO")


def test_an_inverse_says_what_it_cannot_restore():
    clipped = LutFile((2 * identity_lut(9)).clamp(max=1))
    (note,) = clipped.inverse().notes
    assert note.startswith("the inverse restores colours to within 0.5")


def test_what_has_no_inverse_is_refused():
    turning = rising(9)
    turning[1, 4] = 0
    for stage, message in (
        (Table1D(turning), "expected a 1D LUT that only rises or only falls, to invert it; its G does not"),
        (Table1D(torch.full((3, 5), 0.5)), "its R does not"),
        (Matrix(torch.ones(3, 4)), "expected a matrix that can be inverted, got a singular one"),
    ):
        with pytest.raises(ValueError, match=message):
            LutFile(stages=[stage]).inverse()


# ---- as tables


def test_a_chain_as_tables_says_by_how_much_it_is_off():
    simple = LutFile(torch.rand(3, 3, 3, 3), torch.rand(3, 5))
    assert as_tables(simple) is simple
    lut = LutFile(stages=[Matrix(MATRIX), exponent(2.0)], title="a")
    tables = as_tables(lut)
    x = colours()
    error = (tables(x) - lut(x)).abs().max().item()
    (note,) = tables.notes
    assert tables.contents == "3D LUT of 65×65×65" and tables.title == "a"
    said = float(note.removeprefix("sampled as 3D LUT of 65×65×65; differs by up to "))
    assert 0.3 * said < error < 1.5 * said
    curves = as_tables(LutFile(stages=[Table1D(rising(5)), exponent(2.0)]))
    assert curves.contents == "1D LUT of 65536 entries" and curves.notes == ()
    assert as_tables(LutFile(stages=[])).contents == "1D LUT of 65536 entries"
    full = LutFile(stages=[Table1D(rising(5)), Table3D(torch.rand(3, 4, 4, 4)), Table1D(rising(2))])
    assert as_tables(full).contents == "1D LUT of 5 entries, then 3D LUT of 4×4×4"
