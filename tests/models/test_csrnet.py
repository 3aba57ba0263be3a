"""CSRNet against its layers one by one, as published, and against its published result."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastenh.models import CSRNet, csrnet
from fastenh.models.csrnet import convert
from fastenh.models.system import Picture
from fastenh.tiles import Place


def layer_by_layer(model: CSRNet, image: Tensor) -> Tensor:
    """As published: whole maps, padded on all sides, and a modulation after each layer."""
    net, x = model.cond_net, image
    for conv in (net.conv1, net.conv2, net.conv3):
        x = F.relu(F.conv2d(F.pad(x, [1] * 4), conv.weight, conv.bias, stride=2))
    condition, x = x.mean((2, 3)), image
    for k in (1, 2, 3):
        scale, shift = getattr(model, f"cond_scale{k}")(condition), getattr(model, f"cond_shift{k}")(condition)
        x = getattr(model, f"conv{k}")(x)
        x = x * scale[:, :, None, None] + shift[:, :, None, None] + x
        x = F.relu(x) if k < 3 else x
    return x


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("size", [(5, 5), (6, 9), (37, 50), (64, 33), (131, 90), (200, 7)])
@torch.no_grad()
def test_folded_layers_in_bands_are_the_published_layers(size, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csrnet, "CPU_BAND", 8 * 2 * size[1] * rows)
    monkeypatch.setattr(csrnet, "CPU_PIXELS", 500)
    model, image = CSRNet().eval(), torch.rand(2, 3, *size)
    torch.testing.assert_close(model(image), layer_by_layer(model, image), rtol=0, atol=2e-6)


def test_gradients_are_those_of_the_published_layers() -> None:
    model = CSRNet().double()
    image = torch.randn(2, 3, 37, 50).double().requires_grad_()  # some below 0, too
    inputs = [image, *model.parameters()]
    grad = torch.randn(2, 3, 37, 50).double()
    ours = torch.autograd.grad(model(image), inputs, grad)
    torch.testing.assert_close(ours, torch.autograd.grad(layer_by_layer(model, image), inputs, grad))


def test_a_picture_too_small_for_the_condition_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^CSRNet: image: expected H, W >= 5; got \(1, 3, 4, 80\)$"):
        CSRNet()(torch.rand(1, 3, 4, 80))


@torch.no_grad()
def test_published_weights_give_the_published_result(assets) -> None:
    golden = np.load(assets / "lut/golden/csrnet_a0634.npz")
    model = convert(assets / "lut/CSRNet/csrnet.pth")
    photo = np.asarray(Image.open(assets / "lut/LUTwithBGrid/a0634.jpg"), dtype=np.float32) / 255
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    y, x = golden["crop_yx"]
    np.testing.assert_allclose(model.predict_condition(image), golden["cond"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(model(image)[0, :, y : y + 256, x : x + 256], golden["out_crop"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_thumbnail_stands_in_for_the_photo_about(assets) -> None:
    """What docs/lut_models.md says of it."""
    model = convert(assets / "lut/CSRNet/csrnet.pth")
    photo = np.asarray(Image.open(assets / "lut/LUTwithBGrid/a0634.jpg"), dtype=np.float32) / 255
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    thumbnail = F.interpolate(image, (256, 256), mode="bilinear", antialias=True)
    params = model.predict(Picture(thumbnail))
    difference = (model.render(image, params, None, Place(0, 0, *image.shape[2:])) - model(image)).abs()
    assert 0.01 < difference.mean() < 0.03 and difference.max() < 0.1
