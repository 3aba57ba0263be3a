"""lut_transform against its reference, F.grid_sample, tetrahedra case by case, goldens, and the laws of every op."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from laws import FLOATS, VARIANTS, Box, Call, Laws, assert_close, lay_out, to_dtype, to_values
from torch import Tensor

import fastenh
from fastenh import backends
from fastenh.ops import lut, lut_transform

MODES = ("trilinear", "tetrahedral")


def grid(batch: int, size: int) -> Box:
    """Increasing vertices from 0 to 1, no two closer than a third of the uniform distance."""

    def make(generator: torch.Generator) -> Tensor:
        steps = torch.rand(batch, 3, size - 1, generator=generator) + 0.5
        places = F.pad(steps.cumsum(-1), (1, 0))
        return places / places[..., -1:]

    return Box((batch, 3, size), make=make, may_hold_nan=False)  # which pixels become NaN is unspecified


@st.composite
def calls(draw: st.DrawFn) -> Call:
    batch, count, size = draw(st.integers(1, 3)), draw(st.integers(1, 11)), draw(st.integers(2, 9))
    height, width = draw(st.integers(1, 9)), draw(st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 129, 300])))
    own = draw(st.booleans())
    weighted, by_pixel = draw(st.booleans()), draw(st.booleans())

    def images() -> int:  # of a tensor that may be the same for all
        return draw(st.sampled_from([batch, 1]))

    return Call(
        [
            Box((batch, 3, height, width), -0.2, 1.2),
            Box(
                ((batch,) if own else ()) + (count, 3, size, size, size), -0.5, 1.5, may_hold_nan=False
            ),  # at a vertex, 0 · NaN of its neighbour may count or not
            Box((images(), count), -1.0, 1.0) if weighted or (count > 1 and not by_pixel) else None,
            Box((images(), count, height, width), -1.0, 1.0) if by_pixel else None,
            grid(images(), size) if draw(st.booleans()) else None,
        ],
        (draw(st.sampled_from(MODES)),),
    )


def call(
    image: Tensor,
    luts: Tensor,
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    vertices: Tensor | None,
    interpolation: str,
    out: Tensor | None = None,
) -> Tensor:
    return lut_transform(image, luts, weights, pixel_weights, vertices=vertices, interpolation=interpolation, out=out)


def reference(*args: object) -> Tensor:
    return lut._op.reference(lut.Arguments(*args))


class TestLaws(Laws):
    op = lut._op
    function = staticmethod(call)
    calls = calls()
    dtypes = (*FLOATS, torch.uint8, torch.uint16)
    half_on_gpu = {torch.float16: 2**-9, torch.uint8: 2**-8}
    small = [
        Call([Box((2, 3, 3, 5), 0, 1), Box((2, 3, 4, 4, 4)), Box((2, 2), -1, 1), None, None], ("trilinear",)),
        Call([Box((2, 3, 3, 5), 0, 1), Box((6, 3, 3, 3, 3)), Box((2, 6)), Box((2, 6, 3, 5)), None], ("trilinear",)),
        Call([Box((1, 3, 3, 4), 0, 1), Box((1, 1, 3, 3, 3, 3)), None, None, grid(1, 3)], ("trilinear",)),
        Call([Box((1, 3, 3, 4), 0, 1), Box((2, 3, 3, 3, 3)), None, Box((1, 2, 3, 4)), grid(1, 3)], ("tetrahedral",)),
        Call(
            [Box((2, 3, 3, 4), 0, 1), Box((2, 3, 3, 3, 3)), Box((1, 2)), Box((1, 2, 3, 4)), grid(1, 3)], ("trilinear",)
        ),
    ]
    large = Call([Box((1, 3, 593, 599), 0, 1), Box((1, 3, 9, 9, 9)), None, None, None], ("trilinear",))


@pytest.fixture(params=["small", "packed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether a CPU reads the LUTs as they are, as for small images, or packs them first. (GPUs decide differently.)"""
    if request.param == "packed" and on_gpu():
        pytest.skip("a choice of the CPU")
    monkeypatch.setattr(lut, "_is_small", lambda pixels, luts: request.param == "small")
    return request.param


def on_gpu() -> bool:
    kernels = backends.kernels("lut_transform", torch.device("cpu"))
    return kernels is not None and kernels.gpu


