"""The embedded model for the dark: its goals, measured again on the photographs it has never seen, and its script."""

import re

import numpy as np
import pytest
import torch

from fastenh.models import WEIGHTS, ZeroDCE, load

for package in ("skimage", "sklearn", "matplotlib", "lightning"):
    pytest.importorskip(package, reason=f"{package} carries photographs or the training: pip install fastenh[train]")

from fastenh.train import auto, lowlight  # noqa: E402


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
    written = lowlight.card(model, (WEIGHTS / "lowlight.safetensors").stat().st_size)
    assert shape.sub("#", lowlight.CARD.read_text()) == shape.sub("#", written)


def test_darkening_is_what_it_says():
    image = torch.rand(2, 3, 6, 7)
    np.testing.assert_allclose(lowlight.darken(image, gamma=[3.0, 1.0])[0], image[0] ** 3, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(lowlight.darken(image, stops=-2.0), auto.degrade(image, stops=-2.0))
    grey = torch.full((1, 3, 200, 200), 0.5)
    noisy = lowlight.darken(grey, noise=0.05, rng=np.random.default_rng(0))
    linear = auto.to_linear(noisy)
    assert abs(linear.std() / (0.05 * (auto.to_linear(grey).mean() + 0.01).sqrt()) - 1) < 0.03
    assert torch.equal(noisy, (noisy * 255).round() / 255)


def test_training_learns_and_is_repeatable(tmp_path):
    photos = [photo.read() for photo in auto.PHOTOS if not photo.held_out][:3]
    targets = auto.make_targets(16, photos, np.random.default_rng(0), lowlight.SIDE)
    assert targets.shape == (16, 3, lowlight.SIDE, lowlight.SIDE)

    def train(folder, steps):
        config = lowlight.Config(steps=steps, batch=8, device="cpu")
        auto.run(lowlight.Relighting(config, targets), config, folder)
        return load(folder / "model.safetensors")

    first, second = train(tmp_path / "first", 4), train(tmp_path / "second", 4)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    learned = train(tmp_path / "third", 60)
    assert type(learned) is ZeroDCE and learned.map_scale == lowlight.MAP_SCALE
    learned.map_scale = 1
    dark = lowlight.darken(targets, gamma=3.0)
    with torch.no_grad():
        assert (learned(dark) - targets).square().mean() < 0.7 * (dark - targets).square().mean()
