"""Tests of CUDA and Triton that need a GPU: the laws of every op, CUDA graphs, streams, several GPUs, memory use, and
sizes beyond 2^31 elements. Without a GPU all are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import laws
import pytest
import torch
from gpu_cases import layers, of_layers, onto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import Laws
from test_channel_split import TestLaws as ChannelSplitLaws
from test_context import TestLaws as ContextLaws
from test_curve import TestLaws as CurveLaws
from test_local_context import TestLaws as LocalContextLaws
from test_lut import TestLaws as LUTLaws
from test_lut_1d import TestLaws as LUT1DLaws
from torch import Tensor

import fastenh
from fastenh import backends
from fastenh.ops import (
    channel_split_transform,
    context_voxels,
    curve_iterate,
    local_context_retouch,
    lut_1d_transform,
    lut_transform,
)

GPU = torch.device("cuda", 0)
CODES = ("cuda", "triton")

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*deterministic"),  # about torch's own operators in the tests
]


@pytest.fixture(params=CODES)
def code(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend of CUDA tensors."""
    if problem := backends.problem(request.param):
        pytest.skip(problem)
    with fastenh.backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def errors_show_where_they_are_made() -> Iterator[None]:
    yield
    torch.cuda.synchronize()


class Call(NamedTuple):
    function: Callable[..., Tensor]
    shapes: Callable[[int, int], list[tuple[int, ...]]]  # of its tensors, for pictures of this height and width
    integers: bool = False
    pointwise: bool = True
    gradients: bool = True  # whether kernels compute them; those of the reference are not tested here


