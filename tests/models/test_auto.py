"""The embedded model: its goals, measured again on the photographs it has never seen, and the script that makes it."""

import re

import numpy as np
import pytest
import torch

from fastenh.models import WEIGHTS, load

for package in ("skimage", "sklearn", "matplotlib", "lightning"):
    pytest.importorskip(package, reason=f"{package} carries photographs or the training: pip install fastenh[train]")

from fastenh.train import auto  # noqa: E402


@pytest.fixture(scope="module")
def photos():
    return auto.measure_photos(load("auto"))


def test_five_photographs_are_held_out_and_the_file_is_small(photos):
    assert len(photos) >= 5
    assert (WEIGHTS / "auto.safetensors").stat().st_size <= 2_000_000


def test_a_good_photo_stays_nearly_as_it_is(photos):
    assert np.mean([result["untouched"][1] for result in photos.values()]) < 3


def test_a_photo_one_stop_dark_gains_4_db(photos):
    assert auto.gain(photos.values(), ["one stop dark"]) >= 4


def test_a_tinted_photo_gains_4_db(photos):
    assert auto.gain(photos.values(), auto.TINTS) >= 4


def test_the_card_is_what_the_script_writes():
    model = load("auto")
    shape = re.compile(r"[+-]?\d+(\.\d+)?")  # figures differ in their last digit between machines
    written = auto.card(model, (WEIGHTS / "auto.safetensors").stat().st_size)
    assert shape.sub("#", auto.CARD.read_text()) == shape.sub("#", written)


def test_the_model_holds_no_surprise_for_extreme_photos():
    model = load("auto")
    for image in (torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 5, 900), torch.rand(2, 3, 64, 64).round()):
        output = model(image)
        assert output.isfinite().all()
        assert output.min() > -0.5 and output.max() < 1.5


def test_one_stop_is_half_the_light_and_gains_are_per_channel():
    from skimage.color import rgb2xyz

    image = torch.rand(2, 3, 6, 7) * 0.5 + 0.1
    for b in range(2):
        full, half = (
            rgb2xyz(x[b].permute(1, 2, 0).double().numpy()) for x in (image, auto.degrade(image, stops=[-1.0] * 2))
        )
        np.testing.assert_allclose(half, full / 2, atol=0.01)
    tinted = auto.degrade(image, gains=(1.0, 0.5, 1.0))
    torch.testing.assert_close(tinted[:, ::2], image[:, ::2], rtol=0, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(tinted[:, 1], auto.degrade(image, stops=-1.0)[:, 1])
    torch.testing.assert_close(auto.degrade(image, saturation=0.0).std(1), torch.zeros(2, 6, 7))


def test_training_learns_and_is_repeatable(tmp_path):
    photos = [photo.read() for photo in auto.PHOTOS if not photo.held_out]

    def run(folder):
        targets = auto.make_targets(32, photos, np.random.default_rng(0))
        config = auto.Config(steps=100, batch=16, device="cpu")
        auto.run(auto.Restoration(config, targets), config, folder)
        return targets, load(folder / "model.safetensors")

    (targets, first), (_, second) = run(tmp_path / "first"), run(tmp_path / "second")
    assert targets.shape == (32, 3, auto.SIDE, auto.SIDE)
    assert targets.min() >= 0 and targets.max() <= 1
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)

    def error(image):
        return (image - targets).square().mean((1, 2, 3)).sqrt().mean().item()

    dark = auto.degrade(targets, stops=-1.0)
    with torch.no_grad():
        assert error(first(dark)) < 0.85 * error(dark)
