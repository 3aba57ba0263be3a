"""Photographs for `make demo`, as they come with Python packages, and README's picture, from what `make demo` wrote.

python docs/demo.py demo                # photographs to retouch
python docs/demo.py demo docs/demo.jpg  # after `make demo`: before and after, in one picture
"""

import sys
from pathlib import Path

from PIL import Image

from fastenh.data.bundled import PHOTOS

NAMES = ("coffee", "china", "astronaut")  # `auto` was not trained on them

folder = Path(sys.argv[1])
if len(sys.argv) == 2:
    folder.mkdir(parents=True, exist_ok=True)
    for photo in PHOTOS:
        if photo.name in NAMES:
            pixels = (photo.read() * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{photo.name}.jpg", quality=92)
else:
    pairs = [Image.open(folder / "retouched" / f"{name}_compare.jpg") for name in NAMES]
    pairs = [pair.resize((round(pair.width * 300 / pair.height), 300)) for pair in pairs]
    sheet = Image.new("RGB", (max(pair.width for pair in pairs), 308 * len(pairs) - 8), "white")
    for row, pair in enumerate(pairs):
        sheet.paste(pair, ((sheet.width - pair.width) // 2, 308 * row))
    sheet.save(sys.argv[2], quality=88)
