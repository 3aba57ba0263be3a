"""SCL-LLE's losses against the same written as loops, and gradients that pass frozen networks by."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastenh import losses

torchvision = pytest.importorskip("torchvision", reason="torchvision has VGG-16: pip install fastenh[train]")


@pytest.fixture(scope="module")
def vgg() -> losses.VGGFeatures:
    return losses.VGGFeatures("random")


def segmentation() -> nn.Module:
    """Five classes; batch norm must stay as it is."""
    return losses.frozen(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)))


def label_map(*shape: int) -> Tensor:
    """Of five classes the last has no pixel; a fifth of the pixels has no class."""
    labels = torch.randint(0, 5, shape)
    return torch.where(labels == 4, losses.semantic.IGNORE, labels)


# ---- VGG-16


def test_features_are_those_of_torchvision(tmp_path):
    with torch.device("meta"):
        published = torchvision.models.vgg16(init_weights=False)
    published.features.to_empty(device="cpu")
    for tensor in published.features.parameters():
        nn.init.uniform_(tensor, -0.1, 0.1)
    torch.save({f"features.{k}": t for k, t in published.features.state_dict().items()}, tmp_path / "vgg16.pth")
    ours = losses.VGGFeatures(tmp_path / "vgg16.pth")
    image = torch.rand(2, 3, 37, 53)
    features = ours(image, "relu4_3", "relu1_2", "relu2_2")
    assert [tuple(f.shape[1:]) for f in features] == [(512, 4, 6), (64, 37, 53), (128, 18, 26)]
    convolutions = [n for n, layer in enumerate(published.features) if isinstance(layer, nn.Conv2d)]
    for found, convolution in zip(features, (9, 1, 3), strict=True):  # conv4_3 is the tenth, conv1_2 the second
        with torch.no_grad():
            expected = published.features[: convolutions[convolution] + 1](image).relu()
        torch.testing.assert_close(found, expected)


def test_files_of_other_networks(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"other\.pth: expected features\.0\.bias \(64,\) of a VGG-16 .*no such tensor"
    ):
        losses.VGGFeatures(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="no such file"):
        losses.VGGFeatures(tmp_path / "none.pth")


def test_without_network_one_line_says_how_to_get_weights(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"without network, fetch and name this file: https://.*vgg16.*\.pth$"):
        losses.VGGFeatures()


# ---- the formulas


def test_gram_matrix_of_a_published_case(assets):
    """Gram matrices do not change as pixels change places: of a photo turned over they are the same."""
    golden = assets / "lle" / "golden"
    probe = json.loads((golden / "losses.json").read_text())["scllle_lime4+dicm10_crop352"]["gram_probe"]
    output = torch.from_numpy(np.load(golden / "lime4_scllle.npy")).reshape(1, 3, 415, 370)[..., :352, :352]
    gram = losses.gram_matrix(output)
    # The published case enhanced the crop: what lay beyond its edges shows near them.
    torch.testing.assert_close(gram[0].flatten(), torch.tensor(probe[:9]), rtol=1e-2, atol=0)
    torch.testing.assert_close(losses.gram_matrix(output.flip(2).mT), gram)


def test_gram_contrast_by_loops():
    def grams(features: Tensor) -> np.ndarray:
        return np.stack([np.einsum("ihw,jhw->ij", f, f) / f.size for f in features.numpy()])

    sizes = ((5, 7), (6, 4), (3, 9))
    o, p, n = ([torch.rand(3, c, *size, dtype=torch.float64) * 3 for c in (4, 6)] for size in sizes)
    for layer, other in zip(p, n, strict=True):
        other[0] *= 2  # the first photo's loss is 0, the second's large
        layer[1] *= 2
    near = sum(((grams(x) - grams(y)) ** 2).sum((1, 2)) for x, y in zip(o, p, strict=True))
    far = sum(((grams(x) - grams(y)) ** 2).sum((1, 2)) for x, y in zip(o, n, strict=True))
    for margin in (0.3, 0.02):
        expected = np.maximum(near - far + margin, 0).mean()
        assert (near - far + margin).min() < -1 and expected > 1
        assert losses.gram_contrast(o, p, n, margin).item() == pytest.approx(expected)
    assert losses.gram_contrast(o, p, n).item() == losses.gram_contrast(o, p, n, 0.3).item()


def test_brightness_contrast_by_hand():
    levels = torch.tensor([[0.5, 0.6, 0.1], [0.5, 0.4, 0.47], [0.5, 0.5, 0.53]])  # output, positive, negative
    output, positive, negative = (level[:, None, None, None].expand(3, 3, 4, 5) for level in levels.T)
    loss = losses.brightness_contrast(output, positive[..., :3], negative)
    assert loss.item() == pytest.approx((0 + (0.1 - 0.03 + 0.04) + (0 - 0.03 + 0.04)) / 3, rel=1e-4)


def test_brightness_consistency_by_loops():
    output, labels = torch.rand(3, 3, 7, 9, dtype=torch.float64), label_map(3, 7, 9)
    labels[2] = losses.semantic.IGNORE
    each = []
    for image, classes in zip(output.numpy().mean(1), labels.numpy(), strict=True):
        known = [image[classes == s] for s in range(5) if (classes == s).any()]
        deviations = np.concatenate([(b - b.mean()) ** 2 for b in known]) if known else np.zeros(1)
        each.append(deviations.mean())
    assert each[2] == 0 and min(each[:2]) > 0.01
    assert losses.brightness_consistency(output, labels).item() == pytest.approx(np.mean(each))
    assert losses.brightness_consistency(output, labels.to(torch.uint8)).item() == pytest.approx(np.mean(each))


def test_cross_entropy_by_loops():
    scores, labels = torch.randn(3, 5, 4, 6, dtype=torch.float64), label_map(3, 4, 6)
    labels[0, 1:], labels[2] = losses.semantic.IGNORE, losses.semantic.IGNORE
    each = []
    for photo, classes in zip(scores.numpy(), labels.numpy(), strict=True):
        logs = [
            np.log(np.exp(photo[:, y, x]).sum()) - photo[classes[y, x], y, x]
            for y, x in np.argwhere(classes != losses.semantic.IGNORE)
        ]
        each.append(np.mean(logs) if logs else 0)
    assert losses.label_cross_entropy(scores, labels).item() == pytest.approx(np.mean(each))


def test_feature_retention_and_curve_variation_by_hand():
    output, image = torch.rand(2, 2, 6, 5, 7, dtype=torch.float64)
    assert losses.feature_retention(output, image).item() == pytest.approx(((output - image) ** 2).mean().item())
    total = sum(
        np.abs(np.diff(channel, axis=1)).mean() + np.abs(np.diff(channel, axis=0)).mean()
        for photo in output.numpy()
        for channel in photo
    )
    assert losses.curve_variation(output).item() == pytest.approx(total / 2 / 2)  # two photos, two iterations
    shared = output[:, :3]
    torch.testing.assert_close(losses.curve_variation(shared.repeat(1, 8, 1, 1)), losses.curve_variation(shared))


# ---- laws


def terms(vgg: nn.Module, network: nn.Module, output: Tensor, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """All terms that see the enhanced photo; images become its source, a positive and a negative."""
    source, positive, negative = images[0], 0.6 + 0.4 * images[1], 0.3 * images[2]
    style = [vgg(image, "relu1_2", "relu2_2") for image in (output, positive, negative)]
    content = [vgg(image, "relu4_3")[0] for image in (output, source)]
    return {
        "gram": losses.gram_contrast(*style),
        "brightness": losses.brightness_contrast(output, positive, negative, margin=1.0),
        "consistency": losses.brightness_consistency(output, labels),
        "cross-entropy": losses.label_cross_entropy(network(output), labels),
        "retention": losses.feature_retention(*content),
    }


def test_gradients_reach_the_photo_and_stop_before_frozen_networks(vgg):
    network = segmentation()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    output = torch.rand(2, 3, 17, 21).requires_grad_()
    images = torch.rand(3, 2, 3, 17, 21)
    for name, term in terms(vgg, network, output, images, label_map(2, 17, 21)).items():
        (gradient,) = torch.autograd.grad(term, output)
        assert gradient.isfinite().all(), name
        assert (gradient.abs().amax((1, 2, 3)) > 0).all(), name
    sum(terms(vgg, network, output, images, label_map(2, 17, 21)).values()).backward()
    assert all(parameter.grad is None for net in (vgg, network) for parameter in net.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_batch_is_the_mean_of_its_photos(vgg):
    network = segmentation()
    output, images, labels = torch.rand(4, 3, 17, 21), torch.rand(3, 4, 3, 17, 21), label_map(4, 17, 21)
    output *= torch.linspace(0.1, 1, 4)[:, None, None, None]
    labels[1, 3:], labels[3] = losses.semantic.IGNORE, losses.semantic.IGNORE
    together = terms(vgg, network, output, images, labels)
    parts = [
        terms(vgg, network, output[n : n + 1], images[:, n : n + 1], labels[n : n + 1]) for n in range(len(output))
    ]
    for name, term in together.items():
        each = torch.stack([part[name] for part in parts])
        assert each.max() - each.min() > 1e-3 * each.max(), name
        torch.testing.assert_close(term, each.mean(), msg=lambda text, name=name: f"{name}: {text}")
    each = torch.stack([losses.curve_variation(image[None]) for image in output])
    torch.testing.assert_close(losses.curve_variation(output), each.mean())


def test_gradient_of_consistency_is_right():
    output, labels = torch.rand(2, 3, 5, 6, dtype=torch.float64).requires_grad_(), label_map(2, 5, 6)
    assert torch.autograd.gradcheck(lambda x: losses.brightness_consistency(x, labels), output)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((1, 4, 6), 5), r"expected 0 to 4, or 255 for no class, got \[5\]"),
        (torch.full((1, 4, 6), -1), r"expected 0 to 4, or 255 for no class, got \[-1\]"),
        (
            torch.zeros(1, 4, 5, dtype=torch.int64),
            r"expected integers of shape \(1, 4, 6\), got torch.int64 \(1, 4, 5\)",
        ),
        (torch.zeros(1, 4, 6), r"expected integers of shape \(1, 4, 6\), got torch.float32"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        losses.label_cross_entropy(torch.randn(1, 5, 4, 6), labels)
