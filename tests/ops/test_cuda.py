"""csrc/*.cu: on a GPU where there is one; and the same sources built for the CPU, by the laws of their ops."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_cases import every_case, run
from laws import VARIANTS
from test_channel_split import TestLaws as ChannelSplitLaws
from test_context import TestLaws as ContextLaws

import fastenh
from fastenh import backends

pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")

ROOT = Path(__file__).resolve().parent.parent.parent
SANITIZE = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def core_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A core whose CPU kernels are the CUDA kernels: they take a stream where the CPU's take a number of threads."""
    cxx = os.environ.get("CXX") or shutil.which("c++")
    if not cxx:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("core_on_cpu")
    sources = sorted((ROOT / "csrc").glob("*.cu"))
    tables = " ".join(f"STEM({source.stem}, baseline)" for source in sources)
    includes = [f"-I{ROOT}/tests/cuda_on_cpu", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]

    def build(*arguments: str) -> None:
        done = subprocess.run([cxx, "-std=c++20", "-fPIC", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    for source in sources:
        table = f"-DFASTENH_TABLE={source.stem}_baseline"
        build("-O1", *SANITIZE, *includes, table, "-x", "c++", "-c", str(source), "-o", f"{folder}/{source.stem}.o")
    build(
        "-O0", *includes, f"-DFASTENH_VARIANTS=VARIANT(baseline, {tables})", f"-DFASTENH_TABLES={tables}",
        "-DFASTENH_CUDA_TABLES=", '-DFASTENH_CUDA_ARCHS=""', '-DFASTENH_VERSION="stand-in"',
        "-c", str(ROOT / "csrc" / "bindings.cpp"), "-o", f"{folder}/bindings.o",
    )  # fmt: skip
    build("-shared", *SANITIZE, *map(str, folder.glob("*.o")), "-o", f"{folder}/_C.so")
    spec = importlib.util.spec_from_file_location("_C", folder / "_C.so")
    assert spec and spec.loader
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    return SimpleNamespace(cpu=dict.fromkeys(VARIANTS, core.cpu["baseline"]), built=VARIANTS, cuda={})


class OnCpu:
    @pytest.fixture(autouse=True)
    def with_cuda_sources(self, core_on_cpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "core", core_on_cpu)
        backends.kernels.cache_clear()
        assert f"{self.op.name}_backward" in backends.kernels(self.op.name, "cpu")


class TestChannelSplitOnCpu(OnCpu, ChannelSplitLaws):
    pass


class TestContextOnCpu(OnCpu, ContextLaws):
    pass


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
