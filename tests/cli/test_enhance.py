"""`fastenh enhance` as people run it: what it writes, what it leaves alone, what it says when something is wrong."""

import errno
import os
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastenh.cli import app
from fastenh.enhance import Enhancer
from fastenh.io import read_photo
from fastenh.models import ImageAdaptiveLUT, LocalContextLUT, load, save
from fastenh.pipelines import batch
from fastenh.pipelines import photo as one_photo


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A model that brightens."""
    torch.manual_seed(0)
    model = ImageAdaptiveLUT(1, 9, "statistics")
    with torch.no_grad():
        model.luts.pow_(0.7)
        model.classifier.head.weight.zero_()
        model.classifier.head.bias.fill_(1)
    path = tmp_path_factory.mktemp("weights") / "brighter.safetensors"
    save(model, path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    for name, image in {"a.png": pixels, "b.jpg": pixels[::-1], "c.PNG": pixels[:, ::-1]}.items():
        Image.fromarray(np.ascontiguousarray(image)).save(folder / name)
    return folder


@pytest.fixture
def run(weights):
    def call(*arguments, code: int, model: tuple = ("--model", weights)) -> str:
        result = CliRunner().invoke(app, ["enhance", *map(str, [*model, "--device", "cpu", *arguments])])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_times_are_kept_and_photos_with_results_are_skipped_all_the_same(run, photos, tmp_path):
    for seconds, photo in enumerate(photos.iterdir(), 10**9):
        os.utime(photo, (seconds, seconds))
    run(photos, "-o", tmp_path / "out", "--keep-times", code=0)
    times = {path.name: path.stat().st_mtime for path in photos.iterdir()}
    assert {path.name: path.stat().st_mtime for path in (tmp_path / "out").iterdir()} == times
    assert "Skipped 3 of 3" in run(photos, "-o", tmp_path / "out", "--keep-times", code=0)


def test_what_else_a_photos_file_held_is_one_line(run, tmp_path):
    Image.new("RGB", (9, 7)).save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0\0\0\x18ftypmp42" + bytes(99))
    output = run(tmp_path / "a.jpg", code=0)
    assert output == f"{tmp_path}/a.jpg: left out the video\nWrote {tmp_path}/a_enhanced.jpg\n"


# ---- what is written, and where


def test_one_photo_beside_itself(run, photos, weights):
    output = run(photos / "a.png", code=0)
    assert output == f"Wrote {photos / 'a_enhanced.png'}\n"
    expected = Enhancer(weights, "cpu")(photos / "a.png")
    assert np.array_equal(np.asarray(read_photo(photos / "a_enhanced.png")), np.asarray(expected))
    assert np.asarray(expected).mean() > np.asarray(Image.open(photos / "a.png")).mean()


def test_works_offline_with_the_model_that_comes_with_it(run, photos, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a photo was to be retouched, and the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    run(photos / "b.jpg", code=0, model=())
    assert read_photo(photos / "b_enhanced.jpg").pixels.shape == (12, 16, 3)


def test_the_model_by_its_name_its_file_or_as_weights(run, photos, weights):
    for option, out in ((("--model", "auto"), "name"), (("--model", weights), "file"), (("--weights", weights), "old")):
        run(photos / "a.png", "-o", photos / f"{out}.png", code=0, model=option)
    name, file, old = (np.asarray(read_photo(photos / f"{out}.png")) for out in ("name", "file", "old"))
    assert np.array_equal(file, old) and not np.array_equal(file, name)
    assert np.array_equal(name, np.asarray(Enhancer("auto", "cpu")(photos / "a.png")))


def test_portraits_of_a_group_with_local_context(run, photos, tmp_path):
    """Each pixel of each photo is the model's, rounded; sizes are odd and differ."""
    torch.manual_seed(0)
    model = LocalContextLUT(2, 9, "statistics", kernel_size=5, widths=(6, 7))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save(model, tmp_path / "lam.safetensors")
    pixels = np.random.default_rng(1).integers(0, 256, (33, 47, 3), np.uint8)
    group = {"3_0.png": pixels, "3_1.png": np.ascontiguousarray(pixels[:20, ::-1]), "3_2.png": pixels[:1, :5]}
    for name, photo in group.items():
        Image.fromarray(photo).save(photos / name)
    run(photos, code=0, model=("--model", tmp_path / "lam.safetensors"))
    model = load(tmp_path / "lam.safetensors")
    for name, photo in group.items():
        with torch.no_grad():
            expected = model(torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255).clamp(0, 1) * 255
        result = np.asarray(read_photo(photos / "enhanced" / name)).astype(float)
        assert np.abs(result - expected[0].permute(1, 2, 0).numpy()).max() <= 0.51
        assert np.abs(result - photo).mean() > 1


