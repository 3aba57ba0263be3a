"""Files are there whole or not at all, after a power cut too; what killed runs left is removed, and nothing else."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import numpy as np
import pytest
import torch
from PIL import Image

from fastenh import atomic
from fastenh.atomic import check_free, make_folder, replacing
from fastenh.evaluate import write_ious
from fastenh.io import Header, LutFile, Photo, read_photo, write_lut, write_photo
from fastenh.models import ImageAdaptiveLUT, save
from fastenh.models.lut3d import identity_lut
from fastenh.pipelines.compare import write_comparison


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Syncs and renames, by the names of files and folders at that time."""
    log: list[str] = []

    def fsync(number, real=os.fsync):
        log.append(f"sync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        real(number)

    def replace(part, path, real=os.replace):
        log.append(f"rename {Path(part).name} {Path(path).name}")
        real(part, path)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the names of open files are read from /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return log


def kept(calls: list[str], path: Path) -> bool:
    """Whether the last three calls put a file on the disk, gave it its name, and put the name on the disk."""
    first, second, third = calls[-3:]
    part = first.removeprefix("sync ")
    return part.startswith(".fastenh-") and (second, third) == (
        f"rename {part} {path.name}",
        f"sync {path.parent.name}",
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what a power cut leaves


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("hello")
        assert not calls
    assert len(calls) == 3 and kept(calls, tmp_path / "a.txt") and (tmp_path / "a.txt").read_text() == "hello"


def test_new_folders_last(tmp_path, calls):
    make_folder(tmp_path / "a" / "b")
    assert sorted(calls) == ["sync a", f"sync {tmp_path.name}"] and (tmp_path / "a" / "b").is_dir()
    make_folder(tmp_path / "a" / "b")
    assert len(calls) == 2


@pytest.fixture(scope="module")
def writers(tmp_path_factory) -> dict[str, Callable[[Path], None]]:
    """Every way to write a file, by a name that shows it."""
    folder = tmp_path_factory.mktemp("sources")
    pixels = np.random.default_rng(0).integers(0, 65536, (60, 80, 3), np.uint16)
    photo = Photo(Header("", 60, 80, 3, pixels.dtype, 3), pixels)
    floats = Photo(replace(photo.header, dtype=np.dtype("float32")), (pixels / 65535).astype(np.float32))
    write_photo(photo, folder / "a.png")
    for how in ("tiff_lzw", "raw"):
        Image.fromarray((pixels >> 8).astype(np.uint8)).save(folder / f"{how}.tif", compression=how)
    lut, model = LutFile(identity_lut(9)), ImageAdaptiveLUT(2, 9, "statistics")
    return {
        **{f"a.{end}": partial(write_photo, photo) for end in ("jpg", "png", "tif", "webp", "exr", "avif", "jxl")},
        "floats.tif": partial(write_photo, floats),
        "lzw.tif": partial(write_photo, read_photo(folder / "tiff_lzw.tif")),
        "raw.tif": partial(write_photo, read_photo(folder / "raw.tif")),
        "compare.jpg": partial(write_comparison, folder / "a.png", folder / "a.png"),
        "lut.cube": partial(write_lut, lut),
        "hald.png": partial(write_lut, lut),
        "model.safetensors": partial(save, model),
        "table.csv": partial(write_ious, {(1, "input"): torch.rand(300)}),
    }


def test_every_writer_lasts(tmp_path, calls, writers):
    for name, write in writers.items():
        calls.clear()
        write(tmp_path / name)
        assert len(calls) == 3 and kept(calls, tmp_path / name), name


def test_every_writer_tells_of_a_full_disk(tmp_path, writers):
    """Wherever it is full: the system stops the write there."""
    for name, write in writers.items():
        path = tmp_path / name
        write(path)
        size = path.stat().st_size
        path.unlink()
        before = getrlimit(RLIMIT_FSIZE)
        for limit in (0, *range(100, size, size // 7), size - 300, size - 30, size - 1):
            setrlimit(RLIMIT_FSIZE, (limit, before[1]))
            try:
                with pytest.raises(OSError) as caught:
                    write(path)
            finally:
                setrlimit(RLIMIT_FSIZE, before)
            assert not names(tmp_path), (name, limit)
            assert name in str(caught.value) and ".fastenh" not in str(caught.value)


def test_what_cannot_be_synced_is_not_written(tmp_path, monkeypatch):
    """A full disk may tell so only then."""
    (tmp_path / "a.txt").write_text("old")

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught, replacing(tmp_path / "a.txt", overwrite=True) as part:
        part.write_text("new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.txt"))
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, step):
    real = getattr(os, step)
    for after in (False, True):
        (tmp_path / "a.txt").write_text("old")

        def interrupted(*arguments, real=real, after=after):
            if after:
                real(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, step, interrupted)
            with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.txt", overwrite=True) as part:
                part.write_text("new")
        assert names(tmp_path) == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == ("new" if (step, after) == ("replace", True) else "old")


def test_folders_that_cannot_be_synced_do(tmp_path, monkeypatch):
    real = os.fsync

    def some(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(number)

    monkeypatch.setattr(os, "fsync", some)
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("hello")
    assert (tmp_path / "a.txt").read_text() == "hello"


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.txt"):
        (tmp_path / "source.txt").read_text()
    assert caught.value.filename == str(tmp_path / "source.txt") and not names(tmp_path)


# ---- links, names, permissions


def test_a_link_is_written_through_in_the_folder_that_it_points_to(tmp_path, monkeypatch):
    """A rename does not go from disk to disk; a plain file does not take the link's place."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "a.txt").symlink_to(there / "b.txt")

    def replace(part, path, real=os.replace):
        if Path(part).parent != Path(path).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), part)
        real(part, path)

    monkeypatch.setattr(os, "replace", replace)
    for text in ("new", "newer"):  # to a file that is not there yet, and to one that is
        with replacing(here / "a.txt", overwrite=text == "newer") as part:
            part.write_text(text)
            assert part.suffix == ".txt" and part.parent == there
        assert (here / "a.txt").is_symlink() and (there / "b.txt").read_text() == text
    assert names(here) == ["a.txt"] and names(there) == ["b.txt"]


def test_names_that_no_file_can_have(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere/a")
    for name, number in (("loop", errno.ELOOP), ("x" * 256, errno.ENAMETOOLONG), ("lost", errno.ENOENT)):
        with pytest.raises(OSError) as caught, replacing(tmp_path / name, overwrite=True):
            pass
        assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError, match="expected a file or nothing there"):
        check_free(tmp_path / "folder", overwrite=True)
    assert names(tmp_path) == ["folder", "loop", "lost"]


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o664])
def test_a_new_file_is_as_private_as_another(tmp_path, mode):
    source, target = tmp_path / "source", tmp_path / "target"
    source.touch()
    source.chmod(mode)
    with replacing(target, like=source) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        part.write_text("hello")
    assert stat.S_IMODE(target.stat().st_mode) == mode
    target.chmod(0o640)
    with replacing(target, overwrite=True, like=source) as part:
        part.write_text("again")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


# ---- what killed runs leave


def test_what_killed_runs_left_is_removed_after_a_day(tmp_path):
    code = f"""
import os, runpy, signal
replacing = runpy.run_path({atomic.__file__!r})["replacing"]  # without torch, which takes its time
with replacing({str(tmp_path / "a.jpg")!r}) as part:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    (killed,) = names(tmp_path)
    process = killed.split("-")[1]
    assert process.isdecimal()
    token = "0123456789ab"
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        live = f".fastenh-{sleeper.pid}-{token}.jpg"
        young = f".fastenh-{process}-{token}.png"
        older = [f".fastenh-{token}.tif", f".fastenh-{os.getpid()}-{token}.exr", f".fastenh-{process}-{token}"]
        others = [
            ".fastenh-notes.txt",
            f".fastenh-{token}-mine.jpg",
            f"fastenh-{token}.jpg",
            f".fastenh-{token}.jpg.bak",
        ]
        for name in (live, young, *older, *others):
            (tmp_path / name).touch()
        (tmp_path / f".fastenh-{token}.folder").mkdir()
        (tmp_path / "deeper").mkdir()
        (tmp_path / "deeper" / older[0]).touch()
        old = time.time() - 25 * 3600
        for path in [*tmp_path.iterdir(), tmp_path / "deeper" / older[0]]:
            if path.name != young:
                os.utime(path, (old, old))
        with replacing(tmp_path / "b.jpg") as part:
            part.touch()
        assert set(names(tmp_path)) == {"b.jpg", "deeper", live, young, *others, f".fastenh-{token}.folder"}
        assert names(tmp_path / "deeper") == [older[0]]  # nothing was written there
    finally:
        sleeper.communicate(b"\n")


def test_a_folder_is_looked_through_once(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(atomic.os, "listdir", lambda folder, real=os.listdir: looked.append(folder) or real(folder))
    for n in range(3):
        with replacing(tmp_path / f"{n}.json") as part:
            part.write_text(json.dumps(n))
    assert looked == [tmp_path]
