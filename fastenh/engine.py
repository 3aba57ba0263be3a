"""One system on one device in one precision: tensors (B, 3, H, W) in, tensors out. Pipelines feed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastenh import finish
from fastenh.models.system import RESERVED, Picture, Sides, as_system
from fastenh.ops.op import FLOATS, FLOATS_AND_INTEGERS, from_float, to_float
from fastenh.tiles import Place, Tile, feather, tiles, upscale

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """How an image is retouched; `Enhancer` documents the options. `conditions` are those of the system, as
    `System.check_conditions` returns them. `space` is "srgb" if the image is sRGB in [0, 1]; its result is clamped to
    [0, 1]. "file" means the file's own numbers, which only unbounded systems accept. None: the system's own space."""

    strength: float = 1.0
    denoise: bool = False
    protect_highlights: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)
    space: str | None = None
    RANGES: ClassVar[dict[str, tuple[str, int, int]]] = {"strength": ("a number from 0 to 1", 0, 1)}

    def __post_init__(self) -> None:
        for name, (expected, low, high) in self.RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: expected {expected}, got {value}")
        if self.space not in (None, "file", "srgb"):
            raise ValueError(f"space: expected file or srgb, got {self.space!r}")


class Decision(NamedTuple):
    """What a system computed from the whole image before any pixel is rendered: `params` by `predict`, the rest by
    `prepare`."""

    params: tuple[Tensor, ...]
    local: Any = None
    notes: tuple[str, ...] = ()


class Engine:
    """Runs a system. `system` is the model itself, or a wrapper for a module that is no `System`."""

    def __init__(self, model: nn.Module, device: str | torch.device, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected {', '.join(PRECISIONS)}, got {precision!r}")
        self.device = choose_device(device)
        self.dtype = PRECISIONS[precision]
        if self.device.type == "cpu" and self.dtype != torch.float32:
            raise ValueError(f"precision: expected float32 on a CPU, got {precision}")
        self.system = as_system(model).to(self.device).eval()
        if self.dtype != torch.float32 and not self.system.half_precision:
            raise ValueError(f"precision: expected float32 for {type(model).__name__}, got {precision}")
        self.scale = self.system.scale
        if self.system.tile is not None and self.system.reach is None and not self.system.overlap:
            raise ValueError("model: expected a reach or an overlap with tile, got neither")
        if taken := RESERVED.intersection(self.system.conditions):
            raise ValueError(
                f"model: expected other names of conditions than {', '.join(sorted(taken))}, which are taken"
            )

    @property
    def tileable(self) -> bool:
        """Whether an image may be rendered in parts that know nothing of each other."""
        square = self.system.sides.square and self.system.tile is None
        return self.system.reach is not None and not square

    def bounded(self, options: Options) -> bool:
        """Whether images and results are sRGB in [0, 1]. ValueError if the system does not accept `options.space`."""
        if self.system.bounded and options.space == "file":
            raise ValueError(f"space: expected srgb for {type(self.system).__name__}, got file")
        return self.system.bounded or options.space == "srgb"

    def halo(self, options: Options) -> int:
        """How many pixels around a part of an image its result depends on, rounded up to `sides.multiple_of`."""
        halo = max(self.system.reach or 0, 1 if self.scale > 1 else 0) + (
            -(-finish.HALO // self.scale) if options.denoise else 0
        )
        return -(-halo // self.system.sides.multiple_of) * self.system.sides.multiple_of

    def predict(self, picture: Picture, options: Options) -> tuple[Tensor, ...]:
        with self._autocast():
            return tuple(t.float() for t in self.system.predict(picture, **options.conditions))

    def prepare(self, picture: Picture, params: tuple[Tensor, ...], options: Options) -> Decision:
        with self._autocast():
            return Decision(params, *self.system.prepare(picture, params, **options.conditions))

    def decide(self, picture: Picture, options: Options) -> Decision:
        """Predicts and prepares. At strength 0 the system does not run; the decision is empty."""
        if options.strength == 0:
            return Decision(())
        return self.prepare(picture, self.predict(picture, options), options)

    def enhance(self, image: Tensor, options: Options) -> tuple[Tensor, tuple[str, ...]]:
        """Retouch a whole image; also returns the system's notes. Computes on this engine's device.

        (B, 3, H, W) → (B, 3, scale·H, scale·W) of the same dtype and on the same device.
        """
        x = image.to(self.device)
        decision = self.decide(Picture(x), options)
        return self.render(x, options, decision).to(image.device), decision.notes

    def render(
        self,
        image: Tensor,
        options: Options,
        decision: Decision,
        place: Place | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Retouch an image, or its part at `place`, for which `decision` was made; the image is on this device.

        (B, 3, h, w) → (B, 3, scale·h, scale·w) of the same dtype, on this device or into `out` on any.
        """
        if options.strength == 0:
            same = image.clone() if self.scale == 1 else from_float(upscale(image, self.scale), image.dtype)
            return same if out is None else out.copy_(same)
        target = out if out is not None and out.device == image.device else None
        place = Place(0, 0, image.shape[2], image.shape[3]) if place is None else place
        after = self._blended(image, decision, options, place, target)
        if options.denoise or options.protect_highlights:
            flags = {"noise": options.denoise, "highlights": options.protect_highlights}
            after = finish.finish(upscale(image, self.scale), after, **flags)
        return after if out is None or after is out else out.copy_(after)

    def _blended(self, image: Tensor, decision: Decision, options: Options, place: Place, out: Tensor | None) -> Tensor:
        """(1 − strength) · image + strength · result, clamped to [0, 1] if the image is bounded."""
        params, strength, bounded = decision.params, options.strength, self.bounded(options)
        if strength < 1 and (blended := self.system.blend(params, strength)) is not None:
            params, strength = blended, 1.0
        floats = image.is_floating_point()
        wide = floats and image.dtype.itemsize > self.dtype.itemsize
        x = image.to(self.dtype) if wide else image
        with self._autocast():
            if strength == 1:  # systems take integers directly, without a float copy of the frame
                result = self._rendered(x, params, decision.local, place, None if wide else out)
                result = result.clamp_(0, 1) if floats and bounded else result
            else:
                real = to_float(x)
                result = self._rendered(real, params, decision.local, place, None)
                result = upscale(real, self.scale).lerp(result, strength)
                result = from_float(result.clamp_(0, 1) if bounded else result, x.dtype)
        result = result.to(image.dtype)
        return result if out is None or result is out else out.copy_(result)

    def _rendered(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None
    ) -> Tensor:
        """Into `out` or a new tensor, never one of the system's own. At once, or in tiles if it has a tile size, and
        padded to its sides."""
        system, s = self.system, self.scale
        batch, channels, height, width = image.shape
        expected = (batch, channels, s * height, s * width)
        if out is None:
            out = torch.empty_like(image) if s == 1 else image.new_empty(expected)
        if system.sides == Sides() and (system.tile is None or max(height, width) <= system.tile):
            result = check_result(system.render(image, params, local, place, out), expected, image)
            return out if result is out else out.copy_(result)

        whole, m = Tile(0, height, 0, width), system.sides.multiple_of
        side = None if system.tile is None else max(system.tile // m, 1) * m
        halo = -(-max(system.overlap // 2, system.reach or 0) // m) * m
        if system.overlap:
            total = torch.zeros(expected, device=image.device)
            weights = torch.zeros(expected[2:], device=image.device)
        for tile in tiles(height, width, side):
            read = tile.grown(halo, height, width)
            at = Place(place.top + read.top, place.left + read.left, place.height, place.width)
            rows, columns = whole_sides(system.sides, read.bottom - read.top, read.right - read.left)
            part = pad(image[..., *read.within(whole)], rows, columns)
            shape = batch, channels, s * rows, s * columns
            rendered = check_result(system.render(part, params, local, at), shape, image)
            if system.overlap:
                weight = feather(tile, read, s, image.device)
                rendered = to_float(rendered)[..., : weight.shape[0], : weight.shape[1]]
                total[..., *read.within(whole, s)] += rendered * weight
                weights[read.within(whole, s)] += weight
            else:
                out[..., *tile.within(whole, s)] = rendered[..., *tile.within(read, s)]
        return out.copy_(from_float(total / weights, out.dtype)) if system.overlap else out

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def check_result(result: Tensor, shape: tuple[int, ...], image: Tensor) -> Tensor:
    """The result of a system; ValueError for another shape, or for floats of integers and the reverse."""
    if result.shape != shape:
        raise ValueError(f"model: expected a result of shape {shape}, got {tuple(result.shape)}")
    if result.dtype != image.dtype and not (result.is_floating_point() and image.is_floating_point()):
        raise ValueError(f"model: expected a result of {image.dtype}, as the image; got {result.dtype}")
    return result


def whole_sides(sides: Sides, height: int, width: int) -> tuple[int, int]:
    """The smallest height and width that a system takes and that are not below these."""
    m = sides.multiple_of
    height, width = (-(-max(length, sides.minimum) // m) * m for length in (height, width))
    return (max(height, width),) * 2 if sides.square else (height, width)


def pad(image: Tensor, height: int, width: int) -> Tensor:
    """The image with its last row and column repeated up to this size."""
    for dim, length in ((2, height), (3, width)):
        if image.shape[dim] < length:
            index = torch.arange(length, device=image.device).clamp_(max=image.shape[dim] - 1)
            image = image.index_select(dim, index)
    return image


def as_batch(image: np.ndarray | Tensor, bounded: bool = True) -> Tensor:
    """An array (H, W, 3) or a tensor ([B,] 3, H, W) as (B, 3, H, W), without a copy if a tensor can use the memory.

    TypeError for another dtype, ValueError for another shape or, if `bounded`, for floats that are not in [0, 1].
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image: expected an array of shape (height, width, 3), got {image.shape}")
        if image.dtype not in ("uint8", "uint16", "float16", "float32", "float64"):
            raise TypeError(f"image: expected uint8, uint16, or float in [0, 1], got an array of {image.dtype}")
        image = torch.from_numpy(image if usable_as_tensor(image) else image.copy()).permute(2, 0, 1)
    batch = image if image.ndim == 4 else image[None]
    if batch.ndim != 4 or batch.shape[1] != 3 or batch.numel() == 0:
        raise ValueError(f"image: expected shape (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}")
    if image.dtype not in FLOATS_AND_INTEGERS:
        raise TypeError(f"image: expected uint8, uint16, or float in [0, 1], got a tensor of {image.dtype}")
    if bounded and image.dtype in FLOATS and image.max() > 2:  # a little overshoot is clamped; this is another scale
        raise ValueError(f"image: expected float values in [0, 1], got up to {image.max():g}; is it 0 to 255?")
    return batch


def usable_as_tensor(array: np.ndarray) -> bool:
    """Whether a tensor can share the array's memory: strides are not negative and whole elements, and it is writeable,
    since torch warns otherwise."""
    return array.flags.writeable and all(s >= 0 and s % array.itemsize == 0 for s in array.strides)


def choose_device(name: str | torch.device) -> torch.device:
    """`auto` is a CUDA GPU if there is one, else the CPU. ValueError for a device that torch cannot use here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # RuntimeError, AssertionError or NotImplementedError, depending on the backend
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        here = ["cpu", *(f"{accelerator}:{index}" for index in range(torch.accelerator.device_count()))]
        raise ValueError(f"device: expected auto or a torch device here ({', '.join(here)}), got {name}") from error
    return device
