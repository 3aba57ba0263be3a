"""Video: frames in, retouched frames out, in buffers that are used again, with a look that does not flicker.

What a model decides of a picture as a whole (its look: a fused LUT, the weights of LUTs) would tremble if each frame
were decided on its own. So it is decided every `renew` frames, and the look that frames get moves towards what was
decided last by a share 1 − e^(−1/smoothing) of the way each frame. A constant scene keeps its look; a slow change is
followed with a delay of at most `smoothing` + `renew` frames, and a cut at once: where the colours of a frame differ
from those of the frame before by more than CUT, the look is decided for that frame and taken as it is. What differs
from pixel to pixel (curves, local context) follows each frame.

Frames that are handed out lie in a ring of buffers: each is overwritten when the next but one is asked for. On a CPU a
frame is taken when it is asked for, and read where it lies. On a CUDA GPU one frame more is taken, and copied, so that
the GPU works on it while you have the frame before; frames in the host's memory go through pinned memory, beside the
computing, which goes to the stream that is current as you ask. The host waits for nothing but the frame that it hands
out or, where frames lie on the GPU, for the one number that tells whether that frame began a new scene.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastenh.ops.op import to_float

if TYPE_CHECKING:
    from fastenh.enhance import Enhancer

Frame = TypeVar("Frame", np.ndarray, Tensor)

CUT = 0.06  # of full scale: how far the colours of a frame lie from those of the frame before, where a scene begins
GRID = 32  # rows and columns, at least, of the pixels that are compared


def stream(
    enhancer: Enhancer, frames: Iterable[Frame], *, renew: int, smoothing: float, strength: float
) -> Iterator[Frame]:
    """What `Enhancer.stream` gives. Wrong arguments are refused at once, wrong frames as they come."""
    if not isinstance(renew, int) or renew < 1:
        raise ValueError(f"renew: expected a number of frames, 1 or more, got {renew!r}")
    if not 0 <= smoothing < math.inf:
        raise ValueError(f"smoothing: expected a number of frames, 0 or more, got {smoothing}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected a number from 0 to 1, got {strength}")
    if not isinstance(frames, Iterable) or isinstance(frames, (np.ndarray, Tensor)):
        raise TypeError(f"frames: expected an iterable of frames, got {type(frames).__name__}")
    return _stream(enhancer, iter(frames), Follower(enhancer, renew, smoothing, strength))


def _stream(enhancer: Enhancer, frames: Iterator[Frame], follower: Follower) -> Iterator[Frame]:
    lane: Lane | CudaLane | None = None
    first = ""
    try:
        for index, frame in enumerate(frames):
            if lane is None:
                first = kind(frame)
                check(enhancer, frame)
                lane = (CudaLane if enhancer.device.type == "cuda" else Lane)(enhancer.device, frame, follower)
            elif kind(frame) != first:
                raise ValueError(f"frame {index}: expected {first}, as the first; got {kind(frame)}")
            with torch.inference_mode():  # not where frames are made, nor where they are used
                ready = lane.push(frame)
            if ready is not None:
                yield ready
        if lane is not None:
            with torch.inference_mode():
                ready = lane.last()
            if ready is not None:
                yield ready
    finally:
        if lane is not None:
            lane.close()


def kind(frame: object) -> str:
    """All that the frames of a video have in common."""
    if isinstance(frame, np.ndarray):
        return f"an array {frame.shape} of {frame.dtype}"
    if isinstance(frame, Tensor):
        return f"a tensor {tuple(frame.shape)} of {str(frame.dtype).removeprefix('torch.')} on {frame.device}"
    return type(frame).__name__


def check(enhancer: Enhancer, frame: Any) -> None:
    """Raises unless a video can begin with this frame."""
    if not isinstance(frame, (np.ndarray, Tensor)) or frame.ndim != 3:
        raise TypeError(f"frame 0: expected an array (H, W, 3) or a tensor (3, H, W), got {kind(frame)}")
    home = torch.empty(0, device=enhancer.device).device  # with its number
    if isinstance(frame, Tensor) and frame.device.type != "cpu" and frame.device != home:
        raise ValueError(f"frame 0: expected a tensor on cpu or {home}, got {kind(frame)}")
    enhancer.enhance(frame, 0)  # looks at shape, dtype and range


# ---- the look


class Follower:
    """Retouches frame after frame, with a look that follows the scene."""

    def __init__(self, enhancer: Enhancer, renew: int, smoothing: float, strength: float) -> None:
        self.enhancer, self.renew, self.strength = enhancer, renew, strength
        self.share = 1 - math.exp(-1 / smoothing) if smoothing else 1.0
        self.colours: Tensor | None = None  # of the frame before
        self.target: tuple[Tensor, ...] = ()  # what was decided last
        self.look: tuple[Tensor, ...] | None = None  # what frames get
        self.age = 0  # frames since the scene began

    def begins_scene(self, image: Tensor) -> Tensor | bool:
        """Whether an image, (1, 3, H, W), is the first or comes after a cut: whether the mean distance between its
        colours and those before, each channel sorted by itself, is above CUT. That is the Wasserstein distance of
        their distributions: what moves within the frame changes little of it."""
        if self.look == ():
            return False  # nothing is decided of images as a whole
        colours = to_float(image[..., :: max(1, image.shape[2] // GRID), :: max(1, image.shape[3] // GRID)])
        colours = colours.flatten(2).sort(-1).values
        before, self.colours = self.colours, colours
        if before is None:
            return True
        self.colours = torch.where(colours.isfinite().all(), colours, before)  # the next is not compared with NaN
        return (colours - before).abs().mean() > CUT

    def retouch(self, image: Tensor, begins_scene: bool, out: Tensor | None = None) -> Tensor:
        if begins_scene or self.look is None:
            self.look = self.target = self.enhancer._look(image)
            self.age = 0
        else:
            if self.age % self.renew == 0:
                self.target = self.enhancer._look(image)
            self.look = tuple(map(self.approach, self.look, self.target))
        self.age += 1
        if self.strength == 0:
            return image if out is None else out.copy_(image)
        return self.enhancer._retouch(image, self.strength, self.look, out)

    def approach(self, look: Tensor, target: Tensor) -> Tensor:
        moved = look.lerp(target, self.share)
        # A frame with NaN has its own look broken, not those of all that come after.
        return torch.where(moved.isfinite(), moved, torch.where(target.isfinite(), target, look))


# ---- the way of a frame


def buffer(like: Any, pinned: bool = False) -> tuple[Any, Tensor]:
    """Host memory for a frame, as its users see it and as an image (1, 3, H, W)."""
    if isinstance(like, np.ndarray):
        dtype = torch.from_numpy(np.empty(0, like.dtype)).dtype
        memory = torch.empty(like.shape, dtype=dtype, pin_memory=pinned)
        return memory.numpy(), memory.permute(2, 0, 1)[None]
    memory = torch.empty_like(like, device="cpu", pin_memory=pinned)
    return memory, memory[None]


def usable_as_tensor(array: np.ndarray) -> bool:
    """Tensors have no strides below 0 or between elements, and warn of memory that must not be written."""
    return array.flags.writeable and all(s >= 0 and s % array.itemsize == 0 for s in array.strides)


class Lane:
    """Each frame at once, on the CPU or where torch has no CUDA streams."""

    def __init__(self, device: torch.device, first: Any, follower: Follower) -> None:
        self.device, self.follower = device, follower
        on_cpu = not isinstance(first, Tensor) or first.device.type == "cpu"
        self.ring = [buffer(first) if on_cpu else (out := torch.empty_like(first), out[None]) for _ in range(2)]
        self.copy: tuple[Any, Tensor] | None = None  # for frames that cannot be read as tensors where they lie

    def push(self, frame: Any) -> Any:
        image = self.image(frame).to(self.device)
        begins_scene = bool(self.follower.begins_scene(image))
        self.ring.reverse()
        result, out = self.ring[0]
        if out.device == image.device:
            self.follower.retouch(image, begins_scene, out)
        else:
            out.copy_(self.follower.retouch(image, begins_scene))
        return result

    def image(self, frame: Any) -> Tensor:
        if isinstance(frame, Tensor):
            return frame[None]
        if not usable_as_tensor(frame):
            self.copy = self.copy or buffer(frame)
            np.copyto(self.copy[0], frame)
            return self.copy[1]
        return torch.from_numpy(frame).permute(2, 0, 1)[None]

    def last(self) -> None: ...

    def close(self) -> None: ...


class Slot:
    """Where a frame lies on its way through a GPU: as it came, before, after, and as it is handed out."""

    def __init__(self, first: Any, device: torch.device) -> None:
        self.at_home = isinstance(first, Tensor) and first.device.type == device.type
        if not self.at_home:
            self.given, self.given_image = buffer(first, pinned=True)
            self.result, self.result_image = buffer(first, pinned=True)
            self.before = torch.empty_like(self.given_image, device=device)
            self.after = torch.empty_like(self.before)
        else:
            self.before = torch.empty_like(first)[None]
            self.after = torch.empty_like(self.before)
            self.result = self.after[0]
            self.begins_scene = torch.empty((), dtype=torch.bool, pin_memory=True)
        self.uploaded, self.retouched, self.done = (torch.cuda.Event() for _ in range(3))


class CudaLane:
    """While one frame is handed out, the GPU works on the next."""

    def __init__(self, device: torch.device, first: Any, follower: Follower) -> None:
        self.device, self.follower = device, follower
        self.slots = [Slot(first, device) for _ in range(3)]  # handed out before, handed out now, at work
        self.waiting: Slot | None = None
        self.up, self.down = torch.cuda.Stream(device), torch.cuda.Stream(device)
        for copies in (self.up, self.down):  # new memory may be what earlier work still reads
            copies.wait_stream(torch.cuda.current_stream(device))

    def push(self, frame: Any) -> Any:
        slot = self.slots.pop(0)
        self.slots.append(slot)
        return self.push_at_home(slot, frame) if slot.at_home else self.push_from_host(slot, frame)

    def push_from_host(self, slot: Slot, frame: Any) -> Any:
        if isinstance(frame, np.ndarray):
            np.copyto(slot.given, frame)
        else:
            slot.given_image[0].copy_(frame)
        begins_scene = bool(self.follower.begins_scene(slot.given_image))
        compute = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.up):
            slot.before.copy_(slot.given_image, non_blocking=True)
            slot.uploaded.record()
        compute.wait_event(slot.uploaded)
        self.follower.retouch(slot.before, begins_scene, slot.after)
        slot.retouched.record(compute)
        with torch.cuda.stream(self.down):
            self.down.wait_event(slot.retouched)
            slot.result_image.copy_(slot.after, non_blocking=True)
            slot.done.record()
        ready, self.waiting = self.last(), slot
        return ready

    def push_at_home(self, slot: Slot, frame: Any) -> Any:
        slot.before[0].copy_(frame)
        slot.begins_scene.copy_(torch.as_tensor(self.follower.begins_scene(slot.before)), non_blocking=True)
        slot.done.record(torch.cuda.current_stream(self.device))
        ready, self.waiting = self.last(), slot
        return ready

    def last(self) -> Any:
        slot, self.waiting = self.waiting, None
        if slot is None:
            return None
        slot.done.synchronize()
        if slot.at_home:
            self.follower.retouch(slot.before, bool(slot.begins_scene), slot.after)
        return slot.result

    def close(self) -> None:
        for copies in (self.up, self.down):  # before memory goes back, of which they may still read or write
            torch.cuda.current_stream(self.device).wait_stream(copies)
