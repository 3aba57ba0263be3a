"""What the Makefile installs, and on which Python: it, pyproject.toml and constraints.txt agree."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("target", ["demo", "test", "lint", "test-newest"])
def test_a_python_that_is_too_old_is_named_in_one_line(tmp_path: Path, target: str) -> None:
    for source in ("setup.py", "pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / source, tmp_path)
    python = tmp_path / "python3"
    code = "import sys; sys.version_info = (3, 10); exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    python.chmod(0o755)
    # What a make that runs these tests hands down would change this one.
    inherited = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON")}
    environment = {**inherited, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["make", target], cwd=tmp_path, env=environment, capture_output=True, text=True)
    line, of_make = done.stderr.splitlines()
    assert line == f"fastenh needs Python 3.11 or later, but {sys.executable} is Python 3.10"
    assert done.returncode == 2 and of_make.startswith("make: ***")
    assert not list(tmp_path.glob("**/bin")), "no environment is made"


def test_every_place_names_the_same_oldest_python() -> None:
    (oldest,) = re.findall(r"sys\.version_info < \((\d, \d+)\)", (ROOT / "Makefile").read_text())
    version = oldest.replace(", ", ".")
    assert PROJECT["project"]["requires-python"] == f">={version}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{version.replace('.', '')}"
    for text in ("README.md", "Makefile"):
        assert f"({version} or later" in (ROOT / text).read_text(), text


def test_constraints_hold_a_version_of_everything_asked_for() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    version = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    assert len(version) == len(pins), "each once"
    wanted = PROJECT["build-system"]["requires"] + PROJECT["project"]["dependencies"]
    wanted += [line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra]
    for requirement in map(Requirement, wanted):
        if requirement.name != "fastenh":
            assert requirement.specifier.contains(version[canonicalize_name(requirement.name)]), requirement
