"""Zero-DCE's losses against published ones, against the same written as loops over pixels, and against laws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastenh import losses, ops

# ---- the published losses


def photo(path: Path) -> Tensor:
    pixels = np.asarray(Image.open(path)) / 255
    return torch.from_numpy(pixels).float().permute(2, 0, 1)[None]


def curves(weights: dict[str, Tensor], image: Tensor) -> Tensor:
    """Zero-DCE's network, which SCL-LLE shares: (B, 3, H, W) → (B, 24, H, W)."""

    def conv(number: int, *inputs: Tensor) -> Tensor:
        layer = f"e_conv{number}"
        return F.conv2d(torch.cat(inputs, 1), weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)

    first = conv(1, image).relu()
    second = conv(2, first).relu()
    third = conv(3, second).relu()
    fourth = conv(4, third).relu()
    fifth = conv(5, third, fourth).relu()
    return conv(7, first, conv(6, second, fifth).relu()).tanh()


@pytest.fixture(scope="module")
def published(assets) -> dict[str, tuple[Tensor, Tensor, Tensor, dict[str, float]]]:
    """Of each case input, output, curves and the published terms."""
    lle = assets / "lle"
    terms = json.loads((lle / "golden" / "losses.json").read_text())
    images = {name: photo(lle / "golden" / f"{name}_input.png") for name in ("lime4", "lime6", "dicm10")}
    inputs = {
        "zerodce_lime4": images["lime4"],
        "zerodce_lime6": images["lime6"],
        "scllle_lime4+dicm10_crop352": torch.cat([images[name][..., :352, :352] for name in ("lime4", "dicm10")]),
    }
    cases = {}
    for name, image in inputs.items():
        file = "Zero-DCE/snapshots/Epoch99.pth" if name.startswith("zerodce") else "SCL-LLE/SCL-LLE.pth"
        weights = torch.load(lle / file, map_location="cpu", weights_only=True)
        weights = {key: w.where(w.abs() > 1e-30, 0) for key, w in weights.items()}  # denormals take CPUs minutes
        with torch.no_grad():
            maps = curves(weights, image)
            cases[name] = image, ops.curve_iterate(image, maps), maps, terms[name]
    return cases


@pytest.mark.parametrize("name", ["zerodce_lime4", "zerodce_lime6"])
def test_published_terms_of_zero_dce(published, name):
    image, output, maps, expected = published[name]
    terms = {
        "TV": losses.illumination_smoothness(maps),
        "spa": losses.spatial_consistency(output, image),
        "col": losses.colour_constancy(output),
        "exp": losses.exposure_control(output),
    }
    assert {name: term.item() for name, term in terms.items()} == {
        name: pytest.approx(expected[name], rel=1e-5) for name in terms
    }
    total = terms["spa"] + 10 * terms["exp"] + 5 * terms["col"] + 200 * terms["TV"]
    assert total.item() == pytest.approx(expected["total"], rel=1e-5)


def test_published_terms_of_a_batch(published):
    _, output, maps, expected = published["scllle_lime4+dicm10_crop352"]
    assert losses.illumination_smoothness(maps).item() == pytest.approx(expected["TV"], rel=1e-5)
    assert losses.colour_constancy(output).item() == pytest.approx(expected["color"], rel=1e-5)


# ---- the formulas


def regions(image: np.ndarray, size: int) -> np.ndarray:
    """(3, H, W) → mean brightnesses of its whole regions."""
    rows, columns = image.shape[1] // size, image.shape[2] // size
    return np.array(
        [
            [image[:, i * size : (i + 1) * size, j * size : (j + 1) * size].mean() for j in range(columns)]
            for i in range(rows)
        ]
    )


def test_spatial_consistency_by_loops():
    output, image = torch.rand(2, 2, 3, 15, 22, dtype=torch.float64)
    total = []
    for one, other in zip(output.numpy(), image.numpy(), strict=True):
        after, before = (np.pad(regions(x, 4), 1) for x in (one, other))
        for i in range(1, after.shape[0] - 1):
            for j in range(1, after.shape[1] - 1):
                neighbours = [(i, j - 1), (i, j + 1), (i - 1, j), (i + 1, j)]
                total.append(sum((after[i, j] - after[n] - before[i, j] + before[n]) ** 2 for n in neighbours))
    assert len(total) == 2 * 3 * 5
    assert losses.spatial_consistency(output, image).item() == pytest.approx(np.mean(total))


