"""Measures how long a photo takes from file to file, and its parts: `python benchmarks/files.py`.

A photo of 24 megapixels (6000 x 4000) in common formats, through `auto` on a CPU with two threads. Times are seconds,
the best of three rounds in which all formats take turns. "colours" is the conversion to sRGB and back.
"""

from __future__ import annotations

import platform
import tempfile
import time
from pathlib import Path

import imagecodecs
import inputs
import numpy as np
import torch

from fastenh.enhance import Enhancer
from fastenh.io import Header, Photo, read_photo, write_photo
from fastenh.io.metadata import Metadata
from fastenh.pipelines.photo import FileOptions, enhance_photo

HEIGHT, WIDTH, ROUNDS = 4000, 6000, 3
ADOBE = imagecodecs.cms_profile("adobergb")
KINDS = {  # name: suffix, dtype, ICC profile, storage
    "JPEG, 8 bit, sRGB": (".jpg", "uint8", b"", {}),
    "JPEG, 8 bit, Adobe RGB": (".jpg", "uint8", ADOBE, {}),
    "TIFF, 16 bit, sRGB, uncompressed": (".tif", "uint16", b"", {"compression": "none"}),
    "TIFF, 16 bit, Adobe RGB, uncompressed": (".tif", "uint16", ADOBE, {"compression": "none"}),
    "TIFF, 16 bit, sRGB, LZW": (".tif", "uint16", b"", {"compression": "lzw"}),
    "TIFF, 16 bit, sRGB, ZIP": (".tif", "uint16", b"", {"compression": "zip"}),
    "PNG, 16 bit, sRGB": (".png", "uint16", b"", {}),
}


def main() -> None:
    torch.set_num_threads(2)
    picture = inputs.photo((HEIGHT, WIDTH))[0].permute(1, 2, 0)
    enhancer = Enhancer("auto", "cpu")
    best: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, dtype, icc, storage) in KINDS.items():
            pixels = (picture * np.iinfo(dtype).max).round().to(torch.int32).numpy().astype(dtype)
            kind = "TIFF" if storage else ""
            header = Header(kind, HEIGHT, WIDTH, 3, pixels.dtype, 3, metadata=Metadata(icc=icc), storage=storage)
            write_photo(Photo(header, pixels), Path(folder, name).with_suffix(suffix))
        for _ in range(ROUNDS):
            for name, (suffix, _, _, _) in KINDS.items():
                path = Path(folder, name).with_suffix(suffix)
                marks = [time.perf_counter()]
                photo = read_photo(path)
                marks.append(time.perf_counter())
                numbers = torch.from_numpy(photo.pixels).permute(2, 0, 1)
                enhancer.enhance(numbers)  # the model alone
                marks.append(time.perf_counter())
                result, _ = enhance_photo(enhancer.engine, photo, FileOptions())
                marks.append(time.perf_counter())
                write_photo(result, path, overwrite=True)
                marks.append(time.perf_counter())
                decode, model, retouch, encode = np.diff(marks)
                parts = [decode, model, max(retouch - model, 0.0), encode, decode + retouch + encode]
                if name not in best or parts[-1] < best[name][-1]:
                    best[name] = parts
    print(f"{platform.processor() or platform.machine()}, 2 threads, torch {torch.__version__}\n")
    print("| 24 megapixels | decode | model | colours | encode | in all |\n| --- | --- | --- | --- | --- | --- |")
    for name, parts in best.items():
        print(f"| {name} | {' | '.join(f'{part:.2f}' for part in parts)} |")


if __name__ == "__main__":
    main()
