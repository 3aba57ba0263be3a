"""`fastenh info`, `--version` and `--help`."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fastenh
from fastenh import backends
from fastenh.cli import app


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_info_says_all_that_the_backends_say():
    output = " ".join(run("info").split())
    assert torch.__version__ in output
    for label, text in backends.describe():
        assert label in output and all(word in output for word in text.split())


def test_info_works_without_the_core():
    """A core that cannot be imported: the reference runs, and info says what to do."""
    code = "import sys; sys.modules['fastenh._C'] = None; from fastenh.cli import app; app(['info'])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not built" in done.stdout and "pip install" in done.stdout and "reference" in done.stdout


@pytest.mark.parametrize("command", [["info"], ["enhance", "photo.png"]])
def test_a_wrong_backend_in_the_environment_is_one_line(command, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    python = [sys.executable, "-c", f"from fastenh.cli import app; app({command})"]
    wrong = {**os.environ, "FASTENH_BACKEND": "fastest"}
    done = subprocess.run(python, cwd=tmp_path, env=wrong, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("fastenh: FASTENH_BACKEND: expected one of auto, reference,")
    assert done.stderr.endswith("got 'fastest'\n") and done.stderr.count("\n") == 1


def test_version():
    assert run("--version") == f"fastenh {fastenh.__version__}\n"


def test_help_names_every_command():
    assert all(command in run("--help") for command in ("enhance", "convert", "info"))
    assert all(option in run("enhance", "--help") for option in ("--strength", "--compare", "--overwrite", "--debug"))


def test_python_m_is_the_command_line(tmp_path):
    command = [sys.executable, "-m", "fastenh", "no-such-command"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Usage: python -m fastenh" in done.stderr and "No such command" in done.stderr
