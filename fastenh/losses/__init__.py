"""Loss terms that systems share, each defined once."""

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
from fastenh.losses.semantic import (
    VGGFeatures,
    brightness_consistency,
    brightness_contrast,
    curve_variation,
    feature_retention,
    frozen,
    gram_contrast,
    gram_matrix,
    label_cross_entropy,
)

__all__ = [
    "VGGFeatures",
    "affinity",
    "attention_supervision",
    "brightness_consistency",
    "brightness_contrast",
    "colour_constancy",
    "curve_variation",
    "exposure_control",
    "feature_retention",
    "frozen",
    "gradient_penalty",
    "gram_contrast",
    "gram_matrix",
    "group_style",
    "human_region_mse",
    "illumination_smoothness",
    "label_cross_entropy",
    "mean_colour",
    "monotonicity",
    "overlap_mse",
    "rgb_to_lab",
    "spatial_consistency",
    "total_variation",
]
