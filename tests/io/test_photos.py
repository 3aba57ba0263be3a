"""Photos come back as they were stored, turned upright once; whatever is no whole photo is refused."""

import ctypes
import errno
import hashlib
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, PngImagePlugin

from fastenh.atomic import replacing
from fastenh.io import Header, Photo, read_photo, read_pixels, write_photo
from fastenh.io.colour import from_profile, undated
from fastenh.io.formats import png as png_format
from fastenh.io.formats import tiff as tiff_format
from fastenh.io.metadata import Metadata, read_exif
from fastenh.io.photos import open_photo, row_writer, stored_as

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged metadata

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (12, 20, 3), np.uint8)
# How the EXIF standard turns stored rows and columns into the upright picture, in NumPy.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encoded(image: Image.Image, format: str, **how) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **how)
    return out.getvalue()


def exif_with(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    return exif.tobytes()


def smooth(height: int = 48, width: int = 64) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([4 * y, 3 * x, 2 * x + y], -1).astype(np.uint8))


def photo_of(pixels: np.ndarray | Image.Image, **metadata) -> Photo:
    """A photo with these pixels, as from nowhere."""
    pixels = np.atleast_3d(np.asarray(pixels))
    height, width, channels = pixels.shape
    colours = 3 if channels > 2 else 1
    alpha = colours if channels > colours else None
    return Photo(
        Header("", height, width, channels, pixels.dtype, colours, alpha, metadata=Metadata(**metadata)), pixels
    )


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_png_round_trip_is_exact(mode, size, seed, tmp_path_factory):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, len(mode)), np.uint8)
    path = tmp_path_factory.mktemp("png") / "a.png"
    write_photo(photo_of(pixels), path)
    assert Image.open(path).mode == mode and np.array_equal(np.atleast_3d(np.asarray(Image.open(path))), pixels)
    assert np.array_equal(read_photo(path).pixels, pixels)


def test_palette_transparency_and_bilevel_become_plain_modes(tmp_path):
    rgba = np.concatenate([PIXELS, np.full((12, 20, 1), 255, np.uint8)], -1)
    cases = {
        "RGB": (smooth().convert("P"), {}),
        "RGBA": (smooth().convert("P"), {"transparency": 3}),
        "LA": (smooth().convert("L"), {"transparency": 9}),
        "L": (smooth().convert("1"), {}),
    }
    for mode, (image, how) in cases.items():
        path = tmp_path / f"{mode}.png"
        image.save(path, **how)
        photo = read_photo(path)
        assert photo.pixels.shape[2] == len(mode) and photo.pixels.dtype == np.uint8
        assert np.array_equal(photo.pixels, np.atleast_3d(np.asarray(Image.open(path).convert(mode))))
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.array_equal(read_photo(tmp_path / "a.png").pixels, rgba)


@pytest.mark.parametrize("format", ["jpg", "png"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_once(tmp_path, format, orientation):
    stored = tmp_path / f"stored.{format}"
    smooth().save(stored, exif=exif_with(orientation))
    upright = UPRIGHT[orientation](np.asarray(Image.open(stored)))

    photo = read_photo(stored)
    assert np.array_equal(photo.pixels, upright)

    write_photo(photo, tmp_path / "written.png")
    written = Image.open(tmp_path / "written.png")
    assert written.getexif()[0x0112] == 1 and written.getexif()[0x010F] == "a camera"
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(written)), upright)
    assert np.array_equal(read_photo(tmp_path / "written.png").pixels, upright)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_changes_in_its_orientation_and_thumbnail_alone(tmp_path, order):
    """A block by hand: orientation, a maker note at a place that its own pointers rely on, and a thumbnail."""
    note = RNG.bytes(60)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    directory = struct.pack(order + "H", 2)
    directory += struct.pack(order + "HHIHH", 0x0112, 3, 1, 8, 0)
    directory += struct.pack(order + "HHII", 0x927C, 7, len(note), 38)
    block = head + directory + struct.pack(order + "I", 38 + len(note)) + note
    thumbnail = struct.pack(order + "HHHIII", 1, 0x0201, 4, 1, 0, 0)
    assert block.index(note) == 38
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "JPEG", exif=b"Exif\0\0" + block + thumbnail))

    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    kept = Image.open(tmp_path / "b.jpg").info["exif"].removeprefix(b"Exif\0\0")
    expected = bytearray(block + thumbnail)
    expected[18:20] = struct.pack(order + "H", 1)  # the value of the first entry
    expected[34:38] = bytes(4)  # where the next directory, the thumbnail's, would stand
    assert kept == bytes(expected)


def exif_block(*entries: bytes, after: bytes = bytes(4)) -> bytes:
    """A block by hand, of entries of one directory and what follows it."""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + after


SIDEWAYS = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
BEYOND = 99_999  # the end of any block here
DAMAGED = {
    "a text beyond the end": exif_block(struct.pack("<HHII", 0x010F, 2, 20, BEYOND), SIDEWAYS),
    "EXIF beyond the end": exif_block(SIDEWAYS, struct.pack("<HHII", 0x8769, 4, 1, BEYOND)),
    "a type that is none": exif_block(struct.pack("<HHII", 0x010F, 77, 20, 0), SIDEWAYS),
    "more tags than there are": b"II*\0\x08\0\0\0\x09\0" + SIDEWAYS,
    "nothing after the directory": exif_block(SIDEWAYS, struct.pack("<HHI4s", 0x0132, 2, 4, b"now"), after=b""),
    "a value right after it": exif_block(struct.pack("<HHII", 0x010F, 2, 9, 34), SIDEWAYS, after=b"a camera\0"),
}


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_in_exif_costs_neither_orientation_nor_other_tags(tmp_path, name, suffix):
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "JPEG", exif=b"Exif\0\0" + DAMAGED[name]))
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.pixels.shape == (64, 48, 3)
    write_photo(photo, tmp_path / f"b.{suffix}")
    if suffix != "tif":
        kept = Image.open(tmp_path / f"b.{suffix}").info["exif"].removeprefix(b"Exif\0\0")
        assert kept == DAMAGED[name].replace(SIDEWAYS, struct.pack("<HHIHH", 0x0112, 3, 1, 1, 0))
    written = Image.open(tmp_path / f"b.{suffix}")
    texts = {"nothing after the directory": (0x0132, "now"), "a value right after it": (0x010F, "a camera")}
    if name in texts:
        tag, text = texts[name]
        assert (written.tag_v2 if suffix == "tif" else written.getexif())[tag] == text


def test_exif_whose_directories_lead_to_themselves(tmp_path):
    """4096 times at every depth: it takes no time to speak of."""
    again = struct.pack("<HHII", 0x8769, 4, 1, 8)
    exif = exif_block(*[SIDEWAYS] + [again] * 4095)
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "JPEG", exif=b"Exif\0\0" + exif))
    assert read_photo(tmp_path / "a.jpg").pixels.shape == (64, 48, 3)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_exif_gives_the_size_of_the_photo_as_it_stands(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update({0xA002: 64, 0xA003: 48, 0x8827: 100})
    smooth().save(tmp_path / "a.jpg", exif=exif)
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / f"b.{suffix}")
    written = Image.open(tmp_path / f"b.{suffix}")
    below = written.getexif().get_ifd(0x8769)
    assert (below[0xA002], below[0xA003]) == written.size == ((48, 64) if orientation == 6 else (64, 48))
    assert below[0x8827] == 100


@given(block=st.binary(max_size=80) | st.lists(st.tuples(st.integers(6, 80), st.integers(0, 255)), max_size=4))
@settings(max_examples=60, deadline=None)
def test_damaged_exif_never_costs_the_photo(block, tmp_path_factory):
    if isinstance(block, list):
        exif = bytearray(exif_with(6))
        for place, value in block:
            exif[place % len(exif)] = value
    else:
        exif = b"Exif\0\0" + block
    path = tmp_path_factory.mktemp("exif") / "a.jpg"
    path.write_bytes(encoded(smooth(), "JPEG", exif=bytes(exif)))
    photo = read_photo(path)
    assert sorted(photo.pixels.shape[:2]) == [48, 64]
    for suffix in ("jpg", "png", "tif"):
        write_photo(photo, path.with_suffix(f".{suffix}"), overwrite=True)
        assert read_photo(path.with_suffix(f".{suffix}")).pixels.shape == photo.pixels.shape


