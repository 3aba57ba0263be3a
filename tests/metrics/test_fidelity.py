"""PSNR, SSIM and ΔE as NumPy, SciPy and scikit-image compute them, on one frame or in many bands."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from skimage.color import deltaE_cie76, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fastenh import metrics
from fastenh.metrics import bands

RNG = np.random.default_rng(5)
TARGET = RNG.random((2, 37, 53, 3)) * np.linspace(0.2, 1, 53)[:, None]
IMAGE = np.clip(TARGET + RNG.normal(0, 0.08, TARGET.shape) + 0.05, 0, 1)
HUMAN = RNG.random((2, 37, 53, 1)) < 0.4


def tensor(array: np.ndarray) -> torch.Tensor:
    array = array if array.dtype == bool else array.astype(np.float32)
    return torch.from_numpy(array).permute(0, 3, 1, 2)  # strided, as pictures from files are


@pytest.fixture(autouse=True, params=[2**19, 700, 1], ids=["whole", "bands", "row by row"])
def band(request, monkeypatch):
    monkeypatch.setattr(bands, "PIXELS", request.param)


def test_psnr():
    expected = [peak_signal_noise_ratio(t, i, data_range=1) for t, i in zip(TARGET, IMAGE, strict=True)]
    np.testing.assert_allclose(metrics.psnr(tensor(IMAGE), tensor(TARGET)), expected, rtol=1e-5)


def test_human_centred_psnr():
    weights = np.where(HUMAN, 1, 0.5)
    expected = -10 * np.log10(np.mean((weights * IMAGE - weights * TARGET) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(metrics.psnr(tensor(IMAGE), tensor(TARGET), tensor(HUMAN)), expected, rtol=1e-5)


def test_delta_e():
    expected = deltaE_cie76(rgb2lab(TARGET), rgb2lab(IMAGE)).mean((1, 2))
    np.testing.assert_allclose(metrics.delta_e(tensor(IMAGE), tensor(TARGET)), expected, rtol=1e-4)


def test_human_centred_delta_e():
    weights = np.where(HUMAN, 1, 0.5)
    expected = np.linalg.norm(weights * rgb2lab(IMAGE) - weights * rgb2lab(TARGET), axis=-1).mean((1, 2))
    np.testing.assert_allclose(metrics.delta_e(tensor(IMAGE), tensor(TARGET), tensor(HUMAN)), expected, rtol=1e-4)


def test_ssim():
    """By the formula, mirrored at the edges; within the frame scikit-image says the same."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x):
        return correlate1d(correlate1d(x, window, 0, mode="mirror"), window, 1, mode="mirror")

    for x, y, got in zip(IMAGE, TARGET, metrics.ssim(tensor(IMAGE), tensor(TARGET)), strict=True):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        similarity = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        assert got.item() == pytest.approx(similarity.mean(), rel=1e-4)
        theirs = structural_similarity(
            x, y, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert similarity[5:-5, 5:-5].mean() == pytest.approx(theirs, rel=1e-6)


def test_equal_images():
    image = tensor(IMAGE)
    assert (metrics.psnr(image, image) == torch.inf).all()
    assert (metrics.delta_e(image, image) == 0).all()
    torch.testing.assert_close(metrics.ssim(image, image), torch.ones(2))


def test_everybody_human_is_the_plain_measure_and_nobody_half_of_it():
    image, target, everybody = tensor(IMAGE), tensor(TARGET), torch.ones(2, 1, 37, 53, dtype=torch.bool)
    assert metrics.psnr(image, target, everybody).equal(metrics.psnr(image, target))
    torch.testing.assert_close(
        metrics.psnr(image, target, ~everybody) - metrics.psnr(image, target), 20 * torch.tensor([2.0, 2]).log10()
    )
    torch.testing.assert_close(metrics.delta_e(image, target, ~everybody) * 2, metrics.delta_e(image, target))


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim, metrics.delta_e])
def test_shapes_that_do_not_fit(measure):
    image = tensor(IMAGE)
    with pytest.raises(ValueError, match="image: expected shape"):
        measure(image[0], image[0])
    with pytest.raises(ValueError, match="target: expected the image's shape"):
        measure(image, image[..., 1:])


def test_masks_that_do_not_fit():
    image = tensor(IMAGE)
    for human in (tensor(HUMAN)[..., 1:], tensor(HUMAN).float()):
        with pytest.raises(ValueError, match="human: expected bool of shape"):
            metrics.psnr(image, image, human)


def test_ssim_of_photos_smaller_than_its_window():
    image = torch.rand(1, 3, 6, 9)
    torch.testing.assert_close(metrics.ssim(image, image), torch.ones(1))
    with pytest.raises(ValueError, match="at least 6 pixels on each side, got 9×5"):
        metrics.ssim(image[..., 1:, :], image[..., 1:, :])
