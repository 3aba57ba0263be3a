"""`make gpu-check`: builds for the GPU that is here, tests on it, measures, and writes down what came of it.

    python benchmarks/gpu_check.py [--out FOLDER]

For a Linux machine with an NVIDIA GPU, nvcc and torch; no network is used, and the environment stays as it is: fastenh
is installed into build/gpu-check. It ends within eight minutes. A step that fails or is late is named at the end and
makes the exit status 1; the others go on. FOLDER (default build/gpu-check/out) gets each step's log and the results,
which also go to benchmarks/results.
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

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "gpu-check" / "site"

# Seconds after the start by which ...
BUILT = 180  # the build has ended
BUILT_WITHOUT_CUDA = 240  # and, where it failed, the build without CUDA, for Triton
TESTED = 290  # tests and sanitizers have ended
MEASURED = 460  # measuring has ended; the rest is for writing

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
        """Runs commands side by side, each into its own log, and ends those that are late, with all they have started.
        Gives exit status (None for the late) and log of each."""
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
        """The architectures to build for, as setup.py takes them; "" where there is no GPU."""
        code, log = self.run(60, build=[sys.executable, "-c", LOOK])["build"]
        archs = sorted(set(filter(None, last_line(log).split(";")))) if code == 0 else []
        if not archs:
            self.ended("look", False, problem_in(code, log) or "torch sees no CUDA device")
        return ";".join(archs)

    def build(self, archs: str) -> bool:
        """Whether anything is built: with CUDA, or where that fails, without."""
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
        """The tests on the GPU, and beside them every CUDA kernel under compute-sanitizer: on small pictures; those of
        LUTs, of which some are for large pictures alone, on these as well."""
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        workers = ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))] if importlib.util.find_spec("xdist") else []
        # Each test is named as it ends, so that what failed is known where time runs out.
        files = ["tests/ops", "tests/models/test_zero_dce.py", "tests/test_stream.py"]
        tests = [*pytest, "-v", *files, "-k", "gpu", *workers, "--durations=10"]
        commands = {"tests": ["env", "OMP_NUM_THREADS=2", *tests]}
        sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        # Every tensor gets memory of its own, so that what reaches over its end is seen.
        alone = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
        small = [*pytest, "-q", "tests/ops/test_cuda.py", "tests/ops/test_gpu.py"]
        small += ["-k", "agrees_with_the_reference_on_the_gpu or large_pictures and LUT and float16 and cuda"]
        for tool, options in {"memcheck": ["--report-api-errors", "no"], "racecheck": []}.items():
            if sanitizer:
                commands[tool] = [*alone, sanitizer, "--tool", tool, *options, *small]
            else:
                self.ended(tool, True, "not run: compute-sanitizer is not here")
        done = self.run(TESTED, **commands)
        for name, (code, log) in done.items():
            summary = last_line(re.sub("(?m)^=========.*", "", log))  # pytest's
            found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", log)
            if code is None:
                self.ended(name, False, problem_in(code, log))
            elif name == "tests":
                self.ended(name, code == 0, summary)
            elif found:  # what the tests themselves say of these calls, they say above
                self.ended(name, all("SUMMARY: 0 " in line for line in found), "; ".join([*found, summary]))
            else:
                self.ended(name, True, f"does not work here: {last_line(log)}")
            if name == "tests":
                summary_lines = re.findall("(?m)^(?:FAILED|ERROR) .*", log)
                for line in (summary_lines or re.findall("(?:FAILED|ERROR) tests/.*", log))[:20]:
                    print(line)

    def measure(self) -> None:
        """Measures, as often as it takes to come past what kills the process, and writes the results."""
        sys.path.insert(0, str(SITE))
        from gpu_speed import Journal
        from gpu_tables import RESULTS, file_name, goal_table, results_of, write_tables

        journal = self.out / "journal.jsonl"
        journal.unlink(missing_ok=True)
        code, before, begun = 1, -1, 0
        while code not in (0, None) and begun > before:
            left = MEASURED - self.elapsed() - 10
            measure = [sys.executable, str(ROOT / "benchmarks" / "gpu_speed.py"), str(journal), str(left)]
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
    """One line of why it failed: what says so in the log, or its last line; "" where it did not fail."""
    if code == 0:
        return ""
    if code is None:
        return f"late, and ended; its last line: {last_line(log)}"
    telling = re.findall("(?m)^.*(?:error:|Error:).*$", log)
    return (telling[0].strip() if telling else last_line(log)) + f" (exit status {code})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SITE.parent / "out", help="where logs and results go")
    check = Check(parser.parse_args(arguments).out.resolve())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends as well
    archs = check.look()
    if archs and check.build(archs):
        for step in (check.test, check.measure):
            try:
                step()
            except Exception as error:  # whatever it is, the other step goes on
                traceback.print_exc()
                check.ended(step.__name__, False, repr(error))
    failed = [step["step"] for step in check.steps if not step["ok"]]
    print(f"Logs: {check.out}. " + (f"FAILED: {', '.join(failed)}" if failed else "All steps are well."))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