@pytest.mark.parametrize("first", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("second", ["jpg", "png", "tif", "webp"])
def test_profile_and_xmp_are_kept(tmp_path, first, second):
    profile = imagecodecs.cms_profile("srgb") + RNG.bytes(150_000)  # more than one JPEG marker holds
    xmp = '<x:xmpmeta><d tiff:Orientation="6" xmp:Rating="4"/>é</x:xmpmeta>'.encode()
    source, target = tmp_path / f"a.{first}", tmp_path / f"b.{second}"
    write_photo(photo_of(smooth(), icc=profile, xmp=xmp, exif=exif_with(1)[6:]), source)
    write_photo(read_photo(source), target)
    written = Image.open(target)
    written.load()
    assert written.info["icc_profile"] == profile
    kept = written.tag_v2[700] if second == "tif" else written.info["xmp"]
    assert kept == xmp.replace(b'Orientation="6"', b'Orientation="1"')
    assert written.getexif()[0x010F] == "a camera"


def resource(number: int, value: bytes, name: bytes = b"", signature: bytes = b"8BIM") -> bytes:
    """One of Photoshop's image resources, by hand."""
    name = bytes([len(name)]) + name
    name, padding = name + bytes(len(name) % 2), bytes(len(value) % 2)
    return signature + struct.pack(">H", number) + name + struct.pack(">I", len(value)) + value + padding


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_photoshop_resources_keep_their_names_and_order(tmp_path, suffix):
    """A path that the photo is clipped by is found by its name; others' resources may stand before."""
    records = b"\x1c\x02\x05\0\x05Title"
    kept = [
        resource(5000, b"abc", signature=b"MeSa"), resource(1028, records),
        resource(2000, bytes(26), b"Path 1"), resource(2001, bytes(3), b"Path 2a"), resource(2999, b"\6Path 1"),
    ]  # fmt: skip
    segment = b"Photoshop 3.0\0" + kept[0] + resource(1036, b"thumbnail") + b"".join(kept[1:])
    app13 = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "JPEG", extra=app13))
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / f"b.{suffix}")
    written = Image.open(tmp_path / f"b.{suffix}")
    if suffix == "tif":
        assert written.tag_v2[34377] == (b"".join(kept),) and written.tag_v2[33723] == records
    else:
        assert dict(written.applist)["APP13"] == b"Photoshop 3.0\0" + b"".join(kept)


def raw_profile(name: str, content: bytes, kind: bytes) -> bytes:
    """A text chunk as ImageMagick writes one."""
    digits = content.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    text = f"\n{name}\n{len(content):8}\n{lines}\n".encode()
    between = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": b"\0\0\0\0\0"}[kind]
    return chunk(
        kind, f"Raw profile type {name}".encode() + between + (zlib.compress(text) if kind == b"zTXt" else text)
    )


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_profiles_that_imagemagick_writes_as_texts(tmp_path, kind):
    exif, icc, xmp = exif_with(6), imagecodecs.cms_profile("adobergb"), b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    records = b"\x1c\x02\x05\0\x03abc"
    iptc = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + records
    texts = [raw_profile(*one, kind) for one in (("exif", exif), ("icc", icc), ("xmp", xmp), ("iptc", iptc))]
    (tmp_path / "a.png").write_bytes(png_with(b"".join(texts)))
    photo = read_photo(tmp_path / "a.png")
    about = photo.header.metadata
    assert (about.icc, about.xmp, about.iptc) == (icc, xmp, iptc)
    assert np.array_equal(photo.pixels, UPRIGHT[6](np.asarray(Image.open(tmp_path / "a.png"))))
    write_photo(photo, tmp_path / "b.png")
    write_photo(photo, tmp_path / "b.jpg")
    for name in ("b.png", "b.jpg"):
        written = Image.open(tmp_path / name)
        assert written.getexif()[0x0112] == 1 and written.getexif()[0x010F] == "a camera"
        assert written.info["icc_profile"] == icc
    data = (tmp_path / "b.png").read_bytes()
    assert [data.count(b"Raw profile type " + name) for name in (b"exif", b"icc", b"xmp", b"iptc")] == [0, 0, 0, 1]
    assert read_photo(tmp_path / "b.jpg").header.metadata.iptc == iptc


def test_a_chunk_takes_precedence_over_a_text_and_damaged_texts_are_ignored(tmp_path):
    text = raw_profile("exif", exif_with(6), b"tEXt")
    (tmp_path / "a.png").write_bytes(png_with(text + chunk(b"eXIf", exif_with(3).removeprefix(b"Exif\0\0"))))
    assert np.array_equal(read_photo(tmp_path / "a.png").pixels, np.asarray(Image.open(tmp_path / "a.png"))[::-1, ::-1])
    for content in (b"\nexif\n 40\n4d4d", b"\nexif\n 3\n4d4", b"exif", b"", b"\nexif\n999999999999\n4d4d002a"):
        (tmp_path / "a.png").write_bytes(png_with(chunk(b"tEXt", b"Raw profile type exif\0" + content)))
        assert read_photo(tmp_path / "a.png").header.metadata.exif == b""


@pytest.mark.parametrize("compressed", [True, False])
def test_xmp_and_texts_of_a_png(tmp_path, compressed):
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>é</x:xmpmeta>", "en", "xmp", zip=compressed)
    texts.add_text("Author", "someone")
    smooth().save(tmp_path / "a.png", pnginfo=texts, gamma=0.5)
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.png")
    written = Image.open(tmp_path / "b.png")
    assert written.info["xmp"].decode() == "<x:xmpmeta>é</x:xmpmeta>" and written.text["Author"] == "someone"
    assert np.array_equal(np.asarray(written), np.asarray(smooth()))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, image: Image.Image | None = None, **how) -> bytes:
    data = encoded(image or smooth(), "PNG", **how)
    return data[:33] + b"".join(chunks) + data[33:]


def chunks_of(path: Path) -> dict[bytes, bytes]:
    data, found, place = path.read_bytes(), {}, 8
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        found[kind] = data[place + 8 : place + 8 + size]
        place += size + 12
    return found


def test_chunks_of_a_png_that_belong_to_other_pixels_are_let_go(tmp_path):
    """PNG marks by the case of the fourth letter what a program that does not know it may copy to new pixels."""
    kept = {b"gAMA": struct.pack(">I", 45455), b"tEXt": b"Author\0someone", b"oFFs": bytes(9), b"vpAg": bytes(9)}
    gone = {b"iDOT": bytes(28), b"caBX": b"a hash of the pixels", b"tIME": bytes(7), b"dSIG": b"?"}
    (tmp_path / "a.png").write_bytes(png_with(*[chunk(*one) for one in (kept | gone).items()]))
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.png")
    written = chunks_of(tmp_path / "b.png")
    assert {kind: written.get(kind) for kind in kept} == kept and not gone.keys() & written.keys()


@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_that_are_not_square_stay_so(tmp_path, orientation):
    data = png_with(chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0)), exif=exif_with(orientation))
    (tmp_path / "a.png").write_bytes(data)
    for name in ("b.png", "b.tif"):
        write_photo(read_photo(tmp_path / "a.png"), tmp_path / name)
    expected = (2, 1) if orientation == 1 else (1, 2)
    assert chunks_of(tmp_path / "b.png")[b"pHYs"] == struct.pack(">IIB", *expected, 0)
    tags = Image.open(tmp_path / "b.tif").tag_v2
    assert (tags[282], tags[283], tags[296]) == (*expected, 1)


def test_resolution_turns_with_the_photo(tmp_path):
    smooth().save(tmp_path / "a.jpg", dpi=(300, 200), exif=exif_with(6))
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    assert Image.open(tmp_path / "b.jpg").info["dpi"] == (200, 300)


