"""Photo files through a model: colours, depth, alpha and metadata come back right, whatever the file and its size."""

import errno
import importlib
import io
import os
import shutil
import stat
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Barrier

import imagecodecs
import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
import torch
from PIL import Image, JpegImagePlugin, TiffImagePlugin
from torch import nn

from fastenh.enhance import Enhancer
from fastenh.io import Header, Photo, read_photo, write_photo
from fastenh.io.colour import decode, encode
from fastenh.io.encoding import from_float
from fastenh.io.formats.registry import FORMATS
from fastenh.io.metadata import Metadata
from fastenh.models import ImageAdaptiveLUT
from fastenh.pipelines import batch, large
from fastenh.pipelines import photo as one_photo
from fastenh.pipelines.batch import Job, Outcome, enhance_files, plan
from fastenh.pipelines.photo import FileOptions, enhance_file, enhance_photo

RNG = np.random.default_rng(5)
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
PROFILES = {
    "none": b"",
    "Adobe RGB": imagecodecs.cms_profile("adobergb"),
    "ProPhoto": imagecodecs.cms_profile(
        "rgb", whitepoint=(0.3457, 0.3585), primaries=(0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), gamma=1.8
    ),
    "Display P3": imagecodecs.cms_profile(
        "rgb", whitepoint=(0.3127, 0.3290), primaries=P3,
        transferfunction=(decode(torch.linspace(0, 1, 4096)).numpy() * 65535).round().astype(np.uint16),
    ),
}  # fmt: skip


class Same(nn.Module):
    def forward(self, image):
        return image


class Curve(nn.Module):
    """Brightens, each pixel alike."""

    def forward(self, image):
        return image**0.7


def photo_of(pixels: np.ndarray, icc: bytes = b"", **header) -> Photo:
    height, width, channels = pixels.shape
    colours = 3 if channels > 2 else 1
    alpha = colours if channels > colours else None
    about = Metadata(icc=icc, xmp=header.pop("xmp", b""), dpi=header.pop("dpi", None))
    return Photo(Header("", height, width, channels, pixels.dtype, colours, alpha, metadata=about, **header), pixels)


def numbers(height: int, width: int, channels: int, dtype: str) -> np.ndarray:
    if dtype.startswith("u"):
        return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)
    return RNG.random((height, width, channels), np.float32).astype(dtype)


def written(path: Path, photo: Photo) -> Photo:
    write_photo(photo, path)
    return read_photo(path)


