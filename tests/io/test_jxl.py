"""JPEG XL against imagecodecs, which has its own libjxl, and against recompressed JPEGs."""

import io
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import OpenImageIO as oiio
import pytest
from PIL import Image, ImageOps

from fastenh.io import Header, Photo, read_photo, read_size, write_photo
from fastenh.io.colour import profile_of, undated
from fastenh.io.encoding import model_input
from fastenh.io.formats import jxl
from fastenh.io.formats.boxes import box
from fastenh.io.formats.registry import is_complete
from fastenh.io.metadata import DISPLAY_P3, Metadata

RNG = np.random.default_rng(5)
Y, X = np.mgrid[:48, :64]
RAMP = np.stack([X / 63, Y / 47, (X + Y) / 110, (63 - X) / 63], -1)
P3 = profile_of(None, DISPLAY_P3)
EXIF = Image.Exif()
EXIF[0x010F] = "a camera"


def ramp(dtype: str, channels: int) -> np.ndarray:
    colours = RAMP[..., [0, 3]] if channels == 2 else RAMP[..., :channels]
    return (colours * np.iinfo(dtype).max).round().astype(dtype) if dtype[0] == "u" else colours.astype(dtype)


def photo_of(pixels: np.ndarray, **metadata) -> Photo:
    return Photo(Header.of("", pixels, Metadata(**metadata)), pixels)


def seen(photo: Photo) -> np.ndarray:
    return model_input(photo.pixels, photo.header).numpy()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_written_files_are_read_in_the_same_depth(tmp_path: Path, dtype: str, channels: int) -> None:
    pixels, path = ramp(dtype, channels), tmp_path / "a.jxl"
    write_photo(photo_of(pixels), path, quality=100)
    if channels == 2 or (dtype[0] == "f" and channels == 1):  # is written as RGB
        pixels = np.concatenate([pixels[..., :1].repeat(3, 2), pixels[..., 1:]], 2)
    photo = read_photo(path)
    theirs = imagecodecs.jpegxl_decode(path.read_bytes())
    assert photo.pixels.dtype == theirs.dtype == dtype and not photo.header.linear
    assert np.array_equal(photo.pixels, pixels) and np.array_equal(theirs.reshape(pixels.shape), pixels)
    assert photo.header.alpha == (3 if channels in (2, 4) else None) and not photo.header.metadata.icc
    write_photo(photo, tmp_path / "b.jxl")  # lossless, as it was
    write_photo(photo, tmp_path / "c.jxl")
    assert np.array_equal(read_photo(tmp_path / "b.jxl").pixels, pixels)
    assert (tmp_path / "b.jxl").read_bytes() == (tmp_path / "c.jxl").read_bytes()


def test_floats_are_lossless(tmp_path: Path) -> None:
    pixels = RNG.normal(0, 5, (48, 64, 3)).astype(np.float32)
    pixels[0, :4, 0] = np.inf, -np.inf, np.nan, 1e-40
    write_photo(photo_of(pixels), tmp_path / "a.jxl")
    assert np.array_equal(read_photo(tmp_path / "a.jxl").pixels, pixels, equal_nan=True)


