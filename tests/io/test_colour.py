"""Colours of a file are sRGB on the way to a model and their own again after it."""

import imagecodecs
import numpy as np
import pytest
import torch

from fastenh.io.colour import ColourSpace, decode, encode, from_profile, linear_light

WHITES = {"D65": (0.3127, 0.3290), "D50": (0.3457, 0.3585)}
SPACES = {  # white, primaries, gamma; None is sRGB's curve, in a table
    "Adobe RGB": ("D65", (0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 2.19921875),
    "Display P3": ("D65", (0.68, 0.32, 0.265, 0.69, 0.15, 0.06), None),
    "ProPhoto": ("D50", (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), 1.8),
    "Rec. 2020": ("D65", (0.708, 0.292, 0.170, 0.797, 0.131, 0.046), 2.4),
}
RNG = np.random.default_rng(3)
NUMBERS = torch.from_numpy(RNG.random((3, 31, 47), np.float32))


def profile(name: str) -> bytes:
    white, primaries, gamma = SPACES[name]
    if gamma:
        return imagecodecs.cms_profile("rgb", whitepoint=WHITES[white], primaries=primaries, gamma=gamma)
    curve = (decode(torch.linspace(0, 1, 4096)).numpy() * 65535).round().astype(np.uint16)
    return imagecodecs.cms_profile("rgb", whitepoint=WHITES[white], primaries=primaries, transferfunction=curve)


def to_xyz(primaries: tuple[float, ...], white: tuple[float, float]) -> np.ndarray:
    """The matrix of a space by its primaries and white, as colour science defines it."""
    x, y = np.array(primaries).reshape(3, 2).T
    columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    light = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    return columns * np.linalg.solve(columns, light)


@pytest.mark.parametrize("name", ["Adobe RGB", "Display P3", "Rec. 2020"])
def test_is_what_colour_science_says(name):
    """Spaces of one white need no adaptation: XYZ and back by the definitions alone."""
    _, primaries, gamma = SPACES[name]
    x = NUMBERS.double().numpy()
    light = x**gamma if gamma else np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    srgb = to_xyz((0.64, 0.33, 0.30, 0.60, 0.15, 0.06), WHITES["D65"])
    linear = np.einsum("oc,chw->ohw", np.linalg.solve(srgb, to_xyz(primaries, WHITES["D65"])), light)
    result = decode(from_profile(profile(name), 3).to_srgb(NUMBERS)).numpy()
    assert np.abs(result - linear).max() < 4e-4  # profiles hold 16-bit numbers
    assert result.min() < -0.01 and result.max() > 1.01  # what sRGB has not is neither clipped nor lost


@pytest.mark.parametrize("name", SPACES)
def test_agrees_with_lcms2(name):
    """Both ways: curves and a matrix against lcms2 itself, which in tables rounds light to 16 bits."""
    fast, slow = from_profile(profile(name), 3), ColourSpace(3, profile=profile(name))
    assert fast.curves is not None and not fast.profile
    there = fast.to_srgb(NUMBERS)
    inside = there > 0.05  # below, lcms2 goes on another way than the odd curve
    assert (there - slow.to_srgb(NUMBERS))[inside].abs().max() * 65535 < 8
    mild = encode(decode(NUMBERS) * 0.5 + 0.1)  # within all of these spaces
    assert (fast.from_srgb(mild) - slow.from_srgb(mild)).abs().max() * 65535 < 4


@pytest.mark.parametrize("name", SPACES)
def test_there_and_back(name):
    space = from_profile(profile(name), 3)
    numbers = encode(decode(NUMBERS) * 0.9 + 0.05)
    assert (space.from_srgb(space.to_srgb(numbers)) - numbers).abs().max() * 65535 < 6


@pytest.mark.parametrize(
    "icc",
    [b"", b"no profile", imagecodecs.cms_profile("srgb"), imagecodecs.cms_profile("gray")],
    ids=["none", "no profile", "sRGB", "gray"],
)
def test_without_a_profile_that_can_be_read_it_is_srgb(icc):
    space = from_profile(icc, 3)
    assert (
        space.is_srgb
        and torch.equal(space.to_srgb(NUMBERS), NUMBERS)
        and torch.equal(space.from_srgb(NUMBERS), NUMBERS)
    )


def test_makers_versions_of_srgb_are_srgb():
    curve = (decode(torch.linspace(0, 1, 1024)).numpy() * 65535).round().astype(np.uint16)
    icc = imagecodecs.cms_profile(
        "rgb", whitepoint=WHITES["D65"], primaries=(0.64, 0.33, 0.30, 0.60, 0.15, 0.06), transferfunction=curve
    )
    assert from_profile(icc, 3).is_srgb and not from_profile(profile("Display P3"), 3).is_srgb


def test_gray():
    """Gray of another gamma is neutral, as light as it says, and comes back; so is gray without a profile."""
    gray = NUMBERS[:1]
    space = from_profile(imagecodecs.cms_profile("gray", gamma=1.8), 1)
    there = space.to_srgb(gray)
    assert there.shape == NUMBERS.shape and (there - there[:1]).abs().max() < 1e-4
    assert (decode(there) - gray**1.8).abs().max() < 1e-4
    assert (space.from_srgb(there) - gray).abs().max() < 1e-4
    plain = from_profile(b"", 1)
    assert torch.equal(plain.to_srgb(gray), gray.expand(3, -1, -1))
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert decode(plain.from_srgb(red)).item() == pytest.approx(0.2126, abs=1e-5)
    assert (plain.from_srgb(plain.to_srgb(gray)) - gray).abs().max() < 1e-5


def test_linear_light_has_no_bounds():
    light = torch.tensor([-3.0, -1e-4, 0.0, 1e-4, 0.18, 1.0, 60_000.0]).repeat(3, 2, 1)
    space = linear_light(3)
    assert torch.allclose(space.from_srgb(space.to_srgb(light)), light, rtol=1e-5, atol=1e-7)
    assert space.to_srgb(light)[0, 0, 4].item() == pytest.approx(0.4614, abs=1e-4)  # middle gray
    wide = linear_light(3, SPACES["Rec. 2020"][1])
    assert torch.allclose(wide.from_srgb(wide.to_srgb(light)), light, rtol=1e-4, atol=1e-6)
    green = wide.to_srgb(torch.tensor([0.0, 1.0, 0.0])[:, None, None])
    assert green[0].item() < -0.5 and green[1].item() > 1


def test_the_usual_profile_is_srgb(assets):
    """sRGB IEC61966-2.1 of 1998, which is in most photos, has slightly other primaries."""
    from fastenh.io import read_photo

    header = read_photo(assets / "lut" / "AdaInt" / "resources" / "a4739.jpg").header
    assert len(header.metadata.icc) == 3144 and header.colour_space.is_srgb
