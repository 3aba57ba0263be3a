"""The embedded model for the dark: its goals, measured again on the photographs it has never seen, and its script."""

import re

import numpy as np
import pytest
import torch

from fastenh.models import ZeroDCE, load
from fastenh.models.checkpoint import WEIGHTS

for package in ("skimage", "sklearn", "matplotlib", "lightning"):
    pytest.importorskip(package, reason=f"{package} carries photographs or the training: pip install fastenh[train]")

from fastenh.data.bundled import training_photos  # noqa: E402
from fastenh.data.degrade import darken  # noqa: E402
from fastenh.data.synthetic import make_targets  # noqa: E402
from fastenh.train import lowlight  # noqa: E402
from fastenh.train.loop import run  # noqa: E402


@pytest.fixture(scope="module")
def photos():
    return lowlight.measure_photos(load("lowlight"))


def test_five_photographs_are_held_out_and_the_file_is_small(photos):
    assert len(photos) >= 5
    assert (WEIGHTS / "lowlight.safetensors").stat().st_size <= 1_000_000


def test_every_photo_darkened_by_gamma_3_gains_5_db(photos):
    assert min(result["gamma 3"][1] - result["gamma 3"][0] for result in photos.values()) >= 5


def test_light_photos_stay_nearly_as_they_are(photos):
    assert max(result["untouched"][1] for result in photos.values()) < 6


def test_grey_photos_get_little_cast(photos):
    casts = sorted(result["cast"][1] for result in photos.values())
    assert np.mean(casts) < 2 and casts[2] < 2 and casts[4] < 5  # two photos of five keep some of what the dark gave
    assert max(result["cast"][0] for result in photos.values()) > 2


def test_the_card_is_what_the_script_writes(photos, monkeypatch):
    model = load("lowlight")
    monkeypatch.setattr(lowlight, "measure_photos", lambda _: photos)
    shape = re.compile(r"[+-]?\d+(\.\d+)?")  # figures differ in their last digit between machines
    written = lowlight.card(model, (WEIGHTS / "lowlight.safetensors").stat().st_size, lowlight.Config())
    assert shape.sub("#", (WEIGHTS / "lowlight.md").read_text()) == shape.sub("#", written)


def test_training_learns_and_is_repeatable(tmp_path):
    targets = make_targets(16, training_photos()[:3], np.random.default_rng(0), lowlight.SIDE)
    assert targets.shape == (16, 3, lowlight.SIDE, lowlight.SIDE)

    def train(folder, steps):
        config = lowlight.Config(steps=steps, batch=8, device="cpu")
        run(lowlight.Relighting(config, targets), config, folder)
        return load(folder / "model.safetensors")

    first, second = train(tmp_path / "first", 4), train(tmp_path / "second", 4)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    learned = train(tmp_path / "third", 60)
    assert type(learned) is ZeroDCE and learned.map_scale == lowlight.MAP_SCALE
    learned.map_scale = 1
    dark = darken(targets, gamma=3.0)
    with torch.no_grad():
        assert (learned(dark) - targets).square().mean() < 0.7 * (dark - targets).square().mean()