def test_floats_that_libjxl_cannot_store_are_refused_with_a_remedy(tmp_path: Path) -> None:
    pixels = RNG.random((300, 300, 3), np.float32)
    pixels[0, 0, 0] = -0.01
    with pytest.raises(ValueError, match="got negative values that it cannot store; use TIFF or a quality below 100"):
        write_photo(photo_of(pixels), tmp_path / "a.jxl")
    assert not [*tmp_path.iterdir()]
    write_photo(photo_of(pixels), tmp_path / "a.jxl", quality=99)
    write_photo(photo_of(pixels.astype(np.float16)), tmp_path / "b.jxl")
    assert np.array_equal(read_photo(tmp_path / "b.jxl").pixels, pixels.astype(np.float16))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_other_depths_are_scaled(tmp_path: Path, bits: int) -> None:
    numbers = (RAMP[..., :3] * (2**bits - 1)).round().astype(np.uint16)
    data = imagecodecs.jpegxl_encode(numbers, lossless=True, bitspersample=bits)
    (tmp_path / "a.jxl").write_bytes(data)
    photo = read_photo(tmp_path / "a.jxl")
    assert photo.pixels.dtype == np.uint16
    assert np.abs(photo.pixels.astype(float) - numbers * (65535 / (2**bits - 1))).max() <= 0.51


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_lossy_is_the_default_and_close(tmp_path: Path, dtype: str) -> None:
    pixels = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48)))
    pixels = pixels if dtype == "uint8" else pixels.astype(np.uint16) * 257
    for name, quality in (("a.jxl", None), ("b.jxl", 95), ("c.jxl", 40)):
        write_photo(photo_of(pixels), tmp_path / name, quality)
    sizes = [(tmp_path / name).stat().st_size for name in ("a.jxl", "b.jxl", "c.jxl")]
    assert sizes[0] == sizes[1] > 2 * sizes[2]
    photo = read_photo(tmp_path / "a.jxl")
    assert not photo.header.storage["lossless"]
    assert np.abs(photo.pixels.astype(float) - pixels).mean() / np.iinfo(dtype).max < 0.01


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_metadata_is_kept(tmp_path: Path, dtype: str) -> None:
    exif, xmp = EXIF.tobytes().removeprefix(b"Exif\0\0"), "<x:xmpmeta>é</x:xmpmeta>".encode()
    about = Metadata(P3, exif, xmp)
    photo = photo_of(ramp(dtype, 3), icc=P3, exif=exif, xmp=xmp)
    write_photo(photo, tmp_path / "a.jxl", quality=100)
    assert read_photo(tmp_path / "a.jxl").header.metadata == about
    data = (tmp_path / "a.jxl").read_bytes()
    assert box(b"Exif", bytes(4) + exif) in data and box(b"xml ", xmp) in data
    packed = {
        name: imagecodecs.brotli_encode(content) for name, content in ((b"Exif", bytes(4) + exif), (b"xml ", xmp))
    }
    for name, content in ((b"Exif", bytes(4) + exif), (b"xml ", xmp)):
        data = data.replace(box(name, content), box(b"brob", name + packed[name]))
    (tmp_path / "b.jxl").write_bytes(data)
    assert read_photo(tmp_path / "b.jxl").header.metadata == about
    bomb = box(b"brob", b"xml " + imagecodecs.brotli_encode(bytes(jxl.MAX_UNPACKED + 1)))
    (tmp_path / "c.jxl").write_bytes(data.replace(box(b"brob", b"xml " + packed[b"xml "]), bomb))
    assert read_photo(tmp_path / "c.jxl").header.metadata == Metadata(P3, exif)
    write_photo(read_photo(tmp_path / "a.jxl"), tmp_path / "d.tif")
    assert read_photo(tmp_path / "d.tif").header.metadata.icc == P3


