"""The op families, one file each: what it computes, its checks, its reference in plain PyTorch, how kernels are called.

Every op takes images of any strides, batch >= 1, sizes from 1x1 up, and gives the input's dtype and memory format;
`out=` writes into a tensor of yours. `fastenh.backend` and `fastenh info` tell and choose which code runs. The kernels
have first derivatives in reverse mode, also under torch.func; forward mode and second derivatives are the reference's.
"""

from fastenh.ops.channel_split import channel_split_transform
from fastenh.ops.context import context_voxels
from fastenh.ops.curve import curve_iterate
from fastenh.ops.local_context import LocalContextParams, local_context_retouch
from fastenh.ops.lut import lut_transform

__all__ = [
    "LocalContextParams",
    "channel_split_transform",
    "context_voxels",
    "curve_iterate",
    "local_context_retouch",
    "lut_transform",
]