@pytest.mark.skipif(on_gpu(), reason="a choice of the CPU")
class TestLawsOfPackedLuts(TestLaws):
    """The same with LUTs that are packed first, as for large images."""

    @pytest.fixture(autouse=True)
    def pack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lut, "_is_small", lambda pixels, luts: False)

    # These do not depend on which kernels run.
    test_operators_keep_torchs_rules = test_reference_is_differentiated_right = None
    test_no_second_derivative_in_silence = test_forward_mode_agrees_with_the_gradient = None
    test_vmap_is_a_loop = test_compiles_and_exports_as_one_operator = None


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("entry", [float("inf"), float("-inf"), 3e38, -3e38])
@pytest.mark.usefixtures("path")
def test_infinite_and_huge_entries_count_as_in_the_reference(entry: float, mode: str, variant: str) -> None:
    """a + f · (b - a) would give NaN and infinity. Gradients too, where none is NaN or beyond float32."""
    generator = torch.Generator().manual_seed(5)
    table = torch.rand(1, 3, 5, 5, 5, generator=generator) * 2 - 1
    table[..., 2:, :, 1:3] = entry
    table[:, :, 1] *= -entry if abs(entry) < float("inf") else 1
    image = torch.randint(0, 84, (1, 3, 12, 90), generator=generator, dtype=torch.uint8)
    image = 3 * image + torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]  # no weight is 0: 0 times inf is NaN
    real = (image / 255).requires_grad_()
    tolerance = {"rtol": 1e-5, "atol": 1e-5 if abs(entry) == float("inf") else 1e34}
    truth = reference(real, table, None, None, None, mode)
    grad = torch.rand(truth.shape, generator=generator)
    slopes = torch.autograd.grad(truth, real, grad)[0]
    with fastenh.backend(variant):
        result = lut_transform(real, table, interpolation=mode)
        torch.testing.assert_close(result, truth, **tolerance)
        if abs(entry) == float("inf") and mode == "trilinear":
            torch.testing.assert_close(torch.autograd.grad(result, real, grad)[0], slopes, equal_nan=True, **tolerance)
        levels = lut_transform(image, table, interpolation=mode)
    assert not truth.isnan().any() and (truth.isinf().any() or truth.abs().max() > 1e38)
    if abs(entry) == float("inf") or not on_gpu():  # GPUs take 3e38 and 1e38 both for 65504
        expected = (truth.detach().clamp(0, 1) * 255).round()
        torch.testing.assert_close(levels.float(), expected, rtol=0, atol=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [9, 33])
def test_one_lut_for_a_whole_picture(size: int, layout: str, dtype: torch.dtype, mode: str, variant: str) -> None:
    """The most common call, which has the most specialised kernels."""
    image = lay_out(to_dtype(torch.rand(2, 3, 39, 320) * 1.2 - 0.1, dtype), layout)
    table = torch.rand(1, 3, size, size, size) * 1.2 - 0.1
    truth = reference(to_values(image), table, None, None, None, mode)
    with fastenh.backend(variant):
        assert_close(lut_transform(image, table, interpolation=mode), truth, "result", TestLaws().arithmetic(image))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8, torch.uint16])
def test_weights_of_pictures_and_pixels(dtype: torch.dtype, mode: str) -> None:
    """Where GPUs take several pixels at a time: rows of a multiple of 16 bytes, and weights of the image's dtype."""
    image, luts, weights = to_dtype(torch.rand(2, 3, 5, 48), dtype), torch.rand(7, 3, 5, 5, 5), torch.randn(2, 7)
    pixel_weights = torch.rand(2, 7, 5, 48).to(dtype if dtype.is_floating_point else torch.float32)
    truth = reference(to_values(image), luts, weights, pixel_weights.float(), None, mode)
    with fastenh.backend(VARIANTS[-1]):
        result = lut_transform(image, luts, weights, pixel_weights, interpolation=mode)
    assert_close(result, truth, "result", TestLaws().arithmetic(image))


def identity(size: int) -> Tensor:
    """A LUT that changes nothing: LUT[0, b, g, r] = r / (D - 1), and so on."""
    places = torch.linspace(0, 1, size)
    b, g, r = torch.meshgrid(places, places, places, indexing="ij")
    return torch.stack([r, g, b])[None]


