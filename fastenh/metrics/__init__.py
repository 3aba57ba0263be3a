"""Image quality metrics, by their published formulas; `fastenh evaluate` prints them.

`fidelity.py` compares with an expert's retouch, `consistency.py` compares the photos of a group, `niqe.py` needs no
other photo. Most are computed in bands of rows, so an 8K frame needs little memory beyond its own.
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
