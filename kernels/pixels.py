"""What all Triton kernels share: which pixels a program works on, and loads and stores of any dtype as float32.

A program works on a tile of adjacent pixels. Strides are passed as plain numbers, so that Triton specialises on strides
of 1 and on alignment, and derives from them how many bytes a thread may move at once. Offsets are 64 bits wide.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def split_program(count):
    """The program's number, modulo `count` and divided by it."""
    program = tl.program_id(0)
    return (program % count).to(tl.int64), (program // count).to(tl.int64)


@triton.jit
def end_of_row(start, width):
    """The end of a row relative to column `start`, in 32 bits."""
    return tl.minimum(width - start, 1 << 30).to(tl.int32)


@triton.jit
def at(tensor, strides, batch, channel, y, start, x):
    """Pointers to columns start + x of rows of a (B, ·, H, W) tensor."""
    tl.assume(strides[3] >= 0)  # lets both factors be extended the same way and multiplied in one instruction
    row = tensor + batch * strides[0] + tl.cast(channel, tl.int64) * strides[1] + tl.cast(y, tl.int64) * strides[2]
    return row + start * strides[3] + tl.cast(x, tl.int64) * strides[3]


@triton.jit
def load(pointers, exists, other=None):
    """Values as float32, integers divided by their full scale; zero where they do not exist."""
    values = tl.load(pointers, exists, other)
    if values.dtype == tl.uint8:
        return values.to(tl.float32) * (1 / 255)
    elif values.dtype == tl.uint16:
        return values.to(tl.float32) * (1 / 65535)
    else:
        return values.to(tl.float32)


@triton.jit
def store(pointers, values, exists):
    """Stores floats unchanged. Integers are clamped to [0, 1], scaled and rounded to the nearest; NaN becomes 0."""
    dtype: tl.constexpr = pointers.dtype.element_ty
    if dtype == tl.uint8 or dtype == tl.uint16:
        full: tl.constexpr = 255.0 if dtype == tl.uint8 else 65535.0
        unit = tl.minimum(tl.where(values > 0, values, 0.0), 1.0)
        # Adding 1.5·2²³ rounds to nearest, ties to even, and leaves the integer in the low bits.
        values = (unit * full + 12582912.0).to(tl.int32, bitcast=True).to(tl.uint16).to(dtype)
    tl.store(pointers, values, exists)


@triton.jit
def columns(values, V: tl.constexpr):
    """[n·V] -> V tensors [n]: every V-th value from the first on, from the second on, and so on."""
    parts = (values,)
    for bit in tl.static_range(6):
        if 1 << bit < V:
            even, odd = (), ()
            for i in tl.static_range(1 << bit):
                pair = tl.split(parts[i].reshape(parts[i].shape[0] // 2, 2))
                even += (pair[0],)
                odd += (pair[1],)
            parts = even + odd
    return parts


@triton.jit
def from_columns(parts, V: tl.constexpr):
    """V tensors [n] -> [n·V]: the inverse of `columns`."""
    for bit in tl.static_range(6):
        if V >> bit > 1:
            pairs = ()
            for i in tl.static_range(V >> (bit + 1)):
                pair = tl.join(parts[i], parts[i + (V >> (bit + 1))])
                pairs += (pair.reshape(pair.shape[0] * 2),)
            parts = pairs
    return parts[0]


def joined(height: int, width: int, *tensors: Tensor | None) -> tuple[int, int]:
    """Height and width; (1, height · width) if the rows of every tensor follow each other without a gap."""
    if height == 1 or all(t is None or t.stride(2) == t.stride(3) * width for t in tensors):
        return 1, height * width
    return height, width


def with_strides(*tensors: Tensor | None) -> list[Any]:
    """Each tensor followed by its strides, as kernels take them."""
    return [argument for t in tensors for argument in (t, None if t is None else t.stride())]


def launch(kernel: Any, programs: int, on: Tensor, *arguments: Any, **options: Any) -> None:
    """Launches the kernel on the device of `on`, on its current stream. Multiplications and additions are fused unless
    `enable_fp_fusion=False`; this is explicit because Triton's default changes with 3.10."""
    options = {"enable_fp_fusion": True, **options}
    with torch.cuda.device_of(on):
        if on.is_cuda and torch.version.cuda and torch.cuda.is_current_stream_capturing():
            with loading_allowed():
                kernel[(programs,)](*arguments, **options)
        else:
            kernel[(programs,)](*arguments, **options)


@contextmanager
def loading_allowed() -> Iterator[None]:
    """At a kernel's first launch Triton loads its code, which CUDA refuses during the capture of a graph unless the
    thread's capture mode is relaxed."""
    driver, mode = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(2)  # CU_STREAM_CAPTURE_MODE_RELAXED
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))  # restores the mode


def aligned(width: int, *tensors: Tensor | None) -> bool:
    """Whether the rows are aligned so that Triton reads and writes 16 bytes at a time."""
    return width % 16 == 0 and all(
        t is None or (t.stride(3) == 1 and t.data_ptr() % 16 == 0 and not any(s % 16 for s in t.stride()[:3]))
        for t in tensors
    )
