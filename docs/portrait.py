"""What docs/portrait.md works on, and its pictures: two photographs that come with scikit-image, as shoots.

    python docs/portrait.py photos portraits       # train/ and val/ in PPR10K's layout, shoot/ and 8k.jpg to retouch
    python docs/portrait.py pictures portraits run/model.safetensors docs

A shoot is one photograph, framed and lit anew for each shot. Its expert brings the light back, then makes who is in it,
as a polygon drawn by hand says, a little lighter, and what is behind darker and paler.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from skimage import data
from torch import Tensor

import fastenh
from fastenh.data.degrade import degrade

SHOOTS = {
    "astronaut": [  # NASA, public domain
        *[(22, 512), (20, 420), (32, 320), (60, 255), (112, 205), (125, 170), (160, 150), (178, 132), (160, 108)],
        *[(153, 70), (172, 38), (205, 18), (250, 16), (285, 36), (300, 70), (296, 110), (276, 130), (262, 172)],
        *[(290, 200), (306, 236), (340, 262), (362, 310), (364, 348), (420, 345), (470, 375), (498, 440), (512, 512)],
    ],
    "cat": [  # Chelsea, by Stefan van der Walt, CC0
        *[(0, 300), (0, 125), (35, 85), (45, 0), (395, 0), (352, 72), (366, 130), (345, 190), (335, 225), (310, 300)],
    ],
}


def photograph(name: str) -> Tensor:
    """(1, 4, H, W): the photo in [0, 1], and 1 on who is in it."""
    pixels = {"astronaut": data.astronaut, "cat": data.chelsea}[name]()
    mask = Image.new("L", pixels.shape[1::-1])
    ImageDraw.Draw(mask).polygon(SHOOTS[name], fill=255)
    return torch.from_numpy(np.dstack([pixels, np.asarray(mask)])).permute(2, 0, 1)[None] / 255


def expert(photo: Tensor, mask: Tensor) -> Tensor:
    grey = photo.mean(1, keepdim=True)
    behind = 0.7 * (grey + 0.5 * (photo - grey))
    return torch.where(mask > 0.5, 1 - (1 - photo) ** 1.15, behind)


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
    Image.fromarray(pixels).save(path, quality=90)


def photos(folder: Path, shots: int = 12, to_measure: int = 4) -> None:
    rng = np.random.default_rng(0)
    for group, name in enumerate(SHOOTS):
        whole = photograph(name)
        for index in range(shots):
            height, width = (round(side * rng.uniform(0.8, 1)) for side in whole.shape[2:])
            top, left = (rng.integers(room + 1) for room in (whole.shape[2] - height, whole.shape[3] - width))
            photo, mask = whole[:, :, top : top + height, left : left + width].split([3, 1], 1)

            def lit(photo: Tensor = photo) -> Tensor:
                return degrade(photo, rng.uniform(-1.2, 0), tuple(np.exp(rng.normal(0, 0.1, 3))))

            part = "train" if index < shots - to_measure else "val"
            shot = lit()
            save(shot, folder / part / f"source/{group}_{index}.png")
            save(expert(photo, mask), folder / part / f"target_a/{group}_{index}.png")
            save(mask, folder / part / f"masks/{group}_{index}.png")
            if part == "train":
                for n in range(3):
                    save(lit(), folder / part / f"source_aug/{group}_{index}_{n}.png")
            elif name == "astronaut":
                save(shot, folder / f"shoot/{index}.jpg")
    large = F.interpolate(photograph("astronaut")[:, :3, :288], (4320, 7680), mode="bicubic").clamp(0, 1)
    save(degrade(large, -1.2, (0.85, 1.0, 1.2)), folder / "8k.jpg")


@torch.inference_mode()
def pictures(folder: Path, weights: Path, into: Path) -> None:
    """Shots before and after; and one before, after, and the weights of the LUT whose weights differ most across it."""
    model = fastenh.load(weights)
    shots = [Image.open(path).resize((320, 320)) for path in sorted((folder / "shoot").glob("*.jpg"))]
    before = torch.from_numpy(np.stack([np.asarray(shot) for shot in shots])).permute(0, 3, 1, 2)
    after = fastenh.Enhancer(model)(before)
    rows = [torch.cat(list(frames), 2) for frames in (before / 255, after / 255)]
    save(torch.cat(rows, 1)[None], into / "portrait_group.jpg")

    shot = degrade(photograph("astronaut")[:, :3], -1.0, (0.85, 1.0, 1.2))
    maps = model.lam(shot)[0][0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    varied = maps.flatten(1).std(1).argmax()
    grey = ((maps - low) / (high - low))[varied].expand(1, 3, -1, -1)
    save(torch.cat([shot, model(shot).clamp(0, 1), grey], 3), into / "portrait.jpg")
    print(f"Weights of LUT {varied}, black {low[varied].item():.2f} to white {high[varied].item():.2f}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["photos", folder]:
            photos(Path(folder))
        case ["pictures", folder, weights, into]:
            pictures(Path(folder), Path(weights), Path(into))
        case _:
            sys.exit(__doc__)
