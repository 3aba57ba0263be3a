"""What README and the pages of docs/ named here tell people to type works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastenh.cli import app
from fastenh.data.example import make_portraits
from fastenh.io import LutFile, write_lut
from fastenh.io.formats.registry import FORMATS
from fastenh.models import AdaInt, CSRNet, LocalContextLUT, ZeroDCE, save
from fastenh.models.lut3d import identity_lut

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/portrait.md", "docs/lowlight.md", "docs/luts.md", "docs/lut_models.md", "docs/files.md")
README, PORTRAIT, LOWLIGHT, LUTS, LUT_MODELS, FILES = ((ROOT / name).read_text().replace("\\\n", "") for name in PAGES)


def commands(page: str) -> list[str]:
    return [line.split("#")[0] for line in page.splitlines() if line.startswith("fastenh ")]


COMMANDS = commands(README)


@pytest.fixture(autouse=True)
def in_a_folder_with_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("holiday", "shoot", "run", "portraits/shoot", "luts"):
        Path(folder).mkdir(parents=True)
    photos = "photo.jpg holiday/1.jpg holiday/2.png shoot/1.jpg portraits/shoot/8.jpg portraits/8k.jpg dark.png"
    photos += " luts/photo.jpg luts/dark.jpg"
    for name in photos.split():
        Image.linear_gradient("L").convert("RGB").save(name)
    make_portraits(Path("portraits"), groups=2, photos=2, augmentations=0, size=(32, 40))
    make_portraits(Path("portraits"), "val", groups=1, photos=2, augmentations=0, size=(32, 40))
    Path("PPR10K").symlink_to("portraits")
    save(LocalContextLUT(2, 5, "statistics"), "run/model.safetensors")  # as training left it
    torch.save(ZeroDCE().state_dict(), "Epoch99.pth")  # as published
    torch.save(CSRNet().state_dict(), "csrnet.pth")
    save(ZeroDCE(), "zero_dce.safetensors")  # as converted
    for name in ("warm", "dark"):
        write_lut(LutFile(identity_lut(5)), f"luts/{name}.cube")
    write_lut(LutFile(identity_lut(5)), "graded.cube")
    save(CSRNet(), "csrnet.safetensors")
    save(AdaInt(), "adaint.safetensors")


def arguments(command: str) -> list[str]:
    words = shlex.split(command)[1:]
    if words[0] == "convert" or words[:2] in (["lut", "bake"], ["lut", "convert"]):
        words.append("--overwrite")
    if words[0] == "train":  # for a second, not for days
        words += [f"--set={item}" for item in ("classifier=statistics", "size=5", "side=24", "batch=2", "steps=1")]
    return words


@pytest.mark.parametrize(
    "command",
    COMMANDS + [command for page in (PORTRAIT, LOWLIGHT, LUTS, LUT_MODELS, FILES) for command in commands(page)],
)
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
    assert names["photo"].pixels.shape == (256, 256, 3)  # type: ignore[attr-defined]


def test_python_of_low_light() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", LOWLIGHT, re.S)
    exec(code, names)
    assert names["photo"].pixels.shape == (256, 256, 3)  # type: ignore[attr-defined]
    assert names["after"].shape == names["image"].shape  # type: ignore[attr-defined]


def test_python() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(code, names)
    assert Path("after.jpg").is_file()
    assert names["result"].shape == (1, 3, 1080, 1920)  # type: ignore[attr-defined]
    assert names["luts"].grad.abs().sum() > 0  # type: ignore[attr-defined]


def test_python_of_luts() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", LUTS, re.S)
    exec(code, names)
    image, warm = names["image"], names["warm"]
    torch.testing.assert_close(names["milder"], torch.lerp(image, warm, 0.6))  # type: ignore[arg-type]
    torch.testing.assert_close(names["after"], names["model"](image))  # type: ignore[operator]
    assert Path("look.cube").is_file() and Path("half.cube").is_file()


def test_python_of_lut_models() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", LUT_MODELS, re.S)
    exec(code, names)
    assert torch.equal(names["strips"], names["after"])  # type: ignore[arg-type]


def test_python_of_files() -> None:
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", FILES, re.S)
    exec(code, names)
    assert Path("after.tif").is_file() and Path("web/photo.jpg").is_file()
    assert [one.error for one in names["results"]] == [None]  # type: ignore[attr-defined]


def test_every_format_has_a_row_in_the_table_of_formats() -> None:
    rows = [line for line in FILES.splitlines() if line.startswith("| ")]
    for format in FORMATS.values():
        assert any(row.startswith(f"| {format.name.removeprefix('camera ')}") for row in rows), format.name
