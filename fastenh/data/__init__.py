"""Data sets: their layouts, and the samples that training and evaluation take from them."""

from fastenh.data.degrade import apply_gamma
from fastenh.data.lowlight import (
    Contrasts,
    Crops,
    LabelledPhoto,
    References,
    cityscapes,
    find_labelled_photos,
    find_references,
    read_labels,
)
from fastenh.data.pairs import Pair, Pairs, Unpaired, find_pairs, paired_folders, ppr10k
from fastenh.data.photos import UnreadablePhoto, find_photos, group_of, read_size, read_tensor

__all__ = [
    "Contrasts",
    "Crops",
    "LabelledPhoto",
    "Pair",
    "Pairs",
    "References",
    "Unpaired",
    "UnreadablePhoto",
    "apply_gamma",
    "cityscapes",
    "find_labelled_photos",
    "find_pairs",
    "find_photos",
    "find_references",
    "group_of",
    "paired_folders",
    "ppr10k",
    "read_labels",
    "read_size",
    "read_tensor",
]
