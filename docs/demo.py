"""Photographs for `make demo`: one that comes with scikit-image, and the same from a camera that was set wrongly."""

import sys
from pathlib import Path

import torch
from PIL import Image
from skimage import data

from fastenh.data.degrade import degrade

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255  # NASA, public domain; `auto` never saw it
dark = degrade(photo, stops=-1.5, gains=(0.85, 1.0, 1.2))
for name, picture in {"photo": photo, "too_dark": dark}.items():
    pixels = (picture[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=92)
