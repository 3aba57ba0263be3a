"""Retouch frames one by one, in order: `Enhancer.stream`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastenh.engine import Engine, Options, as_batch
from fastenh.pipelines.buffers import CudaFrameRing, FrameRing
from fastenh.pipelines.scene import Scene

Frame = TypeVar("Frame", np.ndarray, Tensor)


def stream(
    engine: Engine, frames: Iterable[Frame], options: Options, *, renew: int, smoothing: float
) -> Iterator[Frame]:
    """Implements `Enhancer.stream`. Invalid arguments raise at once, invalid frames when they are reached."""
    if not isinstance(renew, int) or renew < 1:
        raise ValueError(f"renew: expected a number of frames, 1 or more, got {renew!r}")
    if not 0 <= smoothing < math.inf:
        raise ValueError(f"smoothing: expected a number of frames, 0 or more, got {smoothing}")
    if not isinstance(frames, Iterable) or isinstance(frames, (np.ndarray, Tensor)):
        raise TypeError(f"frames: expected an iterable of frames, got {type(frames).__name__}")
    return _stream(engine, iter(frames), Scene(engine, options, renew, smoothing))


def _stream(engine: Engine, frames: Iterator[Frame], scene: Scene) -> Iterator[Frame]:
    ring: FrameRing | CudaFrameRing | None = None
    first = ""
    try:
        for index, frame in enumerate(frames):
            if ring is None:
                first = kind(frame)
                check(engine, frame)
                ring = (CudaFrameRing if engine.device.type == "cuda" else FrameRing)(engine.device, frame, scene)
            elif kind(frame) != first:
                raise ValueError(f"frame {index}: expected {first}, as the first; got {kind(frame)}")
            with torch.inference_mode():  # only here, not in the caller's code that makes and uses frames
                ready = ring.push(frame)
            if ready is not None:
                yield ready
        if ring is not None:
            with torch.inference_mode():
                ready = ring.last()
            if ready is not None:
                yield ready
    finally:
        if ring is not None:
            ring.close()


def kind(frame: object) -> str:
    """A description of what all frames of a video must have in common: type, shape, dtype, device."""
    if isinstance(frame, np.ndarray):
        return f"an array {frame.shape} of {frame.dtype}"
    if isinstance(frame, Tensor):
        return f"a tensor {tuple(frame.shape)} of {str(frame.dtype).removeprefix('torch.')} on {frame.device}"
    return type(frame).__name__


def check(engine: Engine, frame: Any) -> None:
    """Raise an error unless this frame is valid as the first of a video."""
    if not isinstance(frame, (np.ndarray, Tensor)) or frame.ndim != 3:
        raise TypeError(f"frame 0: expected an array (H, W, 3) or a tensor (3, H, W), got {kind(frame)}")
    home = torch.empty(0, device=engine.device).device  # with its index
    if isinstance(frame, Tensor) and frame.device.type != "cpu" and frame.device != home:
        raise ValueError(f"frame 0: expected a tensor on cpu or {home}, got {kind(frame)}")
    as_batch(frame, engine.system.bounded)  # checks shape, dtype and range
