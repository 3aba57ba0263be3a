"""`make gpu-check` as far as it runs without a GPU: every case runs and agrees with its peers, on small images on the
CPU with fixed times, and results are kept whatever fails."""

import contextlib
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastenh
from fastenh import backends

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu.check  # noqa: E402
import gpu.ops  # noqa: E402
import gpu.speed  # noqa: E402
import gpu.tables  # noqa: E402
import tables  # noqa: E402
from gpu.speed import Journal, Unit, measure  # noqa: E402
from gpu.tables import Figures, backward, forward, results_of  # noqa: E402

ONE_LUT, SPLIT = forward(gpu.ops.ONE_LUT), forward(gpu.ops.SPLIT)


class OnCpu(gpu.speed.Card):
    """Runs the CPU's kernels as CUDA and the reference as Triton; every replay takes 100 µs."""

    def __init__(self, gpu: str = "NVIDIA H200") -> None:
        self.gpu, self.device, self.pictures = gpu, torch.device("cpu"), {}

    def using(self, code: str) -> contextlib.AbstractContextManager[None]:
        return fastenh.backend("reference" if code == "triton" else "auto")

    def problem(self, code: str) -> str:
        return ""

    def has_kernel(self, op: str, direction: str) -> bool:
        return True

    def sets(self, size: int) -> int:
        return 2

    def called(self, calls: Sequence[Callable[[], Any]]) -> dict[str, float]:
        for call in calls:
            call()
        return {"us": 150.0, "low": 140.0, "high": 160.0}

    def replayed(self, calls: Sequence[Callable[[], Any]], size: int) -> dict[str, float]:
        return {"us": 100.0, "low": 99.0, "high": 101.0}

    def host(self, call: Callable[[], Any]) -> float:
        call()
        return 12.5

    def kernels(self, call: Callable[[], Any]) -> list[tuple[str, float]]:
        call()
        return [("transform_kernel<8>", 90.0), ("pack_kernel<8>", 5.0)]

    def instructions_per_pixel(self, kernel: str) -> float | None:
        return {"transform_kernel<8>": 77.0}.get(kernel)

    def answers(self) -> bool:
        return True

    def tidy(self) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {"copy, GB/s": 4300.0}

    def facts(self) -> dict[str, Any]:
        return {"gpu": self.gpu}


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setattr(gpu.speed, "SIZES", {"8K": (24, 36), "4K": (12, 24), "1080p": (12, 24)})
    return Journal(tmp_path / "journal.jsonl")


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the plan by these units."""

    def set_plan(*units: Unit) -> None:
        for module in (gpu.speed, gpu.tables):
            monkeypatch.setattr(module, "plan", lambda: list(units))

    return set_plan


# ---- measuring ----


def test_every_case_runs_and_agrees(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    measure(OnCpu(), journal, 1e9)
    results = results_of(journal, [{"step": "tests", "ok": False, "note": "2 failed"}])
    assert results["failures"] == results["not measured"] == []
    assert all("not implemented for" in line for line in results["peers that cannot"])
    assert len({function.__self__ for function in compiled}) == len(gpu.ops.OPS)

    text = gpu.tables.tables(results)
    for what, _, figure, _, _ in gpu.tables.goals(Figures(results)):
        assert figure is not None, what
    assert f"| {gpu.ops.ONE_LUT} (aim 116) | 100 µs, goal <= 170 met |" in text
    assert f"| {gpu.ops.ONE_LUT}, backward: times faster than eager | 1.00, goal >= 10 MISSED |" in text
    rows = [line for line in text.splitlines() if line.startswith(f"| {gpu.ops.VOXELS} | 1080p | float32 | photo |")]
    assert [re.findall(r"100 \(99 to 101\) \| 150 \| 0.00 \| 77 \|", line) != [] for line in rows] == [True, True]
    assert "- tests: FAILED: 2 failed" in text
    widths = [[line.count("|") for line in table.splitlines()] for table in text.split("\n\n") if table[0] == "|"]
    assert len(widths) == 4 and all(len(set(width)) == 1 for width in widths)


def test_the_most_important_comes_first_and_compilation_last() -> None:
    units = gpu.speed.plan()
    assert len(units) == len(set(units))
    goals = [unit for unit in units if unit.size in ("8K", "64 x 64") and unit.dtype == "float16"]
    assert {u for u in goals if u.code != gpu.speed.COMPILED} <= set(units[:90])
    assert all(unit.code == gpu.speed.COMPILED for unit in units[-len(gpu.ops.OPS) :])


@pytest.mark.parametrize("code", ["cuda", gpu.speed.EAGER])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_wrong_results_are_not_timed(
    direction: str, code: str, journal: Journal, plan: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, op = SPLIT._replace(direction=direction, code=code), gpu.ops.OPS[gpu.ops.SPLIT]
    plan(unit, ONE_LUT)
    name = "ours" if code == "cuda" else "written"
    right = getattr(type(op), name)

    def wrong(self: Any, features: Tensor, *args: Any, **options: Any) -> Tensor:
        result = right(self, features, *args, **options)
        if features.dtype is torch.float16:  # the truth is computed in float32
            result = result * 1.5 if options.get("out") is None else options["out"].mul_(1.5)
        return result

    monkeypatch.setattr(type(op), name, wrong)
    measure(OnCpu(), journal, 1e9)
    results = results_of(journal, [])
    assert re.fullmatch(
        rf"{', '.join(unit)}: wrong result: off by 0\.\d+, at most .* is allowed", results["failures"][0]
    )
    assert [record["op"] for record in results["records"]] == [ONE_LUT.op]


def test_the_reference_is_not_timed_as_ours(journal: Journal, plan: Callable[..., None]) -> None:
    plan(ONE_LUT, ONE_LUT._replace(direction="backward"), ONE_LUT._replace(code=gpu.speed.EAGER))

    class ForwardAlone(OnCpu):
        def has_kernel(self, op: str, direction: str) -> bool:
            return (op, direction) == ("lut_transform", "forward")

    measure(ForwardAlone(), journal, 1e9)
    results = results_of(journal, [])
    assert results["failures"] == [f"{', '.join(backward(ONE_LUT.op))}: no kernel: the reference would run"]
    assert [(r["direction"], r["code"]) for r in results["records"]] == [
        ("forward", "cuda"),
        ("forward", gpu.speed.EAGER),
    ]


def test_an_output_that_is_not_written_is_not_timed(
    journal: Journal, plan: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(SPLIT)
    monkeypatch.setattr(gpu.ops.ChannelSplit, "ours", lambda self, *args, out=None: out)
    measure(OnCpu(), journal, 1e9)
    assert "off by inf" in results_of(journal, [])["failures"][0]


def test_bytes_are_what_must_move() -> None:
    pixels, half = 7680 * 4320, 2
    card = OnCpu()
    card.picture = lambda name, size: torch.empty(1, 3, *size, device="meta")  # type: ignore[method-assign]

    def bytes_a_pixel(op: str, direction: str) -> float:
        case = gpu.speed.Case.__new__(gpu.speed.Case)
        case.op, case.dtype = gpu.ops.OPS[op], torch.float16
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                gpu.ops.inputs, "maps", lambda c, noise, size, device: torch.empty(1, c, *size, device="meta")
            )
            patch.setattr(gpu.ops.inputs, "luts", lambda count: torch.empty(0))
            case.first = case.op.inputs(card.picture("photo", (4320, 7680)), torch.float16)
        channels = {gpu.ops.VOXELS: 27, gpu.ops.SPLIT: 64}.get(op, 3)
        case.truth = case.grad = case.first[0].new_empty(1, channels, *case.first[0].shape[-2:])
        return case.bytes(direction) / pixels

    low = 3 / 144  # the low-resolution map
    assert bytes_a_pixel(gpu.ops.ONE_LUT, "forward") == 6 * half
    assert bytes_a_pixel(gpu.ops.FIVE_LUTS, "forward") == 11 * half
    assert bytes_a_pixel(gpu.ops.CURVE_MAPS, "forward") == 30 * half
    assert bytes_a_pixel(gpu.ops.CURVE_LOW, "forward") == (6 + low) * half
    assert bytes_a_pixel(gpu.ops.VOXELS, "forward") == 39 * half
    assert bytes_a_pixel(gpu.ops.SPLIT, "forward") == 192 / 16 * half
    assert bytes_a_pixel(gpu.ops.CURVE_MAPS, "backward") == (3 + 2 * 27) * half
    assert bytes_a_pixel(gpu.ops.VOXELS, "backward") == (27 + 2 * 12) * half
    assert bytes_a_pixel(gpu.ops.SPLIT, "backward") == (64 + 32 + 32 + 64 + 32) / 16 * half


def test_a_process_that_died_resumes_after_the_unit_that_killed_it(journal: Journal, plan: Callable[..., None]) -> None:
    plan(ONE_LUT, SPLIT)

    class Dies(OnCpu):
        def called(self, calls: Sequence[Callable[[], Any]]) -> dict[str, float]:
            raise KeyboardInterrupt  # like a crash: nothing after it runs

    with pytest.raises(KeyboardInterrupt):
        measure(Dies(), journal, 1e9)
    measure(OnCpu(), Journal(journal.path), 1e9)
    results = results_of(Journal(journal.path), [])
    assert results["failures"] == [f"{', '.join(ONE_LUT)}: the process died here, or time ran out"]
    assert [record["op"] for record in results["records"]] == [SPLIT.op]


def test_a_gpu_that_no_longer_responds_ends_the_process(journal: Journal, plan: Callable[..., None]) -> None:
    plan(ONE_LUT, SPLIT)

    class Lost(OnCpu):
        def called(self, calls: Sequence[Callable[[], Any]]) -> dict[str, float]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

        def answers(self) -> bool:
            return False

    with pytest.raises(SystemExit) as end:
        measure(Lost(), journal, 1e9)
    assert end.value.code == gpu.speed.LOST
    results = results_of(journal, [])
    assert results["failures"] == [f"{', '.join(ONE_LUT)}: CUDA error: an illegal memory access was encountered"]
    assert results["not measured"] == [", ".join(SPLIT)]


def test_without_time_nothing_is_begun(journal: Journal, plan: Callable[..., None]) -> None:
    plan(ONE_LUT, ONE_LUT._replace(code=gpu.speed.COMPILED))
    measure(OnCpu(), journal, 0)
    assert len(results_of(journal, [])["not measured"]) == 2


def test_codes_that_cannot_run_are_reported_once(journal: Journal, plan: Callable[..., None]) -> None:
    plan(ONE_LUT, ONE_LUT._replace(code="triton"), SPLIT._replace(code=gpu.speed.PROFILED))

    class WithoutCuda(OnCpu):
        def problem(self, code: str) -> str:
            return "the core was built without CUDA" if code == "cuda" else ""

    measure(WithoutCuda(), journal, 1e9)
    results = results_of(journal, [])
    assert results["failures"] == results["not measured"] == []
    assert [record["code"] for record in results["records"]] == ["triton"]
    assert "cannot run: cuda the core was built without CUDA" in gpu.tables.tables(results)


def test_a_call_that_cannot_be_captured_is_a_failure_of_ours_but_not_of_a_peer(
    journal: Journal, plan: Callable[..., None]
) -> None:
    plan(ONE_LUT, ONE_LUT._replace(code=gpu.speed.EAGER))

    class CapturesNothing(OnCpu):
        def replayed(self, calls: Sequence[Callable[[], Any]], size: int) -> dict[str, float]:
            raise RuntimeError("operation not permitted when stream is capturing")

    measure(CapturesNothing(), journal, 1e9)
    results = results_of(journal, [])
    assert results["failures"] == [f"{', '.join(ONE_LUT)}: operation not permitted when stream is capturing"]
    assert Figures(results).us(ONE_LUT) == 150.0
    assert "150 (140 to 160), called" in gpu.tables.tables(results)


def test_goals_are_judged_only_on_the_card_they_are_for(journal: Journal, plan: Callable[..., None]) -> None:
    plan(ONE_LUT)
    measure(OnCpu("NVIDIA GeForce RTX 4090"), journal, 1e9)
    table = "\n".join(gpu.tables.goal_table(results_of(journal, [])))
    assert "(aim 116) | 100 µs |" in table and "(goals are for H200)" in table
    assert "met" not in table.replace("not measured", "") and "MISSED" not in table


# ---- facts about the code, and README ----


def test_checksum_of_the_sources_is_that_of_gits_files(tmp_path: Path) -> None:
    """With git, and without it if the folder holds only what git tracks."""
    for name in ("csrc/lut.cu", "csrc/lut.cpp", "csrc/device.h", "csrc/deep/a.cuh", "kernels/lut.py", "kernels/_x.py",
                 "csrc/lut_x.cu", "kernels/__pycache__/lut.cpython-312.pyc", "fastenh/ops/lut.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name + "\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    without_git = gpu.speed.gpu_sources_sha256(tmp_path)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    pipeline = r"git ls-files csrc kernels | grep -E '\.(cu|cuh|h|py)$' | LC_ALL=C sort | xargs cat | sha256sum"
    done = subprocess.run(pipeline, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert gpu.speed.gpu_sources_sha256(tmp_path) == done.stdout.split()[0] == without_git
    (tmp_path / "csrc/stray.cu").write_text("unknown to git\n")
    assert gpu.speed.gpu_sources_sha256(tmp_path) == without_git
    (tmp_path / "csrc/lut.cu").write_text("another\n")
    assert gpu.speed.gpu_sources_sha256(tmp_path) != without_git


def test_readme_shows_the_results_file() -> None:
    (block,) = re.findall(r"<!-- gpu-speed -->\n(.*)<!-- /gpu-speed -->", (ROOT / "README.md").read_text(), re.S)
    source = re.search(r"\(benchmarks/results/(\S+)\.md\)", block)
    if source is None:
        assert block.strip() == gpu.tables.UNMEASURED
    else:
        assert block.strip() == gpu.tables.readme_block(gpu.tables.RESULTS / f"{source[1]}.json")


def test_readme_gets_the_figures(journal: Journal, plan: Callable[..., None], tmp_path: Path) -> None:
    plan(ONE_LUT, ONE_LUT._replace(code=gpu.speed.EAGER), backward(gpu.ops.ONE_LUT))
    measure(OnCpu(), journal, 1e9)
    results = results_of(journal, [])
    path = tmp_path / f"{gpu.tables.file_name(results)}.json"
    path.write_text(json.dumps(results))
    (tmp_path / "README.md").write_text("before\n<!-- gpu-speed -->\nold\n\n<!-- /gpu-speed -->\nbehind\n")
    tables.put_into_readme("gpu-speed", gpu.tables.readme_block(path), tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- gpu-speed -->\nNVIDIA H200, which copies 4300 GB/s")
    assert f"| {gpu.ops.ONE_LUT} | 100 | " in text and "**1** eager PyTorch" in text
    assert text.endswith("|\n\n<!-- /gpu-speed -->\nbehind\n") and "old" not in text


# ---- the command ----


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_steps_run_in_parallel_with_logs_and_are_killed_when_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stops until the late step has started its child and the others have ended."""
    check, start, processes = gpu.check.Check(tmp_path), subprocess.Popen, []

    def started(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*arguments, **options))
        return processes[-1]

    def elapsed() -> float:
        ready = processes[0].poll() is None and all(process.poll() is not None for process in processes[1:])
        return 2.0 if ready and "begun" in (tmp_path / "late.log").read_text() else 0.0

    monkeypatch.setattr(gpu.check.subprocess, "Popen", started)
    monkeypatch.setattr(check, "elapsed", elapsed)
    lasting = "import subprocess as s; p = s.Popen(['sleep', '600']); print(f'begun {p.pid}', flush=True); p.wait()"
    done = check.run(
        1.0,
        late=[sys.executable, "-c", lasting],
        good=[sys.executable, "-c", "print('héllo')"],
        bad=[sys.executable, "-c", "import nothing_of_that_name"],
    )
    assert done["late"][0] is None
    begun = done["late"][1].split()
    assert begun[0] == "begun"
    ending = time.monotonic() + 60  # the system may take a moment
    while alive(int(begun[1])) and time.monotonic() < ending:
        time.sleep(0.01)
    assert not alive(int(begun[1])), "the children of a late step are killed too"
    assert done["good"] == (0, "héllo\n") and (tmp_path / "good.log").read_text() == "héllo\n"
    assert done["bad"][0] == 1
    assert gpu.check.problem_in(*done["bad"]) == (
        "ModuleNotFoundError: No module named 'nothing_of_that_name' (exit status 1)"
    )
    assert gpu.check.problem_in(*done["late"]) == f"timed out; its last line: {' '.join(begun)}"
    again = check.run(math.inf, good=[sys.executable, "-c", "print('again')"])
    assert again["good"] == (0, "again\n"), "only the new part of a log"


