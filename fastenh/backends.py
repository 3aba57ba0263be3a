"""Chooses the backend of a call: the compiled core, Triton, or the plain PyTorch reference.

CPU tensors take the kernel for the best instruction set of this machine; CUDA tensors take the compiled CUDA kernel, or
else the Triton kernel. All other devices, and ops without a kernel, take the reference in the op's own file.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch

from fastenh.version import __version__

CPU = ("baseline", "avx2", "avx512")
NAMES = ("auto", "reference", *CPU, "cuda", "triton")
PACKAGES = tuple(os.path.dirname(file) + os.sep for file in (__file__, torch.__file__))
REBUILD = "pip install -v --force-reinstall --no-deps .  (in a checkout of fastenh; -v shows what was missing)"


class Kernels(dict[str, Callable[..., None]]):
    """The functions of one backend by name. `gpu`: whether they are written for a GPU, that is, take tables in half
    precision where that suffices, and sum with atomics instead of per-thread partial sums."""

    def __init__(self, functions: Mapping[str, Callable[..., None]], gpu: bool) -> None:
        super().__init__(functions)
        self.gpu = gpu


def _load_core() -> tuple[ModuleType | None, str]:
    try:
        core = importlib.import_module("fastenh._C")
    except ImportError as error:
        return None, f"not built: {error}"
    if core.version != __version__:
        return None, f"built for fastenh {core.version}, this is {__version__}"
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return None, f"needs torch 2.11 or later, this is {torch.__version__}"
    return core, ""


core, core_problem = _load_core()

_chosen = os.environ.get("FASTENH_BACKEND", "auto")  # checked at first use, so that the import never fails


def chosen() -> str:
    """The current choice: "auto", or what `backend` or FASTENH_BACKEND chose."""
    return _chosen


def check_chosen() -> None:
    """Raises ValueError if FASTENH_BACKEND is unknown or cannot run here."""
    _check("FASTENH_BACKEND", _chosen)


def _check(source: str, name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{source}: expected one of {', '.join(NAMES)}; got {name!r}")
    if why_not := problem(name):
        raise ValueError(f"{source}: {name!r} cannot run here: {why_not}")


def _choose(name: str) -> None:
    global _chosen
    _check("fastenh.backend", name)
    _chosen = name
    kernels.cache_clear()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Overrides the choice of backend for the whole process until the block ends.

    `name`: "reference" for all tensors; "baseline", "avx2" or "avx512" for CPU tensors; "cuda" or "triton" for CUDA
    tensors (other devices keep their usual backend); "auto" for the usual choice. Raises ValueError if the name is
    unknown or cannot run here. The environment variable FASTENH_BACKEND sets the backend from the start.
    """
    before = _chosen
    _choose(name)
    try:
        yield
    finally:
        _choose(before)


def problem(name: str, device: torch.device | None = None) -> str:
    """Why backend `name` cannot run here (on CUDA device `device`, by default the current one); "" if it can."""
    if name in CPU:
        if core is None:
            return f"the compiled core is {core_problem}"
        if name not in core.built:
            return "not built for this kind of processor"
        if name not in core.cpu:
            return "this processor lacks the instructions"
    elif name == "cuda":
        if core is None:
            return f"the compiled core is {core_problem}"
        if not core.cuda:
            return "the core was built without CUDA (no nvcc was found then)"
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        try:
            core.cuda["probe"](torch.empty(0, device=device or "cuda"))
        except (RuntimeError, TypeError) as error:  # TypeError: the GPU is not a CUDA device, as under ROCm
            return f"{error} (built for {core.cuda_archs})"
    elif name == "triton":
        try:
            importlib.import_module("triton")
            importlib.import_module("fastenh.kernels")
        except ImportError as error:
            return str(error)
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            return "torch sees no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"
    return ""


@cache
def kernels(op: str, device: torch.device) -> Kernels | None:
    """The kernels that run `op` on tensors of a device; None for the reference."""
    check_chosen()
    if device.type == "cpu" and _chosen != "reference":
        if _chosen == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
            return _triton(op)
        if core is not None:
            variant = core.cpu[_chosen if _chosen in CPU else next(reversed(core.cpu))]
            return _threaded(variant) if op in variant else None
    if device.type == "cuda" and _chosen != "reference":
        if _chosen != "triton" and core is not None and op in core.cuda:
            why_not = problem("cuda", device)
            if not why_not:
                return Kernels(core.cuda, gpu=True)
            warning = f"fastenh does not use its CUDA kernels on {device}: {why_not}"
            warnings.warn(warning, RuntimeWarning, stacklevel=_users_stacklevel())
        if _chosen != "cuda" and not problem("triton"):
            return _triton(op)
    return None


def _users_stacklevel() -> int:
    """The stacklevel that makes a warning of the calling function point at the first line outside fastenh and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGES):
        level, frame = level + 1, frame.f_back
    return level


def _threaded(table: Mapping[str, Callable[..., None]]) -> Kernels:
    """CPU kernels take the number of threads as an additional argument: torch's number, since they share its pool."""

    def bind(kernel: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: kernel(*args, torch.get_num_threads())

    return Kernels({name: bind(kernel) for name, kernel in table.items()}, gpu=False)


def _triton(op: str) -> Kernels | None:
    """The functions of the Triton file that defines one named like the op."""
    package = importlib.import_module("fastenh.kernels")
    for stem in package.stems():
        module = importlib.import_module(f"fastenh.kernels.{stem}")
        if hasattr(module, op):
            return Kernels(vars(module), gpu=True)
    return None


def describe() -> list[tuple[str, str]]:
    """What was built and what would run here, as the (label, text) rows that `fastenh info` prints."""
    rows = [
        ("fastenh", __version__),
        ("Python", sys.version.split()[0]),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
    ]
    if core is None:
        rows += [("core", core_problem), ("to fix it", REBUILD)]
    else:
        rows += [
            ("core", f"{core.version}, compiler {core.compiler}, OpenMP {'yes' if core.openmp else 'no (one thread)'}"),
            ("core, CPU", ", ".join(core.built)),
            ("core, CUDA", core.cuda_archs or "not built"),
        ]
    for name in NAMES[2:]:
        rows.append((name, problem(name) or "runs here"))
    cpu = "reference" if core is None or _chosen == "reference" else _chosen if _chosen in CPU else list(core.cpu)[-1]
    rows.append(("CPU tensors take", cpu))
    if not torch.cuda.is_available():
        rows.append(("CUDA tensors take", "no CUDA device"))
    for device in (torch.device("cuda", i) for i in range(torch.cuda.device_count())):
        able = (n for n in ("cuda", "triton") if _chosen in ("auto", n) and not problem(n, device))
        rows.append((f"{device} tensors take", f"{next(able, 'reference')} ({torch.cuda.get_device_name(device)})"))
    return rows
