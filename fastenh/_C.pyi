"""The compiled core: tables of kernels that fill tensors the caller allocated. Arguments are positional."""

from collections.abc import Callable

version: str
compiler: str
openmp: bool
cuda_archs: str  # for which cards CUDA kernels were compiled; "" without CUDA
built: list[str]  # instruction sets compiled in
cpu: dict[str, dict[str, Callable[..., None]]]  # kernels by instruction set, those this machine runs, slowest first
cuda: dict[str, Callable[..., None]]
