"""What the README tells people to type works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fastenh.cli import app

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
COMMANDS = [line.split("#")[0] for line in README.splitlines() if line.startswith("fastenh ")]


@pytest.fixture(autouse=True)
def in_a_folder_with_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("holiday").mkdir()
    for name in ("photo.jpg", "holiday/1.jpg", "holiday/2.png"):
        Image.linear_gradient("L").convert("RGB").save(name)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str) -> None:
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output


def test_results_of_the_commands_lie_where_it_says() -> None:
    for command in COMMANDS:
        CliRunner().invoke(app, shlex.split(command)[1:])
    assert Path("photo_enhanced.jpg").is_file()
    assert {path.name for path in Path("better").iterdir()} == {"1.jpg", "2.png", "1_compare.jpg", "2_compare.jpg"}


def test_python() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(code, names)
    assert Path("after.jpg").is_file()
    assert names["result"].shape == (1, 3, 1080, 1920)  # type: ignore[attr-defined]
    assert names["luts"].grad.abs().sum() > 0  # type: ignore[attr-defined]