@pytest.mark.parametrize("dpi", [300.0, 254_000.0, 635_001.27, 4294967295.0, 10909216929.3])
def test_a_resolution_beyond_what_a_format_holds_is_no_reason_to_lose_the_photo(tmp_path, dpi):
    """A microscope's are high; EXIF may state any."""
    for name, most in (("a.jpg", 0 if dpi > 65535 else dpi), ("a.png", (2**31 - 1) * 0.0254), ("a.tif", 2**32)):
        write_photo(photo_of(smooth(), dpi=(dpi, dpi)), tmp_path / name)
        photo = read_photo(tmp_path / name)
        assert photo.header.metadata.dpi == (pytest.approx((min(dpi, most),) * 2, rel=1e-4) if most else None)


def colorants(icc: bytes) -> np.ndarray:
    """XYZ of red, green and blue by a profile, in D50, as Pillow's LittleCMS reads them."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile
    return np.array([profile.red_colorant[0], profile.green_colorant[0], profile.blue_colorant[0]])


# Of Display P3, in D50, as its makers publish them.
P3_COLORANTS = np.array([[0.51512, 0.2412, -0.00105], [0.29198, 0.69225, 0.04189], [0.1571, 0.06657, 0.78407]])


def test_colours_of_a_png_by_their_code(tmp_path):
    adobe = imagecodecs.cms_profile("adobergb")
    for codes, wide in (((12, 13, 0, 1), True), ((1, 13, 0, 1), False)):
        for profile in ({}, {"icc_profile": adobe}):  # the code goes before
            (tmp_path / "a.png").write_bytes(png_with(chunk(b"cICP", bytes(codes)), **profile))
            photo = read_photo(tmp_path / "a.png")
            assert photo.header.colour_space.is_srgb != wide
            for name in ("b.png", "b.jpg"):
                write_photo(photo, tmp_path / name, overwrite=True)
                icc = Image.open(tmp_path / name).info.get("icc_profile", b"")
                assert np.allclose(colorants(icc), P3_COLORANTS, atol=3e-4) if wide else not icc
            assert chunks_of(tmp_path / "b.png")[b"cICP"] == bytes(codes)
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"cICP", bytes((2, 2, 0, 1))), icc_profile=adobe))
    assert read_photo(tmp_path / "a.png").header.metadata.icc == adobe
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"cICP", bytes((12, 13, 0, 1))), image=smooth().convert("L")))
    assert read_photo(tmp_path / "a.png").header.metadata.icc == b""  # a profile of RGB is none of gray


def test_gamma_and_chromaticities_of_a_png(tmp_path):
    """They define the colours if there is no profile. PNG results keep them; other formats get sRGB's curve."""
    numbers = np.linspace(0, 65535, 64).astype(np.uint16)
    ramp = Photo(Header("", 1, 64, 3, np.dtype(np.uint16), 3), np.repeat(numbers[None, :, None], 3, 2))
    write_photo(ramp, tmp_path / "ramp.png")
    srgb = np.array([31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000], ">u4").tobytes()
    wide = np.array([31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000], ">u4").tobytes()

    def with_chunks(*chunks: bytes) -> Photo:
        data = (tmp_path / "ramp.png").read_bytes()
        (tmp_path / "a.png").write_bytes(data[:33] + b"".join(chunks) + data[33:])
        return read_photo(tmp_path / "a.png")

    def gamma(value: int) -> bytes:
        return chunk(b"gAMA", struct.pack(">I", value))

    for value in (100_000, 55_556):
        photo = with_chunks(gamma(value), chunk(b"cHRM", srgb))
        write_photo(photo, tmp_path / "b.png", overwrite=True)
        write_photo(photo, tmp_path / "b.jpg", overwrite=True, quality=100)
        light = (numbers / 65535) ** (100_000 / value)
        expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        shown = Image.open(tmp_path / "b.jpg")
        assert np.abs(np.asarray(shown)[0].T - expected).max() < 2 and "icc_profile" not in shown.info
        assert np.array_equal(read_photo(tmp_path / "b.png").pixels, photo.pixels)
        assert chunks_of(tmp_path / "b.png")[b"gAMA"] == struct.pack(">I", value)
        assert b"iCCP" not in chunks_of(tmp_path / "b.png")
        encoded = photo.header.colour_space.to_srgb(torch.from_numpy(numbers / 65535).float().expand(3, 1, -1))
        assert np.abs(255 * encoded[:, 0].numpy() - expected).max() < 0.2

    for chunks in (
        [gamma(45_455)], [gamma(45_455), chunk(b"cHRM", srgb)], [gamma(0)], [chunk(b"cHRM", bytes(32))],
        [gamma(100_000), chunk(b"sRGB", b"\0")], [gamma(100_000), chunk(b"cICP", bytes((1, 13, 0, 1)))],
    ):  # fmt: skip
        assert with_chunks(*chunks).header.colour_space.is_srgb, chunks
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(imagecodecs.cms_profile("adobergb")))
    header = with_chunks(profile, gamma(100_000), chunk(b"cHRM", wide)).header
    assert header.gamma is None and not header.chromaticities

    photo = with_chunks(gamma(100_000), chunk(b"cHRM", wide))
    write_photo(photo, tmp_path / "b.jpg", overwrite=True, quality=100)
    icc = Image.open(tmp_path / "b.jpg").info["icc_profile"]
    assert np.allclose(colorants(icc), P3_COLORANTS, atol=3e-4)
    light = numbers / 65535
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(Image.open(tmp_path / "b.jpg"))[0].T - expected).max() < 2


def test_gamma_of_a_gray_png(tmp_path):
    Image.fromarray(np.full((4, 4), 128, np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + chunk(b"gAMA", struct.pack(">I", 100_000)) + data[33:])
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.jpg")
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.exr")
    assert np.asarray(Image.open(tmp_path / "b.jpg")).tolist() == [[188] * 4] * 4
    assert np.allclose(read_photo(tmp_path / "b.exr").pixels, 128 / 255, atol=1e-3)


def test_gray_with_alpha_becomes_rgba_in_a_heic(tmp_path):
    pytest.importorskip("pillow_heif", reason="pip install fastenh[heic]")
    pixels = np.stack(np.meshgrid(np.linspace(20, 220, 64), np.linspace(80, 250, 48)), -1).astype(np.uint8)
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.heic", quality=100)
    result = read_photo(tmp_path / "b.heic").pixels.astype(int)
    assert result.shape == (48, 64, 4) and np.abs(result - pixels[..., [0, 0, 0, 1]]).max() <= 4


def test_colours_of_a_heic_by_their_code(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install fastenh[heic]")

    def save(primaries: int, curve: int, chroma: int = 420, mode: str = "RGB") -> Path:
        image = smooth().convert(mode)
        file = pillow_heif.from_bytes(mode, image.size, image.tobytes())
        how = {"color_primaries": primaries, "transfer_characteristics": curve, "matrix_coefficients": 1}
        file.save(tmp_path / "a.heic", quality=95, chroma=chroma, **how)
        return tmp_path / "a.heic"

    for chroma in (420, 444):
        photo = read_photo(save(12, 13, chroma))
        assert np.allclose(colorants(photo.header.metadata.icc), P3_COLORANTS, atol=3e-4)
        assert np.abs(photo.pixels.astype(int) - np.asarray(smooth())).mean() < 3
        write_photo(photo, tmp_path / "b.heic", overwrite=True)
        about = pillow_heif.open_heif(tmp_path / "b.heic").info
        assert about["chroma"] == chroma and about["icc_profile"] == photo.header.metadata.icc
        write_photo(photo, tmp_path / "b.png", overwrite=True)
        assert Image.open(tmp_path / "b.png").info["icc_profile"] == photo.header.metadata.icc
    for codes in ((1, 13), (1, 1), (2, 2)):
        photo = read_photo(save(*codes))
        assert photo.header.metadata.icc == b"" and photo.header.colour_space.is_srgb
        write_photo(photo, tmp_path / "b.heic", overwrite=True)
        about = pillow_heif.open_heif(tmp_path / "b.heic").info["nclx_profile"]
        assert (about["color_primaries"], about["transfer_characteristics"]) == codes
    assert read_photo(save(12, 13, mode="L")).header.metadata.icc == b""
    with pytest.raises(ValueError, match=r"expected the colours of sRGB or Display P3, .*, got BT\.2020 with PQ$"):
        read_photo(save(9, 16))


def test_a_new_jpeg_has_full_colour_at_high_quality(tmp_path):
    path = tmp_path / "a.jpg"
    write_photo(photo_of(PIXELS), path)
    written = Image.open(path)
    assert JpegImagePlugin.get_sampling(written) == 0  # 4:4:4
    assert written.quantization == Image.open(io.BytesIO(encoded(smooth(), "JPEG", quality=95))).quantization


@pytest.mark.parametrize("how", ["Adobe's marker", "names of components"])
def test_a_jpeg_coded_as_rgb_stays_so(tmp_path, how):
    """Through YCbCr it would come back rounded twice."""
    data = encoded(smooth(), "JPEG", keep_rgb=True, quality=90)
    if how == "names of components":
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 16 :]
    (tmp_path / "a.jpg").write_bytes(data)
    photo = read_photo(tmp_path / "a.jpg")
    for quality in (None, 97):
        write_photo(photo, tmp_path / "b.jpg", quality, overwrite=True)
        written = Image.open(tmp_path / "b.jpg")
        assert written.info["adobe_transform"] == 0 and [layer[0] for layer in written.layer] == [*b"RGB"]
        off = np.abs(np.asarray(written).astype(int) - photo.pixels)
        assert off.mean() < (0.05 if quality is None else 1)
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(PIXELS), "JPEG"))
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "b.jpg", overwrite=True)
    assert "adobe" not in Image.open(tmp_path / "b.jpg").info


