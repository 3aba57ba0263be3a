"""What a build makes: the wheel, the source archive, the core without tools, the core built twice, its symbols."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import fastenh
from fastenh import backends

ROOT = Path(__file__).resolve().parent.parent
CXX = shutil.which("c++")


def copy_checkout(target: Path) -> Path:
    left_out = shutil.ignore_patterns(".*", "build", "dist", "demo", "__pycache__", "*.egg-info", "*.so")
    return Path(shutil.copytree(ROOT, target, ignore=left_out))


def build(checkout: Path, kind: str, target: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """What pip does inside: "wheel" or "sdist" of a checkout into a folder. None takes a variable away."""
    variables = {"CXX": None, "FASTENH_CUDA": None, "MAX_JOBS": "2", **environment}
    merged = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    return subprocess.run([sys.executable, "-c", code], cwd=checkout, env=merged, capture_output=True, text=True)


@pytest.fixture(scope="module")
def without_tools(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A wheel and a source archive made where no program is found, and what was said meanwhile."""
    folder = tmp_path_factory.mktemp("without_tools")
    checkout = copy_checkout(folder / "checkout")
    dist = folder / "dist"
    done = build(checkout, "wheel", dist, PATH=str(folder))
    assert done.returncode == 0, done.stderr
    assert build(checkout, "sdist", dist, PATH=str(folder)).returncode == 0
    return done, dist


def names_in_wheel(folder: Path) -> list[str]:
    (wheel,) = folder.glob("*.whl")
    return [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]


def test_wheel_holds_the_package_and_nothing_else(without_tools: tuple[object, Path]) -> None:
    package = [p.relative_to(ROOT) for p in (ROOT / "fastenh").rglob("*.py")]
    package += [Path("fastenh/py.typed"), Path("fastenh/_C.pyi")]
    package += [p.relative_to(ROOT) for p in (ROOT / "fastenh" / "weights").iterdir() if p.is_file()]
    package += [Path("fastenh/kernels") / p.name for p in (ROOT / "kernels").glob("*.py")]
    assert sorted(names_in_wheel(without_tools[1])) == sorted(p.as_posix() for p in package)


def test_source_archive_builds_the_same_wheel(without_tools: tuple[object, Path], tmp_path: Path) -> None:
    (archive,) = without_tools[1].glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    done = build(unpacked, "wheel", tmp_path / "dist", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(names_in_wheel(tmp_path / "dist")) == sorted(names_in_wheel(without_tools[1]))


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a checkout, or no git")
def test_source_archive_holds_all_that_git_holds(without_tools: tuple[object, Path]) -> None:
    """So that tests, benchmarks and documentation work from it too."""
    left_out = {".ci/run", ".gitignore", ".pre-commit-config.yaml"}  # for work on the repository alone
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    held = {name for name in output.split("\0") if name and (ROOT / name).exists()}
    assert left_out < held
    (archive,) = without_tools[1].glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {member.name.split("/", 1)[1] for member in tar.getmembers() if member.isfile()}
    of_setuptools = {name for name in names if name in ("PKG-INFO", "setup.cfg") or "fastenh.egg-info/" in name}
    assert names - of_setuptools == held - left_out


def test_without_a_compiler_it_installs_and_runs_on_the_reference(
    without_tools: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    done, dist = without_tools
    assert "no C++ compiler found" in done.stderr and "on the slow PyTorch reference" in done.stderr
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import fastenh, torch\n"
        "x = torch.rand(1, 3, 4, 4)\n"
        "assert fastenh.ops.context_voxels(x, torch.rand(1, 9, 4, 4)).shape == (1, 27, 4, 4)\n"
        "print(fastenh.__file__)"
    )
    # -S: an editable install of the checkout would lend its core
    dependencies = str(Path(torch.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), dependencies])}
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(tmp_path))
    assert ran.stderr.count("RuntimeWarning") == 1 and "To fix it: pip install" in ran.stderr


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CXX": "no-such-compiler"}, "CXX=no-such-compiler: no such compiler"),
        ({"CXX": "false"}, "CXX=false: does not compile C++20"),
        ({"FASTENH_CUDA": "1"}, "FASTENH_CUDA=1 asks for CUDA, but nvcc is neither on the PATH nor in CUDA_HOME/bin"),
        ({"FASTENH_CUDA": "1", "nvcc": "false"}, "FASTENH_CUDA=1 asks for CUDA, but `"),
    ],
)
def test_what_was_asked_for_by_hand_and_cannot_be_stops_the_build(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool, name in {"c++": "c++", "as": "as", "false": "false", "nvcc": environment.pop("nvcc", "")}.items():
        if name:
            (tools / tool).symlink_to(str(shutil.which(name)))
    checkout = copy_checkout(tmp_path / "checkout")
    done = build(checkout, "wheel", tmp_path / "dist", PATH=str(tools), CUDA_HOME=str(tmp_path), **environment)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("dist/*.whl"))


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
def test_the_core_builds_in_steps(tmp_path: Path) -> None:
    """Only what changed is compiled again. One kernel file, without CUDA, so that it takes seconds."""
    checkout = copy_checkout(tmp_path / "checkout")
    for source in (checkout / "csrc").glob("*.cpp"):
        if source.stem not in ("bindings", "channel_split"):
            source.unlink()

    def built() -> dict[str, int]:
        done = build(checkout, "wheel", tmp_path / "dist", FASTENH_CUDA="0")
        assert done.returncode == 0, done.stderr
        return {p.name: p.stat().st_mtime_ns for p in checkout.glob("build/core-*/*") if p.suffix in (".o", ".so")}

    first = built()
    variants = {f"channel_split.{variant}.o" for variant in backends.core.built}
    assert first.keys() == {"bindings.o", "_C.so", *variants}
    assert any(name.startswith("fastenh/_C.") for name in names_in_wheel(tmp_path / "dist"))
    assert built() == first, "nothing changed, nothing is built"

    header = checkout / "csrc" / "rows.h"
    header.write_text(header.read_text() + "\n")
    second = built()
    assert {name for name in first if second[name] != first[name]} == {"_C.so", *variants}

    (plan,) = checkout.glob("build/core-*/build.ninja")
    assert "-march=native" not in plan.read_text()


