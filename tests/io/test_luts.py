"""LUT files against ffmpeg and OpenColorIO, which read the same files themselves; round trips; hostile files."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import OpenImageIO as oiio
import PyOpenColorIO as ocio
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fastenh.enhance import Enhancer
from fastenh.io import LutFile, read_lut, write_lut
from fastenh.models import ImageAdaptiveLUT, LocalContextLUT, ZeroDCE
from fastenh.models.lut3d import identity_lut
from fastenh.models.lut_file import UNIT, bake, sample
from fastenh.models.lut_stages import Matrix, Table1D, Table3D
from fastenh.models.system import Picture, System
from fastenh.tiles import Place

INTERPOLATIONS = ("trilinear", "tetrahedral")


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.1, 1.2, (count, 3)).astype(np.float32)


def text_of(rows: np.ndarray) -> str:
    return "".join(f"{r:.9g} {g:.9g} {b:.9g}\n" for r, g, b in rows)


def cube(path: Path, header: str, count: int, seed: int = 0) -> Path:
    path.write_text(header + text_of(rows_of(count, seed)))
    return path


def colours(low: float = 0.0, high: float = 1.0, shape: tuple[int, int] = (29, 31), seed: int = 1) -> np.ndarray:
    """(H, W, 3) float32, corners of the range among them."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(low, high, (*shape, 3)).astype(np.float32)
    pixels[0] = rng.choice(np.array([low, high], np.float32), (shape[1], 3))
    return pixels


def image_of(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]


def pixels_of(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).numpy()


def by_ffmpeg(pixels: np.ndarray, format: str, name: str, options: str) -> np.ndarray:
    """On rows of whole vectors: its filters go beyond the end of others, for which PyAV's frames have no room."""
    own = pixels.shape[1]
    pixels = np.pad(pixels, ((0, 0), (0, -own % 64), (0, 0)))
    height, width, _ = pixels.shape
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=format, time_base="1/25")
    lut, kept, sink = graph.add(name, options), graph.add("format", format), graph.add("buffersink")
    source.link_to(lut)
    lut.link_to(kept)
    kept.link_to(sink)
    graph.configure()
    frame = av.VideoFrame.from_ndarray(pixels, format=format)
    frame.pts = 0
    graph.push(frame)
    return graph.pull().to_ndarray()[:, :own]


def by_opencolorio(pixels: np.ndarray, path: Path, interpolation: str = "best") -> np.ndarray:
    how = {"trilinear": ocio.INTERP_LINEAR, "tetrahedral": ocio.INTERP_TETRAHEDRAL, "best": ocio.INTERP_BEST}
    ocio.ClearAllCaches()
    processor = ocio.Config.CreateRaw().getProcessor(ocio.FileTransform(str(path), interpolation=how[interpolation]))
    result = pixels.copy()
    processor.getOptimizedCPUProcessor(ocio.OPTIMIZATION_LOSSLESS).applyRGB(result)
    return result


def ours(pixels: np.ndarray, path: Path, interpolation: str = "tetrahedral") -> np.ndarray:
    lut = read_lut(path)
    lut.interpolation = interpolation
    return pixels_of(lut(image_of(pixels)))


# ---- what others make of the same file


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("header", ["LUT_3D_SIZE 5\n", "LUT_3D_SIZE 5\nDOMAIN_MIN 0 0 0\nDOMAIN_MAX 2 1.5 1\n"])
def test_3d_as_ffmpeg(tmp_path, interpolation, header):
    path = cube(tmp_path / "a.cube", header, 125)
    options = f"file={path}:interp={interpolation}"
    pixels = colours()
    theirs = by_ffmpeg(pixels, "gbrpf32le", "lut3d", options)
    np.testing.assert_allclose(ours(pixels, path, interpolation), theirs, atol=1e-5)
    for format, dtype in (("rgb24", np.uint8), ("rgb48le", np.uint16)):  # ffmpeg cuts off what we round
        integers = np.rint(pixels * np.iinfo(dtype).max).astype(dtype)
        theirs = by_ffmpeg(integers, format, "lut3d", options)
        assert np.abs(ours(integers, path, interpolation).astype(int) - theirs).max() <= 1


