"""Data sets: their layouts, and the samples that training and measuring take from them."""

from fastenh.data.pairs import Pairs, Photo, Unpaired, find_pairs, paired_folders, ppr10k
from fastenh.data.photos import UnreadablePhoto, find_photos, group_of, read_size, read_tensor

__all__ = [
    "Pairs",
    "Photo",
    "Unpaired",
    "UnreadablePhoto",
    "find_pairs",
    "find_photos",
    "group_of",
    "paired_folders",
    "ppr10k",
    "read_size",
    "read_tensor",
]
