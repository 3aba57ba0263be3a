"""Measures, for `make gpu-check`, the time of every op and of its peers on a GPU.

    python benchmarks/gpu/speed.py JOURNAL SECONDS

One record is one op, size, dtype and picture, forward or backward, run by one code (ours in CUDA or in Triton, or a
peer). A code whose result is wrong is not timed. Times are medians, of CUDA-graph replays, which exclude launch gaps,
and of calls from Python. Each record is written to the journal at once, and the most important come first, so that
nothing is lost when time runs out or a kernel kills the process. Started again, it resumes after the record that killed
it.
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastenh
from fastenh import backends

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cuda_report
import inputs

from gpu.ops import ONE_LUT, OPS, as_dtype, as_float

ROOT = Path(__file__).resolve().parents[2]

SIZES = {"8K": (4320, 7680), "4K": (2160, 3840), "1080p": (1080, 1920)}
DTYPES = ("float16", "float32", "bfloat16", "uint8")
OURS = ("cuda", "triton")
EAGER, REUSED, COMPILED = "eager PyTorch", "plain PyTorch, reused buffers", "torch.compile"
PROFILED = "cuda, profiled"  # which kernels run, and how many instructions per pixel they have

SECONDS = 0.05  # for the replays of one record, and as long again for its calls
REPLAY = 0.5e-3  # seconds that a replay lasts at least, so that its start is negligible
LAST = {PROFILED: 60, COMPILED: 15}  # seconds that must be left to begin a unit of the last kinds
OTHERS = 75  # and of all others
SLOW = 20e3  # microseconds; a peer slower than this is not timed in a graph too: its launch gaps are negligible
LOST = 75  # exit status of a process whose GPU no longer responds

# Tolerances of ‖result - truth‖ / ‖truth‖; the tests are stricter, pixel by pixel. Plain PyTorch may be off by ten
# times as much, since it rounds after every step.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.uint8: 5e-3}


# ---- what is measured, the most important first ----


class Unit(NamedTuple):
    """One record to measure."""

    op: str
    size: str
    dtype: str
    picture: str
    direction: str  # forward, backward or host
    code: str  # one of OURS, or a peer; or PROFILED


def plan() -> list[Unit]:
    def of(op: str, size: str, dtype: str) -> list[Unit]:
        units = [Unit(op, size, dtype, "photo", "forward", code) for code in (*OURS, EAGER, REUSED)]
        if dtype != "uint8" and OPS[op].gradients:
            units += [Unit(op, size, dtype, "photo", "backward", code) for code in (*OURS, EAGER)]
        if OPS[op].looks_up:
            units += [Unit(op, size, dtype, "noise", "forward", code) for code in OURS]
        if OPS[op].looks_up and OPS[op].gradients and dtype == "float16":
            units += [Unit(op, size, dtype, "flat", "backward", code) for code in OURS]
        return units

    largest, *_, smallest = SIZES
    first = [unit for op in OPS for unit in of(op, largest, "float16")]
    first += of(ONE_LUT, largest, "uint8")
    first += [Unit(op, "64 x 64", "float16", "noise", "host", code) for op in OPS for code in OURS]
    every = [
        unit
        for size in SIZES
        for op in OPS
        for dtype in DTYPES
        if dtype != "uint8" or OPS[op].integers
        for unit in of(op, size, dtype)
    ]
    ours = [unit for unit in every if unit.code == "cuda" and unit.size == smallest and unit.picture == "photo"]
    profiled = [unit._replace(code=PROFILED) for unit in ours]
    last = [Unit(op, largest, "float16", "photo", "forward", COMPILED) for op in OPS]
    return list(dict.fromkeys([*first, *every, *profiled, *last]))


class Case:
    """An op with its inputs, in enough copies to exceed the GPU's cache, and its true results."""

    def __init__(self, card: Card, op: str, size: str, dtype: str, picture: str) -> None:
        self.op, self.card, self.dtype = OPS[op], card, getattr(torch, dtype)
        self.first = self.op.inputs(card.picture(picture, SIZES[size]), self.dtype)

    @cached_property
    def truth(self) -> Tensor:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return as_dtype(self.op.written(*map(as_float, self.first)), self.dtype)

    @cached_property
    def grad(self) -> Tensor:
        return inputs.maps(self.truth.shape[1], 0.3, self.truth.shape[-2:], self.card.device).to(self.dtype)

    @cached_property
    def true_gradients(self) -> tuple[Tensor, ...]:
        """In double precision for LUTs, where millions of pixels may add to one vertex."""
        dtype = torch.float64 if self.op.looks_up else torch.float32
        exact = [t.to(dtype).requires_grad_() for t in self.first]
        with torch.enable_grad():
            return torch.autograd.grad(self.op.written(*exact), exact, self.grad.to(dtype))

    def bytes(self, direction: str) -> int:
        """The minimal memory traffic: every input read once, every result written once."""
        if direction == "forward":
            return sum(t.nbytes for t in (*self.first, self.truth))
        return self.grad.nbytes + self.op.bytes_backward(*self.first)

    def calls(self, direction: str, code: str) -> list[Callable[[], Any]]:
        """One call for each copy of the inputs."""
        make = self.forward if direction == "forward" else self.backward
        others = [[t.clone() for t in self.first] for _ in range(1, self.card.sets(self.bytes(direction)))]
        return [make(code, tensors) for tensors in [self.first, *others]]

    def forward(self, code: str, tensors: list[Tensor]) -> Callable[[], Any]:
        if code in OURS:
            out = torch.full_like(self.truth, 77 if self.dtype is torch.uint8 else math.nan)
            return lambda: self.op.ours(*tensors, out=out)
        if code == REUSED:
            return self.op.reusing(*tensors)
        written = torch.compile(self.op.written, fullgraph=True, dynamic=False) if code == COMPILED else self.op.written
        return lambda: written(*tensors)

    def backward(self, code: str, tensors: list[Tensor]) -> Callable[[], Any]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        result, grad = (self.op.ours if code in OURS else self.op.written)(*leaves), self.grad.clone()
        return lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)

    def off_by(self, direction: str, result: Any) -> float:
        """‖result - truth‖ / ‖truth‖, the largest over all results; infinite if any is not finite."""
        pairs = [(result, self.truth)] if direction == "forward" else zip(result, self.true_gradients, strict=True)
        worst = 0.0
        for got, true in pairs:
            true = as_float(true)
            off = float((as_float(got) - true).norm() / true.norm())
            worst = max(worst, off if math.isfinite(off) else math.inf)
        return worst


