"""Models: one file per published system, the contract they keep (`System`), and their checkpoints."""

from fastenh.models.adaint import AdaInt
from fastenh.models.checkpoint import EMBEDDED, SYSTEMS, WEIGHTS, load, save
from fastenh.models.csrnet import CSRNet
from fastenh.models.lam import LocalContextLUT
from fastenh.models.lut3d import ImageAdaptiveLUT
from fastenh.models.lut_file import LutFile
from fastenh.models.seplut import SepLUT
from fastenh.models.system import Condition, Picture, Prepared, Sides, System
from fastenh.models.zero_dce import ZeroDCE, ZeroDCEPlusPlus

__all__ = [
    "EMBEDDED",
    "SYSTEMS",
    "WEIGHTS",
    "AdaInt",
    "CSRNet",
    "Condition",
    "ImageAdaptiveLUT",
    "LocalContextLUT",
    "LutFile",
    "Picture",
    "Prepared",
    "SepLUT",
    "Sides",
    "System",
    "ZeroDCE",
    "ZeroDCEPlusPlus",
    "load",
    "save",
]