KINDS = [
    ("a.png", "uint8"), ("a.png", "uint16"), ("a.tif", "uint8"), ("a.tif", "uint16"), ("a.tif", "float32"),
    ("a.exr", "float16"), ("a.exr", "float32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), KINDS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_strength_0_is_the_same_bit_for_bit(tmp_path, name, dtype, channels):
    pixels = numbers(23, 37, channels, dtype)
    linear = {"linear": True, "premultiplied": channels in (2, 4)} if name == "a.exr" else {}
    stored = photo_of(pixels, b"" if linear or channels < 3 else PROFILES["ProPhoto"], **linear)
    photo = written(tmp_path / name, stored)
    assert photo.pixels.dtype == dtype and np.array_equal(photo.pixels, pixels)
    result = Enhancer(Curve(), "cpu").enhance(tmp_path / name, 0)
    again = written(tmp_path / f"out_{name}", result)
    assert again.pixels.dtype == dtype and np.array_equal(again.pixels, pixels)
    assert again.header.metadata.icc == stored.header.metadata.icc


@pytest.mark.parametrize("space", PROFILES)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_colours_survive_the_way_to_the_model_and_back(tmp_path, space, name):
    """All of the space's colours, those too that sRGB has not."""
    photo = photo_of(numbers(61, 83, 3, "uint8" if name == "a.jpg" else "uint16"), PROFILES[space])
    photo = written(tmp_path / name, photo)
    result = enhance_photo(Enhancer(Same(), "cpu").engine, photo, FileOptions())[0]
    assert result.header.metadata.icc == PROFILES[space] and result.pixels.dtype == photo.pixels.dtype
    full = np.iinfo(photo.pixels.dtype).max
    assert np.abs(result.pixels.astype(int) - photo.pixels.astype(int)).max() / full <= 12 / 65535


def test_the_model_sees_srgb_and_its_work_comes_back_in_the_files_colours():
    """One picture, stored in three spaces by lcms2, comes out as one picture."""
    light = encode(decode(torch.from_numpy(numbers(20, 30, 3, "float32"))) * 0.8 + 0.02).numpy()
    srgb = (light * 65535).round().astype(np.uint16)
    model = Enhancer(Curve(), "cpu")
    expected = enhance_photo(model.engine, photo_of(srgb), FileOptions())[0].pixels
    assert np.abs(expected / 65535 - (srgb / 65535) ** 0.7).max() < 2e-5
    plain = imagecodecs.cms_profile("srgb")

    def through_lcms2(pixels: np.ndarray, *profiles: bytes) -> np.ndarray:
        floats = (pixels / 65535).astype(np.float32)  # in integers it interpolates in a coarse table
        result = imagecodecs.cms_transform(floats, *profiles, colorspace="rgb", outdtype="float32", intent=1)
        return (result * 65535).round().clip(0, 65535).astype(np.uint16)

    for space in ("Adobe RGB", "ProPhoto", "Display P3"):
        icc = PROFILES[space]
        stored = through_lcms2(srgb, plain, icc)
        result = enhance_photo(model.engine, photo_of(stored, icc), FileOptions())[0].pixels
        assert (
            np.abs(through_lcms2(result, icc, plain).astype(int) - expected.astype(int)).max() < 16
        )  # a level of 12 bits
        assert np.abs(result.astype(int) - stored.astype(int)).mean() > 1000


def test_colours_outside_srgb_stay_apart():
    """Reds that sRGB would all clip to one, through a model that darkens."""
    pixels = np.full((1, 200, 3), 0, np.uint16)
    pixels[..., 0] = np.linspace(62_000, 65_535, 200)
    result = enhance_photo(
        Enhancer(nn.Sequential(Curve()), "cpu").engine, photo_of(pixels, PROFILES["Display P3"]), FileOptions()
    )[0]
    assert (np.diff(result.pixels[0, :, 0].astype(int)) >= 0).all() and len(np.unique(result.pixels[0, :, 0])) > 190


def test_light_above_white_and_what_is_no_number():
    light = np.array([[-0.1, 0.0, 0.18, 0.9, 1.0, 7.5, 900.0, np.inf, np.nan]], np.float32)
    photo = photo_of(np.repeat(light[..., None], 3, 2), linear=True)
    same = enhance_photo(Enhancer(Same(), "cpu").engine, photo, FileOptions())[0].pixels
    assert np.allclose(same, photo.pixels, rtol=1e-4, atol=1e-6, equal_nan=True)
    result = enhance_photo(Enhancer(Curve(), "cpu").engine, photo, FileOptions())[0].pixels[0, :, 0]
    assert result[2] > 0.25 and result[4] == pytest.approx(1, abs=1e-5) and result[5] == pytest.approx(7.5, rel=1e-4)
    middle = encode(torch.tensor(0.18)).item() ** 0.7
    assert result[2] == pytest.approx(decode(torch.tensor(middle)).item(), rel=1e-4)
    assert np.isinf(result[7]) and np.isnan(result[8])


def test_alpha_and_further_channels_stay(tmp_path):
    pixels = numbers(20, 30, 4, "uint16")
    pixels[:, :10, 3] = 0
    photo = written(tmp_path / "a.tif", photo_of(pixels))
    result = enhance_photo(Enhancer(Curve(), "cpu").engine, photo, FileOptions())[0].pixels
    expected = enhance_photo(Enhancer(Curve(), "cpu").engine, photo_of(pixels[..., :3].copy()), FileOptions())[0].pixels
    assert np.array_equal(result[..., 3], pixels[..., 3]) and np.array_equal(result[..., :3], expected)

    straight = numbers(20, 30, 4, "float32")
    multiplied = straight * np.concatenate([straight[..., 3:]] * 3 + [np.ones_like(straight[..., 3:])], -1)
    photo = photo_of(multiplied.astype(np.float32), linear=True, premultiplied=True)
    result = enhance_photo(Enhancer(Curve(), "cpu").engine, photo, FileOptions())[0].pixels
    plain = enhance_photo(
        Enhancer(Curve(), "cpu").engine, photo_of(straight[..., :3].copy(), linear=True), FileOptions()
    )[0].pixels
    assert np.allclose(result[..., :3], plain * straight[..., 3:], atol=1e-4)


def test_depth_beside_gray_is_no_colour(tmp_path):
    spec = oiio.ImageSpec(30, 20, 3, "float")
    spec.channelnames = ["Y", "A", "Z"]
    pixels = numbers(20, 30, 3, "float32")
    out = oiio.ImageOutput.create(str(tmp_path / "a.exr"))
    assert out.open(str(tmp_path / "a.exr"), spec) and out.write_image(pixels) and out.close()
    result = Enhancer(Curve(), "cpu").enhance(tmp_path / "a.exr").pixels
    assert np.array_equal(result[..., 1:], pixels[..., 1:]) and not np.array_equal(result[..., 0], pixels[..., 0])


def test_gray_stays_gray(tmp_path):
    photo = written(tmp_path / "a.tif", photo_of(numbers(20, 30, 1, "uint16")))
    result = enhance_photo(Enhancer(Curve(), "cpu").engine, photo, FileOptions())[0].pixels
    assert result.shape == (20, 30, 1)
    assert np.abs(result / 65535 - (photo.pixels / 65535) ** 0.7).max() < 3e-4  # by luminance, and back


def test_dither_is_right_on_average_and_shows_no_steps():
    ramp = np.linspace(0.3, 0.32, 4096, dtype=np.float32)[None, :, None].repeat(64, 0).repeat(3, 2)
    ramp_tensor = torch.from_numpy(ramp).permute(2, 0, 1)
    plain, dithered = (from_float(ramp_tensor, np.dtype(np.uint8), dither) for dither in (False, True))
    off = [
        np.abs(x.reshape(8, 8, 512, 8, 3).mean((1, 3)) / 255 - ramp[:8, 4::8][None].mean(1)).mean() * 255
        for x in (plain, dithered)
    ]
    assert off[1] < 0.25 * off[0]
    assert set(np.unique(dithered)) <= {76, 77, 78, 79, 80, 81, 82}
    lower = from_float(ramp_tensor[:, 10:], np.dtype(np.uint8), True, top=10)
    assert np.array_equal(lower, dithered[10:])
    exact = torch.arange(256).float().repeat(3, 5, 1) / 255
    assert np.array_equal(from_float(exact, np.dtype(np.uint8), True), from_float(exact, np.dtype(np.uint8)))


def test_dither_of_a_retouched_photo():
    """16 bits to 8: the ramp has no steps, and nothing is off by more than one level."""
    pixels = np.linspace(20_000, 21_000, 600).astype(np.uint16)[None, :, None].repeat(40, 0).repeat(3, 2)
    photo = photo_of(pixels)
    for dither in (False, True):
        for strength in (0, 1):
            options = FileOptions(strength=strength, dither=dither)
            header = photo.header.stored_as(FORMATS["JPEG"])
            result = enhance_photo(Enhancer(Same(), "cpu").engine, photo, options, header)[0].pixels
            assert result.dtype == np.uint8 and np.abs(result * 257.0 - pixels).max() < 257 * (1 if dither else 0.51)
            assert (len(np.unique(result[:, 300, 0])) > 1) == dither


# ---- pictures larger than memory


def lut_model() -> ImageAdaptiveLUT:
    torch.manual_seed(0)
    model = ImageAdaptiveLUT(2, 9, "statistics")
    with torch.no_grad():
        model.luts += 0.1 * torch.rand_like(model.luts)
        model.luts[0] = model.luts[0].clamp(0, 1) ** 0.5  # light enough for denoise to have work
        model.classifier.head.bias.copy_(torch.tensor([1.0, 0.1]))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", "uint8"), ("a.tif", "uint16"), ("tiled.tif", "uint16"), ("planes.tif", "uint8"), ("a.exr", "float32")],
)
@pytest.mark.parametrize(
    "options",
    [
        FileOptions(),
        FileOptions(denoise=True, protect_highlights=True),
        FileOptions(strength=0),
        FileOptions(dither=True),
    ],
)
def test_by_strips_as_at_once(tmp_path, monkeypatch, name, dtype, options):
    pixels = numbers(75, 53, 3, dtype)
    linear = {"linear": True} if name == "a.exr" else {"icc": PROFILES["Adobe RGB"]}
    if name == "planes.tif":
        tifffile.imwrite(
            tmp_path / name, pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", compression="zlib",
            rowsperstrip=9,
        )  # fmt: skip
    elif name == "tiled.tif":
        spec = oiio.ImageSpec(53, 75, 3, dtype)
        spec.tile_width = spec.tile_height = 16
        out = oiio.ImageOutput.create(str(tmp_path / name))
        assert out.open(str(tmp_path / name), spec) and out.write_image(pixels) and out.close()
    else:
        write_photo(photo_of(pixels, **linear), tmp_path / name)
    enhancer = Enhancer(lut_model(), "cpu")
    enhance_file(enhancer.engine, tmp_path / name, tmp_path / f"whole_{name}", options)
    monkeypatch.setattr(one_photo, "LARGE", 100)
    monkeypatch.setattr(large, "STRIP", 53 * 7)
    enhance_file(enhancer.engine, tmp_path / name, tmp_path / f"strips_{name}", options)
    whole, strips = (read_photo(tmp_path / f"{how}_{name}") for how in ("whole", "strips"))
    near = 1e-5 if dtype == "float32" else 1 / np.iinfo(dtype).max
    scale = 1 if dtype == "float32" else np.iinfo(dtype).max
    assert np.abs(whole.pixels.astype(float) - strips.pixels.astype(float)).max() / scale <= near
    if options.dither and dtype != "float32":  # its pattern goes on from strip to strip
        assert np.mean(whole.pixels != strips.pixels) < 1e-3
    assert (np.abs(strips.pixels.astype(float) - pixels).mean() > 0) == (options.strength > 0)
    assert strips.header.metadata.icc == whole.header.metadata.icc


def test_strips_of_a_photo_on_its_side(tmp_path, monkeypatch):
    """It lies as it lay, says so still, and is decided on as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    dark = np.linspace(10, 120, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    Image.fromarray(dark).save(tmp_path / "a.png", exif=exif)
    enhancer = Enhancer(lut_model(), "cpu")
    whole = enhancer.enhance(tmp_path / "a.png")
    monkeypatch.setattr(one_photo, "LARGE", 100)
    seen = []
    predict = enhancer.model.predict
    monkeypatch.setattr(enhancer.model, "predict", lambda picture: seen.append(picture.overview) or predict(picture))
    enhance_file(enhancer.engine, tmp_path / "a.png", tmp_path / "b.png", FileOptions())
    upright = read_photo(tmp_path / "a.png").pixels
    assert np.array_equal((seen[0][0] * 255).round().permute(1, 2, 0).numpy(), upright)
    assert Image.open(tmp_path / "b.png").size == (60, 40) and Image.open(tmp_path / "b.png").getexif()[0x0112] == 6
    assert np.abs(read_photo(tmp_path / "b.png").pixels.astype(int) - whole.pixels).max() <= 1
    enhance_file(enhancer.engine, tmp_path / "a.png", tmp_path / "b.tif", FileOptions())  # another format: turned
    assert Image.open(tmp_path / "b.tif").size == (40, 60)
    assert np.array_equal(read_photo(tmp_path / "b.tif").pixels, whole.pixels)


def test_a_large_picture_is_seen_from_afar(tmp_path, monkeypatch):
    """Every second pixel decides, where more are too many."""
    pixels = np.repeat(np.repeat(numbers(30, 40, 3, "uint8"), 2, 0), 2, 1)
    write_photo(photo_of(pixels), tmp_path / "a.png")
    monkeypatch.setattr(one_photo, "LARGE", 100)
    monkeypatch.setattr(large, "OVERVIEW", 40)
    monkeypatch.setattr(large, "STRIP", 80 * 7)
    seen = []
    enhancer = Enhancer(lut_model(), "cpu")
    predict = enhancer.model.predict
    monkeypatch.setattr(enhancer.model, "predict", lambda picture: seen.append(picture.overview) or predict(picture))
    enhance_file(enhancer.engine, tmp_path / "a.png", tmp_path / "b.png", FileOptions())
    assert np.array_equal((seen[0][0] * 255).round().permute(1, 2, 0).numpy(), pixels[::2, ::2])


# ---- what is kept


def test_a_jpeg_keeps_its_quality(tmp_path):
    smooth = np.add.outer(np.arange(48), np.arange(64))[..., None].repeat(3, 2).astype(np.uint8)
    for quality, subsampling, progressive in ((60, 2, True), (97, 1, False)):
        Image.fromarray(smooth).save(
            tmp_path / "a.jpg",
            quality=quality,
            subsampling=subsampling,
            progressive=progressive,
            comment=b"mine",
            dpi=(300, 300),
        )
        write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "b.jpg", overwrite=True)
        before, after = Image.open(tmp_path / "a.jpg"), Image.open(tmp_path / "b.jpg")
        assert after.quantization == before.quantization and after.info["dpi"] == (300, 300)
        assert JpegImagePlugin.get_sampling(after) == subsampling and after.info["comment"] == b"mine"
        assert bool(after.info.get("progressive")) == progressive
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "c.jpg", quality=40)
    assert Image.open(tmp_path / "c.jpg").quantization[0][0] > before.quantization[0][0]


@pytest.mark.parametrize("compression", ["none", "lzw", "zip", "packbits"])
def test_a_tiff_keeps_its_compression_and_metadata(tmp_path, compression):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[315], tags[33432] = "a harbour", "someone", "© 2026"
    tags[700], tags[33723] = b"<x:xmpmeta/>", b"\x1c\x02\x78\x00\x05hello"
    tags.tagtype[33723] = 7
    how = {"none": "raw", "lzw": "tiff_lzw", "zip": "tiff_adobe_deflate", "packbits": "packbits"}[compression]
    Image.fromarray(numbers(20, 30, 3, "uint8")).save(
        tmp_path / "a.tif", compression=how, tiffinfo=tags, dpi=(240, 240), icc_profile=PROFILES["Display P3"]
    )
    write_photo(read_photo(tmp_path / "a.tif"), tmp_path / "b.tif")
    before, after = Image.open(tmp_path / "a.tif"), Image.open(tmp_path / "b.tif")
    assert after.info["compression"] == before.info["compression"] and after.info["dpi"] == (240, 240)
    assert after.info["icc_profile"] == PROFILES["Display P3"]
    for tag in (270, 315, 33432, 700, 33723):
        assert after.tag_v2[tag] == before.tag_v2[tag]
    assert 306 not in after.tag_v2 and 305 not in after.tag_v2  # nothing is said that was not: dates, programs
    assert np.array_equal(np.asarray(after), np.asarray(before))


def test_metadata_go_from_format_to_format(tmp_path):
    """EXIF with exposure and maker note, XMP, IPTC and resolution, by way of each format that holds them."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769)[0x829A] = TiffImagePlugin.IFDRational(1, 250)
    exif.get_ifd(0x8769)[0x927C] = b"a maker's note"
    records = b"\x1c\x02\x78\x00\x05hello"
    block = b"8BIM\x04\x04\0\0\0\0\0\x0a" + records
    thumbnail = b"8BIM\x04\x0c\0\0\0\0\0\x04\1\2\3\4"
    segment = b"Photoshop 3.0\0" + thumbnail + block
    app13 = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment
    Image.fromarray(numbers(20, 30, 3, "uint8")).save(
        tmp_path / "0.jpg", exif=exif, xmp=b"<x/>", dpi=(300, 300), extra=app13, icc_profile=PROFILES["Adobe RGB"]
    )
    assert read_photo(tmp_path / "0.jpg").header.metadata.iptc == block
    names = ["0.jpg", "1.tif", "2.jpg", "3.png", "4.tif", "5.webp", "6.jpg"]
    for source, target in pairwise(names):
        write_photo(read_photo(tmp_path / source), tmp_path / target)
    for name in names[1:]:
        about, image = read_photo(tmp_path / name).header.metadata, Image.open(tmp_path / name)
        ifd = image.getexif().get_ifd(0x8769)
        assert image.getexif()[0x010F] == "a camera" and float(ifd[0x829A]) == 1 / 250
        assert ifd[0x927C] == b"a maker's note" and about.xmp == b"<x/>" and about.icc == PROFILES["Adobe RGB"]
    assert [read_photo(tmp_path / name).header.metadata.iptc for name in names[1:4]] == [block, block, b""]
    assert Image.open(tmp_path / "1.tif").tag_v2[33723] == records
    assert all(round(Image.open(tmp_path / name).info["dpi"][0]) == 300 for name in names[1:5])


def test_a_lossless_webp_stays_so(tmp_path):
    pixels = numbers(20, 30, 4, "uint8")
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exact=True)
    assert np.array_equal(written(tmp_path / "b.webp", read_photo(tmp_path / "a.webp")).pixels, pixels)
    write_photo(read_photo(tmp_path / "a.webp"), tmp_path / "c.webp", quality=50)
    assert (tmp_path / "c.webp").stat().st_size < (tmp_path / "b.webp").stat().st_size