def test_a_failed_step_is_listed_and_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def test(self: gpu.check.Check) -> None:
        ran.append("test")
        raise OSError("no space left on the device")

    def measuring(self: gpu.check.Check) -> None:
        ran.append("measure")
        self.ended("measure", True, "412 records")

    monkeypatch.setattr(gpu.check.Check, "look", lambda self: "9.0")
    monkeypatch.setattr(gpu.check.Check, "build", lambda self, archs: ran.append(archs) or True)
    monkeypatch.setattr(gpu.check.Check, "test", test)
    monkeypatch.setattr(gpu.check.Check, "measure", measuring)
    assert gpu.check.main(["--out", str(tmp_path)]) == 1
    assert ran == ["9.0", "test", "measure"]
    assert capsys.readouterr().out.splitlines()[-1].endswith("FAILED: test")


def test_sanitizers_are_judged_unless_they_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = "..\n2 passed in 1s\n========= ERROR SUMMARY: 0 errors\n"
    hazard = ".\n1 failed, 1 passed in 1s\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    deaf = "========= Error: Device not supported\n========= \n"

    def steps(memcheck: tuple[int | None, str], racecheck: tuple[int | None, str]) -> list[tuple[str, bool, str]]:
        check = gpu.check.Check(tmp_path)
        done = {"tests": (1, "FAILED tests/a.py::b\n1 failed in 3s\n"), "memcheck": memcheck, "racecheck": racecheck}
        monkeypatch.setattr(check, "run", lambda until, **commands: {name: done[name] for name in commands})
        monkeypatch.setattr(gpu.check.shutil, "which", lambda name: name)
        check.test()
        return [(step["step"], step["ok"], step["note"]) for step in check.steps]

    tests = ("tests", False, "1 failed in 3s")
    assert steps((1, clean), (1, hazard)) == [
        tests,
        ("memcheck", True, "ERROR SUMMARY: 0 errors; 2 passed in 1s"),
        ("racecheck", False, "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings); 1 failed, 1 passed in 1s"),
    ]
    assert steps((255, deaf), (None, ".....")) == [
        tests,
        ("memcheck", True, "does not work here: Error: Device not supported"),
        ("racecheck", False, "timed out; its last line: ....."),
    ]


