"""The contract of formats is enough for every pipeline, proved with two small formats, one of them read by rows."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastenh import Enhancer
from fastenh.io import read_photo, read_size, write_photo
from fastenh.io.formats import registry
from fastenh.io.formats.base import Format, Header
from fastenh.io.metadata import Metadata
from fastenh.models import System
from fastenh.ops.op import from_float, to_float
from fastenh.pipelines import large
from fastenh.pipelines import photo as one_photo

PIXELS = np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)
HEADER = re.compile(rb"P6 (\d+) (\d+) 255\n")


class Ppm(Format):
    name = "PPM"
    suffixes = (".ppm",)
    start = re.compile(rb"P6 ")
    depths = ("uint8",)
    alpha = False

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        data = path.read_bytes()
        head = HEADER.match(data)
        pixels = np.frombuffer(data, np.uint8, offset=head.end()).reshape(int(head[2]), int(head[1]), 3).copy()
        return Header.of(self.name, pixels, Metadata()), pixels

    def encode(self, header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
        return b"P6 %d %d 255\n" % (header.width, header.height) + pixels.tobytes()

    def has_end(self, file, size: int) -> bool:
        head = HEADER.match(file.read(64))
        return size == head.end() + 3 * int(head[1]) * int(head[2])


class ByRows(Ppm):
    by_rows = True

    def open(self, path: Path):
        return Reader(path, *self.decode(path))

    def writer(self, path: Path, header: Header):
        return Writer(path, self.encode(header, np.empty(0, np.uint8), None))


class Reader:
    def __init__(self, path: Path, header: Header, pixels: np.ndarray) -> None:
        self.path, self.header, self.pixels = path, header, pixels

    def read(self, top: int, bottom: int) -> np.ndarray:
        return self.pixels[top:bottom]


class Writer:
    pieces: list[int] = []

    def __init__(self, path: Path, start: bytes) -> None:
        self.file = open(path, "wb")  # noqa: SIM115
        self.file.write(start)

    def write(self, rows: np.ndarray) -> None:
        self.pieces.append(len(rows))
        self.file.write(rows.tobytes())

    def close(self) -> None:
        self.file.close()


class Negative(System):
    reach = 0

    def render(self, image, params, local, place, out=None):
        result = from_float(1 - to_float(image), image.dtype)
        return result if out is None else out.copy_(result)


@pytest.fixture(params=[Ppm, ByRows])
def ppm(request, monkeypatch) -> Format:
    format = request.param()
    monkeypatch.setitem(registry.FORMATS, "PPM", format)
    monkeypatch.setitem(registry.SUFFIXES, ".ppm", "PPM")
    return format


def test_a_new_format_is_read_and_written(tmp_path, ppm):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "a.ppm")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.ppm")), PIXELS)
    assert np.array_equal(read_photo(tmp_path / "a.ppm").pixels, PIXELS) and read_size(tmp_path / "a.ppm") == (40, 60)
    assert registry.is_complete(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").write_bytes((tmp_path / "a.ppm").read_bytes()[:-1])
    assert not registry.is_complete(tmp_path / "a.ppm")
    Image.fromarray(PIXELS).convert("RGBA").save(tmp_path / "alpha.png")
    with pytest.raises(ValueError, match="without transparency for PPM"):
        write_photo(read_photo(tmp_path / "alpha.png"), tmp_path / "b.ppm")


def test_a_new_format_goes_through_folders_and_strips(tmp_path, monkeypatch, ppm):
    monkeypatch.setattr(one_photo, "LARGE", 1000)
    monkeypatch.setattr(large, "STRIP", 60 * 7)
    Writer.pieces.clear()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ppm").write_bytes(b"P6 60 40 255\n" + PIXELS.tobytes())
    (outcome,) = Enhancer(Negative(), "cpu").enhance_files(tmp_path / "in", tmp_path / "out")
    assert outcome.error is None
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/a.ppm")), 255 - PIXELS)
    assert Writer.pieces == ([7, 7, 7, 7, 7, 5] if ppm.by_rows else [])
    (outcome,) = Enhancer(Negative(), "cpu").enhance_files(tmp_path / "in", tmp_path / "out")
    assert outcome.skipped


def test_names_suffixes_and_starts_belong_to_one_format():
    formats = list(registry.FORMATS.values())
    suffixes = [suffix for format in formats for suffix in format.suffixes]
    assert len(suffixes) == len(set(suffixes)) and all(suffix == suffix.lower() for suffix in suffixes)
    assert {*registry.SUFFIXES, *registry.RAW_SUFFIXES} == set(suffixes)
    for format in formats:
        assert list(format.depths) == sorted(format.depths, key=lambda depth: np.dtype(depth).itemsize)
        assert format.name in registry.KNOWN


def test_packages_of_single_formats_are_not_needed_for_others(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg")
    code = (
        "import sys; sys.modules |= dict.fromkeys(['OpenImageIO', 'imagecodecs', 'isal', 'pillow_heif', 'rawpy']);"
        "from fastenh.io import read_photo; read_photo('a.jpg').save('b.webp')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert Image.open(tmp_path / "b.webp").size == (60, 40)