def test_one_photo_to_a_file_in_another_format(run, photos, tmp_path):
    run(photos / "a.png", "-o", tmp_path / "new" / "x.jpeg", code=0)
    assert names(tmp_path / "new") == ["x.jpeg"] and Image.open(tmp_path / "new" / "x.jpeg").format == "JPEG"


@pytest.mark.parametrize("out", ["out", "out/", "out.v2/"])
def test_files_to_a_new_folder_keep_their_names(run, photos, tmp_path, out):
    output = run(photos / "a.png", photos / "b.jpg", "-o", f"{tmp_path}/{out}", code=0)
    assert names(tmp_path / out) == ["a.png", "b.jpg"] and output.startswith("Wrote 2 of 2 photos to ")


def test_a_folder_goes_to_its_own_subfolder(run, photos):
    (photos / "notes.txt").write_text("hello")
    (photos / ".hidden.jpg").write_text("not a photo")
    (photos / "deeper").mkdir()
    (photos / "deeper" / "d.jpg").write_text("not a photo either")
    output = run(photos, code=0)
    assert names(photos / "enhanced") == ["a.png", "b.jpg", "c.PNG"]
    assert f"Skipping 1 of 4 files in {photos}" in output


def test_folders_in_the_folder(run, photos, tmp_path):
    (photos / "deeper").mkdir()
    (photos / "b.jpg").rename(photos / "deeper" / "b.jpg")
    output = run(photos, "-o", tmp_path / "out", "--recursive", "--suffix", "_x", code=0)
    assert output == f"Wrote 3 of 3 photos to {tmp_path / 'out'}\n"
    assert names(tmp_path / "out") == ["a_x.png", "c_x.PNG", "deeper"]
    assert names(tmp_path / "out" / "deeper") == ["b_x.jpg"]


def test_the_photos_own_folder_as_output(run, photos):
    run(photos / "a.png", "-o", photos, "--compare", code=0)
    assert names(photos) == ["a.png", "a_compare.jpg", "a_enhanced.png", "b.jpg", "c.PNG"]


def test_compare_shows_before_and_after(run, tmp_path):
    dark = Image.new("RGB", (3000, 2000), (60, 60, 60))
    dark.save(tmp_path / "a.png")
    run(tmp_path / "a.png", "-o", tmp_path / "b.png", "--compare", code=0)
    picture = Image.open(tmp_path / "b_compare.jpg")
    assert picture.size == (3216, 1067)
    row = np.asarray(picture)[500, :, 1].astype(int)
    after = np.asarray(Image.open(tmp_path / "b.png"))[0, 0, 1]
    assert abs(row[800] - 60) <= 2 and row[1608] >= 250 and abs(row[2400] - int(after)) <= 2 and after > 80


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_compare_of_gray_and_transparent_photos(run, tmp_path, mode):
    Image.new(mode, (30, 20), "red" if mode == "RGBA" else 90).save(tmp_path / "a.png")
    run(tmp_path / "a.png", "--compare", code=0)
    assert Image.open(tmp_path / "a_enhanced.png").mode == mode
    assert Image.open(tmp_path / "a_compare.jpg").size == (62, 20)


