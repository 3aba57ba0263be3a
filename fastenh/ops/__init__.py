"""The ops, one file each: what it computes, its checks, its reference in plain PyTorch, and the calls of its kernels.

Every op takes images of any strides, any batch >= 1 and any size from 1x1 up, and returns the input's dtype and memory
format; `out=` writes into a tensor of yours. `fastenh.backend` chooses the backend, and `fastenh info` shows which one
runs. The kernels have first derivatives in reverse mode, also under torch.func; forward mode and second derivatives
fall back to the reference.
"""

from fastenh.ops.channel_split import channel_split_transform
from fastenh.ops.context import context_voxels
from fastenh.ops.curve import curve_iterate
from fastenh.ops.local_context import LocalContextParams, local_context_retouch
from fastenh.ops.lut import lut_transform
from fastenh.ops.lut_1d import lut_1d_transform

__all__ = [
    "LocalContextParams",
    "channel_split_transform",
    "context_voxels",
    "curve_iterate",
    "local_context_retouch",
    "lut_1d_transform",
    "lut_transform",
]
