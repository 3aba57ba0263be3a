"""M_GLC by hand, from scikit-image's L*a*b* and NumPy's variance."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from fastenh.metrics import bands, group_level_consistency, mean_ab

PHOTOS = np.random.default_rng(6).random((5, 21, 30, 3)) * np.linspace(0.2, 1, 5)[:, None, None, None]


@pytest.mark.parametrize("pixels", [2**19, 400])
def test_mean_colour(monkeypatch, pixels):
    monkeypatch.setattr(bands, "PIXELS", pixels)
    expected = rgb2lab(PHOTOS)[..., 1:].mean((1, 2))
    np.testing.assert_allclose(mean_ab(torch.from_numpy(PHOTOS).permute(0, 3, 1, 2)), expected, rtol=1e-3, atol=1e-3)


def test_variance_within_each_group():
    colours = rgb2lab(PHOTOS)[..., 1:].mean((1, 2))
    result = group_level_consistency(torch.from_numpy(colours), ["7", "12", "7", "7", "3"])
    expected = (np.var(colours[[0, 2, 3], 0], ddof=1) + np.var(colours[[0, 2, 3], 1], ddof=1)) / 2
    assert result == {"7": pytest.approx(expected)}  # 12 and 3 are groups of one


def test_a_number_of_groups_that_does_not_fit():
    with pytest.raises(ValueError, match=r"colours: expected shape \(2, 2\), got \(3, 2\)"):
        group_level_consistency(torch.zeros(3, 2), ["1", "1"])
