"""What is left of a photo's file after a power cut is told from a whole one, wherever it ends."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
from PIL import Image

from fastenh.io import Header, Photo, read_photo, write_photo
from fastenh.io.formats.registry import is_complete

PIXELS = np.random.default_rng(3).integers(0, 256, (24, 30, 3), np.uint8)
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None


def ours(path: Path) -> None:
    height, width, channels = PIXELS.shape
    write_photo(Photo(Header("", height, width, channels, PIXELS.dtype, 3), PIXELS), path)


def through_pillow(path: Path, **how) -> None:
    Image.fromarray(PIXELS).save(path, **how)


def through_openimageio(path: Path, **how) -> None:
    spec = oiio.ImageSpec(30, 24, 3, "half" if path.suffix == ".exr" else "uint16")
    for key, value in how.items():
        if key == "tile":
            spec.tile_width = spec.tile_height = value
        else:
            spec[key] = value
    out = oiio.ImageOutput.create(str(path))
    assert out.open(str(path), spec) and out.write_image(PIXELS) and out.close()


def with_thumbnail(path: Path) -> None:
    """A JPEG whose EXIF holds another."""
    through_pillow(path.with_name("small.jpg"), quality=20)
    exif = b"Exif\0\0" + path.with_name("small.jpg").read_bytes()
    Image.fromarray(PIXELS).save(path, exif=exif)


WRITERS = {
    **{f"ours.{suffix}": ours for suffix in ("jpg", "png", "tif", "webp", "exr", "avif", "jxl")},
    **({"ours.heic": ours} if HAS_HEIF else {}),
    "thumbnail.jpg": with_thumbnail,
    "progressive.jpg": lambda path: through_pillow(path, progressive=True),
    "lossless.webp": lambda path: through_pillow(path, lossless=True),
    "profile.png": lambda path: through_pillow(path, icc_profile=b"a profile"),
    "lzw.tif": lambda path: through_pillow(path, compression="tiff_lzw"),
    "tiled.tif": lambda path: through_openimageio(path, tile=16),
    "tiled.exr": lambda path: through_openimageio(path, tile=16),
    "upwards.exr": lambda path: through_openimageio(
        path, **{"openexr:lineOrder": "decreasingY", "compression": "zips"}
    ),
    "piz.exr": lambda path: through_openimageio(path, compression="piz"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_complete_with_its_last_byte(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    data = path.read_bytes()
    assert is_complete(path)
    spare = 1 if data[:2] in (b"II", b"MM") else 0  # after the last strip there may be a byte to make places even
    for size in {*range(12, len(data) - spare, max(1, len(data) // 200)), *range(len(data) - 40, len(data) - spare)}:
        path.write_bytes(data[:size])
        assert not is_complete(path), size
    for size in (0, 1, len(data)):
        path.write_bytes(bytes(size))
        assert not is_complete(path)


@pytest.mark.parametrize("name", ["ours.jpg", "thumbnail.jpg", "ours.png"])
def test_blocks_that_never_reached_the_disk_are_seen_at_the_end(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    data = path.read_bytes()
    for size in range(len(data) // 2, len(data) - 8, 37):
        path.write_bytes(data[:size] + bytes(len(data) - size))
        assert not is_complete(path)
    path.write_bytes(data + b"more, as phones append")
    assert is_complete(path)


def test_bytes_between_the_segments_of_a_jpeg_are_skipped(tmp_path):
    """As decoders skip them: fill bytes, markers without a segment, and stray bytes."""
    path = tmp_path / "a.jpg"
    through_pillow(path)
    data, pixels = path.read_bytes(), np.asarray(Image.open(path))
    for more in (b"\xff\xff\xff", b"\xff\x01\xff\xd0", bytes(10_000)):
        path.write_bytes(data[:20] + more + data[20:])  # after JFIF's segment
        assert is_complete(path) and np.array_equal(read_photo(path).pixels, pixels)
        path.write_bytes(data[:20] + more + data[20:-2])
        assert not is_complete(path)


def test_a_tiff_with_its_directory_first_needs_its_strips(tmp_path):
    path = tmp_path / "a.tif"
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 134),
            (277, 3, 1, 1), (278, 3, 1, 4), (279, 4, 1, 16)]  # fmt: skip
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        values = {3: order + "HHIHxx", 4: order + "HHII"}
        entries = b"".join(struct.pack(values[tag[1]], *tag) for tag in tags)
        head = mark + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4)
        data = head.ljust(134, b"\0") + bytes(range(16))
        path.write_bytes(data)
        assert is_complete(path) and np.asarray(Image.open(path)).sum() == 120
        path.write_bytes(data[:-1])
        assert not is_complete(path)


def test_a_tiff_whose_directory_is_nowhere_is_cut_short(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II\x2b\0\x08\0\0\0" + b"\xff" * 8 + bytes(100))
    assert not is_complete(tmp_path / "a.tif")


@pytest.mark.parametrize("data", [b"old", b"some notes, which somebody wrote", b"GIF89a" + bytes(40)])
def test_what_is_no_photo_is_neither(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ValueError, match="expected a photo"):
        is_complete(tmp_path / "a.jpg")