def test_heic(tmp_path):
    pytest.importorskip("pillow_heif", reason="pip install fastenh[heic]")
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64, 1).repeat(3, 2)
    for dtype, off in (("uint8", 3 / 255), ("uint16", 3 / 1023)):
        pixels = (ramp / (257 if dtype == "uint8" else 1)).astype(dtype)
        photo = written(tmp_path / f"{dtype}.heic", photo_of(pixels, PROFILES["Display P3"], xmp=b"<x/>"))
        assert photo.pixels.dtype == dtype and photo.header.metadata.icc == PROFILES["Display P3"]
        assert photo.header.metadata.xmp == b"<x/>"
        assert np.abs(photo.pixels.astype(float) - pixels).max() / np.iinfo(dtype).max < off
    enhance_file(Enhancer(Curve(), "cpu").engine, tmp_path / "uint16.heic", tmp_path / "out.heic", FileOptions())
    assert read_photo(tmp_path / "out.heic").pixels.mean() > pixels.mean() + 3000


def test_raw(tmp_path):
    """A DNG of a gray card, half as light as white, by hand: developed to 16-bit sRGB, and written as a TIFF."""
    pytest.importorskip("rawpy", reason="pip install fastenh[raw]")
    mosaic = np.full((128, 192), 8192, np.uint16)
    identity = (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)
    extratags = [
        (50706, 1, 4, (1, 4, 0, 0), True), (50708, 2, 0, "A Camera", True), (33421, 3, 2, (2, 2), True),
        (33422, 1, 4, (0, 1, 1, 2), True), (50717, 4, 1, 16384, True), (50721, 10, 9, identity, True),
        (50728, 5, 3, (1, 1, 1, 1, 1, 1), True), (50778, 3, 1, 21, True), (271, 2, 0, "A Camera", True),
        (272, 2, 0, "Model", True),
    ]  # fmt: skip
    tifffile.imwrite(tmp_path / "a.dng", mosaic, photometric=32803, extratags=extratags, metadata=None)
    assert plan([tmp_path / "a.dng"]) == [Job(tmp_path / "a.dng", tmp_path / "a.tif")]
    photo = read_photo(tmp_path / "a.dng")
    assert photo.pixels.dtype == np.uint16 and photo.pixels.shape == (128, 192, 3)
    green = photo.pixels[40:80, 60:120, 1].mean() / 65535
    assert abs(green - 0.7) < 0.08  # 0.5 of white, in sRGB's curve or one near it
    enhance_file(Enhancer(Curve(), "cpu").engine, tmp_path / "a.dng", tmp_path / "b.tif", FileOptions())
    assert read_photo(tmp_path / "b.tif").pixels.mean() > photo.pixels.mean()
    with pytest.raises(ValueError, match="expected a name that ends in"):
        write_photo(photo, tmp_path / "c.dng")