def test_strength_0_gives_the_pixels_back(run, photos, tmp_path):
    run(photos, "-o", tmp_path / "out", "--strength", "0", code=0)
    for name in ("a.png", "c.PNG"):
        assert np.array_equal(read_photo(tmp_path / "out" / name), read_photo(photos / name))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(run, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    run(tmp_path / "a.png", "--strength", "0", code=0)
    assert Image.open(tmp_path / "a_enhanced.png").getexif()[0x0112] == 1
    assert np.array_equal(Image.open(tmp_path / "a_enhanced.png"), read_photo(tmp_path / "a.png"))


def test_the_order_of_files_changes_nothing(run, photos, tmp_path):
    files = [photos / name for name in ("a.png", "b.jpg", "c.PNG")]
    run(*files, "-o", tmp_path / "one", code=0)
    run(*files[::-1], "-o", tmp_path / "two", code=0)
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# ---- failures: the rest is done, nothing is lost


def test_a_failure_in_the_middle_leaves_the_others_done(run, photos, tmp_path):
    whole = (photos / "b.jpg").read_bytes()
    (photos / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "b2.jpg").write_text("hello")
    output = run(photos, "-o", tmp_path / "out", "--compare", code=1)
    assert names(tmp_path / "out") == ["a.png", "a_compare.jpg", "c.PNG", "c_compare.jpg"]
    failed = [line for line in output.splitlines() if line.startswith("Failed: ")]
    assert "Wrote 2 of 4 photos" in output and len(failed) == 2
    assert failed[0].startswith(f"Failed: {photos / 'b.jpg'}: expected a whole JPEG, got a damaged one")
    assert failed[1].startswith(f"Failed: {photos / 'b2.jpg'}: expected a photo (JPEG, PNG, TIFF")


def test_missing_and_unreadable_files(run, photos, tmp_path):
    (photos / "a.png").unlink()
    output = run(photos / "a.png", photos / "b.jpg", "-o", tmp_path / "out", code=1)
    assert f"Failed: {photos / 'a.png'}: No such file or directory\n" in output
    assert names(tmp_path / "out") == ["b.jpg"]


def test_names_links_and_folders_that_fail_are_a_line_each(run, photos, tmp_path):
    """A name that has no room for the suffix, a link to itself, a file where a subfolder of results would be."""
    long = "x" * 245 + ".png"
    (photos / long).write_bytes((photos / "a.png").read_bytes())
    (photos / "l.jpg").symlink_to("l.jpg")
    (photos / "deeper").mkdir()
    (photos / "b.jpg").rename(photos / "deeper" / "b.jpg")
    out = tmp_path / "out"
    out.mkdir()
    (out / "deeper").write_text("mine")
    output = run(photos, "-o", out, "--recursive", "--suffix", "_retouched", "--compare", code=1)
    assert output.splitlines() == [
        f"Wrote 2 of 5 photos to {out}",
        f"Failed: {photos / 'l.jpg'}: {os.strerror(errno.ELOOP)}",
        f"Failed: {photos / long}: {out / ('x' * 245 + '_retouched.png')}: {os.strerror(errno.ENAMETOOLONG)}",
        f"Failed: {photos / 'deeper' / 'b.jpg'}: {out / 'deeper' / 'b_retouched.jpg'}: {os.strerror(errno.ENOTDIR)}",
    ]
    wrote = ["a_retouched.png", "a_retouched_compare.jpg", "c_retouched.PNG", "c_retouched_compare.jpg", "deeper"]
    assert names(out) == wrote
    assert (out / "deeper").read_text() == "mine"
    output = run(*photos.glob("*.*"), code=1)  # named one by one
    assert "Wrote 2 of 4 photos" in output and output.count("Failed: ") == 2


@pytest.mark.parametrize("how", ["simulated", "real"])
def test_a_subfolder_that_cannot_be_listed_is_told(run, photos, tmp_path, monkeypatch, how):
    locked = photos / "locked"
    locked.mkdir()
    (photos / "b.jpg").rename(locked / "b.jpg")
    if how == "real":
        if os.geteuid() == 0:
            pytest.skip("root lists every folder")
        locked.chmod(0)
    else:

        def scandir(folder, real=os.scandir):
            if Path(folder) == locked:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
            return real(folder)

        monkeypatch.setattr(os, "scandir", scandir)
    output = run(photos, "-o", tmp_path / "out", "--recursive", code=1)
    assert output == f"Wrote 2 of 3 photos to {tmp_path / 'out'}\nFailed: {locked}: {os.strerror(errno.EACCES)}\n"
    assert names(tmp_path / "out") == ["a.png", "c.PNG"]
    locked.chmod(0o700)


def test_a_link_to_another_disk_as_output(run, photos, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other disk in /dev/shm")
    with tempfile.TemporaryDirectory(dir=other) as there:
        for target in ("new.png", "empty.png"):
            link, file = tmp_path / target, Path(there, target)
            link.symlink_to(file)
            if target == "empty.png":
                file.touch()
            assert run(photos / "a.png", "-o", link, code=0) == f"Wrote {link}\n"
            assert link.is_symlink() and read_photo(file).pixels.shape == (12, 16, 3)
        (tmp_path / "out").symlink_to(there)
        run(photos, "-o", tmp_path / "out", code=0)
        assert names(Path(there)) == ["a.png", "b.jpg", "c.PNG", "empty.png", "new.png"]


def test_a_photo_that_may_not_be_read(run, photos, monkeypatch):
    def refuse(path, *arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("fastenh.io.formats.registry.open", refuse, raising=False)
    output = run(photos / "a.png", code=1)
    assert output == f"Failed: {photos / 'a.png'}: Permission denied\n"


def test_nothing_is_overwritten_unasked(run, photos, tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    output = run(photos / "a.png", "-o", tmp_path / "a.png", code=2)
    assert output == f"fastenh: {tmp_path / 'a.png'}: exists but is no photo, and overwriting was not requested\n"
    output = run(photos / "a.png", "-o", tmp_path, code=1)
    assert output.startswith(f"Failed: {photos / 'a.png'}: {tmp_path / 'a.png'}: exists but is no photo, and")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    theirs = (photos / "c.PNG").read_bytes()
    (tmp_path / "a.png").write_bytes(theirs)
    output = run(photos / "a.png", "-o", tmp_path / "a.png", code=2)
    assert output == f"fastenh: {tmp_path / 'a.png'}: exists, and overwriting was not requested\n"
    output = run(photos / "a.png", "-o", tmp_path, code=0)
    assert output == "Skipped 1 of 1 photos whose results exist; --overwrite replaces them\n"
    assert (tmp_path / "a.png").read_bytes() == theirs
    run(photos / "a.png", "-o", tmp_path, "--overwrite", code=0)
    assert read_photo(tmp_path / "a.png").pixels.shape == (12, 16, 3)


def test_a_run_goes_on_where_it_was_ended(run, photos, tmp_path):
    run(photos, "-o", tmp_path / "out", code=0)
    (tmp_path / "out" / "b.jpg").unlink()
    theirs = (photos / "c.PNG").read_bytes()
    (tmp_path / "out" / "a.png").write_bytes(theirs)
    output = run(photos, "-o", tmp_path / "out", code=0)
    assert output.splitlines() == [
        f"Wrote 1 of 3 photos to {tmp_path / 'out'}",
        "Skipped 2 of 3 photos whose results exist; --overwrite replaces them",
    ]
    assert (tmp_path / "out" / "a.png").read_bytes() == theirs and (tmp_path / "out" / "b.jpg").exists()


def test_a_run_goes_on_with_comparisons(run, photos, tmp_path):
    run(photos, "-o", tmp_path / "out", code=0)
    result = (tmp_path / "out" / "a.png").read_bytes()
    assert run(photos, "-o", tmp_path / "out", "--compare", code=0) == f"Wrote 3 of 3 photos to {tmp_path / 'out'}\n"
    assert "a_compare.jpg" in names(tmp_path / "out") and (tmp_path / "out" / "a.png").read_bytes() == result
    assert "Skipped 3 of 3" in run(photos, "-o", tmp_path / "out", "--compare", code=0)


def test_results_beside_the_photos_of_a_folder_are_no_photos(run, photos):
    for expected in ("Wrote 3 of 3 photos", "Skipped 3 of 3 photos"):
        assert run(photos, "-o", photos, "--compare", code=0).startswith(expected)
        assert len(names(photos)) == 9


def test_two_runs_at_once_make_each_photo_once(run, photos, tmp_path, monkeypatch):
    """Here the other one is done while this one works."""
    retouch = batch.enhance_file

    def late(enhancer, source, target, *arguments):
        retouch(enhancer, source, target, *arguments)
        return retouch(enhancer, source, target, *arguments)

    monkeypatch.setattr("fastenh.pipelines.batch.enhance_file", late)
    assert "Skipped 3 of 3 photos" in run(photos, "-o", tmp_path / "out", code=0)


def test_a_comparison_is_not_overwritten_either(run, photos):
    (photos / "a_compare.jpg").write_bytes(b"old")
    run(photos / "a.png", "--compare", code=1)
    assert (photos / "a_compare.jpg").read_bytes() == b"old" and not (photos / "a_enhanced.png").exists()


def test_the_photo_itself_only_with_overwrite(run, photos):
    before = (photos / "a.png").read_bytes()
    run(photos / "a.png", "-o", photos / "a.png", code=2)
    assert (photos / "a.png").read_bytes() == before
    run(photos / "a.png", "-o", photos / "a.png", "--overwrite", code=0)
    assert (photos / "a.png").read_bytes() != before


def test_transparency_does_not_fit_jpeg(run, tmp_path):
    Image.new("RGBA", (4, 4)).save(tmp_path / "a.png")
    assert "expected a photo without transparency for JPEG" in run(tmp_path / "a.png", "-o", tmp_path / "a.jpg", code=1)
    assert names(tmp_path) == ["a.png"]


# ---- refused before anything is begun


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "--strength", "1.5"], "strength: expected a number from 0 to 1, got 1.5"),
        (["a.png", "--strength", "nan"], "strength: expected a number from 0 to 1, got nan"),
        (["a.png", "--device", "cuda:99"], "device: expected auto or a torch device here (cpu"),
        (["a.png", "--device", "gpu"], "), got gpu"),
        (["a.png", "b.jpg", "-o", "c.PNG"], "-o: expected a folder for 2 photos (end a new one with /), got"),
        (["a.png", "-o", "out.gif"], "-o: expected a folder or a name that ends in .jpg, .jpeg, .png, .tif"),
        ([".", "-o", "out.png"], "-o: expected a folder for 3 photos (end a new one with /), got"),
        (["empty"], "expected a folder with photos (.jpg, .jpeg, .png, .tif, .tiff, .webp, .exr, .jxl, .avif, .h"),
        (["a.png", "empty"], "expected files, or one folder alone, got the folder"),
        (["a.png", "a.png"], "expected the result of one photo there, got"),
        (["a.png", "deeper/a.png", "-o", "out"], "expected the result of one photo there, got"),
        (
            ["a.png", "-o", "a.png", "--overwrite", "--compare"],
            "expected another file than the photo, to compare them, got",
        ),
        (["a.png", "a_enhanced.png", "--overwrite"], "expected a result that replaces no other input photo, got"),
        (["a.png", "-o", "b.jpg/x/"], "Not a directory"),
        (["a.png", "--watch"], "--watch: expected one folder, got a.png"),
        (["empty", "--watch", "--suffix", "a/b"], "suffix: expected text without / to append to names, got 'a/b'"),
    ],
)
def test_one_line_before_anything_is_begun(run, photos, monkeypatch, arguments, message):
    monkeypatch.chdir(photos)
    (photos / "empty").mkdir()
    before = names(photos)
    output = run(*arguments, code=2)
    assert len(output.splitlines()) == 1 and output.startswith("fastenh: ") and message in output
    assert names(photos) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (["--model", "missing.safetensors"], "no model 'missing.safetensors': expected a .safetensors file or an emb"),
        (["--model", "a.png"], "a.png: not a whole .safetensors file"),
        (["--weights", "other.safetensors"], "other.safetensors: not a fastenh checkpoint"),
        (["--model", "nonsense"], "no model 'nonsense'"),
    ],
)
def test_weights_that_are_none_of_ours(run, photos, monkeypatch, model, message):
    from safetensors.torch import save_file

    monkeypatch.chdir(photos)
    save_file({"x": torch.zeros(2)}, "other.safetensors")
    before = names(photos)
    output = run("a.png", code=2, model=model)
    assert len(output.splitlines()) == 1 and message in output and names(photos) == before


