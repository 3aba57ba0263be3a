"""The local-context LUT against the paper's formulas written another way, and against its authors' layers."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from fastenh import ops
from fastenh.cli import app
from fastenh.enhance import Enhancer
from fastenh.models import ImageAdaptiveLUT, LocalContextLUT, load, save
from fastenh.models.lam import ResNet18


def small(n_luts: int = 3, size: int = 5, classifier: str = "statistics", **arguments) -> LocalContextLUT:
    """A model whose every table and weight has its say, in eval mode; the classifier that is quickest to run."""
    model = LocalContextLUT(n_luts, size, classifier, **arguments)
    nn.init.normal_(model.luts)
    if model.lam is not None:  # attention that differs from neighbour to neighbour
        for layer in (model.lam.features, model.lam.attention, model.lam.hidden, model.lam.head):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
            nn.init.normal_(layer.bias, std=0.5)
        nn.init.normal_(model.lam.attention.weight, std=1.0)
    return model.eval()


def by_formula(model: LocalContextLUT, image: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Result and attention in float64, from shifted copies of the picture and matrix products."""
    p = {name: parameter.double() for name, parameter in model.lam.state_dict().items()}
    x = image.double()
    k = p["features.weight"].shape[-1]

    def neighbours(picture: Tensor) -> Tensor:  # (B, 3, k², H, W)
        return F.unfold(picture, k, padding=k // 2).view(*picture.shape[:2], k * k, *picture.shape[2:])

    def linear(name: str, voxels: Tensor) -> Tensor:
        matrix = p[f"{name}.weight"].flatten(1)
        return torch.einsum("oc,bchw->bohw", matrix, voxels) + p[f"{name}.bias"][:, None, None]

    scores = linear("attention", linear("features", neighbours(x).flatten(1, 2)).relu())
    attention = scores.exp() / scores.exp().sum(1, keepdim=True)
    voxels = (neighbours(x) * attention[:, None]).flatten(1, 2)
    pixel_weights = linear("head", linear("hidden", voxels).relu())
    grid = (x * 2 - 1).permute(0, 2, 3, 1)[:, None]
    result = torch.zeros_like(x)
    for n, lut in enumerate(model.luts.double()):
        looked_up = F.grid_sample(lut.expand(len(x), -1, -1, -1, -1), grid, align_corners=True)[:, :, 0]
        result += (weights[:, n].double()[:, None, None] * pixel_weights[:, n])[:, None] * looked_up
    return result, attention


@pytest.mark.parametrize("shape", [(2, 3, 13, 19), (1, 3, 1, 1), (1, 3, 1, 8), (1, 3, 6, 3)])
@pytest.mark.parametrize(
    ("n_luts", "size", "kernel_size", "widths"),
    [(5, 33, 3, (64, 128)), (5, 9, 5, (64, 128)), (3, 2, 7, (16, 24)), (7, 17, 3, (5, 3)), (1, 5, 3, (1, 1))],
)
def test_it_computes_the_formulas_of_the_paper(shape, n_luts, size, kernel_size, widths):
    model = small(n_luts, size, kernel_size=kernel_size, widths=widths)
    image = torch.rand(shape)
    with torch.no_grad():
        result, weights, attention = model.compose(image)
        assert weights.shape == (shape[0], n_luts)
        assert torch.equal(weights, model.predict_weights(image))
        expected, expected_attention = by_formula(model, image, weights)
        torch.testing.assert_close(attention, expected_attention.float(), rtol=0, atol=1e-5)
        torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)
        assert torch.equal(model(image, fused=False), result)
        torch.testing.assert_close(model(image), expected.float(), rtol=1e-5, atol=1e-5)


