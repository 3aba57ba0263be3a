"""Streams of frames: what `Enhancer` makes of each, with a look that follows the scene and does not flicker."""

from __future__ import annotations

import gc
import itertools
import math
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch
from torch import Tensor, nn

from fastenh import Enhancer
from fastenh.engine import Decision, Options
from fastenh.models import LocalContextLUT, ZeroDCE
from fastenh.models.system import Picture, System
from fastenh.pipelines.buffers import CudaFrameRing
from fastenh.pipelines.scene import CUT, Scene

SIZE = 256
CHINA, FLOWER = sklearn.datasets.load_sample_images().images
COFFEE, MOTORCYCLE = skimage.data.coffee(), skimage.data.stereo_motorcycle()[0]
PHOTOS = {
    "astronaut": skimage.data.astronaut(),
    "cat": skimage.data.chelsea(),
    "china": CHINA,
    "coffee": COFFEE,
    "flower": FLOWER,
    "motorcycle": MOTORCYCLE,
    "rocket": skimage.data.rocket(),
}


def crop(photo: np.ndarray, left: int = 0, top: int = 0, size: int = SIZE) -> np.ndarray:
    return np.ascontiguousarray(photo[top : top + size, left : left + size])


def lit(frame: np.ndarray, light: float) -> np.ndarray:
    return np.clip(frame * light, 0, 255).round().astype(np.uint8)


def pan(photo: np.ndarray, count: int, step: int = 3, size: int = SIZE) -> list[np.ndarray]:
    return [crop(photo, step * k, size=size) for k in range(count)]


class Mean(System):
    """Decides the mean of an image, and makes all of it that colour."""

    def __init__(self) -> None:
        super().__init__()
        self.decided = 0

    def predict(self, picture: Picture) -> tuple[Tensor, ...]:
        self.decided += 1
        return (picture.overview.float().mean((1, 2, 3)),)

    def render(self, image: Tensor, params: Any, local: Any, place: Any, out: Tensor | None = None) -> Tensor:
        out = torch.empty_like(image) if out is None else out
        return out.copy_(params[0][:, None, None, None].expand_as(out))

    forward = None  # nobody calls it


class Curve(nn.Module):
    """A model that says nothing of its parts."""

    def forward(self, image: Tensor) -> Tensor:
        return 1.2 * image.sqrt()


def lam() -> LocalContextLUT:
    torch.manual_seed(0)
    model = LocalContextLUT(3, 5, "statistics", widths=(8, 8))
    with torch.no_grad():
        model.luts.add_(0.2 * torch.rand_like(model.luts))
    return model


def curves() -> ZeroDCE:
    torch.manual_seed(0)
    model = ZeroDCE(4)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "auto": lambda: "auto",
    "lowlight": lambda: "lowlight",
    "LAM": lam,
    "curves": curves,
    "another": Curve,
}


# ---- each frame


@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("model", MODELS)
def test_decided_frame_by_frame_it_is_the_enhancer(model: str, strength: float) -> None:
    enhancer = Enhancer(MODELS[model](), "cpu")
    frames = pan(COFFEE, 5, size=61)
    given = [frame.copy() for frame in frames]
    results = [r.copy() for r in enhancer.stream(frames, renew=1, smoothing=0, strength=strength)]
    assert len(results) == 5 and np.array_equal(frames, given)
    for frame, result in zip(frames, results, strict=True):
        assert type(result) is np.ndarray and result.dtype == np.uint8
        assert np.array_equal(result, enhancer.enhance(frame, strength))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["array", "fortran", "read-only", "bgr", "tensor", "channels_last"])
def test_dtypes_and_layouts(dtype: str, layout: str) -> None:
    scale = {"uint8": 1, "uint16": 257.0}.get(dtype, 1 / 255)
    frames: list[Any] = [(frame * scale).astype(dtype) for frame in pan(COFFEE, 3, size=37)]
    if layout == "fortran":
        frames = [np.asfortranarray(frame) for frame in frames]
    if layout == "bgr":
        frames = [frame[..., ::-1] for frame in frames]
    if layout in ("tensor", "channels_last"):
        frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]
    if layout == "tensor":
        frames = [frame.contiguous() for frame in frames]
    if layout == "read-only":
        for frame in frames:
            frame.flags.writeable = False
    enhancer = Enhancer("auto", "cpu")
    count = 0
    for frame, result in zip(frames, enhancer.stream(iter(frames), renew=1, smoothing=0), strict=True):
        expected = enhancer(frame)
        assert type(result) is type(frame) and result.dtype == frame.dtype and result.shape == frame.shape
        if isinstance(result, Tensor):
            assert torch.equal(result, expected) and result.stride() == frame.stride()
            assert not result.is_inference()
        else:
            assert np.array_equal(result, expected)
        count += 1
    assert count == 3