# ---- the core that is installed ----

OBJECTS = [
    path
    for variant in backends.core.built
    for stem in sorted(p.stem for p in (ROOT / "csrc").glob("*.cpp") if p.stem != "bindings")
    for path in ROOT.glob(f"build/core-*/{stem}.{variant}.o")
]


@pytest.mark.skipif(not OBJECTS, reason="build/ holds no objects: the core was not built in this checkout")
@pytest.mark.skipif(not shutil.which("nm") or not shutil.which("objdump"), reason="no nm and objdump")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_an_object_for_an_instruction_set_exports_its_table_alone(path: Path) -> None:
    """A template or inline function that the linker may merge would bring AVX-512 code to machines that have none; so
    would code that runs when the library is loaded."""
    symbols = subprocess.run(["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True)
    exported = [line.split(maxsplit=2) for line in symbols.stdout.splitlines()]
    names = {name for _, kind, name in exported if not kind.islower() or kind in "uvw"}
    stem, variant, _ = path.name.split(".")
    assert names - {"DW.ref.__gxx_personality_v0"} == {f"fastenh::{stem}_{variant}"}
    sections = subprocess.run(["objdump", "-h", str(path)], capture_output=True, text=True, check=True).stdout
    assert ".init_array" not in sections and ".ctors" not in sections


@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf")
def test_the_core_needs_no_torch_and_no_driver() -> None:
    assert backends.core.version == fastenh.__version__
    dynamic = subprocess.run(["readelf", "-d", backends.core.__file__], capture_output=True, text=True, check=True)
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.stdout.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [name for name in needed if name.startswith(("libtorch", "libc10", "libcud", "libnv", "libpython"))]


# The newest version of each library's symbols that manylinux_2_34 allows (auditwheel's policy for x86_64).
MANYLINUX = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (7, 0, 0)}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="manylinux is for systems with glibc")
@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf")
@pytest.mark.parametrize("library", MANYLINUX)
def test_the_core_needs_no_newer_symbols_than_manylinux_allows(library: str) -> None:
    """Of libgcc none that our own code would bring in; of the others, where the system has no newer ones to give."""
    if library != "GCC" and tuple(map(int, platform.libc_ver()[1].split("."))) > (2, 36):
        pytest.skip("a core built on a system newer than Debian 12 runs on such systems alone")
    command = ["readelf", "-W", "--version-info", backends.core.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    versions = [tuple(map(int, v.split("."))) for v in re.findall(rf"Name: {library}_([\d.]+)", text)]
    assert versions and max(versions) <= MANYLINUX[library]


@pytest.mark.skipif(not backends.core.cuda_archs, reason="the core was built without CUDA")
def test_the_core_holds_machine_code_for_every_card_asked_for() -> None:
    content = Path(backends.core.__file__).read_bytes()
    for arch in backends.core.cuda_archs.replace(" ", ";").split(";"):
        assert f"-arch sm_{arch.removesuffix('+PTX').replace('.', '')} ".encode() in content  # ptxas notes what it made
