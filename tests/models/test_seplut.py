"""SepLUT against NumPy and SciPy, and against its published result."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from fastenh.models import SepLUT
from fastenh.models.seplut import convert


def lively(*arguments: int) -> SepLUT:
    model = SepLUT(*arguments).eval()
    model.luts.data.add_(torch.randn_like(model.luts), alpha=0.05)
    nn.init.normal_(model.weights.weight, std=0.1)
    nn.init.normal_(model.curves.weight, std=0.5)  # curves that fall as well as rise
    return model


@pytest.mark.parametrize(("size", "size_1d", "width"), [(9, 9, 6), (5, 17, 8), (17, 2, 8)])
@torch.no_grad()
def test_it_is_a_curve_for_each_channel_and_then_a_3d_lut(size: int, size_1d: int, width: int) -> None:
    model = lively(3, size, size_1d, width)
    image = torch.rand(2, 3, 30, 41) * torch.rand(2, 3, 1, 1) * 1.4 - 0.1  # some outside [0, 1]
    result, (weights, curves) = model(image), model.weights_and_curves(image)
    assert (curves.diff() < 0).any() or size_1d == 2
    points, axes = np.linspace(0, 1, size_1d), [np.linspace(0, 1, size)] * 3
    for b in range(2):
        lut = torch.einsum("n,n...->...", weights[b], model.luts).double().numpy()
        between = [np.interp(image[b, c].double(), points, curves[b, c].double()) for c in range(3)]
        colours = np.stack(between[::-1], -1)  # B, G, R
        for channel in range(3):
            expected = RegularGridInterpolator(axes, lut[channel])(colours)
            np.testing.assert_allclose(result[b, channel], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_curves_and_weights_come_from_the_published_layers() -> None:
    model = lively(3, 9, 9, 6)
    x = image = torch.rand(2, 3, 100, 300)
    x = F.interpolate(x, (256, 256), mode="bilinear", align_corners=False)
    for i, channels in enumerate((6, 12, 24, 48, 48)):
        x = F.leaky_relu(F.conv2d(x, model.backbone[i][0].weight, model.backbone[i][0].bias, stride=2, padding=1), 0.2)
        assert x.shape == (2, channels, 128 >> i, 128 >> i)
        if i < 4:
            x = F.instance_norm(x, weight=model.backbone[i][2].weight, bias=model.backbone[i][2].bias)
    features = F.avg_pool2d(x, 4).flatten(1)
    weights, curves = model.weights_and_curves(image)
    torch.testing.assert_close(weights, features @ model.weights.weight.T + model.weights.bias)
    expected = torch.sigmoid(features @ model.curves.weight.T + model.curves.bias).view(2, 3, 9)
    torch.testing.assert_close(curves, expected)


def test_an_untrained_model_returns_about_its_input() -> None:
    image = torch.rand(2, 3, 30, 41)
    torch.testing.assert_close(SepLUT().eval()(image).detach(), image, rtol=0, atol=0.05)


@torch.no_grad()
def test_bytes_between_curves_and_lut_are_not_rounded() -> None:
    """A flat curve and a steep LUT: rounded to 8 bits in between, whole steps of the result would be lost."""
    model = SepLUT(1, 9, 2).eval()
    nn.init.zeros_(model.curves.weight)
    model.curves.bias.copy_(torch.tensor([0.45, 0.55]).logit().repeat(3))
    model.luts.data.sub_(0.5).mul_(10).add_(0.5)  # the inverse
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    model.weights.bias.fill_(1)
    nn.init.zeros_(model.weights.weight)
    assert (model(image).int() - image.int()).abs().max() <= 1
    assert model(image).unique().numel() > 250


@torch.no_grad()
def test_published_weights_give_the_published_result(assets) -> None:
    golden = np.load(assets / "lut/golden/seplut_sRGB_M8_17_a4739.npz")
    model = convert(assets / "lut/SepLUT/pretrained/SepLUT-FiveK-sRGB-M8#3D17#1D17.pth")
    assert model.arguments == {"n_luts": 3, "size": 17, "size_1d": 17, "width": 8}
    photo = np.asarray(Image.open(assets / "lut/AdaInt/resources/a4739.jpg"), dtype=np.float32) / 255
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    weights, curves = model.weights_and_curves(image)
    lut = torch.einsum("bn,n...->b...", weights, model.luts)
    y, x = golden["crop_yx"]
    for ours, theirs in [
        (weights, "weights"),
        (curves, "lut1d"),
        (lut, "lut3d"),
        (model(image)[0, :, y : y + 256, x : x + 256], "out_crop"),
    ]:
        np.testing.assert_allclose(ours, golden[theirs], rtol=0, atol=1e-5, err_msg=theirs)


@pytest.mark.parametrize("width", [6, 8])
@pytest.mark.parametrize(("size", "size_1d"), [(9, 9), (17, 17), (33, 33), (9, 33)])
def test_every_published_size_follows_from_its_file(
    size: int, size_1d: int, width: int, assert_same_model, tmp_path
) -> None:
    model = lively(3, size, size_1d, width)
    state = model.state_dict()
    luts = state.pop("luts").flatten(1).T.clone()
    for theirs, ours in [
        ("lut3d_generator.weights_generator", "weights"),
        ("lut1d_generator.lut1d_generator", "curves"),
    ]:
        for kind in ("weight", "bias"):
            state[f"{theirs}.{kind}"] = state.pop(f"{ours}.{kind}")
    state["lut3d_generator.basis_luts_bank.weight"] = luts
    torch.save({"meta": {"seed": 0}, "state_dict": state}, tmp_path / "w.pth")
    again = convert(tmp_path / "w.pth")
    assert again.arguments == {"n_luts": 3, "size": size, "size_1d": size_1d, "width": width}
    assert_same_model(again, model, torch.rand(1, 3, 20, 30))
    state["lut1d_generator.lut1d_generator.bias"] = torch.zeros(3 * size_1d + 1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: expected lut1d_generator.* of SepLUT, got"):
        convert(tmp_path / "w.pth")


@pytest.mark.parametrize("arguments", [(0,), (3, 1), (3, 257), (3, 17, 1), (3, 17, 17, 0)])
def test_a_wrong_constructor_argument_is_one_line(arguments) -> None:
    with pytest.raises(ValueError, match="got"):
        SepLUT(*arguments)