def test_debug_shows_the_traceback(photos, weights):
    once = CliRunner().invoke(app, ["enhance", str(photos / "missing.jpg"), "--weights", str(weights), "--debug"])
    assert once.exit_code == 1 and "Traceback" in once.output and "FileNotFoundError" in once.output
    before = CliRunner().invoke(app, ["enhance", str(photos), "--weights", str(photos / "a.png"), "--debug"])
    assert isinstance(before.exception, ValueError)


# ---- as a process: exit codes, streams, memory, disk


def enhance(*arguments, limit: str = "-c 0") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `limit` is what bash's ulimit takes (no core dumps)."""
    command = [sys.executable, "-c", "from fastenh.cli import app; app()", "enhance", *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *command], capture_output=True, text=True
    )


def test_a_run_that_is_terminated_leaves_no_half_file(photos, weights, tmp_path):
    script = """
import signal
from fastenh.pipelines import batch
from fastenh.cli import app
from fastenh.atomic import replacing
def half(enhancer, source, target, options, overwrite):
    with replacing(target, overwrite) as part:
        part.write_bytes(b"half")
        print(part.name, flush=True)
        signal.pause()
batch.enhance_file = half
app()
"""
    command = [sys.executable, "-c", script, "enhance", photos, "-o", tmp_path / "out", "--weights", weights]
    with subprocess.Popen([*command, "--jobs", "1"], stdout=subprocess.PIPE, text=True) as process:
        part = process.stdout.readline().strip()
        assert names(tmp_path / "out") == [part]
        process.terminate()
    assert process.returncode == 143 and names(tmp_path / "out") == []


