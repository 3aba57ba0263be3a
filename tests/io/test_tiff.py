"""TIFFs of any depth, compression and photometric interpretation are read as tifffile reads them, or refused."""

import io
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
from PIL import Image

from fastenh.io import read_photo, write_photo
from fastenh.io.photos import open_photo

RNG = np.random.default_rng(5)


def tags_of(path: Path) -> dict[int, object]:
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages[0].tags}


def by_hand(tags: dict[int, tuple[int, ...]], *strips: bytes, order: str = "<") -> bytes:
    """A TIFF with these strips and only the given tags; values are shorts, or longs where necessary."""
    offsets = [8 + sum(map(len, strips[:n])) for n in range(len(strips))]
    tags = tags | {273: tuple(offsets), 279: tuple(map(len, strips))}
    place = 8 + sum(map(len, strips)) + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        kind, letter = (4, "I") if max(numbers) > 65535 or tag in (273, 279) else (3, "H")
        value = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(value) > 4:
            entries += struct.pack(order + "HHII", tag, kind, len(numbers), place + len(values))
            values += value
        else:
            entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + sum(map(len, strips)))
    return head + b"".join(strips) + struct.pack(order + "H", len(tags)) + entries + bytes(4) + values


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Samples packed with the highest bit first, each row padded to a byte."""
    numbers = samples.reshape(len(samples), -1, 1) >> np.arange(bits)[::-1] & 1
    return np.packbits(numbers.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def scaled(samples: np.ndarray, bits: int) -> np.ndarray:
    full = 255 if bits <= 8 else 65535
    return np.rint(samples.astype(float) * full / (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1, 2])
@pytest.mark.parametrize("bits", [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
def test_any_number_of_bits(tmp_path, bits, photometric, order):
    colours = 3 if photometric == 2 else 1
    samples = RNG.integers(0, 2**bits, (9, 7, colours))
    tags = {256: (7,), 257: (9,), 258: (bits,) * colours, 259: (1,), 262: (photometric,), 277: (colours,), 278: (4,)}
    strips = [packed(samples[top : top + 4], bits) for top in (0, 4, 8)]
    (tmp_path / "a.tif").write_bytes(by_hand(tags, *strips, order=order))
    expected = scaled(2**bits - 1 - samples if photometric == 0 else samples, bits)
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, expected)


def test_12_bits_with_a_predictor(tmp_path):
    samples = RNG.integers(0, 4096, (5, 6, 1))
    differences = np.diff(samples, axis=1, prepend=0) % 4096
    tags = {256: (6,), 257: (5,), 258: (12,), 259: (8,), 262: (1,), 277: (1,), 278: (5,), 317: (2,)}
    (tmp_path / "a.tif").write_bytes(by_hand(tags, imagecodecs.zlib_encode(packed(differences, 12))))
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, scaled(samples, 12))


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("colours", [1, 3])
def test_lossless_jpeg(tmp_path, bits, colours):
    samples = RNG.integers(0, 2**bits, (16, 24, colours)).astype(np.uint16)
    encoded = imagecodecs.jpeg8_encode(
        samples.squeeze(), lossless=True, bitspersample=bits, colorspace="RGB" if colours == 3 else None,
        outcolorspace="RGB" if colours == 3 else None,
    )  # fmt: skip
    kind = 2 if colours == 3 else 1
    tags = {256: (24,), 257: (16,), 258: (bits,) * colours, 259: (7,), 262: (kind,), 277: (colours,), 278: (16,)}
    (tmp_path / "a.tif").write_bytes(by_hand(tags, encoded))
    photo = read_photo(tmp_path / "a.tif")
    assert np.array_equal(photo.pixels, scaled(samples, bits))
    write_photo(photo, tmp_path / "b.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif").reshape(samples.shape), photo.pixels)


def test_jpeg_of_12_bits(tmp_path):
    y, x = np.mgrid[:48, :64]
    samples = (40 * y + 30 * x).astype(np.uint16)
    tags = {256: (64,), 257: (48,), 258: (12,), 259: (7,), 262: (1,), 277: (1,), 278: (48,)}
    data = by_hand(tags, imagecodecs.jpeg8_encode(samples, bitspersample=12, level=95))
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels[..., 0], scaled(tifffile.imread(io.BytesIO(data)), 12))


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("extra", [(2,), (0,), (1,), (0, 2)])
@pytest.mark.parametrize("bits", [4, 8])
def test_palette_with_extra_channels(tmp_path, bits, extra, planar):
    palette = RNG.integers(0, 256, (2**bits, 3))
    samples = RNG.integers(0, 2**bits, (6, 10, 1 + len(extra)))
    tags = {
        256: (10,), 257: (6,), 258: (bits,) * (1 + len(extra)), 259: (1,), 262: (3,), 277: (1 + len(extra),), 278: (6,),
        284: (planar,), 320: tuple((257 * palette.T).reshape(-1).tolist()), 338: extra,
    }  # fmt: skip
    planes = np.split(samples, samples.shape[2], 2) if planar == 2 else [samples]
    (tmp_path / "a.tif").write_bytes(by_hand(tags, *[packed(plane, bits) for plane in planes]))
    photo = read_photo(tmp_path / "a.tif")
    assert np.array_equal(photo.pixels[..., :3], palette[samples[..., 0]])
    assert np.array_equal(photo.pixels[..., 3:], scaled(samples[..., 1:], bits))
    alpha = next((3 + place for place, kind in enumerate(extra) if kind), None)
    assert (photo.header.colours, photo.header.alpha, photo.header.premultiplied) == (3, alpha, extra == (1,))


def test_an_index_beyond_the_palette_is_damage(tmp_path):
    tags = {256: (2,), 257: (1,), 258: (8, 8), 259: (1,), 262: (3,), 277: (2,), 278: (1,), 320: (0,) * 6, 338: (2,)}
    (tmp_path / "a.tif").write_bytes(by_hand(tags, bytes((0, 255, 2, 255))))
    with pytest.raises(ValueError, match=r"got a damaged one \(an index beyond the palette of 2 colours\)$"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [2, 3, 4])
@pytest.mark.parametrize("photometric", [None, 0, 1])
def test_fax_without_a_photometric_tag_is_black_on_white(tmp_path, compression, photometric):
    """In fax codes 1 is black."""
    ink = RNG.integers(0, 2, (12, 40, 1), np.uint8)
    how = {2: "tiff_ccitt", 3: "group3", 4: "group4"}[compression]
    Image.fromarray(255 * ink[..., 0]).convert("1").save(tmp_path / "a.tif", compression=how)
    stored = tags_of(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    strips = [data[at : at + size] for at, size in zip(stored[273], stored[279], strict=True)]
    tags = {256: (40,), 257: (12,), 258: (1,), 259: (compression,), 277: (1,), 278: (int(stored[278]),)}
    tags |= {292: (int(stored[292]),)} if 292 in stored else {}
    (tmp_path / "b.tif").write_bytes(by_hand(tags | ({} if photometric is None else {262: (photometric,)}), *strips))
    ones = ink if int(stored[262]) else 1 - ink  # as they are coded
    assert np.array_equal(read_photo(tmp_path / "b.tif").pixels, 255 * (ones if photometric == 1 else 1 - ones))


@pytest.mark.parametrize("planar", [1, 2])
def test_four_channels_without_a_photometric_tag_are_refused(tmp_path, planar):
    tags = {256: (3,), 257: (2,), 258: (8,) * 4, 259: (1,), 277: (4,), 278: (2,), 284: (planar,)}
    (tmp_path / "a.tif").write_bytes(by_hand(tags, *([bytes(6)] * 4 if planar == 2 else [bytes(24)])))
    with pytest.raises(ValueError, match=r"expected a PhotometricInterpretation tag, got 4 channels without it$"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize(("bits", "kind", "photometric", "got"), [
    (24, 1, 1, "8 or 16 bits, or floats of 16 or 32, got uint24"),
    (64, 1, 1, "8 or 16 bits, or floats of 16 or 32, got uint64"),
    (16, 2, 1, "8 or 16 bits, or floats of 16 or 32, got int16"),
    (64, 3, 1, "8 or 16 bits, or floats of 16 or 32, got float64"),
    (24, 3, 1, "8 or 16 bits, or floats of 16 or 32, got float24"),
    (8, 1, 8, "RGB or gray, got CIELAB"),
    (8, 1, 9, "RGB or gray, got ICCLAB"),
    (8, 1, 32803, "RGB or gray, got a sensor's values"),
    (8, 1, 2, "3 colour channels, got 1"),
    (8, 1, 77, "RGB or gray, got photometric interpretation 77"),
])  # fmt: skip
def test_refusals_name_what_is_not_supported(tmp_path, bits, kind, photometric, got):
    tags = {256: (2,), 257: (1,), 258: (bits,), 259: (1,), 262: (photometric,), 277: (1,), 278: (1,), 339: (kind,)}
    (tmp_path / "a.tif").write_bytes(by_hand(tags, bytes(2 * bits)))
    with pytest.raises(ValueError, match=f": expected {got}$"):
        read_photo(tmp_path / "a.tif")


def test_planar_subsampled_colours_are_not_reported_as_damage(tmp_path):
    tags = {256: (4,), 257: (4,), 258: (8,) * 3, 259: (1,), 262: (6,), 277: (3,), 278: (4,), 284: (2,), 530: (2, 2)}
    (tmp_path / "a.tif").write_bytes(by_hand(tags, bytes(16), bytes(4), bytes(4)))
    with pytest.raises(ValueError, match="expected TIFF of a kind that can be read, got another"):
        read_photo(tmp_path / "a.tif")


def test_channels_of_different_depths_are_refused(tmp_path):
    tags = {256: (2,), 257: (1,), 258: (5, 6, 5), 259: (1,), 262: (2,), 277: (3,), 278: (1,)}
    (tmp_path / "a.tif").write_bytes(by_hand(tags, bytes(4)))
    with pytest.raises(ValueError, match=r"expected channels of equally many bits, got 5, 6, 5$"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["zstd", "lzma"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32])
def test_zstandard_and_lzma(tmp_path, dtype, order, planar, tile, compression):
    pixels = RNG.random((40, 50, 3)).astype(dtype) if dtype in (np.float16, np.float32) else RNG.integers(
        0, np.iinfo(dtype).max, (40, 50, 3), dtype, endpoint=True
    )  # fmt: skip
    for predictor in (False, True):
        stored = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if planar == "separate" else pixels
        tifffile.imwrite(
            tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, compression=compression, tile=tile,
            predictor=predictor, byteorder=order, rowsperstrip=None if tile else 7,
        )  # fmt: skip
        assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, pixels)
        rows = open_photo(tmp_path / "a.tif")
        parts = [rows.read(top, min(top + 9, 40)) for top in range(0, 40, 9)]
        assert np.array_equal(np.concatenate(parts), pixels)


@pytest.mark.parametrize("name", ["none", "lzw", "zip", "packbits", "zstd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_compressions_that_are_kept(tmp_path, dtype, name):
    """Other programs read the files; equal photos give equal bytes, without the time of writing."""
    pixels = (RNG.random((90, 500, 4)) * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    code = {"none": None, "lzw": "lzw", "zip": "zlib", "packbits": "packbits", "zstd": "zstd"}[name]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression=code, extrasamples=[0], metadata=None)
    for target in ("b.tif", "c.tif"):
        write_photo(read_photo(tmp_path / "a.tif"), tmp_path / target)
    number = {"none": 1, "lzw": 5, "zip": 8, "packbits": 32773, "zstd": 50000}[name]
    assert tags_of(tmp_path / "b.tif")[259] == number and 306 not in tags_of(tmp_path / "b.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), pixels)
    assert np.array_equal(read_photo(tmp_path / "b.tif").pixels, pixels)
    if name != "zstd":
        file = oiio.ImageInput.open(str(tmp_path / "b.tif"))
        assert np.array_equal(file.read_image(oiio.UNKNOWN if dtype != np.float32 else "float"), pixels)
    assert (tmp_path / "b.tif").read_bytes() == (tmp_path / "c.tif").read_bytes()


@pytest.mark.parametrize("compression", ["zstd", "lzma"])
def test_damaged_strips_read_by_imagecodecs(tmp_path, compression):
    pixels = RNG.integers(0, 4096, (30, 40), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", metadata=None, compression=compression)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    stored = tags_of(tmp_path / "a.tif")
    data[stored[273][0] + 20 : stored[273][0] + 60] = bytes(40)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ValueError, match="expected a whole TIFF, got a damaged one"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "dtype", "mean"), [("ljpeg16", np.uint16, 31523.5), ("palette_alpha", np.uint8, 127.5)]
)
def test_files_of_other_programs(assets, name, dtype, mean):
    path = assets / "inputs" / "photos" / f"{name}.tif"
    if not path.exists():
        pytest.skip("asset missing")
    pixels = read_photo(path).pixels
    assert pixels.dtype == dtype and abs(pixels[..., : 3 if name == "palette_alpha" else 1].mean() - mean) < 0.01
