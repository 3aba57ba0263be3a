"""Weights as their authors published them, in .pth files. They are checked before and while they are read, so that none
takes more memory than its own size. Nothing but tensors and plain values is unpickled."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastenh.memory import is_out_of_memory
from fastenh.ops.op import FLOATS

MAX_PARTS = 10_000  # files in a .pth archive, one for each tensor
MAX_PICKLE = 2**22  # bytes of the pickle that names them


def read_pth(path: str | Path) -> dict[str, Any]:
    """The dict in a .pth file. FileNotFoundError, or ValueError in one line for anything else."""
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except Exception as error:  # torch raises errors of many kinds for damaged bytes
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: out of memory") from None
        reason = str(error) if isinstance(error, OverlargeArchive) else type(error).__name__
        raise ValueError(f"{path}: not a PyTorch checkpoint of tensors alone ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    _check_dense(path, content)
    return content


class OverlargeArchive(ValueError):
    """A .pth file that unpacks to more than its own size, or that names more tensors than any network has."""


def check_archive(path: str | Path) -> None:
    """Raise OverlargeArchive for a .pth file that would exhaust memory or time. Files from before PyTorch 1.6 are no
    archives and pass."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            return
        size = file.seek(0, 2)
        file.seek(max(size - 2**16, 0))
        end = file.read()
    place = end.rfind(b"PK\5\6")
    count = struct.unpack_from("<H", end.ljust(place + 12, b"\0"), place + 10)[0] if place >= 0 else 0
    if count > MAX_PARTS:  # before they are listed
        raise OverlargeArchive(
            f"expected at most {MAX_PARTS} parts, got {'65535 or more' if count == 65535 else count}"
        )
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if (unpacked := sum(part.file_size for part in parts)) > size:
        raise OverlargeArchive(f"expected parts of {size} bytes at most, as the file has, got {unpacked}")
    names = sum(part.file_size for part in parts if part.filename.endswith(".pkl"))
    if names > MAX_PICKLE:
        raise OverlargeArchive(f"expected at most {MAX_PICKLE} bytes that name tensors, got {names}")


def _check_dense(path: str | Path, content: dict[Any, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            _check_dense(path, value)
        elif isinstance(value, (list, tuple)):
            _check_dense(path, dict(enumerate(value)))
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise ValueError(f"{path}: expected {key} as plain numbers, got a tensor that is sparse or has none")
            # Strides of 0 let a single number claim to be any number of them.
            if value.numel() * value.itemsize > value.untyped_storage().nbytes():
                raise ValueError(f"{path}: expected {key} as large as it says, {tuple(value.shape)}, got fewer numbers")


def as_float32(path: str | Path, key: str, tensor: Tensor) -> Tensor:
    """The tensor in float32. ValueError, in one line, if it is not of floats, or not finite in float32."""
    if tensor.dtype not in FLOATS or not tensor.isfinite().all():
        raise ValueError(f"{path}: expected finite floats in {key}, got {tensor.dtype} or NaN")
    result = tensor.float()
    if not result.isfinite().all():
        largest = tensor.abs().max().item()
        raise ValueError(f"{path}: expected floats that float32 holds in {key}, got up to {largest:.3g}")
    return result


def check_tensors(path: str | Path, found: dict[str, Any], expected: dict[str, Tensor], network: str) -> None:
    """ValueError, in one line, unless a file holds tensors of these names and shapes."""
    for key, tensor in expected.items():
        got = found.get(key)
        if not isinstance(got, Tensor) or got.shape != tensor.shape:
            raise ValueError(
                f"{path}: expected {key} {tuple(tensor.shape)} of {network}, "
                f"got {tuple(got.shape) if isinstance(got, Tensor) else 'no such tensor'}"
            )


def read_state(path: str | Path) -> dict[str, Any]:
    """The dict of tensors in a .pth file; of a training checkpoint, its "state_dict"."""
    content = read_pth(path)
    state = content.get("state_dict", content)
    return state if isinstance(state, dict) else content


def exactly(path: str | Path, found: dict[str, Any], expected: dict[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors of a file, in float32. ValueError, in one line, unless it has exactly these names and shapes, all
    finite.

    Weights smaller than 1e-20 become 0. Weight decay leaves many of them in dead channels, and CPUs multiply numbers
    below 1e-38, which are subnormal, a hundred times more slowly.
    """
    check_tensors(path, found, expected, network)
    tensors = {key: as_float32(path, key, found[key]) for key in expected}
    if unknown := sorted(str(key) for key in found if key not in expected):
        raise ValueError(f"{path}: expected {network}, got also {', '.join(unknown[:4])}")
    return {key: torch.where(tensor.abs() < 1e-20, 0, tensor) for key, tensor in tensors.items()}
