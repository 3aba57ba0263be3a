"""Frame buffers, which are reused, and the copies to and from a CUDA GPU.

Results are yielded in a ring of buffers: each is overwritten when the next but one is requested. On a CPU a frame is
taken from the source when its result is requested, and read without a copy. On a CUDA GPU the source is one frame
ahead: the next frame is copied to the GPU and processed while the caller uses the frame before. Frames in host memory
are copied through pinned memory, at the same time as the computation, which runs on the stream that is current at the
request. The host waits only for the frame that it yields or, if frames are on the GPU, for the flag that says whether
that frame begins a new scene.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastenh.engine import usable_as_tensor
from fastenh.pipelines.scene import Scene


def buffer(like: Any, pinned: bool = False, scale: int = 1) -> tuple[Any, Tensor]:
    """Host memory for a frame enlarged by `scale`: as the type of `like`, and as an image (1, 3, H, W)."""
    if isinstance(like, np.ndarray):
        dtype = torch.from_numpy(np.empty(0, like.dtype)).dtype
        shape = scale * like.shape[0], scale * like.shape[1], like.shape[2]
        memory = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        return memory.numpy(), memory.permute(2, 0, 1)[None]
    memory = empty(like, scale, device="cpu", pin_memory=pinned)
    return memory, memory[None]


def empty(like: Tensor, scale: int, **where: Any) -> Tensor:
    """Memory for a frame enlarged by `scale`; with the frame's strides if the scale is 1."""
    if scale == 1:
        return torch.empty_like(like, **where)
    channels, height, width = like.shape
    return torch.empty(channels, scale * height, scale * width, dtype=like.dtype, **where)


class FrameRing:
    """Processes each frame when it is pushed: on the CPU, or on a device without CUDA streams."""

    def __init__(self, device: torch.device, first: Any, scene: Scene) -> None:
        self.device, self.scene = device, scene
        on_cpu = not isinstance(first, Tensor) or first.device.type == "cpu"
        scale = scene.engine.scale
        self.ring = [
            buffer(first, scale=scale) if on_cpu else (out := empty(first, scale, device=device), out[None])
            for _ in range(2)
        ]
        self.copy: tuple[Any, Tensor] | None = None  # for frames whose memory a tensor cannot share

    def push(self, frame: Any) -> Any:
        image = self.image(frame).to(self.device)
        begins_scene = bool(self.scene.begins_scene(image))
        self.ring.reverse()
        result, out = self.ring[0]
        if out.device == image.device:
            self.scene.enhance(image, begins_scene, out)
        else:
            out.copy_(self.scene.enhance(image, begins_scene))
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
    """The buffers of one frame on a GPU: as given, before and after the model, and as yielded."""

    def __init__(self, first: Any, device: torch.device, scale: int) -> None:
        self.on_device = isinstance(first, Tensor) and first.device.type == device.type
        if not self.on_device:
            self.given, self.given_image = buffer(first, pinned=True)
            self.result, self.result_image = buffer(first, pinned=True, scale=scale)
            self.before = torch.empty_like(self.given_image, device=device)
            self.after = torch.empty_like(self.result_image, device=device)
        else:
            self.before = torch.empty_like(first)[None]
            self.after = empty(first, scale, device=device)[None]
            self.result = self.after[0]
            self.begins_scene = torch.empty((), dtype=torch.bool, pin_memory=True)
        self.uploaded, self.retouched, self.done = (torch.cuda.Event() for _ in range(3))


class CudaFrameRing:
    """Processes the next frame on the GPU while the caller uses one."""

    def __init__(self, device: torch.device, first: Any, scene: Scene) -> None:
        self.device, self.scene = device, scene
        self.slots = [Slot(first, device, scene.engine.scale) for _ in range(3)]  # yielded before, yielded now, next
        self.waiting: Slot | None = None
        self.up, self.down = torch.cuda.Stream(device), torch.cuda.Stream(device)
        for copies in (self.up, self.down):  # earlier work may still read the memory that the slots got
            copies.wait_stream(torch.cuda.current_stream(device))

    def push(self, frame: Any) -> Any:
        slot = self.slots.pop(0)
        self.slots.append(slot)
        return self.push_device(slot, frame) if slot.on_device else self.push_host(slot, frame)

    def push_host(self, slot: Slot, frame: Any) -> Any:
        if isinstance(frame, np.ndarray):
            np.copyto(slot.given, frame)
        else:
            slot.given_image[0].copy_(frame)
        begins_scene = bool(self.scene.begins_scene(slot.given_image))
        compute = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.up):
            slot.before.copy_(slot.given_image, non_blocking=True)
            slot.uploaded.record()
        compute.wait_event(slot.uploaded)
        self.scene.enhance(slot.before, begins_scene, slot.after)
        slot.retouched.record(compute)
        with torch.cuda.stream(self.down):
            self.down.wait_event(slot.retouched)
            slot.result_image.copy_(slot.after, non_blocking=True)
            slot.done.record()
        ready, self.waiting = self.last(), slot
        return ready

    def push_device(self, slot: Slot, frame: Any) -> Any:
        slot.before[0].copy_(frame)
        slot.begins_scene.copy_(torch.as_tensor(self.scene.begins_scene(slot.before)), non_blocking=True)
        slot.done.record(torch.cuda.current_stream(self.device))
        ready, self.waiting = self.last(), slot
        return ready

    def last(self) -> Any:
        slot, self.waiting = self.waiting, None
        if slot is None:
            return None
        slot.done.synchronize()
        if slot.on_device:
            self.scene.enhance(slot.before, bool(slot.begins_scene), slot.after)
        return slot.result

    def close(self) -> None:
        for copies in (self.up, self.down):  # they may still use the memory that is freed next
            torch.cuda.current_stream(self.device).wait_stream(copies)