def test_the_tests_it_runs_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check, commands = gpu.check.Check(tmp_path), {}
    monkeypatch.setattr(check, "run", lambda until, **given: commands.update(given) or {})
    monkeypatch.setattr(gpu.check.shutil, "which", lambda name: name)
    check.test()
    assert commands.keys() == {"tests", "memcheck", "racecheck"}
    wanted = {"tests": {"test_gpu", "test_cuda", "test_triton"}, "racecheck": {"test_gpu", "test_cuda"}}
    for name, files in wanted.items():
        command = commands[name][commands[name].index(sys.executable) :]
        python = [*command, "--collect-only", "-qq", *(["-n0"] if "-n" in command else [])]
        done = subprocess.run(python, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found = set(re.findall(r"tests/ops/(\w+)\.py", done.stdout))
        assert files <= found, done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu" / "check.py"), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "look: FAILED: torch sees no CUDA device" in done.stdout
    assert "FAILED: look" in done.stdout.splitlines()[-1]


def test_times_leave_room() -> None:
    limits = gpu.check.BUILT, gpu.check.BUILT_WITHOUT_CUDA, gpu.check.TESTED, gpu.check.MEASURED
    assert list(limits) == sorted(limits) and limits[-1] <= 8 * 60 - 15
    assert backends.NAMES[-2:] == gpu.speed.OURS
