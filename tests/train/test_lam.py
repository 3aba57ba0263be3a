"""Training of the local-context LUT: what its losses add up to, its presets, and whole runs."""

import json
import math
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="the loop runs on Lightning Fabric: pip install fastenh[train]")

from fastenh import losses
from fastenh.models import load
from fastenh.models.lam import ResNet18
from fastenh.train.config import configure
from fastenh.train.lam import PRESETS, Config, Retouching, train

SMALL = {"classifier": "statistics", "size": 5, "side": 24, "batch": 2, "steps": 3, "device": "cpu", "workers": 1}


def small(preset: str = "lam", **changes) -> Config:
    return configure(Config, PRESETS[preset], SMALL, changes)


def terms(task: Retouching, batch) -> dict[str, torch.Tensor]:
    ((name, result),) = task.losses(batch)
    assert name == "model"
    return result


def test_presets_are_the_rows_of_table_1():
    rows = {name: configure(Config, preset) for name, preset in PRESETS.items()}
    for config in rows.values():
        assert (config.n_luts, config.size, config.classifier, config.kernel_size) == (5, 33, "resnet18", 3)
        assert (config.batch, config.epochs, config.learning_rate, config.side) == (16, 200, 1e-4, 448)
    switches = {name: (c.context, c.supervision, c.human_weight, c.glc, c.gam) for name, c in rows.items()}
    assert switches == {
        "3dlut": ("none", "none", 1, 0, 0),
        "liang": ("none", "none", 5, 0, 0),
        "liang-glc": ("none", "none", 5, 1, 0),
        "lam": ("lam", "edge", 1, 0, 0),
        "lam-gam": ("lam", "edge", 1, 0, 1e-3),
    }


@pytest.mark.parametrize("supervision", ["edge", "full"])
def test_the_loss_of_lam_and_gam_is_the_papers(supervision, portraits):
    task = Retouching(small("lam-gam", supervision=supervision), portraits)
    torch.nn.init.normal_(task.model.luts, std=0.3)
    batch = task.batch(range(2))
    result = terms(task, batch)
    image, target, mask = (batch[name][:, 0] for name in ("input", "target", "mask"))
    task.model.train()
    torch.manual_seed(0)  # for the noise on statistics
    output, weights, attention = task.model.compose(image)
    torch.manual_seed(0)
    result = terms(task, batch)
    luts = task.model.luts
    variation = sum(
        (luts.diff(dim=axis).square().movedim(axis, -1) * torch.tensor([2.0, 1, 1, 2])).mean((1, 2, 3, 4)).sum()
        for axis in (2, 3, 4)
    )
    falls = sum(F.relu(-luts.diff(dim=axis)).mean((1, 2, 3, 4)).sum() for axis in (2, 3, 4))
    expected = {
        "mse": F.mse_loss(output, target),
        "smoothness": 1e-4 * (variation + weights.square().mean()),
        "monotonicity": 10 * falls,
        supervision: losses.attention_supervision(attention, mask, supervision == "edge"),
        "gam": 1e-3 * losses.group_style(output, batch["count"], batch["mean"], batch["spread"]),
    }
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, msg=name)
        assert value > 0


def test_liang_weights_people_and_compares_windows(portraits):
    task = Retouching(small("liang-glc"), portraits)
    task.model.eval()
    batch = task.batch(range(2))
    result = terms(task, batch)
    assert result.keys() == {"mse", "smoothness", "monotonicity", "glc"}
    image, target, mask = (batch[name].flatten(0, 1) for name in ("input", "target", "mask"))
    output = task.model(image)
    expected = ((output - target).square() * (1 + 24 * mask)).mean()
    torch.testing.assert_close(result["mse"], expected)
    torch.testing.assert_close(result["glc"], losses.overlap_mse(output[::2], output[1::2], batch["corners"]))


def test_the_first_steps_bring_the_error_down(portraits, tmp_path):
    config = small("lam", steps=40, batch=4, learning_rate=2e-3, classifier="statistics")
    task = Retouching(config, portraits)
    batch = task.batch(range(9))
    before = terms(task, batch)["mse"]
    train(config, portraits, tmp_path)
    task.model.load_state_dict(load(tmp_path / "model.safetensors").state_dict())
    assert terms(task, batch)["mse"] < 0.5 * before