def test_1d_as_ffmpeg(tmp_path):
    path = cube(tmp_path / "a.cube", "LUT_1D_SIZE 11\n", 11)
    pixels = colours()
    theirs = by_ffmpeg(pixels, "gbrpf32le", "lut1d", f"file={path}:interp=linear")
    np.testing.assert_allclose(ours(pixels, path), theirs, atol=1e-5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_published_lut_as_ffmpeg_and_opencolorio(assets, interpolation):
    path = assets / "lut" / "cube" / "Arabica_12.CUBE"
    lut = read_lut(path)
    assert lut.title == "Sepia" and lut.table.shape == (3, 32, 32, 32) and lut.format == ".cube, Adobe's dialect"
    pixels = colours(shape=(101, 99))
    np.testing.assert_allclose(
        ours(pixels, path, interpolation), by_opencolorio(pixels, path, interpolation), rtol=0, atol=1e-5
    )
    integers = np.rint(pixels * 255).astype(np.uint8)
    theirs = by_ffmpeg(integers, "rgb24", "lut3d", f"file={path}:interp={interpolation}")
    assert np.abs(ours(integers, path, interpolation).astype(int) - theirs).max() <= 1


CUBES = {
    "3D": ("LUT_3D_SIZE 6\n", 216),
    "3D, Adobe's domain": ("DOMAIN_MIN -0.5 0 0.25\nDOMAIN_MAX 2 1 1.25\nLUT_3D_SIZE 4\n", 64),
    "3D, Resolve's range": ("LUT_3D_SIZE 4\nLUT_3D_INPUT_RANGE -0.5 1.5\n", 64),
    "1D": ("LUT_1D_SIZE 9\n", 9),
    "1D, Adobe's domain": ("LUT_1D_SIZE 9\nDOMAIN_MIN -0.5 0 0.25\nDOMAIN_MAX 2 1 1.25\n", 9),
    "1D, Resolve's range": ("LUT_1D_SIZE 5\nLUT_1D_INPUT_RANGE 0.125 1.5\n", 5),
    "1D of the largest size": ("LUT_1D_SIZE 65536\n", 65536),
    "1D and 3D": ("LUT_1D_SIZE 7\nLUT_3D_SIZE 4\n", 71),
    "1D and 3D with ranges": (
        "LUT_1D_SIZE 7\nLUT_1D_INPUT_RANGE -0.5 2\nLUT_3D_SIZE 3\nLUT_3D_INPUT_RANGE 0.1 0.9\n",
        34,
    ),
}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("name", CUBES)
def test_cubes_as_opencolorio(tmp_path, name, interpolation):
    """Values outside every domain among them: both clamp."""
    header, count = CUBES[name]
    path = cube(tmp_path / "a.cube", header, count)
    pixels = colours(-1.0, 2.5) if count < 1000 else colours()
    # Neighbours of the largest 1D LUT differ by up to 1.3 here, and a float32 place among 65536 is known to 1/256.
    atol = 1e-5 if count < 1000 else 1.3 / 128
    np.testing.assert_allclose(
        ours(pixels, path, interpolation), by_opencolorio(pixels, path, interpolation), rtol=0, atol=atol
    )


def test_smooth_1d_of_the_largest_size_as_opencolorio(tmp_path):
    x = np.linspace(0, 1, 65536)
    path = tmp_path / "a.cube"
    path.write_text("LUT_1D_SIZE 65536\n" + text_of(np.stack([x**0.5, x**2, np.sin(9 * x)], 1)))
    pixels = colours(-0.5, 1.5)
    np.testing.assert_allclose(ours(pixels, path), by_opencolorio(pixels, path), rtol=0, atol=1e-5)


CLF = '<?xml version="1.0" encoding="UTF-8"?>\n<ProcessList compCLFversion="3" id="a">{}</ProcessList>\n'
CLF_1D = '<LUT1D inBitDepth="32f" outBitDepth="32f"><Array dim="{} 3">{}</Array></LUT1D>'
CLF_3D = '<LUT3D inBitDepth="32f" outBitDepth="32f"><Array dim="{0} {0} {0} 3">{1}</Array></LUT3D>'
CLF_MATRIX = (
    '<Matrix inBitDepth="32f" outBitDepth="32f"><Array dim="3 4">0.7 0.2 0.1 0.05 -0.1 1.1 0 -0.2 0 0.3 0.6 0</Array>'
    "</Matrix>"
)
CLF_GAMMA = (
    '<Exponent inBitDepth="32f" outBitDepth="32f" style="basicMirrorFwd"><ExponentParams exponent="1.7"/></Exponent>'
)
CLF_CDL = (
    '<ASC_CDL inBitDepth="32f" outBitDepth="32f" style="FwdNoClamp"><SOPNode><Slope>0.9 1 1.1</Slope>'
    "<Offset>0.01 0 0.02</Offset><Power>1 1.1 1</Power></SOPNode></ASC_CDL>"
)


def csp(kind: str, rows: np.ndarray, size: str) -> str:
    return f"CSPLUTV100\n{kind}\n\n" + "3\n0 0.3 1\n0 0.6 1\n" * 3 + f"\n{size}\n" + text_of(rows)


OTHERS = {  # name: text, and the stages that it becomes
    "1d.spi1d": (
        "Version 1\nFrom 0.0 1.0\nLength 6\nComponents 3\n{\n" + text_of(rows_of(6)) + "}\n",
        "1D LUT of 6 entries",
    ),
    "domain.spi1d": (
        "Version 1\nFrom -0.125 4.875\nLength 6\nComponents 3\n{\n" + text_of(rows_of(6)) + "}\n",
        "1D LUT of 6 entries over -0.125 to 4.875",
    ),
    "3d.spi3d": (
        "SPILUT 1.0\n3 3\n4 4 4\n"
        + "".join(
            f"{i // 16} {i // 4 % 4} {i % 4} {r:.9g} {g:.9g} {b:.9g}\n" for i, (r, g, b) in enumerate(rows_of(64))
        ),
        "3D LUT of 4×4×4",
    ),
    "3d.3dl": (
        "0 341 682 1023\n" + "".join("{} {} {}\n".format(*(4095 * abs(row) / 1.2).astype(int)) for row in rows_of(64)),
        "3D LUT of 4×4×4",
    ),
    "prelut_1d.csp": (
        csp("1D", rows_of(5), "5"),
        "1D LUT of 65536 entries, then 1D LUT of 5 entries",
    ),
    "prelut_3d.csp": (
        csp("3D", rows_of(27), "3 3 3"),
        "1D LUT of 65536 entries, then 3D LUT of 3×3×3",
    ),
    "wide_prelut.csp": (
        csp("1D", rows_of(5), "5").replace("0 0.3 1", "-1 0.3 4"),
        "1D LUT of 65536 entries over -1 to 4, then 1D LUT of 5 entries",
    ),
    "1d.clf": (CLF.format(CLF_1D.format(5, text_of(rows_of(5)))), "1D LUT of 5 entries"),
    "3d.clf": (CLF.format(CLF_3D.format(3, text_of(rows_of(27)))), "3D LUT of 3×3×3"),
    "matrix.clf": (CLF.format(CLF_MATRIX), "matrix"),
    "1d_3d.clf": (
        CLF.format(CLF_1D.format(5, text_of(rows_of(5))) + CLF_3D.format(3, text_of(rows_of(27)))),
        "1D LUT of 5 entries, then 3D LUT of 3×3×3",
    ),
    "1d_matrix.clf": (
        CLF.format(CLF_1D.format(5, text_of(rows_of(5))) + CLF_MATRIX),
        "1D LUT of 5 entries, then matrix",
    ),
    "matrix_1d_3d_1d.clf": (
        CLF.format(
            CLF_MATRIX
            + CLF_1D.format(5, text_of(rows_of(5)))
            + CLF_3D.format(3, text_of(rows_of(27)))
            + CLF_1D.format(5, text_of(rows_of(5)))
        ),
        "matrix, then 1D LUT of 5 entries, then 3D LUT of 3×3×3, then 1D LUT of 5 entries",
    ),
    "matrix_gamma.clf": (CLF.format(CLF_MATRIX + CLF_GAMMA), "matrix, then Exponent by OpenColorIO"),
    "gamma_cdl_3d.ctf": (
        CLF.format(CLF_GAMMA + CLF_CDL + CLF_3D.format(3, text_of(rows_of(27)))),
        "Exponent, CDL by OpenColorIO, then 3D LUT of 3×3×3",
    ),
    "half.clf": (
        CLF.format(
            '<LUT1D inBitDepth="16f" outBitDepth="16f" halfDomain="true"><Array dim="65536 1">'
            + "\n".join(
                f"{value:.6g}"
                for value in np.nan_to_num(np.arange(65536, dtype=np.uint16).view(np.float16), posinf=9, neginf=9) / 2
            )
            + "</Array></LUT1D>"
        ),
        "Lut1D by OpenColorIO",
    ),
    "discreet.lut": (
        "LUT: 3 256\n"
        + "".join(f"{round(255 * (i / 255) ** (0.5 + 0.25 * c))}\n" for c in range(3) for i in range(256)),
        "1D LUT of 256 entries",
    ),
    "houdini.lut": (
        "Version 3\nFormat any\nType 3D\nFrom 0 1\nTo 0 1\nBlack 0\nWhite 1\nLength 3\nLUT:\n3D {\n"
        + text_of(rows_of(27))
        + "}\n",
        "3D LUT of 3×3×3",
    ),
    "nuke.vf": (
        "#Inventor V2.1 ascii\ngrid_size 3 3 3\nglobal_transform 0.5 0 0 0 0 0.5 0 0 0 0 0.5 0 0 0 0 1\ndata\n"
        + text_of(rows_of(27)),
        "3D LUT of 3×3×3 over 0 to 0.666667",
    ),
    "iridas.itx": ("LUT_3D_SIZE 3\n" + text_of(rows_of(27)), "3D LUT of 3×3×3"),
    "pandora.m3d": (
        "channel 3d\nin 8\nout 256\nformat lut\nvalues red green blue\n"
        + "".join(f"{i} {7 * i % 256} {31 * i % 256} {99 * i % 256}\n" for i in range(8)),
        "3D LUT of 2×2×2",
    ),
    "matrix.spimtx": ("0.7 0.2 0.1 3276.75 -0.1 1.1 0 0 0 0.3 0.6 -6553.5\n", "matrix"),
    "grade.cc": (
        '<ColorCorrection id="a"><SOPNode><Slope>1.1 1 0.9</Slope><Offset>0.05 0 -0.05</Offset><Power>1 1.2 0.8</Power>'
        "</SOPNode><SatNode><Saturation>0.8</Saturation></SatNode></ColorCorrection>",
        "CDL by OpenColorIO",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_as_opencolorio(tmp_path, name):
    """In their domain and beyond, each stage by itself."""
    text, stages = OTHERS[name]
    path = tmp_path / name
    path.write_text(text)
    lut = read_lut(path)
    assert lut.contents == stages and lut.format == f"{path.suffix}, through OpenColorIO"
    for pixels in (colours(-0.2, 1.2), colours(-2, 6)):
        theirs = by_opencolorio(pixels, path, "tetrahedral")
        np.testing.assert_allclose(ours(pixels, path), theirs, rtol=1e-5, atol=1e-5)
        assert np.abs(theirs - pixels).mean() > 0.01


@pytest.mark.parametrize(("asked", "used"), [(None, "trilinear"), ("trilinear", "trilinear"), ("tetrahedral",) * 2])
def test_a_clf_is_interpolated_as_it_asks(tmp_path, asked, used):
    """Trilinear where it asks for nothing, as the CLF specification says."""
    table = CLF_3D.format(3, text_of(rows_of(27)))
    if asked:
        table = table.replace("<LUT3D", f'<LUT3D interpolation="{asked}"')
    path = tmp_path / "a.clf"
    path.write_text(CLF.format(table))
    pixels, lut = colours(), read_lut(path)
    assert lut.interpolation == used
    np.testing.assert_allclose(pixels_of(lut(image_of(pixels))), by_opencolorio(pixels, path, used), atol=1e-5)
    lut.interpolation = "tetrahedral"
    np.testing.assert_allclose(pixels_of(lut(image_of(pixels))), ours(pixels, path), atol=0)


def test_a_ctf_finds_the_files_that_it_names(tmp_path):
    (tmp_path / "b.clf").write_text(CLF.format(CLF_MATRIX))
    (tmp_path / "a.ctf").write_text(
        '<ProcessList id="a" version="2"><Reference inBitDepth="32f" outBitDepth="32f" path="b.clf"/></ProcessList>'
    )
    assert read_lut(tmp_path / "a.ctf").contents == "matrix"


@pytest.mark.parametrize("name", OTHERS)
def test_stages_on_other_dtypes_and_copies(tmp_path, name):
    path = tmp_path / name
    path.write_text(OTHERS[name][0])
    lut = read_lut(path)
    image = image_of(colours())
    expected = lut(image)
    assert torch.equal(copy.deepcopy(lut)(image), expected)
    channels_last = image.contiguous(memory_format=torch.channels_last)
    before = channels_last.clone()
    torch.testing.assert_close(lut(channels_last), expected)
    assert torch.equal(channels_last, before)
    torch.testing.assert_close(lut(image.double()).float(), expected, rtol=1e-4, atol=1e-4)
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    exact = (lut(levels / 255).clamp(0, 1) * 255).round()
    assert (lut(levels).float() - exact).abs().max() <= 1 and (lut(levels).float() == exact).float().mean() > 0.999


def test_a_file_that_changed_is_read_anew(tmp_path):
    """Its name holds what OpenColorIO would take for a variable."""
    path, stamp = tmp_path / "a$HOME %PATH% b.spi1d", 10**9
    for value in ("0.25", "0.75"):
        path.write_text("Version 1\nFrom 0.0 1.0\nLength 2\nComponents 1\n{\n" + f"{value}\n" * 2 + "}\n")
        os.utime(path, (stamp, stamp))
        assert read_lut(path).shaper[0, 0] == float(value)


def test_without_opencolorio_only_its_formats_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PyOpenColorIO", None)
    (tmp_path / "a.3dl").write_text("")
    with pytest.raises(ModuleNotFoundError, match="PyOpenColorIO"):
        read_lut(tmp_path / "a.3dl")
    read_lut(cube(tmp_path / "a.cube", "LUT_1D_SIZE 2\n", 2))


@pytest.mark.parametrize("range", ["0.0 1.0", "0 2"])
def test_the_range_of_a_missing_1d_table_is_ignored(tmp_path, range):
    """As Resolve and colour-science read it."""
    with_range = cube(tmp_path / "a.cube", f"LUT_3D_SIZE 3\nLUT_1D_INPUT_RANGE {range}\n", 27)
    without = cube(tmp_path / "b.cube", "LUT_3D_SIZE 3\n", 27)
    assert read_lut(with_range).domain == UNIT
    pixels = colours(-1, 2)
    np.testing.assert_allclose(ours(pixels, with_range), by_opencolorio(pixels, without, "tetrahedral"), atol=1e-5)


# ---- Hald CLUT


def source_of_ffmpeg(options: str) -> np.ndarray:
    graph = av.filter.Graph()
    source, kept, sink = graph.add("haldclutsrc", options), graph.add("format", "rgb48le"), graph.add("buffersink")
    source.link_to(kept)
    kept.link_to(sink)
    graph.configure()
    return graph.pull().to_ndarray()


@pytest.mark.parametrize("level", [2, 3, 5])
def test_the_identity_is_ffmpegs(tmp_path, level):
    write_lut(LutFile(identity_lut(level**2)), tmp_path / "a.png")
    written = oiio.ImageBuf(str(tmp_path / "a.png")).get_pixels(oiio.UINT16)
    theirs = source_of_ffmpeg(f"level={level}")
    assert np.abs(written.astype(int) - theirs).max() <= 257  # ffmpeg's is of 8 bits
    Image.fromarray(np.rint(theirs / 257).astype(np.uint8)).save(tmp_path / "b.png")
    for name, bits, step in (("a.png", 16, 65535), ("b.png", 8, 255)):
        lut = read_lut(tmp_path / name)
        assert lut.format == f"Hald CLUT of level {level}, {bits} bits"
        assert (lut.table - identity_lut(level**2)).abs().max() <= 1 / step


def test_hald_is_read_as_it_was_written(tmp_path):
    """Distinct sides and axes; values that 16 bits hold come back exactly, others clipped."""
    table = torch.randint(-1000, 66000, (3, 9, 9, 9)) / 65535
    write_lut(LutFile(table), tmp_path / "a.png")
    again = read_lut(tmp_path / "a.png")
    assert torch.equal(again.table, table.clamp(0, 1)) and again.hald_level == 3


@pytest.mark.parametrize(
    "lut",
    [
        LutFile(identity_lut(33)),
        LutFile(None, torch.rand(3, 9)),
        LutFile(identity_lut(9), torch.rand(3, 9)),
        LutFile(identity_lut(9), table_domain=((0, 0, 0), (1, 1, 2))),
    ],
    ids=["size", "1D", "both", "domain"],
)
def test_what_a_hald_cannot_hold_is_not_written(tmp_path, lut):
    with pytest.raises(
        ValueError, match=r"expected a 3D LUT of 4, 9, 16, … or 256 vertices over 0 to 1 .* got [13]D LUT"
    ):
        write_lut(lut, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def tiled(table: np.ndarray, level: int) -> np.ndarray:
    """Its pixels, one by one."""
    size = level**2
    pixels = np.zeros((level**3, level**3, 3), np.uint8)
    for blue in range(size):
        for green in range(size):
            for red in range(size):
                row, column = blue // level * size + green, blue % level * size + red
                pixels[row, column] = np.rint(table[:, blue, green, red] * 255)
    return pixels


def test_the_tiled_identity_is_the_identity(assets):
    path = assets / "inputs" / "luts" / "tiled_identity.png"
    if not path.is_file():
        pytest.skip(f"no {path}")
    lut = read_lut(path)
    assert lut.format == "8×8 tiles of 64×64, 8 bits" and (lut.table - identity_lut(64)).abs().max() <= 0.51 / 255


@pytest.mark.parametrize("level", [2, 3, 4])
def test_tiles_and_halds_are_told_apart(tmp_path, level):
    """The identity, a look, one that falls, gray, and a noisy one; where both layouts are alike, it does not matter."""
    identity = identity_lut(level**2)
    looks = {
        "identity": identity,
        "curve": identity**0.6 * torch.tensor([1.0, 0.9, 0.8])[:, None, None, None],
        "negative": 1 - identity,
        "swapped": identity[[2, 0, 1]],
        "gray": torch.einsum("c,cbgr->bgr", torch.tensor([0.3, 0.6, 0.1]), identity).expand(3, -1, -1, -1),
        "noisy": (identity + 0.05 * torch.randn_like(identity)).clamp(0, 1),
    }
    for name, table in looks.items():
        Image.fromarray(tiled(table.numpy(), level)).save(tmp_path / "tiled.png")
        write_lut(LutFile(table), tmp_path / "hald.png", overwrite=True)
        for file, layout in (("tiled.png", f"{level}×{level} tiles of"), ("hald.png", "Hald CLUT of level")):
            lut = read_lut(tmp_path / file)
            assert lut.format.startswith(layout), name
            assert (lut.table - table).abs().max() <= 0.51 / 255
    Image.new("RGB", (64, 64), (90, 80, 70)).save(tmp_path / "flat.png")
    assert read_lut(tmp_path / "flat.png").format.startswith("Hald CLUT")


# ---- round trips


floats = st.floats(-(2.0**99), 2.0**99, width=32)
domains = st.tuples(st.tuples(*[st.floats(-9, 0.25, width=32)] * 3), st.tuples(*[st.floats(0.5, 9, width=32)] * 3))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), kind=st.sampled_from(["1D", "3D", "both"]), title=st.text(max_size=20))
def test_a_cube_holds_every_bit(data, kind, title, tmp_path_factory):
    def entries(*shape: int) -> Tensor:
        few = data.draw(st.lists(floats, min_size=1, max_size=5))
        return torch.tensor(few).repeat(int(np.prod(shape)))[: int(np.prod(shape))].reshape(shape)

    size = data.draw(st.integers(2, 5))
    table = None if kind == "1D" else entries(3, size, size, size)
    shaper = None if kind == "3D" else entries(3, data.draw(st.integers(2, 9)))
    domain = data.draw(domains)
    if kind == "both":
        domain = tuple((end[0],) * 3 for end in domain)
    lut = LutFile(table, shaper, table_domain=domain, shaper_domain=domain, title=title)
    path = tmp_path_factory.mktemp("luts") / "a.cube"
    write_lut(lut, path)
    again = read_lut(path)
    for name in ("table", "shaper"):
        one, other = getattr(lut, name), getattr(again, name)
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    assert again.domain == lut.domain
    assert kind != "both" or again.table_domain == lut.table_domain
    assert again.title == "".join(c for c in title if c.isprintable() and c != '"')


def test_what_we_write_others_read(tmp_path):
    torch.manual_seed(0)
    pixels = colours(-0.5, 2.0)
    domain = ((-0.25, 0.0, 0.0), (1.0, 1.5, 2.0))
    one = ((-0.25,) * 3, (1.5,) * 3)
    for lut in (
        LutFile(torch.rand(3, 5, 5, 5), title="Warm Ωμέγα"),
        LutFile(torch.rand(3, 5, 5, 5) * 1e-6, table_domain=domain),
        LutFile(None, torch.rand(3, 50), shaper_domain=domain),
        LutFile(torch.rand(3, 4, 4, 4), torch.rand(3, 50), table_domain=one, shaper_domain=one, title="Two"),
    ):
        write_lut(lut, tmp_path / "a.cube", overwrite=True)
        theirs = by_opencolorio(pixels, tmp_path / "a.cube", "tetrahedral")
        np.testing.assert_allclose(pixels_of(lut(image_of(pixels))), theirs, rtol=0, atol=1e-5)
    write_lut(LutFile(torch.rand(3, 5, 5, 5) * 1e-6), tmp_path / "a.cube", overwrite=True)
    inside = colours()
    theirs = by_ffmpeg(inside, "gbrpf32le", "lut3d", f"file={tmp_path / 'a.cube'}")
    np.testing.assert_allclose(ours(inside, tmp_path / "a.cube"), theirs, rtol=1e-4)


def bumpy(*shape: int, low: float = -0.2, high: float = 1.3) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(3))


WIDE, ONE = ((-0.25, 0.0, 0.1), (1.0, 1.5, 2.0)), ((-0.25,) * 3, (1.5,) * 3)
WRITTEN = {  # name: the LUT, the largest error, and what is read back where that is not the same stages
    "3d.csp": (LutFile(bumpy(3, 5, 5, 5), table_domain=WIDE), 1e-5, None),
    "1d.csp": (LutFile(None, bumpy(3, 50), shaper_domain=WIDE), 1e-5, None),
    "both.csp": (
        LutFile(bumpy(3, 4, 4, 4), bumpy(3, 7), table_domain=((-0.25, 0, 0), (1, 1, 2)), shaper_domain=WIDE),
        4e-5,  # at bends of the curve, which OpenColorIO resamples
        "1D LUT of 65536 entries over -0.25 to 1, 0 to 1.5, 0.1 to 2, then 3D LUT of 4×4×4",
    ),
    "1d.spi1d": (LutFile(None, bumpy(3, 50), shaper_domain=ONE), 1e-5, None),
    "3d.spi3d": (LutFile(bumpy(3, 5, 5, 5)), 1e-5, None),
    "lustre.3dl": (LutFile(bumpy(3, 5, 5, 5, low=0, high=1)), 1e-5, None),
    "flame.3dl": (LutFile(bumpy(3, 6, 6, 6, low=0, high=0.2)), 1e-5, None),
    "large.3dl": (LutFile(identity_lut(50) ** 0.7), 1e-5, None),
    "chain.clf": (
        LutFile(
            stages=[
                Table1D(bumpy(3, 9) * 1e-3, WIDE),
                Table3D(bumpy(3, 4, 4, 4), ((-1e-4, 0, 0), (1e-3, 1e-3, 2e-3)), "trilinear"),
                Matrix(torch.tensor([[-1.5, 0, 0, 1], [0, 2, 0, 0], [0, 0, 3, 0]])),
                Table3D(bumpy(3, 3, 3, 3)),
                Matrix(torch.tensor([[0.7, 0.2, 0.1, 0.05], [-0.1, 1.1, 0, -0.2], [0, 1 / 3, 0.6, 0]])),
            ]
        ),
        1e-5,
        None,
    ),
}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("name", WRITTEN)
def test_opencolorio_reads_what_we_write(tmp_path, name, interpolation):
    """In every domain and beyond; in a .clf, each table interpolated as it asks."""
    lut, atol, contents = WRITTEN[name]
    lut = copy.deepcopy(lut)
    lut.title, lut.comments = "Warm <Ω>", (" by hand", " two & three")
    if name != "chain.clf":
        lut.interpolation = interpolation
    write_lut(lut, tmp_path / name)
    again = read_lut(tmp_path / name, interpolation)
    assert again.contents == (contents or lut.contents)
    for pixels in (colours(), colours(-1.0, 2.5)):
        theirs = by_opencolorio(pixels, tmp_path / name, "best" if name == "chain.clf" else interpolation)
        np.testing.assert_allclose(pixels_of(lut(image_of(pixels))), theirs, rtol=0, atol=atol)
        np.testing.assert_allclose(pixels_of(again(image_of(pixels))), theirs, rtol=0, atol=1e-5)
    if not name.endswith(("spi1d", "spi3d")):
        other = next(how for how in INTERPOLATIONS if how != interpolation)
        assert read_lut(tmp_path / name, other).interpolation == lut.interpolation or lut.table is None
        assert again.title == lut.title and again.comments == lut.comments


@pytest.mark.parametrize("name", OTHERS)
def test_a_clf_holds_what_other_formats_hold(tmp_path, name):
    (tmp_path / name).write_text(OTHERS[name][0])
    lut = read_lut(tmp_path / name)
    write_lut(lut, tmp_path / "written.clf")
    assert read_lut(tmp_path / "written.clf").contents == lut.contents
    for pixels in (colours(-0.2, 1.2), colours(-2, 6)):
        theirs = by_opencolorio(pixels, tmp_path / "written.clf", lut.interpolation)
        expected = by_opencolorio(pixels, tmp_path / name, lut.interpolation)
        np.testing.assert_allclose(theirs, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "lut", "message"),
    [
        (
            "a.3dl",
            LutFile(bumpy(3, 5, 5, 5, high=0.12)),
            "expected a colour lighter than 1/8 in a .3dl, got at most 0.1",
        ),
        ("a.3dl", LutFile(None, bumpy(3, 5)), "expected a 3D LUT over 0 to 1 for a .3dl, got 1D LUT of 5 entries"),
        ("a.spi3d", LutFile(bumpy(3, 5, 5, 5), table_domain=ONE), "expected a 3D LUT over 0 to 1 for a .spi3d, got"),
        ("a.spi1d", LutFile(None, bumpy(3, 5), shaper_domain=WIDE), "expected the same domain for R, G and B in a"),
        ("a.spi1d", LutFile(bumpy(3, 5, 5, 5)), "expected a 1D LUT for a .spi1d, got 3D LUT of 5×5×5"),
        ("a.csp", LutFile(identity_lut(130)), "expected a 3D LUT of at most 129 vertices a side for a .csp, got 130"),
        ("a.csp", LutFile(stages=[Table3D(bumpy(3, 5, 5, 5))] * 2), "expected a 1D LUT, a 3D LUT or a 1D LUT before"),
        ("a.clf", LutFile(bumpy(3, 5, 5, 5).sort(1)[0]).inverse(), "expected stages that a .clf can hold ("),
    ],
)
def test_what_a_format_cannot_hold_is_not_written(tmp_path, name, lut, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"{tmp_path / name}: {message}")):
        write_lut(lut, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_3dl_is_clipped_and_rounded(tmp_path):
    write_lut(LutFile(bumpy(3, 5, 5, 5)), tmp_path / "a.3dl")
    exact = (bumpy(3, 5, 5, 5).clamp(0, 1) * 65535).round() / 65535
    torch.testing.assert_close(read_lut(tmp_path / "a.3dl").table, exact, rtol=0, atol=1e-6)


def test_a_cube_names_its_interpolation_and_keeps_comments(tmp_path):
    text = "#Copyright: none\nLUT_3D_SIZE 2\n# INTERPOLATION trilinear\n" + "0 0 0\n" * 4 + "\t# half\n" + "1 1 1\n" * 4
    (tmp_path / "a.cube").write_text(text)
    lut = read_lut(tmp_path / "a.cube")
    assert lut.interpolation == "trilinear" and lut.comments == ("Copyright: none", " half")
    write_lut(lut, tmp_path / "b.cube")
    assert (tmp_path / "b.cube").read_text().startswith("# INTERPOLATION trilinear\n#Copyright: none\n# half\nLUT_3D")
    lut.interpolation = "tetrahedral"
    write_lut(lut, tmp_path / "c.cube")
    assert read_lut(tmp_path / "c.cube", "trilinear").interpolation == "tetrahedral"
    (tmp_path / "d.cube").write_text(text.replace("INTERPOLATION", "Interpolated"))
    assert [read_lut(tmp_path / "d.cube", how).interpolation for how in INTERPOLATIONS] == list(INTERPOLATIONS)


def test_two_tables_whose_domains_vary_by_channel_are_not_written(tmp_path):
    lut = LutFile(identity_lut(2), torch.rand(3, 4), shaper_domain=((0, 0, 0), (1, 1, 2)))
    with pytest.raises(ValueError, match="expected the same domain for R, G and B"):
        write_lut(lut, tmp_path / "a.cube")
    assert not list(tmp_path.iterdir())


def test_files_are_replaced_only_when_told(tmp_path):
    path = tmp_path / "a.cube"
    path.write_text("old")
    with pytest.raises(FileExistsError):
        write_lut(LutFile(identity_lut(2)), path)
    assert path.read_text() == "old"
    write_lut(LutFile(identity_lut(2)), path, overwrite=True)
    assert torch.equal(read_lut(path).table, identity_lut(2))
    with pytest.raises(ValueError, match=r"expected a name that ends in \.cube, \.png, \.3dl, "):
        write_lut(LutFile(identity_lut(2)), tmp_path / "a.ctf")


def test_one_text_however_it_is_written(tmp_path):
    plain = 'TITLE "Noon # 1"\nLUT_3D_SIZE 3\nDOMAIN_MAX 1 1 2\n' + text_of(rows_of(27))
    first = text_of(rows_of(27)).splitlines()[0]
    variants = {
        "CR LF": plain.replace("\n", "\r\n"),
        "CR": plain.replace("\n", "\r"),
        "BOM": "\ufeff" + plain,
        "no last newline": plain.rstrip("\n"),
        "tabs and spaces": re.sub("\n", " \t\n ", plain.replace(" ", "\t ").replace("Noon\t #\t 1", "Noon # 1")),
        "case": re.sub("TITLE|LUT_3D_SIZE|DOMAIN_MAX", lambda found: found[0].swapcase(), plain),
        "scientific": 'TITLE "Noon # 1"\nLUT_3D_SIZE 3\nDOMAIN_MAX 1E0 +1.e+0 .2e1\n'
        + "".join("{:.9e} {:.9E} {:+.9e}\n".format(*row) for row in rows_of(27)),
        "comments": "# made by hand\n\n"
        + plain.replace("SIZE 3", "SIZE 3 # a side").replace(first, f"\n# the first\n{first} # black")
        + "\n  # the end\n\n",
        "Resolve too": plain.replace("DOMAIN_MAX 1 1 2", "DOMAIN_MIN 0 0 0\nDOMAIN_MAX 1 1 1\nLUT_3D_INPUT_RANGE 0 1"),
    }  # fmt: skip
    for name, text in variants.items():
        path = tmp_path / "a.cube"
        path.write_bytes(text.encode())
        lut = read_lut(path)
        assert lut.title == "Noon # 1", name
        expected = torch.from_numpy(rows_of(27)).reshape(3, 3, 3, 3).permute(3, 0, 1, 2)
        torch.testing.assert_close(lut.table, expected, rtol=1e-7, atol=0, msg=name)
        assert lut.domain == (UNIT if name == "Resolve too" else ((0, 0, 0), (1, 1, 2))), name
    path.write_bytes(b'TITLE "caf\xe9 \x07"\nLUT_1D_SIZE 2\n0 0 0\n1 1 1\n')
    assert read_lut(path).title == "caf\ufffd \x07"


def test_long_texts_are_read_in_pieces(tmp_path, monkeypatch):
    """Wherever the pieces end: within a number, between CR and LF, in a comment."""
    rows = text_of(rows_of(8 + 7))
    text = f'TITLE "a"\nLUT_1D_SIZE 7\n# comment\nLUT_3D_SIZE 2\n{rows}'.replace("\n", "\r\n")
    (tmp_path / "a.cube").write_bytes(text.encode())
    whole = read_lut(tmp_path / "a.cube")
    for block in (1, 2, 3, 7, 64, 101):
        monkeypatch.setattr("fastenh.io.luts.BLOCK", block)
        again = read_lut(tmp_path / "a.cube")
        assert torch.equal(again.table, whole.table) and torch.equal(again.shaper, whole.shaper)
    text = text.replace("\r\n", "\n").splitlines()
    (tmp_path / "a.cube").write_text("\n".join([*text[:-1], "0 0 x"]))
    with pytest.raises(ValueError, match=f"line {len(text)}: expected three finite numbers, got '0 0 x'"):
        read_lut(tmp_path / "a.cube")


# ---- files that are none

ONE = "0 0 0\n" * 8
HOSTILE = {
    "huge 3D": ("LUT_3D_SIZE 1000000\n0 0 0\n", "line 1: expected LUT_3D_SIZE from 2 to 256, got 1000000"),
    "huge 1D": ("LUT_1D_SIZE 65537\n0 0 0\n", "line 1: expected LUT_1D_SIZE from 2 to 65536, got 65537"),
    "size beyond numbers": (f"LUT_3D_SIZE {'9' * 5000}\n", "line 1: expected LUT_3D_SIZE from 2 to 256, got 999"),
    "size 1": ("LUT_3D_SIZE 1\n0 0 0\n", "line 1: expected LUT_3D_SIZE from 2 to 256, got 1"),
    "negative size": ("LUT_3D_SIZE -2\n", "line 1: expected LUT_3D_SIZE from 2 to 256, got -2"),
    "size with a point": ("LUT_3D_SIZE 2.0\n", "line 1: expected LUT_3D_SIZE from 2 to 256, got 2.0"),
    "no number as size": ("LUT_3D_SIZE many\n", "line 1: expected 1 number after LUT_3D_SIZE, got 'many'"),
    "no size at all": ("LUT_3D_SIZE\n", "line 1: expected 1 number after LUT_3D_SIZE, got ''"),
    "no size": ('TITLE "a"\n' + ONE, "expected LUT_1D_SIZE or LUT_3D_SIZE before any numbers, got neither"),
    "empty": ("", "expected LUT_1D_SIZE or LUT_3D_SIZE before any numbers, got neither"),
    "size twice": ("LUT_3D_SIZE 2\nLUT_3D_SIZE 3\n" + ONE, "line 2: expected LUT_3D_SIZE once, got it again"),
    "missing rows": ("LUT_3D_SIZE 3\n" + ONE, "expected 27 rows of numbers for LUT_3D_SIZE 3, got 8"),
    "no rows": ("LUT_3D_SIZE 256\n", "expected 16777216 rows of numbers for LUT_3D_SIZE 256, got 0"),
    "missing rows of two": (
        "LUT_1D_SIZE 2\nLUT_3D_SIZE 2\n" + ONE,
        "expected 10 rows of numbers for LUT_1D_SIZE 2 and LUT_3D_SIZE 2, got 8",
    ),
    "too many rows": (
        "LUT_3D_SIZE 2\n\n" + ONE + "# the end\n1 1 1\n1 1 1\n",
        "line 12: expected at most 8 rows of numbers, got another",
    ),
    "NaN": ("LUT_3D_SIZE 2\n" + ONE[6:] + "0 nan 0\n", "line 9: expected three finite numbers, got '0 nan 0'"),
    "infinity": ("LUT_3D_SIZE 2\n0 0 0\n#\n0 -inf 0\n" + ONE, "line 4: expected three finite numbers, got '0 -inf 0'"),
    "beyond float32": ("LUT_3D_SIZE 2\n0 0 1e39\n" + ONE, "line 2: expected three finite numbers, got '0 0 1e39'"),
    "NaN first": ("LUT_3D_SIZE 2\nnan 0 0\n" + ONE, "line 2: expected three numbers or one of TITLE, LUT_1D_SIZE,"),
    "text": ("LUT_3D_SIZE 2\n0 0 0\n0 zero 0\n" + ONE, "line 3: expected three finite numbers, got '0 zero 0'"),
    "commas": ("LUT_3D_SIZE 2\n0,1 0,2 0,3\n" + ONE, "line 2: expected three finite numbers, got '0,1 0,2 0,3'"),
    "two numbers": ("LUT_3D_SIZE 2\n0 0\n" + ONE, "line 2: expected three finite numbers, got '0 0'"),
    "four numbers": ("LUT_3D_SIZE 2\n" + "0 0 0 0\n" * 8, "line 2: expected three finite numbers, got '0 0 0 0'"),
    "underscore": ("LUT_3D_SIZE 2\n0 0 1_0\n" + ONE, "line 2: expected three finite numbers, got '0 0 1_0'"),
    "keyword among numbers": ("LUT_3D_SIZE 2\n0 0 0\nDOMAIN_MIN 0 0 0\n", "line 3: expected all keywords before the"),
    "unknown keyword": ("LUT_3D_SIZE 2\nLUT_IN_VIDEO_RANGE\n" + ONE, "line 2: expected three numbers or one of TITLE"),
    "two dialects at odds": (
        "LUT_3D_SIZE 2\nDOMAIN_MAX 2 2 2\nLUT_3D_INPUT_RANGE 0 1\n" + ONE,
        "expected DOMAIN_MIN and DOMAIN_MAX to agree with LUT_3D_INPUT_RANGE, got 0 to 2 and 0 to 1",
    ),
    "a domain for two tables": (
        "LUT_1D_SIZE 2\nLUT_3D_SIZE 2\nDOMAIN_MAX 2 2 2\n" + ONE,
        "expected LUT_1D_INPUT_RANGE and LUT_3D_INPUT_RANGE for two tables, got DOMAIN_MIN or DOMAIN_MAX",
    ),
    "a range of nothing": (
        "LUT_1D_SIZE 2\nLUT_3D_INPUT_RANGE 0 1\n" + ONE[12:],
        "expected LUT_3D_SIZE with LUT_3D_INPUT_RANGE, got none",
    ),
    "empty domain": ("LUT_3D_SIZE 2\nDOMAIN_MIN 0 1 0\n" + ONE, "expected a domain from lower to higher numbers, got"),
    "infinite domain": ("LUT_3D_SIZE 2\nDOMAIN_MAX 1 1 1e39\n" + ONE, "expected a domain from lower to higher numbers"),
    "domain of one number": ("LUT_3D_SIZE 2\nDOMAIN_MIN 0\n", "line 2: expected 3 numbers after DOMAIN_MIN, got '0'"),
}  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        read_lut(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and len(line) < len(str(path)) + 300
    return line


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_cubes_are_one_clear_line(tmp_path, name):
    text, expected = HOSTILE[name]
    path = tmp_path / "a.cube"
    path.write_text(text)
    assert refusal(path).removeprefix(f"{path}: ").startswith(expected)


def test_what_is_no_text_is_one_clear_line(tmp_path):
    path = tmp_path / "a.cube"
    for content in (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", os.urandom(2000), "LUT_3D_SIZE 2\n".encode("utf-16")):
        path.write_bytes(content)
        refusal(path)


def test_a_gigabyte_of_one_line_is_not_read(tmp_path):
    path = tmp_path / "a.cube"
    for head in (b"", b"LUT_3D_SIZE 256\n0 0 0\n"):
        path.write_bytes(head)
        os.truncate(path, 2**30)  # zeros that take no room
        line = refusal(path)
        assert f"line {head.count(10) + 1}: expected at most 65536 characters, got a longer line" in line


@settings(deadline=None, max_examples=60)
@given(data=st.data(), name=st.sampled_from([name for name in OTHERS if "by Open" not in OTHERS[name][1]]))
def test_damage_to_what_opencolorio_reads_is_a_lut_or_a_value_error(data, name, tmp_path_factory):
    text = OTHERS[name][0]
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 9) | st.just(len(text)))
    text = (
        text[:start]
        + data.draw(st.sampled_from(["", "0", "nan", "1e40", "-1", "\0", "<", "\n"]))
        + text[start + length :]
    )
    path = tmp_path_factory.mktemp("luts") / name
    path.write_text(text)
    try:
        lut = read_lut(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert lut(torch.rand(1, 3, 4, 5)).isfinite().all()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damage_anywhere_is_a_lut_or_a_value_error(data, tmp_path_factory):
    text = bytearray(
        b'TITLE "a"\nLUT_1D_SIZE 2\nLUT_3D_SIZE 2\nLUT_1D_INPUT_RANGE 0 1\n' + text_of(rows_of(10)).encode()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        text[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=6) | st.just(b"\n0 0 0"))
    path = tmp_path_factory.mktemp("luts") / "a.cube"
    path.write_bytes(text)
    try:
        lut = read_lut(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert lut(torch.rand(1, 3, 4, 5)).isfinite().all()


def test_other_files_are_one_clear_line(tmp_path):
    for name in ("a.txt", "a", "a.jpg"):
        (tmp_path / name).write_text("LUT_3D_SIZE 2\n")
        assert "expected a LUT whose name ends in .cube, .png, .3dl" in refusal(tmp_path / name)
    for name in ("a.3dl", "a.clf", "a.csp", "a.spi1d", "a.spi3d"):
        (tmp_path / name).write_text("hello\n")
        assert "expected a LUT that OpenColorIO reads, got none (" in refusal(tmp_path / name)
    (tmp_path / "b.spi1d").write_text("Version 1\nFrom 0.0 1.0\nLength 2\nComponents 1\n{\n0\n1e39\n}\n")
    refusal(tmp_path / "b.spi1d")
    for size, got in (((64, 27), "64×27"), ((26, 26), "26×26"), ((1, 1), "1×1")):
        Image.new("RGB", size).save(tmp_path / "a.png")
        assert refusal(tmp_path / "a.png").endswith(f"8×8, 27×27, 64×64, … or 4096×4096 pixels, got {got}")
    (tmp_path / "b.png").write_text("hello")
    refusal(tmp_path / "b.png")
    for folder in ("c.cube", "c.3dl", "c.png"):
        (tmp_path / folder).mkdir()
        assert "expected a file, got a folder" in refusal(tmp_path / folder)
    os.mkfifo(tmp_path / "d.cube")
    refusal(tmp_path / "d.cube")
    refusal(tmp_path / "missing.cube")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected a 3D LUT, a 1D LUT or both, got neither"),
        ({"table": torch.rand(3, 4, 4, 5)}, r"expected a 3D LUT of shape \(3, D, D, D\), got \(3, 4, 4, 5\)"),
        ({"table": torch.tensor(1.0)}, r"expected a 3D LUT of shape \(3, D, D, D\), got \(\)"),
        ({"table": torch.rand(3, 1, 1, 1)}, "expected D from 2 to 256, got 1"),
        ({"shaper": torch.rand(4, 3)}, r"expected a 1D LUT of shape \(3, S\), got \(4, 3\)"),
        ({"shaper": torch.rand(3, 65537)}, "expected S from 2 to 65536, got 65537"),
        ({"shaper": torch.full((3, 4), torch.nan)}, "expected finite numbers in the shaper, got NaN or infinity"),
        ({"shaper": torch.rand(3, 4), "shaper_domain": (UNIT[1], UNIT[0])}, "expected a domain from lower to higher"),
    ],
)
def test_what_is_no_lut_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LutFile(**arguments)


# ---- as a module


def by_formula(image: Tensor, lut: LutFile) -> np.ndarray:
    """NumPy's and PyTorch's own interpolation, in float64."""
    x = image.double().numpy()
    if lut.shaper is not None:
        curves, (low, high) = lut.shaper.double().numpy(), lut.domain
        for c in range(3):
            x[:, c] = np.interp(x[:, c], np.linspace(low[c], high[c], curves.shape[1]), curves[c])
    if lut.table is None:
        return x
    low, high = (torch.tensor(end, dtype=torch.float64)[:, None, None] for end in lut.table_domain)
    grid = ((torch.from_numpy(x) - low) / (high - low) * 2 - 1).permute(0, 2, 3, 1)[:, None]
    table = lut.table.double().expand(len(x), -1, -1, -1, -1)
    return F.grid_sample(table, grid, align_corners=True, padding_mode="border")[:, :, 0].numpy()


@pytest.mark.parametrize("kind", ["1D", "3D", "3D with a domain", "both"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8, torch.uint16])
def test_every_dtype_layout_and_size(kind, dtype, monkeypatch):
    monkeypatch.setattr("fastenh.models.lut_file.BAND", 100)  # several bands
    torch.manual_seed(0)
    domain = ((-0.5, 0.0, 0.1), (1.5, 1.0, 0.9)) if kind != "3D" else UNIT
    lut = LutFile(
        None if kind == "1D" else torch.rand(3, 5, 5, 5) * 1.4 - 0.2,
        torch.rand(3, 7) if kind in ("1D", "both") else None,
        table_domain=domain,
        shaper_domain=domain,
        interpolation="trilinear",
    )
    scale = {torch.uint8: 255, torch.uint16: 65535}.get(dtype)
    image = torch.rand(2, 17, 23, 3) * (1.4 if scale is None else 1) - (0.2 if scale is None else 0)
    image = ((image * scale).round() if scale else image).to(dtype).permute(0, 3, 1, 2)[:, :, ::2, 1:]
    result = lut(image)
    assert result.dtype == dtype and result.shape == image.shape
    expected = by_formula(image.double() / (scale or 1), lut)
    expected = np.rint(expected.clip(0, 1) * scale) if scale else expected
    rtol = {torch.float16: 1e-3, torch.float64: 1e-6}.get(dtype, 1e-5)
    atol = {torch.float16: 2e-4, torch.uint16: 1}.get(dtype, 1e-5)  # some of uint16 lie near the half of a step
    np.testing.assert_allclose(result.double().numpy(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_into_a_buffer_or_in_place(dtype):
    torch.manual_seed(0)
    image = torch.rand(2, 3, 9, 7)
    image = (image * 255).to(dtype) if dtype is torch.uint8 else image
    for lut in (LutFile(torch.rand(3, 5, 5, 5)), LutFile(torch.rand(3, 5, 5, 5), torch.rand(3, 9))):
        expected, buffer, same = lut(image), torch.empty_like(image), image.clone()
        for out in (buffer, same):
            assert lut.render(same, (), None, Place(0, 0, 9, 7), out) is out and torch.equal(out, expected)


def test_nan_stays_where_it_was():
    image = torch.rand(1, 3, 4, 5)
    image[0, 1, 2, 3] = torch.nan
    lut = LutFile(None, torch.rand(3, 7))
    assert torch.equal(lut(image).isnan(), image.isnan())
    lut = LutFile(torch.rand(3, 3, 3, 3), torch.rand(3, 7))
    assert torch.equal(lut(image).isnan(), image.isnan().any(1, keepdim=True).expand_as(image))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_enhancer_takes_a_lut_as_a_model(dtype):
    torch.manual_seed(0)
    pixels = colours()
    if dtype is not np.float32:
        pixels = np.rint(pixels * np.iinfo(dtype).max).astype(dtype)
    for lut in (LutFile(torch.rand(3, 5, 5, 5)), LutFile(None, torch.rand(3, 9))):
        whole, half = (Enhancer(lut, "cpu")(pixels, strength).astype(float) for strength in (1.0, 0.5))
        atol = 1 if dtype is not np.float32 else 1e-6
        np.testing.assert_allclose(whole, pixels_of(lut(image_of(pixels))).astype(float), rtol=0, atol=atol)
        np.testing.assert_allclose(half, (whole + pixels.astype(float)) / 2, rtol=0, atol=atol)


# ---- baking


class Gamma(System):
    """A map of colours that depends on the photo."""

    reach = 0
    colour_map = True

    def predict(self, picture: Picture) -> tuple[Tensor, ...]:
        return (picture.overview.mean((2, 3), keepdim=True) + 0.5,)

    def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
        return image ** params[0]


def test_a_baked_lut_is_the_model_on_its_photo():
    torch.manual_seed(0)
    model = ImageAdaptiveLUT(3, 9, "statistics").eval()
    model.luts.data.add_(0.3 * torch.randn_like(model.luts))
    image = torch.rand(1, 3, 30, 40)
    lut = bake(model, image)
    assert lut.table.shape == (3, 9, 9, 9) and not lut.table.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(lut(image), model(image))
    finer = bake(model, image, 17)  # every vertex of 9 is one of 17
    finer.interpolation = "trilinear"
    torch.testing.assert_close(finer(image), lut(image))
    assert torch.equal(bake(model, image, 9).table, lut.table)


def test_a_map_of_colours_is_sampled_at_the_vertices():
    image = torch.rand(1, 3, 30, 40)
    gamma = (image.mean((2, 3)) + 0.5)[0, :, None, None, None]
    for size in (None, 5):
        torch.testing.assert_close(bake(Gamma(), image, size).table, identity_lut(size or 33) ** gamma)


@pytest.mark.parametrize("model", [LocalContextLUT(2, 5, "statistics"), ZeroDCE()])
def test_what_looks_around_a_pixel_cannot_be_baked(model):
    with pytest.raises(ValueError, match=f"equal colours to equal colours, got {type(model).__name__}, whose result"):
        bake(model, torch.rand(1, 3, 8, 8))


def test_sampling_keeps_to_the_domain():
    domain = ((-1.0, 0.0, 0.5), (1.0, 2.0, 0.75))
    lut = sample(lambda colours: 2 * colours + 1, 4, domain, "twice")
    colour = torch.tensor([0.3, 1.9, 0.6])[None, :, None, None]
    torch.testing.assert_close(lut(colour), 2 * colour + 1)
    assert lut.title == "twice" and lut.domain == domain
    with pytest.raises(ValueError, match="expected size from 2 to 256, got 300"):
        sample(lambda colours: colours, 300)