def test_bfloat16_tensors() -> None:
    frames = [torch.rand(3, 20, 30).bfloat16() for _ in range(3)]
    enhancer = Enhancer(lam(), "cpu")
    results = [r.clone() for r in enhancer.stream(frames, renew=1, smoothing=0)]
    assert all(torch.equal(r, enhancer(f)) for f, r in zip(frames, results, strict=True))


def test_a_frame_is_overwritten_when_the_next_but_one_is_asked_for() -> None:
    enhancer = Enhancer("auto", "cpu")
    frames = pan(COFFEE, 7, size=61)
    expected = [frame.copy() for frame in enhancer.stream(frames)]
    stream = enhancer.stream(frames)
    kept = list(itertools.pairwise(r.ctypes.data for r in enhancer.stream(frames)))
    assert all(a != b for a, b in kept) and len({a for a, _ in kept}) == 2
    before = next(stream)
    for k, result in enumerate(stream, 1):
        assert np.array_equal(before, expected[k - 1]) and np.array_equal(result, expected[k])
        before = result


@pytest.mark.parametrize("model", ["auto", "lowlight", "LAM"])
@pytest.mark.parametrize("read_only", [False, True])
def test_no_memory_of_a_frame_s_size_is_taken_after_the_first(model: str, read_only: bool) -> None:
    size = 384
    frames = [crop(PHOTOS["astronaut"], 8 * k, size=size) for k in range(10)]
    for frame in frames:
        frame.flags.writeable = not read_only
    stream = Enhancer(MODELS[model](), "cpu").stream(frames, renew=3)
    places = {next(stream).ctypes.data for _ in range(3)}
    tracemalloc.start()
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        places |= {result.ctypes.data for result in stream}
    of_numpy = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    taken = [event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]"]
    assert taken and max(taken) < size * size * 3 and of_numpy < size * size * 3
    assert len(places) == 2


# ---- the look


@pytest.mark.parametrize("model", ["auto", "LAM"])
def test_a_constant_scene_is_constant(model: str) -> None:
    results = [r.copy() for r in Enhancer(MODELS[model](), "cpu").stream([crop(COFFEE, size=90)] * 20, renew=3)]
    assert all(np.array_equal(results[0], r) for r in results)


def test_the_look_is_decided_every_n_frames_and_approached_exponentially() -> None:
    model = Mean()
    levels = [0.5 + 0.002 * k for k in range(30)]
    frames = [torch.full((3, 8, 8), level) for level in levels]
    results = [r.mean().item() for r in Enhancer(model, "cpu").stream(frames, renew=4, smoothing=5)]
    expected, look = [], levels[0]
    for k in range(30):
        look += (1 - math.exp(-1 / 5)) * (levels[k - k % 4] - look)
        expected.append(look)
    assert np.allclose(results, expected, atol=1e-6) and model.decided == 8


@pytest.mark.parametrize(("renew", "smoothing"), [(8, 12), (1, 6), (3, 30), (5, 0)])
def test_a_slow_change_is_followed_with_a_bounded_delay(renew: int, smoothing: float) -> None:
    """At most smoothing + renew frames behind, once it is under way."""
    rise, count = 0.002, 200
    frames = (torch.full((3, 8, 8), 0.3 + rise * k) for k in range(count))
    looks = [r.mean().item() for r in Enhancer(Mean(), "cpu").stream(frames, renew=renew, smoothing=smoothing)]
    delays = np.arange(count) - (np.array(looks) - 0.3) / rise
    assert delays.max() < smoothing + renew and delays[100:].min() > smoothing - 1


def colours_of(enhancer: Enhancer, frames: list[np.ndarray], renew: int, smoothing: float) -> np.ndarray:
    """What becomes of 64 colours, in levels, in the look that each frame gets."""
    levels = torch.linspace(0.1, 0.9, 4)
    card = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, 8, 8)
    scene, result = Scene(enhancer.engine, Options(), renew, smoothing), []
    with torch.inference_mode():
        for frame in frames:
            image = torch.from_numpy(frame).permute(2, 0, 1)[None]
            scene.enhance(image, bool(scene.begins_scene(image)))
            decision = Decision(scene.params)
            result.append(255 * enhancer.engine.render(card, Options(), decision).numpy().ravel())
    return np.array(result)


