"""kernels/*.py: in Triton's interpreter against the reference, compiled ahead of time for two cards, and on a GPU.

Triton decides when it is imported whether it interprets, so the first of these run in a process of their own.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from gpu_cases import CASES, assert_agree, every_case, fewer_cases, run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import cuda_report

import fastenh
from fastenh import backends
from fastenh.ops import channel_split, context, curve, local_context, lut, lut_1d

triton = pytest.importorskip("triton", reason="Triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize("cases", ["curve", "not curve"])
def test_in_the_interpreter(cases: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::TestInterpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([*command, "-k", cases], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


class TestInterpreted:
    __test__ = INTERPRETED

    @fewer_cases
    def test_agrees_with_the_reference(
        self, case: str, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with fastenh.backend("reference"):
            expected = run(case, dtype, layout, "cpu")
        with fastenh.backend("triton"):
            for module in (channel_split, context, curve, local_context, lut, lut_1d):
                monkeypatch.setattr(module._op, "reference", None)  # only kernels may run
            monkeypatch.setattr(backends, "core", None)
            actual = run(case, dtype, layout, "cpu")
        assert_agree(actual, expected, half=2**-9 if case.startswith("local context") else 1e-5)


class Card:
    """The part of a GPU's driver that the compiler uses."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # kernels are cached by the device's number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


SLOW = ("local context, k = 7",)  # Triton compiles it for minutes
ALIKE = (  # cases that use the same kernels as another one
    "split, nothing passes", "split, all passes", "voxels, k = 1", "lut, one cell", "lut, vertices, tetrahedral",
    "lut 1d, two entries", "lut 1d, then 3d, tetrahedral", "curve, of one value", "curve, of one pixel",
)  # fmt: skip
SOME = ("split", "voxels, aligned rows", "lut", "lut, pixel weights", "curve", "curve, larger", "local context")
COMPILED = [
    *((case, torch.float16, "contiguous", 90) for case in CASES if case not in SLOW + ALIKE),
    *((case, torch.float16, "channels_last", 90) for case in ("split", "voxels", "curve")),
    ("lut", torch.float16, "every other", 90),
    *((case, torch.float32, "contiguous", 90) for case in SOME),
    *((case, torch.bfloat16, "contiguous", 90) for case in ("lut, pixel weights", "curve")),
    *((case, torch.float16, "contiguous", 80) for case in SOME[1::2]),
    ("local context", torch.float16, "contiguous", 80),
    ("lut", torch.uint8, "contiguous", 90),
    ("lut 1d, domain", torch.uint16, "contiguous", 80),
    ("curve, larger, shared", torch.uint16, "contiguous", 90),
]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize(
    ("case", "dtype", "layout", "capability"),
    COMPILED,
    ids=[f"{case}, {str(dtype).removeprefix('torch.')}, {layout}, {card}" for case, dtype, layout, card in COMPILED],
)
def test_compiles_ahead_of_time(
    case: str, dtype: torch.dtype, layout: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To machine code without spills that cost time: `benchmarks/cuda_report.py` has the rule."""
    binaries = []
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        assert "enable_fp_fusion" in options, "Triton's default changes with 3.10"
        binaries.append(launch(self, *args, grid=grid, warmup=True, **options))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", Card(capability))
    monkeypatch.setattr(backends, "kernels", lambda op, device: backends._triton(op))
    run(case, dtype, layout, "cpu")
    assert len(binaries) >= (2 if dtype.is_floating_point else 1), "forward and backward are kernels"
    for binary in binaries:
        assert binary.metadata.target.arch == capability
        machine_code = tmp_path / "cubin"
        machine_code.write_bytes(binary.asm["cubin"])
        (kernel,) = cuda_report.kernels(machine_code, triton.knobs.nvidia.cuobjdump.path)
        assert kernel.instructions > 50 and not cuda_report.unfit([kernel])
        if kernel.stack:
            warnings.warn(f"{kernel.name} spills: {kernel.stack} bytes, {kernel.spill_share:.1%}", stacklevel=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@every_case
def test_agrees_with_the_reference_on_the_gpu(case: str, dtype: torch.dtype, layout: str) -> None:
    if case in SLOW:
        pytest.skip("takes Triton minutes to compile")
    with fastenh.backend("reference"):
        expected = run(case, dtype, layout, "cpu")
    with fastenh.backend("triton"):
        actual = run(case, dtype, layout, "cuda")
    assert_agree(actual, expected, half=2**-9 if case.startswith("local context") else 1e-5)