def test_exposure_control_by_loops():
    output = torch.rand(2, 3, 37, 50, dtype=torch.float64)
    patches = np.stack([regions(x, 16) for x in output.numpy()])
    assert patches.shape == (2, 2, 3)
    assert losses.exposure_control(output).item() == pytest.approx(((patches - 0.6) ** 2).mean())
    assert losses.exposure_control(output, 0.5).item() == pytest.approx(((patches - 0.5) ** 2).mean())


def test_colour_constancy_by_hand():
    output = torch.rand(2, 3, 5, 7, dtype=torch.float64) * torch.tensor([1.0, 0.5, 0.8])[:, None, None]
    euclidean, plain = [], []
    for red, green, blue in output.numpy().mean((2, 3)):
        squares = [(red - green) ** 2, (red - blue) ** 2, (green - blue) ** 2]
        euclidean.append(sum(square**2 for square in squares) ** 0.5)
        plain.append(sum(squares))
    assert losses.colour_constancy(output).item() == pytest.approx(np.mean(euclidean))
    assert losses.colour_constancy(output, order=1).item() == pytest.approx(np.mean(plain))


def test_illumination_smoothness_by_hand():
    maps = torch.rand(2, 6, 5, 7, dtype=torch.float64) * 2 - 1
    total = sum(
        2 * ((np.diff(channel, axis=0) ** 2).sum() / (4 * 7) + (np.diff(channel, axis=1) ** 2).sum() / (5 * 6))
        for photo in maps.numpy()
        for channel in photo
    )
    assert losses.illumination_smoothness(maps).item() == pytest.approx(total / 2)


# ---- laws

TERMS = {
    "spatial": losses.spatial_consistency,
    "exposure": lambda output, image: losses.exposure_control(output),
    "colour": lambda output, image: losses.colour_constancy(output),
    "colour, plain": lambda output, image: losses.colour_constancy(output, order=1),
    "smoothness": lambda output, image: losses.illumination_smoothness(output),
}


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_a_batch_is_the_mean_of_its_photos(term):
    output, image = torch.rand(2, 5, 3, 19, 35, dtype=torch.float64) * torch.linspace(0.1, 1, 5)[:, None, None, None]
    each = torch.stack([term(output[n : n + 1], image[n : n + 1]) for n in range(5)])
    assert each.max() > 1.5 * each.min()
    torch.testing.assert_close(term(output, image), each.mean())


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_gradients(term):
    output, image = torch.rand(2, 2, 3, 17, 21, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: term(x, image), output.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_half_precision_is_summed_in_float32(term):
    output, image = torch.rand(2, 1, 3, 64, 96).half()
    loss = term(output, image)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, term(output.float(), image.float()))


@pytest.mark.parametrize("order", [1, 2])
def test_a_grey_photo_has_no_colour_and_a_finite_gradient(order):
    output = torch.rand(1, 1, 6, 7).repeat(1, 3, 1, 1).requires_grad_()
    loss = losses.colour_constancy(output, order)
    loss.backward()
    assert loss == 0 and torch.equal(output.grad, torch.zeros_like(output))


def test_what_is_consistent_costs_nothing():
    image = torch.rand(1, 3, 17, 21)
    assert losses.spatial_consistency(image, image) == 0
    torch.testing.assert_close(losses.exposure_control(torch.full_like(image, 0.6)), torch.tensor(0.0))
    assert losses.illumination_smoothness(torch.full((1, 24, 5, 7), 0.3)) == 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: losses.spatial_consistency(x[..., :3], x[..., :3]), "at least 4 pixels on each side, got 3×15"),
        (losses.exposure_control, "at least 16 pixels on each side, got 20×15"),
        (lambda x: losses.illumination_smoothness(x[..., :1]), r"H and W at least 2, got \(1, 3, 15, 1\)"),
    ],
)
def test_photos_that_are_too_small(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.rand(1, 3, 15, 20))