def test_adobe_rgb_by_exif_alone(tmp_path):
    """As cameras mark it, without a profile: it is seen in its colours, and has the profile from then on."""

    def exif(colour_space: int, rule: bytes, order: str = "<") -> bytes:
        def directory(*entries: tuple[int, int, int, bytes]) -> bytes:
            packed = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
            return struct.pack(order + "H", len(entries)) + packed + bytes(4)

        eight, second, third = (struct.pack(order + "I", place) for place in (8, 26, 56))
        block = {"<": b"II*\0", ">": b"MM\0*"}[order] + eight + directory((0x8769, 4, 1, second))
        block += directory((0xA001, 3, 1, struct.pack(order + "HH", colour_space, 0)), (0xA005, 4, 1, third))
        return block + directory((1, 2, 4, rule))

    adobe = undated(imagecodecs.cms_profile("adobergb"))
    cases = [
        (exif(65535, b"R03\0"), {}, smooth(), adobe), (exif(65535, b"R03\0", ">"), {}, smooth(), adobe),
        (exif(1, b"R98\0"), {}, smooth(), b""), (exif(65535, b"R98\0"), {}, smooth(), b""),
        (exif(65535, b"R03\0"), {"icc_profile": b"its own"}, smooth(), b"its own"),
        (exif(65535, b"R03\0"), {}, smooth().convert("L"), b""),
    ]  # fmt: skip
    for block, how, image, icc in cases:
        (tmp_path / "a.jpg").write_bytes(encoded(image, "JPEG", exif=b"Exif\0\0" + block, **how))
        photo = read_photo(tmp_path / "a.jpg")
        assert photo.header.metadata.icc == icc
        assert photo.header.colour_space.is_srgb == (image.mode == "RGB" and icc != adobe)
        write_photo(photo, tmp_path / "b.jpg", overwrite=True)
        written = Image.open(tmp_path / "b.jpg").info
        assert written.get("icc_profile", b"") == icc and written["exif"] == b"Exif\0\0" + block


@pytest.mark.parametrize("size", [65_502, 65_503, 200_000])
def test_xmp_larger_than_a_segment_of_jpeg(tmp_path, size):
    """A packet that names another by its MD5, and that other in parts, as XMP's part 3 has it; and back as it was."""
    packet = b"<x:xmpmeta>" + RNG.bytes(size // 2 - 12).hex().encode()
    packet += b" " * (size - len(packet) - 12) + b"</x:xmpmeta>"
    assert len(packet) == size
    write_photo(photo_of(smooth(), xmp=packet), tmp_path / "a.tif")
    for source, target in (("a.tif", "a.jpg"), ("a.jpg", "b.jpg"), ("b.jpg", "b.png")):
        write_photo(read_photo(tmp_path / source), tmp_path / target)
    for name in ("a.jpg", "b.jpg"):
        image = Image.open(tmp_path / name)
        if size <= 65_502:
            assert image.info["xmp"] == packet
            continue
        start = b"http://ns.adobe.com/xmp/extension/\0"
        parts = [data[len(start) :] for _, data in image.applist if data.startswith(start)]
        guid = hashlib.md5(packet).hexdigest().upper()
        whole = bytearray(size)
        for part in parts:
            full, place = struct.unpack(">II", part[32:40])
            assert part[:32].decode() == guid and full == size
            whole[place : place + len(part) - 40] = part[40:]
        assert next(data[:28] for _, data in image.applist if b"xmp" in data[:100]) == b"http://ns.adobe.com/xap/1.0/"
        assert whole == packet and sum(len(part) - 40 for part in parts) == size
        described = ElementTree.fromstring(image.info["xmp"]).find("*/*").attrib
        assert described["{http://ns.adobe.com/xmp/note/}HasExtendedXMP"] == guid
    assert Image.open(tmp_path / "b.png").info["xmp"] == packet


def test_xmp_that_another_program_has_split_stays_so(tmp_path):
    packet = b'<x:xmpmeta><d xmp:Rating="4" xmpNote:HasExtendedXMP="' + b"A" * 32 + b'"/></x:xmpmeta>'
    part = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", 7, 0) + b"<more/>"
    segment = b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "JPEG", xmp=packet, extra=segment))
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    written = Image.open(tmp_path / "b.jpg")
    assert written.info["xmp"] == packet and ("APP1", part) in written.applist


def test_exif_larger_than_a_segment_of_jpeg(tmp_path):
    """The photo and all but the largest tag are kept, and one line says what was not."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769).update({0x8827: 100, 0x927C: RNG.bytes(70_000), 0x9286: b"ASCII\0\0\0" + b"x" * 9000})
    smooth().save(tmp_path / "a.png", exif=exif)
    with pytest.warns(UserWarning, match=r"b\.jpg: expected 65527 bytes of EXIF, which is what JPEG holds, got 79"):
        write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.jpg")
    written = Image.open(tmp_path / "b.jpg").getexif()
    below = written.get_ifd(0x8769)
    assert written[0x010F] == "a camera" and below[0x8827] == 100 and len(below[0x9286]) == 9008
    assert 0x927C not in below
    block = Image.open(tmp_path / "a.png").info["exif"].removeprefix(b"Exif\0\0")
    halves = [b"Exif\0\0" + block[:60_000], b"Exif\0\0" + block[60_000:]]  # as some programs write it
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(half) + 2) + half for half in halves)
    (tmp_path / "c.jpg").write_bytes(encoded(smooth(), "JPEG", extra=segments))
    with pytest.warns(UserWarning, match=r"d\.jpg: expected 65527 bytes of EXIF, which is what JPEG holds, got 79"):
        write_photo(read_photo(tmp_path / "c.jpg"), tmp_path / "d.jpg")
    assert Image.open(tmp_path / "d.jpg").getexif()[0x010F] == "a camera"
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.webp")  # which holds it all
    assert len(Image.open(tmp_path / "b.webp").getexif().get_ifd(0x8769)[0x927C]) == 70_000


def test_jpeg_with_several_pictures_is_its_first(tmp_path):
    path = tmp_path / "a.jpg"
    smooth().save(path, "MPO", save_all=True, append_images=[Image.fromarray(PIXELS)])
    assert Image.open(path).format == "MPO"
    assert read_photo(path).pixels.shape == (48, 64, 3)


def test_a_jfif_segment_that_is_too_short_is_ignored(tmp_path):
    data = encoded(smooth(), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xe0\0\x07JFIF\0" + data[20:])
    assert np.array_equal(read_photo(tmp_path / "a.jpg").pixels, np.asarray(Image.open(io.BytesIO(data))))


def png_header(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(smooth(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def pages(count: int) -> bytes:
    return encoded(smooth(), "TIFF", save_all=True, append_images=[smooth()] * (count - 1))


def tiff(pixels: np.ndarray, **how) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **({"photometric": "rgb"} | how))
    return out.getvalue()


def small_pictures(*small: bool) -> bytes:
    """A TIFF whose pages say that they are small pictures of another one, or do not."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for is_small in small:
            file.write(PIXELS[::2, ::2] if is_small else PIXELS, photometric="rgb", subfiletype=int(is_small))
    return out.getvalue()


