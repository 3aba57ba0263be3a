"""`fastenh lut` as people run it: what it says of LUT files, makes of photos, and writes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastenh import models
from fastenh.cli import app
from fastenh.enhance import Enhancer
from fastenh.io import Header, LutFile, Photo, read_lut, read_photo, write_lut, write_photo
from fastenh.models import ImageAdaptiveLUT, LocalContextLUT, ZeroDCE, ZeroDCEPlusPlus, save
from fastenh.models.lut3d import identity_lut
from fastenh.models.system import System


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """In it: look.cube, photo.png, photo.jpg, and model.safetensors with three LUTs of 9 vertices."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    look = LutFile(identity_lut(5) ** 0.7 * torch.tensor([1.0, 0.9, 0.8])[:, None, None, None], title="Warm")
    write_lut(look, "look.cube")
    pixels = np.random.default_rng(0).integers(0, 256, (21, 33, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    Image.fromarray(pixels).save("photo.jpg")
    model = ImageAdaptiveLUT(3, 9, "statistics")
    model.luts.data.add_(0.2 * torch.randn_like(model.luts))
    save(model, "model.safetensors")
    return tmp_path


def lut(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["lut", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- info


def test_info_says_what_a_lut_holds(folder):
    lines = lut("info", "look.cube").splitlines()
    assert lines[:7] == [
        "format      .cube, the same in both dialects",
        "title       Warm",
        "holds       3D LUT of 5×5×5",
        "takes       0 to 1",
        "gives       R 0 to 1, G 0 to 0.9, B 0 to 0.8",
        "identity    no, off by up to 0.2",
        "monotonic   yes",
    ]
    assert lines[7:9] == [
        "black       0.00 0.00 0.00 → 0.0000 0.0000 0.0000",
        "dark grey   0.25 0.25 0.25 → {:.4f} {:.4f} {:.4f}".format(*0.25**0.7 * np.array([1, 0.9, 0.8])),
    ]
    assert "yellow      1.00 1.00 0.00 → 1.0000 0.9000 0.0000" in lines


def test_info_of_two_tables_and_domains(folder):
    shaper = torch.linspace(-1, 2, 4).repeat(3, 1)
    shaper[1, 2] = -2  # green falls once
    table, one = identity_lut(3) * 3 - 1, ((-1.0,) * 3, (2.0,) * 3)
    write_lut(LutFile(table, shaper, shaper_domain=one, table_domain=one), "a.cube")
    lines = lut("info", "a.cube").splitlines()
    assert lines[0] == "format      .cube, Resolve's dialect"
    assert lines[1] == "holds       1D LUT of 4 entries over -1 to 2, then 3D LUT of 3×3×3 over -1 to 2"
    assert lines[2] == "takes       -1 to 2"
    assert lines[4] == "identity    no, off by up to 2"
    assert lines[5] == "monotonic   no: G falls at 1 of 3 steps of the 1D LUT"


@pytest.mark.parametrize(
    "look",
    [
        LutFile(identity_lut(7)),
        LutFile(None, torch.linspace(0, 1, 100).repeat(3, 1)),
        LutFile(identity_lut(4) * 3 - 1, table_domain=((-1.0,) * 3, (2.0,) * 3)),
        LutFile(identity_lut(7) * 901, table_domain=((0.0,) * 3, (901.0,) * 3)),
    ],
    ids=["3D", "1D", "domain", "wide domain"],
)
def test_info_knows_the_identity(folder, look):
    write_lut(look, "a.cube")
    said = lut("info", "a.cube")
    assert "identity    yes\nmonotonic   yes\n" in said


def test_info_finds_one_entry_that_is_off(folder):
    table = identity_lut(33)
    table[2, 7, 5, 3] += 0.02
    write_lut(LutFile(table), "a.cube")
    assert "identity    no, off by up to 0.02\nmonotonic   yes" in lut("info", "a.cube")


def test_info_finds_what_falls_along_its_own_axis(folder):
    table = identity_lut(33)
    table[0, :, 4], table[2, 7], table[1, :, :, 9] = 0.5, 0.0, 0.7  # only blue falls as blue rises
    write_lut(LutFile(table), "a.cube")
    assert f"monotonic   no: B falls at {33 * 33} of 34848 steps of the 3D LUT" in lut("info", "a.cube")


def test_a_title_cannot_command_the_terminal(folder):
    Path("a.cube").write_bytes(b'TITLE "a\x1b[31mb"\nLUT_1D_SIZE 2\n0 0 0\n1 1 1\n')
    assert "title       a [31mb\n" in lut("info", "a.cube")


# ---- apply


@pytest.mark.parametrize("interpolation", ["tetrahedral", "trilinear", None])
def test_apply_writes_what_the_lut_makes_of_photos(folder, interpolation):
    option = ("--interpolation", interpolation) if interpolation else ()
    table = torch.rand(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    write_lut(LutFile(table), "look.cube", overwrite=True)
    assert lut("apply", "look.cube", "photo.png", "-o", "out.png", *option) == "Wrote out.png\n"
    image = torch.from_numpy(pixels("photo.png")).permute(2, 0, 1)[None] / 255
    expected = LutFile(table, interpolation=interpolation or "tetrahedral")(image) * 255
    assert np.abs(pixels("out.png") - expected[0].permute(1, 2, 0).numpy()).max() <= 0.51


def test_apply_plans_and_refuses_as_enhance_does(folder):
    assert lut("apply", "look.cube", "photo.png", "photo.jpg", "-o", "out/") == "Wrote 2 of 2 photos to out\n"
    assert names(folder / "out") == ["photo.jpg", "photo.png"]
    assert lut("apply", "look.cube", "photo.png") == "Wrote photo_enhanced.png\n"
    assert "Skipped 1 of 1 photos" in lut("apply", "look.cube", "photo.png")
    assert lut("apply", "look.cube", "photo.png", "--overwrite") == "Wrote photo_enhanced.png\n"
    assert "strength: expected a number from 0 to 1, got 2" in lut(
        "apply", "look.cube", "photo.png", "--strength", 2, code=2
    )


def test_apply_has_enhances_options(folder):
    (folder / "deeper").mkdir()
    Image.open("photo.png").save("deeper/a.jpg")
    os.utime("deeper/a.jpg", (10**9, 10**9))
    options = ("--recursive", "--suffix", "_x", "--quality", 50, "--dither", "--compare", "--jobs", 1, "--keep-times")
    assert lut("apply", "look.cube", "deeper", "-o", "out", *options) == "Wrote out/a_x.jpg\n"
    assert names(folder / "out") == ["a_x.jpg", "a_x_compare.jpg"] and os.stat("out/a_x.jpg").st_mtime == 10**9
    tables = Image.open("out/a_x.jpg").quantization
    Image.open("photo.png").convert("RGB").save("50.jpg", quality=50)
    assert tables == Image.open("50.jpg").quantization


def test_apply_with_strength(folder):
    for strength in ("0", "0.5", "1"):
        lut("apply", "look.cube", "photo.png", "-o", f"{strength}.png", "--strength", strength)
    photo, none, half, whole = (pixels(name) for name in ("photo.png", "0.png", "0.5.png", "1.png"))
    assert np.array_equal(none, photo) and np.abs(half - (photo + whole) / 2).max() <= 1.01
    assert np.abs(whole - photo).mean() > 5


# ---- bake


def test_a_baked_look_applied_is_the_photo_enhanced(folder):
    """By commands alone, and the same bytes."""
    assert lut("bake", "--model", "model.safetensors", "--photo", "photo.png", "-o", "a.cube") == (
        "Wrote a.cube: at most 0.00/255 from model on the photo, 0.00/255 on any colours, "
        "with trilinear interpolation\n"
    )
    assert read_lut("a.cube").table.shape == (3, 9, 9, 9) and read_lut("a.cube").title == "model, photo"
    lut("apply", "a.cube", "photo.png", "-o", "by_lut.png", "--interpolation", "trilinear")
    result = CliRunner().invoke(app, ["enhance", "photo.png", "-o", "by_model.png", "--model", "model.safetensors"])
    assert result.exit_code == 0, result.output
    assert np.array_equal(pixels("by_lut.png"), pixels("by_model.png"))
    assert np.abs(pixels("by_lut.png") - pixels("photo.png")).mean() > 5


def test_a_look_in_another_size_and_as_a_hald(folder):
    arguments = ("bake", "--model", "model.safetensors", "--photo", "photo.png")
    lut(*arguments, "-o", "17.cube", "--size", 17)
    said = lut(*arguments, "-o", "hald.png")
    assert read_lut("17.cube").table.shape[1] == 17 and Image.open("hald.png").size == (512, 512)
    assert "a Hald CLUT holds values from 0 to 1; values from -" in said
    expected = Enhancer("model.safetensors", "cpu")("photo.png")
    for name in ("17.cube", "hald.png"):
        lut("apply", name, "photo.png", "-o", "by_lut.png", "--interpolation", "trilinear", "--overwrite")
        # 17 holds every vertex of 9, 64 only nearly so.
        atol = 1 if name == "17.cube" else 8
        assert np.abs(pixels("by_lut.png") - np.asarray(expected)).max() <= atol


def test_ten_luts_are_named_in_order(folder):
    save(ImageAdaptiveLUT(10, 4, "statistics"), "ten.safetensors")
    lut("bake", "--model", "ten.safetensors", "--basis", "-o", "t.cube")
    assert sorted(path.name for path in folder.glob("t_*"))[::9] == ["t_01.cube", "t_10.cube"]


def test_a_hald_says_what_it_cannot_hold(folder):
    write_lut(LutFile(torch.rand(3, 4, 4, 4) * 0.9 - 1e-7, table_domain=((-0.5,) * 3, (2.0,) * 3)), "wide.cube")
    expected = "a.png: a Hald CLUT has the domain 0 to 1; the domain of wide.cube is -0.5 to 2\nWrote a.png: at most "
    said = lut("convert", "wide.cube", "a.png")
    assert (
        said.startswith(expected) and len(said.splitlines()) == 2
    )  # and nothing of values that differ from 0 by rounding
    write_lut(LutFile(torch.rand(3, 4, 4, 4) + 0.1), "light.cube")
    assert "values from " in lut("convert", "light.cube", "b.png")


def test_the_basis_of_a_model(folder):
    said = lut("bake", "--model", "model.safetensors", "--basis", "-o", "b.cube")
    off = "at most 0.00/255 from the model's table, with trilinear interpolation"
    assert said == f"Wrote b_1.cube: {off}\nWrote b_2.cube: {off}\nWrote b_3.cube: {off}\n"
    for n, table in enumerate(models.load("model.safetensors").luts, 1):
        look = read_lut(f"b_{n}.cube")
        assert torch.equal(look.table, table) and look.title == f"model, LUT {n} of 3"
    Path("c_2.cube").write_text("mine")
    assert "c_2.cube: exists" in lut("bake", "--model", "model.safetensors", "--basis", "-o", "c.cube", code=2)
    assert not Path("c_1.cube").exists() and Path("c_2.cube").read_text() == "mine"
    lut("bake", "--model", "model.safetensors", "--basis", "-o", "new/d.cube", "--size", 5)
    torch.testing.assert_close(read_lut("new/d_2.cube").table, read_lut("b_2.cube").table[:, ::2, ::2, ::2])


def test_a_model_with_a_map_of_colours(folder, monkeypatch):
    class Darker(System):
        reach = 0
        colour_map = True

        def predict(self, picture):
            assert np.array_equal(picture.overview[0].permute(1, 2, 0) * 255, pixels("photo.png"))
            return ()

        def render(self, image, params, local, place, out=None):
            return 0.5 * image

    monkeypatch.setattr("fastenh.models.load", lambda name: Darker().eval())
    lut("bake", "--model", "any", "--photo", "photo.png", "-o", "a.cube")
    assert torch.equal(read_lut("a.cube").table, 0.5 * identity_lut(33))
    assert "--basis: expected a model that only blends LUTs, got Darker" in lut(
        "bake", "--model", "any", "--basis", "-o", "b.cube", code=2
    )


@pytest.mark.parametrize("model", [LocalContextLUT(2, 5, "statistics"), ZeroDCE(), ZeroDCEPlusPlus()])
def test_what_is_no_map_of_colours_is_not_baked(folder, model):
    save(model, "other.safetensors")
    before, name = names(folder), type(model).__name__
    for options, expected in (
        (
            ("--photo", "photo.png"),
            f"maps equal colours to equal colours, got {name}, whose result for a pixel depends",
        ),
        (("--basis",), f"--basis: expected a model that only blends LUTs, got {name}"),
    ):
        said = lut("bake", "--model", "other.safetensors", *options, "-o", "a.cube", code=2)
        assert len(said.splitlines()) == 1 and expected in said
    assert names(folder) == before


# ---- convert


def test_convert_keeps_what_the_format_can_hold(folder):
    shaper, one = torch.rand(3, 10), ((0.0,) * 3, (2.0,) * 3)
    Path("a.spi1d").write_text("Version 1\nFrom 0.0 1.0\nLength 3\nComponents 1\n{\n0\n0.25\n1\n}\n")
    assert lut("convert", "a.spi1d", "a.cube") == "Wrote a.cube: at most 0.00/255 from a.spi1d\n"
    assert torch.equal(read_lut("a.cube").shaper, torch.tensor([0, 0.25, 1]).repeat(3, 1))
    write_lut(LutFile(identity_lut(4), shaper, shaper_domain=one, title="Two"), "two.cube")
    lut("convert", "two.cube", "again.cube")
    assert Path("again.cube").read_text() == Path("two.cube").read_text()
    lut("convert", "two.cube", "one.cube", "--size", 19)  # over the same colours, as a 3D LUT alone
    again, colour = read_lut("one.cube"), torch.tensor([2 * 7 / 18, 2 * 3 / 18, 2.0])[None, :, None, None]
    assert again.shaper is None and again.domain == one and again.title == "Two"
    torch.testing.assert_close(again(colour), read_lut("two.cube")(colour))


def test_convert_to_a_hald_and_back(folder):
    write_lut(LutFile(torch.randint(0, 65536, (3, 9, 9, 9)) / 65535), "nine.cube")
    assert lut("convert", "nine.cube", "nine.png") == (
        "Wrote nine.png: at most 0.00/255 from nine.cube, with tetrahedral interpolation\n"
    )
    lut("convert", "nine.png", "back.cube")
    assert torch.equal(read_lut("back.cube").table, read_lut("nine.cube").table)
    lut("convert", "look.cube", "look.png")  # of 5 vertices, which no Hald CLUT has
    assert Image.open("look.png").size == (512, 512)
    colour = torch.tensor([0.0, 1.0, 1.0])[None, :, None, None]
    torch.testing.assert_close(read_lut("look.png")(colour), read_lut("look.cube")(colour), rtol=0, atol=1e-5)
    lut("convert", "look.cube", "small.png", "--size", 16)
    assert Image.open("small.png").size == (64, 64)


def test_a_published_lut_through_hald_changes_little(folder, assets):
    path = assets / "lut" / "cube" / "Arabica_12.CUBE"
    assert "title       Sepia\nholds       3D LUT of 32×32×32\n" in lut("info", path)
    lut("convert", path, "hald.png")
    lut("apply", path, "photo.png", "-o", "a.png")
    lut("apply", "hald.png", "photo.png", "-o", "b.png")
    assert np.abs(pixels("a.png") - pixels("b.png")).max() <= 1 and not np.array_equal(
        pixels("a.png"), pixels("photo.png")
    )


# ---- what is wrong


def test_trouble_is_one_line_and_nothing_is_written(folder, monkeypatch):
    Path("nan.cube").write_text("LUT_1D_SIZE 2\n0 0 0\n0 nan 0\n")
    Path("old.cube").write_text("old")
    Path("a.3dl").write_text("hello")
    before = names(folder)
    bake = ("bake", "--model", "model.safetensors")
    for arguments, expected in [
        (("info", "nan.cube"), "fastenh: nan.cube: line 3: expected three finite numbers, got '0 nan 0'"),
        (("apply", "nan.cube", "photo.png"), "fastenh: nan.cube: line 3: expected three finite numbers, got '0 nan 0'"),
        (("convert", "nan.cube", "a.cube"), "fastenh: nan.cube: line 3: expected three finite numbers, got '0 nan 0'"),
        (("info", "missing.cube"), "fastenh: missing.cube: No such file or directory"),
        (("info", "photo.png"), "8×8, 27×27, 64×64, … or 4096×4096 pixels, got 33×21"),
        (("info", "a.3dl"), "a.3dl: expected a LUT that OpenColorIO reads, got none ("),
        (("info", "photo.jpg"), "photo.jpg: expected a LUT whose name ends in .cube, .png, .3dl,"),
        (("convert", "look.cube", "old.cube"), "old.cube: exists"),
        (
            ("convert", "look.cube", "a.ctf"),
            "a.ctf: expected a name that ends in .cube, .png, .3dl, .clf, .csp, .spi1d, .spi3d, got '.ctf'",
        ),
        (("convert", "look.cube", "a.png", "--size", 33), "a.png: expected a 3D LUT of 4, 9, 16, … or 256 vertices"),
        (("convert", "look.cube", "a.cube", "--size", 300), "expected size from 2 to 256, got 300"),
        (("convert", "look.cube", "a.cube", "--size", 0), "expected size from 2 to 256, got 0"),
        ((*bake, "-o", "a.cube"), "expected --photo PHOTO or --basis, got neither"),
        ((*bake, "-o", "a.cube", "--basis", "--photo", "photo.png"), "expected --photo PHOTO or --basis, got both"),
        ((*bake, "-o", "a.cube", "--photo", "missing.png"), "missing.png: No such file or directory"),
        ((*bake, "-o", "old.cube", "--photo", "photo.png"), "old.cube: exists"),
        ((*bake, "-o", "a.txt", "--photo", "photo.png"), "a.txt: expected a name that ends in .cube, .png, .3dl"),
        (("bake", "--model", "none", "-o", "a.cube", "--basis"), "no model 'none'"),
    ]:
        said = lut(*arguments, code=2)
        assert len(said.splitlines()) == 1 and said.startswith("fastenh: ") and expected in said, said
    assert names(folder) == before and Path("old.cube").read_text() == "old"
    monkeypatch.setitem(sys.modules, "PyOpenColorIO", None)
    assert lut("info", "a.3dl", code=2) == (
        "fastenh: expected the package PyOpenColorIO, got none: pip install opencolorio\n"
    )


def test_a_write_cut_short_leaves_nothing(folder):
    """The system itself stops the write after 8 KB, as a full disk would."""
    before = names(folder)
    for name in ("a.cube", "a.png"):
        command = [sys.executable, "-c", "from fastenh.cli import app; app()", "lut", "convert", "look.cube", name]
        limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *command, "--size", "64"]
        done = subprocess.run(limited, capture_output=True, text=True)
        assert done.returncode == 2 and f"fastenh: {name}: " in done.stderr and "Traceback" not in done.stderr
    assert names(folder) == before


# ---- spaces, chains, inverses, legal range


def float_tiff(path: str, *values: float) -> None:
    array = np.array(values, np.float32)[None, :, None].repeat(3, 2)
    write_photo(Photo(Header("", 1, len(values), 3, array.dtype, 3), array), path)


def values(path: str) -> list[float]:
    return read_photo(path).pixels[0, :, 0].tolist()


@pytest.fixture
def curves(folder) -> Path:
    """domain_2.cube halves up to 2, gain_2.cube doubles up to 1, and a.tif has floats."""
    Path("domain_2.cube").write_text("LUT_1D_SIZE 2\nDOMAIN_MIN 0 0 0\nDOMAIN_MAX 2 2 2\n0 0 0\n1 1 1\n")
    Path("gain_2.cube").write_text("LUT_1D_SIZE 2\n0 0 0\n2 2 2\n")
    float_tiff("a.tif", 0.25, 0.5, 0.75, 1.5, 2.0)
    return folder


def test_apply_maps_the_numbers_of_float_files(curves):
    lut("apply", "domain_2.cube", "a.tif", "-o", "half.tif")
    assert values("half.tif") == [0.125, 0.25, 0.375, 0.75, 1.0]
    lut("apply", "gain_2.cube", "a.tif", "-o", "double.tif")
    assert values("double.tif") == [0.5, 1.0, 1.5, 2.0, 2.0]
    lut("apply", "gain_2.cube", "a.tif", "-o", "srgb.tif", "--space", "srgb")
    assert values("srgb.tif") == [0.5, 1.0, 1.0, 1.5, 2.0]  # as for models: what is above 1 stays above
    lut("apply", "gain_2.cube", "photo.png", "-o", "own.png", "--space", "file")
    lut("apply", "gain_2.cube", "photo.png", "-o", "default.png")
    assert np.array_equal(pixels("own.png"), pixels("default.png"))  # sRGB's numbers are its own


def test_apply_chains_luts_in_order(curves):
    lut("apply", "gain_2.cube", "a.tif", "-o", "b.tif", "--then", "domain_2.cube", "--then", "gain_2.cube")
    assert values("b.tif") == [0.5, 1.0, 1.5, 2.0, 2.0]
    lut("apply", "domain_2.cube", "a.tif", "-o", "c.tif", "--then", "gain_2.cube")
    assert values("c.tif") == [0.25, 0.5, 0.75, 1.5, 2.0]
    said = lut("apply", "domain_2.cube", "a.tif", "-o", "d.tif", "--then", "missing.cube", code=2)
    assert said == "fastenh: missing.cube: No such file or directory\n"


def test_apply_undoes_luts_from_the_last_on(curves):
    two = ("--then", "gain_2.cube", "--space", "file")
    lut("apply", "domain_2.cube", "a.tif", "-o", "b.tif", *two)
    lut("apply", "domain_2.cube", "b.tif", "-o", "c.tif", *two, "--inverse")
    np.testing.assert_allclose(values("c.tif"), values("a.tif"), rtol=1e-6)
    Path("turns.cube").write_text("LUT_1D_SIZE 3\n0 0 0\n1 1 1\n0 0 1\n")
    said = lut("apply", "turns.cube", "a.tif", "-o", "d.tif", "--inverse", code=2)
    assert said == "fastenh: expected a 1D LUT that only rises or only falls, to invert it; its R does not\n"
    write_lut(LutFile((2 * identity_lut(5)).clamp(max=1)), "clips.cube")
    said = lut("apply", "clips.cube", "a.tif", "-o", "e.tif", "--inverse")
    assert said.startswith("the inverse restores colours to within 0.5, ") and said.endswith("Wrote e.tif\n")


def test_apply_in_legal_range(curves):
    lut("apply", "gain_2.cube", "a.tif", "-o", "b.tif", "--range", "legal")
    expected = [((16 + 219 * min(value, (255 - 16) / 219)) * 2 - 16) / 219 for value in values("a.tif")]
    np.testing.assert_allclose(values("b.tif"), expected, rtol=1e-6)


def test_apply_interpolates_as_the_file_asks(folder):
    table = torch.rand(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    rows = "\n".join("{} {} {}".format(*row) for row in table.permute(3, 2, 1, 0).reshape(8, 3).tolist())  # B fastest
    Path("a.clf").write_text(
        '<?xml version="1.0"?><ProcessList compCLFversion="3" id="a"><LUT3D inBitDepth="32f" outBitDepth="32f" '
        f'interpolation="trilinear"><Array dim="2 2 2 3">{rows}</Array></LUT3D></ProcessList>'
    )
    image = torch.from_numpy(pixels("photo.png")).permute(2, 0, 1)[None] / 255
    for options, how in (((), "trilinear"), (("--interpolation", "tetrahedral"), "tetrahedral")):
        lut("apply", "a.clf", "photo.png", "-o", "b.png", "--overwrite", *options)
        expected = LutFile(table, interpolation=how)(image)[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(pixels("b.png") - expected).max() <= 0.51


def test_info_and_convert_of_several_stages(folder):
    Path("a.clf").write_text(
        '<?xml version="1.0"?><ProcessList compCLFversion="3" id="a"><Matrix inBitDepth="32f" outBitDepth="32f">'
        '<Array dim="3 3">0.7 0.2 0.1 0.1 0.8 0.1 0.05 0.1 0.85</Array></Matrix>'
        '<Exponent inBitDepth="32f" outBitDepth="32f" style="basicRev"><ExponentParams exponent="2.4"/></Exponent>'
        "</ProcessList>"
    )
    said = lut("info", "a.clf")
    assert "holds       matrix, then Exponent by OpenColorIO\ntakes       any number\n" in said
    assert "grey        0.50 0.50 0.50 → 0.7492 0.7492 0.7492\n" in said and "monotonic" not in said
    said = lut("convert", "a.clf", "a.cube")
    note = "sampled as 3D LUT of 65×65×65; differs by up to 0.052\n"
    assert said.startswith(f"{note}Wrote a.cube: at most 13.15/255 from a.clf")
    write_lut(LutFile(identity_lut(3) * torch.tensor([1.0, 0.9, 0.8])[:, None, None, None]), "warm.cube")
    assert lut("info", "warm.cube").endswith("gray photos become RGB, because the LUT gives gray a colour\n")
    assert "gray photos" not in said


# ---- what is written, against its source


def error_said(said: str) -> float:
    return float(re.search(r"at most ([\d.]+)/255 from", said)[1])


def largest(one: str, other: str, how: str) -> float:
    """Between two files, by all of the vertices and cell centres of one of 9 vertices."""
    looks = [read_lut(path, how) for path in (one, other)]
    image = identity_lut(17).reshape(1, 3, 17, 17 * 17)
    return 255 * (looks[0](image) - looks[1](image)).abs().max().item()


def test_a_baked_model_is_converted_as_it_was_baked(folder):
    """Trilinear, without being told so, and otherwise the line says by how much it is off."""
    lut("bake", "--model", "model.safetensors", "--photo", "photo.png", "-o", "a.cube")
    for name in ("b.cube", "b.csp", "b.clf", "b.spi3d"):
        said = lut("convert", "a.cube", name)
        assert said == f"Wrote {name}: at most 0.00/255 from a.cube, with trilinear interpolation\n"
        assert read_lut(name).interpolation == ("tetrahedral" if name == "b.spi3d" else "trilinear")
        assert largest("a.cube", name, "trilinear") < 1e-3
    assert lut("convert", "a.cube", "17.cube", "--size", 17).startswith("Wrote 17.cube: at most 0.00/255 from a.cube")
    said = lut("convert", "a.cube", "t.cube", "--interpolation", "tetrahedral")
    assert said.endswith(", with tetrahedral interpolation\n") and error_said(said) > 10
    assert error_said(said) >= 0.99 * largest("a.cube", "t.cube", "trilinear") > 5
    said = lut("convert", "a.cube", "6.cube", "--size", 6)
    assert error_said(said) >= 0.99 * largest("a.cube", "6.cube", "trilinear") > 5


def test_a_file_that_names_no_interpolation_has_the_one_given(folder):
    lut("bake", "--model", "model.safetensors", "--photo", "photo.png", "-o", "a.spi3d")
    for how, options in (("tetrahedral", ()), ("trilinear", ("--interpolation", "trilinear"))):
        said = lut("convert", "a.spi3d", f"{how}.cube", *options)
        assert said == f"Wrote {how}.cube: at most 0.00/255 from a.spi3d, with {how} interpolation\n"
        assert read_lut(f"{how}.cube").interpolation == how


def test_convert_writes_what_each_format_holds(folder):
    write_lut(
        LutFile(None, torch.linspace(0, 1.2, 9).repeat(3, 1) ** 2, shaper_domain=((0.0,) * 3, (2.0,) * 3)), "a.cube"
    )
    for name, resampled in (
        ("a.spi1d", ""),
        ("a.csp", ""),
        ("a.clf", ""),
        ("a.3dl", "a .3dl"),
        ("a.spi3d", "a .spi3d"),
    ):
        said = lut("convert", "a.cube", name)
        domains = f"{name}: {resampled} has the domain 0 to 1; the domain of a.cube is 0 to 2\n"
        assert said.startswith(domains if resampled else "Wrote")
        assert (read_lut(name).table is not None) == bool(resampled) and error_said(said) < 0.5
    write_lut(LutFile(identity_lut(5) * 2 - 0.5), "wide.cube")
    said = lut("convert", "wide.cube", "wide.3dl")
    assert said.startswith("wide.3dl: a .3dl holds values from 0 to 1; values from -0.5 to 1.5 were clipped\nWrote")
    assert error_said(said) == 127.5


def test_bake_says_how_far_a_sampled_model_is(folder, monkeypatch):
    """A gamma, steep near black, on a photo that has black and dark pixels."""

    class Gamma(System):
        reach = 0
        colour_map = True

        def predict(self, picture):
            return ()

        def render(self, image, params, local, place, out=None):
            return image**0.5

    monkeypatch.setattr("fastenh.models.load", lambda name: Gamma().eval())
    said = lut("bake", "--model", "any", "--photo", "photo.png", "-o", "a.cube").splitlines()
    look = read_lut("a.cube")
    image = torch.from_numpy(pixels("photo.png")).permute(2, 0, 1)[None] / 255
    expected, finer = ((LutFile(identity_lut(n) ** 0.5)(image) - image**0.5).abs().max() * 255 for n in (33, 65))
    assert said[0].startswith(f"Wrote a.cube: at most {expected:.2f}/255 from any on the photo, ")
    assert said[0].endswith(f"on any colours, with {look.interpolation} interpolation")
    assert said[1] == f"--size 65 would be closer: {finer:.2f}/255 on the photo"
    assert len(lut("bake", "--model", "any", "--photo", "photo.png", "-o", "b.cube", "--size", 65).splitlines()) == 1
