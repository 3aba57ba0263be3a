"""csrc/*.cu: on a GPU where there is one; and the same sources built for the CPU, under sanitizers, by their ops' laws.

tests/cuda_on_cpu stands in for CUDA then. AddressSanitizer has to be the first library of a process, so the laws run in
one of their own.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from gpu_cases import every_case, run

import fastenh

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC, STAND_IN = ROOT / "csrc", ROOT / "tests" / "cuda_on_cpu"
STEMS = sorted(p.stem for p in CSRC.glob("*.cu") if (ROOT / "tests" / "ops" / f"test_{p.stem}.py").is_file())
CXX = shutil.which("g++")
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]

# ---- built for the CPU ----

on_cpu = pytest.mark.skipif(
    not CXX or platform.machine() != "x86_64", reason="the stand-in for CUDA needs g++ and x86-64"
)


def gcc(*arguments: object) -> None:
    done = subprocess.run([str(CXX), "-std=c++20", "-fPIC", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build_for_cpu(source: Path, block: Path, target: Path, *arguments: object) -> Path:
    """A .cu file as a program, or with arguments as something else."""
    flags = ["-O1", "-g1", "-fno-strict-aliasing", *SANITIZE, f"-I{STAND_IN}"]
    gcc(*flags, "-x", "c++", source, "-x", "none", block, *arguments, "-o", target)
    return target


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs the threads of a block."""
    built = tmp_path_factory.mktemp("block") / "block.o"
    gcc("-O2", "-c", STAND_IN / "block.cpp", "-o", built)
    return built


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a core with one table, whose kernels take the stream where kernels for CPUs take a number of threads."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    built, table = tmp_path_factory.mktemp("bindings") / "bindings.o", "STEM(kernels, on_cpu)"
    python = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_paths()['include']}"]
    gcc("-O0", *python, f"-DFASTENH_TABLES={table}", f"-DFASTENH_VARIANTS=VARIANT(baseline, {table})",
        "-DFASTENH_CUDA_TABLES=", '-DFASTENH_CUDA_ARCHS=""', '-DFASTENH_VERSION="stand-in"',
        "-c", CSRC / "bindings.cpp", "-o", built)  # fmt: skip
    return built


def core(source: Path, block: Path, bindings: Path, folder: Path) -> Path:
    """A core of the kernels in one .cu file."""
    return build_for_cpu(source, block, folder / "_C.so", "-DFASTENH_TABLE=kernels_on_cpu", bindings, "-shared")


def laws(stem: str, built: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the op's laws with that core."""
    first = [  # and the library of exceptions, which the sanitizer looks for when it is loaded
        subprocess.run([str(CXX), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        **os.environ,
        "FASTENH_CUDA_ON_CPU": str(built),
        "PYTHONPATH": str(STAND_IN),
        "LD_PRELOAD": " ".join(first),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    }
    # What reaches behind a tensor the sanitizer sees itself.
    tests = [f"{ROOT}/tests/ops/test_{stem}.py::TestLaws", "-k", "not test_touches_nothing_behind_its_tensors"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "plugin", *options, *tests]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cores(block: Path, bindings: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The core of a stem: all are built side by side, beginning now."""
    pool = ThreadPoolExecutor(os.cpu_count())
    building = {
        stem: pool.submit(core, CSRC / f"{stem}.cu", block, bindings, tmp_path_factory.mktemp(stem)) for stem in STEMS
    }
    return lambda stem: building[stem].result()


@pytest.fixture(scope="module")
def check(block: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_for_cpu(STAND_IN / "check.cu", block, tmp_path_factory.mktemp("check") / "check")


@on_cpu
@pytest.mark.parametrize(
    ("fault", "order", "message"),
    [
        ("none", "forward", "done\n9120"),
        ("none", "reversed", "done\n9120"),
        ("barrier left out", "forward", "done\n-?nan"),  # read before it was written
        ("barrier not for all", "forward", "block 0.*0 to 31: ended.*32 to 95: wait at __syncthreads.*\n4560"),
        ("barrier not for all", "reversed", "block 1.*0 to 31: ended.*32 to 95: wait at __syncthreads.*\n4560"),
        ("lane outside", "forward", "thread 0 wants the value of lane 16, which takes no part"),
        ("odd address", "forward", "misaligned address .* requires 16 byte alignment"),
        ("beyond memory", "forward", "AddressSanitizer: use-after-poison"),
        ("memory unasked", "forward", "51200 bytes of shared memory, not asked for before"),
    ],
)
def test_the_stand_in_notices(fault: str, order: str, message: str, check: Path) -> None:
    command = [check, fault.replace(" ", "_"), order]
    done = subprocess.run(command, env={"ASAN_OPTIONS": "detect_leaks=0"}, capture_output=True, text=True)
    assert re.search(message, done.stdout + done.stderr, re.DOTALL), done.stdout + done.stderr
    if fault == "none":
        assert done.stdout == "done\n9120\n"


@on_cpu
@pytest.mark.parametrize("stem", STEMS)
def test_laws_hold_on_the_cpu(stem: str, cores: Callable[[str], Path]) -> None:
    done = laws(stem, cores(stem))
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


# ---- on a GPU ----


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@every_case
def test_agrees_with_the_reference_on_the_gpu(case: str, dtype: torch.dtype, layout: str) -> None:
    with fastenh.backend("reference"):
        expected = run(case, dtype, layout, "cpu")
    with fastenh.backend("cuda"):
        torch.testing.assert_close(run(case, dtype, layout, "cuda"), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two CUDA devices")
def test_launch_leaves_the_current_device_as_it_was() -> None:
    x = torch.rand(1, 2, 4, 4, device="cuda:1")
    with fastenh.backend("cuda"):
        result = fastenh.ops.channel_split_transform(x, x[:, 1:], x[:, 1:])
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(result[:, 1:], x[:, 1:] * x[:, 1:] + x[:, 1:])
