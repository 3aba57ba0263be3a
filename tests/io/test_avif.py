"""AVIF against Pillow, which has its own decoder and encoder for 8 bits."""

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from fastenh.io import Header, Photo, read_photo, read_size, write_photo
from fastenh.io.colour import from_profile, profile_of
from fastenh.io.formats import avif
from fastenh.io.formats.registry import is_complete
from fastenh.io.metadata import DISPLAY_P3, Metadata

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="needs a Pillow with AVIF to compare with")

RNG = np.random.default_rng(5)
Y, X = np.mgrid[:48, :64]
RAMP = np.stack([X / 63, Y / 47, (X + Y) / 110, (63 - X) / 63], -1)
EXIF = Image.Exif()
EXIF[0x010F] = "a camera"
P3 = profile_of(None, DISPLAY_P3)


def ramp(dtype: str, channels: int) -> np.ndarray:
    colours = RAMP[..., [0, 3]] if channels == 2 else RAMP[..., :channels]
    return (colours * np.iinfo(dtype).max).round().astype(dtype)


def photo_of(pixels: np.ndarray, storage: dict | None = None, **metadata) -> Photo:
    about = Metadata(**metadata)
    header = Header.of("AVIF" if storage else "", pixels, about, **(storage or {}))
    return Photo(header, pixels)