def variation(values: np.ndarray) -> float:
    return float(np.abs(np.diff(values, axis=0)).mean())


@pytest.mark.parametrize("name", ["astronaut", "coffee", "flower", "china"])
def test_colours_flicker_ten_times_less_than_frame_by_frame(name: str) -> None:
    """A pan in light that trembles by 4 %: how far, from frame to frame, the look moves what one colour becomes."""
    random = np.random.default_rng(0)
    frames = [lit(frame, 1 + random.uniform(-0.04, 0.04)) for frame in pan(PHOTOS[name], 60, step=2)]
    enhancer = Enhancer("auto", "cpu")
    assert variation(colours_of(enhancer, frames, 8, 12)) < variation(colours_of(enhancer, frames, 1, 0)) / 10


@pytest.mark.parametrize("name", ["astronaut", "coffee", "china"])
def test_the_mean_colour_flickers_four_times_less_under_noise(name: str) -> None:
    """A camera that stands still: all that moves is its noise, and what a model takes that for."""
    random, still = np.random.default_rng(0), crop(PHOTOS[name])
    frames = [np.clip(still + random.normal(0, 10, still.shape), 0, 255).round().astype(np.uint8) for _ in range(40)]
    enhancer = Enhancer("auto", "cpu")
    each = np.array([enhancer(frame).mean((0, 1)) for frame in frames])
    stream = np.array([frame.mean((0, 1)) for frame in enhancer.stream(frames)])
    assert variation(stream) < variation(each) / 4


def test_it_keeps_up_with_the_light_of_an_evening() -> None:
    """From day to a third of the light in 150 frames: never farther from the look of a frame than the looks of the
    frames before it, by the delay that is promised, are."""
    frames = [lit(crop(COFFEE), 1 - k / 225) for k in range(150)]
    enhancer = Enhancer("auto", "cpu")
    each, stream = colours_of(enhancer, frames, 1, 0), colours_of(enhancer, frames, 8, 12)
    behind = np.abs(stream - each).mean(1)
    moved = [max(np.abs(each[max(k - 3 * 12 - 8, 0) : k + 1] - each[k]).mean(1)) for k in range(150)]
    assert (behind <= np.array(moved) + 0.05).all() and np.abs(each[-1] - each[0]).mean() > 5


# ---- cuts


@pytest.mark.parametrize(("before", "after"), list(itertools.combinations(PHOTOS, 2)))
def test_a_cut_is_followed_at_once(before: str, after: str) -> None:
    a, b = crop(PHOTOS[before]), crop(PHOTOS[after])
    enhancer = Enhancer("auto", "cpu")
    for k, result in enumerate(enhancer.stream([a, a, a, b, b])):
        assert np.array_equal(result, enhancer(b if k >= 3 else a))


def cuts(frames: list[np.ndarray]) -> int:
    scene = Scene(Enhancer("auto", "cpu").engine, Options(), 8, 12)
    images = (torch.from_numpy(frame).permute(2, 0, 1)[None] for frame in frames)
    return sum(bool(scene.begins_scene(image)) for image in images) - 1


@pytest.mark.parametrize("name", PHOTOS)
def test_what_is_no_cut(name: str) -> None:
    photo, random = PHOTOS[name], np.random.default_rng(1)
    assert cuts([crop(photo, left) for left in range(0, photo.shape[1] - SIZE, 16)]) == 0  # a fast pan
    assert cuts([lit(crop(photo), 1 + 0.03 * (-1) ** k) for k in range(6)]) == 0  # light that flickers
    assert cuts([lit(crop(photo), 1 - k / 30) for k in range(30)]) == 0  # a fade to black
    noisy = [crop(photo) + random.normal(0, 10, (SIZE, SIZE, 3)) for _ in range(5)]
    assert cuts([np.clip(frame, 0, 255).astype(np.uint8) for frame in noisy]) == 0
    still = crop(photo)
    assert cuts([still, still[::-1].copy(), still[:, ::-1].copy(), still.transpose(1, 0, 2).copy()]) == 0


