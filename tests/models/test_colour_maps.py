"""What holds of every model that is one colour map for the whole of a picture, whatever it looks it up in."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh import Enhancer, backend
from fastenh.models import AdaInt, CSRNet, ImageAdaptiveLUT, SepLUT, adaint, csrnet, load, save, seplut
from fastenh.models.system import Picture, System
from fastenh.tiles import Place

SYSTEMS = ["lut3d", "adaint", "seplut", "csrnet"]
CONVERT = {"adaint": adaint.convert, "seplut": seplut.convert, "csrnet": csrnet.convert}


def lively(name: str) -> nn.Module:
    """A model that maps different pictures differently, in eval mode."""
    if name == "csrnet":
        model = CSRNet().eval()
        for layer in (model.cond_scale1, model.cond_scale2, model.cond_scale3, model.cond_shift3):
            nn.init.normal_(layer.weight, std=2.0)
        return model
    model = {"lut3d": lambda: ImageAdaptiveLUT(3, 5), "adaint": lambda: AdaInt(3, 6), "seplut": lambda: SepLUT(3, 5, 7)}
    model = model[name]().eval()
    model.luts.data.add_(torch.randn_like(model.luts), alpha=0.05)
    for layer in ("weights", "intervals", "curves"):
        if hasattr(model, layer):
            nn.init.normal_(getattr(model, layer).weight, std=0.1)
    return model


def pictures(*shape: int) -> Tensor:
    """In [0, 1], each with a tint of its own."""
    tints = F.interpolate(torch.rand(shape[0], 3, 2, 2), shape[2:], mode="bilinear")
    return (tints + 0.2 * torch.randn(shape)).clamp(0, 1)


@pytest.fixture(params=SYSTEMS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return lively(request.param)


def rendered(model: System, image: Tensor, params: tuple[Tensor, ...], out: Tensor | None = None) -> Tensor:
    return model.render(image, params, None, Place(0, 0, *image.shape[2:]), out)


@pytest.mark.parametrize("size", [(33, 50), (64, 7), (5, 5), (131, 67)])
@torch.no_grad()
def test_a_batch_is_each_picture_on_its_own(model: System, size: tuple[int, int]) -> None:
    image = pictures(3, 3, *size)
    result = model(image)
    torch.testing.assert_close(result, torch.cat([model(one) for one in image.split(1)]), rtol=0, atol=1e-5)
    others = rendered(model, image, model.predict(Picture(image[[1, 2, 0]])))
    assert (others - result).abs().amax((1, 2, 3)).min() > 1e-3  # the params do differ


@torch.no_grad()
def test_any_strides_do(model: System) -> None:
    image = pictures(2, 3, 40, 52)
    crop = pictures(2, 3, 44, 60)[:, :, 2:42, 3:55].copy_(image)
    for same in (
        image.contiguous(memory_format=torch.channels_last),
        image.transpose(2, 3).contiguous().transpose(2, 3),
        crop,
        image.flip(3).contiguous().flip(3),
    ):
        torch.testing.assert_close(model(same), model(image), rtol=0, atol=1e-6)
        assert torch.equal(same, image)  # nothing is written where the picture is
    alike = image[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(model(alike), model(image[:1]).expand(3, -1, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_rounded_once(model: System, dtype: torch.dtype) -> None:
    image = pictures(2, 3, 41, 52).to(dtype)
    result, exact = model(image), model(image.float())
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(("dtype", "full"), [(torch.uint8, 255), (torch.uint16, 65535)])
@torch.no_grad()
def test_integers_are_full_scale_and_rounded_once(model: System, dtype: torch.dtype, full: int) -> None:
    image = (pictures(2, 3, 41, 52) * full).round()
    result, exact = model(image.to(dtype)), model(image / full)
    assert result.dtype == dtype
    assert (result.float() - full * exact.clamp(0, 1)).abs().max() <= 0.5 + 2e-6 * full


@torch.no_grad()
def test_params_render_strips_and_single_colours(model: System) -> None:
    image = pictures(2, 3, 45, 52)
    result, params = model(image), model.predict(Picture(image))
    assert model.reach == 0 and model.colour_map and all(len(part) == 2 for part in params)
    strips = torch.cat([rendered(model, strip, params) for strip in image.split(11, dim=2)], 2)
    torch.testing.assert_close(strips, result, rtol=0, atol=1e-6)
    torch.testing.assert_close(rendered(model, image[:, :, :1, :1], params), result[:, :, :1, :1], rtol=0, atol=1e-6)
    torch.testing.assert_close(rendered(model, image.double(), params).float(), result, rtol=0, atol=1e-5)
    out = torch.full_like(image, torch.nan)
    assert rendered(model, image, params, out) is out
    torch.testing.assert_close(out, result, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"^\w+: .*expected .*got"):
        rendered(model, image[:1], params)


@torch.no_grad()
def test_bands_do_not_show(model: System, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures(2, 3, 53, 31)
    whole = model(image), model((image * 255).byte())
    monkeypatch.setattr(csrnet, "CPU_PIXELS", 100)
    monkeypatch.setattr(csrnet, "CPU_BAND", 1000)
    torch.testing.assert_close(model(image), whole[0], rtol=0, atol=1e-5)
    assert (model((image * 255).byte()).int() - whole[1].int()).abs().max() <= 1


def test_training_computes_the_same_and_reaches_every_parameter(model: System) -> None:
    image = pictures(2, 3, 40, 50).requires_grad_()
    result = model(image)
    with torch.no_grad():
        torch.testing.assert_close(result.detach(), model(image), rtol=0, atol=2e-6)
    gradients = torch.autograd.grad(result.square().mean(), [image, *model.parameters()])
    assert all(g.isfinite().all() and g.any() for g in gradients)


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_are_those_of_the_function(name: str) -> None:
    model = lively(name).double()
    image = pictures(2, 3, 6, 5).double().mul_(0.9).add_(0.05).requires_grad_()
    # gradcheck moves what it is given where it lies, so that parameters need not be passed on. All are moved at once;
    # of the networks' many kinks some are always near.
    assert torch.autograd.gradcheck(lambda *_: model(image), (image, *model.parameters()), fast_mode=True, atol=1e-3)


def test_a_saved_model_comes_back(model: System, assert_same_model, tmp_path) -> None:
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.arguments == model.arguments and not again.training
    assert_same_model(again, model, pictures(2, 3, 20, 30))


def test_photos_are_retouched(model: System) -> None:
    photo = (pictures(1, 3, 60, 70)[0].permute(1, 2, 0) * 255).byte().numpy()
    result = Enhancer(model)(photo)
    with torch.no_grad():
        exact = model(torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert np.abs(result - 255 * exact.clamp(0, 1).numpy()).max() <= 0.502


@pytest.mark.parametrize(
    "image", [torch.rand(3, 8, 8), torch.rand(1, 4, 8, 8), torch.rand(1, 3, 0, 8), torch.zeros(1, 3, 8, 8).int()]
)
def test_a_wrong_image_is_one_line(model: System, image: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^\w+: image: expected .*got") as error:
        model(image)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_the_plain_reference_computes_the_same(model: System) -> None:
    image = pictures(2, 3, 30, 41)
    fast = model(image)
    with backend("reference"):
        torch.testing.assert_close(fast, model(image), rtol=0, atol=1e-5)


def published(name: str) -> dict[str, Tensor]:
    """The tensors of a lively model as its authors name them."""
    torch.manual_seed(1)
    state = lively(name).state_dict()
    if name == "csrnet":
        return state
    module = {"adaint": adaint, "seplut": seplut}[name]
    names = {ours: theirs for theirs, ours in module.PUBLISHED_LAYERS.items()}
    luts = state.pop("luts").flatten(1).T.clone()
    renamed = {f"{names.get(layer, layer)}.{kind}": tensor
               for key, tensor in state.items() for layer, kind in [key.rsplit(".", 1)]}  # fmt: skip
    return renamed | {module.BANK: luts}


@pytest.mark.parametrize("beside_notes", [True, False])
@pytest.mark.parametrize("name", CONVERT)
def test_published_names_convert(name: str, beside_notes: bool, assert_same_model, tmp_path) -> None:
    state = published(name)
    torch.save({"meta": {"epoch": 3}, "state_dict": state} if beside_notes else state, tmp_path / "w.pth")
    model = CONVERT[name](tmp_path / "w.pth")
    assert not model.training and "w.pth" in model.about["note"] and model.about["licence"]
    image = pictures(2, 3, 30, 41)
    torch.manual_seed(1)
    assert_same_model(model, lively(name), image)


OTHERS = [*CONVERT, "lut3d", "list", "text", "nan", "ints", "expanded", "more", "missing"]


@pytest.mark.parametrize(("name", "theirs"), [(a, b) for a in CONVERT for b in OTHERS if a != b])
def test_other_files_are_refused_in_one_line(name: str, theirs: str, tmp_path) -> None:
    state = published(name)
    key = next(iter(state))
    content = {
        "list": [1, 2],
        "lut3d": lively("lut3d").state_dict(),
        "nan": state | {key: torch.full_like(state[key], torch.nan)},
        "expanded": state | {key: torch.zeros(1).expand(state[key].shape)},  # one number that claims to be all of them
        "ints": state | {key: state[key].long()},
        "more": state | {"another.weight": torch.zeros(2)},
        "text": None,
        "missing": None,
    }.get(theirs) or (published(theirs) if theirs in CONVERT else None)
    if content:
        torch.save(content, tmp_path / "w.pth")
    elif theirs == "text":
        (tmp_path / "w.pth").write_text("hello")
    with pytest.raises((ValueError, FileNotFoundError), match=r"(expected .*got)|not a PyTorch|no such file") as error:
        CONVERT[name](tmp_path / "w.pth")
    assert "\n" not in str(error.value) and str(tmp_path / "w.pth") in str(error.value)


def test_only_a_model_that_is_one_table_blends_tables() -> None:
    """A blend of params must be the blend of the results, which for other systems it is not."""
    for name in SYSTEMS:
        model, image = lively(name), pictures(2, 3, 20, 24)
        blended = model.blend(model.predict(Picture(image)), 0.3)
        assert (blended is not None) == (name == "lut3d")
        if blended is not None:
            with torch.no_grad():
                expected = image.lerp(model(image), 0.3)
                torch.testing.assert_close(rendered(model, image, blended), expected, rtol=0, atol=1e-6)
