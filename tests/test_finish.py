"""What --denoise and --protect-highlights promise, measured; and the filter written another way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from fastenh import Enhancer, finish
from fastenh.cli import app

skimage_data = pytest.importorskip("skimage.data", reason="scikit-image carries the photographs")


class Lift(nn.Module):
    """Undoes gamma 3, and so lifts the dark by a lot."""

    def forward(self, image: Tensor) -> Tensor:
        return image ** (1 / 3)


@pytest.fixture(scope="module")
def dark() -> Tensor:
    """A photo darkened by gamma 3, without noise, with a flat dark patch in its corner."""
    photo = (torch.from_numpy(skimage_data.astronaut()).permute(2, 0, 1) / 255) ** 3
    photo[:, :64, :64] = torch.tensor([0.06, 0.05, 0.04]).view(3, 1, 1)
    return photo


def noisy(photo: Tensor, sigma: float) -> Tensor:
    """As a camera stores it, in 8 bits."""
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    return ((photo + sigma * noise).clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("sigma", [0.005, 0.01, 0.02])
def test_noise_in_the_dark_is_halved_and_edges_stay(dark, sigma):
    enhancer, image = Enhancer(Lift(), "cpu"), noisy(dark, sigma)
    true = enhancer(dark)
    plain, denoised = (enhancer(image, denoise=on) / 255 for on in (False, True))
    flat = (..., slice(12, 52), slice(12, 52))
    assert plain[flat].std((1, 2)).min() > 0.008  # two steps of 8 bits
    assert (denoised[flat].std((1, 2)) < 0.5 * plain[flat].std((1, 2))).all()

    luma = true.mean(0)
    steps = torch.zeros_like(luma)
    steps[:, :-1] += luma.diff(dim=1).abs()
    steps[:-1] += luma.diff(dim=0).abs()
    edges = (steps > 0.15).expand_as(true)
    assert edges.float().mean() > 0.02

    def psnr(image: Tensor) -> float:
        return -10 * (image - true)[edges].square().mean().log10().item()

    assert psnr(denoised) > psnr(plain) - 1
    assert (denoised - true).square().mean() < 0.7 * (plain - true).square().mean()  # and all in all it is nearer


def test_what_is_not_lifted_is_not_smoothed():
    image = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(finish.denoise(image, image), image)
    darker = finish.denoise(image, 0.8 * image)
    torch.testing.assert_close(darker, 0.8 * image, rtol=0, atol=1e-7)


def test_the_filter_is_its_formula():
    """In float64, window by window."""
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(1, 3, 14, 11, generator=generator, dtype=torch.float64) * 0.2
    after = before ** (1 / 3)
    r, height, width = finish.RADIUS, 14, 11

    def window(y: int, x: int) -> tuple[slice, ...]:
        return (0, slice(None), slice(max(y - r, 0), y + r + 1), slice(max(x - r, 0), x + r + 1))

    a, b, gain = torch.zeros(height, width), torch.zeros(3, height, width), torch.zeros(height, width)
    a, b, gain = a.double(), b.double(), gain.double()
    for y in range(height):
        for x in range(width):
            inside = after[window(y, x)].flatten(1)
            gain[y, x] = max(1, inside.mean() / before[window(y, x)].mean())
            variance = inside.var(1, correction=0).mean()
            a[y, x] = variance / (variance + (finish.NOISE * gain[y, x]) ** 2)
            b[:, y, x] = (1 - a[y, x]) * inside.mean(1)
    expected = torch.zeros(3, height, width).double()
    for y in range(height):
        for x in range(width):
            mean_a = a[window(y, x)[2:]].mean()
            smooth = mean_a * after[0, :, y, x] + b[:, window(y, x)[2], window(y, x)[3]].flatten(1).mean(1)
            weight = 1 - 1 / gain[y, x]
            expected[:, y, x] = (1 - weight) * after[0, :, y, x] + weight * smooth
    torch.testing.assert_close(finish.denoise(before, after)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_nothing_becomes_white_that_was_not(dtype, strength):
    """Every channel of every pixel, for a lift that runs far beyond white; and nothing is darkened by it."""

    class Glare(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return 1.7 * image**0.5

    full = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    image = torch.rand(3, 50, 60, generator=torch.Generator().manual_seed(0)).round(decimals=3)
    image = (image.clamp(0.02, 0.98) - 0.02) / 0.96  # a few are white
    image = (image * full).round().to(dtype) if full > 1 else image.to(dtype)
    enhancer = Enhancer(Glare(), "cpu")
    plain = enhancer(image, strength)
    result = enhancer(image, strength, protect_highlights=True)
    white, was_white = result.float() >= full, image.float() >= full
    assert was_white.any() and (plain.float() >= full).sum() > 5 * was_white.sum()
    assert not (white & ~was_white).any()
    assert torch.equal(result.float()[was_white], plain.float()[was_white])
    assert (result.float() >= torch.minimum(plain.float(), image.float())).all()
    unbent = plain.float() <= 0.79 * full
    assert unbent.any() and torch.equal(result[unbent].float(), plain[unbent].float())


def test_even_endless_light_is_not_white_in_8_bits():
    result = finish.protect_highlights(torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 1e6))
    assert (result * 255).round().max() == 254


def test_highlights_keep_their_order():
    ramp = torch.linspace(0, 1, 1001).expand(1, 3, 1, -1)
    result = finish.protect_highlights(ramp, (1.5 * ramp).clamp(max=1))
    assert (result.diff() >= 0).all() and (result.diff() < 0.002).all()


def test_bands_make_the_whole(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(2, 3, 201, 17, generator=generator) * 0.3
    after = (2 * before).sqrt()
    whole = finish.finish(before, after, noise=True, highlights=True)
    torch.testing.assert_close(whole, finish.protect_highlights(before, finish.denoise(before, after)))
    monkeypatch.setattr(finish, "BAND", 1)  # bands of 64 rows
    torch.testing.assert_close(finish.finish(before, after, noise=True, highlights=True), whole, rtol=0, atol=1e-6)


def test_options_of_the_command(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 80, (40, 50, 3), np.uint8)
    pixels[:10] = 250
    Image.fromarray(pixels).save(tmp_path / "a.png")
    options = {"": {}, "--denoise": {"denoise": True}, "--protect-highlights": {"protect_highlights": True}}
    results = []
    for i, (option, arguments) in enumerate(options.items()):
        out = tmp_path / f"{i}.png"
        words = ["enhance", str(tmp_path / "a.png"), "-o", str(out), "--model", "lowlight", "--device", "cpu"]
        result = CliRunner().invoke(app, [*words, *([option] if option else [])])
        assert result.exit_code == 0, result.output
        expected = Enhancer("lowlight", "cpu")(pixels, **arguments)
        results.append(np.asarray(Image.open(out)))
        assert np.array_equal(results[-1], expected)
    assert not np.array_equal(results[0], results[1])