def test_exit_codes_and_streams(photos, weights):
    """One header asks for 40 gigapixels (120 GB), one file name tries to write two lines."""
    header = struct.pack(">4sIIBBBBB", b"IHDR", 200_000, 200_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (photos / "huge.png").write_bytes(start + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND")))
    (photos / "bad\n.jpg").write_bytes(b"\xff\xd8\xff")
    done = enhance(photos, "--weights", weights, "--device", "cpu")
    assert done.returncode == 1
    assert done.stdout == f"Wrote 3 of 5 photos to {photos / 'enhanced'}\n"
    bad, huge = (line for line in done.stderr.splitlines() if not line.startswith("libpng"))
    assert bad.startswith(f"Failed: {photos}/bad .jpg: expected a whole JPEG")
    assert huge.startswith(f"Failed: {photos / 'huge.png'}: expected ")


def test_a_write_cut_short_leaves_nothing(tmp_path, weights):
    """The system itself stops the write after 8 KB, as a full disk would."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    done = enhance(tmp_path, "-o", tmp_path / "out", "--weights", weights, "--device", "cpu", limit="-f 8")
    assert done.returncode == 1 and names(tmp_path / "out") == ["b.png"]
    assert done.stderr == f"Failed: {tmp_path / 'a.png'}: {tmp_path / 'out' / 'a.png'}: {os.strerror(errno.EFBIG)}\n"


@pytest.mark.parametrize(
    "said",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 108000000 bytes. Error code 12"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_too_little_memory_is_told_as_that(run, photos, tmp_path, monkeypatch, said):
    def retouch(engine, image, *arguments, real=one_photo.enhance_photo):
        if image.header.format == "JPEG":
            raise said
        return real(engine, image, *arguments)

    monkeypatch.setattr(one_photo, "enhance_photo", retouch)
    output = run(photos, "-o", tmp_path / "out", code=1)
    assert output == f"Wrote 2 of 3 photos to {tmp_path / 'out'}\nFailed: {photos / 'b.jpg'}: out of memory\n"


def test_a_warning_is_one_line(photos, run):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769)[0x927C] = bytes(70_000)
    Image.open(photos / "a.png").save(photos / "a.png", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        output = run(photos / "a.png", "-o", photos / "out.jpg", code=0)
    told = f"Warning: {photos / 'out.jpg'}: expected 65527 bytes of EXIF, which is what JPEG holds, got 70"
    assert [line.startswith(told) for line in output.splitlines() if line.startswith("Warning")] == [True]
    assert Image.open(photos / "out.jpg").size == Image.open(photos / "a.png").size