def grid_sample(image: Tensor, table: Tensor) -> Tensor:
    where = (image * 2 - 1).permute(0, 2, 3, 1)[:, None]
    table = table.expand(len(image), -1, -1, -1, -1)
    return F.grid_sample(table, where, padding_mode="border", align_corners=True)[:, :, 0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 17, 33, 256])
def test_identity(size: int, mode: str, variant: str) -> None:
    image = torch.rand(1, 3, 37, 41)
    with fastenh.backend(variant):
        torch.testing.assert_close(lut_transform(image, identity(size), interpolation=mode), image, rtol=0, atol=2e-6)
        exact = torch.arange(65536).to(torch.uint16).view(1, 1, 256, 256).expand(1, 3, 256, 256)
        if size <= 33:
            assert torch.equal(lut_transform(exact, identity(size), interpolation=mode).int(), exact.int())


@pytest.mark.parametrize("mode", MODES)
def test_colour_matrices_pass_exactly(mode: str) -> None:
    """Both interpolations reproduce any affine map of colours, on uniform and on other grids."""
    matrix, offset = torch.randn(3, 3), torch.randn(3)
    vertices = grid(1, 7).tensor(3)
    b, g, r = torch.meshgrid(vertices[0, 2], vertices[0, 1], vertices[0, 0], indexing="ij")
    image = torch.rand(1, 3, 20, 30)
    expected = torch.einsum("ij,bjhw->bihw", matrix, image) + offset[:, None, None]
    for places, at in ((identity(7)[0], None), (torch.stack([r, g, b]), vertices)):
        table = torch.einsum("ij,jbgr->ibgr", matrix, places) + offset[:, None, None, None]
        result = lut_transform(image, table[None], vertices=at, interpolation=mode)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("path")
def test_trilinear_is_grid_sample(variant: str) -> None:
    """Values and gradients, with colours outside [0, 1] and exactly on the border and on grid points."""
    image = torch.rand(2, 3, 31, 43) * 1.4 - 0.2
    image[..., ::3] = (image[..., ::3] * 8).round() / 8
    image.requires_grad_()
    table = torch.rand(1, 3, 9, 9, 9, requires_grad=True)
    expected = grid_sample(image, table)
    with fastenh.backend(variant):
        result = lut_transform(image, table)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
        grad = torch.randn_like(result)
        ours = torch.autograd.grad(result, (image, table), grad)
    theirs = torch.autograd.grad(expected, (image, table), grad)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-4)
    # On a grid point the slope jumps, and rounding decides which side it is: there either side's will do.
    between = ((image * 8 - (image * 8).round()).abs() > 1e-4).all(1, keepdim=True).expand_as(image)
    outside = (image <= 0) | (image >= 1)
    torch.testing.assert_close(ours[0][between], theirs[0][between], rtol=1e-4, atol=1e-4)
    assert between.float().mean() > 0.3
    assert (ours[0][outside] == 0).all()


def tetrahedral(colour: np.ndarray, table: np.ndarray) -> np.ndarray:
    """One colour in float64, by the formulas of the six tetrahedra of a cell."""
    size = table.shape[-1]
    position = np.clip(colour, 0, 1) * (size - 1)
    cell = np.minimum(position.astype(int), size - 2)
    r, g, b = position - cell

    def v(dr: int, dg: int, db: int) -> np.ndarray:
        return table[:, cell[2] + db, cell[1] + dg, cell[0] + dr]

    if r >= g >= b:
        return (1 - r) * v(0, 0, 0) + (r - g) * v(1, 0, 0) + (g - b) * v(1, 1, 0) + b * v(1, 1, 1)
    if r >= b >= g:
        return (1 - r) * v(0, 0, 0) + (r - b) * v(1, 0, 0) + (b - g) * v(1, 0, 1) + g * v(1, 1, 1)
    if b >= r >= g:
        return (1 - b) * v(0, 0, 0) + (b - r) * v(0, 0, 1) + (r - g) * v(1, 0, 1) + g * v(1, 1, 1)
    if g >= r >= b:
        return (1 - g) * v(0, 0, 0) + (g - r) * v(0, 1, 0) + (r - b) * v(1, 1, 0) + b * v(1, 1, 1)
    if g >= b >= r:
        return (1 - g) * v(0, 0, 0) + (g - b) * v(0, 1, 0) + (b - r) * v(0, 1, 1) + r * v(1, 1, 1)
    return (1 - b) * v(0, 0, 0) + (b - g) * v(0, 0, 1) + (g - r) * v(0, 1, 1) + r * v(1, 1, 1)