@pytest.mark.parametrize("changes", [{"context": "unet", "supervision": "none"}, {"attention": "sigmoid-sum"}])
def test_peers_of_the_paper_train_too(changes, portraits, tmp_path):
    train(small("lam", steps=1, **changes), portraits, tmp_path)
    model = load(tmp_path / "model.safetensors")
    assert all(model.arguments[key] == value for key, value in changes.items() if key != "supervision")
    assert model(torch.rand(1, 3, 9, 7)).isfinite().all()
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 1


def test_the_backbone_comes_from_a_file(portraits, tmp_path):
    torch.manual_seed(5)
    torch.save(ResNet18(1000).state_dict(), tmp_path / "resnet18.pth")
    task = Retouching(small(classifier="resnet18", backbone=str(tmp_path / "resnet18.pth")), portraits)
    torch.manual_seed(5)
    assert torch.equal(task.model.classifier.layer4[1].conv2.weight, ResNet18(1000).layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"supervision": "half"}, "supervision: expected one of edge, full, none, got 'half'"),
        ({"expert": "d"}, "expert: expected one of a, b, c, got 'd'"),
        ({"gam": -1}, "gam: expected a weight of at least 0, got -1.0"),
        ({"human_weight": math.inf}, "human_weight: expected a weight of at least 0, got inf"),
        ({"context": "unet"}, "supervision: expected none where context is unet, got edge"),
        ({"backbone": "x.pth"}, "backbone: expected none where classifier is statistics, got x.pth"),
        ({"side": 4}, "side: expected at least 8 pixels, got 4"),
        ({"steps": "many"}, "steps: expected a whole number, got 'many'"),
        ({"steps": 2.5}, "steps: expected a whole number, got 2.5"),
        ({"gam": True}, "gam: expected a number, got True"),
        ({"widths": "64;128"}, "widths: expected whole numbers such as 64,128, got '64;128'"),
        ({"expert": 1}, "expert: expected a text, got 1"),
    ],
)
def test_settings_that_cannot_be_are_one_line(changes, line):
    with pytest.raises(ValueError) as error:
        small(**changes)
    assert str(error.value) == line


def test_texts_become_numbers_and_later_layers_win():
    config = configure(Config, {"gam": 0.5, "steps": 7}, {"gam": "1e-2", "widths": "8,16"}, {"steps": "9"})
    assert (config.gam, config.steps, config.widths) == (0.01, 9, (8, 16))
    with pytest.raises(ValueError, match=r"lamda: expected a key of this training \(.*gam.*\), got one it does not"):
        configure(Config, {"lamda": 1})


# ---- whole runs of the command

KILLED = """
import os, signal
from fastenh.cli import app
from fastenh.train.loop import Meter

def update(self, done, *others, update=Meter.update):
    update(self, done, *others)
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)

Meter.update = update
app()
"""


def test_a_killed_run_resumes_to_the_same_bits(portraits, tmp_path):
    # The paper's classifier has dropout; averaged weights and GAM have states of their own.
    changes = {"classifier": "paired", "steps": 12, "ema": 0.9, "log_every": 1, "checkpoint_every": 5}
    sets = [f"--set={key}={value}" for key, value in (SMALL | changes).items()]
    command = ["train", "lam", f"--data={portraits}", f"--out={tmp_path / 'killed'}", "--preset=lam-gam", *sets]
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout.splitlines()[-1].startswith("step 7/12: ")
    assert not (tmp_path / "killed/model.safetensors").exists()
    assert torch.load(tmp_path / "killed/checkpoint.pt", weights_only=True)["step"] == 5

    config = small("lam-gam", **changes)
    train(config, portraits, tmp_path / "whole")
    train(config, portraits, tmp_path / "killed", resume=True)
    whole, resumed = (load(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "killed"))
    for key in whole:
        assert torch.equal(whole[key], resumed[key]), key
