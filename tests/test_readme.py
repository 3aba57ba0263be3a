"""What README and the pages in docs tell people to type works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastenh.cli import app
from fastenh.data.example import make_portraits
from fastenh.models import AdaInt, CSRNet, LocalContextLUT, ZeroDCE, save

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/portrait.md", "docs/lowlight.md", "docs/lut_models.md")
README, PORTRAIT, LOWLIGHT, LUT_MODELS = ((ROOT / name).read_text().replace("\\\n", "") for name in PAGES)


def commands(page: str) -> list[str]:
    return [line.split("#")[0] for line in page.splitlines() if line.startswith("fastenh ")]


COMMANDS = commands(README)


@pytest.fixture(autouse=True)
def in_a_folder_with_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("holiday", "shoot", "run", "portraits/shoot"):
        Path(folder).mkdir(parents=True)
    photos = "photo.jpg holiday/1.jpg holiday/2.png shoot/1.jpg portraits/shoot/8.jpg portraits/8k.jpg dark.png"
    for name in photos.split():
        Image.linear_gradient("L").convert("RGB").save(name)
    make_portraits(Path("portraits"), groups=2, photos=2, augmentations=0, size=(32, 40))
    make_portraits(Path("portraits"), "val", groups=1, photos=2, augmentations=0, size=(32, 40))
    Path("PPR10K").symlink_to("portraits")
    save(LocalContextLUT(2, 5, "statistics"), "run/model.safetensors")  # as training left it
    torch.save(ZeroDCE().state_dict(), "Epoch99.pth")  # as published
    torch.save(CSRNet().state_dict(), "csrnet.pth")
    save(ZeroDCE(), "zero_dce.safetensors")  # as converted
    save(CSRNet(), "csrnet.safetensors")
    save(AdaInt(), "adaint.safetensors")


def arguments(command: str) -> list[str]:
    words = shlex.split(command)[1:]
    if words[0] == "convert":
        words.append("--overwrite")
    if words[0] == "train":  # for a second, not for days
        words += [f"--set={item}" for item in ("classifier=statistics", "size=5", "side=24", "batch=2", "steps=1")]
    return words


@pytest.mark.parametrize("command", COMMANDS + commands(PORTRAIT) + commands(LOWLIGHT) + commands(LUT_MODELS))
def test_commands(command: str) -> None:
    result = CliRunner().invoke(app, arguments(command))
    assert result.exit_code == 0, result.output


def test_results_of_the_commands_lie_where_it_says() -> None:
    for command in COMMANDS:
        CliRunner().invoke(app, arguments(command))
    assert Path("photo_enhanced.jpg").is_file()
    assert {path.name for path in Path("better").iterdir()} == {"1.jpg", "2.png", "1_compare.jpg", "2_compare.jpg"}
    assert Path("run/checkpoint.pt").is_file() and Path("retouched/1.jpg").is_file()


def test_python_of_portraits() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", PORTRAIT, re.S)
    exec(code, names)
    assert torch.equal(names["pass_alone"], names["after"])  # type: ignore[arg-type]
    assert names["photo"].size == (256, 256)  # type: ignore[attr-defined]


def test_python_of_low_light() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", LOWLIGHT, re.S)
    exec(code, names)
    assert names["photo"].size == (256, 256)  # type: ignore[attr-defined]
    assert names["after"].shape == names["image"].shape  # type: ignore[attr-defined]


def test_python() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(code, names)
    assert Path("after.jpg").is_file()
    assert names["result"].shape == (1, 3, 1080, 1920)  # type: ignore[attr-defined]
    assert names["luts"].grad.abs().sum() > 0  # type: ignore[attr-defined]


def test_python_of_lut_models() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", LUT_MODELS, re.S)
    exec(code, names)
    assert torch.equal(names["strips"], names["after"])  # type: ignore[arg-type]
