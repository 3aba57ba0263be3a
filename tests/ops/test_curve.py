"""curve_iterate against its reference, F.interpolate, and the laws of every op."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from laws import FLOATS, VARIANTS, Box, Call, Laws

import fastenh
from fastenh.ops import curve, curve_iterate


@st.composite
def calls(draw: st.DrawFn) -> Call:
    sizes = st.one_of(st.integers(1, 40), st.sampled_from([511, 512, 513, 1100]))
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(sizes)
    map_size = (height, width)
    if draw(st.booleans()):  # maps of another size, smaller or larger
        map_size = draw(st.integers(1, 30)), draw(st.one_of(sizes, st.integers(1, 3)))
    iterations = draw(st.sampled_from([*range(1, 11), 17]))
    channels = draw(st.sampled_from([3, 3 * iterations]))
    most = 4 / max(iterations, 8)  # many strong curves would make much of every rounding
    curves = Box((batch, channels, *map_size), -most, most, may_hold_nan=map_size == (height, width))
    return Call([Box((batch, 3, height, width)), curves], (iterations,))


class TestLaws(Laws):
    op = curve._op
    function = staticmethod(curve_iterate)
    calls = calls()
    dtypes = (*FLOATS, torch.uint8, torch.uint16)
    small = (
        Call([Box((2, 3, 5, 7)), Box((2, 9, 5, 7), -1, 1)], (3,)),
        Call([Box((1, 3, 6, 8)), Box((1, 3, 2, 3), -1, 1)], (2,)),
        Call([Box((1, 3, 2, 3)), Box((1, 6, 5, 1), -1, 1)], (2,)),
    )
    large = Call([Box((1, 3, 593, 599)), Box((1, 6, 593, 599), -1, 1)], (2,))


def test_formula() -> None:
    """By hand: x = 0.5, r = 0.4: 0.5 + 0.4·(0.25 − 0.5) = 0.4, then 0.4 + 0.4·(0.16 − 0.4) = 0.304."""
    image, curves = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.4)
    torch.testing.assert_close(curve_iterate(image, curves, 1), torch.full((1, 3, 1, 1), 0.4))
    torch.testing.assert_close(curve_iterate(image, curves, 2), torch.full((1, 3, 1, 1), 0.304))
    order = torch.tensor([0.1, 0.2, 0.3, -0.1, -0.2, -0.3]).view(1, 6, 1, 1)  # R, G, B of iteration 1, then of 2
    expected = []
    for first, second in ((0.1, -0.1), (0.2, -0.2), (0.3, -0.3)):
        x = 0.5 + first * (0.25 - 0.5)
        expected.append(x + second * (x * x - x))
    torch.testing.assert_close(curve_iterate(image, order, 2).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_halfway_results_are_rounded_to_even(dtype: torch.dtype, bits: int, variant: str) -> None:
    """An iteration with r = 1 is x², exact in float32; several x² lie halfway between two numbers of the dtype."""
    x = torch.arange(2 ** (bits - 1), 2**bits) / 2**bits
    image = x.to(dtype).expand(1, 3, 1, -1)
    with fastenh.backend(variant):
        result = curve_iterate(image, torch.ones(1, 3, 1, len(x)), 1)
    assert torch.equal(result, image.double().square().to(dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("map_size", [(90, 160), (1, 1), (1, 333), (540, 1), (541, 961), (1000, 3000)])
def test_resampling_is_interpolates(variant: str, map_size: tuple[int, int]) -> None:
    """With x = 2 and one iteration the result is 2 + 2·r: the resampled map shows, to 1e-6 of F.interpolate's."""
    curves = torch.rand(1, 3, *map_size, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(curves, (540, 960), mode="bilinear", align_corners=True)
    with fastenh.backend(variant):
        result = curve_iterate(torch.full((1, 3, 540, 960), 2.0), curves, 1)
    torch.testing.assert_close(result / 2 - 1, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_in_a_resampled_map_shows_around_it(variant: str) -> None:
    curves = torch.zeros(1, 3, 5, 5)
    curves[0, 1, 2, 3] = float("nan")
    with fastenh.backend(variant):
        result = curve_iterate(torch.full((1, 3, 41, 41), 0.5), curves)  # 10 pixels a cell, around (20, 30)
    assert result[0, 1, 11:30, 21:40].isnan().all()
    result[0, 1, 10:31, 20:41] = 0.5
    assert (result == 0.5).all()


@pytest.mark.parametrize("iterations", [1, 8, 9, 16, 17, 100])
def test_any_number_of_iterations(iterations: int) -> None:
    image = torch.rand(1, 3, 4, 300, requires_grad=True)
    for channels, size in ((3 * iterations, (4, 300)), (3, (4, 300)), (3 * iterations, (2, 30)), (3, (2, 30))):
        curves = ((torch.rand(1, channels, *size) - 0.5) / iterations).requires_grad_()
        result = curve_iterate(image, curves, iterations)
        with fastenh.backend("reference"):
            expected = curve_iterate(image, curves, iterations)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
        grad = torch.rand_like(result)
        for fast, true in zip(
            torch.autograd.grad(result, (image, curves), grad),
            torch.autograd.grad(expected, (image, curves), grad),
            strict=True,
        ):
            torch.testing.assert_close(fast, true, rtol=1e-4, atol=1e-4)


def test_gradient_does_not_depend_on_the_number_of_threads() -> None:
    image = torch.rand(1, 3, 200, 300)
    curves = torch.rand(1, 24, 20, 30, requires_grad=True)
    before = torch.get_num_threads()
    gradients = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            gradients += torch.autograd.grad(curve_iterate(image, curves).sum(), curves)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_more_than_two_to_the_31_elements() -> None:
    height, width = 26755, 26757  # 3·H·W just above 2^31
    image = torch.empty(1, 3, height, width, dtype=torch.uint8)
    torch.add(torch.arange(width).to(torch.uint8), torch.arange(height).to(torch.uint8)[:, None], out=image[0, 0])
    image[0, 1:] = image[0, 0]
    curves = torch.full((1, 3, 1, 1), -0.3).expand(1, 3, height, width)
    table = curve_iterate(torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256), curves[..., :1, :256], 2)[0, 0, 0]
    result = curve_iterate(image, curves, 2, out=image)  # in place: one 2.1 GB tensor is enough
    for c in range(3):
        for y in (0, 1, height // 2, 26743, height - 2, height - 1):  # 2^31 lies in row 26743 of the last channel
            before = (torch.arange(width) + y) % 256
            assert torch.equal(result[0, c, y], table[before]), (c, y)


image, curves = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((None, None), TypeError, "image: expected a torch.Tensor; got NoneType"),
        ((0.5, curves), TypeError, "image: expected a torch.Tensor; got float"),
        ((image[0], curves), ValueError, r"image: expected shape \(B, 3, H, W\).*got \(3, 4, 4\)"),
        ((image[:, :2], curves), ValueError, r"image: expected shape .*got \(1, 2, 4, 4\)"),
        ((image[:0], curves[:0]), ValueError, r"B, H, W >= 1; got \(0, 3, 4, 4\)"),
        ((image.int(), curves), TypeError, "image: expected one of float.*got int32"),
        ((image, None), TypeError, "curves: expected a torch.Tensor; got NoneType"),
        ((image, curves.repeat(1, 2, 1, 1)), ValueError, "3·iterations = 24 channels, or 3; got 6"),
        ((image.repeat(2, 1, 1, 1), curves), ValueError, r"curves: expected shape \(2, C, h, w\); got \(1, 3, 4, 4\)"),
        ((image, curves[..., :0, :]), ValueError, r"curves: expected shape .*got \(1, 3, 0, 4\)"),
        ((image, curves.byte()), TypeError, "curves: expected one of float.*got uint8"),
        ((image, curves, 0), ValueError, "iterations: expected 1 to 1024; got 0"),
        ((image, curves, 1025), ValueError, "iterations: expected 1 to 1024; got 1025"),
        ((image, curves.to("meta")), ValueError, "curves: expected device cpu.*got meta"),
    ],
)
def test_bad_arguments(args: tuple[object, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^curve_iterate: .*{message}") as caught:
        curve_iterate(*args)
    assert "\n" not in str(caught.value)
