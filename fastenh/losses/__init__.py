"""Terms of losses that systems share, each once."""

from fastenh.losses.adversarial import gradient_penalty
from fastenh.losses.curve import (
    colour_constancy,
    exposure_control,
    illumination_smoothness,
    spatial_consistency,
)
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
    "colour_constancy",
    "exposure_control",
    "gradient_penalty",
    "group_style",
    "human_region_mse",
    "illumination_smoothness",
    "mean_colour",
    "monotonicity",
    "overlap_mse",
    "rgb_to_lab",
    "spatial_consistency",
    "total_variation",
]
