"""`Enhancer`: a model on a device, which takes any kind of image and returns the same kind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastenh.engine import Engine, Options, as_batch
from fastenh.io.photos import Photo, read_photo
from fastenh.models.checkpoint import load
from fastenh.ops.op import from_float
from fastenh.pipelines.batch import Outcome, enhance_files, plan
from fastenh.pipelines.photo import FileOptions, enhance_photo
from fastenh.pipelines.video import Frame, stream
from fastenh.tiles import upscale

Pixels = TypeVar("Pixels", Image.Image, np.ndarray, Tensor)


class Enhancer:
    """Retouch photos: `Enhancer("auto").enhance(image, strength=1.0)`, or without `.enhance`; videos: `stream`.

    out = (1 − strength) · image + strength · model(image), clamped to [0, 1]; strength 0 returns the image exactly.

    `denoise` reduces noise where the model brightens the image, in proportion to the gain, and keeps edges;
    `protect_highlights` keeps highlights from clipping to white. `fastenh.finish` has the formulas. Both work with any
    model. Other keyword arguments are conditions of the model, such as a style; see `fastenh.models.System`.

    A LUT file maps numbers of any range, and results are not clamped. `space` says which numbers of a photo: "file" for
    its own, "srgb" for sRGB in [0, 1], which its colours are converted to and back; without it, "file" for OpenEXR and
    photos in floats, "srgb" for others. Models take sRGB only. Arrays and tensors are mapped as they are.

    | image | result |
    | --- | --- |
    | path of a photo, or `fastenh.io.Photo` | `Photo`, upright, in the photo's own depth and colours: `.save(path)` |
    | PIL image, "RGB" or "RGBA" | PIL image of the same mode and `info`; alpha untouched |
    | PIL image, "L" or "LA" | the same mode: retouched as R = G = B, then the luma of that |
    | NumPy array (H, W, 3) | array of the same shape and dtype |
    | tensor (3, H, W) or (B, 3, H, W) | tensor of the same shape, dtype and device (an inference tensor) |

    A model that enlarges returns `scale` times the height and width. Alpha is then enlarged bilinearly, and so is the
    image that `strength` blends with.

    Colours are RGB in the image's own encoding, which models read as sRGB. uint8 and uint16 are full scale, and results
    are rounded to nearest; floats (16, 32, 64 bit; bfloat16 in tensors) are in [0, 1]. The input is never changed.

    `model` is the name of a model that comes with fastenh, the path of a saved one, or a module of your own: a
    `fastenh.models.System`, or any module (B, 3, H, W) RGB in [0, 1] → the same shape. It is moved to `device` and set
    to eval mode. `device` is any device of torch, or "auto": a CUDA GPU if there is one, else the CPU.

    `precision` is "float32" or, on a GPU, "float16" or "bfloat16". Networks, and images of wider floats, are then
    computed in it. LUTs stay float32, and results have the image's dtype. The default is float32, so that a photo has
    the same result on every device, within rounding. A CPU takes only float32: halves gain little there, and often cost
    time.

    Raises TypeError for another kind or dtype of image, ValueError for another shape, mode, range, model, device or
    precision, and what `fastenh.io.read_photo` raises for a path.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module = "auto",
        device: str | torch.device = "auto",
        precision: str = "float32",
    ) -> None:
        self.model = model if isinstance(model, nn.Module) else load(os.fspath(model))
        self.engine = Engine(self.model, device, precision)

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @overload
    def enhance(self, image: str | os.PathLike[str] | Photo, strength: float = 1.0, **options: Any) -> Photo: ...
    @overload
    def enhance(self, image: Pixels, strength: float = 1.0, **options: Any) -> Pixels: ...
    @torch.inference_mode()
    def enhance(self, image, strength=1.0, *, denoise=False, protect_highlights=False, space=None, **conditions):
        conditions = self.engine.system.check_conditions(conditions)
        options = FileOptions(strength, denoise, protect_highlights, conditions, space)
        bounded = self.engine.bounded(options)
        if isinstance(image, (str, os.PathLike)):
            image = read_photo(image)
        if isinstance(image, Photo):
            return enhance_photo(self.engine, image, options)[0]
        if isinstance(image, Image.Image):
            return self._pil(image, options)
        if isinstance(image, np.ndarray):
            result = self.engine.enhance(as_batch(image, bounded), options)[0][0]
            return np.ascontiguousarray(result.permute(1, 2, 0).numpy())
        if isinstance(image, Tensor):
            result = self.engine.enhance(as_batch(image, bounded), options)[0]
            return result if image.ndim == 4 else result[0]
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
        space: str | None = None,
        dither: bool = False,
        quality: int | None = None,
        keep_times: bool = False,
        suffix: str | None = None,
        recursive: bool = False,
        workers: int = 1,
        overwrite: bool = False,
        **conditions: Any,
    ) -> list[Outcome]:
        """Retouch files into files, like `fastenh enhance`; returns the outcome of each, with its error if it failed.

        inputs: photos, or one folder, including its subfolders if `recursive`.
        output, suffix: where results go and what is appended to their names; see `fastenh.pipelines.batch.plan`.
        dither: dither when rounding, so that gradients show no bands.
        quality: 1 to 100, of JPEG, WebP, AVIF, JPEG XL and HEIC; without it a JPEG keeps its own.
        keep_times: give results the modification and access time of their photos.
        workers: photos processed at the same time.
        overwrite: replace results that exist; by default those photos are skipped.

        Raises ValueError, before any work starts, if the place of a result is unclear or an argument is out of range,
        and FileExistsError if `output` is a file that exists.
        """
        conditions = self.engine.system.check_conditions(conditions)
        finishing = denoise, protect_highlights
        options = FileOptions(strength, *finishing, conditions, space, dither, quality, keep_times)
        self.engine.bounded(options)
        if workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {workers}")
        paths = [Path(inputs)] if isinstance(inputs, (str, os.PathLike)) else [Path(path) for path in inputs]
        jobs = plan(paths, None if output is None else os.fspath(output), suffix, recursive, overwrite=overwrite)
        return list(enhance_files(self.engine, jobs, options, workers=workers, overwrite=overwrite))

    def stream(
        self,
        frames: Iterable[Frame],
        *,
        renew: int = 8,
        smoothing: float = 12,
        strength: float = 1.0,
        denoise: bool = False,
        protect_highlights: bool = False,
        **conditions: Any,
    ) -> Iterator[Frame]:
        """Retouch the frames of a video, one by one, in reused buffers (`fastenh.pipelines.buffers`).

        frames: arrays (H, W, 3) or tensors (3, H, W), on the CPU or on this device, all of one type, shape and dtype.
        renew, smoothing: the model predicts parameters of a scene every `renew` frames, and frames follow them with a
            time constant of `smoothing` frames; a cut is followed at once (`fastenh.pipelines.scene`). With 1 and 0
            each frame is retouched independently.

        A frame that it yields is overwritten when the next but one is requested: copy what you keep.
        """
        conditions = self.engine.system.check_conditions(conditions)
        options = Options(strength, denoise, protect_highlights, conditions)
        return stream(self.engine, frames, options, renew=renew, smoothing=smoothing)

    def _pil(self, image: Image.Image, options: Options) -> Image.Image:
        colour = {"L": "RGB", "LA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}.get(image.mode)
        if colour is None:
            raise ValueError(f"image: expected a PIL image of mode L, LA, RGB or RGBA, got {image.mode}; convert() it")
        pixels = torch.from_numpy(np.array(image if image.mode == colour else image.convert(colour))).permute(2, 0, 1)
        parts = [self.engine.enhance(as_batch(pixels[:3]), options)[0][0]]
        if colour == "RGBA":
            alpha, scale = pixels[3:], self.engine.scale
            parts.append(alpha if scale == 1 else from_float(upscale(alpha[None], scale), alpha.dtype)[0])
        pixels = torch.cat(parts).permute(1, 2, 0).contiguous()
        result = Image.fromarray(pixels.numpy()).convert(image.mode)
        result.info = dict(image.info)
        return result
