"""What trials of papers' claims share: trainings on one thread, a journal that an interrupted run goes on from, and
what is said of the machine.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fastenh.atomic import replacing
from fastenh.train.config import Settings
from fastenh.train.loop import Task, run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


# ---- trainings


class Clocked(Task):
    """A task that also says when each of its steps `began`; to inherit from before the task itself."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.began: list[float] = []

    def losses(self, batch: Any) -> Iterator[Any]:
        self.began.append(time.monotonic())
        return super().losses(batch)


def train(task: Clocked, config: Settings, folder: Path) -> None:
    """What the loop prints is left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        run(task, config, folder)


def seconds_a_step(task: Clocked, config: Settings) -> float:
    with tempfile.TemporaryDirectory() as folder:
        train(task, replace(config, steps=7), Path(folder))
    return (task.began[-1] - task.began[1]) / (len(task.began) - 2)


# ---- the journal


class Journal:
    """Results of trainings by their names, in benchmarks/results/STEM-<date>.json, and their report beside it, .md.

    If there is a journal of the same settings in which some of the `planned` trainings are missing, it goes on;
    otherwise a new one begins.
    """

    def __init__(
        self,
        stem: str,
        settings: dict[str, Any],
        planned: Collection[str],
        report: Callable[[dict[str, Any]], str],
        results: Path = RESULTS,
    ) -> None:
        self.report = report
        settings = json.loads(json.dumps(settings))  # as a file gives it back
        begun = [(path, json.loads(path.read_text())) for path in sorted(results.glob(f"{stem}-*.json"))]
        begun = [(p, old) for p, old in begun if old["settings"] == settings and set(planned) - old["trainings"].keys()]
        if begun:
            self.path, self.content = begun[-1]
            print(f"going on with {self.path}: {len(self.trainings)} trainings are done", flush=True)
        else:
            machine = about()
            self.path = results / f"{stem}-{machine['date']}.json"
            self.content = {"about": machine, "settings": settings, "trainings": {}}
        self.content["planned"] = len(planned)

    @property
    def trainings(self) -> dict[str, dict[str, Any]]:
        return self.content["trainings"]

    def add(self, title: str, result: dict[str, Any]) -> None:
        """Writes both files anew."""
        self.trainings[title] = result
        with replacing(self.path, overwrite=True) as part:
            part.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        with replacing(self.path.with_suffix(".md"), overwrite=True) as part:
            part.write_text(self.report(self.content))


def about() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True).stdout.strip()

    cpu = Path("/proc/cpuinfo")
    models = [line.partition(": ")[2] for line in cpu.read_text().splitlines() if line.startswith("model name")] if (
        cpu.exists()
    ) else []  # fmt: skip
    return {
        "processor": f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("fastenh", "torch", "numpy")},
        "commit": git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else ""),
        "date": datetime.date.today().isoformat(),
    }


def told(facts: dict[str, Any]) -> str:
    """`about()` in a line."""
    return "; ".join(f"{key}: {value}" for key, value in (facts | facts["versions"]).items() if key != "versions")


def spread(values: Sequence[float], sign: str = "", digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{mean(values):{sign}.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
