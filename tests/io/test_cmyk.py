"""CMYK is converted to RGB through its profile, as Pillow's littlecms converts it, and a note reports this."""

import io
import struct
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from fastenh import Enhancer
from fastenh.io import read_photo
from fastenh.models import System
from fastenh.ops.op import from_float, to_float

RNG = np.random.default_rng(9)
INK = RNG.integers(0, 256, (32, 48, 4), np.uint8)
BY_PROFILE = "CMYK was converted to sRGB by its ICC profile"
BY_NONE = "CMYK was converted to sRGB approximately, without a usable ICC profile"


class Same(System):
    reach = 0

    def render(self, image, params, local, place, out=None):
        result = from_float(to_float(image), image.dtype)
        return result if out is None else out.copy_(result)


def lut16(grid: int = 5) -> bytes:
    """A CMYK profile with one table (ICC.1, lut16Type): inks to Lab."""
    c, m, y, k = np.meshgrid(*[np.linspace(0, 1, grid)] * 4, indexing="ij")
    light = (1 - k) * (1 - 0.4 * c - 0.45 * m - 0.05 * y)
    lab = np.stack([100 * light, 60 * (m - c) * (1 - k), 70 * (y - 0.5 * m - 0.5 * c) * (1 - k)], -1)
    numbers = np.stack([lab[..., 0] * 652.8, (lab[..., 1] + 128) * 256, (lab[..., 2] + 128) * 256], -1)
    table = np.rint(numbers.clip(0, 65535)).astype(">u2").tobytes()
    linear = np.array([0, 65535], ">u2").tobytes()
    identity = struct.pack(">9i", *(65536 if n % 4 == 0 else 0 for n in range(9)))
    body = b"mft2" + bytes(4) + bytes((4, 3, grid, 0)) + identity + struct.pack(">HH", 2, 2)
    body += linear * 4 + table + linear * 3
    tags = {b"A2B0": body + bytes(-len(body) % 4), b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 4) + b"ink\0" + bytes(8 + 3 + 67 + 1)
    tags[b"cprt"] = b"text\0\0\0\0none"
    place, entries, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        entries += struct.pack(">4sII", name, place + len(data), len(value))
        data += value
    head = struct.pack(">I4sI4s4s4s", 128 + len(entries) + len(data), bytes(4), 0x02200000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + entries + data


PROFILE = lut16()


def by_pillow(ink: np.ndarray) -> np.ndarray:
    profile, srgb = ImageCms.ImageCmsProfile(io.BytesIO(PROFILE)), ImageCms.createProfile("sRGB")
    image = ImageCms.profileToProfile(Image.fromarray(ink, "CMYK"), profile, srgb, 1, outputMode="RGB")
    return np.asarray(image)


def without_profile(ink: np.ndarray) -> np.ndarray:
    full = np.iinfo(ink.dtype).max
    left = 1 - ink.astype(float) / full
    return np.rint(full * left[..., :3] * left[..., 3:])


def stored(path: Path, ink: np.ndarray, planar: bool = False, **how) -> None:
    ink = np.ascontiguousarray(ink.transpose(2, 0, 1)) if planar else ink
    tifffile.imwrite(
        path, ink, photometric="separated", planarconfig="separate" if planar else "contig", metadata=None, **how
    )


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "lzw", "zstd"])
def test_tiff(tmp_path, compression, dtype, planar):
    ink = INK if dtype == np.uint8 else 257 * INK.astype(np.uint16)
    stored(tmp_path / "a.tif", ink, planar, compression=compression)
    stored(tmp_path / "b.tif", ink, planar, compression=compression, iccprofile=PROFILE)
    plain, managed = read_photo(tmp_path / "a.tif"), read_photo(tmp_path / "b.tif")
    full = np.iinfo(dtype).max
    assert plain.pixels.dtype == managed.pixels.dtype == dtype
    assert np.abs(plain.pixels - without_profile(ink)).max() <= 1 and plain.header.notes == (BY_NONE,)
    assert np.abs(managed.pixels / full - by_pillow(INK) / 255).max() <= 1.01 / 255
    assert managed.header.notes == (BY_PROFILE,) and managed.header.colours == 3
    assert ImageCms.ImageCmsProfile(io.BytesIO(managed.header.metadata.icc)).profile.xcolor_space.strip() == "RGB"