@pytest.mark.parametrize("variant", ["reference", *VARIANTS])
@pytest.mark.usefixtures("path")
def test_tetrahedral_case_by_case(variant: str) -> None:
    image, table = torch.rand(1, 3, 20, 30) * 1.2 - 0.1, torch.rand(1, 3, 5, 5, 5)
    colours = image[0].flatten(1).T.double().numpy()
    expected = np.stack([tetrahedral(colour, table[0].double().numpy()) for colour in colours], axis=1)
    with fastenh.backend(variant):
        result = lut_transform(image, table, interpolation="tetrahedral")
    np.testing.assert_allclose(result[0].flatten(1).numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_blending_first_is_summing_lookups(mode: str) -> None:
    image, luts, weights = torch.rand(2, 3, 11, 13), torch.rand(7, 3, 6, 6, 6), torch.randn(2, 7)
    singly = sum(
        weights[:, n, None, None, None] * lut_transform(image, luts[n : n + 1], interpolation=mode) for n in range(7)
    )
    torch.testing.assert_close(lut_transform(image, luts, weights, interpolation=mode), singly, rtol=1e-5, atol=1e-5)
    constant = weights[:, :, None, None].expand(2, 7, 11, 13)
    by_pixel = lut_transform(image, luts, None, constant, interpolation=mode)
    torch.testing.assert_close(by_pixel, singly, rtol=1e-5, atol=1e-5)


def test_uniform_vertices_are_no_vertices() -> None:
    image, table = torch.rand(1, 3, 15, 17) * 1.2 - 0.1, torch.rand(1, 3, 8, 8, 8)
    vertices = torch.linspace(0, 1, 8).expand(1, 3, 8)
    torch.testing.assert_close(lut_transform(image, table, vertices=vertices), lut_transform(image, table))


@pytest.mark.usefixtures("path")
def test_gradient_of_a_flat_picture() -> None:
    """Eight million pixels in one cell: one float32 sum over all of them is 8 % off."""
    image = torch.full((1, 3, 1, 1), 0.3).expand(1, 3, 2048, 4096)
    table = torch.rand(1, 3, 2, 2, 2, requires_grad=True)
    lut_transform(image, table).backward(torch.full((1, 3, 1, 1), 0.1).expand(1, 3, 2048, 4096))
    weight = torch.tensor([0.7, 0.3])
    per_pixel = torch.einsum("b,g,r->bgr", weight, weight, weight) * 0.1
    expected = (per_pixel.double() * 2048 * 4096).float().expand(1, 3, 2, 2, 2)
    torch.testing.assert_close(table.grad, expected, rtol=1e-3, atol=0)


@pytest.mark.usefixtures("path")
def test_gradient_of_the_luts_is_reproducible() -> None:
    image, luts = torch.rand(1, 3, 300, 500), torch.rand(5, 3, 9, 9, 9, requires_grad=True)
    pixel_weights, grad = torch.rand(1, 5, 300, 500), torch.randn(1, 3, 300, 500)
    first, second = (
        torch.autograd.grad(lut_transform(image, luts, None, pixel_weights), luts, grad)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.skipif(on_gpu(), reason="a choice of the CPU")
def test_small_images_need_no_packed_luts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the LUTs were packed")

    monkeypatch.setattr(lut, "pack", refuse)
    for size, side in ((2, 64), (9, 64), (33, 180), (256, 300)):
        image, table = torch.rand(1, 3, side, side, requires_grad=True), torch.rand(1, 3, size, size, size)
        lut_transform(image, table).sum().backward()
    images, luts = torch.rand(40, 3, 16, 16), torch.rand(40, 1, 3, 33, 33, 33)  # a separate LUT for each
    lut_transform(images, luts)
    with pytest.raises(AssertionError, match="packed"):
        lut_transform(torch.rand(1, 3, 200, 200), torch.rand(1, 3, 33, 33, 33))


@pytest.mark.parametrize(("rows", "copies"), [(1, 1), (3, 3)])
def test_weights_shared_by_all_images_need_one_packed_copy(
    rows: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, packed = lut.pack, []
    monkeypatch.setattr(lut, "_is_small", lambda pixels, luts: False)
    monkeypatch.setattr(lut, "pack", lambda *args: packed.append(pack(*args)) or packed[-1])
    image, luts = torch.rand(3, 3, 48, 48), torch.rand(2, 3, 9, 9, 9, requires_grad=True)
    weights, grad = torch.rand(rows, 2, requires_grad=True), torch.rand(3, 3, 48, 48)
    result = lut_transform(image, luts, weights)
    gradients = torch.autograd.grad(result, (luts, weights), grad)
    assert [len(tables) for tables in packed] == [copies, copies]
    expected = reference(image, luts, weights, None, None, "trilinear")
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (luts, weights), grad), rtol=1e-4, atol=1e-3)


def test_a_lut_for_each_image_is_not_a_sum() -> None:
    """(B, 3, D, D, D), as other libraries pass it, was taken as B LUTs to add up: an error, in every way in."""
    image, luts = torch.rand(2, 3, 7, 9), torch.rand(2, 3, 5, 5, 5)
    args = (image, luts, None, None, None, "trilinear")
    for call in (
        lambda: lut_transform(image, luts),
        lambda: lut_transform(image, luts, vertices=torch.linspace(0, 1, 5).expand(2, 3, 5)),
        lambda: lut_transform(image, luts, out=torch.empty_like(image)),
        lambda: torch.ops.fastenh.lut_transform(*args),
        lambda: torch.ops.fastenh.lut_transform.out(*args, out=torch.empty_like(image)),
        lambda: torch.ops.fastenh.lut_transform_backward(image, *args, [True, True, False, False, False]),
        lambda: torch.func.vmap(lambda image: lut_transform(image, luts))(image[:, None].repeat(1, 2, 1, 1, 1)),
    ):
        with pytest.raises(ValueError, match=r"^lut_transform: weights: expected weights or .*luts\[:, None"):
            call()
    own = torch.cat([lut_transform(image[b : b + 1], luts[b : b + 1]) for b in range(2)])
    torch.testing.assert_close(lut_transform(image, luts[:, None]), own)
    total = sum(lut_transform(image, luts[n : n + 1]) for n in range(2))
    torch.testing.assert_close(lut_transform(image, luts, torch.ones(1, 2)), total)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_tensors_for_all_images(mode: str, dtype: torch.dtype) -> None:
    """A batch of 1 in weights, pixel_weights and vertices is that of each image, and its gradient the sum over them."""
    boxes = [
        Box((3, 3, 4, 6), -0.1, 1.1),
        Box((6, 3, 5, 5, 5)),
        Box((1, 6), -1, 1),
        Box((1, 6, 4, 6), -1, 1),
        grid(1, 5),
    ]
    values = [box.tensor(i).to(dtype) for i, box in enumerate(boxes)]
    expanded = [values[0], values[1], *(t.expand(3, *t.shape[1:]) for t in values[2:])]
    grad = torch.rand(3, 3, 4, 6)
    for there in ([2], [3], [2, 4], [2, 3, 4]):  # of weights, pixel weights and vertices
        shared = [t.clone().requires_grad_() if i < 2 or i in there else None for i, t in enumerate(values)]
        each = [t.float().requires_grad_() if i < 2 or i in there else None for i, t in enumerate(expanded)]
        result, expected = call(*shared, mode), reference(*each, mode)
        assert_close(result.detach(), expected.detach(), "result", TestLaws().arithmetic(values[0]))
        gradients = torch.autograd.grad(result, [t for t in shared if t is not None], grad.to(dtype))
        of_each = torch.autograd.grad(expected, [t for t in each if t is not None], grad.to(dtype).float())
        for gradient, t, true in zip(gradients, filter(lambda t: t is not None, shared), of_each, strict=True):
            assert gradient.dtype == dtype
            assert_close(gradient, true.sum_to_size(t.shape), "gradient")


# ---- goldens of published code ----


def golden(assets: Path, name: str) -> dict[str, Tensor]:
    with np.load(assets / "lut" / "golden" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def test_agrees_with_published_adaint(assets: Path) -> None:
    data = golden(assets, "adaint_sRGB_a4739")
    result = lut_transform(data["in_crop"][None], data["lut"], vertices=data["vertices"])
    torch.testing.assert_close(result[0], data["out_crop"], rtol=0, atol=1e-5)


def test_agrees_with_published_pixel_weights(assets: Path) -> None:
    data = golden(assets, "pwa_seeded")
    image = data["x"] / 1.000001  # the published code's grid is wider by so much
    result = lut_transform(image, data["luts"], data["pred"], data["ctx_intended"])
    torch.testing.assert_close(result, data["out_intended"], rtol=0, atol=1e-5)


def test_agrees_with_the_published_lut_gradient(assets: Path) -> None:
    data = golden(assets, "adaint_sRGB_a1629_grad")
    table = torch.zeros(1, 3, 33, 33, 33, requires_grad=True)
    lut_transform(data["x"], table).backward(data["grad_out"])
    expected = data["uniform_grad_lut"]
    assert (table.grad - expected).abs().max() <= 1e-4 * expected.abs().max()


# ---- bad arguments ----

image, luts, weights = torch.rand(2, 3, 4, 5), torch.rand(4, 3, 6, 6, 6), torch.rand(2, 4)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((None, luts), {}, TypeError, "image: expected a torch.Tensor; got NoneType"),
        ((image.to_sparse(), luts), {}, TypeError, "image: expected a dense tensor; got .*sparse_coo"),
        ((image, luts.to_sparse()), {}, TypeError, "luts: expected a dense tensor; got .*sparse_coo"),
        ((image[0], luts), {}, ValueError, r"image: expected shape \(B, 3, H, W\).*got \(3, 4, 5\)"),
        ((image[:0], luts), {}, ValueError, r"got \(0, 3, 4, 5\)"),
        ((image.long(), luts), {}, TypeError, "image: expected one of .*got int64"),
        ((image, None), {}, TypeError, "luts: expected a torch.Tensor; got NoneType"),
        ((image, luts[0]), {}, ValueError, r"luts: expected shape \(N, 3, .*got \(3, 6, 6, 6\)"),
        ((image, luts[..., :5]), {}, ValueError, r"luts: expected shape .*got \(4, 3, 6, 6, 5\)"),
        ((image, luts[..., :1, :1, :1]), {}, ValueError, "expected 2 <= D <= 256; got D = 1"),
        ((image, torch.empty(1, 3, 257, 1, 1).expand(1, 3, 257, 257, 257)), {}, ValueError, "got D = 257"),
        ((image, luts.expand(3, 4, 3, 6, 6, 6)), {}, ValueError, r"\(B, N, .* with B = 2; got \(3, 4, 3"),
        ((image, luts[0, 0]), {}, ValueError, r"\(N, 3, D, D, D\) or \(B, N, 3, D, D, D\)"),
        ((image, luts[:0]), {}, ValueError, r"luts: expected shape \(N, 3, D, D, D\) .*; got \(0, 3"),
        ((image, luts), {}, ValueError, r"expected weights or .* blend 4 LUTs; got neither \(.*luts"),
        ((image, luts[:2]), {}, ValueError, r"; got neither \(for one LUT per image, pass luts\[:, None\]\)$"),
        ((image, luts.expand(2, 4, 3, 6, 6, 6)), {}, ValueError, "weights or pixel_weights .*; got neither$"),
        ((image, luts.int()), {}, TypeError, "luts: expected one of float.*got int32"),
        ((image, luts.to("meta")), {}, ValueError, "luts: expected device cpu.*got meta"),
        ((image, luts, weights[:, :3]), {}, ValueError, r"weights: expected shape \(2, 4\) or \(1, 4\); got \(2, 3\)"),
        ((image, luts, weights[0]), {}, ValueError, r"weights: expected shape \(2, 4\) or \(1, 4\); got \(4,\)"),
        ((image[:1], luts, weights), {}, ValueError, r"weights: expected shape \(1, 4\); got \(2, 4\)"),
        ((image, luts, None, torch.rand(2, 4, 5, 4)), {}, ValueError, r".*\(2, 4, 4, 5\) or \(1, 4, 4, 5\); got"),
        ((image, luts, weights), {"vertices": torch.rand(2, 3, 5)}, ValueError, r"vertices: .* \(2, 3, 6\) or"),
        ((image, luts), {"interpolation": "cubic"}, ValueError, "expected 'trilinear' or 'tetrahedral'; got 'cubic'"),
    ],
)
def test_bad_arguments(args: tuple[object, ...], options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^lut_transform: .*{message}") as caught:
        lut_transform(*args, **options)
    assert "\n" not in str(caught.value)
