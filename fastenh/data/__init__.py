"""Data sets: their layouts, and the samples that training and measuring take from them."""

from fastenh.data.lowlight import (
    Contrasts,
    References,
    Scene,
    Scenes,
    cityscapes,
    darkened,
    find_references,
    find_scenes,
    read_labels,
)
from fastenh.data.pairs import Pairs, Photo, Unpaired, find_pairs, paired_folders, ppr10k
from fastenh.data.photos import UnreadablePhoto, find_photos, group_of, read_size, read_tensor

__all__ = [
    "Contrasts",
    "Pairs",
    "Photo",
    "References",
    "Scene",
    "Scenes",
    "Unpaired",
    "UnreadablePhoto",
    "cityscapes",
    "darkened",
    "find_pairs",
    "find_photos",
    "find_references",
    "find_scenes",
    "group_of",
    "paired_folders",
    "ppr10k",
    "read_labels",
    "read_size",
    "read_tensor",
]
