"""The default model: what it promises, measured on photographs it has never seen, and the script that makes it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastenh.models import load
from fastenh.models.checkpoint import WEIGHTS

for package in ("skimage", "sklearn", "matplotlib", "lightning"):
    pytest.importorskip(package, reason=f"{package} carries photographs or the training: pip install fastenh[train]")

from PIL import Image  # noqa: E402

from fastenh import models  # noqa: E402
from fastenh.data.bundled import held_out_photos, training_photos  # noqa: E402
from fastenh.data.degrade import degrade, quantise  # noqa: E402
from fastenh.data.graphics import graphic  # noqa: E402
from fastenh.data.retouched import DEGRADED, GRAPHIC, PHOTO, Experts, sources  # noqa: E402
from fastenh.losses import rgb_to_lab  # noqa: E402
from fastenh.models.lut3d import HistogramClassifier  # noqa: E402
from fastenh.train import auto  # noqa: E402
from fastenh.train.loop import run  # noqa: E402

ASSETS = Path(__file__).parents[3] / "shared" / "assets" / "lut"


@pytest.fixture(scope="module")
def model():
    return load("auto")


@pytest.fixture(scope="module")
def photos():
    return held_out_photos()


@pytest.fixture(scope="module")
def results(model, photos):
    with torch.no_grad():
        return {name: quantise(model(photo)) for name, photo in photos.items()}


def test_the_file_is_small():
    assert (WEIGHTS / "auto.safetensors").stat().st_size <= 1_000_000


def test_every_photo_visibly_changes(photos, results):
    for name, photo in photos.items():
        assert auto.distance(results[name], rgb_to_lab(photo)) > 3


def test_greys_stay_grey(photos, results):
    added = [auto.added_chroma(photo, results[name]) for name, photo in photos.items()]
    assert np.mean([chroma for chroma in added if chroma is not None]) <= 1.0


@pytest.mark.parametrize("name", auto.SKIN)
def test_skin_keeps_its_hue(photos, results, name):
    before, after = (auto.skin_hue(image, auto.SKIN[name]) for image in (photos[name], results[name]))
    assert abs(after - before) <= 5


def test_hardly_a_pixel_clips(photos, results):
    assert np.mean([auto.clipped(photo, results[name]) for name, photo in photos.items()]) <= 1.0


def test_ramps_stay_smooth(model):
    assert auto.largest_step(model) <= 3


@torch.no_grad()
def test_graphics_stay_as_they_are(model):
    rng = np.random.default_rng(12345)
    photo = Image.fromarray((training_photos()[0] * 255).byte().permute(1, 2, 0).numpy())
    pictures = [torch.from_numpy(np.array(graphic(rng, photo))).permute(2, 0, 1)[None] / 255 for _ in range(40)]
    assert np.mean([auto.distance(model(picture), rgb_to_lab(picture)) for picture in pictures]) <= 4


@torch.no_grad()
@pytest.mark.parametrize("change", auto.DEGRADATIONS)
def test_a_degraded_photo_comes_closer_to_the_result_of_the_photo_itself(model, photos, results, change):
    after, before = [], []
    for name, photo in photos.items():
        degraded = degrade(photo, **auto.DEGRADATIONS[change])
        target = rgb_to_lab(results[name])
        before.append(auto.distance(degraded, target))
        after.append(auto.distance(model(degraded), target))
    assert np.mean(after) < 0.6 * np.mean(before)


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the published weights of the experts are not here")
def test_it_retouches_as_the_experts_do(model, photos, tmp_path):
    folder = ASSETS / "Image-Adaptive-3DLUT/pretrained_models/sRGB"
    models.save(models.adaint.convert(ASSETS / "AdaInt/pretrained/AiLUT-FiveK-sRGB.pth"), tmp_path / "a.safetensors")
    models.save(models.lut3d.convert(folder / "LUTs.pth", folder / "classifier.pth"), tmp_path / "z.safetensors")
    experts = Experts(str(tmp_path / "a.safetensors"), str(tmp_path / "z.safetensors"))
    measured = auto.measure_photos(model, experts, photos)
    assert all(row["retouched"] < row["untouched"] for row in measured.values())
    assert np.mean([row["retouched"] for row in measured.values()]) <= 5


def test_the_card_lists_every_picture():
    card = (WEIGHTS / "auto.md").read_text()
    for source in sources():
        assert f"| {Path(source.path).name} | {source.source} | {source.author} | {source.licence} |" in card
        assert source.licence
        assert source.author


def test_extreme_photos_give_finite_results(model):
    for image in (torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 5, 900), torch.rand(2, 3, 64, 64).round()):
        output = model(image)
        assert output.isfinite().all()
        assert output.min() > -0.5
        assert output.max() < 1.5


def test_graphics_depend_on_the_seed_alone():
    photo = Image.linear_gradient("L").convert("RGB")

    def draw(seed):
        rng = np.random.default_rng(seed)
        return [np.array(graphic(rng, photo)) for _ in range(20)]

    for one, other in zip(draw(1), draw(1), strict=True):
        assert one.dtype == np.uint8
        assert one.shape[2] == 3
        np.testing.assert_array_equal(one, other)
    assert not all(np.array_equal(one, other) for one, other in zip(draw(1), draw(2), strict=True))


def test_training_learns_and_is_repeatable(tmp_path):
    classifier = HistogramClassifier(1)
    photos = torch.cat([classifier.pick(photo[None, :, :400, :300]) for photo in training_photos()[:4]])
    statistics, histograms = classifier.features(photos)
    pixels = photos.flatten(2)[:, :, :256]
    samples = {
        "kind": torch.tensor([PHOTO, PHOTO, GRAPHIC, DEGRADED]),
        "statistics": statistics,
        "histograms": histograms.half(),
        "pixels": (pixels * 255).round().byte(),
        "targets": rgb_to_lab((pixels**0.7)[:, :, None])[:, :, 0].half(),  # lighter
    }

    def train(folder):
        config = auto.Config(photos="-", adaint="-", lut3d="-", steps=60, batch=8, device="cpu")
        run(auto.Distillation(config, samples), config, folder)
        return load(folder / "model.safetensors")

    first, second = train(tmp_path / "first"), train(tmp_path / "second")
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        after = auto.distance(first(photos[:2]), rgb_to_lab(photos[:2] ** 0.7))
    assert after < 0.5 * auto.distance(photos[:2], rgb_to_lab(photos[:2] ** 0.7))