def test_jpeg_in_tiff(tmp_path):
    ink = np.repeat(np.repeat(INK[:4, :6], 8, 0), 8, 1)
    stored(tmp_path / "a.tif", ink, compression="jpeg", compressionargs={"level": 98})
    decoded = tifffile.imread(tmp_path / "a.tif")
    assert np.abs(read_photo(tmp_path / "a.tif").pixels - without_profile(decoded)).max() <= 1


@pytest.mark.parametrize("adobe", [True, False])
def test_jpeg(tmp_path, adobe):
    """Adobe's JPEGs, which Pillow writes, hold 255 for no ink; others, by the standard, hold 0."""
    y, x = np.mgrid[:32, :48]
    ink = np.stack([5 * x, 7 * y, 3 * x + y, 2 * y], -1).astype(np.uint8)
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.jpg", quality=95, icc_profile=PROFILE)
    data = (tmp_path / "a.jpg").read_bytes()
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    if not adobe:
        place = data.index(b"\xff\xee")
        data = data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :]
        decoded = 255 - decoded
    (tmp_path / "a.jpg").write_bytes(data)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.header.notes == (BY_PROFILE,)
    assert np.abs(photo.pixels.astype(int) - by_pillow(decoded)).max() <= 1
    photo.save(tmp_path / "b.jpg")
    again = Image.open(tmp_path / "b.jpg")
    assert again.mode == "RGB" and np.abs(np.asarray(again).astype(int) - photo.pixels).mean() < 2


def test_ycck(tmp_path):
    ink = np.repeat(np.repeat(INK[:4, :6], 8, 0), 8, 1)
    data = imagecodecs.jpeg8_encode(255 - ink, level=98, colorspace="CMYK", outcolorspace="YCCK", subsampling="444")
    assert Image.open(io.BytesIO(data)).info["adobe_transform"] == 2
    (tmp_path / "a.jpg").write_bytes(data)
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(read_photo(tmp_path / "a.jpg").pixels - without_profile(decoded)).max() <= 1


@pytest.mark.parametrize("icc", [imagecodecs.cms_profile("srgb"), PROFILE[:300], b"nonsense"])
def test_a_profile_that_is_not_for_cmyk_is_ignored(tmp_path, icc):
    stored(tmp_path / "a.tif", INK, iccprofile=icc)
    photo = read_photo(tmp_path / "a.tif")
    assert photo.header.notes == (BY_NONE,)
    assert np.abs(photo.pixels - without_profile(INK)).max() <= 1


@pytest.mark.parametrize("planar", [1, 2])
def test_a_cmyk_profile_identifies_four_channels_without_a_photometric_tag(tmp_path, planar):
    stored(tmp_path / "a.tif", INK, planar == 2, iccprofile=PROFILE)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[0].tags[262].offset
    data[place : place + 2] = b"\x05\x01"  # the tag becomes 261, which is unknown
    (tmp_path / "b.tif").write_bytes(data)
    assert np.array_equal(read_photo(tmp_path / "b.tif").pixels, read_photo(tmp_path / "a.tif").pixels)


def test_extra_channels_are_kept(tmp_path):
    alpha = RNG.integers(0, 256, (32, 48, 1), np.uint8)
    stored(tmp_path / "a.tif", np.concatenate([INK, alpha], 2), extrasamples=[2])
    photo = read_photo(tmp_path / "a.tif")
    assert (photo.header.channels, photo.header.colours, photo.header.alpha) == (4, 3, 3)
    assert np.array_equal(photo.pixels[..., 3:], alpha)


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_a_run_reports_the_conversion(tmp_path, name):
    if name == "a.tif":
        stored(tmp_path / name, INK)
    else:
        Image.fromarray(INK, "CMYK").save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (outcome,) = Enhancer(Same(), "cpu").enhance_files(tmp_path / name, tmp_path / "out")
    assert outcome.error is None and outcome.notes == (BY_NONE,)
    assert Image.open(tmp_path / "out" / name).mode == "RGB"
