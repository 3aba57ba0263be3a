"""Files of tensors, ours and others': what is checked before they are read, so that none takes more than its own size,
and while they are read. Nothing is unpickled but tensors and plain values."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastenh.memory import is_out_of_memory
from fastenh.ops.op import FLOATS

HEADER = 2**20  # bytes of a .safetensors file's header, which names its tensors; ours have up to 20 KB
PARTS = 10_000  # files in a .pth file, one for each tensor
PICKLE = 2**22  # bytes of that which names them


@contextlib.contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """The file, its header checked, its tensors yet to be read; FileNotFoundError, or ValueError in one line."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            room = file.seek(0, 2) - 8
        if HEADER < size <= room:
            raise ValueError(f"{path}: expected a header of at most {HEADER} bytes, got {size}")
        with safe_open(path, "pt") as tensors:
            yield tensors
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: out of memory") from None
        raise ValueError(f"{path}: not a whole .safetensors file ({' '.join(str(error).split()):.120})") from None


def read_pth(path: str | Path) -> dict[str, Any]:
    """The dict in a .pth file; whatever else is there is an error of one line."""
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except Exception as error:  # torch meets damaged bytes with errors of many kinds
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: out of memory") from None
        reason = str(error) if isinstance(error, OverlargeArchive) else type(error).__name__
        raise ValueError(f"{path}: not a PyTorch checkpoint of tensors alone ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    _check_dense(path, content)
    return content


class OverlargeArchive(ValueError):
    """A .pth file that unpacks to more than its own size, or names more tensors than any network has."""


def check_archive(path: str | Path) -> None:
    """Raises OverlargeArchive for a .pth file that would exhaust memory or time. Those from before PyTorch 1.6 are no
    archives."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            return
        size = file.seek(0, 2)
        file.seek(max(size - 2**16, 0))
        end = file.read()
    place = end.rfind(b"PK\5\6")
    count = struct.unpack_from("<H", end.ljust(place + 12, b"\0"), place + 10)[0] if place >= 0 else 0
    if count > PARTS:  # before they are listed
        raise OverlargeArchive(f"expected at most {PARTS} parts, got {'65535 or more' if count == 65535 else count}")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if (unpacked := sum(part.file_size for part in parts)) > size:
        raise OverlargeArchive(f"expected parts of {size} bytes at most, as the file has, got {unpacked}")
    names = sum(part.file_size for part in parts if part.filename.endswith(".pkl"))
    if names > PICKLE:
        raise OverlargeArchive(f"expected at most {PICKLE} bytes that name tensors, got {names}")


def _check_dense(path: str | Path, content: dict[Any, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            _check_dense(path, value)
        elif isinstance(value, (list, tuple)):
            _check_dense(path, dict(enumerate(value)))
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise ValueError(f"{path}: expected {key} as plain numbers, got a tensor that is sparse or has none")
            # One number may claim to be any number of them.
            if value.numel() * value.itemsize > value.untyped_storage().nbytes():
                raise ValueError(f"{path}: expected {key} as large as it says, {tuple(value.shape)}, got fewer numbers")


def as_float32(path: str | Path, key: str, tensor: Tensor) -> Tensor:
    """ValueError, in one line, for what is no float, NaN, infinite, or beyond what float32 holds."""
    if tensor.dtype not in FLOATS or not tensor.isfinite().all():
        raise ValueError(f"{path}: expected finite floats in {key}, got {tensor.dtype} or NaN")
    result = tensor.float()
    if not result.isfinite().all():
        largest = tensor.abs().max().item()
        raise ValueError(f"{path}: expected floats that float32 holds in {key}, got up to {largest:.3g}")
    return result


def checksum(content: Any) -> str:
    """BLAKE2b of tensors and plain values in dicts and lists, whatever the order of a dict's keys."""
    state = hashlib.blake2b(digest_size=16)

    def add(item: Any) -> None:
        if isinstance(item, Tensor):
            state.update(f"{item.dtype} {tuple(item.shape)}\n".encode())
            state.update(item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(item, Mapping):
            state.update(f"{{{len(item)}\n".encode())
            for key in sorted(item, key=repr):
                state.update(f"{key!r}\n".encode())
                add(item[key])
        elif isinstance(item, (list, tuple)):
            state.update(f"[{len(item)}\n".encode())
            for value in item:
                add(value)
        else:
            state.update(f"{item!r}\n".encode())

    add(content)
    return state.hexdigest()
