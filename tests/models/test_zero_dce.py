"""Curve estimation against the published networks written another way, and against their published results."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastenh import Enhancer, ops
from fastenh.models import ZeroDCE, ZeroDCEPlusPlus, load, save
from fastenh.models.system import Picture
from fastenh.models.zero_dce import HALO, convert, resampled
from fastenh.tiles import Place, Tile

SYSTEMS = [ZeroDCE, ZeroDCEPlusPlus]
FILES = {
    "zero-dce": "Zero-DCE/snapshots/Epoch99.pth",
    "zero-dce++": "Zero-DCE_extension/Epoch99.pth",
    "scl-lle": "SCL-LLE/SCL-LLE.pth",
}


def lively(system: type[ZeroDCE], map_scale: int = 1) -> ZeroDCE:
    """A model whose curves differ from pixel to pixel, in eval mode."""
    model = system(map_scale)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1.2 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1)
    return model.eval()


def by_formula(model: ZeroDCE, image: Tensor) -> tuple[Tensor, Tensor]:
    """Result and full-size maps in float64: the network as sums over shifted pictures, each map enlarged whole."""
    p = {name: parameter.detach().double() for name, parameter in model.state_dict().items()}
    s, size = model.map_scale, image.shape[-2:]

    def shifted(x: Tensor) -> Tensor:  # (B, C, 9, H, W)
        return F.unfold(x, 3, padding=1).view(*x.shape[:2], 9, *x.shape[2:])

    def layer(n: int, x: Tensor) -> Tensor:
        name = f"e_conv{n}"
        if f"{name}.weight" in p:
            weight = p[f"{name}.weight"].flatten(2)
            return torch.einsum("oct,bcthw->bohw", weight, shifted(x)) + p[f"{name}.bias"][:, None, None]
        weight, bias = p[f"{name}.depth_conv.weight"].flatten(1), p[f"{name}.depth_conv.bias"]
        depthwise = torch.einsum("ct,bcthw->bchw", weight, shifted(x)) + bias[:, None, None]
        weight, bias = p[f"{name}.point_conv.weight"].flatten(1), p[f"{name}.point_conv.bias"]
        return torch.einsum("oc,bchw->bohw", weight, depthwise) + bias[:, None, None]

    x = image.double()
    small = F.interpolate(x, [math.ceil(n / s) for n in size], mode="bilinear", align_corners=False)
    x1 = layer(1, small).relu()
    x2 = layer(2, x1).relu()
    x3 = layer(3, x2).relu()
    x4 = layer(4, x3).relu()
    x5 = layer(5, torch.cat([x3, x4], 1)).relu()
    x6 = layer(6, torch.cat([x2, x5], 1)).relu()
    maps = layer(7, torch.cat([x1, x6], 1)).tanh()
    large = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    for r in large.split(3, 1) if large.shape[1] == 24 else [large] * 8:
        x = x + r * (x**2 - x)
    return x, maps


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("map_scale", [1, 3, 12])
@pytest.mark.parametrize("shape", [(2, 3, 29, 43), (1, 3, 1, 1), (1, 3, 1, 14), (1, 3, 13, 5)])
def test_it_computes_the_formulas_of_the_papers(system, map_scale, shape):
    model = lively(system, map_scale)
    image = torch.rand(shape)
    with torch.no_grad():
        expected, maps = by_formula(model, image)
        torch.testing.assert_close(model.predict_curves(image), maps.float(), rtol=0, atol=1e-5)
        torch.testing.assert_close(model(image), expected.float(), rtol=0, atol=1e-5)
    if image[0].numel() > 3:
        assert maps.std() > 0.1


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("map_scale", [1, 2])
def test_tiles_make_the_whole(system, map_scale):
    model = lively(system, map_scale).double()  # in float32, how a convolution sums depends on its size
    image = torch.rand(2, 3, 61, 83, dtype=torch.float64)
    with torch.no_grad():
        whole = model(image)
        for tile in (1000, 40, 17) if map_scale == 1 else (11,):
            torch.testing.assert_close(model(image, tile=tile), whole, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("map_scale", [1, 3])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float16", 1.5e-3), ("bfloat16", 1.5e-2)])
def test_on_a_gpu_it_computes_the_same(system, map_scale, dtype, bound):
    """Without gradients, with them, and compiled. The bounds are twice what a CPU's mean error is in these types."""
    model, image = lively(system, map_scale), torch.rand(2, 3, 61, 83)
    with torch.no_grad():
        maps = by_formula(model, image)[1].float()
    model, image = (x.to("cuda", getattr(torch, dtype)) for x in (model, image))
    compiled = torch.compile(model.predict_curves)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        curves = {"with gradients": model.predict_curves(image).detach()}
        with torch.no_grad():
            curves |= {"without": model.predict_curves(image), "compiled": compiled(image)}
    for way, result in curves.items():
        assert (result.float().cpu() - maps).abs().mean() <= bound, way


