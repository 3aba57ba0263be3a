"""The input files of docs/luts.md and its picture: a photograph, the same too dark and too blue, and a LUT of our own.

python docs/luts.py examples luts           # photo.jpg, dark.jpg and warm.cube to experiment with
python docs/luts.py picture luts docs       # luts.jpg, from the results of the commands on the page
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from fastenh.io import write_lut
from fastenh.io.colour import decode, encode
from fastenh.models.lut_file import sample


def warm(colours: Tensor) -> Tensor:
    """Paler colours, more contrast between shadows and lights, lights towards yellow, shadows towards blue."""
    grey = (colours * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1, keepdim=True)
    paler = grey + 0.75 * (colours - grey)
    contrast = 0.5 * paler + 0.5 * paler**2 * (3 - 2 * paler)
    tint = torch.tensor([0.05, 0.01, -0.12])[:, None, None] * grey + torch.tensor([0.02, 0.02, 0.06])[:, None, None]
    return (contrast + tint).clamp(0, 1)


def examples(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = data.astronaut()  # NASA, public domain
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    gains = torch.tensor([0.8, 1.0, 1.3])[:, None, None] * 2**-1.5  # in linear light
    dark = (encode((decode(photo) * gains).clamp(0, 1)) * 255).round().to(torch.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    Image.fromarray(dark[0].permute(1, 2, 0).numpy()).save(folder / "dark.jpg", quality=95)
    write_lut(sample(warm, 33, title="Warm"), folder / "warm.cube", overwrite=True)


def picture(folder: Path, into: Path) -> None:
    """The photograph; with warm.cube; too dark; with the LUT baked from `auto`."""
    names = ("photo.jpg", "warm.jpg", "dark.jpg", "lit.jpg")
    row = [np.asarray(Image.open(folder / name).resize((256, 256), reducing_gap=3)) for name in names]
    into.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(row, 1)).save(into / "luts.jpg", quality=85)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["examples", folder]:
            examples(Path(folder))
        case ["picture", folder, into]:
            picture(Path(folder), Path(into))
        case _:
            sys.exit(__doc__)
