"""What docs/lowlight.md works on, and its pictures: a photograph that comes with scikit-image, as if taken at night.

python docs/lowlight.py photo dark.png         # a dark photo to try things with
python docs/lowlight.py pictures docs          # lowlight.jpg and lowlight_options.jpg
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

import fastenh
from fastenh.data.degrade import darken


def photograph() -> Tensor:
    """(1, 3, H, W): the astronaut (NASA, public domain), whom `lowlight` never saw, in daylight."""
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255


def night() -> Tensor:
    """The same with little light on a noisy sensor."""
    return darken(photograph(), gamma=2.2, stops=-1.5, noise=0.01, rng=np.random.default_rng(0))


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=88)


def pictures(into: Path) -> None:
    """Dark, lifted, lifted with both options; and a part of the last two, enlarged."""
    enhancer, dark = fastenh.Enhancer("lowlight", "cpu"), night()
    plain = enhancer(dark)
    with_options = enhancer(dark, denoise=True, protect_highlights=True)
    save(torch.cat([dark, plain, with_options], 3)[..., ::2, ::2], into / "lowlight.jpg")
    parts = [photo[..., 40:210, 140:390] for photo in (plain, with_options)]
    save(torch.cat(parts, 3).repeat_interleave(2, 2).repeat_interleave(2, 3), into / "lowlight_options.jpg")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["photo", path]:
            save(night(), Path(path))
        case ["pictures", folder]:
            pictures(Path(folder))
        case _:
            sys.exit(__doc__)