@pytest.mark.parametrize("scale", [1, 2, 7])
def test_a_kernel_of_less_reach_sees_what_lies_between_pixels(scale):
    """As the kernel itself sees a bilinear enlargement."""
    x, kernel = torch.rand(2, 4, 6, 9, dtype=torch.float64), torch.randn(5, 4, 3, 3, dtype=torch.float64)
    larger = F.interpolate(x, (5 * scale + 1, 8 * scale + 1), mode="bilinear", align_corners=True)
    expected = F.conv2d(larger, kernel, padding=1)[..., ::scale, ::scale]
    result = F.conv2d(x, resampled(kernel, 1 / scale), padding=1)
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(result[inside], expected[inside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_reach_of_all_kernels_follows_the_map_scale(system):
    """The same network with its kernels resampled by hand; and at s = 1 nothing changes."""
    model, by_hand = lively(system, 4), lively(system, 4)
    by_hand.load_state_dict(model.state_dict())
    for parameter in by_hand.parameters():
        if parameter.shape[2:] == (3, 3):
            parameter.data = resampled(parameter.data, 1 / 4)
    image = torch.rand(2, 3, 37, 50)
    with torch.no_grad():
        plain = model(image)
        model.same_reach = True
        torch.testing.assert_close(model(image), by_hand(image), rtol=0, atol=1e-6)
        assert (model(image) - plain).abs().max() > 0.01
        model.map_scale = 1
        at_full_size = model(image)
        model.same_reach = False
        assert torch.equal(model(image), at_full_size)


@pytest.mark.parametrize("name", ["zero-dce", "scl-lle", "zero-dce++"])
def test_the_same_reach_halves_what_maps_at_an_eighth_are_off_by(assets, name):
    """Mean ΔE to maps of full size, on dark photos with hard edges."""
    data = pytest.importorskip("skimage.data", reason="scikit-image carries the photographs")
    from fastenh.losses import rgb_to_lab

    model = convert(assets / "lle" / FILES[name], name)
    off = {False: [], True: []}
    for photo in (data.astronaut()[:320, 100:420], data.coffee()[60:380, 150:470]):
        image = (torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255) ** 2.5
        with torch.no_grad():
            model.map_scale = 1
            true = rgb_to_lab(model(image))
            model.map_scale = 8
            for model.same_reach in off:
                off[model.same_reach].append((rgb_to_lab(model(image)) - true).norm(dim=1).mean().item())
    assert np.mean(off[False]) > 2
    assert np.mean(off[True]) < 0.5 * np.mean(off[False])


def test_the_halo_is_what_a_curve_depends_on():
    model = lively(ZeroDCE)
    image = torch.rand(1, 3, 40, 40, requires_grad=True)
    model.predict_curves(image)[0, :, 20, 20].sum().backward()
    rows, columns = image.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20 - HALO, 20 + HALO, 20 - HALO, 20 + HALO)


@pytest.mark.parametrize("map_scale", [1, 2])
def test_the_network_sees_a_tile_at_a_time(map_scale):
    model = lively(ZeroDCE, map_scale)
    seen = []
    model.e_conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    with torch.no_grad():
        model(torch.rand(1, 3, 1100, 20))
    assert len(seen) == (5 if map_scale == 1 else 3)
    assert max(max(size) for size in seen) <= 256 + 2 * HALO


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("map_scale", [1, 2])
def test_gradients_are_those_of_the_formula(system, map_scale):
    model = lively(system, map_scale).double()
    image = torch.rand(2, 3, 9, 11, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(image)
    parameters = list(model.parameters())
    found = torch.autograd.grad((model(image) * direction).sum(), [image, *parameters])

    def along(step: float) -> Tensor:
        """The same number a step away in a direction of all parameters and the image."""
        with torch.no_grad():
            moved = lively(system, map_scale).double()
            for ours, parameter, change in zip(moved.parameters(), parameters, changes[1:], strict=True):
                ours.copy_(parameter + step * change)
            return (by_formula(moved, image + step * changes[0])[0] * direction).sum()

    changes = [torch.randn_like(t) for t in (image, *parameters)]
    expected = (along(1e-6) - along(-1e-6)) / 2e-6
    along_found = sum((g * change).sum() for g, change in zip(found, changes, strict=True))
    torch.testing.assert_close(along_found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_training_and_inference_compute_the_same(system):
    model = lively(system, 3)
    image = torch.rand(2, 3, 30, 41)
    with_gradient = model(image)
    assert with_gradient.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(model(image), with_gradient.detach())
        torch.testing.assert_close(with_gradient.detach(), ops.curve_iterate(image, model.predict_curves(image)))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_batch_is_its_images_one_by_one(system):
    model = lively(system, 2).double()
    image = torch.rand(3, 3, 21, 34, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), torch.cat([model(one[None]) for one in image]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("map_scale", [1, 4])
def test_an_image_of_any_dtype_and_stride_comes_back_as_such(system, map_scale):
    model = lively(system, map_scale)
    bytes_in = torch.randint(0, 256, (1, 20, 31, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    real = bytes_in.float() / 255
    with torch.no_grad():
        expected = model(real)
        assert model(bytes_in).dtype == torch.uint8
        torch.testing.assert_close(model(bytes_in), (expected * 255).round().to(torch.uint8), rtol=0, atol=1)
        half = model.half()(real.half())
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("system", SYSTEMS)
def test_results_stay_in_range_and_an_untrained_model_changes_little(system):
    image = torch.rand(1, 3, 24, 36)
    with torch.no_grad():
        result = lively(system)(image)
        assert result.min() >= 0 and result.max() <= 1
        assert (result - image).abs().max() > 0.1
        torch.testing.assert_close(system()(image), image, rtol=0, atol=0.05)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_model_keeps_the_map_scale_that_was_set(system, assert_same_model, tmp_path):
    model = lively(system)
    model.map_scale = 5
    model.same_reach = True
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.map_scale == 5 and again.same_reach
    assert_same_model(again, model, torch.rand(1, 3, 20, 30))


def test_bad_arguments_are_one_line():
    with pytest.raises(ValueError, match="ZeroDCEPlusPlus: map_scale: expected 1 to 1024; got 0"):
        ZeroDCEPlusPlus(0)
    with pytest.raises(TypeError, match="map_scale: expected an int; got float"):
        ZeroDCE(1.5)
    with pytest.raises(TypeError, match="ZeroDCE: same_reach: expected a bool; got str"):
        ZeroDCE(8, "yes")
    with pytest.raises(ValueError, match=r"ZeroDCE: image: expected shape \(B, 3, H, W\)"):
        ZeroDCE()(torch.rand(1, 4, 8, 8))
    with pytest.raises(ValueError, match="tile: expected 1 to"), torch.no_grad():
        ZeroDCE()(torch.rand(1, 3, 8, 8), tile=0)


def test_enhancer_gives_bytes_for_bytes():
    model = lively(ZeroDCEPlusPlus, 12)
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    with torch.no_grad():
        expected = by_formula(model, image[None] / 255)[0][0]
    enhancer = Enhancer(model, "cpu")
    for strength in (1.0, 0.5):
        result = enhancer(image, strength)
        blended = torch.lerp(image / 255, expected.float(), strength)
        torch.testing.assert_close(result.float(), (blended * 255).round(), rtol=0, atol=1)
    assert (enhancer(image).float() - image).abs().max() > 5


# ---- checkpoints as published


def golden_image(assets, name: str, multiple: int = 1) -> Tensor:
    pixels = np.asarray(Image.open(assets / f"lle/golden/{name}_input.png"))
    height, width = (n // multiple * multiple for n in pixels.shape[:2])
    return torch.from_numpy(pixels[:height, :width] / 255.0).float().permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", ["zero-dce", "scl-lle", "zero-dce++"])
@pytest.mark.parametrize("photo", ["lime4", "lime6"])
def test_published_weights_give_the_published_result(assets, name, photo):
    golden = {"zero-dce": "zerodce", "scl-lle": "scllle", "zero-dce++": "zerodcepp_s12"}[name]
    image = golden_image(assets, photo, multiple=12 if name == "zero-dce++" else 1)
    expected = np.load(assets / f"lle/golden/{photo}_{golden}.npy")
    model = convert(assets / "lle" / FILES[name], name)
    with torch.no_grad():
        np.testing.assert_allclose(model(image).numpy().reshape(expected.shape), expected, rtol=0, atol=1e-5)


def test_published_curves_and_half_of_the_iterations(assets):
    image = golden_image(assets, "lime6")
    expected = np.load(assets / "lle/golden/lime6_zerodce_iter4.npy")
    with torch.no_grad():
        curves = convert(assets / "lle" / FILES["zero-dce"], "zero-dce").predict_curves(image)
        half = ops.curve_iterate(image, curves[:, :12], 4)
        np.testing.assert_allclose(half.numpy().reshape(expected.shape), expected, rtol=0, atol=1e-5)
        plus = convert(assets / "lle" / FILES["zero-dce++"], "zero-dce++")
        expected = np.load(assets / "lle/golden/lime6_zerodcepp_s12_curve3_lowres.npy")
        curves = plus.predict_curves(golden_image(assets, "lime6", multiple=12))
    np.testing.assert_allclose(curves.numpy().reshape(expected.shape), expected, rtol=0, atol=1e-5)


def test_published_weights_take_any_size_without_cropping(assets):
    model = convert(assets / "lle" / FILES["zero-dce++"], "zero-dce++")
    image = golden_image(assets, "lime6")
    with torch.no_grad():
        result, cropped = model(image), model(golden_image(assets, "lime6", multiple=12))
    assert result.shape == image.shape
    assert (result[..., : cropped.shape[2], : cropped.shape[3]] - cropped).abs().mean() < 0.01
    assert result[..., -2:, :].mean() > 1.5 * image[..., -2:, :].mean()


def test_numbers_too_small_to_matter_become_zero(tmp_path):
    state = lively(ZeroDCE).state_dict()
    state["e_conv6.weight"][3] = 1e-40
    state["e_conv6.weight"][4] = -1e-25
    torch.save(state, tmp_path / "w.pth")
    weight = convert(tmp_path / "w.pth", "zero-dce").e_conv6.weight
    assert not weight[3:5].any() and torch.equal(weight[5:], state["e_conv6.weight"][5:])


@pytest.mark.parametrize("system", [ZeroDCE, ZeroDCEPlusPlus])
@pytest.mark.parametrize("map_scale", [1, 4, 12])
@torch.no_grad()
def test_strips_and_tiles_are_the_whole(system: type[ZeroDCE], map_scale: int) -> None:
    """Maps at a reduced size are sampled where a part lies: in full rows by the op, elsewhere beforehand."""
    torch.manual_seed(0)
    model = system(map_scale)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = torch.rand(2, 3, 75, 53)
    whole, picture = model(image), Picture(image)
    local = model.prepare(picture, ()).local
    for rows, columns in (((0, 31), (0, 53)), ((31, 75), (0, 53)), ((17, 60), (9, 53)), ((40, 75), (3, 21))):
        read = Tile(*rows, *columns).grown(model.reach, 75, 53)
        part = model.render(picture.crop(read), (), local, Place(read.top, read.left, 75, 53))
        inner = part[..., *Tile(*rows, *columns).within(read)]
        torch.testing.assert_close(inner, whole[..., slice(*rows), slice(*columns)], rtol=0, atol=1e-6)