class Fixed(nn.Module):
    """A classifier that always says the same."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, image: Tensor) -> Tensor:
        return self.weights


def test_sigmoid_sum_is_what_the_authors_layers_were_meant_to_compute(assets):
    golden = {key: torch.from_numpy(value) for key, value in np.load(assets / "lut/golden/pwa_seeded.npz").items()}
    model = LocalContextLUT(5, 9, "statistics", attention="sigmoid-sum").eval()
    theirs = {"features": "mask.conv_1", "attention": "mask.conv_2", "hidden": "ctx.conv_1", "head": "ctx.conv_2"}
    layers = {
        f"{ours}.{kind}": golden[f"{name}.{kind}"] for ours, name in theirs.items() for kind in ("weight", "bias")
    }
    model.lam.load_state_dict(layers)
    model.luts.data = golden["luts"]
    model.classifier = Fixed(golden["pred"])
    x = golden["x"]
    with torch.no_grad():
        pixel_weights, attention = model.lam(x)
        # Their grid is a millionth wider than [0, 1], which these wild tables (slopes of 100) turn into 1e-4.
        on_their_grid = ops.lut_transform(x / 1.000001, model.luts, golden["pred"], pixel_weights)
        result = model(x)
    torch.testing.assert_close(attention, golden["attn"], rtol=0, atol=1e-5)
    torch.testing.assert_close(pixel_weights, golden["ctx_intended"], rtol=0, atol=1e-5)
    torch.testing.assert_close(on_their_grid, golden["out_intended"], rtol=0, atol=1e-5)
    torch.testing.assert_close(result, golden["out_intended"], rtol=0, atol=2e-4)


def test_without_context_it_is_the_plain_image_adaptive_lut():
    model = small(context="none")
    plain = ImageAdaptiveLUT(3, 5, "statistics").eval()
    plain.load_state_dict(model.state_dict())
    image = torch.rand(2, 3, 20, 30)
    torch.testing.assert_close(model(image), plain(image))
    assert model.compose(image).attention is None


VARIANTS = [
    {},
    {"attention": "sigmoid-sum", "classifier": "paired"},
    {"kernel_size": 7, "widths": (8, 4)},
    {"context": "unet"},
    {"context": "none"},
    {"classifier": "resnet18", "n_luts": 5, "size": 3},
]


@pytest.mark.parametrize("arguments", VARIANTS)
@pytest.mark.parametrize("shape", [(1, 1), (37, 21)])
def test_a_batch_is_its_images_one_by_one_at_any_size(arguments, shape):
    model = small(**arguments)
    image = torch.rand(2, 3, *shape)
    near = {"rtol": 1e-3, "atol": 3e-4}  # instance norm of an image of one colour makes much of every rounding
    with torch.no_grad():
        together = model(image)
        torch.testing.assert_close(together, torch.cat([model(image[:1]), model(image[1:])]), **near)
        strided = image.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
        torch.testing.assert_close(model(strided), together, **near)
    assert together.shape == image.shape
    assert (together[0] - together[1]).abs().max() > 1e-2


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_without_gradients_it_retouches_in_one_pass(kernel_size, dtype, monkeypatch):
    model = small(kernel_size=kernel_size, widths=(8, 6))
    image = torch.rand(2, 3, 19, 33)
    image = (image * 255).round().to(dtype) if dtype is torch.uint8 else image.to(dtype)
    with torch.no_grad():
        composed = model(image, fused=False)
        monkeypatch.setattr(model.lam, "forward", None)  # layers cannot run one after the other any more
        fused = model(image)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.uint8: 1}[dtype]
    assert fused.dtype == dtype
    torch.testing.assert_close(fused.float(), composed.float(), rtol=0, atol=tolerance)
    with pytest.raises(TypeError):
        model(image)  # parameters want gradients


@pytest.mark.parametrize("arguments", [{"context": "none"}, {"context": "unet"}, {"attention": "sigmoid-sum"}])
def test_what_has_no_single_pass_says_so(arguments):
    with pytest.raises(ValueError, match="fused=True: expected a model with context 'lam' and attention 'softmax'"):
        small(**arguments)(torch.rand(1, 3, 4, 4), fused=True)


@pytest.mark.parametrize("arguments", VARIANTS)
def test_a_fresh_model_is_near_the_identity_and_every_parameter_learns(arguments):
    model = LocalContextLUT(**{"n_luts": 5, "size": 5, "classifier": "statistics"} | arguments)
    image = torch.rand(2, 3, 24, 31)
    if arguments.get("classifier") == "resnet18":
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(image), image, rtol=0, atol=0.5)
        model.train()
    nn.init.normal_(model.luts)  # tables of zeros hide the weights' part
    result, weights, attention = model.compose(image)
    loss = (result - image**0.5).square().mean() + 1e-2 * weights.square().mean()
    loss.backward()
    for name, parameter in ((n, p) for n, p in model.named_parameters() if p.requires_grad):
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.startswith(("lam.", "unet.head", "classifier.fc", "classifier.head")):
            assert parameter.grad.abs().max() > 0, name
    assert model.luts.grad.abs().amax((1, 2, 3, 4)).min() > 0
    if attention is not None:  # supervision of it reaches what makes it
        model.zero_grad()
        model.compose(image).attention[:, 0].mean().backward()
        assert model.lam.features.weight.grad.abs().max() > 0
        assert model.lam.hidden.weight.grad is None


@pytest.mark.parametrize("attention", ["softmax", "sigmoid-sum"])
def test_gradients_of_image_and_layers_are_those_of_finite_differences(attention):
    model = small(2, 3, widths=(3, 2), attention=attention).double()
    model.classifier = Fixed(torch.randn(1, 2, dtype=torch.float64))
    image = torch.rand(1, 3, 2, 3, dtype=torch.float64) * 0.4 + 0.05  # inside one cell of the tables
    parameters = {name: p.detach().requires_grad_() for name, p in model.lam.named_parameters(prefix="lam")}

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (image.requires_grad_(), *parameters.values()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("arguments", [{}, {"attention": "sigmoid-sum"}, {"kernel_size": 7, "widths": (8, 4)}])
def test_half_precision_and_autocast_stay_near_float32(arguments, dtype, tolerance):
    model = small(**arguments)
    model.luts.data.copy_(model.luts.sigmoid())
    image = torch.rand(2, 3, 24, 17)
    with torch.no_grad():
        expected = model(image)
        assert expected.std() > 0.05 * expected.abs().max()
        bound = tolerance * expected.abs().max()
        with torch.autocast("cpu", dtype):
            assert (model(image) - expected).abs().max() <= bound
        result = model(image.to(dtype))
        assert result.dtype == dtype
        assert (result.float() - expected).abs().max() <= bound
        result = model.to(dtype)(image.to(dtype))
        assert result.dtype == dtype
        assert (result.float() - expected).abs().max() <= bound
    model.float().train()
    with torch.autocast("cpu", dtype):
        result, weights, _ = model.compose(image)
    ((result - image).square().mean() + weights.square().mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("arguments", [{"context": "unet"}, {"classifier": "resnet18"}])
def test_the_larger_networks_train_under_autocast(arguments):
    model = small(**arguments)
    image = torch.rand(2, 3, 24, 17)
    expected = model(image).detach()
    with torch.autocast("cpu", torch.bfloat16):
        result = model(image)
    assert (result - expected).abs().max() <= 0.06 * expected.abs().max()
    result.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("dtype", "full"), [(torch.uint8, 255), (torch.uint16, 65535)])
@pytest.mark.parametrize("context", ["lam", "unet", "none"])
def test_integers_are_full_scale(context, dtype, full):
    model = LocalContextLUT(3, 5, "statistics", context).eval()
    model.classifier.head.bias.data.fill_(0.8)
    nn.init.uniform_(model.luts[1:], 0, 0.1)
    image = (torch.rand(1, 3, 20, 30) * full).round()
    with torch.no_grad():
        resnet = ResNet18(3).eval()
        torch.testing.assert_close(resnet(image.to(dtype)), resnet(image / full))
        expected = (model(image / full).clamp(0, 1) * full).round()
        assert expected.std() > 0.1 * full
        assert (model(image.to(dtype)).float() - expected).abs().max() <= 1


# ---- ResNet-18


def test_resnet18_is_the_published_one(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    published = torchvision.models.resnet18(num_classes=10).eval()
    for module in published.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    torch.save(published.state_dict(), tmp_path / "resnet18.pth")
    ours = ResNet18(4).eval()
    fc = ours.fc.weight.clone()
    ours.load_backbone(tmp_path / "resnet18.pth")
    assert torch.equal(ours.fc.weight, fc)
    published.fc = ours.fc
    image = torch.rand(2, 3, 50, 301)
    with torch.no_grad():
        thumbnail = F.interpolate(image, (224, 224), mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours(image), published(thumbnail), rtol=1e-4, atol=1e-5)


def test_a_backbone_may_lack_a_last_layer_and_batch_counts(tmp_path):
    one, other = ResNet18(3), ResNet18(5)
    kept = {
        key: tensor
        for key, tensor in one.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    torch.save(kept, tmp_path / "old.pth")
    other.load_backbone(tmp_path / "old.pth")
    assert all(torch.equal(other.state_dict()[key], tensor) for key, tensor in kept.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("layer3.0.conv1.weight"), r"layer3\.0\.conv1\.weight \(256, 128, 3, 3\) .*got no such tensor"),
        (lambda c: c.update({"bn1.bias": torch.zeros(3)}), r"expected bn1\.bias \(64,\) .*got \(3,\)"),
        (lambda c: c.update({"layer1.2.conv1.weight": torch.zeros(2), 7: 1}), r"got also 7, layer1\.2\.conv1\.weight"),
        (lambda c: c.clear(), "no such tensor"),
    ],
)
def test_another_backbone_is_named_in_one_line_and_not_loaded(tmp_path, change, message):
    path = tmp_path / "weights.pth"
    content = dict(ResNet18(1).state_dict())
    change(content)
    torch.save(content, path)
    ours = ResNet18(1)
    before = ours.conv1.weight.clone()
    with pytest.raises(ValueError, match=message) as error:
        ours.load_backbone(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert torch.equal(ours.conv1.weight, before)
    with pytest.raises(FileNotFoundError, match="no such file"):
        ours.load_backbone(tmp_path / "nowhere.pth")


# ---- files and photos


@pytest.mark.parametrize("arguments", VARIANTS)
def test_a_model_comes_back_from_its_file(tmp_path, arguments):
    model = small(**arguments)
    save(model, tmp_path / "lam.safetensors")
    again = load(tmp_path / "lam.safetensors")
    assert type(again) is LocalContextLUT and not again.training
    assert again.arguments == model.arguments
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    image = torch.rand(1, 3, 20, 30)
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image))
    with safe_open(tmp_path / "lam.safetensors", "pt") as file:
        assert json.loads(file.metadata()["fastenh"])["system"] == "lam"


def test_a_file_of_another_shape_is_one_line(tmp_path):
    path = tmp_path / "lam.safetensors"
    save(small(classifier="resnet18"), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    counts = {"classifier.bn1.num_batches_tracked": torch.tensor(0.5)}
    for changed, message in [
        ({"lam.head.bias": torch.zeros(4)}, r"expected lam\.head\.bias \(3,\) in a lam model, got \(4,\)"),
        (counts, r"expected integers in classifier\.bn1\.num_batches_tracked, got torch\.float32"),
        ({"classifier.fc.bias": torch.full((3,), float("inf"))}, r"expected finite floats in classifier\.fc\.bias"),
    ]:
        save_file(tensors | changed, path, metadata)
        with pytest.raises(ValueError, match=message) as error:
            load(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    wrong = json.loads(metadata["fastenh"])
    wrong["arguments"]["kernel_size"] = 4
    save_file(tensors, path, {"fastenh": json.dumps(wrong)})
    with pytest.raises(ValueError, match=r"do not make a lam model \(kernel_size must be 3, 5 or 7, got 4\)"):
        load(path)


@pytest.mark.parametrize("arguments", [VARIANTS[0], VARIANTS[3]])
def test_it_retouches_photos_of_any_size_from_the_command_line(tmp_path, arguments):
    model = small(**arguments)
    model.luts.data.copy_(model.luts.sigmoid())
    save(model, tmp_path / "lam.safetensors")
    photos = tmp_path / "photos"
    photos.mkdir()
    pictures = {}
    for name, (height, width) in {"wide.png": (31, 67), "tall.png": (40, 23), "dot.png": (1, 1)}.items():
        pictures[name] = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pictures[name]).save(photos / name)
    command = ["enhance", str(photos), "--model", str(tmp_path / "lam.safetensors"), "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for name, picture in pictures.items():
        x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            expected = (model(x)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        got = np.asarray(Image.open(photos / "enhanced" / name)).astype(float)
        assert np.abs(got - expected).max() <= 1
        assert np.abs(got - picture).max() > 10
    batch = torch.rand(3, 3, 9, 14)
    with torch.no_grad():
        torch.testing.assert_close(Enhancer(model, "cpu")(batch), model(batch).clamp(0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_luts": 0}, "at least one LUT .* got n_luts=0"),
        ({"size": 1}, "2 to 256 vertices .* size=1"),
        ({"size": 257}, "2 to 256 vertices .* size=257"),
        ({"kernel_size": 1}, "kernel_size must be 3, 5 or 7, got 1"),
        ({"widths": (64,)}, r"widths must be two positive numbers, got \(64,\)"),
        ({"widths": (64, 0)}, r"widths must be two positive numbers, got \(64, 0\)"),
        ({"classifier": "resnet50"}, "classifier must be one of resnet18, paired, .* got 'resnet50'"),
        ({"context": "transformer"}, "context must be one of lam, unet, none, got 'transformer'"),
        ({"attention": "sigmoid"}, "attention must be one of softmax, sigmoid-sum, got 'sigmoid'"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalContextLUT(**arguments)


@pytest.mark.parametrize("context", ["lam", "unet", "none"])
@pytest.mark.parametrize(
    "image",
    [torch.rand(3, 8, 8), torch.rand(1, 4, 8, 8), torch.rand(1, 3, 0, 8), torch.zeros(1, 3, 8, 8).int(), "x.jpg"],
)
def test_a_wrong_image_is_one_line(context, image):
    with pytest.raises((ValueError, TypeError), match=r"^LocalContextLUT: image: expected .*got"):
        small(context=context)(image)
