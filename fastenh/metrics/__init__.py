"""Measures of a retouch, each by its published formula; `fastenh evaluate` prints them.

What compares with an expert's retouch stands in `fidelity.py`, what compares the photos of a group in `consistency.py`,
what needs no other photo in `niqe.py`.
Frames are measured in bands of rows, so that an 8K frame needs little more memory than its own.
"""

from fastenh.metrics.consistency import group_level_consistency, mean_ab
from fastenh.metrics.fidelity import delta_e, psnr, ssim
from fastenh.metrics.niqe import Pristine, load_pristine, niqe

__all__ = [
    "Pristine",
    "delta_e",
    "group_level_consistency",
    "load_pristine",
    "mean_ab",
    "niqe",
    "psnr",
    "ssim",
]
