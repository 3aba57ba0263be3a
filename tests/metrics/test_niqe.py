"""NIQE of photos whose scores are published, and laws on photos of our own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastenh import metrics


def photo(path):
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")) / 255).float().permute(2, 0, 1)[None]


def test_published_scores(assets):
    lle = assets / "lle"
    pristine = metrics.load_pristine(lle / "BasicSR" / "niqe_pris_params.npz")
    for name, expected in json.loads((lle / "golden" / "niqe.json").read_text()).items():
        score = metrics.niqe(photo(lle / name), pristine)
        assert score.shape == (1,) and score.dtype == torch.float32
        tolerance = 1e-3 if name.endswith("baboon.png") else 1e-2
        assert score.item() == pytest.approx(expected, abs=tolerance), name


@pytest.fixture
def parameters() -> dict[str, np.ndarray]:
    """Not those of pristine photos; what follows holds for any."""
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window = np.outer(window, window) / window.sum() ** 2
    return {"mu_pris_param": np.full((1, 36), 0.5), "cov_pris_param": np.eye(36), "gaussian_window": window}


@pytest.fixture
def file(tmp_path, parameters):
    np.savez(tmp_path / "pristine.npz", **parameters)
    return tmp_path / "pristine.npz"


def test_each_photo_by_itself_and_whole_blocks_alone(file):
    pristine = metrics.load_pristine(file)
    photos = torch.rand(2, 3, 101, 200, generator=torch.Generator().manual_seed(0))
    photos[1, :, :, ::2] *= 0.3
    together = metrics.niqe(photos, pristine)
    assert (together[0] - together[1]).abs() > 0.01
    for score, one in zip(together, photos.split(1), strict=True):
        torch.testing.assert_close(metrics.niqe(one[..., :96, :192], pristine), score[None])


def test_flat_blocks_have_no_say_and_a_flat_photo_no_score(file):
    pristine = metrics.load_pristine(file)
    photos = torch.rand(1, 3, 96, 288, generator=torch.Generator().manual_seed(0))
    photos[..., 192:] = 0
    assert metrics.niqe(photos, pristine).isfinite().all()
    assert metrics.niqe(torch.zeros(1, 3, 96, 288), pristine).isnan().all()


def test_photos_that_do_not_fit(file):
    pristine = metrics.load_pristine(file)
    with pytest.raises(ValueError, match="at least two blocks of 96×96 pixels, got a photo of 150×191"):
        metrics.niqe(torch.zeros(1, 3, 191, 150), pristine)
    with pytest.raises(ValueError, match="image: expected shape"):
        metrics.niqe(torch.zeros(3, 191, 250), pristine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("mu_pris_param"), r"expected mu_pris_param, finite floats of \(1, 36\), got none"),
        (lambda p: p.update(cov_pris_param=np.eye(18)), r"cov_pris_param, .* of \(36, 36\), got float64 of \(18, 18\)"),
        (lambda p: p["gaussian_window"].fill(np.nan), "expected gaussian_window, finite floats"),
    ],
)
def test_other_parameters_are_refused(tmp_path, parameters, change, message):
    change(parameters)
    np.savez(tmp_path / "other.npz", **parameters)
    with pytest.raises(ValueError, match=message):
        metrics.load_pristine(tmp_path / "other.npz")


def test_other_files_are_refused(tmp_path, file):
    with pytest.raises(FileNotFoundError, match="no such file"):
        metrics.load_pristine(tmp_path / "none.npz")
    np.save(tmp_path / "array.npy", np.eye(3))
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "cut.npz").write_bytes(file.read_bytes()[:900])
    for name in ("array.npy", "text.npz", "cut.npz"):
        with pytest.raises(ValueError, match=f"{name}: expected NIQE's pristine parameters as .npz"):
            metrics.load_pristine(tmp_path / name)
