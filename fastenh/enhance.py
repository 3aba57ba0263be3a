"""`Enhancer`: a model, a device, and any kind of image in and the same kind out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastenh import models
from fastenh.files import Done, Options, plan, retouch_files, retouch_photo
from fastenh.finish import finish
from fastenh.io import Photo, read_photo
from fastenh.models.lut3d import identity_lut
from fastenh.ops.op import FLOATS, FULL_SCALE, from_float, to_float
from fastenh.stream import Frame, stream, usable_as_tensor

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Enhancer:
    """Retouch photos: `Enhancer("auto").enhance(image, strength=1.0)`, or without the `.enhance`; videos: `stream`.

    out = (1 − strength) · image + strength · model(image), clamped to [0, 1]; strength 0 gives the image back exactly.

    `denoise` smooths that where it is lighter than the image, more where more, and keeps edges; `protect_highlights`
    lets no value become white that was not. `fastenh.finish` says how. Both are for any model.

    | image | gives |
    | --- | --- |
    | path of a photo, or `fastenh.io.Photo` | `Photo`, upright, in the photo's own depth and colours: `.save(path)` |
    | PIL image, "RGB" or "RGBA" | PIL image of the same mode and `info`; alpha untouched |
    | PIL image, "L" or "LA" | the same mode: retouched as R = G = B, then the luma of that |
    | NumPy array (H, W, 3) | array of the same shape and dtype |
    | tensor (3, H, W) or (B, 3, H, W) | tensor of the same shape, dtype and device (an inference tensor) |

    Colours are RGB in the image's own encoding, which the models take for sRGB. uint8 and uint16 are full scale and
    rounded to nearest; floats (16, 32, 64 bit; bfloat16 in tensors) are in [0, 1]. The image given is never changed.

    `model` is the name of a model that comes with fastenh, the path of one saved by it, or a module of your own,
    (B, 3, H, W) RGB in [0, 1] → the same shape, which is then moved to `device` and set to eval mode. `device` is
    anything torch takes, or "auto": a CUDA GPU where there is one, else the CPU.

    `precision` is "float32" or, on a GPU, "float16" or "bfloat16": in it networks work, and images of wider floats are
    computed. LUTs stay float32, and results have the image's dtype. It is float32 unless asked for, so that photos come
    out alike on every device, within rounding. A CPU has float32 alone: halves gain little there, and often cost time.

    Raises TypeError for another kind or dtype of image, ValueError for another shape, mode, range, model, device or
    precision, and what `fastenh.io.read_photo` raises for a path.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module = "auto",
        device: str | torch.device = "auto",
        precision: str = "float32",
    ) -> None:
        self.device = _device(device)
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected {', '.join(PRECISIONS)}, got {precision!r}")
        if self.device.type == "cpu" and precision != "float32":
            raise ValueError(f"precision: expected float32 on a CPU, got {precision}")
        self.dtype = PRECISIONS[precision]
        module = model if isinstance(model, nn.Module) else models.load(os.fspath(model))
        self.model = module.to(self.device).eval()
        # The same, if it has the two methods that `fastenh.models` tells of.
        self.parts: Any = module if hasattr(module, "look") and hasattr(module, "render") else None

    @overload
    def enhance(
        self,
        image: str | os.PathLike[str] | Photo,
        strength: float = 1.0,
        *,
        denoise: bool = False,
        protect_highlights: bool = False,
    ) -> Photo: ...
    @overload
    def enhance(
        self, image: Image.Image, strength: float = 1.0, *, denoise: bool = False, protect_highlights: bool = False
    ) -> Image.Image: ...
    @overload
    def enhance(
        self, image: np.ndarray, strength: float = 1.0, *, denoise: bool = False, protect_highlights: bool = False
    ) -> np.ndarray: ...
    @overload
    def enhance(
        self, image: Tensor, strength: float = 1.0, *, denoise: bool = False, protect_highlights: bool = False
    ) -> Tensor: ...

    @torch.inference_mode()
    def enhance(self, image, strength=1.0, *, denoise=False, protect_highlights=False):
        if not 0 <= strength <= 1:
            raise ValueError(f"strength: expected a number from 0 to 1, got {strength}")

        def retouch(batch: Tensor) -> Tensor:
            if strength == 0:
                return batch.clone()
            before = batch.to(self.device)
            after = self._retouch(before, strength)
            if denoise or protect_highlights:
                after = finish(before, after, noise=denoise, highlights=protect_highlights)
            return after.to(batch.device)

        if isinstance(image, (str, os.PathLike)):
            image = read_photo(image)
        if isinstance(image, Photo):
            finishing = {"denoise": denoise, "protect_highlights": protect_highlights}
            return retouch_photo(self, image, Options(strength, **finishing))
        if isinstance(image, Image.Image):
            return self._pil(image, retouch)
        if isinstance(image, np.ndarray):
            return self._array(image, retouch)
        if isinstance(image, Tensor):
            return self._tensor(image, retouch)
        raise TypeError(f"image: expected a path, Photo, PIL image, NumPy array or tensor, got {type(image).__name__}")

    __call__ = enhance

    def enhance_files(
        self,
        inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        output: str | os.PathLike[str] | None = None,
        strength: float = 1.0,
        *,
        denoise: bool = False,
        protect_highlights: bool = False,
        dither: bool = False,
        quality: int | None = None,
        suffix: str | None = None,
        recursive: bool = False,
        workers: int = 1,
        overwrite: bool = False,
    ) -> list[Done]:
        """Retouches files into files, as `fastenh enhance`; what became of each, with its error if it has one.

        inputs: photos, or one folder, with those below it if `recursive`.
        output, suffix: where results go and what their names get, as `fastenh.files.plan` says.
        dither: rounds up or down by chance, so that gradients show no bands.
        quality: 1 to 100, of JPEG, WebP and HEIC; without it a JPEG keeps its own.
        workers: photos at a time.
        overwrite: else photos whose results are there are passed over.

        Raises ValueError before anything is done where a result has no place to go or an argument is out of range, and
        FileExistsError where `output` is a file that is there.
        """
        options = Options(strength, denoise, protect_highlights, dither, quality)
        if workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {workers}")
        paths = [Path(inputs)] if isinstance(inputs, (str, os.PathLike)) else [Path(path) for path in inputs]
        jobs = plan(paths, None if output is None else os.fspath(output), suffix, recursive, overwrite=overwrite)
        return list(retouch_files(self, jobs, options, workers=workers, overwrite=overwrite))

    def stream(
        self, frames: Iterable[Frame], *, renew: int = 8, smoothing: float = 12, strength: float = 1.0
    ) -> Iterator[Frame]:
        """Retouches the frames of a video, one by one, in buffers that are used again: `fastenh.stream` says how.

        frames: arrays (H, W, 3) or tensors (3, H, W), on the CPU or on this device, all of one kind, shape and dtype.
        renew, smoothing: the look is decided anew every `renew` frames, and followed with a time constant of
            `smoothing` frames; a cut is followed at once. 1 and 0 decide it for each frame on its own.

        A frame that it gives is overwritten when the next but one is asked for: copy what you keep.
        """
        return stream(self, frames, renew=renew, smoothing=smoothing, strength=strength)

    def _pil(self, image: Image.Image, retouch: Callable[[Tensor], Tensor]) -> Image.Image:
        colour = {"L": "RGB", "LA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}.get(image.mode)
        if colour is None:
            raise ValueError(f"image: expected a PIL image of mode L, LA, RGB or RGBA, got {image.mode}; convert() it")
        pixels = np.array(image if image.mode == colour else image.convert(colour))
        pixels[..., :3] = self._array(pixels[..., :3], retouch)
        result = Image.fromarray(pixels).convert(image.mode)
        result.info = dict(image.info)
        return result

    def _array(self, image: np.ndarray, retouch: Callable[[Tensor], Tensor]) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image: expected an array of shape (height, width, 3), got {image.shape}")
        if image.dtype not in ("uint8", "uint16", "float16", "float32", "float64"):
            raise TypeError(f"image: expected uint8, uint16, or float in [0, 1], got an array of {image.dtype}")
        usable = image if usable_as_tensor(image) else image.copy()
        result = self._tensor(torch.from_numpy(usable).permute(2, 0, 1), retouch)
        return np.ascontiguousarray(result.permute(1, 2, 0).numpy())

    def _tensor(self, image: Tensor, retouch: Callable[[Tensor], Tensor]) -> Tensor:
        batch = image if image.ndim == 4 else image[None]
        if batch.ndim != 4 or batch.shape[1] != 3 or batch.numel() == 0:
            raise ValueError(f"image: expected shape (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}")
        if image.dtype not in FULL_SCALE and image.dtype not in FLOATS:
            raise TypeError(f"image: expected uint8, uint16, or float in [0, 1], got a tensor of {image.dtype}")
        if image.dtype in FLOATS and image.max() > 2:  # overshoot clamps; this is another scale
            raise ValueError(f"image: expected float values in [0, 1], got up to {image.max():g}; is it 0 to 255?")
        return retouch(batch).reshape(image.shape)

    def _look(self, image: Tensor) -> tuple[Tensor, ...]:
        """What the model decides of an image as a whole: () where that is nothing, or where it does not say."""
        if not self.parts:
            return ()
        with self._autocast():
            return tuple(t.float() for t in self.parts.look(image))

    def _retouch(
        self, image: Tensor, strength: float, look: tuple[Tensor, ...] | None = None, out: Tensor | None = None
    ) -> Tensor:
        """`look`: another than the image's own; `out`: where to write."""
        look = self._look(image) if look is None else look
        if strength < 1 and hasattr(self.model, "fused_lut"):  # blending tables blends their results
            (lut,) = look
            look, strength = (identity_lut(lut.shape[-1], lut.device).lerp(lut, strength),), 1.0
        floats = image.is_floating_point()
        wide = floats and image.dtype.itemsize > self.dtype.itemsize
        seen = image.to(self.dtype) if wide else image
        with self._autocast():
            if strength == 1 and self.parts:  # which take integers as they are, without frames of floats
                result = self.parts.render(seen, look, out=None if wide else out)
                result = result.clamp_(0, 1) if floats else result
            else:
                real = to_float(seen)
                # A model may work in place.
                retouched = self.parts.render(real, look) if self.parts else self.model(real.clone())
                if retouched.shape != real.shape:
                    expected, got = tuple(real.shape), tuple(retouched.shape)
                    raise ValueError(f"model: expected a result of shape {expected}, got {got}")
                result = from_float(real.lerp(retouched.to(real.dtype), strength).clamp_(0, 1), seen.dtype)
        result = result.to(image.dtype)
        return result if out is None or result is out else out.copy_(result)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError …, as the backend pleases
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        here = ["cpu", *(f"{accelerator}:{index}" for index in range(torch.accelerator.device_count()))]
        raise ValueError(f"device: expected auto or what torch sees here ({', '.join(here)}), got {name}") from error
    return device
