"""Writing files atomically: after a crash or a power cut a file is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = re.compile(
    r"\.fastenh-(?:(\d{1,9})-)?[0-9a-f]{12}(?:\.\w+)?"
)  # a temporary file, with its process's number
ABANDONED = 24 * 60 * 60  # seconds after which a temporary file that nobody writes to is removed


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], overwrite: bool = False, like: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """Yield a hidden path beside `path`; what the block writes there is synced to disk and becomes `path` in one step.

    If the block fails (full disk, Ctrl-C), the hidden file is removed and `path` is unchanged. A link stays a link:
    the file that it points to is replaced, in its own folder. A file that is replaced keeps its permissions; a new one
    gets those of the file `like`, and nobody else can read it before that.

    The file is synced before it is renamed, or a power cut could leave an empty file under the new name; the folder is
    synced after that, so that what was reported as written is still there.

    Raises what `check_free` raises, and OSError with the name of `path` where the hidden file cannot be written.
    """
    target = Path(path)
    check_free(target, overwrite)
    final = Path(os.path.realpath(target))
    _remove_abandoned(final.parent)
    # Hidden, so that a run over this folder skips it; same suffix, because writers choose the format by it.
    part = final.with_name(f".fastenh-{os.getpid()}-{secrets.token_hex(6)}{target.suffix}")
    mode = _permissions(final, like)
    initial = 0o666 if mode is None else 0o600
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, initial)) as file:
            yield part
            if mode is not None:
                with contextlib.suppress(OSError):  # a file system without permissions
                    os.chmod(part, mode)
            os.fsync(file.fileno())
        check_free(target, overwrite)
        os.replace(part, final)
        _sync_folder(final.parent)
    except OSError as error:
        if error.errno and error.filename in (None, part, str(part)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # in a folder that cannot be written to, report what went wrong first
            part.unlink(missing_ok=True)


def check_free(path: Path, overwrite: bool = False) -> None:
    """Raise FileExistsError where `path` exists and `overwrite` is false, or where it is anything but a plain file;
    OSError where no file of that name can be (too long a name, a link to itself)."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise FileExistsError(f"{path}: expected a file or nothing there, got a folder, pipe or device")
    if not overwrite:
        raise FileExistsError(f"{path}: exists, and overwriting was not requested")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing, to last as the files in it do."""
    new = [place for place in (folder, *folder.parents) if not os.path.isdir(place)]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        _sync_folder(place.parent)


def _permissions(*paths: str | os.PathLike[str] | None) -> int | None:
    """Those of the first that is there."""
    for path in paths:
        if path is not None:
            with contextlib.suppress(OSError):
                return stat.S_IMODE(os.stat(path).st_mode)
    return None


def _sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder, where it may be read and its file system can do so."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


@functools.cache  # once for each folder
def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed runs: unchanged for a day, and of no other process that runs here."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match, path = TEMPORARY.fullmatch(name), folder / name
            if match and not _runs(match[1]):
                with contextlib.suppress(OSError):  # another run removed it first
                    about = path.lstat()
                    if stat.S_ISREG(about.st_mode) and time.time() - about.st_mtime > ABANDONED:
                        path.unlink()


def _runs(process: str | None) -> bool:
    """Whether another process has this number. This one has no files here yet; in a container all runs are number 1."""
    if process is None or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
