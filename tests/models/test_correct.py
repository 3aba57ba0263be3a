"""The model `correct`: its goals, measured again on photographs it has never seen, and the script that makes it."""

import re

import numpy as np
import pytest
import torch

from fastenh.models import load
from fastenh.models.checkpoint import WEIGHTS

for package in ("skimage", "sklearn", "matplotlib", "lightning"):
    pytest.importorskip(package, reason=f"{package} carries photographs or the training: pip install fastenh[train]")

from fastenh.data.bundled import training_photos  # noqa: E402
from fastenh.data.degrade import degrade  # noqa: E402
from fastenh.data.synthetic import make_targets  # noqa: E402
from fastenh.train import correct  # noqa: E402
from fastenh.train.card import gain  # noqa: E402
from fastenh.train.loop import run  # noqa: E402


@pytest.fixture(scope="module")
def photos():
    return correct.measure_photos(load("correct"))


def test_five_photographs_are_held_out_and_the_file_is_small(photos):
    assert len(photos) >= 5
    assert (WEIGHTS / "correct.safetensors").stat().st_size <= 2_000_000


def test_a_good_photo_stays_nearly_as_it_is(photos):
    assert np.mean([result["untouched"][1] for result in photos.values()]) < 3


def test_a_photo_one_stop_dark_gains_4_db(photos):
    assert gain(photos.values(), ["one stop dark"]) >= 4


def test_a_tinted_photo_gains_4_db(photos):
    assert gain(photos.values(), correct.TINTS) >= 4


def test_the_card_is_what_the_script_writes():
    model = load("correct")
    shape = re.compile(r"[+-]?\d+(\.\d+)?")  # figures differ in their last digit between machines
    written = correct.card(model, (WEIGHTS / "correct.safetensors").stat().st_size, correct.Config())
    assert shape.sub("#", (WEIGHTS / "correct.md").read_text()) == shape.sub("#", written)


def test_the_model_holds_no_surprise_for_extreme_photos():
    model = load("correct")
    for image in (torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 5, 900), torch.rand(2, 3, 64, 64).round()):
        output = model(image)
        assert output.isfinite().all()
        assert output.min() > -0.5 and output.max() < 1.5


def test_training_learns_and_is_repeatable(tmp_path):
    photos = training_photos()

    def train(folder):
        targets = make_targets(32, photos, np.random.default_rng(0), correct.SIDE)
        config = correct.Config(steps=100, batch=16, device="cpu")
        run(correct.Restoration(config, targets), config, folder)
        return targets, load(folder / "model.safetensors")

    (targets, first), (_, second) = train(tmp_path / "first"), train(tmp_path / "second")
    assert targets.shape == (32, 3, correct.SIDE, correct.SIDE)
    assert targets.min() >= 0 and targets.max() <= 1
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)

    def error(image):
        return (image - targets).square().mean((1, 2, 3)).sqrt().mean().item()

    dark = degrade(targets, stops=-1.0)
    with torch.no_grad():
        assert error(first(dark)) < 0.85 * error(dark)
