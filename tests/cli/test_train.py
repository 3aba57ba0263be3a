"""`fastenh train`: from photos to a file that `fastenh enhance` takes, and every way to ask for nonsense."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("lightning", reason="training runs on Lightning Fabric: pip install fastenh[train]")

from fastenh.cli import app
from fastenh.data.example import write
from fastenh.models import load
from fastenh.train import lam, zero_dce
from fastenh.train.config import Settings, configure

SMALL = ["classifier=statistics", "size=5", "side=24", "batch=2", "steps=3", "device=cpu", "workers=1"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fastenh(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def train(data, out, *more, kind="lam", settings=SMALL) -> tuple[int, str]:
    return fastenh("train", kind, "--data", data, "--out", out, *(f"--set={item}" for item in settings), *more)


def test_from_portraits_to_a_retouched_photo(portraits, tmp_path):
    code, output = train(portraits, tmp_path / "run", "--preset", "lam-gam", "--expert", "c")
    assert code == 0, output
    weights = tmp_path / "run/model.safetensors"
    assert output.splitlines()[-1] == f"Wrote {weights}"
    model = load(weights)
    assert (model.arguments["size"], model.arguments["context"]) == (5, "lam")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["expert"], config["gam"], config["supervision"]) == ("c", 1e-3, "edge")
    Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / "photo.png")
    code, output = fastenh("enhance", tmp_path / "photo.png", "--weights", weights, "-o", tmp_path / "after.png")
    assert code == 0, output
    assert Image.open(tmp_path / "after.png").size == (60, 40)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_presets_files_and_single_settings_win_in_this_order(suffix, portraits, tmp_path):
    file = tmp_path / f"mine.{suffix}"
    file.write_text({"toml": "gam = 0.5\nepochs = 7\nwidths = [4, 8]\n", "json": '{"gam": 0.5, "epochs": 7}'}[suffix])
    code, output = train(portraits, tmp_path / "run", "--preset=lam-gam", "--config", file, "--set=epochs=9")
    assert code == 0, output
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["gam"], config["epochs"], config["supervision"]) == (0.5, 9, "edge")
    assert config["widths"] == ([4, 8] if suffix == "toml" else [64, 128])


def test_a_run_goes_on_for_longer_with_its_own_settings(portraits, tmp_path):
    run = tmp_path / "run"
    assert train(portraits, run, "--preset=liang")[0] == 0
    assert train(portraits, run) == (2, f"fastenh: {run}: expected a new folder, got one with a run in it; "
                                        "resume continues that\n")  # fmt: skip
    code, output = train(portraits, run, "--resume", settings=["batch=3"])
    assert (code, output) == (2, "fastenh: batch: expected 2, as in the run to resume, got 3\n")
    code, output = train(portraits, run, "--resume", settings=["steps=5"])
    assert code == 0, output
    assert output.startswith("step 5/5")
    code, output = train(portraits, run, "--resume", settings=["steps=0", "epochs=2"])
    assert code == 0, output
    code, output = train(portraits, run, "--resume", settings=["epochs=3"])  # of 9 photos, 2 at a time
    assert code == 0, output
    assert output.startswith("step 14/14")
    assert load(run / "model.safetensors").arguments["context"] == "none"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--preset=best"], "--preset: expected one of 3dlut, liang, liang-glc, lam, lam-gam, got 'best'"),
        (["--expert=d"], "expert: expected one of a, b, c, got 'd'"),
        (["--set=lamda=1"], "lamda: expected a key of this training ("),
        (["--set=gam"], "--set: expected key=value, got 'gam'"),
        (["--set=batch=x"], "batch: expected a whole number, got 'x'"),
        (["--set=classifier=vgg"], "classifier must be one of resnet18"),
        (["--set=kernel_size=4"], "kernel_size must be 3, 5 or 7, got 4"),
        (["--config=none.toml"], "none.toml: No such file or directory"),
        (["--config=setup.cfg"], "setup.cfg: expected a .toml or .json file of settings, got a file .cfg"),
        (["--config=bad.toml"], "bad.toml: expected a .toml or .json file of settings, got "),
        (["--config=latin.toml"], "latin.toml: expected a .toml or .json file of settings, got "),
        (["--set=size=257"], "need at least one LUT of 2 to 256 vertices per axis, got n_luts=5, size=257"),
        (["--config=list.json"], "list.json: expected a table of keys and values, got list"),
        (["--resume"], "--resume: expected a run in run, got none there"),
        (["--resume", "--preset=lam"], "expected --resume, or --preset and --expert for a new run, got both"),
        (["--set=classifier=resnet18", "--set=backbone=none.pth"], "no such file: none.pth"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_nonsense_is_one_line_before_anything_is_written(more, words, portraits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"setup.cfg": b"", "bad.toml": b"a = = 1", "latin.toml": b'expert = "\xe9"', "list.json": b"[1]"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code, output = train(portraits, "run", *more)
    assert code == 2
    assert output.startswith(f"fastenh: {words}"), output
    assert output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def spoil_masks_folder(data):
    shutil.rmtree(data / "train/masks")


def spoil_mask_size(data):
    write(data / "train/masks/1_2.png", np.zeros((40, 57, 1)), 255)


def spoil_group(data):
    for n in (1, 2):
        (data / f"train/source/2_{n}.tif").unlink()
        (data / f"train/source_aug/2_{n}_0.tif").unlink()


def spoil_photos(data):
    (data / "train/target_a/0_0.tif").write_bytes(b"rubbish")


def spoil_names(data):
    shutil.copy(data / "train/source/0_0.tif", data / "train/source/0_0.png")


def spoil_all(data):
    shutil.rmtree(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_masks_folder, "0_0: expected a mask of its people, got none in the masks folder"),
        (spoil_mask_size, "expected the size of"),
        (spoil_group, "group '2': expected at least two photos for a common style, got one"),
        (spoil_photos, "expected at most 1 % of the photos to be unreadable, got 1 of 9"),
        (spoil_names, "source: expected one file for each photo, got 0_0.png and 0_0.tif"),
        (spoil_all, "got no such folder"),
    ],
)
def test_data_that_will_not_do_is_one_line_before_anything_is_written(spoil, words, portraits, tmp_path):
    data = shutil.copytree(portraits, tmp_path / "data")
    spoil(data)
    code, output = train(data, tmp_path / "run", "--preset=lam-gam")
    assert code == 2
    line = output.splitlines()[-1]
    assert line.startswith("fastenh: ") and words in line, output
    assert not (tmp_path / "run").exists()
    if spoil is spoil_masks_folder:
        assert train(data, tmp_path / "run", "--preset=3dlut")[0] == 0  # which needs no masks


def test_a_loss_that_is_no_number_is_one_line(portraits, tmp_path):
    code, output = train(portraits, tmp_path / "run", "--set=learning_rate=1e30", "--set=steps=9")
    assert code == 2
    assert "expected a finite loss, got model" in output.splitlines()[-1]


def test_unpaired_photos_train_an_image_adaptive_lut(portraits, tmp_path):
    shutil.copytree(portraits / "train/source", tmp_path / "data/train/input")
    shutil.copytree(portraits / "train/target_b", tmp_path / "data/train/target")
    settings = ["size=5", "side=24", "batch=2", "steps=2", "device=cpu"]
    code, output = train(tmp_path / "data", tmp_path / "run", kind="unpaired", settings=settings)
    assert code == 0, output
    model = load(tmp_path / "run/model.safetensors")
    assert model.arguments == {"n_luts": 3, "size": 5, "classifier": "unpaired"}
    content = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert content["networks"].keys() == {"model", "critic"}
    shutil.rmtree(tmp_path / "data/train/target")
    code, output = train(tmp_path / "data", tmp_path / "other", kind="unpaired", settings=settings)
    assert code == 2
    assert "target: expected a folder of photos, got no such folder" in output


LOW = ["side=24", "batch=2", "steps=1", "device=cpu", "workers=1"]


def test_curves_are_fitted_to_a_folder_of_photos_and_enhance_one(streets, tmp_path):
    folder = streets / "leftImg8bit/train/aachen"
    code, output = train(folder, tmp_path / "run", "--preset=zero-dce++", kind="zero-dce", settings=LOW)
    assert code == 0, output
    given = tmp_path / "run/model.safetensors"
    more = ("--preset=fit", f"--set=weights={given}")
    code, output = train(folder, tmp_path / "fit", *more, kind="zero-dce", settings=LOW)
    assert code == 0, output
    assert load(tmp_path / "fit/model.safetensors").map_scale == 12
    code, output = train(folder, tmp_path / "other", "--preset=fit", kind="zero-dce", settings=LOW)
    assert (code, output) == (
        2,
        "fastenh: --preset fit: expected a model to start from, --set weights=MODEL, got none\n",
    )
    photo, weights = folder / "s_1_leftImg8bit.png", tmp_path / "fit/model.safetensors"
    code, output = fastenh("enhance", photo, "--weights", weights, "-o", tmp_path / "after.png")
    assert code == 0, output
    assert Image.open(tmp_path / "after.png").size == (72, 40)


def test_semantic_contrast_trains_from_street_scenes_and_exposures(streets, exposures, tmp_path):
    settings = [*LOW, "vgg=random", "cross_entropy=0"]
    more = ("--references", exposures, "--preset=no-overexposed")
    code, output = train(streets, tmp_path / "run", *more, kind="scl-lle", settings=settings)
    assert code == 0, output
    assert json.loads((tmp_path / "run/config.json").read_text())["negatives"] == "under"
    code, output = train(streets, tmp_path / "run", "--resume", *more, kind="scl-lle", settings=[])
    assert (code, output) == (2, "fastenh: expected --resume, or --preset for a new run, got both\n")
    code, output = train(streets, tmp_path / "run", "--resume", *more[:2], kind="scl-lle", settings=["steps=2"])
    assert code == 0, output
    code, output = train(streets, tmp_path / "other", *more[:2], kind="scl-lle", settings=LOW)
    assert code == 2 and output.startswith("fastenh: segmentation: expected a .pth or .safetensors file"), output
    code, output = train(streets, tmp_path / "other", "--preset=best", kind="scl-lle", settings=settings)
    assert code == 2 and output.startswith("fastenh: --preset: expected one of scl-lle, no-contrast,"), output
    assert not (tmp_path / "other").exists()


def test_the_page_on_training_names_every_preset_and_setting_and_no_other():
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    presets, settings = (
        re.findall(rf"(?m)^\| {head}.*\n\| ---.*\n((?:\|.*\n)+)", page)[0] for head in ("`--preset`", "key")
    )
    assert re.findall(r"(?m)^\| `([\w-]+)`", presets) == list(lam.PRESETS)
    fields = {field.name: field.default for field in dataclasses.fields(lam.Config)}
    defaults: dict[str, str] = {}
    for keys, values in (row.split(" | ")[:2] for row in settings.splitlines()):
        defaults |= dict(zip(re.findall(r"`(\w+)`", keys), values.replace("`", "").split(", "), strict=True))
    assert defaults.keys() == fields.keys()
    for key, default in defaults.items():
        assert getattr(configure(lam.Config, {key: "" if default == "none" else default}), key) == fields[key], key
    assert set(re.findall(r"--set (\w+)=", page)) <= {"key", *fields}


def test_the_page_on_low_light_names_every_preset_and_setting_and_no_other():
    page = (Path(__file__).parents[2] / "docs/lowlight_training.md").read_text()
    presets, settings = (
        re.findall(rf"(?m)^\| {head}.*\n\| ---.*\n((?:\|.*\n)+)", page)[0] for head in ("`--preset`", "key")
    )
    named = {(name, of) for names, of in (row.split(" | ")[:2] for row in presets.splitlines())
             for name in re.findall(r"`([\w+-]+)`", names)}  # fmt: skip
    tables = {"zero-dce": zero_dce.PRESETS, "scl-lle": zero_dce.SEMANTIC_PRESETS}
    for kind, table in tables.items():
        assert {name for name, of in named if of in (f"`{kind}`", "both")} == set(table)
    shared = {field.name for field in dataclasses.fields(Settings)}
    for column, config in enumerate((zero_dce.Config, zero_dce.SemanticConfig), 1):
        fields = {field.name: field.default for field in dataclasses.fields(config)}
        defaults: dict[str, str] = {}
        for cells in ([cell.strip() for cell in row.split("|")[1:-1]] for row in settings.splitlines()):
            if cells[column]:
                defaults |= dict(zip(re.findall(r"`(\w+)`", cells[0]), cells[column].split(", "), strict=True))
        assert fields.keys() - shared <= defaults.keys() <= fields.keys()
        base = {"segmentation": "x"} if config is zero_dce.SemanticConfig else {}
        for key, default in defaults.items():
            made = configure(config, base, {key: "" if default == "none" else default} if key != "segmentation" else {})
            assert key == "segmentation" or getattr(made, key) == fields[key], key