@pytest.mark.parametrize("icc", [P3, imagecodecs.cms_profile("adobergb")], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_lossy_files_keep_the_colours_of_a_profile(tmp_path: Path, dtype: str, icc: bytes) -> None:
    """libjxl stores such profiles as numbers, so the file is read with an equivalent profile."""
    photo = photo_of(
        np.full((48, 64, 3), (180, 100, 80), "uint8").astype(dtype) * (257 if dtype == "uint16" else 1), icc=icc
    )
    write_photo(photo, tmp_path / "a.jxl")
    again = read_photo(tmp_path / "a.jxl")
    assert again.header.metadata.icc and again.pixels.dtype == dtype
    assert np.abs(again.pixels.astype(float) - photo.pixels).max() / np.iinfo(dtype).max < 0.02
    assert np.abs(seen(again) - seen(photo)).max() < 0.02


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [3, 4])
def test_lossy_files_with_other_profiles_are_converted(tmp_path: Path, dtype: str, channels: int) -> None:
    """XYB with a profile whose curve, L*, has no code: libjxl alone would decode it to 8-bit linear light."""
    steps = np.linspace(0, 100, 4096)
    light = np.where(steps > 8, ((steps + 16) / 116) ** 3, steps / 903.3)
    primaries = (0.67, 0.33, 0.21, 0.71, 0.14, 0.08)
    curve = (light * 65535).round().astype(np.uint16)
    icc = undated(
        imagecodecs.cms_profile("rgb", whitepoint=(0.3457, 0.3585), primaries=primaries, transferfunction=curve)
    )
    photo = photo_of(ramp(dtype, channels), icc=icc)
    write_photo(photo, tmp_path / "a.jxl", quality=99)
    again = read_photo(tmp_path / "a.jxl")
    assert again.header.notes == ("left out the ICC profile; colours were converted to Display P3",)
    assert again.header.metadata.icc == P3 and again.pixels.dtype == dtype and not again.header.linear
    assert np.abs(seen(again) - seen(photo)).mean() < 0.006
    if channels == 4:
        assert np.abs(again.pixels[..., 3].astype(float) - photo.pixels[..., 3]).max() <= 1
    write_photo(photo, tmp_path / "b.jxl", quality=100)
    assert read_photo(tmp_path / "b.jxl").header.metadata.icc == icc


def recompressed_jpeg(exif: Image.Exif, **how) -> tuple[bytes, Image.Image]:
    """A losslessly recompressed JPEG, and the JPEG as Pillow opens it."""
    out = io.BytesIO()
    Image.fromarray(ramp("uint8", 3)).save(out, "JPEG", quality=98, subsampling=0, exif=exif, **how)
    return imagecodecs.jpegxl_encode_jpeg(out.getvalue(), usecontainer=True), Image.open(out)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a camera"
    exif.get_ifd(0x8769).update({0xA002: 64, 0xA003: 48})
    data, jpeg = recompressed_jpeg(exif)
    (tmp_path / "a.jxl").write_bytes(data)
    upright = np.asarray(ImageOps.exif_transpose(jpeg)).astype(int)
    photo = read_photo(tmp_path / "a.jxl")
    assert photo.pixels.shape == upright.shape and np.abs(photo.pixels - upright).max() <= 3
    assert read_size(tmp_path / "a.jxl") == upright.shape[:2]
    write_photo(photo, tmp_path / "b.jpg", quality=100)
    written = Image.open(tmp_path / "b.jpg")
    below = written.getexif().get_ifd(0x8769)
    assert written.getexif()[0x0112] == 1 and written.getexif()[0x010F] == "a camera"
    assert (below[0xA002], below[0xA003]) == written.size
    write_photo(photo, tmp_path / "c.jxl")
    assert np.abs(read_photo(tmp_path / "c.jxl").pixels - upright).mean() < 3


def test_a_recompressed_jpeg_is_lossy(tmp_path: Path) -> None:
    data, jpeg = recompressed_jpeg(EXIF, icc_profile=P3)
    (tmp_path / "a.jxl").write_bytes(data)
    photo = read_photo(tmp_path / "a.jxl")
    assert np.abs(photo.pixels.astype(int) - np.asarray(jpeg)).max() <= 3
    assert photo.header.metadata.icc == P3 and not photo.header.storage["lossless"]


def test_linear_floats_stay_linear(tmp_path: Path) -> None:
    pixels = (RAMP[..., :3] * 4).astype(np.float32)
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))  # which states linear sRGB
    photo = read_photo(tmp_path / "a.jxl")
    assert photo.header.linear and np.array_equal(photo.pixels, pixels)
    write_photo(photo, tmp_path / "b.jxl")
    again = read_photo(tmp_path / "b.jxl")
    assert again.header.linear and np.array_equal(again.pixels, pixels)
    write_photo(photo, tmp_path / "c.exr")
    assert np.array_equal(read_photo(tmp_path / "c.exr").pixels, pixels)
    write_photo(read_photo(tmp_path / "c.exr"), tmp_path / "d.jxl")
    encoded = read_photo(tmp_path / "d.jxl")
    assert not encoded.header.linear and encoded.pixels.max() > 1.5  # in sRGB's curve, beyond white too
    write_photo(encoded, tmp_path / "e.exr")
    assert np.abs(read_photo(tmp_path / "e.exr").pixels - pixels).max() < 1e-5


