"""Measures every op against its peers: `pytest --benchmark`.

A benchmark makes its inputs and gives the contest one callable for the op and one for each peer. The contest first
checks that all of them compute the same. Then they take turns in one process, A B C A B C ..., so that anything that
slows the machine down affects all of them. Figures are medians and the ratio of medians, with the quartiles of the
rounds' ratios.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastenh import backend, backends

sys.path.insert(0, str(Path(__file__).parent))  # modules shared with benchmarks/gpu: inputs, peers, tables
import inputs
import quiet
from tables import header, judged, put_into_readme, row

SIZE = (2160, 3840)
SECONDS = 6  # for the rounds of one case
TURN = 0.005  # minimum seconds of a turn: shorter calls are repeated
MEMORY_GOAL = 16  # MiB beyond the output
GOAL_SHARE = {"avx512": 1.0, "avx2": 0.5}  # with AVX2 only, half of each goal

cases: list[dict[str, Any]] = []  # the results so far


# ---- inputs ----


@pytest.fixture(scope="session")
def photo() -> Tensor:
    return inputs.photo(SIZE)


@pytest.fixture(scope="session")
def noise() -> Tensor:
    return inputs.noise(SIZE)


@pytest.fixture(scope="session")
def maps() -> Callable[..., Tensor]:
    """maps(channels, noise=0.1, size=SIZE)"""
    return lambda channels, noise=0.1, size=SIZE: inputs.maps(channels, noise, size)


# ---- the contest ----


class Contest:
    """One case: `peer` adds a peer, then calling the contest measures the op against all peers."""

    def __init__(self, benchmark: Any) -> None:
        self.benchmark = benchmark
        self.peers: dict[str, Callable[[], Any]] = {}
        self.views: dict[str, Callable[[Any], Any]] = {}
        self.goals: dict[str, float | None] = {}

    def peer(
        self,
        name: str,
        run: Callable[[], Any],
        *,
        goal: float | None = None,
        view: Callable[[Any], Any] = lambda result: result,
    ) -> None:
        """`run` computes the same as the op. `goal`: how many times faster the op should be. `view` converts the result
        of `run` to tensors of the op's shapes, to check that they agree (not timed)."""
        self.peers[name], self.views[name], self.goals[name] = run, view, goal

    @staticmethod
    def by_rows(step: Callable[..., Any], *maps: Tensor) -> None:
        """Runs `step` on 60 rows of the maps at a time: the fastest way in plain PyTorch, since data is still in the
        cache when it is read again, and malloc can reuse memory for results without `out=`."""
        for parts in zip(*(m.split(60, dim=2) for m in maps), strict=True):
            step(*parts)

    def __call__(
        self,
        case: str,
        ours: Callable[[], Any],
        *,
        fresh: Callable[[], Any] | None = None,
        tolerance: float = 1e-5,
        relative: float = 1e-4,
        threads: int = 2,
        in_readme: bool = True,
    ) -> None:
        """Runs `ours` with each instruction set, or with the backend of FASTENH_BACKEND; `fresh` is `ours` without
        `out=`."""
        torch.set_num_threads(threads)
        beyond = peak_beyond(ours)
        expected = ours()
        for name, run in self.peers.items():
            torch.testing.assert_close(
                self.views[name](run()),
                expected,
                atol=tolerance,
                rtol=relative,
                check_stride=False,
                msg=lambda text, name=name: f"{name} and fastenh disagree. {text}",
            )

        start = time.perf_counter()
        ours()
        calls = max(1, math.ceil(TURN / (time.perf_counter() - start)))

        chosen = backends.chosen()
        sets = [name for name in GOAL_SHARE if not backends.problem(name)] if chosen == "auto" else [chosen]
        subjects = {name: ours for name in sets} | ({"fresh": fresh} if fresh else {})
        turns = {name: repeated(run, calls) for name, run in (subjects | self.peers).items()}
        turns |= {name: on(name, turns[name]) for name in sets}  # choose once per turn: choosing takes microseconds
        (first, subject), *others = turns.items()
        seconds: dict[str, list[float]] = {name: [] for name in (first, *dict(others))}

        def others_turns() -> None:
            for name, run in others:
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)

        others_turns()  # warms up, and measures how long a round takes
        rounds = int(min(31, max(3, SECONDS / sum(seconds[name].pop() for name, _ in others))))
        # pytest-benchmark measures one callable after the other. But before each round it makes a setup call that it
        # does not time: the others take their turns there.
        self.benchmark.group = case
        before = quiet.usage()
        self.benchmark.pedantic(subject, setup=others_turns, rounds=rounds)
        if self.benchmark.stats is None:  # --benchmark-disable: only check that all agree
            return
        seconds[first] = list(self.benchmark.stats.stats.data)

        def against(name: str, peer: str) -> dict[str, Any]:
            goal = self.goals[peer]
            return {
                "ratio": statistics.median(seconds[peer]) / statistics.median(seconds[name]),
                "quartiles": quartiles([b / a for a, b in zip(seconds[name], seconds[peer], strict=True)]),
                "goal": goal * GOAL_SHARE[name] if goal and name in GOAL_SHARE else None,
            }

        result = {
            "case": case,
            "threads": threads,
            "rounds": rounds,
            "calls_a_turn": calls,
            "cores_of_others": quiet.cores_of_others(before, quiet.usage()),
            "in_readme": in_readme,
            "mib_beyond_output": beyond,
            "ms": {name: 1e3 * statistics.median(times) / calls for name, times in seconds.items()},
            "times_faster": {peer: {name: against(name, peer) for name in subjects} for peer in self.peers},
        }
        cases.append(result)
        self.benchmark.extra_info.update(result)
        test = self.benchmark.name
        for name, _ in others:  # entries of the same group in pytest-benchmark's own table and file
            self.benchmark.name, self.benchmark.extra_info = f"{test}: {name}", {}
            entry = self.benchmark._make_stats(iterations=1)
            for duration in seconds[name]:
                entry.update(duration)


