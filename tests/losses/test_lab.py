"""L*a*b* as scikit-image has it, with gradients that are right and finite."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from fastenh.losses import rgb_to_lab

GRID = np.stack(np.meshgrid(*[np.linspace(0, 1, 13)] * 3), -1).reshape(13, 169, 3)  # black, white, primaries included


def test_agrees_with_scikit_image():
    image = torch.from_numpy(GRID).permute(2, 0, 1)[None]
    lab = rgb_to_lab(image)
    assert lab.dtype == torch.float64
    # Theirs has the constants of f to four digits.
    np.testing.assert_allclose(lab[0].permute(1, 2, 0), rgb2lab(GRID), rtol=0, atol=3e-4)
    single = rgb_to_lab(image.float())
    assert single.dtype == torch.float32
    assert (single - lab).abs().max() < 1e-3
    half = rgb_to_lab(image.half())
    assert half.dtype == torch.float32
    assert (half - lab).abs().max() < 0.2


def test_known_colours():
    image = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]]).T[None, :, None]
    expected = torch.tensor([[0.0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20]])  # sRGB red, D65
    torch.testing.assert_close(rgb_to_lab(image)[0, :, 0].T, expected, atol=0.02, rtol=0)


def test_gradients_are_right_and_finite_from_below_black_to_above_white():
    values = torch.tensor([-0.1, 1e-4, 0.02, 0.06, 0.5, 0.93, 1.1], dtype=torch.float64)
    image = torch.cartesian_prod(values, values, values).T[None, :, None].clone().requires_grad_()
    assert torch.autograd.gradcheck(rgb_to_lab, image[..., ::7].contiguous(), fast_mode=True)
    (gradient,) = torch.autograd.grad(rgb_to_lab(image).sum(), image)
    assert gradient.isfinite().all()
    black = torch.zeros(1, 3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(rgb_to_lab(black)[:, 0].sum(), black)
    assert gradient.isfinite().all() and (gradient > 0).all()


@pytest.mark.parametrize(
    ("image", "error"), [(torch.rand(3, 4, 5), ValueError), (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), TypeError)]
)
def test_other_images_are_refused(image, error):
    with pytest.raises(error, match="image: expected"):
        rgb_to_lab(image)
