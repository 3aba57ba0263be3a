"""AdaInt against its layers composed another way, and against its published results and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn

from fastenh import backend, backends, ops
from fastenh.models import AdaInt
from fastenh.models.adaint import convert

WEIGHTS = "lut/AdaInt/pretrained/AiLUT-FiveK-sRGB.pth"


def photo(path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255).permute(2, 0, 1)[None]


def lively(n_luts: int = 3, size: int = 9) -> AdaInt:
    model = AdaInt(n_luts, size).eval()
    model.luts.data.add_(torch.randn_like(model.luts), alpha=0.05)
    nn.init.normal_(model.weights.weight, std=0.1)
    nn.init.normal_(model.intervals.weight, std=0.2)
    return model


@torch.no_grad()
def test_it_is_linear_interpolation_on_each_photos_own_grid() -> None:
    model = lively()
    image = torch.rand(2, 3, 30, 41) * torch.rand(2, 3, 1, 1) * 1.4 - 0.1  # some outside [0, 1]
    result, (weights, vertices) = model(image), model.weights_and_vertices(image)
    assert vertices[..., 0].eq(0).all() and (vertices.diff() > 0).all() and vertices.diff().std() > 0.01
    torch.testing.assert_close(vertices[..., -1], torch.ones(2, 3))
    for b in range(2):
        lut = torch.einsum("n,n...->...", weights[b], model.luts).double().numpy()
        axes = vertices[b].double().numpy()[::-1]  # B, G, R
        axes[:, -1] = 1
        colours = image[b].clamp(0, 1).flip(0).flatten(1).T.double().numpy()
        for channel in range(3):
            expected = RegularGridInterpolator(axes, lut[channel])(colours).reshape(30, 41)
            np.testing.assert_allclose(result[b, channel], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_backbone_is_the_published_one() -> None:
    model = lively()
    x = image = torch.rand(2, 3, 100, 300)
    x = F.interpolate(x, (256, 256), mode="bilinear", align_corners=False)
    for i, channels in enumerate((16, 32, 64, 128, 128)):
        x = F.leaky_relu(F.conv2d(x, model.backbone[i][0].weight, model.backbone[i][0].bias, stride=2, padding=1), 0.2)
        assert x.shape == (2, channels, 128 >> i, 128 >> i)
        if i < 4:
            x = F.instance_norm(x, weight=model.backbone[i][2].weight, bias=model.backbone[i][2].bias)
    features = F.avg_pool2d(x, 4).flatten(1)
    logits = (features @ model.intervals.weight.T + model.intervals.bias).view(2, 3, 8)
    weights, vertices = model.weights_and_vertices(image)
    torch.testing.assert_close(weights, features @ model.weights.weight.T + model.weights.bias)
    torch.testing.assert_close(vertices[..., 1:], logits.softmax(-1).cumsum(-1))


def test_an_untrained_model_returns_about_its_input() -> None:
    image = torch.rand(2, 3, 30, 41)
    torch.testing.assert_close(AdaInt(3, 17).eval()(image).detach(), image, rtol=0, atol=0.05)


@pytest.mark.parametrize("code", backends.core.cpu if backends.core else [])
def test_the_compiled_gradients_are_those_of_the_reference(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = lively(), torch.rand(2, 3, 30, 41)
    torch.manual_seed(1)
    twin = lively().double()
    twin.load_state_dict(model.state_dict())
    twin(image.double()).square().mean().backward()  # in float64 the reference runs
    with backend(code):
        monkeypatch.setattr(ops.lut._op, "reference", None)  # from here on only compiled code may run
        model(image).square().mean().backward()
    for ours, exact in zip(model.parameters(), twin.parameters(), strict=True):
        assert (ours.grad - exact.grad).abs().max() <= 1e-3 * exact.grad.abs().max()


@torch.no_grad()
def test_published_weights_give_the_published_result(assets) -> None:
    golden = np.load(assets / "lut/golden/adaint_sRGB_a4739.npz")
    model = convert(assets / WEIGHTS)
    assert model.arguments == {"n_luts": 3, "size": 33}
    image = photo(assets / "lut/AdaInt/resources/a4739.jpg")
    weights, vertices = model.weights_and_vertices(image)
    lut = torch.einsum("bn,n...->b...", weights, model.luts)
    y, x = golden["crop_yx"]
    for ours, theirs in [
        (weights, "weights"),
        (vertices, "vertices"),
        (lut, "lut"),
        (model(image)[0, :, y : y + 256, x : x + 256], "out_crop"),
    ]:
        np.testing.assert_allclose(ours, golden[theirs], rtol=0, atol=1e-5, err_msg=theirs)


@pytest.mark.parametrize("code", backends.core.cpu if backends.core else [])
def test_compiled_gradients_are_the_published_ones(assets, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the image, the LUT and the vertices, 1e-4 of the largest. The colours lie inside (0, 1), where theirs and ours
    are one function."""
    golden = np.load(assets / "lut/golden/adaint_sRGB_a1629_grad.npz")
    model = convert(assets / WEIGHTS)
    with torch.no_grad():
        weights, vertices = model.weights_and_vertices(
            photo(assets / "lut/Image-Adaptive-3DLUT/demo_images/sRGB/a1629.jpg")
        )
        lut = torch.einsum("bn,n...->b...", weights, model.luts)
    image, grad = torch.from_numpy(golden["x"]), torch.from_numpy(golden["grad_out"])
    with backend(code):
        monkeypatch.setattr(ops.lut._op, "reference", None)  # only compiled code may run
        for prefix, places in (("ailut", vertices), ("uniform", None)):
            inputs = [t.clone().requires_grad_() for t in (image, lut, places) if t is not None]
            result = ops.lut_transform(*inputs[:2], vertices=None if places is None else inputs[2])
            gradients = torch.autograd.grad(result, inputs, grad)
            for ours, name in zip(gradients, ("img", "lut", "vertices"), strict=False):
                theirs = golden[f"{prefix}_grad_{name}"]
                assert np.abs(theirs).max() > 1
                assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max(), f"{prefix} {name}"


@pytest.mark.parametrize("arguments", [(0, 33), (3, 1), (3, 257)])
def test_a_wrong_constructor_argument_is_one_line(arguments) -> None:
    with pytest.raises(ValueError, match="got"):
        AdaInt(*arguments)


def test_sizes_follow_from_the_file(tmp_path) -> None:
    model = AdaInt(5, 12)
    state = model.state_dict()
    luts = state.pop("luts").flatten(1).T.clone()
    names = {"weights": "lut_generator.weights_generator", "intervals": "adaint.intervals_generator"}
    state = {key.replace(key.split(".")[0], names.get(key.split(".")[0], "backbone"), 1): t for key, t in state.items()}
    torch.save(state | {"lut_generator.basis_luts_bank.weight": luts}, tmp_path / "w.pth")
    again = convert(tmp_path / "w.pth")
    assert again.arguments == {"n_luts": 5, "size": 12} and torch.equal(again.luts, model.luts)
    for wrong in (luts[:-3], luts[:3], luts[:, :0], luts[:, 0], luts[None]):
        torch.save(state | {"lut_generator.basis_luts_bank.weight": wrong.clone()}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"w\.pth: expected .* of AdaInt, got"):
            convert(tmp_path / "w.pth")
