"""csrc/*.cu: on a GPU where there is one; and the same sources built for the CPU, under sanitizers.

There tests/cuda_on_cpu stands in for CUDA, and the tests of the ops run by it. AddressSanitizer has to be the first
library of a process, so each op's tests run in a process of their own.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from gpu_cases import assert_agree, every_case
from gpu_cases import run as run_case

import fastenh

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC, STAND_IN = ROOT / "csrc", ROOT / "tests" / "cuda_on_cpu"
CXX = shutil.which("g++")
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]

# ---- built for the CPU ----

Changes = tuple[tuple[str, str], ...]  # replacements in a source: old text, new text


class Suite(NamedTuple):
    """Tests of an op, run with its CUDA kernels on the CPU."""

    stem: str
    changes: Changes = ()
    tests: str = ""  # pytest -k
    error: str = ""  # that these must detect


LEFT_OUT = [
    "test_more_than_two_to_the_31_elements",  # too large
    "test_large_results_may_begin_anywhere",
    "test_gradient_of_a_flat_picture",
    "test_gradient_of_the_luts_is_reproducible",
    "test_gradient_does_not_depend_on_the_number_of_threads",  # of CPUs
    "test_touches_nothing_behind_its_tensors",  # AddressSanitizer sees it anyway
    "test_reference_is_differentiated_right",  # runs no kernel
    "test_operators_keep_torchs_rules",  # tests the PyTorch side, as the next three
    "test_compiles_and_exports_as_one_operator",
    "test_no_second_derivative_in_silence",
    "test_vmap_is_a_loop",
    "test_bad_arguments",
]
LEFT_OUT_OF = {
    "local_context": [
        "test_gradients_are_the_references",  # runs no kernel
        # Larger windows use the same code as small ones and take longer.
        "(test_widths_of_the_paper and (5 or 7) and (channels_last or bfloat16))",
        "(test_tiles_with_their_halo_are_the_whole and (5 or 7) and forward)",
    ]
}
SMALLER = {  # the kernels for large pictures, on small ones; and rows in several launches
    "lut": ("int64_t many = 3 << 20;", "int64_t many = 200;"),
    "channel_split": ("int64_t most_packs = 0x7fffffff;", "int64_t most_packs = 1500;"),
}

SUITES = [
    Suite(
        stem,
        (SMALLER[stem],) if stem in SMALLER else (),
        f"not ({' or '.join(LEFT_OUT + LEFT_OUT_OF.get(stem, []))})",
    )
    for stem in sorted(p.stem for p in CSRC.glob("*.cu"))
    if (ROOT / "tests" / "ops" / f"test_{stem}.py").is_file()
]
SUMS, BARRIER = "by_warp[threadIdx.x / 32] = sums;\n", "    __syncthreads();\n"
WITH_ERRORS = [
    Suite("context", (("x + n < width)", "x + n <= width)"),), "test_rows_of_whole_packs", "AddressSanitizer"),
    Suite("channel_split", ((SUMS + BARRIER, SUMS),), "test_whole_packs", "not close"),
]

on_cpu = pytest.mark.skipif(
    not CXX or platform.machine() != "x86_64", reason="the stand-in for CUDA needs g++ and x86-64"
)


def gcc(*arguments: object) -> str:
    done = subprocess.run([str(CXX), "-std=c++20", "-fPIC", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_for_cpu(source: Path, block: Path, target: Path, *arguments: object) -> Path:
    """A .cu file as a program, or with arguments as something else."""
    flags = ["-O0", "-g1", "-fno-strict-aliasing", *SANITIZE, f"-I{STAND_IN}", f"-I{CSRC}"]
    gcc(*flags, "-x", "c++", source, "-x", "none", block, *arguments, "-o", target)
    return target


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of the stand-in that runs the threads of a block."""
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


def run(suite: Suite, block: Path, bindings: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    source = (CSRC / f"{suite.stem}.cu").read_text()
    for old, new in suite.changes:
        assert source.count(old) == 1, f"{suite.stem}.cu: expected once: {old}"
        source = source.replace(old, new)
    (folder / f"{suite.stem}.cu").write_text(source)
    core = ["-DFASTENH_TABLE=kernels_on_cpu", bindings, "-shared"]
    environment = {
        **os.environ,
        "FASTENH_CUDA_ON_CPU": str(build_for_cpu(folder / f"{suite.stem}.cu", block, folder / "_C.so", *core)),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(STAND_IN), os.environ.get("PYTHONPATH")])),
        # The sanitizer, and the library of exceptions, which it looks for when it is loaded.
        "LD_PRELOAD": " ".join(gcc(f"-print-file-name={name}").strip() for name in ("libasan.so", "libstdc++.so")),
        # Fresh memory is NaN.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:max_malloc_fill_size=1000000000:malloc_fill_byte=255",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-qx", "--capture=sys", "-p", "no:cacheprovider", "-p", "plugin"]
    tests = ROOT / "tests" / "ops" / f"test_{suite.stem}.py"
    return subprocess.run([*command, "-k", suite.tests, str(tests)], env=environment, capture_output=True, text=True)


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
        ("barrier left out", "reversed", "done\n-?nan"),
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
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.stem)
def test_on_the_cpu(suite: Suite, block: Path, bindings: Path, tmp_path: Path) -> None:
    done = run(suite, block, bindings, tmp_path)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@on_cpu
@pytest.mark.parametrize("suite", WITH_ERRORS, ids=lambda suite: suite.stem)
def test_finds_errors(suite: Suite, block: Path, bindings: Path, tmp_path: Path) -> None:
    done = run(suite, block, bindings, tmp_path)
    assert done.returncode != 0 and suite.error in done.stdout + done.stderr, done.stdout + done.stderr


# ---- on a GPU ----


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@every_case
def test_agrees_with_the_reference_on_the_gpu(case: str, dtype: torch.dtype, layout: str) -> None:
    with fastenh.backend("reference"):
        expected = run_case(case, dtype, layout, "cpu")
    with fastenh.backend("cuda"):
        assert_agree(run_case(case, dtype, layout, "cuda"), expected, half=2**-9)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two CUDA devices")
def test_launch_leaves_the_current_device_as_it_was() -> None:
    x = torch.rand(1, 2, 4, 4, device="cuda:1")
    with fastenh.backend("cuda"):
        result = fastenh.ops.channel_split_transform(x, x[:, 1:], x[:, 1:])
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(result[:, 1:], x[:, 1:] * x[:, 1:] + x[:, 1:])