def webp_of_two() -> bytes:
    return encoded(smooth(), "WEBP", save_all=True, append_images=[smooth().rotate(180)], duration=9)


REFUSED = {
    "empty": (b"", "an empty file"),
    "text": (b"hello, this is text", "starts with b'hello, this "),
    "huge png": (png_header(200_000, 200_000), "expected a whole PNG, got a damaged one"),
    "huge jpeg": (jpeg_header(65_000, 64_000), "expected at most 268 megapixels, got 65000×64000"),
    "Lab": (encoded(smooth().convert("LAB"), "TIFF"), "expected RGB or gray, got CIELAB"),
    "32 bits": (encoded(Image.fromarray(np.zeros((4, 5), np.int32)), "TIFF"), "floats of 16 or 32, got int"),
    "pages": (pages(3), "expected one picture, got several pages"),
    "a page after a small picture": (small_pictures(False, True, False), "expected one picture, got several pages"),
    "a small picture first": (small_pictures(True, False), "expected a photo at its full size first, got a small pict"),
    "JPEG XL in TIFF": (
        tiff(PIXELS, compression="jpegxl"),
        "expected a compression that can be read, got number 50002",
    ),
    "JPEG 2000 in TIFF": (tiff(PIXELS, compression="jpeg2000"), "expected a compression that can be read, got jp2000"),
    "floats, 0 for white": (tiff(np.zeros((4, 5), "f4"), photometric="miniswhite"), "expected floats with 0 for black"),
    "animated PNG": (encoded(smooth(), "PNG", save_all=True, append_images=[smooth().rotate(180)]), "an animation"),
    "PQ": (png_with(chunk(b"cICP", bytes((9, 16, 0, 1)))), "Display P3, or an ICC profile, got BT.2020 with PQ"),
    "video levels": (png_with(chunk(b"cICP", bytes((1, 13, 0, 0)))), "expected full-range RGB, got"),
    "animated WebP": (webp_of_two(), "expected one picture, got an animation"),
    "GIF": (encoded(smooth(), "GIF"), "got GIF"),
    "Photoshop": (b"8BPS\0\1", "got a Photoshop document"),
    "damaged HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "expected"),
    "damaged RAW": (b"\0\0\0\x18ftypcrx \0\0\0\0", "expected"),
    "12 bits": (
        imagecodecs.jpeg8_encode(PIXELS.astype(np.uint16) * 16, bitspersample=12),
        "JPEG of 8 bits, got one of 12",
    ),
    "lossless JPEG": (imagecodecs.jpeg8_encode(PIXELS, lossless=True), "a lossy JPEG of 8 bits, got a lossless one"),
    "cut in the header": (encoded(smooth(), "JPEG")[:40], "expected a whole JPEG, got a damaged one"),
    "cut in the pixels": (encoded(smooth(), "JPEG")[:-90], "expected a whole JPEG, got a damaged one"),
    "cut PNG": (encoded(Image.fromarray(PIXELS), "PNG")[:-90], "expected a whole PNG, got a damaged one"),
    "cut TIFF": (encoded(Image.fromarray(PIXELS), "TIFF")[:-90], "expected a whole TIFF, got a damaged one"),
    "cut WebP": (encoded(Image.fromarray(PIXELS), "WEBP")[:-90], "expected a whole WebP, got a damaged one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photo_is_refused_in_one_line(tmp_path, name):
    data, message = REFUSED[name]
    path = tmp_path / ("photo.png" if "png" in name else "photo.jpg")
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_photo(path)
    assert str(caught.value).startswith(f"{path}: expected") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("extra", [[], [2], [0], [2, 0]])
def test_white_that_is_0_becomes_white(tmp_path, dtype, extra):
    """Of gray alone: alpha and further channels are as they were."""
    stored = RNG.integers(0, np.iinfo(dtype).max, (12, 20, 1 + len(extra)), dtype, endpoint=True)
    how = {"extrasamples": extra, "planarconfig": "contig"} if extra else {}
    (tmp_path / "a.tif").write_bytes(tiff(stored if extra else stored[..., 0], photometric="miniswhite", **how))
    expected = stored.copy()
    expected[..., 0] = np.iinfo(dtype).max - stored[..., 0]
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, expected)
    write_photo(read_photo(tmp_path / "a.tif"), tmp_path / "b.tif")
    page = tifffile.TiffFile(tmp_path / "b.tif").pages[0]
    assert page.photometric.name == "MINISBLACK" and list(page.extrasamples) == extra
    assert np.array_equal(page.asarray().reshape(expected.shape), expected)


@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("extra", [[], [0], [1], [2], [0, 0], [2, 0], [0, 2]])
def test_channels_of_a_tiff_stay_what_they_are(tmp_path, photometric, extra):
    """0 is a channel that has no kind, a mask or a spot colour; 1 is alpha that colours are multiplied by; 2 is not."""
    colours = 3 if photometric == "rgb" else 1
    stored = RNG.integers(0, 256, (12, 20, colours + len(extra)), np.uint8)
    how = {"extrasamples": extra, "planarconfig": "contig"} if extra else {}
    pixels = stored if stored.shape[2] > 1 else stored[..., 0]
    (tmp_path / "a.tif").write_bytes(tiff(pixels, photometric=photometric, **how))
    photo = read_photo(tmp_path / "a.tif")
    alpha = next((colours + place for place, kind in enumerate(extra) if kind), None)
    assert (photo.header.colours, photo.header.alpha, photo.header.premultiplied) == (colours, alpha, extra == [1])
    assert np.array_equal(photo.pixels, stored)
    write_photo(photo, tmp_path / "b.tif")
    page = tifffile.TiffFile(tmp_path / "b.tif").pages[0]
    assert page.photometric.name.lower() == photometric and list(page.extrasamples) == extra
    assert np.array_equal(page.asarray().reshape(stored.shape), stored)
    if extra == [0]:
        with pytest.raises(ValueError, match=f"colours and alpha alone for PNG, got {colours + 1} channels"):
            write_photo(photo, tmp_path / "b.png")


def write_exr(path: Path, **kinds: str) -> np.ndarray:
    """An OpenEXR with these channels, of these kinds; what it holds, as float32, in the order of the names."""
    spec = oiio.ImageSpec(20, 12, len(kinds), next(iter(kinds.values())))
    spec.channelnames = list(kinds)
    if len({*kinds.values()}) > 1:
        spec.channelformats = [oiio.TypeDesc(kind) for kind in kinds.values()]
    pixels = RNG.random((12, 20, len(kinds)), np.float32).astype(np.float16).astype(np.float32)
    for place, kind in enumerate(kinds.values()):
        if kind == "float":
            pixels[..., place] += np.float32(1e-6)
    file = oiio.ImageOutput.create(str(path))
    assert file.open(str(path), spec) and file.write_image(pixels) and file.close()
    return pixels


@pytest.mark.parametrize(("names", "colours", "alpha"), [
    ("RGB", 3, None), ("RGBA", 3, 3), ("RGBAZ", 3, 3), ("RGBZ", 3, None), ("Y", 1, None), ("YA", 1, 1), ("YAZ", 1, 1),
    ("YZ", 1, None),
])  # fmt: skip
def test_names_say_what_channels_of_an_openexr_are(tmp_path, names, colours, alpha):
    """Depth is a float beside colours that are half: each keeps its own kind."""
    kinds = {name: "float" if name == "Z" else "half" for name in names}
    pixels = write_exr(tmp_path / "a.exr", **kinds)
    photo = read_photo(tmp_path / "a.exr")
    assert (photo.header.colours, photo.header.alpha) == (colours, alpha)
    assert np.array_equal(photo.pixels, pixels)
    write_photo(photo, tmp_path / "b.exr")
    again = oiio.ImageInput.open(str(tmp_path / "b.exr"))
    spec = again.spec()
    formats = spec.channelformats or [spec.format] * len(names)
    assert dict(zip(spec.channelnames, map(str, formats), strict=True)) == kinds
    assert np.array_equal(again.read_image(0, 0, 0, len(names), "float").reshape(pixels.shape), pixels)


@pytest.mark.parametrize(("kinds", "message"), [
    ({"Y": "half", "BY": "half", "RY": "half"}, "expected RGB or gray, got Y, BY, RY"),
    ({"X": "half", "Y": "half", "Z": "half"}, "expected RGB or gray, got X, Y, Z"),
    ({"R": "half", "G": "half", "B": "half", "id": "uint"}, "floats of 16 or 32, got uint"),
])  # fmt: skip
def test_channels_of_an_openexr_that_cannot_be_kept(tmp_path, kinds, message):
    write_exr(tmp_path / "a.exr", **kinds)
    with pytest.raises(ValueError, match=message):
        read_photo(tmp_path / "a.exr")


def test_channels_that_are_no_alpha_stay_none_in_openexr(tmp_path):
    pixels = RNG.integers(0, 256, (12, 20, 4), np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(pixels, extrasamples=[0]))
    write_photo(read_photo(tmp_path / "a.tif"), tmp_path / "b.exr")
    header = read_photo(tmp_path / "b.exr").header
    assert (header.channels, header.colours, header.alpha) == (4, 3, None)


def test_pictures_below_a_tiffs_first_directory(tmp_path):
    for below, taken in ((1, True), (0, False)):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(PIXELS, photometric="rgb", subifds=2)
            file.write(PIXELS[::2, ::2], photometric="rgb", subfiletype=1)
            file.write(PIXELS, photometric="rgb", subfiletype=below)
        if taken:
            assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, PIXELS)
        else:
            with pytest.raises(ValueError, match="expected one picture, got several pages"):
                read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "numbers", [(0.0,) * 8, (0.3,) * 6 + (0.3127, 0.329), (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3, 0)]
)
def test_chromaticities_that_are_none_are_srgbs(tmp_path, numbers):
    pixels = RNG.random((12, 20, 3), np.float32)
    for name, more in (("a", {"chromaticities": numbers}), ("b", {})):
        spec = oiio.ImageSpec(20, 12, 3, "float")
        for key, value in more.items():
            spec.attribute(key, "float[8]", value)
        file = oiio.ImageOutput.create(str(tmp_path / f"{name}.exr"))
        assert file.open(str(tmp_path / f"{name}.exr"), spec) and file.write_image(pixels) and file.close()
        write_photo(read_photo(tmp_path / f"{name}.exr"), tmp_path / f"{name}.tif")
    assert oiio.ImageInput.open(str(tmp_path / "a.exr")).spec().getattribute("chromaticities")
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, read_photo(tmp_path / "b.tif").pixels)