@pytest.mark.parametrize(("name", "start", "package", "wanted"), [
    ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "pillow_heif", "pillow-heif"),
    ("a.nef", b"II*\0\x08\0\0\0", "rawpy", "rawpy"),
])  # fmt: skip
def test_what_is_missing_is_named_in_one_line(tmp_path, monkeypatch, name, start, package, wanted):
    (tmp_path / name).write_bytes(start + bytes(40))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"expected the package {package} to read .*: pip install {wanted}$"):
        read_photo(tmp_path / name)


# ---- which files, and many of them


def test_where_photos_go(tmp_path):
    for name in ("a.jpg", "b/c.png", "b/.hidden.png", ".d/e.png", "f.nef", "notes.txt", "out/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = lambda jobs: {str(job.photo.relative_to(tmp_path)): str(job.target.relative_to(tmp_path)) for job in jobs}  # noqa: E731
    assert names(plan([tmp_path])) == {"a.jpg": "enhanced/a.jpg", "f.nef": "enhanced/f.tif"}
    assert names(plan([tmp_path], f"{tmp_path}/out", recursive=True)) == {
        "a.jpg": "out/a.jpg", "b/c.png": "out/b/c.png", "f.nef": "out/f.tif",
    }  # fmt: skip
    assert names(plan([tmp_path], f"{tmp_path}/out", "_new")) == {"a.jpg": "out/a_new.jpg", "f.nef": "out/f_new.tif"}
    assert names(plan([tmp_path / "a.jpg"])) == {"a.jpg": "a_enhanced.jpg"}
    assert names(plan([tmp_path / "a.jpg", tmp_path / "f.nef"], None, "_x")) == {"a.jpg": "a_x.jpg", "f.nef": "f_x.tif"}
    assert plan([tmp_path / "f.nef"])[0].target == tmp_path / "f.tif"


@pytest.mark.parametrize("workers", [1, 3])
def test_many_files_in_order_and_each_tried(tmp_path, workers):
    jobs = [Job(tmp_path / f"{n}.png", tmp_path / "out" / f"{n}.png") for n in range(7)]
    for n, job in enumerate(jobs):
        if n != 4:
            Image.fromarray(numbers(9, 11, 3, "uint8")).save(job.photo)
    done = list(enhance_files(Enhancer(Curve(), "cpu").engine, jobs, FileOptions(), workers=workers))
    assert [one.job for one in done] == jobs and [n for n, one in enumerate(done) if one.error] == [4]
    for job in jobs[:4] + jobs[5:]:
        assert np.array_equal(read_photo(job.target).pixels, Enhancer(Curve(), "cpu").enhance(job.photo).pixels)
    (tmp_path / "out" / "2.png").unlink()
    done = list(enhance_files(Enhancer(Curve(), "cpu").engine, jobs, FileOptions(), workers=workers))
    assert [n for n, one in enumerate(done) if one.skipped] == [0, 1, 3, 5, 6] and not done[2].error


def test_from_python(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(numbers(9, 11, 3, "uint8")).save(tmp_path / name)
    (tmp_path / "c.png").write_text("hello")
    enhancer = Enhancer(Curve(), "cpu")
    results = enhancer.enhance_files(tmp_path, f"{tmp_path}/out", 0.5, suffix="_x", workers=2)
    assert [(one.job.target.name, one.error is None) for one in results] == [
        ("a_x.png", True), ("b_x.png", True), ("c_x.png", False),
    ]  # fmt: skip
    assert np.array_equal(read_photo(tmp_path / "out/a_x.png").pixels, enhancer.enhance(tmp_path / "a.png", 0.5).pixels)
    assert enhancer.enhance_files([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out", suffix="_x")[0].skipped
    wrongs = {"quality": (0, "quality: expected 1"), "workers": (0, "workers: expected 1")}
    wrongs |= {"strength": (2, "strength: expected"), "suffix": ("a/b", "suffix: expected")}
    for name, (wrong, message) in wrongs.items():
        with pytest.raises(ValueError, match=message):
            enhancer.enhance_files(tmp_path / "a.png", **{name: wrong})


def test_watch_takes_a_file_once_it_is_whole(tmp_path, monkeypatch, capsys):
    """A clock of our own: what is there at first, one that grows for three seconds, one that is no photo."""
    whole = io.BytesIO()
    Image.fromarray(numbers(9, 11, 3, "uint8")).save(whole, "PNG")
    data = whole.getvalue()
    (tmp_path / "a.png").write_bytes(data)
    seconds = []

    def second(_):
        seconds.append(sorted(path.name for path in (tmp_path / "enhanced").glob("*")))
        now = len(seconds)
        if now <= 3:
            (tmp_path / "b.png").write_bytes(data[: len(data) * now // 3])
        if now == 4:
            (tmp_path / "c.png").write_text("hello")
        if now == 9:
            raise KeyboardInterrupt

    command = importlib.import_module("fastenh.cli.enhance")
    monkeypatch.setattr(command.time, "sleep", second)
    enhancer = Enhancer(Curve(), "cpu")
    command._watch(tmp_path, lambda: plan([tmp_path]), lambda jobs: enhance_files(enhancer.engine, jobs, FileOptions()))
    assert seconds[0] == [] and seconds[1] == ["a.png"] and "b.png" not in seconds[3] and "b.png" in seconds[5]
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        f"Watching {tmp_path}; Ctrl-C ends it", f"Wrote {tmp_path / 'enhanced' / 'a.png'}",
        f"Wrote {tmp_path / 'enhanced' / 'b.png'}", "Ended",
    ]  # fmt: skip
    assert output.err.count("c.png") == 1  # it is tried once


def test_watch_goes_on_after_names_links_and_folders_that_fail(tmp_path, monkeypatch, capsys):
    """Each is said once. A file lies where one subfolder of results would be; another cannot be listed."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    long = "x" * 245 + ".png"
    saved(folder, long, "z.png")
    saved(folder / "deeper", "d.png")
    (folder / "locked").mkdir()
    (folder / "l.png").symlink_to("l.png")
    out.mkdir()
    (out / "deeper").touch()

    def scandir(place, real=os.scandir):
        if str(place).endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return real(place)

    seconds = []

    def second(_):
        seconds.append(1)
        if len(seconds) == 5:
            raise KeyboardInterrupt

    command = importlib.import_module("fastenh.cli.enhance")
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(command.time, "sleep", second)
    enhancer = Enhancer(Curve(), "cpu")
    command._watch(
        folder,
        lambda: plan([folder], str(out), "_retouched", recursive=True),
        lambda jobs: enhance_files(enhancer.engine, jobs, FileOptions()),
    )
    output = capsys.readouterr()
    assert output.out.splitlines()[1:] == [f"Wrote {out / 'z_retouched.png'}", "Ended"]
    failed = {line.split(": ")[1]: line.split(": ")[-1] for line in output.err.splitlines()}
    assert len(failed) == len(output.err.splitlines()) == 4
    assert failed == {
        str(folder / "l.png"): os.strerror(errno.ELOOP),
        str(folder / long): os.strerror(errno.ENAMETOOLONG),
        str(folder / "deeper" / "d.png"): os.strerror(errno.ENOTDIR),
        str(folder / "locked"): os.strerror(errno.EACCES),
    }


def test_watch_waits_where_two_photos_would_have_one_result_and_ends_with_its_folder(tmp_path, monkeypatch, capsys):
    watched = tmp_path / "watched"
    watched.mkdir()
    Image.fromarray(numbers(9, 11, 3, "uint8")).save(watched / "a.tif")
    (watched / "a.dng").write_text("hello")
    seconds = []

    def second(_):
        seconds.append((watched / "enhanced" / "a.tif").exists())
        if len(seconds) == 3:
            (watched / "a.dng").unlink()
        if len(seconds) == 6:
            shutil.rmtree(watched)

    command = importlib.import_module("fastenh.cli.enhance")
    monkeypatch.setattr(command.time, "sleep", second)
    enhancer = Enhancer(Curve(), "cpu")
    with pytest.raises(ValueError, match="expected the folder that is watched, got none there any more"):
        command._watch(
            watched, lambda: plan([watched]), lambda jobs: enhance_files(enhancer.engine, jobs, FileOptions())
        )
    assert seconds == [False, False, False, False, True, True]
    assert capsys.readouterr().err.count("Waiting: ") == 1


def test_an_overwritten_file_keeps_its_permissions(tmp_path):
    Image.fromarray(numbers(9, 11, 3, "uint8")).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0o600)
    enhance_file(Enhancer(Curve(), "cpu").engine, tmp_path / "a.png", tmp_path / "a.png", FileOptions(), overwrite=True)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.exr"])
def test_a_new_file_is_as_private_as_its_photo(tmp_path, name, mode):
    photo, target = tmp_path / "a.png", tmp_path / "out" / name
    Image.fromarray(numbers(9, 11, 3, "uint8")).save(photo)
    photo.chmod(mode)
    job = Job(photo, target, target.with_name("a_compare.jpg"))
    (done,) = enhance_files(Enhancer(Curve(), "cpu").engine, [job], FileOptions())
    assert not done.error and [stat.S_IMODE(path.stat().st_mode) for path in job.outputs] == [mode, mode]


@pytest.mark.parametrize("name", ["a.png", "b.png", "b.jpg", "b.exr"])
@pytest.mark.parametrize("strips", [False, True])
def test_a_result_keeps_its_photos_times_if_requested(tmp_path, monkeypatch, name, strips):
    if strips:
        monkeypatch.setattr(one_photo, "LARGE", 1)
    photo, engine = tmp_path / "a.png", Enhancer(ImageAdaptiveLUT(1, 9, "statistics"), "cpu").engine
    Image.fromarray(numbers(9, 11, 3, "uint8")).save(photo)
    times = 1_000_000_000_123_456_000, 1_111_111_111_654_321_000
    os.utime(photo, ns=times)
    started = time.time_ns() - 10**9
    enhance_file(engine, photo, tmp_path / "usual.png", FileOptions())
    assert (tmp_path / "usual.png").stat().st_mtime_ns > started
    os.utime(photo, ns=times)
    enhance_file(engine, photo, tmp_path / name, FileOptions(keep_times=True), overwrite=True)
    about = (tmp_path / name).stat()
    assert (about.st_atime_ns, about.st_mtime_ns) == times


# ---- runs that were ended, runs at the same time, photos that fail


def saved(folder: Path, *names: str) -> list[Path]:
    """Photos of some formats."""
    folder.mkdir(exist_ok=True)
    for name in names:
        write_photo(photo_of(numbers(19, 31, 3, "uint8")), folder / name)
    return [folder / name for name in names]


@pytest.mark.parametrize("left", [0, 0.3, 0.95, "zeros"])
def test_outputs_that_a_power_cut_left_are_done_again(tmp_path, left):
    photos = saved(tmp_path / "in", "a.jpg", "b.png", "c.tif", "d.webp", "e.exr")
    enhancer, jobs = Enhancer(Curve(), "cpu"), plan(photos, f"{tmp_path}/out/", compare=True)
    assert not any(done.error or done.skipped for done in enhance_files(enhancer.engine, jobs, FileOptions()))
    outputs = {path: path.read_bytes() for job in jobs for path in job.outputs}
    for path, data in outputs.items():
        path.write_bytes(bytes(len(data)) if left == "zeros" else data[: round(left * len(data))])
    assert not any(done.error or done.skipped for done in enhance_files(enhancer.engine, jobs, FileOptions()))
    assert {path: path.read_bytes() for path in outputs} == outputs
    assert all(done.skipped for done in enhance_files(enhancer.engine, jobs, FileOptions()))
    (only,) = plan(photos[:1], str(tmp_path / "only.jpg"))  # as is the one file that is named
    only.target.write_bytes(outputs[jobs[0].target][:100])
    assert plan(photos[:1], str(only.target)) == [only]
    assert not next(enhance_files(enhancer.engine, [only], FileOptions())).error and read_photo(only.target)


def test_a_damaged_photo_is_not_taken_for_a_result_that_was_cut_short(tmp_path):
    """It may be the only one: it is replaced if that is asked for."""
    data = saved(tmp_path, "a.jpg")[0].read_bytes()[:-100]
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    for photo, output in (("a.jpg", "a.jpg"), ("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")):
        with pytest.raises(FileExistsError, match="exists, and"):
            plan([tmp_path / photo], str(tmp_path / output))
        assert len(plan([tmp_path / photo], str(tmp_path / output), overwrite=True)) == 1


def test_two_runs_share_the_work(tmp_path):
    """Each does all photos, with comparisons, at the same time as the other."""
    photos = saved(tmp_path / "in", *(f"{suffix}{n}.{suffix}" for n in range(4) for suffix in ("jpg", "png", "tif")))
    jobs = plan(photos, f"{tmp_path}/out/", compare=True)
    barrier = Barrier(2, timeout=60)

    class Slow(Curve):
        def forward(self, image):
            barrier.wait()  # both have found that nothing is there
            return super().forward(image)

    def run(_) -> list[Outcome]:
        return list(enhance_files(Enhancer(Slow(), "cpu").engine, jobs, FileOptions()))

    with ThreadPoolExecutor(2) as pool:
        done = [one for run in pool.map(run, range(2)) for one in run]
    assert [one.error for one in done] == [None] * 24
    assert {path for job in jobs for path in job.outputs} == {*(tmp_path / "out").iterdir()}


def test_a_comparison_that_another_run_wrote_meanwhile_stays(tmp_path, monkeypatch):
    smooth = Image.linear_gradient("L").convert("RGB").resize((30, 20))
    smooth.save(tmp_path / "a.jpg")
    (job,) = plan([tmp_path / "a.jpg"], compare=True)

    def retouch(*arguments):
        smooth.save(job.comparison)  # as the other run
        return enhance_file(*arguments)

    monkeypatch.setattr(batch, "enhance_file", retouch)
    (done,) = enhance_files(Enhancer(Same(), "cpu").engine, [job], FileOptions())
    assert done.error is None and Image.open(job.comparison).size == (30, 20)


def test_failed_photos_keep_neither_pixels_nor_files_open(tmp_path, monkeypatch):
    """Some are damaged, some the model refuses; what each outcome says is kept, with its traceback as text."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    names = [f"{n}.{suffix}" for n in range(6) for suffix in ("jpg", "png", "tif", "webp", "exr")]
    photos = saved(tmp_path / "in", *names)
    for photo in photos[::2]:
        photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])

    class Refusing(nn.Module):
        def forward(self, image):
            raise RuntimeError("not this one")

    seen = []

    def retouch(enhancer, photo, *arguments, real=one_photo.enhance_photo):
        seen.append(weakref.ref(photo))
        return real(enhancer, photo, *arguments)

    monkeypatch.setattr(one_photo, "enhance_photo", retouch)
    before = len(os.listdir("/proc/self/fd"))
    done = list(enhance_files(Enhancer(Refusing(), "cpu").engine, plan(photos, f"{tmp_path}/out/"), FileOptions()))
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(seen) >= 15 and [reference() for reference in seen] == [None] * len(seen)
    assert all(
        one.error and one.error.__traceback__ is one.error.__context__ is one.error.__cause__ is None for one in done
    )
    told = [one for one in done if str(one.error) == "not this one"]
    assert len(told) == len(seen) and all("in forward" in one.traceback for one in told)


def test_photos_of_one_name_have_two_comparisons(tmp_path):
    for name in ("a.cr2", "a.jpg", "b.jpg", "c.jpg", "c_enhanced.jpg"):
        (tmp_path / name).touch()
    names = lambda jobs: {job.photo.name: (job.target.name, job.comparison.name) for job in jobs}  # noqa: E731
    expected = {
        "a.cr2": ("a.tif", "a.cr2_compare.jpg"), "a.jpg": ("a.jpg", "a.jpg_compare.jpg"),
        "b.jpg": ("b.jpg", "b_compare.jpg"), "c.jpg": ("c.jpg", "c.jpg_compare.jpg"),
        "c_enhanced.jpg": ("c_enhanced.jpg", "c_enhanced.jpg_compare.jpg"),
    }  # fmt: skip
    assert names(plan([tmp_path], f"{tmp_path}/out", compare=True)) == expected
    (tmp_path / "c_enhanced.jpg").unlink()
    beside = {
        "a.cr2": ("a.tif", "a.cr2_compare.jpg"), "a.jpg": ("a_enhanced.jpg", "a.jpg_compare.jpg"),
        "b.jpg": ("b_enhanced.jpg", "b_compare.jpg"), "c.jpg": ("c_enhanced.jpg", "c_compare.jpg"),
    }  # fmt: skip
    for _ in range(2):  # once more with the results there
        jobs = plan([tmp_path], str(tmp_path), compare=True)
        assert names(jobs) == beside
        for job in jobs:
            job.target.touch()
            job.comparison.touch()


def test_a_link_to_itself_is_one_failure(tmp_path):
    (good,) = saved(tmp_path, "a.png")
    (tmp_path / "l.png").symlink_to("l.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to("a.png")
    enhancer = Enhancer(Curve(), "cpu")
    done = list(enhance_files(enhancer.engine, plan([tmp_path]), FileOptions()))
    assert [getattr(one.error, "errno", 0) for one in done] == [0, errno.ELOOP]
    for overwrite in (False, True):
        (done,) = enhance_files(enhancer.engine, plan([good], f"{tmp_path}/out"), FileOptions(), overwrite=overwrite)
        assert done.error.errno == errno.ELOOP and (tmp_path / "out" / "a.png").is_symlink()


def test_headers_are_values():
    header = photo_of(numbers(4, 5, 3, "uint8")).header
    assert replace(header, orientation=6).upright() == replace(header, height=5, width=4)
