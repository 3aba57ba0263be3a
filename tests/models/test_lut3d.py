"""The image-adaptive 3D LUT against the layout its paper's checkpoints have, and against one of them."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastenh.models.lut3d import CLASSIFIERS, ImageAdaptiveLUT, convert, identity_lut
from fastenh.models.system import Picture


def published_classifier(variant: str, n_luts: int) -> nn.Sequential:
    """The published networks, layer by layer; `model.N` in a checkpoint is the N-th layer here."""

    def block(a: int, b: int, norm: bool) -> list[nn.Module]:
        conv = [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        return [*conv, nn.InstanceNorm2d(b, affine=True)] if norm else conv

    deeper = variant == "paired"
    layers = [
        nn.Upsample(size=(256, 256), mode="bilinear"),
        *block(3, 16, True),
        *block(16, 32, deeper),
        *block(32, 64, deeper),
        *block(64, 128, deeper),
        *block(128, 128, False),
        *([nn.Dropout(0.5)] if deeper else []),
        nn.Conv2d(128, n_luts, 8),
    ]
    return nn.Sequential(*layers).eval()


def write_published(folder, variant="paired", n_luts=3, size=5):
    torch.manual_seed(0)
    network = published_classifier(variant, n_luts)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    luts = torch.randn(n_luts, 3, size, size, size)
    torch.save({str(n): {"LUT": lut} for n, lut in reversed(list(enumerate(luts)))}, folder / "LUTs.pth")
    torch.save({f"model.{key}": value for key, value in network.state_dict().items()}, folder / "classifier.pth")
    return network, luts


@pytest.mark.parametrize(("variant", "n_luts"), [("paired", 3), ("unpaired", 3), ("paired", 12)])
def test_converted_checkpoints_compute_what_the_published_layers_compute(tmp_path, variant, n_luts):
    network, luts = write_published(tmp_path, variant, n_luts)
    model = convert(tmp_path / "LUTs.pth", tmp_path / "classifier.pth")
    assert not model.training
    assert model.arguments == {"n_luts": n_luts, "size": 5, "classifier": variant}
    image = torch.rand(2, 3, 70, 45)
    with torch.no_grad():
        weights = network(image).flatten(1)
        torch.testing.assert_close(model.predict_weights(image), weights)
        fused = torch.einsum("bn,n...->b...", weights, luts)
        torch.testing.assert_close(model.fused_lut(image), fused)
        grid = (image * 2 - 1).permute(0, 2, 3, 1)[:, None]
        torch.testing.assert_close(model(image), F.grid_sample(fused, grid, align_corners=True)[:, :, 0])


def test_published_weights_give_the_published_result(assets):
    folder = assets / "lut/Image-Adaptive-3DLUT"
    golden = np.load(assets / "lut/golden/zeng_sRGB_a1629.npz")
    weights = folder / "pretrained_models/sRGB"
    model = convert(weights / "LUTs.pth", weights / "classifier.pth")
    photo = np.asarray(Image.open(folder / "demo_images/sRGB/a1629.jpg"), dtype=np.float32) / 255
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    with torch.no_grad():
        y, x = golden["crop_yx"]
        crop = model(image)[0, :, y : y + 256, x : x + 256].numpy()
        np.testing.assert_allclose(model.predict_weights(image)[0], golden["weights"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(model.fused_lut(image)[0], golden["lut"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(crop, golden["out_crop"], rtol=0, atol=1e-5)


def test_the_xyz_weights_convert_too(assets):
    folder = assets / "lut/Image-Adaptive-3DLUT/pretrained_models/XYZ"
    assert convert(folder / "LUTs.pth", folder / "classifier.pth").arguments["classifier"] == "paired"


def damage(folder, which, change):
    content = torch.load(folder / which, weights_only=True)
    torch.save(change(content) or content, folder / which)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("classifier.pth", lambda c: c.__delitem__("model.4.bias"), r"expected model\.4\.bias \(32,\).*no such"),
        ("classifier.pth", lambda c: c.update({"model.16.weight": torch.zeros(4, 128, 8, 8)}), r"got \(4, 128, 8, 8\)"),
        ("classifier.pth", lambda c: c.update({"model.99.bias": torch.zeros(1)}), r"got also model\.99\.bias"),
        ("classifier.pth", lambda c: {"weights": [1, 2]}, "no such tensor"),
        ("classifier.pth", lambda c: [1, 2], "expected a dict of tensors, got list"),
        ("LUTs.pth", lambda c: c.__delitem__("1"), "expected LUTs"),
        ("LUTs.pth", lambda c: c["2"].update(LUT=torch.zeros(3, 4, 4, 4)), "expected LUTs"),
        ("LUTs.pth", lambda c: c["0"].update(LUT=torch.zeros(3, 5, 5, 4)), "expected LUTs"),
        ("LUTs.pth", lambda c: c["0"].update(LUT=[1.0]), "expected LUTs"),
        ("LUTs.pth", lambda c: {}.fromkeys(c), "expected LUTs"),
    ],
)
def test_a_checkpoint_of_another_layout_is_named_in_one_line(tmp_path, which, change, message):
    write_published(tmp_path)
    damage(tmp_path, which, change)
    with pytest.raises(ValueError, match=message) as error:
        convert(tmp_path / "LUTs.pth", tmp_path / "classifier.pth")
    assert str(error.value).startswith(str(tmp_path / which))
    assert "\n" not in str(error.value)


def test_files_swapped_missing_cut_short_or_hostile_are_one_line(tmp_path):
    write_published(tmp_path)
    luts, classifier = tmp_path / "LUTs.pth", tmp_path / "classifier.pth"
    with pytest.raises(ValueError, match="expected LUTs"):
        convert(classifier, luts)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere\.pth"):
        convert(tmp_path / "nowhere.pth", classifier)
    ran = tmp_path / "ran"
    hostile = type("Hostile", (), {"__reduce__": lambda self: (open, (str(ran), "w"))})
    contents = [b"", b"not a checkpoint", luts.read_bytes()[:-400], pickle.dumps(hostile(), 2)]
    for content in contents:
        luts.write_bytes(content)
        with pytest.raises(ValueError, match="not a PyTorch checkpoint") as error:
            convert(luts, classifier)
        assert "\n" not in str(error.value)
    assert not ran.exists()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_any_variant_trains_and_starts_near_the_identity(classifier):
    model = ImageAdaptiveLUT(4, 9, classifier)
    image = torch.rand(2, 3, 40, 50)
    torch.testing.assert_close(model.luts[0], identity_lut(9))
    model(image).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model.luts.grad.abs().amax((1, 2, 3, 4)).min() > 0
    model.eval()
    one_by_one = torch.cat([model(image[:1]), model(image[1:])])
    torch.testing.assert_close(model(image), one_by_one)
    assert model(image.half()).dtype == torch.float16
    torch.testing.assert_close(model(image.half()).float(), model(image), rtol=0, atol=5e-3)


def test_the_statistics_do_not_depend_on_where_a_colour_is():
    model = ImageAdaptiveLUT(4, 9, "statistics").eval()
    image = torch.rand(1, 3, 64, 64)
    shuffled = image.flatten(2)[:, :, torch.randperm(64 * 64)].view_as(image)
    torch.testing.assert_close(model.predict_weights(shuffled), model.predict_weights(image))
    statistics = model.classifier.statistics(model.classifier.pick(torch.randn(2, 3, 9, 7) * 100))
    assert statistics.abs().max() <= 1 + 1e-6  # means of ones, among others


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(3, 8, 8),
        torch.rand(1, 4, 8, 8),
        torch.rand(0, 3, 8, 8),
        torch.rand(1, 3, 0, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.int32),
    ],
)
def test_a_wrong_image_is_one_line(image):
    with pytest.raises((ValueError, TypeError), match=r"^ImageAdaptiveLUT: image: expected .*got"):
        ImageAdaptiveLUT(2, 5)(image)


def test_a_broken_pixel_does_not_break_the_photo():
    model = ImageAdaptiveLUT(2, 5, "statistics").eval()
    image = torch.rand(1, 3, 40, 40)
    image[0, 1, 7, 9] = float("nan")
    result = model(image).isnan()
    assert result[..., 7, 9].all()
    assert result.sum() == 3


@pytest.mark.parametrize(("dtype", "full"), [(torch.uint8, 255), (torch.uint16, 65535)])
@pytest.mark.parametrize("classifier", ["paired", "unpaired", "statistics"])
def test_integers_are_full_scale(classifier, dtype, full):
    model = ImageAdaptiveLUT(2, 5, classifier).eval()
    image = (torch.rand(2, 3, 80, 130) * full).round()
    torch.testing.assert_close(model.predict_weights(image.to(dtype)), model.predict_weights(image / full))


@pytest.mark.parametrize("arguments", [(0, 33), (3, 1), (3, 33, "resnet")])
def test_a_wrong_constructor_argument_is_one_line(arguments):
    with pytest.raises(ValueError, match="got"):
        ImageAdaptiveLUT(*arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.uint16])
@pytest.mark.parametrize("shape", [(1, 3, 401, 77), (2, 3, 9, 1000), (1, 3, 1, 1), (1, 3, 64, 64)])
def test_thumbnail_is_interpolate(shape, dtype):
    full = {torch.uint8: 255, torch.uint16: 65535}.get(dtype)
    values = torch.rand(shape, dtype=torch.float64)
    image = values.to(dtype) if full is None else (values * full).round().to(dtype)
    exact = image.double() if full is None else image.double() / full
    expected = F.interpolate(exact, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(Picture(image).thumbnail(64).double(), expected, rtol=0, atol=2e-5)
    if full is None and dtype == torch.float64:
        assert torch.autograd.gradcheck(
            lambda x: Picture(x).thumbnail(5), torch.rand(1, 3, 4, 13).double().requires_grad_()
        )