CALLS = {
    "one LUT": Call(lut_transform, lambda h, w: [(1, 3, h, w), (1, 3, 33, 33, 33)], True),
    "LUTs with weights": Call(lut_transform, lambda h, w: [(2, 3, h, w), (3, 3, 17, 17, 17), (2, 3)], True),
    "LUTs with pixel weights": Call(
        lambda image, luts, pixel_weights, **out: lut_transform(image, luts, None, pixel_weights, **out),
        lambda h, w: [(1, 3, h, w), (5, 3, 33, 33, 33), (1, 5, h, w)],
        True,
    ),
    "LUT on a learned grid": Call(
        lambda image, lut, vertices, **out: lut_transform(image, lut, vertices=vertices, **out),
        lambda h, w: [(1, 3, h, w), (1, 3, 33, 33, 33), (1, 3, 33)],
        True,
    ),
    "LUT, tetrahedral": Call(
        lambda image, lut, **out: lut_transform(image, lut, interpolation="tetrahedral", **out),
        lambda h, w: [(1, 3, h, w), (1, 3, 17, 17, 17)],
        True,
    ),
    "1D LUT": Call(lut_1d_transform, lambda h, w: [(2, 3, h, w), (1, 3, 1024)], True),
    "1D LUT, then 3D": Call(lut_1d_transform, lambda h, w: [(1, 3, h, w), (1, 3, 1024), (1, 3, 33, 33, 33)], True),
    "curves": Call(curve_iterate, lambda h, w: [(1, 3, h, w), (1, 24, h, w)], True),
    "low-resolution curves": Call(curve_iterate, lambda h, w: [(2, 3, h, w), (2, 3, h // 12, w // 12)], True),
    "voxels": Call(context_voxels, lambda h, w: [(1, 3, h, w), (1, 9, h, w)], pointwise=False),
    "split": Call(channel_split_transform, lambda h, w: [(1, 8, h, w), (1, 4, h, w), (1, 4, h, w)]),
    "local context": Call(
        lambda image, luts, weights, *params, **out: local_context_retouch(
            image, luts, weights, of_layers(params), **out
        ),
        lambda h, w: [(1, 3, h, w), (5, 3, 33, 33, 33), (1, 5), *layers(3, 64, 128, 5)],
        True,
        pointwise=False,
        gradients=False,
    ),
}


def tensors_for(call: str, seed: int, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Random tensors; `dtype` is the first one's."""
    generator = torch.Generator(GPU).manual_seed(seed)
    tensors = [torch.rand(shape, generator=generator, device=GPU) for shape in CALLS[call].shapes(*size)]
    tensors[0] = laws.to_dtype(tensors[0], dtype)
    if tensors[-1].dim() == 3:  # a grid's vertices increase
        tensors[-1] = (tensors[-1] + 0.5).cumsum(-1) / (1.2 * tensors[-1].shape[-1])
    return tensors


def result_and_gradients(call: str, tensors: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    if not CALLS[call].gradients:
        return (CALLS[call].function(*tensors),)
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    result = CALLS[call].function(*leaves)
    return (result.detach(), *torch.autograd.grad(result, [t for t in leaves if t.requires_grad], grad))


def by_reference(call: str, tensors: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """By plain PyTorch, in double precision."""
    with fastenh.backend("reference"):
        return result_and_gradients(call, [t.double() for t in tensors], grad.double())


def assert_all_close(results: Sequence[Tensor], truths: Sequence[Tensor], what: str = "") -> None:
    """To a thousandth of the largest value, or to the dtype's precision: enough to tell right from wrong data. One in
    many pixels may be so near a grid point of a LUT that rounding decides which side's slope its gradient has."""
    for i, (result, truth) in enumerate(zip(results, truths, strict=True)):
        step = max(1e-3, 4 * laws.ROUNDING.get(result.dtype, 0)) * truth.abs().max()
        wrong = ~((result.double() - truth).abs() <= step)
        assert wrong.sum() <= wrong.numel() // 10**5, (
            f"{what} result {i}: {int(wrong.sum())} of {wrong.numel()} are wrong"
        )


def assert_all_equal(results: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for result, other in zip(results, others, strict=True):
        assert torch.equal(result, other)


def enough_memory(gib: float) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(GPU)[0] / 2**30
    if free < gib + 1:
        pytest.skip(f"needs {gib} GiB of the GPU's memory; {free:.1f} are free")


each_call = pytest.mark.parametrize("call", CALLS)


FORWARD_ALONE = ("local_context_retouch",)
OPS = (
    "lut_transform",
    "lut_1d_transform",
    "curve_iterate",
    "context_voxels",
    "channel_split_transform",
    *FORWARD_ALONE,
)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_kernels(op: str, code: str) -> None:
    """Without kernels, the reference would pass all other tests."""
    kernels = backends.kernels(op, GPU)
    assert kernels is not None and kernels.gpu
    assert {op, *(() if op in FORWARD_ALONE else (f"{op}_backward",))} <= kernels.keys()
    assert ("__name__" in kernels) == (code == "triton")  # a module's functions


@pytest.mark.parametrize("op", OPS)
def test_cuda_comes_before_triton(op: str) -> None:
    if problem := backends.problem("cuda"):
        pytest.skip(problem)
    kernels = backends.kernels(op, GPU)
    assert kernels is not None and "__name__" not in kernels


def test_fresh_memory_is_nan_on_the_gpu() -> None:
    assert torch.empty(1000, device=GPU).isnan().all()


# ---- the laws of every op ----


class OnGpu:
    code = "cuda"
    test_touches_nothing_behind_its_tensors = None  # guards pages of the CPU's memory; compute-sanitizer sees the GPU's

    @pytest.fixture(autouse=True)
    def on_the_gpu(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        if problem := backends.problem(self.code):
            pytest.skip(problem)
        make, lay_out = laws.Box.tensor, laws.lay_out
        monkeypatch.setattr(laws, "VARIANTS", [self.code])
        monkeypatch.setattr(laws, "lay_out", lambda t, layout: onto(lay_out(t.cpu(), layout), GPU))
        monkeypatch.setattr(laws.Box, "tensor", lambda box, seed: make(box, seed).to(GPU))
        with fastenh.backend(self.code):
            yield

    def truth(self, tensors: Sequence[Tensor | None], options: Sequence[Any]) -> Tensor:
        tensors = [None if t is None else t.cpu() for t in tensors]
        return super().truth(tensors, options).to(GPU)  # type: ignore[misc]


def fewer(law: Callable[..., None]) -> Callable[..., None]:
    """Triton compiles for each dtype and layout that hypothesis comes up with."""
    limited = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    return limited(given(data=st.data())(law.hypothesis.inner_test))  # type: ignore[attr-defined]


class OnGpuByTriton(OnGpu):
    code = "triton"
    test_result_is_the_references = fewer(Laws.test_result_is_the_references)
    test_gradients_are_the_references = fewer(Laws.test_gradients_are_the_references)


class TestLUT(OnGpu, LUTLaws):
    pass


class TestLUT1D(OnGpu, LUT1DLaws):
    pass


class TestCurve(OnGpu, CurveLaws):
    pass


class TestContext(OnGpu, ContextLaws):
    pass


class TestChannelSplit(OnGpu, ChannelSplitLaws):
    pass


class TestLocalContext(OnGpu, LocalContextLaws):
    pass


class TestLUTByTriton(OnGpuByTriton, LUTLaws):
    pass


class TestLUT1DByTriton(OnGpuByTriton, LUT1DLaws):
    pass


class TestCurveByTriton(OnGpuByTriton, CurveLaws):
    pass


class TestContextByTriton(OnGpuByTriton, ContextLaws):
    pass


class TestChannelSplitByTriton(OnGpuByTriton, ChannelSplitLaws):
    pass


class TestLocalContextByTriton(OnGpuByTriton, LocalContextLaws):
    """Without k = 7, which Triton compiles for minutes."""

    calls = LocalContextLaws.calls.filter(lambda call: call.tensors[3].shape[-1] < 7)
    test_widths_of_the_paper = None


LARGE = (1776, 1792)  # enough pixels for the kernels that only run on large images


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@each_call
def test_large_pictures(call: str, dtype: torch.dtype, layout: str, code: str) -> None:
    enough_memory(10)
    tensors = [laws.lay_out(t, layout) for t in tensors_for(call, 1, LARGE, dtype)]
    grad = torch.randn_like(CALLS[call].function(*tensors))
    assert_all_close(result_and_gradients(call, tensors, grad), by_reference(call, tensors, grad))


@each_call
def test_integers(call: str, code: str) -> None:
    if not CALLS[call].integers:
        pytest.skip("takes no integers")
    enough_memory(10)
    tensors = tensors_for(call, 1, LARGE, torch.uint8)
    result = CALLS[call].function(*tensors)
    with fastenh.backend("reference"):
        expected = CALLS[call].function(*tensors)
    off = (result.int() - expected.int()).abs()
    assert off.max() <= 1 and off.float().mean() < 0.2  # half precision, and rounding to the other side


@each_call
def test_out_may_be_the_image(call: str, code: str) -> None:
    tensors = tensors_for(call, 1, (120, 240))
    expected = CALLS[call].function(*tensors)
    if not CALLS[call].pointwise:
        out = torch.full_like(expected, 77)
        assert CALLS[call].function(*tensors, out=out) is out
        assert torch.equal(out, expected)
    else:
        assert CALLS[call].function(*tensors, out=tensors[0]) is tensors[0]
        assert torch.equal(tensors[0], expected)


# ---- CUDA graphs, torch.compile ----


def first_call_is_captured(call: str) -> None:
    """In a process of its own: nothing of fastenh has run before the capture; then replays with other inputs."""
    tensors = [t.requires_grad_(CALLS[call].gradients) for t in tensors_for(call, 1, (36, 60))]
    shape = {"voxels": (1, 27, 36, 60)}.get(call, tensors[0].shape)
    grad = torch.ones(shape, device=GPU)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = CALLS[call].function(*tensors)
        gradients = torch.autograd.grad(result, tensors, grad) if CALLS[call].gradients else ()
    for seed in (1, 2, 3):
        with torch.no_grad():
            for t, other in zip(tensors, tensors_for(call, seed, (36, 60)), strict=True):
                t.copy_(other)
            grad.normal_()
        graph.replay()
        torch.cuda.synchronize()
        assert_all_close((result.detach(), *gradients), by_reference(call, tensors, grad), f"inputs {seed}:")


@pytest.mark.parametrize("which", CODES)
@each_call
def test_first_call_in_a_process_is_captured_in_a_graph(call: str, which: str) -> None:
    if problem := backends.problem(which):
        pytest.skip(problem)
    script = f"import test_gpu; test_gpu.first_call_is_captured({call!r})"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "FASTENH_BACKEND": which, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_with_what_stands_around_it(mode: str, code: str) -> None:
    """All ops in one program of torch.compile; "reduce-overhead" captures it in CUDA graphs by itself."""

    def retouch(image: Tensor, luts: Tensor, pixel_weights: Tensor, curves: Tensor, attention: Tensor) -> Tensor:
        x = lut_transform(image * 0.9, luts, None, pixel_weights.softmax(1))
        x = curve_iterate(x, curves.tanh(), 4).clamp(0, 1)
        voxels = context_voxels(x, attention)
        return channel_split_transform(voxels, voxels[:, 14:], voxels[:, :13], 14).mean((2, 3))

    compiled = torch.compile(retouch, fullgraph=True, mode=None if mode == "default" else mode)
    shapes = [(1, 3, 32, 48), (5, 3, 9, 9, 9), (1, 5, 32, 48), (1, 3, 4, 6), (1, 9, 32, 48)]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        tensors = [torch.rand(shape, generator=generator).to(GPU).requires_grad_() for shape in shapes]
        expected = retouch(*tensors)
        gradients = torch.autograd.grad(expected.sum(), tensors)
        torch.compiler.cudagraph_mark_step_begin()
        result = compiled(*tensors)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        for ours, eager in zip(torch.autograd.grad(result.sum(), tensors), gradients, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-5)


# ---- streams and devices ----


@each_call
def test_follows_the_stream_of_its_inputs(call: str, code: str) -> None:
    """Inputs that are still being computed, after a long wait, on a stream that is not the default one."""
    tensors = tensors_for(call, 1, (120, 240))
    grad = torch.ones_like(CALLS[call].function(*tensors))
    expected = result_and_gradients(call, tensors, grad)
    late = [torch.zeros_like(t) for t in tensors]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(GPU)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles of the GPU's clock
        for t, value in zip(late, tensors, strict=True):
            t.copy_(value)
        results = result_and_gradients(call, late, grad)
    stream.synchronize()
    assert_all_equal(results, expected)


@each_call
def test_two_streams_at_once(call: str, code: str) -> None:
    inputs = [tensors_for(call, seed, (240, 480)) for seed in (1, 2)]
    grad = torch.ones_like(CALLS[call].function(*inputs[0]))
    expected = [result_and_gradients(call, tensors, grad) for tensors in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(GPU) for _ in inputs]
    results: list[list[tuple[Tensor, ...]]] = [[], []]
    for _ in range(10):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(result_and_gradients(call, inputs[i], grad))
    torch.cuda.synchronize()
    for i in range(2):
        for result in results[i]:
            assert_all_equal(result, expected[i])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two CUDA devices")
@each_call
def test_every_gpu(call: str, code: str) -> None:
    tensors = tensors_for(call, 1, (36, 60))
    grad = torch.ones_like(CALLS[call].function(*tensors))
    expected = result_and_gradients(call, tensors, grad)
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        results = result_and_gradients(call, [t.to(device) for t in tensors], grad.to(device))
        assert torch.cuda.current_device() == 0
        assert all(t.device == device for t in results)
        assert_all_close([t.to(GPU) for t in results], expected)


# ---- gradients of LUTs: many pixels add to one vertex ----


LUT_CALLS = [call for call in CALLS if "LUT" in call]


def picture(kind: str, size: tuple[int, int]) -> Tensor:
    return torch.full((1, 3, *size), 0.4) if kind == "flat" else torch.rand(1, 3, *size)


@pytest.mark.parametrize("kind", ["flat", "noise"])
@pytest.mark.parametrize("call", LUT_CALLS)
def test_lut_gradients_are_the_same_bits_where_torch_wants_that(call: str, kind: str, code: str) -> None:
    tensors = tensors_for(call, 1, (540, 960))
    tensors[0] = picture(kind, (540, 960)).to(GPU).expand_as(tensors[0])
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(3)).to(GPU)
    torch.use_deterministic_algorithms(True, warn_only=True)
    first, *others = (result_and_gradients(call, tensors, grad) for _ in range(5))
    for other in others:
        assert_all_equal(other, first)
    assert_all_close(first, by_reference(call, tensors, grad))


@pytest.mark.parametrize("kind", ["flat", "noise"])
@pytest.mark.parametrize("call", LUT_CALLS)
def test_lut_gradients_without_an_order(call: str, kind: str, code: str) -> None:
    tensors = tensors_for(call, 1, (540, 960))
    tensors[0] = picture(kind, (540, 960)).to(GPU).expand_as(tensors[0])
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(3)).to(GPU)
    torch.use_deterministic_algorithms(False)
    assert_all_close(result_and_gradients(call, tensors, grad), by_reference(call, tensors, grad))


# ---- memory ----


def taken(work: Callable[[], Any]) -> int:
    """Bytes of the GPU's peak memory that a call adds."""
    work()  # compiles, and creates what is created only once
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_allocated(GPU)
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(GPU) - before


IN_TWO_PASSES = ("1D LUT, then 3D",)  # its gradients, and in Triton its result too


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("call", [call for call in CALLS if call not in IN_TWO_PASSES])
def test_needs_no_memory_except_for_results_and_tables(call: str, layout: str, code: str) -> None:
    """A copy of an image of 48 MiB would be detected: packed LUTs need at most 16 MiB, and sums per vertex 32."""
    shapes, small = CALLS[call].shapes(2160, 3840), 16 << 20
    random = [torch.rand(shape, dtype=torch.float16, device=GPU).sort(-1).values for shape in shapes]
    tensors = [laws.lay_out(t, layout) for t in random]
    del random
    out = torch.empty_like(CALLS[call].function(*tensors))
    assert min(t.nbytes for t in (out, *tensors) if t.shape[-2:] == (2160, 3840)) > 2 * small
    assert taken(lambda: CALLS[call].function(*tensors, out=out)) <= small
    assert taken(lambda: CALLS[call].function(*tensors)) <= out.nbytes + small
    if not CALLS[call].gradients:
        return
    leaves = [t.requires_grad_() for t in tensors]
    result, grad = CALLS[call].function(*leaves), torch.ones_like(out)
    gradients = sum(t.nbytes for t in leaves)
    torch.use_deterministic_algorithms(False)
    assert taken(lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)) <= gradients + 2 * small


# ---- sizes beyond 2^31 elements ----


HEIGHT, WIDTH = 26755, 26757  # 3·H·W is just above 2^31


def bytes_of_rows(height: int, width: int) -> Tensor:
    """(1, 3, height, width) uint8, no two rows alike for 251 rows."""
    rows, columns = torch.arange(height, device=GPU) % 251, torch.arange(width, device=GPU) % 256
    image = torch.empty(1, 3, height, width, dtype=torch.uint8, device=GPU)
    torch.add(rows.byte()[:, None], columns.byte(), out=image[0, 0])
    image[0, 1:] = image[0, 0]
    return image


def some_rows(height: int) -> list[int]:
    return [0, 1, height // 2, height - 13, height - 2, height - 1]  # 2^31 lies before the last 13 rows of 26755


@pytest.mark.parametrize("op", ["curves", "LUT"])
def test_pictures_of_more_than_two_to_the_31_elements(op: str, code: str) -> None:
    enough_memory(3)
    curves = torch.full((1, 3, 1, 1), -0.3, device=GPU)
    table = torch.rand(1, 3, 5, 5, 5, generator=torch.Generator().manual_seed(0)).to(GPU)

    def function(image: Tensor, out: Tensor | None = None) -> Tensor:
        if op == "LUT":
            return lut_transform(image, table, out=out)
        return curve_iterate(image, curves.expand_as(image), 2, out=out)

    image = bytes_of_rows(HEIGHT, WIDTH)
    rows = some_rows(HEIGHT)
    expected = function(image[:, :, rows].contiguous())
    assert function(image, out=image) is image
    off = (image[:, :, rows].int() - expected.int()).abs().max()
    assert off <= (1 if op == "LUT" else 0)  # small pictures may be looked up in another way


def test_voxels_of_more_than_two_to_the_31_elements(code: str) -> None:
    height, width = 8919, 8920  # 27·H·W is just above 2^31
    enough_memory(10)
    image = (bytes_of_rows(height, width).half() / 255).requires_grad_()
    attention = torch.rand(1, 9, 1, width, device=GPU).half().expand(1, 9, height, width).requires_grad_()
    result = context_voxels(image, attention)
    grad = attention.detach()[:, :, :1].repeat(1, 3, 1, 1).expand_as(result)
    grad_image, _ = torch.autograd.grad(result, (image, attention), grad)
    for y in some_rows(height):
        low = max(0, y - 2)
        band = image.detach()[:, :, low : y + 3].contiguous().requires_grad_()
        of_band = context_voxels(band, attention.detach()[:, :, : band.shape[2]].contiguous())
        assert torch.equal(result[:, :, y], of_band[:, :, y - low])
        (grad_of_band,) = torch.autograd.grad(of_band, band, grad[:, :, : band.shape[2]])
        if 0 < y < height - 1:  # a band's edge is no edge of the picture
            torch.testing.assert_close(grad_image[:, :, y], grad_of_band[:, :, y - low])


def test_context_of_more_than_two_to_the_31_elements(code: str) -> None:
    enough_memory(5)
    image, tensors = bytes_of_rows(HEIGHT, WIDTH), tensors_for("local context", 1, (1, 1))[1:]
    result = CALLS["local context"].function(image, *tensors)
    for y in some_rows(HEIGHT):
        low = max(0, y - 1)
        band = image[:, :, low : y + 2].contiguous()
        assert torch.equal(result[:, :, y], CALLS["local context"].function(band, *tensors)[:, :, y - low])


def test_features_of_more_than_two_to_the_31_elements(code: str) -> None:
    height, width = 5794, 5792  # 64·H·W is just above 2^31
    enough_memory(9)
    rows = some_rows(height)
    features = torch.empty(1, 64, height, width, dtype=torch.float16, device=GPU)
    torch.add(torch.arange(height, device=GPU)[:, None] % 97, torch.arange(width, device=GPU) % 89, out=features[0, 0])
    features[0, 1:] = features[0, 0]
    scale, shift = (torch.rand(1, 32, 1, width, device=GPU) for _ in range(2))
    expected = channel_split_transform(features[:, :, rows].contiguous(), scale, shift)
    assert channel_split_transform(features, scale, shift, out=features) is features
    assert torch.equal(features[:, :, rows], expected)