def test_the_threshold_is_the_one_that_is_stated() -> None:
    level = np.full((40, 40, 3), 0.3, np.float32)
    assert cuts([level, level + np.float32(CUT - 1e-3)]) == 0 and cuts([level, level + np.float32(CUT + 1e-3)]) == 1


def test_a_cut_behind_a_broken_frame_is_one() -> None:
    before, after = (crop(photo).astype(np.float32) / 255 for photo in (COFFEE, CHINA))
    broken = np.full_like(before, np.nan)
    enhancer = Enhancer("auto", "cpu")
    *_, last = (result.copy() for result in enhancer.stream([before, before, broken, after]))
    assert np.array_equal(last, enhancer(after))


def test_a_cut_starts_the_count_of_frames_anew() -> None:
    model = Mean()
    levels = [0.1] * 3 + [0.8] * 6
    list(Enhancer(model, "cpu").stream([torch.full((3, 8, 8), level) for level in levels], renew=4))
    assert model.decided == 1 + 1 + 1  # at the beginning, at the cut, 4 frames later


def test_a_broken_frame_breaks_no_other() -> None:
    levels = [0.2, 0.2, math.nan, 0.2, 0.2]
    enhancer = Enhancer(Mean(), "cpu")
    results = [r.mean().item() for r in enhancer.stream([torch.full((3, 8, 8), x) for x in levels], renew=1)]
    assert np.allclose(results, 0.2)
    results = [r.mean().item() for r in enhancer.stream([torch.full((3, 8, 8), x) for x in levels[2:]], renew=1)]
    assert math.isnan(results[0]) and np.allclose(results[1:], 0.2)


# ---- frames that are no frames, and sources


