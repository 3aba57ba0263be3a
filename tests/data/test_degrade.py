"""What is done to photos: light by scikit-image's XYZ, powers and noise by their formulas."""

import numpy as np
import pytest
import torch

from fastenh.data.degrade import darken, degrade, to_linear

rgb2xyz = pytest.importorskip("skimage.color", reason="scikit-image: pip install fastenh[train]").rgb2xyz


def test_one_stop_is_half_the_light_and_gains_are_per_channel():
    image = torch.rand(2, 3, 6, 7) * 0.5 + 0.1
    for b in range(2):
        full, half = (
            rgb2xyz(x[b].permute(1, 2, 0).double().numpy()) for x in (image, degrade(image, stops=[-1.0] * 2))
        )
        np.testing.assert_allclose(half, full / 2, atol=0.01)
    tinted = degrade(image, gains=(1.0, 0.5, 1.0))
    torch.testing.assert_close(tinted[:, ::2], image[:, ::2], rtol=0, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(tinted[:, 1], degrade(image, stops=-1.0)[:, 1])
    torch.testing.assert_close(degrade(image, saturation=0.0).std(1), torch.zeros(2, 6, 7))


def test_darkening_is_what_it_says():
    image = torch.rand(2, 3, 6, 7)
    np.testing.assert_allclose(darken(image, gamma=[3.0, 1.0])[0], image[0] ** 3, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(darken(image, stops=-2.0), degrade(image, stops=-2.0))
    grey = torch.full((1, 3, 200, 200), 0.5)
    noisy = darken(grey, noise=0.05, rng=np.random.default_rng(0))
    linear = to_linear(noisy)
    assert abs(linear.std() / (0.05 * (to_linear(grey).mean() + 0.01).sqrt()) - 1) < 0.03
    assert torch.equal(noisy, (noisy * 255).round() / 255)