# ---- measuring ----


class Journal:
    """The results so far: one JSON line when a unit starts, and one with its outcome."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write(self, **line: Any) -> None:
        self.lines.append(json.loads(json.dumps(line)))
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def facts(self) -> dict[str, Any]:
        return {key: value for line in self.lines for key, value in line.get("facts", {}).items()}

    def units(self, kind: str) -> dict[Unit, Any]:
        """The units with a line of this kind, "begin", "record", "failure" or "unsupported", and what it says."""
        return {Unit(*line["unit"]): line[kind] for line in self.lines if kind in line}


def measure(card: Card, journal: Journal, seconds: float) -> None:
    """Measures the units of the plan that have not started yet, until time runs out."""
    end = time.monotonic() + seconds
    if not journal.facts():
        journal.write(facts=about(card))
    begun, cannot_run = journal.units("begin"), journal.facts()["cannot run"]
    case, case_of = None, None
    for unit in plan():
        if unit in begun or unit.code.split(",")[0] in cannot_run:
            continue
        if end - time.monotonic() < LAST.get(unit.code, OTHERS):
            continue
        journal.write(unit=unit, begin=True)
        try:
            if unit.direction == "host":
                record = host(card, unit)
            else:
                if case_of != unit[:4]:
                    case = case_of = None  # frees its memory before the next one allocates
                    card.tidy()
                    case, case_of = Case(card, *unit[:4]), unit[:4]
                record = (profiled if unit.code == PROFILED else timed)(card, case, unit)
            journal.write(unit=unit, record=record)
        except Exception as error:
            case = case_of = None
            problem = first_line(error)
            unsupported = unit.code not in OURS and "not implemented for" in problem
            journal.write(unit=unit, **{"unsupported" if unsupported else "failure": problem})
            if not card.answers():
                sys.exit(LOST)
    journal.write(facts={"after": card.state()})


def timed(card: Card, case: Case, unit: Unit) -> dict[str, Any]:
    with card.using(unit.code), torch.set_grad_enabled(unit.direction == "backward"):
        if unit.code in OURS and not card.has_kernel(unit.op.split(",")[0], unit.direction):
            raise LookupError("no kernel: the reference would run")
        calls = case.calls(unit.direction, unit.code)
        off = max(case.off_by(unit.direction, call()) for call in calls)
        allowed = TOLERANCE[case.dtype] * (1 if unit.code in OURS else 10)
        if off > allowed:
            raise AssertionError(f"wrong result: off by {off:.2g}, at most {allowed:g} is allowed")
        size = case.bytes(unit.direction)
        record = {"bytes": size, "sets": len(calls), "off_by": off, "called": card.called(calls)}
        if unit.code in OURS or record["called"]["us"] < SLOW:
            try:
                record["replayed"] = card.replayed(calls, size)
            except Exception as error:
                record["not captured"] = first_line(error)
        return record


def profiled(card: Card, case: Case, unit: Unit) -> dict[str, Any]:
    with card.using("cuda"), torch.set_grad_enabled(unit.direction == "backward"):
        kernels = card.kernels(case.calls(unit.direction, "cuda")[0])
        return {"kernels": [{"name": n, "us": us, "sass": card.instructions_per_pixel(n)} for n, us in kernels]}


def host(card: Card, unit: Unit) -> dict[str, Any]:
    """The host time of a call, on an image so small that the GPU is never the bottleneck."""
    op = OPS[unit.op]
    tensors = op.inputs(card.picture(unit.picture, (64, 64)), getattr(torch, unit.dtype))
    with card.using(unit.code), torch.no_grad():
        out = op.ours(*tensors)
        return {
            "us": card.host(lambda: op.ours(*tensors)),
            "us with out=": card.host(lambda: op.ours(*tensors, out=out)),
        }


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---- the GPU and its timers ----


class Card:
    """The first GPU that torch sees. Everything runs, and graphs are captured, on one separate stream."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0)
        self.properties = torch.cuda.get_device_properties(self.device)
        self.stream = torch.cuda.Stream(self.device)
        torch.cuda.set_stream(self.stream)
        gc.freeze()  # so that collecting garbage after each case looks at that case only
        self.pictures: dict[Any, Tensor] = {}
        self.bandwidth = self.copy_bandwidth()

    def problem(self, code: str) -> str:
        return backends.problem(code)

    def using(self, code: str) -> AbstractContextManager[None]:
        return fastenh.backend(code if code in OURS else "auto")

    def has_kernel(self, op: str, direction: str) -> bool:
        kernels = backends.kernels(op, self.device)
        return kernels is not None and (op if direction == "forward" else f"{op}_backward") in kernels

    def picture(self, name: str, size: Sequence[int]) -> Tensor:
        if (name, size) not in self.pictures:
            make = {"photo": inputs.photo, "noise": inputs.noise, "flat": lambda size: torch.full((1, 3, *size), 0.4)}
            self.pictures[name, size] = make[name](size).to(self.device)
        return self.pictures[name, size]

    def sets(self, size: int) -> int:
        """How many copies of the inputs it takes for none of a round to be left in the cache by the next."""
        return min(64, max(1, math.ceil(4 * self.properties.L2_cache_size / size)))

    def copy_bandwidth(self) -> float:
        """Bytes read and written per second by a large copy."""
        count = min(4 << 30, torch.cuda.mem_get_info(self.device)[0] // 4) // 8
        a = torch.empty(count, dtype=torch.int64, device=self.device).random_()
        b = torch.empty_like(a)
        return 2 * a.nbytes / (self.called([lambda: b.copy_(a)])["us"] * 1e-6)

    def called(self, calls: Sequence[Callable[[], Any]]) -> dict[str, float]:
        """Microseconds per call, of many calls from Python in a row."""

        def all_calls() -> None:
            for call in calls:
                call()

        return self._time(all_calls, len(calls))

    def replayed(self, calls: Sequence[Callable[[], Any]], size: int) -> dict[str, float]:
        """Microseconds per call, of many calls in a CUDA graph."""
        rounds = max(1, math.ceil(REPLAY * self.bandwidth / (len(calls) * size)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for _ in range(rounds):
                for call in calls:
                    call()
        return self._time(graph.replay, rounds * len(calls))

    def _time(self, run: Callable[[], Any], count: int) -> dict[str, float]:
        def once() -> tuple[torch.cuda.Event, torch.cuda.Event]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            return start, end

        start, end = once()  # warms up, and says how many repetitions there is time for
        torch.cuda.synchronize()
        times = int(min(100, max(3, SECONDS / (start.elapsed_time(end) * 1e-3 + 1e-9))))
        events = [once() for _ in range(times)]
        torch.cuda.synchronize()
        us = [start.elapsed_time(end) * 1e3 / count for start, end in events]
        low, median, high = statistics.quantiles(us, n=4, method="inclusive")
        return {"us": median, "low": low, "high": high}

    def host(self, call: Callable[[], Any]) -> float:
        """Host time of one call in microseconds, in a burst that waits for nothing."""
        times = []
        for _ in range(400):
            start = time.perf_counter_ns()
            call()
            times.append(time.perf_counter_ns() - start)
        torch.cuda.synchronize()
        return statistics.median(times[100:]) * 1e-3

    def kernels(self, call: Callable[[], Any]) -> list[tuple[str, float]]:
        """The kernels of one call with their microseconds, the longest first."""
        call()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            call()
            torch.cuda.synchronize()
        times = [(event.key, event.self_device_time_total) for event in found.key_averages()]
        return sorted(((name, us) for name, us in times if us), key=lambda kernel: -kernel[1])

    def instructions_per_pixel(self, kernel: str) -> float | None:
        try:
            return cuda_report.instructions_per_pixel(kernel, f"sm_{self.properties.major}{self.properties.minor}")
        except (OSError, subprocess.CalledProcessError):  # no disassembler
            return None

    def answers(self) -> bool:
        """Whether the GPU still works for this process; after an illegal access it does not."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def tidy(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def state(self) -> dict[str, Any]:
        """The copy bandwidth, measured now, and the clocks from nvidia-smi right after."""
        state: dict[str, Any] = {"copy, GB/s": round(self.copy_bandwidth() / 1e9, 1)}
        fields = "driver_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit"
        values = output(
            "nvidia-smi", f"--id=GPU-{self.properties.uuid}", f"--query-gpu={fields}", "--format=csv,noheader"
        )
        return state | dict(zip(fields.split(","), values.split(", "), strict=False))

    def facts(self) -> dict[str, Any]:
        p = self.properties
        return {
            "gpu": p.name,
            "compute capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory, GiB": round(p.total_memory / 2**30, 1),
            "L2, MiB": round(p.L2_cache_size / 2**20, 1),
        }


# ---- facts about the machine and the code ----


def output(*command: str) -> str:
    """What a command prints; "" if it fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def gpu_sources_sha256(root: Path = ROOT) -> str:
    """What `git ls-files csrc kernels | grep -E '\\.(cu|cuh|h|py)$' | sort | xargs cat | sha256sum` prints (LC_ALL=C);
    outside a git checkout, the same for the files that are there."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "csrc", "kernels"], cwd=root, capture_output=True, text=True, check=True
        )
        names = done.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = []
    if not names:
        names = [str(path.relative_to(root)) for folder in ("csrc", "kernels") for path in (root / folder).rglob("*")]
    sources = sorted(name for name in names if re.search(r"\.(cu|cuh|h|py)$", name))
    return hashlib.sha256(b"".join((root / name).read_bytes() for name in sources)).hexdigest()


def about(card: Card) -> dict[str, Any]:
    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    commit = output("git", "rev-parse", "HEAD") or "unknown"
    changed = output("git", "status", "--porcelain", "--untracked-files=no")
    nvcc = re.search(r"release.*", output("nvcc", "--version"))
    versions = {"python": platform.python_version(), "nvcc": nvcc[0] if nvcc else "not on the PATH"}
    versions |= {package: version(package) for package in ("torch", "triton", "fastenh")}
    versions["CUDA kernels for"] = (backends.core.cuda_archs if backends.core else "") or "no card"
    return card.facts() | {
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "commit": commit + (" with changes" if changed else ""),
        "gpu_sources_sha256": gpu_sources_sha256(),
        "versions": versions,
        "cannot run": {code: why for code in OURS if (why := card.problem(code))},
        "before": card.state(),
    }


if __name__ == "__main__":
    measure(Card(), Journal(Path(sys.argv[1])), float(sys.argv[2]))
