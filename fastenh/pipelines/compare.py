"""Before and after, side by side, in one JPEG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastenh.atomic import replacing
from fastenh.io import Photo, read_photo
from fastenh.io.encoding import from_float, to_float, unpremultiply

SIDE = 1600  # pixels of each half, at most


def write_comparison(before: Path, after: Path, picture: Path, overwrite: bool = False) -> None:
    """The photo on the left, the result on the right, a white line between them; in sRGB, for screens."""
    right = _shown(read_photo(after))
    left = _shown(read_photo(before), right.size)
    gap = max(2, left.width // 100)
    canvas = Image.new("RGB", (2 * left.width + gap, left.height), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + gap, 0))
    encoded = io.BytesIO()  # writing to a file, Pillow would not report a full disk
    canvas.save(encoded, "JPEG", quality=95, subsampling=0)
    with replacing(picture, overwrite, like=before) as part:
        part.write_bytes(encoded.getvalue())


def _shown(photo: Photo, size: tuple[int, int] | None = None) -> Image.Image:
    """The photo in 8 bits, on white, resized to `size` or to at most SIDE pixels a side."""
    header = photo.header
    step = max(1, max(header.height, header.width) // (2 * SIDE))  # more pixels would not show at this size
    numbers = unpremultiply(to_float(photo.pixels[::step, ::step]), header)
    colours = header.colour_space.model_input(numbers[: header.colours])
    if header.alpha is not None:
        colours = torch.lerp(torch.ones_like(colours), colours, numbers[header.alpha].clamp(0, 1))
    image = Image.fromarray(from_float(colours, np.dtype(np.uint8)))
    factor = min(1, SIDE / max(header.height, header.width))
    size = size or (max(1, round(header.width * factor)), max(1, round(header.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)
