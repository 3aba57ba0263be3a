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
    height, gap = 240, 6
    columns = []
    for name in NAMES:
        column = [Image.open(place / f"{name}.jpg") for place in (folder, folder / "retouched")]
        width = round(column[0].width * height / column[0].height)
        columns.append([photo.resize((width, height), Image.Resampling.LANCZOS) for photo in column])
    size = sum(column[0].width + gap for column in columns) - gap, 2 * height + gap
    sheet, left = Image.new("RGB", size, "white"), 0
    for before, after in columns:
        sheet.paste(before, (left, 0))
        sheet.paste(after, (left, height + gap))
        left += before.width + gap
    sheet.save(sys.argv[2], quality=90)
