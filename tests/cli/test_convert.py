"""`fastenh convert`: published weights in, one safe file out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastenh import models
from fastenh.cli import app
from fastenh.models import CSRNet, ZeroDCE, ZeroDCEPlusPlus
from fastenh.models.lut3d import PUBLISHED_LAYERS, ImageAdaptiveLUT


def convert(*arguments, system: str = "lut3d") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", system, *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.fixture
def published(tmp_path) -> tuple[Path, Path, ImageAdaptiveLUT]:
    """A model of ours, and the same under the names of the published pair of files."""
    torch.manual_seed(0)
    model = ImageAdaptiveLUT(3, 5, "unpaired")
    model.luts.data.normal_()
    torch.save({str(n): {"LUT": lut.clone()} for n, lut in enumerate(model.luts.detach())}, tmp_path / "LUTs.pth")
    state = model.classifier.state_dict()
    layers = {
        f"model.{n}.{kind}": state[f"{ours}.{kind}"]
        for n, ours in PUBLISHED_LAYERS["unpaired"].items()
        for kind in ("weight", "bias")
    }
    torch.save(layers, tmp_path / "classifier.pth")
    return tmp_path / "LUTs.pth", tmp_path / "classifier.pth", model.eval()


def test_converts_to_a_file_that_loads(published, assert_same_model, tmp_path):
    luts, classifier, model = published
    out = tmp_path / "m.safetensors"
    assert convert(luts, classifier, "-o", out) == (0, f"Wrote {out}\n")
    assert_same_model(models.load(out), model, torch.rand(1, 3, 20, 30))


def test_overwrites_only_when_told(published, tmp_path):
    luts, classifier, _ = published
    out = tmp_path / "m.safetensors"
    out.write_bytes(b"old")
    code, output = convert(luts, classifier, "-o", out)
    assert code == 2 and "exists, and" in output and out.read_bytes() == b"old"
    assert convert(luts, classifier, "-o", out, "--overwrite")[0] == 0
    assert models.load(out).arguments["classifier"] == "unpaired"


def test_what_is_no_pair_of_weights_is_one_line(published, tmp_path):
    luts, classifier, _ = published
    (tmp_path / "text.pth").write_text("hello")
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "m.safetensors"
    for arguments, expected in [
        ((luts, classifier, "-o", tmp_path / "m.pth"), "-o: expected a name that ends in .safetensors, got"),
        ((tmp_path / "missing.pth", classifier, "-o", out), "missing.pth"),
        ((tmp_path / "text.pth", classifier, "-o", out), "text.pth"),
        ((classifier, luts, "-o", out), "classifier.pth: expected LUTs"),
        ((luts, luts, "-o", out), "LUTs.pth: expected model."),
        ((luts, classifier, "-o", tmp_path / "no" / "m.safetensors"), "No such file or directory"),
    ]:
        code, output = convert(*arguments)
        assert code == 2 and len(output.splitlines()) == 1 and expected in output, output
    assert sorted(tmp_path.iterdir()) == before


def test_published_weights_retouch_a_photo_as_published(assets, tmp_path):
    """From the published files to a finished photo, by commands alone, against the published code's own result."""
    folder = assets / "lut" / "Image-Adaptive-3DLUT"
    weights, out = tmp_path / "zeng.safetensors", tmp_path / "a.png"
    published = folder / "pretrained_models" / "sRGB"
    assert convert(published / "LUTs.pth", published / "classifier.pth", "-o", weights)[0] == 0
    photo = folder / "demo_images" / "sRGB" / "a1629.jpg"
    result = CliRunner().invoke(app, ["enhance", str(photo), "-o", str(out), "--weights", str(weights)])
    assert result.exit_code == 0, result.output

    golden = np.load(assets / "lut" / "golden" / "zeng_sRGB_a1629.npz")
    y, x = golden["crop_yx"]
    ours = np.asarray(Image.open(out))[y : y + 256, x : x + 256]
    theirs = np.rint(255 * golden["out_crop"].clip(0, 1)).transpose(1, 2, 0)
    difference = np.abs(ours - theirs)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(
    ("name", "system", "map_scale", "licence"),
    [
        ("zero-dce", ZeroDCE, 1, "CC BY-NC 4.0"),
        ("zero-dce++", ZeroDCEPlusPlus, 12, "CC BY-NC 4.0"),
        ("scl-lle", ZeroDCE, 1, "none given"),
    ],
)
def test_curve_networks_convert_to_files_that_say_their_licence(
    name, system, map_scale, licence, assert_same_model, tmp_path
):
    torch.manual_seed(0)
    model = system().eval()
    torch.save(model.state_dict(), tmp_path / "Epoch99.pth")
    out = tmp_path / "m.safetensors"
    assert convert(tmp_path / "Epoch99.pth", "-o", out, system=name) == (0, f"Wrote {out}\n")
    again = models.load(out)
    assert again.map_scale == map_scale
    assert again.about["licence"].startswith(licence) and name in again.about["note"]
    assert_same_model(again, model, torch.rand(1, 3, 20, 30))


