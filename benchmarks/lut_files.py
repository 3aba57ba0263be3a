"""Compares the results of fastenh and OpenColorIO for LUT files: `python benchmarks/lut_files.py FOLDER…`.

Applies every LUT file in the folders and their subfolders to 16,384 random colours in [0, 1] and to as many outside:
half in [-1, 4], half with magnitudes from 2^-14 to 65504 and random signs. The error of a channel is

    |ours - theirs| / max(1, |theirs|)

which is absolute up to 1 and relative above, because a large float32 has no five decimals. Equal NaN or infinity count
as no error. OpenColorIO runs without approximations (OPTIMIZATION_LOSSLESS) and with fastenh's interpolation of 3D
tables: the one that the file specifies, else trilinear for .clf and .ctf and tetrahedral for other formats.

Prints how many files agree to 1e-5, and a table of the others. Two differences are intended:

- fastenh refuses tables with NaN or infinity; OpenColorIO loads them.
- fastenh adds a matrix's column for alpha to the offset, because alpha is 1. OpenColorIO's `applyRGB` assumes the same
  alpha, but adds column and offset to the colour one after the other, and thus rounds twice.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import PyOpenColorIO as ocio
import torch
from tables import header, row

from fastenh.io import read_lut
from fastenh.io.luts import LUT_SUFFIXES

COUNT, TARGET = 16384, 1e-5
Results = tuple[np.ndarray, np.ndarray]  # in [0, 1], outside it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    warnings.filterwarnings("ignore")
    colours = inside, beyond = random_colours()
    counts: Counter[str] = Counter()
    rows = []
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in LUT_SUFFIXES):
            theirs = by_opencolorio(path, colours)
            try:
                lut = read_lut(path)
            except (ValueError, OSError) as error:
                counts["that only OpenColorIO loads" if theirs else "that neither loads"] += 1
                if theirs:
                    rows.append((path.name, "refused", "refused", str(error).removeprefix(f"{path}: ")))
                continue
            if not theirs:
                counts["that only fastenh loads"] += 1
                continue
            errors = [largest_error(apply(lut, x), y) for x, y in zip((inside, beyond), theirs, strict=True)]
            agrees = max(errors) <= TARGET
            counts[f"that agree to {TARGET:g}" if agrees else "that differ"] += 1
            if not agrees:
                rows.append((path.name, *(f"{error:.2g}" for error in errors), lut.contents))
    for what, count in counts.most_common():
        print(f"{count} files {what}")
    if rows:
        print()
        print(*header("file", "in [0, 1]", "outside", "stages"), sep="\n")
        for cells in rows:
            print(row(*cells))


def random_colours() -> Results:
    rng = np.random.default_rng(0)
    inside, beyond = rng.random((COUNT, 3)), rng.uniform(-1, 4, (COUNT, 3))
    beyond[::2] = rng.choice([-1, 1], (COUNT // 2, 3)) * 2 ** rng.uniform(-14, np.log2(65504), (COUNT // 2, 3))
    inside[:8] = np.stack(np.meshgrid(*[[0, 1]] * 3), -1).reshape(8, 3)
    return inside.astype(np.float32), beyond.astype(np.float32)


def by_opencolorio(path: Path, colours: Results) -> Results | None:
    ocio.ClearAllCaches()
    context = ocio.Context()
    context.setSearchPath(str(path.parent.absolute()))
    how = ocio.INTERP_DEFAULT if path.suffix.lower() in (".clf", ".ctf") else ocio.INTERP_TETRAHEDRAL
    try:
        transform = ocio.FileTransform(str(path.absolute()), interpolation=how)
        processor = ocio.Config.CreateRaw().getProcessor(context, transform, ocio.TRANSFORM_DIR_FORWARD)
    except ocio.Exception:
        return None
    run = processor.getOptimizedCPUProcessor(ocio.OPTIMIZATION_LOSSLESS)
    results = tuple(x.copy() for x in colours)
    for result in results:
        run.applyRGB(result)
    return results


def apply(lut: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    return lut(torch.from_numpy(pixels).T[None, :, None])[0, :, 0].T.numpy()


def largest_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        error = np.abs(ours.astype(np.float64) - theirs) / np.maximum(1, np.abs(theirs))
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    return float(np.nan_to_num(np.where(same, 0, error), nan=np.inf).max())


if __name__ == "__main__":
    main()
