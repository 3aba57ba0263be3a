"""`make gpu-check`: builds for this machine's GPU, runs the tests on it, measures, and writes the results.

    python benchmarks/gpu/check.py [--out FOLDER]

For a Linux machine with an NVIDIA GPU, nvcc and torch. It uses no network and does not change the environment: fastenh
is installed into build/gpu-check. It ends within eight minutes. A step that fails or times out does not stop the
others; it is listed at the end, and the exit status is 1. FOLDER (default build/gpu-check/out) receives each step's log
and the results, which are also written to benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "gpu-check" / "site"

# Time limits, in seconds after the start:
BUILT = 180  # of the build
BUILT_WITHOUT_CUDA = 240  # of the build without CUDA, for Triton, if the first one failed
TESTED = 290  # of tests and sanitizers
MEASURED = 460  # of measuring; what remains is for writing results

LOOK = """
import torch
print(";".join("%d.%d" % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())))
"""
SHOW = """
from fastenh import backends
for row in backends.describe():
    print(*row, sep=": ")
raise SystemExit(backends.problem("cuda") or 0)
"""


class Check:
    def __init__(self, out: Path) -> None:
        self.out, self.start = out, time.monotonic()
        self.steps: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("*.log"):
            old.unlink()
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
        for name in ("PYTHONSAFEPATH", "FASTENH_BACKEND", "FASTENH_CUDA", "TRITON_INTERPRET"):
            self.environment.pop(name, None)

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def ended(self, step: str, ok: bool, note: str) -> bool:
        self.steps.append({"step": step, "ok": ok, "seconds": round(self.elapsed()), "note": note})
        print(f"[{self.elapsed():3.0f} s] {step}: {'' if ok else 'FAILED: '}{note}", flush=True)
        return ok

    def run(
        self, until: float, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, **commands: Sequence[str]
    ) -> dict[str, tuple[int | None, str]]:
        """Runs commands in parallel, each with its own log, and kills those that run past `until` with all processes
        they have started. Returns each one's exit status (None if killed) and log."""
        running, begins = {}, {}
        try:
            for name, command in commands.items():
                with self.log(name).open("a") as log:
                    begins[name] = log.tell()
                    running[name] = subprocess.Popen(
                        command, cwd=cwd, env={**self.environment, **(environment or {})}, stdin=subprocess.DEVNULL,
                        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    )  # fmt: skip
            while any(process.poll() is None for process in running.values()) and self.elapsed() < until:
                time.sleep(0.1)
        finally:
            status = {name: process.poll() for name, process in running.items()}
            for process in running.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        logs = {name: self.log(name).read_bytes()[begin:].decode(errors="replace") for name, begin in begins.items()}
        return {name: (code, logs[name]) for name, code in status.items()}

    def log(self, name: str) -> Path:
        return self.out / f"{name}.log"

    # ---- the steps ----

    def look(self) -> str:
        """The architectures to build for, as setup.py takes them; "" without a GPU."""
        code, log = self.run(60, build=[sys.executable, "-c", LOOK])["build"]
        archs = sorted(set(filter(None, last_line(log).split(";")))) if code == 0 else []
        if not archs:
            self.ended("look", False, problem_in(code, log) or "torch sees no CUDA device")
        return ";".join(archs)

    def build(self, archs: str) -> bool:
        """Builds with CUDA or, if that fails, without. Whether either succeeded."""
        shutil.rmtree(SITE, ignore_errors=True)
        install = [
            sys.executable, "-m", "pip", "install", "-v", "--no-index", "--no-build-isolation", "--no-deps",
            "--disable-pip-version-check", "--target", str(SITE), ".",
        ]  # fmt: skip
        wanted = {"FASTENH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": archs}
        code, log = self.run(BUILT, environment=wanted, build=install)["build"]
        if self.ended("build", code == 0, problem_in(code, log) or f"with CUDA for {archs}"):
            code, log = self.run(BUILT_WITHOUT_CUDA, cwd=SITE, build=[sys.executable, "-c", SHOW])["build"]
            self.ended("run", code == 0, problem_in(code, log) or last_line(log))
            return True
        code, log = self.run(BUILT_WITHOUT_CUDA, environment={"FASTENH_CUDA": "0"}, build=install)["build"]
        return self.ended("build without CUDA", code == 0, problem_in(code, log) or "for Triton")

    def test(self) -> None:
        """Runs the tests on the GPU and, in parallel, every CUDA kernel under compute-sanitizer, on small images. LUTs
        also run on large ones, for which they have separate kernels."""
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        workers = ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))] if importlib.util.find_spec("xdist") else []
        # -v names each test as it ends, so that failures are known even if time runs out.
        files = ["tests/ops", "tests/models/test_zero_dce.py", "tests/test_stream.py"]
        tests = [*pytest, "-v", *files, "-k", "gpu", *workers, "--durations=10"]
        commands = {"tests": ["env", "OMP_NUM_THREADS=2", *tests]}
        sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        # Every tensor gets a separate allocation, so that accesses past its end are detected.
        alone = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
        small = [*pytest, "-q", "tests/ops/test_cuda.py", "tests/ops/test_gpu.py"]
        small += ["-k", "agrees_with_the_reference_on_the_gpu or large_pictures and LUT and float16 and cuda"]
        for tool, options in {"memcheck": ["--report-api-errors", "no"], "racecheck": []}.items():
            if sanitizer:
                commands[tool] = [*alone, sanitizer, "--tool", tool, *options, *small]
            else:
                self.ended(tool, True, "not run: compute-sanitizer was not found")
        done = self.run(TESTED, **commands)
        for name, (code, log) in done.items():
            summary = last_line(re.sub("(?m)^=========.*", "", log))  # pytest's
            found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", log)
            if code is None:
                self.ended(name, False, problem_in(code, log))
            elif name == "tests":
                self.ended(name, code == 0, summary)
            elif found:  # judged by the sanitizer alone; the step "tests" judges what the tests say
                self.ended(name, all("SUMMARY: 0 " in line for line in found), "; ".join([*found, summary]))
            else:
                self.ended(name, True, f"does not work here: {last_line(log)}")
            if name == "tests":
                summary_lines = re.findall("(?m)^(?:FAILED|ERROR) .*", log)
                for line in (summary_lines or re.findall("(?:FAILED|ERROR) tests/.*", log))[:20]:
                    print(line)

    def measure(self) -> None:
        """Measures, restarting after units that kill the process, and writes the results."""
        sys.path[:0] = [str(SITE), str(ROOT / "benchmarks")]
        from gpu.speed import Journal
        from gpu.tables import RESULTS, file_name, goal_table, results_of, write_tables

        journal = self.out / "journal.jsonl"
        journal.unlink(missing_ok=True)
        code, before, begun = 1, -1, 0
        while code not in (0, None) and begun > before:
            left = MEASURED - self.elapsed() - 10
            measure = [sys.executable, str(ROOT / "benchmarks" / "gpu" / "speed.py"), str(journal), str(left)]
            code, log = self.run(MEASURED, measure=measure)["measure"]
            before, begun = begun, len(Journal(journal).units("begin"))
        results = results_of(Journal(journal), self.steps)
        counts = [f"{len(results[name])} {name}" for name in ("records", "failures", "not measured")]
        ok = code == 0 and not results["failures"]
        self.ended("measure", ok, ", ".join(filter(None, [*counts, problem_in(code, log)])))
        for line in results["failures"][:20]:
            print(line)
        if results["records"]:
            path = RESULTS / f"{file_name(results)}.json"
            path.write_text(json.dumps(results, indent=1) + "\n")
            write_tables(path)
            for suffix in (".json", ".md"):
                shutil.copy(path.with_suffix(suffix), self.out)
            journal.unlink()
            print("", *goal_table(results), "", f"Figures: {path} and .md", sep="\n")


def last_line(log: str) -> str:
    return next((line.strip("= ") for line in reversed(log.splitlines()) if line.strip("= ")), "")


def problem_in(code: int | None, log: str) -> str:
    """Why a command failed, in one line: the first error in its log, or the last line; "" if it did not fail."""
    if code == 0:
        return ""
    if code is None:
        return f"timed out; its last line: {last_line(log)}"
    errors = re.findall("(?m)^.*(?:error:|Error:).*$", log)
    return (errors[0].strip() if errors else last_line(log)) + f" (exit status {code})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SITE.parent / "out", help="where logs and results go")
    check = Check(parser.parse_args(arguments).out.resolve())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `run` kills what it has started
    archs = check.look()
    if archs and check.build(archs):
        for step in (check.test, check.measure):
            try:
                step()
            except Exception as error:  # no failure stops the other step
                traceback.print_exc()
                check.ended(step.__name__, False, repr(error))
    failed = [step["step"] for step in check.steps if not step["ok"]]
    print(f"Logs: {check.out}. " + (f"FAILED: {', '.join(failed)}" if failed else "All steps passed."))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
