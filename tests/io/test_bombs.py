"""Metadata made to exhaust memory or time: what it costs is bounded by its size, and what is left out is said."""

import io
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastenh.io import metadata, read_photo, read_size, write_photo
from fastenh.io.formats import tiff as tiff_format
from fastenh.io.metadata import Directory, DirectoryReader, Metadata, Tag

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
DIRECTORIES = (0x8769, 0x8825, 0xA005)
LEFT_OUT = r"left out EXIF: expected tags with values of their own, got \d+ tags that share \d+ bytes$"


def exif_bomb(size: int, order: str = "<") -> bytes:
    """Each tag spans the block, and those that name a directory name the one that they are in."""
    count = min(4096, (size - 14) // 12)
    values = [(1000 + n, 3, (size - 8) // 2, 8) for n in range(count - 3)] + [(tag, 4, 1, 8) for tag in DIRECTORIES]
    entries = b"".join(struct.pack(order + "HHII", *value) for value in values)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, count)
    return (head + entries).ljust(size, b"\0")


def exif_of_known_tags(size: int) -> bytes:
    """Tags that OpenImageIO knows, of shorts, which it makes into numbers of its own."""
    tags = [number for number in range(0x010D, 0xA500) if number not in (274, 330, *DIRECTORIES)][:4000]
    entries = b"".join(struct.pack("<HHII", tag, 3, (size - 8) // 2, 8) for tag in tags)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries).ljust(size, b"A")


def jpeg(exif: bytes) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "JPEG")
    parts = [b"Exif\0\0" + exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return out.getvalue()[:2] + segments + out.getvalue()[2:]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "PNG")
    added = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return out.getvalue()[:33] + added + out.getvalue()[33:]


def webp(exif: bytes) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "WEBP", lossless=True, exif=exif)
    return out.getvalue()


def tiff(tags: list[tuple[int, int, int]], block: bytes, order: str = "<", big: bool = False) -> bytes:
    """Uncompressed, with further tags (number, type, count) whose values all begin where `block` does."""
    out = io.BytesIO()
    tifffile.imwrite(out, PIXELS, photometric="rgb", byteorder=order, bigtiff=big, metadata=None, software=False)
    count, letter, entry, place = ("Q", "Q", 20, 8) if big else ("H", "I", 12, 4)
    data = bytearray(out.getvalue())
    first = struct.unpack_from(order + letter, data, place)[0]
    number = struct.unpack_from(order + count, data, first)[0]
    start = first + struct.calcsize(count)
    entries = [bytes(data[at : at + entry]) for at in range(start, start + number * entry, entry)]
    data += bytes(len(data) % 2)
    entries += [struct.pack(order + "HH" + 2 * letter, *tag, len(data)) for tag in tags]
    data += block + bytes(len(block) % 2)
    struct.pack_into(order + letter, data, place, len(data))
    entries.sort(key=lambda one: struct.unpack_from(order + "H", one)[0])
    return bytes(data) + struct.pack(order + count, len(entries)) + b"".join(entries) + bytes(struct.calcsize(letter))


def small_pictures(count: int, pages: bool) -> bytes:
    """Of one pixel each, beside a photo: on pages of their own, or in directories below its own."""
    tags = [(254, 1), (256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    directory = struct.pack("<H", 10) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    photo = tiff([] if pages else [(330, 4, count)], b"" if pages else bytes(4 * count))
    places = [len(photo) + (len(directory) + 4) * n for n in range(count)]
    if not pages:
        photo = tiff([(330, 4, count)], struct.pack(f"<{count}I", *places))
        return photo + (directory + bytes(4)) * count
    ends = struct.pack(f"<{count}I", *places[1:], 0)
    after = b"".join(directory + ends[4 * n : 4 * n + 4] for n in range(count))
    return photo[:-4] + struct.pack("<I", places[0]) + after


def hexadecimal(content: bytes) -> bytes:
    """The text in which ImageMagick stores EXIF."""
    return b"\nexif\n%d\n%s\n" % (len(content), content.hex().encode())


BLOCK = 10_000_000
PACKED = zlib.compress(bytes(1 << 26), 9)
READ = {  # without some of its metadata
    "exif.jpg": lambda: jpeg(exif_bomb(65_000)),
    "exif of the other byte order.jpg": lambda: jpeg(exif_bomb(65_000, ">")),
    "exif in many segments.jpg": lambda: jpeg(exif_bomb(1 << 20)),
    "exif.webp": lambda: webp(exif_bomb(1 << 20)),
    "exif.png": lambda: png((b"eXIf", exif_bomb(1 << 20))),
    "exif of known tags.png": lambda: png((b"eXIf", exif_of_known_tags(1 << 20))),
    "profile.png": lambda: png((b"iCCP", b"a profile\0\0" + PACKED)),
    "xmp.png": lambda: png((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED)),
    "packed raw profile.png": lambda: png((b"zTXt", b"Raw profile type exif\0\0" + PACKED)),
    "raw profile.png": lambda: png((b"tEXt", b"Raw profile type iptc\0\niptc\n20000000\n" + b"00" * 20_000_000)),
    "exif in a text.png": lambda: png((b"tEXt", b"Raw profile type exif\0" + hexadecimal(exif_bomb(1 << 20)))),
    "chunks.png": lambda: png(*[(b"tEXt", b"Comment\0a")] * 100_000),
    "tags.tif": lambda: tiff([(40_000 + n, 1, BLOCK) for n in range(4000)], bytes(BLOCK)),
    "blocks.tif": lambda: tiff([(tag, 1, BLOCK) for tag in (700, 33723, 34377, 34675, 37724)], bytes(BLOCK)),
    "tags beyond the end.tif": lambda: tiff([(40_000 + n, 1, 2**32 - 1) for n in range(4000)], bytes(BLOCK)),
    "tags, last byte first.tif": lambda: tiff([(40_000 + n, 3, BLOCK // 2) for n in range(4000)], bytes(BLOCK), ">"),
    "tags of a BigTIFF.tif": lambda: tiff([(40_000 + n, 1, BLOCK) for n in range(4000)], bytes(BLOCK), "<", True),
}
TEXT = zlib.compress(bytes([65]) * 7_900_000, 9)  # libpng unpacks up to 8 MB of each
KEPT = {
    "texts.png": lambda: png(*[(b"zTXt", b"Comment %d\0\0" % n + TEXT) for n in range(30)]),
    "international texts.png": lambda: png(*[(b"iTXt", b"Comment %d\0\1\0\0\0" % n + TEXT) for n in range(30)]),
}
REFUSED = {
    "segments.jpg": (
        lambda: jpeg(b"")[:2] + b"\xff\xe1\0\4ab" * 1_000_000 + jpeg(b"")[2:],
        "expected at most 4096 segments before the pixels of a JPEG, got more",
    ),
    "size.webp": (
        lambda: webp(b"II*\0")[:24] + b"\xff" * 6 + webp(b"II*\0")[30:],
        "expected at most 268 megapixels, got 16777216×16777216",
    ),
    "below, all in one place.tif": (
        lambda: tiff([(330, 4, 300_000)], struct.pack("<I", 9) * 300_000),
        "expected one picture, got more than 64 small ones beside it",
    ),
    "pages.tif": (lambda: small_pictures(60_000, True), "expected one picture, got more than 64 small ones beside it"),
    "below.tif": (lambda: small_pictures(200_000, False), "expected one picture, got more than 64 small ones beside"),
    "strips.tif": (
        lambda: tiff([(tag, 1, BLOCK) for tag in (288, 289, 301, 320, 321, 347)], bytes(BLOCK)),
        "expected strips or tiles with values of their own, got 50000000 bytes that are shared",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_the_photo_is_read_and_one_line_says_what_was_left_out(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(READ[name]())
    with pytest.warns(UserWarning, match=f"^{re.escape(str(path))}: left out [^\n]*$") as warned:
        photo = read_photo(path)
    assert len(warned) == 1
    if path.suffix != ".webp":  # which a data set has not
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert read_size(path) == (40, 60)
    if path.suffix == ".jpg":
        (tmp_path / "plain.jpg").write_bytes(jpeg(b""))
        assert np.array_equal(photo.pixels, read_photo(tmp_path / "plain.jpg").pixels)
    else:
        assert np.array_equal(photo.pixels, PIXELS)
    assert photo.header.metadata == Metadata(dpi=photo.header.metadata.dpi)
    write_photo(photo, tmp_path / "again.png")
    assert np.array_equal(read_photo(tmp_path / "again.png").pixels, photo.pixels)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_unpacked_is_kept(tmp_path, name):
    (tmp_path / name).write_bytes(KEPT[name]())
    photo = read_photo(tmp_path / name)
    write_photo(photo, tmp_path / "again.png")
    assert np.array_equal(photo.pixels, PIXELS)
    assert TEXT in (tmp_path / "again.png").read_bytes()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_photo_is_refused_in_one_line(tmp_path, name):
    make, message = REFUSED[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ValueError, match=message) as error:
        read_photo(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_a_pyramid_and_thumbnails_are_read(tmp_path):
    for pages in (True, False):
        (tmp_path / "a.tif").write_bytes(small_pictures(10, pages))
        assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, PIXELS)


def test_a_damaged_tag_hides_no_page(tmp_path):
    photo = tiff([(330, 4, 10**8)], b"")
    page = struct.pack("<HHHIIHHIII", 2, 256, 4, 1, 60, 257, 4, 1, 40, 0)
    (tmp_path / "a.tif").write_bytes(photo[:-4] + struct.pack("<I", len(photo)) + page)
    with pytest.raises(ValueError, match="expected one picture, got several pages"):
        read_photo(tmp_path / "a.tif")


def test_a_damaged_tag_takes_no_other_with_it(tmp_path):
    xmp = bytes(range(1, 251)) * 10_000
    (tmp_path / "a.tif").write_bytes(tiff([(700, 1, len(xmp)), (40_000, 1, 2**32 - 1)], xmp))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "a.tif").header.metadata.xmp == xmp


CHILD = """
import resource, sys, warnings
from fastenh.io import read_photo
import OpenImageIO, fastenh.io.formats.rows
warnings.simplefilter("ignore")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plain, *bombs = sys.argv[1:]
read_photo(plain)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, now + 2**31))
for bomb in bombs:
    before = peak()
    try:
        read_photo(bomb)
    except (ValueError, MemoryError) as error:
        print(type(error).__name__, file=sys.stderr)
    print((peak() - before) // 1024, bomb)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see a process's memory")
def test_no_file_takes_more_than_50_mebibytes(tmp_path, assets_if_any):
    made = READ | KEPT | {name: make for name, (make, _) in REFUSED.items()}
    bombs = [tmp_path / name for name in made]
    for path in bombs:
        path.write_bytes(made[path.name]())
    (tmp_path / "plain.png").write_bytes(png())
    command = [sys.executable, "-c", CHILD, tmp_path / "plain.png", *bombs, *assets_if_any]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    taken = {line.split(" ", 1)[1]: int(line.split(" ", 1)[0]) for line in lines}
    assert len(taken) == len(bombs) + len(assets_if_any)
    assert sum(taken.values()) <= 50, taken  # of the process: what one has taken, the next may use


@pytest.fixture
def assets_if_any(request) -> list[Path]:
    try:
        folder = request.getfixturevalue("assets") / "inputs/hostile"
    except pytest.skip.Exception:
        return []
    return sorted(folder.glob("exif_*.jpg"))


def test_pillow_and_openimageio_are_not_given_such_exif(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("Pillow reads EXIF")

    monkeypatch.setattr(Image.Exif, "load", refuse)
    (tmp_path / "a.jpg").write_bytes(jpeg(exif_bomb(65_000)))
    with pytest.warns(UserWarning, match=LEFT_OUT):
        read_photo(tmp_path / "a.jpg")


# ---- the work itself, counted


class Count:
    """Of what was read of TIFF directories: how many there were, and bytes of values."""

    def __init__(self, monkeypatch) -> None:
        self.directories = self.copied = 0
        entries, value = DirectoryReader.entries, DirectoryReader.value

        def counted_entries(reader, offset):
            self.directories += 1
            return entries(reader, offset)

        def counted_value(reader, entry):
            result = value(reader, entry)
            self.copied += len(result)
            return result

        monkeypatch.setattr(DirectoryReader, "entries", counted_entries)
        monkeypatch.setattr(DirectoryReader, "value", counted_value)


def test_a_directory_is_read_once(monkeypatch):
    count = Count(monkeypatch)
    leads_back = [struct.pack("<HHII", tag, 4, 1, 8) for tag in DIRECTORIES * 100]
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", len(leads_back)) + b"".join(leads_back)
    assert metadata.read_directory(block) == {}
    assert count.directories == 1


def test_directories_beside_a_photo_are_not_all_read(monkeypatch, tmp_path):
    for pages in (True, False):
        count = Count(monkeypatch)
        (tmp_path / "a.tif").write_bytes(small_pictures(5000, pages))
        with pytest.raises(ValueError, match="more than 64 small ones"):
            read_photo(tmp_path / "a.tif")
        assert count.directories <= 70


def test_values_that_a_few_tags_share_are_no_bomb():
    """As programs write them for equal resolutions."""
    block = b"II*\0\x08\0\0\0\2\0" + b"".join(struct.pack("<HHII", tag, 5, 1, 38) for tag in (282, 283))
    exif = block + bytes(4) + struct.pack("<II", 300, 1)
    assert metadata.read_directory(exif) == {tag: Tag(5, 1, struct.pack("<II", 300, 1)) for tag in (282, 283)}


def test_exif_is_made_smaller_in_few_passes(monkeypatch):
    tags = Directory({1000 + n: Tag(7, 250, bytes([n % 251]) * 250) for n in range(4000)})
    block = b"II*\0\x08\0\0\0" + metadata.pack_directory(tags, 8)
    made = []
    exif = metadata.exif_block
    monkeypatch.setattr(metadata, "exif_block", lambda directory: made.append(0) or exif(directory))
    small = metadata.exif_within(block, 65_000)
    assert 64_000 < len(small) <= 65_000 and len(made) <= 4
    assert all(tags[number] == tag for number, tag in metadata.read_directory(small).items())


@given(
    size=st.sampled_from([200, 3000, 65_000]),
    order=st.sampled_from("<>"),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=12)), max_size=30),
    end=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_changed_blocks_never_cost_more_than_the_bound(size, order, changes, end):
    real = Directory(
        {0x010F: Tag(2, 9, b"a camera\0"), 274: Tag(3, 1, b"\6\0"), 282: Tag(5, 1, struct.pack("<II", 300, 1))}
    )
    real[0x8769] = Tag(4, 1, Directory({0x927C: Tag(7, 900, bytes(900)), 0xA001: Tag(3, 1, b"\xff\xff")}))
    start = b"II*\0\x08\0\0\0" + metadata.pack_directory(real, 8) if size == 3000 else b""
    block = bytearray(start + exif_bomb(size, order)[len(start) :])
    for place, data in changes:
        place %= min(len(block), 400)
        block[place : place + len(data)] = data
    exif = bytes(block[: max(end % len(block), 1)] if end % 3 == 0 else block)
    with pytest.MonkeyPatch.context() as patch:
        count = Count(patch)
        for call, most in ((metadata.read_directory, 13), (metadata.read_exif, 14)):  # the orientation on its own
            count.directories = count.copied = 0
            try:
                call(exif)
            except ValueError as error:
                assert "\n" not in str(error)
            assert count.directories <= most
            assert count.copied <= len(exif) + metadata.MAX_SHARED + 4 * most
        assert 1 <= metadata.exif_orientation(exif) <= 8
        assert len(metadata.exif_within(exif, 1000)) <= 1000
        metadata.upright_exif(exif, (1, 2))
        tiff_format.metadata_tags(Metadata(exif=exif))