@pytest.mark.parametrize(
    ("frame", "kind", "message"),
    [
        (FLOWER[..., 0], TypeError, r"frame 0: expected an array \(H, W, 3\) or a tensor \(3, H, W\), got an array"),
        (torch.zeros(1, 3, 8, 8), TypeError, r"got a tensor \(1, 3, 8, 8\) of float32 on cpu"),
        ("photo.jpg", TypeError, r"a tensor \(3, H, W\), got str"),
        (
            np.zeros((8, 8, 4), np.uint8),
            ValueError,
            r"expected an array of shape \(height, width, 3\), got \(8, 8, 4\)",
        ),
        (np.zeros((8, 8, 3), np.int32), TypeError, "got an array of int32"),
        (np.full((8, 8, 3), 200.0), ValueError, r"float values in \[0, 1\], got up to 200"),
        (torch.zeros(3, 8, 8, device="meta"), ValueError, "expected a tensor on cpu or cpu, got .* on meta"),
    ],
)
def test_what_is_no_frame(frame: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        next(Enhancer("auto", "cpu").stream([frame]))


@pytest.mark.parametrize("other", [FLOWER[:9, :7], FLOWER[:8, :8].astype(np.float32), torch.zeros(3, 8, 8), None])
def test_frames_are_all_of_one_kind(other: Any) -> None:
    stream = Enhancer("auto", "cpu").stream([FLOWER[:8, :8], other])
    next(stream)
    with pytest.raises(ValueError, match=r"^frame 1: expected an array \(8, 8, 3\) of uint8, as the first; got "):
        next(stream)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"renew": 0}, "renew: expected a number of frames, 1 or more, got 0"),
        ({"renew": 1.5}, "renew: expected a number of frames, 1 or more, got 1.5"),
        ({"smoothing": -1}, "smoothing: expected a number of frames, 0 or more, got -1"),
        ({"smoothing": math.nan}, "smoothing: expected a number of frames, 0 or more, got nan"),
        ({"strength": 2}, "strength: expected a number from 0 to 1, got 2"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Enhancer("auto", "cpu").stream([], **arguments)


def test_one_frame_is_no_iterable_of_frames() -> None:
    for frames in (FLOWER, torch.zeros(3, 8, 8), 7):
        with pytest.raises(TypeError, match="frames: expected an iterable of frames, got "):
            Enhancer("auto", "cpu").stream(frames)  # type: ignore[type-var, arg-type]


def test_no_frames() -> None:
    assert list(Enhancer("auto", "cpu").stream([])) == []


class Source:
    """Gives frames, counts them, and breaks after the last if it shall."""

    def __init__(self, count: int, breaks: bool = False) -> None:
        self.count, self.breaks, self.taken = count, breaks, 0
        self.modes: list[bool] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        for k in range(self.count):
            self.taken += 1
            self.modes.append(torch.is_inference_mode_enabled())
            yield crop(COFFEE, k, size=40)
        if self.breaks:
            raise OSError("the camera is gone")


def test_frames_are_taken_as_they_are_asked_for() -> None:
    source = Source(5)
    stream = Enhancer("auto", "cpu").stream(source)
    assert source.taken == 0
    for k, _ in enumerate(stream, 1):
        assert source.taken == k and not torch.is_inference_mode_enabled()
    assert source.modes == [False] * 5


def test_what_the_source_raises_comes_through() -> None:
    done = 0
    with pytest.raises(OSError, match="the camera is gone"):
        for _ in Enhancer("auto", "cpu").stream(Source(3, breaks=True)):
            done += 1
    assert done == 3


def test_closing_early_lets_go_of_everything() -> None:
    frames = Source(5)
    stream = Enhancer("auto", "cpu").stream(frames)
    gone = weakref.ref(next(stream))
    seen = weakref.ref(frames)
    stream.close()  # type: ignore[attr-defined]
    del stream, frames
    gc.collect()
    assert gone() is None and seen() is None


# ---- a GPU


class NoStream:
    """Stands in for torch.cuda's streams and events: everything is done at once."""

    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...

    record = synchronize = wait_event = wait_stream = __init__


@pytest.fixture
def gpu_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA ring on the CPU: what order things are done in, not that they are done beside each other."""
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, NoStream)
    for name in ("empty", "empty_like"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, real=real, pin_memory=False, **kw: real(*args, **kw))
    monkeypatch.setattr("fastenh.pipelines.video.FrameRing", CudaFrameRing)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_the_ring_of_a_gpu_gives_what_the_ring_of_a_cpu_gives(
    on_device: bool, count: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    frames: list[Any] = [*pan(COFFEE, count // 2, size=64), *pan(CHINA, count - count // 2, size=64)]
    if on_device:
        frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]
    enhancer = Enhancer("auto", "cpu")
    expected = [torch.as_tensor(frame).clone().numpy() for frame in enhancer.stream(frames, renew=4)]
    request.getfixturevalue("gpu_ring")
    taken, reused = 0, frames[0].clone() if on_device else frames[0].copy()

    def source() -> Iterator[Any]:  # its own buffer is used again, too
        nonlocal taken
        for frame in frames:
            reused[:] = frame
            taken += 1
            yield reused

    before = None
    for k, result in enumerate(enhancer.stream(source(), renew=4)):
        assert np.array_equal(torch.as_tensor(result).numpy(), expected[k]) and taken == min(k + 2, count)
        assert before is None or np.array_equal(torch.as_tensor(before).numpy(), expected[k - 1])
        before = result
    assert before is not None and k == count - 1


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_gpu
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("on_device", [False, True])
def test_on_a_gpu(model: str, on_device: bool) -> None:
    frames: list[Any] = [*pan(COFFEE, 9), *pan(CHINA, 9)]
    if on_device:
        frames = [torch.from_numpy(frame).permute(2, 0, 1).cuda() for frame in frames]
    enhancer = Enhancer(MODELS[model](), "cuda")
    expected = [enhancer(frame) for frame in frames]
    for result, wanted, frame in zip(enhancer.stream(frames, renew=1, smoothing=0), expected, frames, strict=True):
        assert type(result) is type(frame)
        assert torch.equal(torch.as_tensor(result), torch.as_tensor(wanted))


@needs_gpu
def test_on_a_gpu_nothing_waits_but_for_the_frame_that_is_handed_out() -> None:
    enhancer = Enhancer("auto", "cuda")
    for frames in (pan(COFFEE, 6), [torch.from_numpy(f).permute(2, 0, 1).cuda() for f in pan(COFFEE, 6)]):
        stream = enhancer.stream(frames, renew=2)  # type: ignore[type-var]
        next(stream)
        torch.cuda.set_sync_debug_mode("error")  # events are no part of it
        try:
            assert sum(1 for _ in stream) == 5
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize(("precision", "bound"), [("float16", 4e-3), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("model", ["auto", "lowlight", "LAM", "curves"])
def test_half_precision_on_a_gpu(model: str, precision: str, bound: float) -> None:
    frame = crop(COFFEE).astype(np.float32) / 255
    exact, half = (Enhancer(MODELS[model](), "cuda", p)(frame) for p in ("float32", precision))
    assert half.dtype == np.float32 and np.abs(half - exact).max() < bound
