"""Terms of losses that systems share, each once."""

from fastenh.losses.adversarial import gradient_penalty
from fastenh.losses.lab import rgb_to_lab
from fastenh.losses.lut import monotonicity, total_variation
from fastenh.losses.portrait import (
    affinity,
    attention_supervision,
    group_style,
    human_region_mse,
    mean_colour,
    overlap_mse,
)

__all__ = [
    "affinity",
    "attention_supervision",
    "gradient_penalty",
    "group_style",
    "human_region_mse",
    "mean_colour",
    "monotonicity",
    "overlap_mse",
    "rgb_to_lab",
    "total_variation",
]
