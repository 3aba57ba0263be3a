"""`Enhancer`: a model, a device, and any kind of image in and the same kind out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastenh import models, ops
from fastenh.finish import finish
from fastenh.io import read_photo
from fastenh.models.lut3d import identity_lut

FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535}  # the integer that stands for 1.0
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Enhancer:
    """Retouch photos: `Enhancer("auto")(image, strength=1.0)`.

    out = (1 − strength) · image + strength · model(image), clamped to [0, 1]; strength 0 gives the image back exactly.

    `denoise` smooths that where it is lighter than the image, more where more, and keeps edges; `protect_highlights`
    lets no value become white that was not. `fastenh.finish` says how. Both are for any model.

    | image | gives |
    | --- | --- |
    | path of an 8-bit JPEG or PNG | PIL image, upright, with the photo's ICC profile, EXIF and XMP in its `info` |
    | PIL image, "RGB" or "RGBA" | PIL image of the same mode and `info`; alpha untouched |
    | PIL image, "L" or "LA" | the same mode: retouched as R = G = B, then the luma of that |
    | NumPy array (H, W, 3) | array of the same shape and dtype |
    | tensor (3, H, W) or (B, 3, H, W) | tensor of the same shape, dtype and device (an inference tensor) |

    Colours are RGB in the image's own encoding, which the models take for sRGB. uint8 and uint16 are full scale and
    rounded to nearest; floats (16, 32, 64 bit; bfloat16 in tensors) are in [0, 1]. The image given is never changed.

    `model` is the name of a model that comes with fastenh, the path of one saved by it, or a module of your own,
    (B, 3, H, W) RGB in [0, 1] → the same shape, which is then moved to `device` and set to eval mode. `device` is
    anything torch takes, or "auto": a CUDA GPU where there is one, else the CPU.

    Raises TypeError for another kind or dtype of image, ValueError for another shape, mode, range, model or device,
    and what `fastenh.io.read_photo` raises for a path.
    """

    def __init__(self, model: str | os.PathLike[str] | nn.Module = "auto", device: str | torch.device = "auto") -> None:
        self.device = _device(device)
        module = model if isinstance(model, nn.Module) else models.load(os.fspath(model))
        self.model = module.to(self.device).eval()

    @overload
    def __call__(
        self,
        image: str | os.PathLike[str] | Image.Image,
        strength: float = 1.0,
        *,
        denoise: bool = False,
        protect_highlights: bool = False,
    ) -> Image.Image: ...
    @overload
    def __call__(
        self, image: np.ndarray, strength: float = 1.0, *, denoise: bool = False, protect_highlights: bool = False
    ) -> np.ndarray: ...
    @overload
    def __call__(
        self, image: Tensor, strength: float = 1.0, *, denoise: bool = False, protect_highlights: bool = False
    ) -> Tensor: ...

    @torch.inference_mode()
    def __call__(self, image, strength=1.0, *, denoise=False, protect_highlights=False):
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
        if isinstance(image, Image.Image):
            return self._pil(image, retouch)
        if isinstance(image, np.ndarray):
            return self._array(image, retouch)
        if isinstance(image, Tensor):
            return self._tensor(image, retouch)
        raise TypeError(f"image: expected a path, PIL image, NumPy array or tensor, got {type(image).__name__}")

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
        # A tensor cannot have negative strides, and warns of memory that must not be written.
        usable = image if image.flags.writeable and min(image.strides) >= 0 else image.copy()
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

    def _retouch(self, image: Tensor, strength: float) -> Tensor:
        scale = FULL_SCALE.get(image.dtype)
        fused_lut = getattr(self.model, "fused_lut", None)
        if fused_lut:
            # Blending tables blends their results, and integers go through a table as they are: both come for free.
            luts = fused_lut(image)
            luts = identity_lut(luts.shape[-1]).to(luts).lerp(luts, strength)
            result = ops.lut_transform(image, luts[:, None])
            return result if scale else result.clamp_(0, 1)
        if scale and strength == 1 and type(self.model) in models.SYSTEMS.values():
            return self.model(image)  # takes integers as they are, without frames of floats, four times as large
        real = image.float()
        if scale:
            real /= scale
        retouched = self.model(real.clone())  # a model may work in place
        if retouched.shape != real.shape:
            raise ValueError(f"model: expected a result of shape {tuple(real.shape)}, got {tuple(retouched.shape)}")
        result = real.lerp(retouched.to(real.dtype), strength).clamp_(0, 1)
        return (result.mul_(scale).round_() if scale else result).to(image.dtype)


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
