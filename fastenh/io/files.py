"""Writing a file so that it is there whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield a hidden path in the folder of `path`; whatever the block writes there becomes `path` in one step.

    If the block fails (full disk, Ctrl-C), the hidden file goes and `path` is as it was before.

    Raises what `check_free` raises, and OSError with the name of `path`, not of the hidden file.
    """
    target = Path(path)
    check_free(target, overwrite)
    # Hidden, so that a run over this folder passes it by; same suffix, because writers choose the format by it.
    part = target.parent / f".fastenh-{secrets.token_hex(6)}{target.suffix}"
    try:
        yield part
        check_free(target, overwrite)
        if target.exists():
            shutil.copymode(target, part)
        # Through a link to the file it names: os.replace would put a plain file in the link's place.
        os.replace(part, os.path.realpath(target))
    except OSError as error:
        raise (OSError(error.errno, error.strerror, str(target)) if error.errno else error) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written to: what went wrong first is what is told
            part.unlink(missing_ok=True)


def check_free(path: Path, overwrite: bool = False) -> None:
    """Raise FileExistsError where `path` exists and `overwrite` is false, or where it is anything but a plain file."""
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: expected a file or nothing there, got a folder, pipe or device")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: already there, and overwrite was not asked for")
