"""Measures frames through low-light models and through streams on an NVIDIA GPU, and prints two tables.

    python benchmarks/gpu/frames.py

Models map uint8 to uint8, in replays of a CUDA graph of ten calls. "step by step": convolution, sum and ReLU run
separately, as they do where gradients are wanted. Streams and calls of an Enhancer take turns; figures are medians.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh import Enhancer
from fastenh.models import Picture, ZeroDCE, ZeroDCEPlusPlus, zero_dce
from fastenh.tiles import Place

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inputs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = {"8K": (4320, 7680), "4K": (2160, 3840), "1080p": (1080, 1920)}
CALLS, REPEATS = 10, 9


def photo(size: tuple[int, int]) -> Tensor:
    return (inputs.photo(size) * 255).round().byte()


def step_by_step(x, kernel, bias, padding, activation, plus=None):
    result = F.conv2d(x, kernel, bias, padding=padding)
    return activation(result if plus is None else plus.add_(result))


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return graph


def microseconds(*graphs: torch.cuda.CUDAGraph) -> list[float]:
    """The time of one call in each graph; the graphs take turns."""
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(REPEATS):
        for graph, taken in zip(graphs, times, strict=True):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / CALLS * 1e3)
    return [statistics.median(taken) for taken in times]


@torch.inference_mode()
def low_light(system: type[ZeroDCE], map_scale: int, size: str, dtype: torch.dtype) -> str:
    torch.manual_seed(0)
    model = system(map_scale)
    for parameter in model.parameters():  # so that curves differ from pixel to pixel
        nn.init.normal_(parameter, std=1.2 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1)
    model = model.eval().to("cuda", dtype)
    image = photo(SIZES[size]).cuda()
    picture, place = Picture(image), Place(0, 0, *image.shape[2:])
    out, reduced = torch.empty_like(image), model.reduced(picture)

    def frame() -> None:
        model.render(image, (), model.prepare(picture, ()).local, place, out)

    calls = [frame, lambda: model.network(reduced), lambda: model.reduced(picture)]
    graphs = [captured(call) for call in calls]
    with mock.patch.object(zero_dce, "convolve", step_by_step):
        graphs.append(captured(calls[0]))
    whole, network, reduced, steps = (f"{t:.0f}" for t in microseconds(*graphs))
    name = f"{system.__name__}, s = {map_scale}, {str(dtype).removeprefix('torch.')}"
    return f"| {name} | {size} | {whole} | {network} | {reduced} | {steps} |"


def streams(model: str, precision: str, size: str, count: int) -> str:
    height, width = SIZES[size]
    large = photo((height + 16, width + 16))[0]
    windows = [large[:, i : i + height, i : i + width] for i in range(0, 16, 2)]
    enhancer = Enhancer(model, "cuda", precision)
    cells = []
    for frames in (
        [w.permute(1, 2, 0).contiguous().numpy() for w in windows],
        [w.contiguous().cuda() for w in windows],
    ):
        sequence = list(itertools.islice(itertools.cycle(frames), count))
        ways: dict[str, Callable[[], object]] = {
            "stream": lambda sequence=sequence: [None for _ in enhancer.stream(sequence)],
            "enhance": lambda sequence=sequence: [None for frame in sequence if enhancer.enhance(frame) is None],
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(4):
            for way, run in ways.items():
                torch.cuda.synchronize()
                begun = time.perf_counter()
                run()
                torch.cuda.synchronize()
                rates[way].append(count / (time.perf_counter() - begun))
        cells += [f"{statistics.median(rates[way][1:]):.0f}" for way in ways]  # the first call warms up
    return f"| {model}, {precision} | {size} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| µs | frame | whole | its network | the reduced frame | whole, step by step |\n|" + " --- |" * 6)
    for system, map_scale, size in (
        (ZeroDCE, 4, "4K"),
        (ZeroDCEPlusPlus, 12, "8K"),
        (ZeroDCE, 1, "1080p"),
        (ZeroDCEPlusPlus, 1, "1080p"),
    ):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            print(low_light(system, map_scale, size, dtype), flush=True)
    print("\n| frames a second | frame | host: stream | enhance | GPU: stream | enhance |\n|" + " --- |" * 6)
    for size, count in (("4K", 64), ("8K", 24)):
        for model, precision in itertools.product(("auto", "lowlight"), ("float32", "float16")):
            print(streams(model, precision, size, count), flush=True)
