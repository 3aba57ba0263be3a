"""kernels/*.py: in Triton's interpreter against the reference, compiled ahead of time for two cards, and on a GPU.

Triton decides when it is imported whether it interprets, so the first of these run in a process of their own.
"""

import os
import subprocess
import sys

import pytest
import torch
from gpu_cases import every_case, run

import fastenh
from fastenh import backends

triton = pytest.importorskip("triton", reason="Triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::TestInterpreted"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


class TestInterpreted:
    __test__ = INTERPRETED

    @every_case
    def test_agrees_with_the_reference(
        self, case: str, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with fastenh.backend("reference"):
            expected = run(case, dtype, layout, "cpu")
        with fastenh.backend("triton"):
            monkeypatch.setattr("fastenh.ops.op.Op._reference_backward", None)  # only kernels may run
            monkeypatch.setattr(backends, "core", None)
            actual = run(case, dtype, layout, "cpu")
        torch.testing.assert_close(actual, expected)


class Card:
    """As much of a GPU's driver as the compiler asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # what is compiled for a device is remembered by its number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["split", "voxels"])
def test_compiles_ahead_of_time(
    case: str, dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = []
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        binaries.append(launch(self, *args, grid=grid, warmup=True, **options))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", Card(capability))
    monkeypatch.setattr(backends, "kernels", lambda op, device_type: backends._triton(op))
    run(case, dtype, "contiguous", "cpu")
    assert len(binaries) == 2, "forward and backward are kernels"
    for binary in binaries:
        assert binary.metadata.target.arch == capability
        assert binary.asm["cubin"].startswith(b"\x7fELF")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@every_case
def test_agrees_with_the_reference_on_the_gpu(case: str, dtype: torch.dtype, layout: str) -> None:
    with fastenh.backend("reference"):
        expected = run(case, dtype, layout, "cpu")
    with fastenh.backend("triton"):
        torch.testing.assert_close(run(case, dtype, layout, "cuda"), expected)