def differ(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).max() / np.iinfo(a.dtype).max)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "bits"), [("uint8", 8), ("uint16", 10), ("uint16", 12)])
def test_written_files_are_read_in_the_same_depth(tmp_path: Path, dtype: str, bits: int, channels: int) -> None:
    pixels, path = ramp(dtype, channels), tmp_path / "a.avif"
    write_photo(photo_of(pixels, {"bits": bits}), path, quality=100)
    photo = read_photo(path)
    assert photo.header.storage["bits"] == bits and photo.pixels.dtype == dtype
    assert photo.header.alpha == (channels - 1 if channels in (2, 4) else None)
    full = 2**bits - 1
    rounded = np.rint(np.rint(pixels * (full / np.iinfo(dtype).max)) * (np.iinfo(dtype).max / full))
    assert np.array_equal(photo.pixels, rounded)  # quality 100 is lossless but for the depth
    seen = np.asarray(Image.open(path).convert(["L", "LA", "RGB", "RGBA"][channels - 1]))
    assert np.abs(seen.reshape(pixels.shape) - pixels / (np.iinfo(dtype).max / 255)).max() <= 1
    write_photo(photo, tmp_path / "b.avif")
    again = read_photo(tmp_path / "b.avif")
    assert again.header.storage == photo.header.storage
    if channels > 2:  # only RGB files state that they are lossless
        assert np.array_equal(again.pixels, photo.pixels)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_subsampling_is_kept_and_95_is_the_quality_of_lossy_files(tmp_path: Path, subsampling: str) -> None:
    pixels = RNG.integers(0, 256, (64, 64, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    Image.fromarray(pixels).save(tmp_path / "a.avif", subsampling=subsampling, quality=90)
    photo = read_photo(tmp_path / "a.avif")
    assert np.array_equal(photo.pixels, np.asarray(Image.open(tmp_path / "a.avif")))
    assert photo.header.storage["chroma"] == subsampling.replace(":", "") and not photo.header.storage["lossless"]
    for name, quality in (("b.avif", None), ("c.avif", 50), ("d.avif", None)):
        write_photo(photo, tmp_path / name, quality)
    assert read_photo(tmp_path / "b.avif").header.storage == photo.header.storage
    sizes = [(tmp_path / name).stat().st_size for name in ("b.avif", "c.avif")]
    assert sizes[1] < sizes[0] / 2
    assert (tmp_path / "b.avif").read_bytes() == (tmp_path / "d.avif").read_bytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_and_mirroring_are_applied_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramp("uint8", 3)).save(tmp_path / "a.avif", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.avif")))
    photo = read_photo(tmp_path / "a.avif")
    assert np.array_equal(photo.pixels, upright) and read_size(tmp_path / "a.avif") == upright.shape[:2]
    write_photo(photo, tmp_path / "b.avif", quality=100)
    written = Image.open(tmp_path / "b.avif")
    assert written.getexif().get(0x0112, 1) == 1 and np.array_equal(np.asarray(written), upright)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_metadata_is_exchanged_with_pillow(tmp_path: Path, dtype: str) -> None:
    exif, xmp = EXIF.tobytes().removeprefix(b"Exif\0\0"), "<x:xmpmeta>é</x:xmpmeta>".encode()
    icc = P3 + RNG.bytes(100_000)
    write_photo(photo_of(ramp(dtype, 4), icc=icc, exif=exif, xmp=xmp), tmp_path / "a.avif")
    info = Image.open(tmp_path / "a.avif").info
    assert (info["icc_profile"], info["exif"].removeprefix(b"Exif\0\0"), info["xmp"]) == (icc, exif, xmp)
    photo = read_photo(tmp_path / "a.avif")
    assert photo.header.metadata == Metadata(icc, exif, xmp)
    Image.fromarray(ramp("uint8", 3)).save(tmp_path / "b.avif", icc_profile=icc, exif=exif, xmp=xmp)
    theirs = read_photo(tmp_path / "b.avif").header.metadata
    assert theirs == Metadata(icc, exif, xmp)
    write_photo(photo, tmp_path / "c.tif")
    assert read_photo(tmp_path / "c.tif").header.metadata.icc == icc


def coded(path: Path, primaries: int, curve: int, channels: int = 3) -> Path:
    """A file with codes and without a profile."""
    photo = photo_of(ramp("uint8", channels), {"codes": (primaries, curve)})
    write_photo(photo, path, overwrite=True)
    return path


def test_colours_by_their_code(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    assert not read_photo(coded(path, 1, 13)).header.metadata.icc
    assert not read_photo(coded(path, 2, 2)).header.metadata.icc
    assert not read_photo(coded(path, 12, 13, 1)).header.metadata.icc  # gray
    photo = read_photo(coded(path, 12, 13))
    assert photo.header.metadata.icc == P3
    write_photo(photo, tmp_path / "b.avif")
    again = read_photo(tmp_path / "b.avif").header
    assert again.storage["codes"] == (12, 13) and again.metadata.icc == P3
    for codes, got in (
        ((9, 16), "BT.2020 with PQ"),
        ((9, 18), "BT.2020 with HLG"),
        ((1, 8), "primaries 1 with curve 8"),
    ):
        with pytest.raises(ValueError, match=f"got {got}$"):
            read_photo(coded(path, *codes))
    write_photo(photo_of(ramp("uint8", 3), {"codes": (9, 13)}, icc=P3), path, overwrite=True)
    assert read_photo(path).header.metadata.icc == P3  # which takes precedence


def test_a_wide_profile_means_the_same_colours(tmp_path: Path) -> None:
    write_photo(photo_of(ramp("uint16", 3), icc=P3), tmp_path / "a.avif", quality=100)
    photo = read_photo(tmp_path / "a.avif")
    assert not from_profile(photo.header.metadata.icc, 3).is_srgb
    assert differ(photo.pixels, ramp("uint16", 3)) < 1 / 4095


def test_a_crop_is_applied(tmp_path: Path) -> None:
    """A clean aperture of 40 of 64 columns from 8 and 20 of 48 rows from 4 replaces a profile whose box is as long."""
    path = tmp_path / "a.avif"
    write_photo(photo_of(ramp("uint8", 3), icc=bytes(28)), path, quality=100)
    crop = struct.pack(">IIIIiIiI", 40, 1, 20, 1, -4, 1, -10, 1)
    data = path.read_bytes().replace(b"colrprof" + bytes(28), b"clap" + crop)
    with open(path, "rb") as file:
        container = avif.read_container(file)
    indices = bytes(essential << 7 | index for essential, index in container.items[container.primary].properties)
    path.write_bytes(data.replace(indices, indices[:-1] + bytes([0x80 | indices[-1]])))
    assert np.array_equal(read_photo(path).pixels, ramp("uint8", 3)[4:24, 8:48]) and read_size(path) == (20, 40)


def test_movies_are_refused_and_do_no_harm(tmp_path: Path) -> None:
    """libavif may decode the frames instead of the picture, and imagecodecs then writes beyond its buffer."""
    frames = [Image.fromarray(RNG.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(9)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="expected one picture, got an animation"):
        read_photo(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "b.avif").write_bytes(data.replace(b"ftypavis", b"ftypavif"))
    assert read_photo(tmp_path / "b.avif").pixels.shape == (48, 64, 3)


def test_damage_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    write_photo(photo_of(ramp("uint8", 4), icc=P3, exif=EXIF.tobytes()[6:]), path)
    data = path.read_bytes()
    for size in (*range(12, 700, 7), len(data) - 1):
        path.write_bytes(data[:size])
        assert not is_complete(path)
        for read in (read_photo, read_size):
            with pytest.raises(ValueError, match=r"^\S+: expected .*$"):
                read(path)
    for place in range(4, 700, 5):
        path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
        try:
            read_photo(path)
        except ValueError as error:
            assert "\n" not in str(error)


def test_sizes_are_checked_before_anything_is_decoded(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.avif"
    write_photo(photo_of(ramp("uint8", 3)), path)
    data = path.read_bytes()
    monkeypatch.setattr(imagecodecs, "avif_decode", None)
    path.write_bytes(data.replace(struct.pack(">II", 64, 48), struct.pack(">II", 30_000, 30_000)))
    with pytest.raises(ValueError, match="expected at most 268 megapixels, got 30000×30000"):
        read_photo(path)
    for place, value in ((b"iloc", b"\xff\xff"), (b"iinf", b"\xff\xff"), (b"ipma", b"\xff" * 4)):
        at = data.index(place) + 8 + 2 * (place == b"iloc")
        path.write_bytes(data[:at] + value + data[at + len(value) :])
        with pytest.raises(ValueError, match="expected a whole AVIF, got a damaged one"):
            read_photo(path)
    with pytest.raises(ValueError, match="expected at most 65536 pixels a side for AVIF, got 65537×1"):
        write_photo(photo_of(np.zeros((1, 65537, 3), np.uint8)), tmp_path / "b.avif")
