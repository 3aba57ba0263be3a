"""LUT files on photos: a file's own numbers or sRGB, strips, alpha, and gray that gets a colour."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from fastenh.enhance import Enhancer
from fastenh.io import Header, LutFile, Photo, read_photo, write_photo
from fastenh.io.colour import decode, encode
from fastenh.io.metadata import Metadata
from fastenh.models.lut3d import identity_lut
from fastenh.pipelines import large
from fastenh.pipelines import photo as one_photo

DOMAIN_2 = LutFile(None, torch.tensor([0.0, 1.0]).repeat(3, 1), shaper_domain=((0.0,) * 3, (2.0,) * 3))
GAIN_2 = LutFile(None, torch.tensor([0.0, 2.0]).repeat(3, 1))
HALF_TABLE = LutFile(0.5 * identity_lut(3))
SEPIA = LutFile(identity_lut(2).mean(0, keepdim=True) * torch.tensor([1.0, 0.8, 0.6])[:, None, None, None])
ADOBE = imagecodecs.cms_profile("adobergb")
GRAY_GAMMA_18 = imagecodecs.cms_profile("gray", whitepoint=(0.3127, 0.3290), gamma=1.8)


def photo_of(pixels: np.ndarray, icc: bytes = b"", **header) -> Photo:
    height, width, channels = pixels.shape
    colours = 3 if channels > 2 else 1
    alpha = colours if channels > colours else None
    about = Metadata(icc=icc)
    return Photo(Header("", height, width, channels, pixels.dtype, colours, alpha, metadata=about, **header), pixels)


def noise(channels: int, dtype: str, high: float = 1.0, size: tuple[int, int] = (21, 34)) -> np.ndarray:
    values = np.random.default_rng(3).uniform(0, high, (*size, channels))
    full = np.iinfo(dtype).max if dtype.startswith("u") else 1
    return (np.rint(values * full) if full > 1 else values).astype(dtype)


def apply(lut: LutFile, path: Path, name: str, **options) -> np.ndarray:
    (outcome,) = Enhancer(lut, "cpu").enhance_files(path, path.with_name(name), overwrite=True, **options)
    assert outcome.error is None, outcome.traceback
    return read_photo(path.with_name(name)).pixels


# ---- the file's own numbers


@pytest.mark.parametrize(("name", "dtype"), [("a.exr", "float16"), ("a.exr", "float32"), ("a.tif", "float32")])
def test_a_lut_gets_the_numbers_of_a_float_file(tmp_path, name, dtype):
    pixels = np.array([[-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]], dtype)[..., None].repeat(3, 2)
    header = {"linear": True} if name == "a.exr" else {"icc": ADOBE}
    write_photo(photo_of(pixels, **header), tmp_path / name)
    expected = {0.5: 0.25, 1.5: 0.75, 2.0: 1.0, 3.0: 1.0, -0.5: 0.0}
    after = apply(DOMAIN_2, tmp_path / name, f"b{name}")
    assert after.dtype == dtype
    for number, result in expected.items():
        assert (after[pixels == number] == result).all()
    assert (apply(GAIN_2, tmp_path / name, f"b{name}")[pixels == 0.75] == 1.5).all()
    half = apply(GAIN_2, tmp_path / name, f"b{name}", strength=0.5)
    assert (half[pixels == 0.75] == 1.125).all() and (half[pixels == 2.0] == 2.0).all()
    assert np.array_equal(apply(GAIN_2, tmp_path / name, f"b{name}", strength=0), pixels)


def test_float_arrays_and_tensors_are_not_clamped():
    numbers = torch.tensor([-1.0, 0.5, 1.5, 2.0, 300.0]).expand(3, 1, 5)
    assert torch.equal(Enhancer(DOMAIN_2, "cpu")(numbers)[0, 0], torch.tensor([0, 0.25, 0.75, 1, 1]))
    gain = Enhancer(GAIN_2, "cpu")
    assert torch.equal(gain(torch.full((3, 2, 2), 0.75)), torch.full((3, 2, 2), 1.5))
    array = np.full((2, 2, 3), 0.75, np.float64)
    assert (gain(array) == 1.5).all() and (gain(array, space="srgb") == 1).all()
    assert (next(gain.stream([np.full((2, 2, 3), 0.75, np.float32)])) == 1.5).all()


def test_srgb_clamps_and_keeps_what_is_beyond(tmp_path):
    """With `space="srgb"` an EXR is encoded for the LUT, decoded after, and light above white is kept."""
    light = np.array([[0.0, 0.18, 0.5, 1.0, 4.0]], np.float32)[..., None].repeat(3, 2)
    write_photo(photo_of(light, linear=True), tmp_path / "a.exr")
    after = apply(HALF_TABLE, tmp_path / "a.exr", "b.exr", space="srgb")[0, :, 0]
    srgb = encode(torch.from_numpy(light[0, :, 0]))
    expected = decode(srgb + 0.5 * srgb.clamp(0, 1) - srgb.clamp(0, 1))
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)


def test_one_folder_has_both(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_photo(photo_of(np.full((2, 2, 3), 0.18, np.float32), linear=True), folder / "a.exr")
    write_photo(photo_of(noise(3, "uint8"), ADOBE), folder / "b.png")
    outcomes = Enhancer(HALF_TABLE, "cpu").enhance_files(folder, tmp_path / "out")
    assert [outcome.error for outcome in outcomes] == [None, None]
    np.testing.assert_allclose(read_photo(tmp_path / "out/a.exr").pixels, 0.09, rtol=1e-6)
    before, after = (read_photo(path).pixels / 255 for path in (folder / "b.png", tmp_path / "out/b.png"))
    assert np.abs(after - before / 2).max() > 0.01  # sRGB was halved, not Adobe RGB
    Enhancer(HALF_TABLE, "cpu").enhance_files(folder, tmp_path / "own", space="file")
    assert np.abs(read_photo(tmp_path / "own/b.png").pixels / 255 - before / 2).max() <= 0.51 / 255


def test_a_model_takes_no_other_space_than_srgb(tmp_path):
    enhancer = Enhancer("auto", "cpu")
    with pytest.raises(ValueError, match=r"^space: expected srgb for ImageAdaptiveLUT, got file$"):
        enhancer.enhance_files(tmp_path / "a.png", space="file")
    with pytest.raises(ValueError, match=r"^space: expected file or srgb, got 'rgb'$"):
        Enhancer(GAIN_2, "cpu")(np.zeros((2, 2, 3), np.float32), space="rgb")


def test_alpha_is_kept_and_colours_are_unpremultiplied(tmp_path):
    pixels = noise(4, "float32")
    pixels[..., 3] = 0.25 + 0.5 * pixels[..., 3]
    multiplied = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    write_photo(photo_of(multiplied, linear=True, premultiplied=True), tmp_path / "a.exr")
    after = apply(GAIN_2, tmp_path / "a.exr", "b.exr")
    np.testing.assert_allclose(after[..., :3], 2 * multiplied[..., :3], rtol=1e-5)
    assert np.array_equal(after[..., 3], pixels[..., 3])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("name", "dtype"), [("a.exr", "float32"), ("a.tif", "float32"), ("a.png", "uint16")])
def test_strips_are_the_whole(tmp_path, monkeypatch, name, dtype, channels):
    high = 3.0 if dtype == "float32" else 1.0
    header = {"linear": True, "premultiplied": channels in (2, 4)} if name == "a.exr" else {}
    write_photo(photo_of(noise(channels, dtype, high), **header), tmp_path / name)
    for lut in (SEPIA, DOMAIN_2):
        whole = apply(lut, tmp_path / name, f"whole_{name}")
        with monkeypatch.context() as patch:
            patch.setattr(one_photo, "LARGE", 100)
            patch.setattr(large, "STRIP", 34 * 5)
            strips = apply(lut, tmp_path / name, f"strips_{name}")
        assert whole.shape == strips.shape and whole.shape[2] == channels + (2 if lut is SEPIA and channels < 3 else 0)
        # Strips convert integers to floats, which rounds twice.
        np.testing.assert_allclose(strips.astype(float), whole, rtol=1e-6, atol=1 if dtype == "uint16" else 1e-6)


# ---- gray that gets a colour


def test_which_luts_keep_gray():
    cool = identity_lut(5)
    cool[2] += 0.01
    for lut in (SEPIA, LutFile(cool), LutFile(None, torch.rand(3, 9))):
        assert not lut.keeps_gray
    rounded = (identity_lut(33) ** 0.7 * 1023).round() / 1023
    assert all(lut.keeps_gray for lut in (DOMAIN_2, GAIN_2, HALF_TABLE, LutFile(rounded)))


GRAYS = [
    ("a.png", "uint8", 1), ("a.png", "uint16", 2), ("a.jpg", "uint8", 1), ("a.tif", "uint16", 1), ("a.tif", "uint8", 2),
    ("a.tif", "float32", 1), ("a.exr", "float16", 1), ("a.exr", "float32", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype", "channels"), GRAYS)
def test_toned_gray_is_rgb(tmp_path, name, dtype, channels):
    header = {"linear": True, "premultiplied": channels == 2} if name == "a.exr" else {}
    pixels = noise(channels, dtype)
    if header.get("premultiplied"):
        pixels[..., 0] *= pixels[..., 1]
    write_photo(photo_of(pixels, **header), tmp_path / name, quality=100)
    pixels = read_photo(tmp_path / name).pixels
    after = apply(SEPIA, tmp_path / name, f"b{name}", quality=100)
    assert after.dtype == dtype and after.shape[2] == channels + 2
    full = np.iinfo(dtype).max if dtype.startswith("u") else 1
    tones = pixels[..., :1] / full * np.array([1, 0.8, 0.6])
    if name != "a.jpg":
        np.testing.assert_allclose(after[..., :3] / full, tones, rtol=0, atol=0.51 / full if full > 1 else 1e-3)
    assert np.abs(after[..., :3] / full - tones).mean() < 0.005
    assert channels == 1 or np.array_equal(after[..., 3], pixels[..., 1])
    same = apply(SEPIA, tmp_path / name, f"c{name}", strength=0)
    assert same.shape[2] == channels and (name == "a.jpg" or np.array_equal(same, pixels))
    assert apply(HALF_TABLE, tmp_path / name, f"d{name}").shape[2] == channels


@pytest.mark.parametrize(("icc", "gamma"), [(GRAY_GAMMA_18, 1.8), (b"", None)])
def test_toned_gray_keeps_its_curve(tmp_path, icc, gamma):
    """The identity but for a tint that 16 bits do not show: shades are as light as before, by the new profile."""
    Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(tmp_path / "a.png", icc_profile=icc or None)
    tint = identity_lut(2)
    tint[:, 1, 0, 0] += 0.5  # of blue alone
    lut = LutFile(tint)
    lut.keeps_gray = False
    pixels = apply(lut, tmp_path / "a.png", "b.png")
    assert pixels.shape == (1, 256, 3) and np.abs(pixels[0].astype(int) - np.arange(256)[:, None]).max() <= 1
    profile = read_photo(tmp_path / "b.png").header.metadata.icc
    assert bool(profile) == bool(icc)
    if icc:
        light = imagecodecs.cms_transform(
            np.linspace(0, 1, 256, dtype=np.float32)[None, :, None].repeat(3, 2),
            profile, imagecodecs.cms_profile("rgb", gamma=1.0, whitepoint=(0.3127, 0.3290),
            primaries=(0.64, 0.33, 0.30, 0.60, 0.15, 0.06)), colorspace="rgb", outdtype="float32", intent=1,
        )  # fmt: skip
        np.testing.assert_allclose(light[0], (np.linspace(0, 1, 256) ** gamma)[:, None].repeat(3, 1), atol=2e-4)