STORED = {  # of pixels that are (H, W, 3)
    "strips of 5.tif": lambda pixels: tiff(pixels, compression="zlib", rowsperstrip=5),
    "one strip.tif": lambda pixels: tiff(pixels, compression="zlib", rowsperstrip=len(pixels)),
    "planes.tif": lambda pixels: tiff(
        pixels.transpose(2, 0, 1), planarconfig="separate", compression="zlib", rowsperstrip=5
    ),
    "planes of one strip.tif": lambda pixels: tiff(
        pixels.transpose(2, 0, 1), planarconfig="separate", compression="zlib", rowsperstrip=len(pixels)
    ),
    "tiles.tif": lambda pixels: tiff(pixels, tile=(16, 32)),
    "a.png": lambda pixels: encoded(Image.fromarray(pixels), "PNG"),
}


@pytest.mark.parametrize("name", STORED)
@given(ends=st.lists(st.tuples(st.integers(0, 49), st.integers(0, 49)), max_size=6), overlap=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_any_rows_at_any_time_and_none_twice_on_the_way_down(name, ends, overlap, tmp_path_factory):
    pixels = np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8)
    path = tmp_path_factory.mktemp("rows") / name
    path.write_bytes(STORED[name](pixels))
    rows = open_photo(path)
    for one, other in ends:
        top, bottom = min(one, other), max(one, other) + 1
        assert np.array_equal(rows.read(top, bottom), pixels[top:bottom])

    decoded, decode = [], rows._decode
    rows._decode = lambda first, end: decoded.extend(range(first, end)) or decode(first, end)
    rows.read(0, 1)
    decoded.clear()
    rows._blocks = []
    for top in range(0, 50, 7):
        first, end = max(top - overlap, 0), min(top + 7 + overlap, 50)
        assert np.array_equal(rows.read(first, end), pixels[first:end])
    assert decoded == list(range(50))


def test_the_limit_takes_the_largest_cameras():
    from fastenh.io.formats.base import MAX_PIXELS

    assert MAX_PIXELS >= 16_320 * 12_240  # a 200-megapixel phone


@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP"]))
@settings(max_examples=100, deadline=None)
def test_damage_anywhere_is_an_image_or_a_value_error(data, format, tmp_path_factory):
    whole = bytearray(encoded(smooth(), format, exif=exif_with(6), icc_profile=bytes(300)))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "a"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        photo = read_photo(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: expected")
    else:
        assert photo.pixels.size > 0 and photo.pixels.dtype in (np.uint8, np.uint16, np.float16, np.float32)


def damaged_pngs() -> dict[str, bytes]:
    good = encoded(Image.fromarray(PIXELS), "PNG")
    header, end = good[:33], good[-12:]
    adler = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))[:-4] + b"1234"
    return {
        "cut": good[:-90],
        "checksum": good.replace(b"IDAT", b"IDAT\0", 1),
        "header": good[:16] + b"\x07" + good[17:],
        "filter": header + chunk(b"IDAT", zlib.compress(b"\x09" * 61 * 12)) + end,
        "sum": header + chunk(b"IDAT", adler) + end,
        "short": header + chunk(b"IDAT", zlib.compress(bytes(100))) + end,
        "no pixels": header + end,
    }


@pytest.mark.parametrize("name", damaged_pngs())
def test_libpng_prints_nothing(tmp_path, name, capfd):
    (tmp_path / "a.png").write_bytes(damaged_pngs()[name])

    def read(_: int) -> None:
        with pytest.raises(ValueError, match="expected a whole PNG, got a damaged one"):
            read_photo(tmp_path / "a.png")

    with ThreadPoolExecutor(4) as pool:  # some may be inside libpng while others leave it
        list(pool.map(read, range(8)))
    assert capfd.readouterr().err == ""
    libc = ctypes.CDLL(None)
    libc.perror(b"and after that C's stderr")
    assert "and after that C's stderr" in capfd.readouterr().err


def test_folders_pipes_and_missing_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # so that code which does read the pipe fails here, and not waits
    os.write(writer, bytes(100))
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="expected a file, got a folder, pipe or device"):
            read_photo(path)
    os.close(writer)
    with pytest.raises(FileNotFoundError):
        read_photo(tmp_path / "missing.jpg")


def test_names_that_are_no_text(tmp_path):
    """Files may be named by any bytes; OpenImageIO takes text alone."""
    name = lambda suffix: tmp_path / os.fsdecode(b"a\xff" + suffix)  # noqa: E731
    for suffix in (b".jpg", b".webp"):
        write_photo(photo_of(smooth()), name(suffix))
        assert read_photo(name(suffix)).pixels.shape == (48, 64, 3)
    for suffix, format in ((b".png", "PNG"), (b".tif", "TIFF")):
        with pytest.raises(ValueError, match=f"expected a name in UTF-8 for {format}, got other bytes$"):
            write_photo(photo_of(smooth()), name(suffix))
        name(suffix).write_bytes(encoded(smooth(), format))
        with pytest.raises(ValueError, match=f"expected a name in UTF-8 for {format}, got other bytes$"):
            read_photo(name(suffix))


def test_formats_that_cannot_hold_the_photo(tmp_path):
    with pytest.raises(ValueError, match="without transparency for JPEG, got one with; PNG keeps it"):
        write_photo(photo_of(smooth().convert("RGBA")), tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="expected colours and alpha alone for PNG, got 5 channels"):
        write_photo(photo_of(np.zeros((4, 5, 5), np.uint8)), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"ends in \.jpg, \.jpeg, \.png, .*, got '\.gif'"):
        write_photo(photo_of(smooth()), tmp_path / "a.gif")
    with pytest.raises(ValueError, match="quality: expected 1 to 100, got 0"):
        write_photo(photo_of(smooth()), tmp_path / "a.jpg", quality=0)
    assert not list(tmp_path.iterdir())


