"""lut_1d_transform against its reference, numpy.interp, exact entries, lut_transform, and the laws of every op."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from laws import FLOATS, VARIANTS, Box, Call, Laws, assert_close, lay_out, to_dtype, to_values
from torch import Tensor

import fastenh
from fastenh import backends
from fastenh.ops import lut, lut_1d, lut_1d_transform, lut_transform


def on_gpu() -> bool:
    kernels = backends.kernels("lut_1d_transform", torch.device("cpu"))
    return kernels is not None and kernels.gpu


DTYPES = (*FLOATS, torch.uint8, torch.uint16)
MODES = ("trilinear", "tetrahedral")


def ends(images: int) -> Box:
    """A domain from about 0 to about 1 or 2 for every channel."""

    def make(generator: torch.Generator) -> Tensor:
        low = torch.rand(images, 3, generator=generator) * 0.4 - 0.2
        return torch.stack([low, low + 0.7 + torch.rand(images, 3, generator=generator)], 1)

    return Box((images, 2, 3), make=make, may_hold_nan=False)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    batch, height = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    width = draw(st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 129, 300])))
    entries, size = draw(st.sampled_from([2, 3, 4, 9, 33])), draw(st.integers(2, 7))

    def images() -> int:  # of a tensor that may be the same for all
        return draw(st.sampled_from([batch, 1]))

    # At an entry, 0 · NaN of its neighbour may count or not.
    return Call(
        [
            Box((batch, 3, height, width), -0.3, 1.5),
            Box((images(), 3, entries), -0.2, 1.2, may_hold_nan=False),
            Box((images(), 3, size, size, size), -0.5, 1.5, may_hold_nan=False) if draw(st.booleans()) else None,
            ends(images()) if draw(st.booleans()) else None,
        ],
        (draw(st.sampled_from(MODES)),),
    )


def call(
    image: Tensor,
    tables: Tensor,
    luts: Tensor | None,
    domain: Tensor | None,
    interpolation: str,
    out: Tensor | None = None,
) -> Tensor:
    return lut_1d_transform(image, tables, luts, domain=domain, interpolation=interpolation, out=out)


class TestLaws(Laws):
    op = lut_1d._op
    function = staticmethod(call)
    calls = calls()
    dtypes = DTYPES
    small = [
        Call([Box((2, 3, 3, 5), 0, 1), Box((2, 3, 6)), None, ends(1)], ("trilinear",)),
        Call([Box((1, 3, 3, 4), 0, 1), Box((1, 3, 2), 0.1, 0.9), None, None], ("trilinear",)),
        Call([Box((2, 3, 3, 5), 0, 1), Box((1, 3, 5), 0.1, 0.9), Box((2, 3, 3, 3, 3)), ends(2)], ("trilinear",)),
        Call([Box((1, 3, 3, 4), 0, 1), Box((1, 3, 4), 0.1, 0.9), Box((1, 3, 4, 4, 4)), None], ("tetrahedral",)),
    ]
    large = Call([Box((1, 3, 593, 599), 0, 1), Box((1, 3, 100)), Box((1, 3, 9, 9, 9)), ends(1)], ("trilinear",))


def interpolated(image: Tensor, tables: Tensor, domain: Tensor) -> np.ndarray:
    """numpy.interp in float64, for tables and a domain that all images share."""
    x = image.double().numpy() / {torch.uint8: 255, torch.uint16: 65535}.get(image.dtype, 1)
    low, high = domain.double().numpy()
    places = [np.linspace(low[c], high[c], tables.shape[1]) for c in range(3)]
    return np.stack([np.interp(x[:, c], places[c], tables[c].double().numpy()) for c in range(3)], 1)


@pytest.mark.parametrize("variant", ["reference", *VARIANTS])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entries", [2, 17, 1024])
def test_is_numpys_interp(entries: int, dtype: torch.dtype, layout: str, variant: str) -> None:
    image = lay_out(to_dtype(torch.rand(2, 3, 40, 173) * 1.6 - 0.3, dtype), layout)
    tables, domain = torch.rand(3, entries), torch.tensor([[0.1, -0.2, 0.0], [0.9, 1.1, 0.7]])
    truth = torch.from_numpy(interpolated(image, tables, domain))
    with fastenh.backend(variant):
        assert_close(lut_1d_transform(image, tables[None], domain=domain[None]), truth, arithmetic=3e-7)


@pytest.mark.parametrize("variant", ["reference", *VARIANTS])
@pytest.mark.parametrize("domain", [None, [[-1.0, 0.5, 0.0], [3.0, 1.5, 100.0]]])
def test_65536_random_entries_are_exact(domain: list[list[float]] | None, variant: str) -> None:
    """With positions in float32, random neighbours would mix in the wrong shares: an error of 1e-2."""
    tables, ends = torch.rand(3, 65536), torch.tensor(domain or [[0.0] * 3, [1.0] * 3])
    image = (torch.rand(1, 3, 200, 300) * 1.02 - 0.01) * (ends[1] - ends[0])[:, None, None] + ends[0][:, None, None]
    with fastenh.backend(variant):
        result = lut_1d_transform(image, tables[None], domain=ends[None] if domain else None)
    np.testing.assert_allclose(result, interpolated(image, tables, ends), rtol=0, atol=2e-7)


@pytest.mark.parametrize("variant", ["reference", *VARIANTS])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 3.0), (0.5, 64.5)])
@pytest.mark.parametrize("entries", [2, 3, 33, 1025, 4097])
def test_a_number_on_an_entry_gives_that_entry(entries: int, low: float, high: float, variant: str) -> None:
    tables, domain = torch.randn(3, entries), torch.tensor([[low] * 3, [high] * 3])
    image = (torch.arange(entries) / (entries - 1) * (high - low) + low).expand(1, 3, 1, -1)  # exact in float32
    with fastenh.backend(variant):
        assert torch.equal(lut_1d_transform(image, tables[None], domain=domain[None])[0, :, 0], tables)


@pytest.mark.parametrize("variant", ["reference", *VARIANTS])
@pytest.mark.parametrize(("dtype", "levels"), [(torch.uint8, 256), (torch.uint16, 65536)])
def test_one_entry_for_each_level_is_exact(dtype: torch.dtype, levels: int, variant: str) -> None:
    order = torch.stack([torch.randperm(levels) for _ in range(3)])
    image = torch.arange(levels).to(dtype).view(1, 1, 16, -1).expand(1, 3, -1, -1)
    with fastenh.backend(variant):
        result = lut_1d_transform(image, order[None] / (levels - 1))
    assert torch.equal(result.flatten(2)[0].long(), order)


@pytest.mark.parametrize("variant", ["reference", *VARIANTS])
@pytest.mark.parametrize("entries", [2, 5])
def test_infinity_is_beyond_the_domain_and_nan_stays(entries: int, variant: str) -> None:
    image = torch.tensor([float("-inf"), -1e38, float("nan"), 1e38, float("inf")]).expand(1, 3, 1, 5)
    image = image.clone().requires_grad_()
    tables = torch.rand(1, 3, entries)
    with fastenh.backend(variant):
        result = lut_1d_transform(image, tables)
        gradient = torch.autograd.grad(result, image, torch.ones_like(result))[0]
    assert torch.equal(result[0, :, 0, :2], tables[0, :, :1].expand(-1, 2))
    assert result[0, :, 0, 2].isnan().all()
    assert torch.equal(result[0, :, 0, 3:], tables[0, :, -1:].expand(-1, 2))
    assert (gradient == 0).all()


def test_slopes_between_entries() -> None:
    """Per unit of the image; on an entry the slope above; zero at the ends of the domain and beyond."""
    image = torch.tensor([-1.0, -0.5, 0.0, 1.5, 2.5, 3.5, 4.0]).expand(1, 3, 1, 7).clone().requires_grad_()
    tables = torch.tensor([0.0, 1.0, 5.0]).expand(1, 3, 3)  # at -0.5, 1.5 and 3.5
    domain = torch.tensor([[-0.5] * 3, [3.5] * 3])[None]
    result = lut_1d_transform(image, tables, domain=domain)
    gradient = torch.autograd.grad(result.sum(), image)[0][0, 0, 0]
    torch.testing.assert_close(gradient, torch.tensor([0, 0, 1 / 2, 2, 2, 0, 0]))


@pytest.mark.parametrize("variant", ["reference", *VARIANTS])
def test_on_an_entry_the_slope_is_that_above(variant: str) -> None:
    """49 · (1 / 49) is less than 1 in float64; the slope must not depend on that."""
    k = torch.arange(1.0, 8)
    image = (49 * k).expand(1, 3, 1, -1).clone().requires_grad_()
    tables, domain = torch.arange(9.0).square().expand(1, 3, -1), torch.tensor([[[0.0] * 3, [8 * 49.0] * 3]])
    with fastenh.backend(variant):
        gradient = torch.autograd.grad(lut_1d_transform(image, tables, domain=domain).sum(), image)[0]
    torch.testing.assert_close(gradient[0, 0, 0], (2 * k + 1) / 49)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("small", [False, True], ids=["packed", "small"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("layout", "batch"), [("contiguous", 1), ("channels_last", 2)])
def test_a_3d_lut_follows_without_rounding(
    layout: str, batch: int, dtype: torch.dtype, mode: str, small: bool, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass with packed LUTs, which all images share or not; small images in two passes."""
    monkeypatch.setattr(lut, "is_small", lambda *args: small)
    image = lay_out(to_dtype(torch.rand(2, 3, 21, 80) * 1.2 - 0.1, dtype), layout)
    tables, luts = torch.rand(batch, 3, 100), torch.rand(batch, 3, 9, 9, 9)
    domain = torch.tensor([[[-0.05] * 3, [0.9, 1.0, 1.05]]])
    between = lut_1d_transform(to_values(image), tables, domain=domain)
    truth = lut._op.reference(lut.Arguments(between, luts[:, None], None, None, None, mode))
    with fastenh.backend(variant):
        result = lut_1d_transform(image, tables, luts, domain=domain, interpolation=mode)
        assert_close(result, truth, "result", 5e-5)
        assert lut_1d_transform(image, tables, luts, domain=domain, interpolation=mode, out=image) is image
        assert_close(image, truth, "in place", 5e-5)