@pytest.fixture
def contest(benchmark: Any) -> Iterator[Contest]:
    release_memory()  # so that a new `out` does not get pages that an earlier case has written
    threads = torch.get_num_threads()
    yield Contest(benchmark)
    torch.set_num_threads(threads)


def on(name: str, run: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with backend(name):
            return run()

    return call


def repeated(run: Callable[[], Any], calls: int) -> Callable[[], Any]:
    def turn() -> None:
        for _ in range(calls):
            run()

    return run if calls == 1 else turn


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def release_memory() -> None:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def peak_beyond(run: Callable[[], Any]) -> float | None:
    """MiB of this process's peak memory that a first call adds, minus the size of its results (Linux only). Pages count
    only once they are written, so a fresh `out` counts as output."""
    if sys.platform != "linux":
        return None

    def held(field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0

    release_memory()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = held("VmRSS")
    result = run()
    results = result if isinstance(result, tuple) else (result,)
    return (held("VmHWM") - before - sum(t.nbytes for t in results)) / 2**20


# ---- the tables ----


def milliseconds(ms: float) -> str:
    return f"{ms:.1f}" if ms >= 1 else f"{ms:.2g}"


def tables() -> str:
    """Two Markdown tables: the cost of each case, and its comparison with its peers."""
    names = list(dict.fromkeys(name for case in cases for peer in case["times_faster"].values() for name in peer))
    titles = [{"avx512": "AVX-512", "avx2": "AVX2", "fresh": "fresh output"}.get(name, name) for name in names]

    costs = header("case", "threads", *(f"{title}, ms" for title in titles), "MiB beyond the output")
    stand = header("case", "peer", "its ms", *(f"{title}: times faster" for title in titles))
    for case in cases:
        ms = case["ms"]
        costs.append(row(case["case"], case["threads"], *(milliseconds(ms[n]) if n in ms else "" for n in names),
                         judged("{:.1f}", case["mib_beyond_output"], "<=", MEMORY_GOAL)))  # fmt: skip
        for peer, figures in case["times_faster"].items():
            cells = []
            for name in names:
                figure = figures.get(name, {"ratio": None, "goal": None})
                low, high = figure.get("quartiles", (0, 0))
                cells.append(judged(f"**{{:.2f}}** ({low:.2f} to {high:.2f})", figure["ratio"], ">=", figure["goal"]))
            stand.append(row(case["case"], peer, milliseconds(ms[peer]), *cells))
    return "\n".join([*costs, "", *stand])


def summary() -> str:
    """README's table: the fastest backend with `out=`, against every peer."""
    lines = header("3840 x 2160 float32, unless it says otherwise", "ms", "times faster than")
    for case in (case for case in cases if case["in_readme"]):
        peers = {peer: next(iter(figures.values()))["ratio"] for peer, figures in case["times_faster"].items()}
        ratios = "<br>".join(f"**{ratio:.3g}** {peer}" for peer, ratio in peers.items())
        lines.append(row(case["case"], milliseconds(next(iter(case["ms"].values()))), ratios))
    return "\n".join(lines)


def write_results(config: pytest.Config) -> str:
    machine = config.hook.pytest_benchmark_generate_machine_info(config=config)
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    packages = ("fastenh", "torch", "numpy", "opencolorio", "pillow")
    about = {
        "processor": f"{machine['cpu']['brand_raw']}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "cores of others": max(case["cores_of_others"] or 0.0 for case in cases),
        "code": backends.chosen(),
        "torch's code": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "commit": commit["id"] + (" with changes" if commit["dirty"] else ""),
        "date": datetime.date.today().isoformat(),
    }
    name = "-".join([about["processor"], *([about["code"]] if about["code"] != "auto" else []), about["date"]])
    path = Path(__file__).parent / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower())
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(about | {"cases": cases}, indent=1) + "\n")
    facts = [f"{key}: {value}" for key, value in (about | about["versions"]).items() if key != "versions"]
    path.with_suffix(".md").write_text(f"{'; '.join(facts)}\n\n{tables()}\n")
    if about["code"] == "auto":
        where = f"{about['processor']}, {cases[0]['threads']} threads; commit {about['commit'][:9]}, {about['date']}."
        put_into_readme("speed", f"{where}\n\n{summary()}")
    return f"written: {path}.json, .md and the README's table of speed"


def pytest_report_collectionfinish() -> str | None:
    busy = quiet.disturbance_now()
    return f"Warning: {busy}. Times will be too long, and no results are written." if busy else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if cases:
        terminalreporter.section("fastenh against its peers")
        terminalreporter.write_line(tables())
        busy = quiet.disturbance({c["case"]: c["cores_of_others"] for c in cases}, os.cpu_count() or 1)
        if busy:
            terminalreporter.write_line(f"\nWarning: {busy}")
        if config.getoption("--benchmark-results"):
            whole = config.args_source is not config.ArgsSource.ARGS and not (
                terminalreporter.stats.keys() & {"deselected", "failed", "error"}
            )
            if whole and not busy:
                written = write_results(config)
            else:
                written = "not written: results are of whole runs without failures on a quiet machine"
            terminalreporter.write_line(f"\n{written}")