# ---- bare pixels of a data set


def write_pixels(path: Path, pixels: np.ndarray, **attributes) -> None:
    dtype = {"float32": "float"}.get(pixels.dtype.name, pixels.dtype.name)
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], pixels.shape[2], dtype)
    for name, value in attributes.items():
        spec[name] = value
    file = oiio.ImageOutput.create(str(path))
    assert file.open(str(path), spec) and file.write_image(pixels)
    file.close()


DEEP = RNG.integers(0, 65536, (12, 20, 4), np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_come_back_as_they_were_stored(tmp_path, suffix, channels, dtype):
    """Alpha goes, without a trace in the colours; gray is three times the same."""
    pixels = DEEP[..., :channels].astype(dtype)
    attributes = {"oiio:UnassociatedAlpha": 1} if channels == 4 else {}
    write_pixels(tmp_path / f"a.{suffix}", pixels, **attributes)
    result = read_pixels(tmp_path / f"a.{suffix}")
    assert result.dtype == dtype and result.flags.writeable and result.flags.c_contiguous
    assert np.array_equal(result, np.broadcast_to(pixels[..., :1], (12, 20, 3)) if channels == 1 else pixels[..., :3])


@pytest.mark.parametrize(
    "suffix, lost",
    [
        ("jpg", ""),
        ("tif", ""),
        ("png", "IPTC"),
        ("webp", "IPTC"),
        ("avif", "IPTC"),
        ("jxl", "IPTC"),
        ("exr", "EXIF, IPTC"),
    ],
)
def test_metadata_that_a_format_cannot_hold_is_named(tmp_path, suffix, lost):
    about = Metadata(exif=exif_with(1).removeprefix(b"Exif\0\0"), iptc=resource(1028, b"\x1c\x02\x78\0\x03sea"))
    pixels = np.zeros((8, 8, 3), np.uint8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_photo(Photo(Header.of("HEIC", pixels, about), pixels), tmp_path / f"a.{suffix}")
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == bool(lost) and all(f": left out {lost}: not written to " in line for line in messages)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp", "avif", "jxl"])
def test_a_resolution_outside_exif_is_kept_in_other_formats(tmp_path, suffix):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(300, 150))
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / f"b.{suffix}")
    written = read_photo(tmp_path / f"b.{suffix}").header.metadata
    stated = written.dpi or read_exif(written.exif).dpi
    assert stated == pytest.approx((300, 150), abs=0.02)