def through_openimageio(path: Path, pixels: np.ndarray, codes: tuple[int, int]) -> None:
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], pixels.shape[2], str(pixels.dtype).replace("32", ""))
    spec.attribute("CICP", oiio.TypeDesc("int[4]"), (*codes, 0, 1))
    out = oiio.ImageOutput.create(str(path))
    assert out.open(str(path), spec) and out.write_image(pixels) and out.close()


def test_colours_by_their_code(tmp_path: Path) -> None:
    path = tmp_path / "a.jxl"
    for codes, got in (((9, 16), "BT.2020 with PQ"), ((9, 18), "BT.2020 with HLG")):
        through_openimageio(path, ramp("uint16", 3), codes)
        with pytest.raises(ValueError, match=f"got {got}$"):
            read_photo(path)
    through_openimageio(path, np.full((48, 64, 3), (200, 60, 30), np.uint8), (12, 13))
    same = photo_of(read_photo(path).pixels, icc=P3)
    assert np.abs(seen(read_photo(path)) - seen(same)).max() < 0.002
    through_openimageio(path, ramp("float32", 3), (9, 8))
    photo = read_photo(path)
    assert photo.header.linear and photo.header.chromaticities == (*jxl.BT2020, 0.3127, 0.3290)
    write_photo(photo, tmp_path / "b.jxl")
    assert read_photo(tmp_path / "b.jxl").header.chromaticities == photo.header.chromaticities


def test_unsupported_files_are_refused(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.jxl", ramp("uint8", 3)
    square = 2 << 1 | 200_000 - 1 << 3 | 1 << 21 | 1 << 24  # a height of 18 bits; ratio 1:1; defaults
    cases = {
        "expected one picture, got an animation": imagecodecs.jpegxl_encode(np.stack([pixels, pixels[::-1]])),
        "expected colours and alpha alone, got 2 further channels": imagecodecs.jpegxl_encode(
            np.moveaxis(pixels, 2, 0), planar=True
        ),
        "expected at most 268 megapixels, got 200000×200000": b"\xff\x0a" + square.to_bytes(40, "little"),
    }
    for message, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{path}: {message}$"):
            read_photo(path)


def test_damage_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jxl"
    write_photo(photo_of(ramp("uint8", 4), exif=EXIF.tobytes()[6:]), path)
    data = path.read_bytes()
    for size in range(12, len(data), 9):
        path.write_bytes(data[:size])
        assert not is_complete(path)
        with pytest.raises(ValueError, match=r"^\S+: expected .*$"):
            read_photo(path)
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
        try:
            read_photo(path)
        except ValueError as error:
            assert "\n" not in str(error)


def test_a_codestream_without_boxes_or_in_parts(tmp_path: Path) -> None:
    pixels = np.full((48, 64, 3), 90, np.uint8)
    bare = imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=False)
    assert bare[:2] == b"\xff\x0a" and len(bare) < jxl.SHORTEST
    parts = [
        box(b"jxlp", struct.pack(">I", n | last << 31), part) for n, part, last in ((0, bare[:9], 0), (1, bare[9:], 1))
    ]
    for data in (bare, jxl.SIGNATURE + b"".join(parts)):
        (tmp_path / "a.jxl").write_bytes(data)
        assert np.array_equal(read_photo(tmp_path / "a.jxl").pixels, pixels) and is_complete(tmp_path / "a.jxl")
    (tmp_path / "a.jxl").write_bytes(jxl.SIGNATURE + parts[0])
    assert not is_complete(tmp_path / "a.jxl")
