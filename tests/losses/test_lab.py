"""sRGB → Lab against scikit-image, and its gradient against differences."""

import numpy as np
import pytest
import torch

from fastenh.losses import rgb_to_lab

color = pytest.importorskip("skimage.color", reason="scikit-image has the reference: pip install fastenh[train]")


@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 3, 1, 1)])
def test_it_is_what_scikit_image_computes(shape):
    image = torch.rand(shape, dtype=torch.float64)
    image[..., 0, 0] = torch.tensor([0.0, 0.03, 1.0])  # both branches of both curves
    expected = color.rgb2lab(image.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(rgb_to_lab(image).permute(0, 2, 3, 1), expected, atol=1e-9)
    half = rgb_to_lab(image.half())
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half.permute(0, 2, 3, 1), expected, atol=0.2)


def test_gray_has_no_colour_and_white_is_100():
    gray = torch.linspace(0, 1, 9).view(1, 1, 3, 3).expand(1, 3, 3, 3)
    lab = rgb_to_lab(gray)
    assert lab[:, 1:].abs().max() < 0.02  # the matrix has six digits
    assert lab[0, 0, 2, 2].item() == pytest.approx(100, abs=1e-3)


def test_its_gradient_is_right_and_never_nan():
    assert torch.autograd.gradcheck(rgb_to_lab, torch.rand(1, 3, 3, 2, dtype=torch.float64).requires_grad_())
    wild = torch.tensor([-0.5, 0.0, 0.04045, 1.0, 2.0]).view(1, 1, 1, 5).repeat(1, 3, 1, 1).requires_grad_()
    rgb_to_lab(wild).sum().backward()
    assert wild.grad.isfinite().all()
