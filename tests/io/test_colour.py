"""Colours of a file are sRGB on the way to a model and their own again after it."""

from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import torch

from fastenh import backends
from fastenh.io import colour
from fastenh.io.colour import ColourSpace, decode, encode, from_profile, linear_light, profile_of

WHITES = {"D65": (0.3127, 0.3290), "D50": (0.3457, 0.3585)}
SPACES = {  # white, primaries, gamma; None is sRGB's curve, in a table
    "Adobe RGB": ("D65", (0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 2.19921875),
    "Display P3": ("D65", (0.68, 0.32, 0.265, 0.69, 0.15, 0.06), None),
    "ProPhoto": ("D50", (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), 1.8),
    "Rec. 2020": ("D65", (0.708, 0.292, 0.170, 0.797, 0.131, 0.046), 2.4),
}
RNG = np.random.default_rng(3)
NUMBERS = torch.from_numpy(RNG.random((3, 31, 47), np.float32))
BACKENDS = ["reference", *(name for name in backends.CPU if not backends.problem(name))]


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


def test_profiles_of_our_own_do_not_tell_the_time(monkeypatch):
    """The same photo always gives the same file; lcms2 writes the second into a profile."""
    make, second = imagecodecs.cms_profile, iter(range(9))

    def made_later(*args, **how) -> bytes:
        icc = make(*args, **how)
        return icc[:34] + bytes([0, next(second)]) + icc[36:]

    monkeypatch.setattr(imagecodecs, "cms_profile", made_later)
    for args in ((), (2.2,), (None, SPACES["Display P3"][1])):
        assert profile_of.__wrapped__(*args) == profile_of.__wrapped__(*args)


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


# ---- what a model sees, and the way back, by every backend


def space_of(name: str) -> ColourSpace:
    if name in SPACES:
        return from_profile(profile(name), 3)
    return {
        "sRGB": ColourSpace(),
        "gray": ColourSpace(1),
        "gray, gamma 1.8": from_profile(imagecodecs.cms_profile("gray", gamma=1.8), 1),
        "linear": linear_light(3),
        "linear gray": linear_light(1),
        "linear, Rec. 2020": linear_light(3, SPACES["Rec. 2020"][1]),
    }[name]


EVERY_SPACE = [*SPACES, "sRGB", "gray", "gray, gamma 1.8", "linear", "linear gray", "linear, Rec. 2020"]


def stored(colours: int, dtype: str, channels: int = 0) -> torch.Tensor:
    """(colours, 37, 71) as the pixels of a file lie, beside further channels if there are some."""
    pixels = RNG.random((37, 71, channels or colours), np.float32) * 0.9 + 0.05
    if dtype.startswith("u"):
        pixels = pixels * np.iinfo(dtype).max
    return torch.from_numpy(pixels.astype(dtype)).permute(2, 0, 1)[:colours]


def exactly(space: ColourSpace, x: torch.Tensor) -> tuple[np.ndarray, ...]:
    """In float64: light of the numbers x, that of sRGB, and this encoded."""
    full = {torch.uint8: 255, torch.uint16: 65535}.get(x.dtype, 1)
    numbers = x.numpy().astype(np.float64) / full
    steps = np.linspace(0, 1, 65536)
    if space.curves is not None:
        light = np.stack([np.interp(n, steps, curve) for n, curve in zip(numbers, space.curves.numpy(), strict=True)])
    else:
        light = numbers if space.linear else in_float64(decode, numbers)
    matrix = np.ones((3, 1)) if space.colours == 1 else np.eye(3)
    matrix = matrix if space.matrix is None else space.matrix.double().numpy()
    linear = np.einsum("oc,chw->ohw", matrix, light)
    return numbers, light, linear, in_float64(encode, linear)


def in_float64(curve, x: np.ndarray) -> np.ndarray:
    return curve(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
@pytest.mark.parametrize("name", EVERY_SPACE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_there_and_back_by_float64(backend, name, dtype):
    """Of all dtypes, and beside alpha. The curves are inverted as they are, without a table by light."""
    space = space_of(name)
    for channels in (space.colours, space.colours + 1):
        x = stored(space.colours, dtype, channels)
        _, light, linear, encoded = exactly(space, x)
        with backends.backend(backend):
            seen = space.model_input(x)
        assert seen.dtype == torch.float32 and np.abs(seen.numpy() - encoded.clip(0, 1)).max() < 2e-6
        retouched = seen * 0.9 + 0.06
        wanted = encoded + retouched.double().numpy() - encoded.clip(0, 1)
        change = in_float64(decode, wanted) - linear
        if space.colours == 1:
            change = np.einsum("c,chw->hw", [0.2126, 0.7152, 0.0722], change)[None]
        elif space.matrix is not None:
            change = np.einsum("co,ohw->chw", np.linalg.inv(space.matrix.double().numpy()), change)
        if space.curves is not None:
            steps = np.linspace(0, 1, 65536)
            curves = space.curves.numpy().astype(np.float64)
            after = np.stack([np.interp(v, curve, steps) for v, curve in zip(light + change, curves, strict=True)])
        else:
            after = light + change if space.linear else in_float64(encode, light + change)
        with backends.backend(backend):
            result = space.apply_change(x, retouched)
            rounded = space.apply_change(x, retouched, torch.empty_like(x))
        bright = light + change > 1e-3  # where the curves are not so steep that float32 is not enough
        assert bright.mean() > 0.9
        assert np.abs(result.numpy() - after)[bright].max() < (
            3e-4 if name == "Display P3" else 2e-6
        )  # its light has steps
        full = {"uint8": 255, "uint16": 65535}.get(dtype)
        if full:
            assert np.abs(rounded.numpy() / full - result.numpy()).max() <= 0.51 / full
        else:
            assert np.abs(rounded.float().numpy() - result.numpy()).max() <= np.finfo(dtype).eps


@pytest.mark.parametrize("name", EVERY_SPACE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_changes_where_the_model_changes_nothing(backend, name):
    """Bit for bit: all numbers of 16 bits in colours of all kinds, and floats that are none or beyond any bounds."""
    space = space_of(name)
    every = np.stack([RNG.permutation(65536) for _ in range(space.colours)]).reshape(-1, 128, 512).astype(np.uint16)
    strange = stored(space.colours, "float32").contiguous()
    strange[0, :3, :9] = torch.tensor([np.nan, np.inf, -np.inf, -3.0, 7.5, 900.0, -0.0, 1e-30, 65504.0])
    for x in (torch.from_numpy(every), strange, stored(space.colours, "uint8")):
        with backends.backend(backend):
            seen = space.model_input(x)
            result = space.apply_change(x, seen, torch.empty_like(x))
        assert seen.min() >= 0 and seen.max() <= 1
        assert (
            torch.equal(result.nan_to_num(5.0, 6.0, 7.0), x.nan_to_num(5.0, 6.0, 7.0))
            if x is strange
            else (torch.equal(result, x))
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_is_black_to_a_model_and_stays(backend):
    x = torch.full((3, 2, 21), 0.5)
    x[0, 0], x[0, 1] = np.nan, np.inf
    for name in ("linear", "linear, Rec. 2020", "Adobe RGB", "sRGB"):
        space = space_of(name)
        with backends.backend(backend):
            seen = space.model_input(x)
            result = space.apply_change(x, seen * 0.5)
        assert not seen.isnan().any() and result[0, 0].isnan().all() and result[0, 1].isposinf().all()
        with backends.backend("reference"):
            assert torch.allclose(seen, space.model_input(x), atol=2e-6)
            assert torch.allclose(result, space.apply_change(x, seen * 0.5), atol=4e-6, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_white_is_the_last_entry_of_each_table(backend):
    """Nothing is read behind it: there NaN stands."""
    space = space_of("Adobe RGB")

    def before_nan(table: torch.Tensor) -> torch.Tensor:
        return torch.cat([table.flatten(), torch.full((16,), torch.nan)])[: table.numel()].view(table.shape)

    fenced = replace(space, **{name: before_nan(getattr(space, name)) for name in ("curves", "numbers", "matrix")})
    x = torch.ones(3, 2, 21)
    with backends.backend("reference"):
        expected = space.model_input(x), space.apply_change(x, 0.9 * x)
    with backends.backend(backend):
        result = fenced.model_input(x), fenced.apply_change(x, 0.9 * x)
    torch.testing.assert_close(result, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pixel_does_not_depend_on_its_neighbours(backend, monkeypatch):
    """Rows by themselves, and in bands, are as in the whole."""
    monkeypatch.setattr(colour, "BAND", 200)
    space, x = space_of("ProPhoto"), stored(3, "uint16", 4)
    with backends.backend(backend):
        seen = space.model_input(x)
        back = space.apply_change(x, seen**0.7)
        for rows in (slice(0, 1), slice(5, 18), slice(36, 37)):
            assert torch.allclose(space.model_input(x[:, rows, 3:]), seen[:, rows, 3:], atol=1e-6)
            assert torch.allclose(space.apply_change(x[:, rows], seen[:, rows] ** 0.7), back[:, rows], atol=1e-6)