def test_what_is_no_curve_network_is_one_line(tmp_path):
    state = ZeroDCE().state_dict()
    plus = ZeroDCEPlusPlus().state_dict()
    torch.save(state, tmp_path / "dce.pth")
    torch.save(plus, tmp_path / "plus.pth")
    torch.save(state | {"e_conv8.weight": torch.zeros(2)}, tmp_path / "more.pth")
    torch.save(state | {"e_conv3.bias": torch.zeros(31)}, tmp_path / "shape.pth")
    torch.save(state | {"e_conv3.bias": torch.full((32,), float("nan"))}, tmp_path / "nan.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    before = sorted(tmp_path.iterdir())
    for name, file, expected in [
        ("zero-dce", "plus.pth", "plus.pth: expected e_conv1.weight (32, 3, 3, 3) of zero-dce, got no such tensor"),
        ("scl-lle", "plus.pth", "of scl-lle, got no such tensor"),
        ("zero-dce++", "dce.pth", "expected e_conv1.depth_conv.weight (3, 1, 3, 3) of zero-dce++, got no such tensor"),
        ("zero-dce", "more.pth", "expected zero-dce, got also e_conv8.weight"),
        ("zero-dce", "shape.pth", "expected e_conv3.bias (32,) of zero-dce, got (31,)"),
        ("zero-dce", "nan.pth", "expected finite floats in e_conv3.bias"),
        ("zero-dce", "list.pth", "expected a dict of tensors, got list"),
        ("zero-dce", "text.pth", "not a PyTorch checkpoint"),
        ("zero-dce", "missing.pth", "no such file"),
    ]:
        code, output = convert(tmp_path / file, "-o", tmp_path / "m.safetensors", system=name)
        assert code == 2 and len(output.splitlines()) == 1 and expected in output, output
    assert sorted(tmp_path.iterdir()) == before


def test_published_curves_brighten_a_photo_as_published(assets, tmp_path):
    folder = assets / "lle"
    weights, out = tmp_path / "m.safetensors", tmp_path / "a.png"
    assert convert(folder / "Zero-DCE/snapshots/Epoch99.pth", "-o", weights, system="zero-dce")[0] == 0
    photo = folder / "golden/lime6_input.png"
    result = CliRunner().invoke(app, ["enhance", str(photo), "-o", str(out), "--weights", str(weights)])
    assert result.exit_code == 0, result.output
    theirs = np.rint(255 * np.load(folder / "golden/lime6_zerodce.npy").reshape(3, 326, 326).clip(0, 1))
    difference = np.abs(np.asarray(Image.open(out)) - theirs.transpose(1, 2, 0))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_a_network_for_colours_converts_to_a_file_that_says_its_licence(assert_same_model, tmp_path):
    torch.manual_seed(0)
    model = CSRNet().eval()
    torch.save(model.state_dict(), tmp_path / "csrnet.pth")
    out = tmp_path / "m.safetensors"
    assert convert(tmp_path / "csrnet.pth", "-o", out, system="csrnet") == (0, f"Wrote {out}\n")
    again = models.load(out)
    assert again.about["licence"].startswith("none given") and "CSRNet" in again.about["note"]
    assert_same_model(again, model, torch.rand(1, 3, 20, 30))


def test_what_is_no_colour_map_is_one_line(tmp_path):
    torch.save(CSRNet().state_dict(), tmp_path / "csrnet.pth")
    torch.save(ZeroDCE().state_dict(), tmp_path / "dce.pth")
    before = sorted(tmp_path.iterdir())
    for system, file, expected in [
        (
            "adaint",
            "csrnet.pth",
            "csrnet.pth: expected backbone.0.0.weight (16, 3, 3, 3) of AdaInt, got no such tensor",
        ),
        ("seplut", "csrnet.pth", "csrnet.pth: expected backbone.0.0.weight (8, 3, 3, 3) of SepLUT, got no such tensor"),
        ("csrnet", "dce.pth", "dce.pth: expected cond_net.conv1.weight (32, 3, 7, 7) of CSRNet, got no such tensor"),
        ("csrnet", "missing.pth", "no such file"),
    ]:
        code, output = convert(tmp_path / file, "-o", tmp_path / "m.safetensors", system=system)
        assert code == 2 and len(output.splitlines()) == 1 and expected in output, output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("system", "file", "photo", "golden", "licence"),
    [
        ("adaint", "AdaInt/pretrained/AiLUT-FiveK-sRGB.pth", "AdaInt/resources/a4739.jpg", "adaint_sRGB_a4739",
         "Apache-2.0"),
        ("seplut", "SepLUT/pretrained/SepLUT-FiveK-sRGB-M8#3D17#1D17.pth", "AdaInt/resources/a4739.jpg",
         "seplut_sRGB_M8_17_a4739", "Apache-2.0"),
        ("csrnet", "CSRNet/csrnet.pth", "LUTwithBGrid/a0634.jpg", "csrnet_a0634", "none given"),
    ],
)  # fmt: skip
def test_published_colour_maps_retouch_a_photo_as_published(assets, tmp_path, system, file, photo, golden, licence):
    folder = assets / "lut"
    weights, out = tmp_path / "m.safetensors", tmp_path / "a.png"
    assert convert(folder / file, "-o", weights, system=system)[0] == 0
    assert models.load(weights).about["licence"].startswith(licence)
    result = CliRunner().invoke(app, ["enhance", str(folder / photo), "-o", str(out), "--weights", str(weights)])
    assert result.exit_code == 0, result.output

    theirs = np.load(folder / "golden" / f"{golden}.npz")
    y, x = theirs["crop_yx"]
    ours = np.asarray(Image.open(out))[y : y + 256, x : x + 256]
    difference = np.abs(ours - np.rint(255 * theirs["out_crop"].clip(0, 1)).transpose(1, 2, 0))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