def test_two_entries_place_numbers_in_the_domain_of_a_lut() -> None:
    image, luts = torch.rand(1, 3, 60, 70) * 4 - 1, torch.rand(1, 3, 17, 17, 17)
    low, high = torch.tensor([-0.5, 0.0, 0.25]), torch.tensor([2.0, 1.0, 1.5])
    line = torch.tensor([0.0, 1.0]).expand(1, 3, 2)
    placed = (image - low[:, None, None]) / (high - low)[:, None, None]
    result = lut_1d_transform(image, line, luts, domain=torch.stack([low, high])[None])
    torch.testing.assert_close(result, lut_transform(placed, luts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_curves_written_as_a_3d_lut(variant: str) -> None:
    """Values and gradients, which lut_transform computes in another way."""
    image, curves = (torch.rand(2, 3, 60, 70) * 1.2 - 0.1).requires_grad_(), torch.rand(2, 3, 9).requires_grad_()
    luts = torch.rand(2, 3, 7, 7, 7).requires_grad_()
    red, green, blue = curves.unbind(1)
    cube = (2, 9, 9, 9)
    cubes = [red[:, None, None].expand(cube), green[:, None, :, None].expand(cube), blue[..., None, None].expand(cube)]
    expected = lut_transform(lut_transform(image, torch.stack(cubes, 1)[:, None]), luts[:, None])
    grad = torch.randn(expected.shape)
    with fastenh.backend(variant):
        result = lut_1d_transform(image, curves, luts)
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)
        ours = torch.autograd.grad(result, (image, curves, luts), grad)
    for gradient, true in zip(ours, torch.autograd.grad(expected, (image, curves, luts), grad), strict=True):
        scale = float(true.abs().max())  # next to an entry or a vertex, rounding decides which slope a pixel gets
        assert ((gradient - true).abs() > 1e-3 * scale).float().mean() < 1e-3


def test_gradient_of_a_flat_picture() -> None:
    """Eight million pixels in one cell: one float32 sum over all of them is 8 % off."""
    image = torch.full((1, 3, 1, 1), 0.3).expand(1, 3, 2048, 4096)
    tables = torch.rand(1, 3, 2, requires_grad=True)
    lut_1d_transform(image, tables).backward(torch.full((1, 3, 1, 1), 0.1).expand(1, 3, 2048, 4096))
    expected = torch.tensor([0.7, 0.3]) * 0.1 * 2048 * 4096
    torch.testing.assert_close(tables.grad, expected.expand(1, 3, 2), rtol=1e-4, atol=0)


def test_gradient_of_a_picture_of_two_tones() -> None:
    """Adjacent pixels are in different cells, each of which gets a million."""
    image = torch.tensor([0.1, 0.9]).repeat(1024).expand(1, 3, 1024, 2048)
    tables = torch.rand(1, 3, 3, requires_grad=True)
    lut_1d_transform(image, tables).backward(torch.full((1, 3, 1, 1), 0.1).expand(1, 3, 1024, 2048))
    expected = torch.tensor([0.8, 0.4, 0.8]) * 0.1 * 1024 * 1024
    torch.testing.assert_close(tables.grad, expected.expand(1, 3, 3), rtol=1e-4, atol=0)


@pytest.mark.skipif(on_gpu(), reason="a choice of the CPU")
def test_small_images_need_no_packed_luts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the LUTs were packed")

    monkeypatch.setattr(lut, "pack", refuse)
    tables, luts = torch.rand(1, 3, 20), torch.rand(1, 3, 256, 256, 256)
    lut_1d_transform(torch.rand(1, 3, 30, 30), tables, luts)
    with pytest.raises(AssertionError, match="packed"):
        lut_1d_transform(torch.rand(1, 3, 200, 200), tables, torch.rand(1, 3, 33, 33, 33))


def test_float64_stays_exact() -> None:
    image, tables = torch.rand(1, 3, 20, 30, dtype=torch.float64), torch.rand(1, 3, 65536, dtype=torch.float64)
    expected = interpolated(image, tables[0], torch.tensor([[0.0] * 3, [1.0] * 3]))
    np.testing.assert_allclose(lut_1d_transform(image, tables), expected, rtol=0, atol=1e-10)


image, tables = torch.rand(2, 3, 4, 4), torch.rand(1, 3, 5)
luts, domain = torch.rand(1, 3, 4, 4, 4), torch.tensor([[[0.0] * 3, [1.0] * 3]])


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((None, tables), {}, TypeError, "image: expected a torch.Tensor; got NoneType"),
        ((image[0], tables), {}, ValueError, r"image: expected shape \(B, 3, H, W\).*got \(3, 4, 4\)"),
        ((image, None), {}, TypeError, "tables: expected a torch.Tensor; got NoneType"),
        ((image, tables[0]), {}, ValueError, r"tables: expected shape \(2, 3, S\) or \(1, 3, S\); got \(3, 5\)"),
        ((image, tables.expand(3, -1, -1)), {}, ValueError, r"tables: expected shape .*got \(3, 3, 5\)"),
        ((image, tables[..., :1]), {}, ValueError, "tables: expected 2 <= S <= 65536; got S = 1"),
        ((image, torch.rand(1, 3, 65537)), {}, ValueError, "tables: expected 2 <= S <= 65536; got S = 65537"),
        ((image, tables.byte()), {}, TypeError, "tables: expected one of float.*got uint8"),
        ((image, tables.to("meta")), {}, ValueError, "tables: expected device cpu.*got meta"),
        ((image, tables, luts[0]), {}, ValueError, r"luts: expected shape \(2, 3, .*got \(3, 4, 4, 4\)"),
        ((image, tables, luts[..., :3]), {}, ValueError, r"luts: expected shape .*got \(1, 3, 4, 4, 3\)"),
        ((image, tables, luts[..., :1, :1, :1]), {}, ValueError, "luts: expected 2 <= D <= 256; got D = 1"),
        ((image, tables, 1), {}, TypeError, "luts: expected a torch.Tensor; got int"),
        ((image, tables), {"domain": domain[0]}, ValueError, r"domain: expected shape \(2, 2, 3\) or \(1, 2, 3\)"),
        ((image, tables), {"domain": (0, 1)}, TypeError, "domain: expected a torch.Tensor; got tuple"),
        ((image, tables, luts), {"interpolation": "cubic"}, ValueError, "interpolation: expected 'trilinear' or"),
    ],
)
def test_bad_arguments(args: tuple[object, ...], options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^lut_1d_transform: .*{message}") as caught:
        lut_1d_transform(*args, **options)
    assert "\n" not in str(caught.value)