def test_no_date_or_resolution_is_added(tmp_path):
    """Equal runs give equal bytes at any time."""
    image = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    image.save(tmp_path / "a.jpg", exif=exif)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.header.metadata.dpi is None
    for name in ("b.exr", "b.tif", "b.png", "b.jpg"):
        write_photo(photo, tmp_path / name)
        spec = oiio.ImageInput.open(str(tmp_path / name)).spec()
        names = {attribute.name for attribute in spec.extra_attribs}
        assert not names & {"DateTime", "XResolution", "YResolution", "ResolutionUnit"}, name
    spec = oiio.ImageSpec(20, 12, 3, "half")
    spec["DateTime"] = "2001:02:03 04:05:06"
    file = oiio.ImageOutput.create(str(tmp_path / "a.exr"))
    assert file.open(str(tmp_path / "a.exr"), spec) and file.write_image(PIXELS) and file.close()
    write_photo(read_photo(tmp_path / "a.exr"), tmp_path / "c.exr")
    spec = oiio.ImageInput.open(str(tmp_path / "c.exr")).spec()
    assert spec.get_string_attribute("DateTime") == "2001:02:03 04:05:06"


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pixels_stand_upright(tmp_path, orientation):
    write_pixels(tmp_path / "a.tif", DEEP[..., :3].copy(), Orientation=orientation)
    assert np.array_equal(read_pixels(tmp_path / "a.tif"), UPRIGHT[orientation](DEEP[..., :3]))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_pixels_of_a_file_cut_short(tmp_path, name):
    write_pixels(tmp_path / name, PIXELS.copy())
    data = (tmp_path / name).read_bytes()
    for kept in (0, 5, len(data) // 2, len(data) - 90):
        (tmp_path / name).write_bytes(data[:kept])
        with pytest.raises(ValueError, match="expected a") as caught:
            read_pixels(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: expected") and "\n" not in str(caught.value)


def test_pixels_of_other_files(tmp_path):
    write_pixels(tmp_path / "float.tif", np.zeros((4, 5, 3), np.float32))
    with pytest.raises(ValueError, match="expected 8 or 16 bits, got float32"):
        read_pixels(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="expected a file, got a folder, pipe or device"):
        read_pixels(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_pixels(tmp_path / "missing.png")


def test_pixels_have_a_limit(tmp_path, monkeypatch):
    write_pixels(tmp_path / "a.png", PIXELS)
    monkeypatch.setattr("fastenh.io.photos.MAX_PIXELS", 12 * 20)
    assert read_pixels(tmp_path / "a.png").shape == (12, 20, 3)
    monkeypatch.setattr("fastenh.io.photos.MAX_PIXELS", 12 * 20 - 1)
    with pytest.raises(ValueError, match="megapixels, got 20×12"):
        read_pixels(tmp_path / "a.png")


# ---- too little memory is no damage


@pytest.mark.parametrize(
    ("name", "decoder", "said"),
    [
        ("a.jpg", "PIL.JpegImagePlugin.JpegImageFile.load", MemoryError()),
        ("a.jpg", "PIL.JpegImagePlugin.JpegImageFile.load", OSError("out of memory when reading image file")),
        ("a.webp", "PIL.WebPImagePlugin.WebPImageFile.load", MemoryError()),
        ("a.heic", "pillow_heif.open_heif", RuntimeError("Memory allocation error: Allocating 36000015 bytes failed")),
        ("a.avif", "imagecodecs.avif_decode", RuntimeError("avifDecoderNthImage returned 'Out of memory'")),
        ("a.jxl", "OpenImageIO.ImageInput.open", RuntimeError("bad_alloc")),
        ("a.dng", "rawpy.imread", Exception(b"Unsufficient memory")),
        ("a.png", "OpenImageIO.geterror", "libpng: Insufficient memory"),
        ("a.tif", "OpenImageIO.geterror", "TIFFFillStrip: Out of memory"),
    ],
)
def test_what_decoders_say_of_memory(tmp_path, monkeypatch, name, decoder, said):
    pytest.importorskip(decoder.partition(".")[0])
    starts = {"a.heic": b"\0\0\0\x18ftypheic", "a.dng": b"II*\0", "a.png": b"\x89PNG\r\n\x1a\n", "a.tif": b"II*\0"}
    if name in starts:
        (tmp_path / name).write_bytes(starts[name] + bytes(40))
    else:
        write_photo(photo_of(smooth()), tmp_path / name)

    def fail(*_, **__):
        if isinstance(said, str):
            return said
        raise said

    monkeypatch.setattr(decoder, fail)
    with pytest.raises(MemoryError, match=f"{name}: out of memory"):
        read_photo(tmp_path / name)
    monkeypatch.undo()
    oiio.geterror()  # or it is printed when the tests end


@pytest.mark.parametrize("name", ["progressive.jpg", "a.webp", "lossless.webp", "alpha.webp", "a.heic"])
def test_decoders_that_do_not_say_which_it_was(tmp_path, monkeypatch, name):
    """A damaged file is one, unless what its pixels need cannot be had."""
    if name == "a.heic":
        pytest.importorskip("pillow_heif")
    pixels = RNG.integers(0, 256, (40, 70, 4 if name == "alpha.webp" else 3), np.uint8)
    if name == "a.heic":
        write_photo(photo_of(pixels), tmp_path / name)
    else:
        Image.fromarray(pixels).save(tmp_path / name, progressive=True, lossless="lossless" in name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"{name}: expected a whole"):
        read_photo(tmp_path / name)
    asked = []

    def empty(shape, *arguments, **keywords):
        asked.append(shape)
        raise MemoryError

    monkeypatch.setattr("fastenh.io.formats.base.np.empty", empty)
    with pytest.raises(MemoryError, match=f"{name}: out of memory"):
        read_photo(tmp_path / name)
    assert asked == [(40, 70, 8)]


def test_a_profile_is_no_worse_for_little_memory(monkeypatch):
    """Or its colours would be taken for sRGB's, from then on."""

    def fail(*_, **__):
        raise MemoryError

    icc = imagecodecs.cms_profile("rgb", whitepoint=(0.31, 0.33), primaries=(0.7, 0.3, 0.2, 0.7, 0.14, 0.05), gamma=2.1)
    with monkeypatch.context() as patch:
        patch.setattr("imagecodecs.cms_transform", fail)
        with pytest.raises(MemoryError):
            from_profile(icc, 3)
    assert not from_profile(icc, 3).is_srgb


# ---- writing, whole or not at all


def test_overwrites_only_when_told(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="exists, and"):
        write_photo(photo_of(smooth()), path)
    assert path.read_bytes() == b"old"
    write_photo(photo_of(smooth()), path, overwrite=True)
    assert read_photo(path).pixels.shape == (48, 64, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileExistsError), replacing(path) as part:
        part.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch, error):
    def half(path: Path, data) -> None:
        with open(path, "wb") as file:
            file.write(bytes(data)[:100])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    path = tmp_path / "a.jpg"
    with pytest.raises(type(error)) as caught:
        write_photo(photo_of(smooth()), path)
    assert not list(tmp_path.iterdir())
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)


def test_what_went_wrong_first_is_told(tmp_path, monkeypatch):
    """In a folder that cannot be written to, the hidden file cannot be removed either."""

    def read_only(path: Path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    for name in ("write_bytes", "unlink"):
        monkeypatch.setattr(Path, name, read_only)
    with pytest.raises(OSError) as caught:
        write_photo(photo_of(smooth()), tmp_path / "a.jpg")
    assert caught.value.errno == errno.EROFS and caught.value.filename == str(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.exr", "a.tif", "none.tif", "lzw.tif", "packbits.tif", "zstd.tif", "a.png"])
def test_a_full_disk_is_told_by_the_name_that_was_asked_for(tmp_path, name):
    photo = photo_of(RNG.integers(0, 65536, (300, 400, 3), np.uint16))
    if name.endswith(".tif"):
        how = {"compression": "zip" if name == "a.tif" else name.removesuffix(".tif")}
        photo = replace(photo, header=replace(photo.header, format="TIFF", storage=how))
    limits = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_photo(photo, tmp_path / name)
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / name)
    assert ".fastenh" not in str(caught.value) and not list(tmp_path.iterdir())


def test_only_files_are_replaced_and_links_stay(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileExistsError, match="expected a file or nothing there"):
        write_photo(photo_of(smooth()), tmp_path / "folder.png", overwrite=True)
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    write_photo(photo_of(smooth()), tmp_path / "link.png", overwrite=True)
    assert (tmp_path / "link.png").is_symlink()
    assert read_photo(tmp_path / "real.png").pixels.shape == (48, 64, 3)


def test_new_files_have_the_usual_permissions(tmp_path):
    write_photo(photo_of(smooth()), tmp_path / "a.png")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


# ---- PNG and ZIP of our own


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_other_libraries_read_what_is_deflated(tmp_path, monkeypatch, name, channels, dtype):
    """libpng, libtiff and tifffile; rows come in pieces that are no whole strips, and any number overflows."""
    if name == "a.png" and channels == 5:
        pytest.skip("PNG has no fifth channel")
    format = png_format if name == "a.png" else tiff_format
    monkeypatch.setattr(format, "AT_ONCE", 37 * channels * np.dtype(dtype).itemsize * 4)
    pixels = RNG.integers(0, np.iinfo(dtype).max, (23, 37, channels), dtype, endpoint=True)
    header = stored_as(photo_of(pixels).header, tmp_path / name)
    with row_writer(tmp_path / name, header) as writer:
        for top, bottom in pairwise((0, 1, 3, 10, 11, 23)):
            writer.write(pixels[top:bottom])
    libraries = [read_photo]
    if name == "a.png":
        libraries.append(lambda path: imagecodecs.png_decode(path.read_bytes()))
    else:
        tifffile = pytest.importorskip("tifffile")
        libraries.append(tifffile.imread)
        with tifffile.TiffFile(tmp_path / name) as file:
            offsets = file.pages[0].dataoffsets
        assert len(offsets) == 6 and not any(offset % 2 for offset in offsets)
    if channels != 5 and (dtype == "uint8" or channels == 1):
        libraries.append(Image.open)
        assert name == "a.png" or Image.open(tmp_path / name).info["compression"] == "tiff_adobe_deflate"
    for read in libraries:
        found = np.asarray(read(tmp_path / name))
        assert found.dtype == dtype and np.array_equal(found.reshape(pixels.shape), pixels)


def test_a_tiff_of_more_than_4_gigabytes_has_longer_offsets(tmp_path, monkeypatch):
    write_photo(photo_of(smooth()), tmp_path / "a.tif")
    monkeypatch.setattr(tiff_format, "MAX_CLASSIC", 100)
    write_photo(photo_of(smooth(), icc=b"a profile", dpi=(300, 300)), tmp_path / "b.tif")
    assert [(tmp_path / name).read_bytes()[2] for name in ("a.tif", "b.tif")] == [42, 43]
    image, photo = Image.open(tmp_path / "b.tif"), read_photo(tmp_path / "b.tif")
    assert np.array_equal(np.asarray(image), np.asarray(smooth())) and image.info["dpi"] == (300, 300)
    assert np.array_equal(photo.pixels, np.asarray(smooth())) and photo.header.metadata.icc == b"a profile"


@pytest.mark.parametrize(("dtype", "sigma"), [("uint8", 60), ("uint16", 12_000)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_noise_is_read_back(tmp_path, dtype, sigma, channels):
    """Readers make room for what zlib's deflate needs at most, its `compressBound`."""
    tifffile = pytest.importorskip("tifffile")
    full = np.iinfo(dtype).max
    pixels = RNG.normal(full / 2, sigma, (500, 400, channels)).clip(0, full).astype(dtype)
    for name in ("a.tif", "a.png"):
        write_photo(photo_of(pixels), tmp_path / name)
        assert np.array_equal(read_photo(tmp_path / name).pixels, pixels)
    decoded = tifffile.imread(tmp_path / "a.tif"), imagecodecs.png_decode((tmp_path / "a.png").read_bytes())
    assert all(np.array_equal(one.reshape(pixels.shape), pixels) for one in decoded)
    if dtype == "uint8":
        opened = [np.asarray(Image.open(tmp_path / name)) for name in ("a.tif", "a.png")]
        assert all(np.array_equal(one.reshape(pixels.shape), pixels) for one in opened)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages[0]
        rows, counts = page.rowsperstrip, page.databytecounts
        row = pixels[0].nbytes
        for n, count in enumerate(counts):
            size = min(rows, len(pixels) - n * rows) * row
            assert count <= size + (size >> 12) + (size >> 14) + (size >> 25) + 13


@pytest.mark.parametrize("bits", [8, 16])
def test_deflated_files_are_as_small_as_others(tmp_path, bits):
    """Against libtiff at its usual level and libpng at its first: a photo with noise, within 3 %."""
    y, x = np.mgrid[:200, :300]
    light = (np.stack([np.sin(x / 40) * np.cos(y / 30), np.sin(y / 50), np.cos((x + y) / 60)], -1) + 1) / 2
    light = (light + RNG.normal(0, 0.004, light.shape)).clip(0, 1)
    pixels = (light * (2**bits - 1)).round().astype(f"uint{bits}")
    for name, how in (("a.tif", {"compression": "zip"}), ("a.png", {"png:compressionLevel": 1, "png:filter": 64})):
        spec = oiio.ImageSpec(300, 200, 3, f"uint{bits}")
        for key, value in how.items():
            spec[key] = value
        file = oiio.ImageOutput.create(str(tmp_path / name))
        assert file.open(str(tmp_path / name), spec) and file.write_image(pixels) and file.close()
        write_photo(photo_of(pixels), tmp_path / f"b{name}")
        ours, theirs = ((tmp_path / each).stat().st_size for each in (f"b{name}", name))
        assert ours < 1.03 * theirs
