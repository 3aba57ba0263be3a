"""Checkpoints of our own: what is saved comes back, what is not ours is refused, nothing is half written."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fastenh
from fastenh.models import EMBEDDED, SYSTEMS, ImageAdaptiveLUT, load, save


@pytest.fixture
def model() -> ImageAdaptiveLUT:
    torch.manual_seed(0)
    model = ImageAdaptiveLUT(4, 5, "statistics").eval()
    nn.init.normal_(model.luts)
    model.about["note"] = "a test"
    return model


def test_a_model_comes_back_from_its_file(model, assert_same_model, tmp_path):
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert not again.training
    assert again.arguments == model.arguments
    assert again.about == model.about
    assert_same_model(again, model, torch.rand(2, 3, 20, 30))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        config = json.loads(file.metadata()["fastenh"])
    assert config["system"] == "lut3d"
    assert config["version"] == fastenh.__version__
    assert "RGB" in config["about"]["colour"]


def test_every_embedded_model_loads_by_name():
    assert "auto" in EMBEDDED
    for name in EMBEDDED:
        model = load(name)
        assert {"colour", "licence", "note"} <= model.about.keys()
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_loading_does_not_wait_for_pytorchs_compiler(tmp_path):
    """Whose import takes longer than retouching a photo."""
    files = [tmp_path / f"{name}.safetensors" for name in SYSTEMS]
    for file, system in zip(files, SYSTEMS.values(), strict=True):
        save(system(), file)
    script = "import sys, fastenh; [fastenh.load(name) for name in sys.argv[1:]]; print(*sys.modules)"
    command = [sys.executable, "-c", script, *EMBEDDED, *map(str, files)]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in modules and not {"torch._dynamo", "sympy"} & set(modules)


def test_numbers_of_other_kinds_and_arguments_beyond_all_bounds_are_refused(model, tmp_path):
    """In one line."""
    save(model, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["fastenh"])
    tensors = load_file(tmp_path / "a.safetensors")
    save_file(
        tensors | {"luts": tensors["luts"].to(torch.float8_e4m3fn)}, tmp_path / "b.safetensors", file_metadata(config)
    )
    with pytest.raises(ValueError, match=r"expected finite floats in luts, got torch.float8_e4m3fn or NaN$"):
        load(tmp_path / "b.safetensors")
    config["arguments"]["n_luts"] = 10**30
    save_file(tensors, tmp_path / "c.safetensors", file_metadata(config))
    with pytest.raises(ValueError, match=r"its arguments do not make a lut3d model \(.*\)$") as error:
        load(tmp_path / "c.safetensors")
    assert "\n" not in str(error.value)


def file_metadata(config: dict) -> dict[str, str]:
    return {"fastenh": json.dumps(config)}


def test_half_precision_storage_loads_as_float32(model, tmp_path):
    save(model.half(), tmp_path / "half.safetensors")
    assert {p.dtype for p in load(str(tmp_path / "half.safetensors")).parameters()} == {torch.float32}


def change(path, config=None, **tensors):
    """Rewrites a checkpoint with another config or other tensors (None takes one away)."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    kept = {key: value for key, value in (load_file(path) | tensors).items() if value is not None}
    save_file(kept, path, metadata if config is None else config)


def ours(**config):
    return {"fastenh": json.dumps(config)}


HUGE = {"n_luts": 4000, "size": 256, "classifier": "statistics"}  # 800 GB, were it allocated


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "not a whole .safetensors file"),
        (lambda path: path.write_text("a text of some length, not a model"), "not a whole .safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole .safetensors file"),
        (lambda path: change(path, {"format": "pt"}), "not a fastenh checkpoint"),
        (lambda path: change(path, {"fastenh": "{half of"}), "not a fastenh checkpoint"),
        (lambda path: change(path, {"fastenh": "[]"}), r"a system fastenh knows \(lut3d, lam, .*\), got None"),
        (lambda path: change(path, ours(system="gfpgan")), r"a system fastenh knows \(lut3d, lam, .*\), got 'gfpgan'"),
        (lambda path: change(path, ours(system=["lut3d"])), r"got \['lut3d'\]"),
        (lambda path: change(path, luts=torch.full((4, 3, 5, 5, 5), float("nan"))), "finite floats in luts, got"),
        (
            lambda path: change(path, luts=torch.zeros(4, 3, 5, 5, 5, dtype=torch.int32)),
            "floats in luts, got torch.int",
        ),
        (lambda path: change(path, ours(system="lut3d")), "do not make a lut3d model"),
        (lambda path: change(path, ours(system="lut3d", arguments={"depth": 3})), "do not make a lut3d model"),
        (lambda path: change(path, ours(system="lut3d", arguments={"size": "33"})), "do not make a lut3d model"),
        (lambda path: change(path, ours(system="lut3d", arguments=HUGE)), r"expected classifier.head.bias \(4000,\)"),
        (lambda path: change(path, ours(system="lut3d", arguments={})), "expected classifier"),
        (lambda path: change(path, luts=torch.zeros(4, 3, 6, 6, 6)), r"luts \(4, 3, 5, 5, 5\).* \(4, 3, 6, 6, 6\)"),
        (lambda path: change(path, luts=None), r"expected luts \(4, 3, 5, 5, 5\) in a lut3d model, got none"),
        (lambda path: change(path, spare=torch.zeros(2)), r"expected spare absent in a lut3d model, got \(2,\)"),
    ],
)
def test_a_file_that_is_not_such_a_model_is_named_in_one_line(model, tmp_path, damage, message):
    path = tmp_path / "model.safetensors"
    save(model, path)
    damage(path)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_embedded_models(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model 'atuo': expected .* \(auto, correct, lowlight\)"):
        load("atuo")
    with pytest.raises(FileNotFoundError, match="no model"):
        load(tmp_path)


def test_a_published_checkpoint_is_told_the_command_that_converts_it(tmp_path):
    with pytest.raises(ValueError, match=r"fastenh convert lut3d LUTs\.pth classifier\.pth -o OUT\.safetensors"):
        load(tmp_path / "LUTs.pth")


def test_a_model_of_no_known_system_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"expected a model of a known system .* got Linear"):
        save(nn.Linear(2, 2), tmp_path / "linear.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(model, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_text("the old file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_text() == "the old file"
