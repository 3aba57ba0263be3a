"""Builds fastenh._C, the compiled core, with ninja. Needs a C++20 compiler; takes CUDA sources in where nvcc is found.

Everything else stands in pyproject.toml. What a builder can set:
    CXX                   the C++ compiler (default: c++, g++ or clang++, whichever is found first)
    FASTENH_CUDA          0 leaves CUDA out, 1 insists on it (default: CUDA if nvcc is found)
    TORCH_CUDA_ARCH_LIST  for which cards (default: 8.0;9.0+PTX)
Sources are found by name: csrc/<stem>.cpp is compiled once per instruction set, csrc/<stem>.cu once by nvcc.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CARDS = "8.0;9.0+PTX"
OPTIMISE = [
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",  # gcc 12 warns of its own AVX-512 headers
]
PROBE = "#include <bit>\nconstinit _Float16 h = 1;\nint main() { return std::bit_cast<short>(h) == 0; }\n"
VARIANTS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    VARIANTS["avx512"] = [*VARIANTS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
                          "-mprefer-vector-width=512"]  # fmt: skip


def gencode(arch_list: str) -> list[str]:
    """`8.0;9.0+PTX` -> nvcc flags: machine code for each card, and PTX (for cards to come) where +PTX asks for it."""
    flags = []
    for arch in arch_list.replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        if not number:
            continue
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def nvcc_flags(cxx: str, arch_list: str) -> list[str]:
    host = f"-ccbin={shlex.split(cxx)[-1]}"
    return ["-O3", "-std=c++20", "-Xcompiler=-O3,-fPIC,-fvisibility=hidden,-Wall", host, *gencode(arch_list)]


def compiles(command: list[str], suffix: str, source: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"try{suffix}")
        path.write_text(source)
        return subprocess.run([*command, str(path), "-o", f"{folder}/out"], capture_output=True).returncode == 0


def find_compiler() -> str | None:
    """The C++ compiler; None, after saying why, where there is none that will do."""
    cxx = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    if cxx is None:
        why_not = "no C++ compiler found (looked for c++, g++ and clang++; CXX names another)"
    elif not shutil.which(shlex.split(cxx)[0]):
        why_not = f"CXX={cxx}: no such compiler"
    elif not compiles([*shlex.split(cxx), "-std=c++20", "-c"], ".cpp", PROBE):
        why_not = f"CXX={cxx}: does not compile C++20 with _Float16 (g++ 12, clang 15 and later do)"
    elif not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        why_not = "Python.h not found (on Debian and Ubuntu: apt install python3-dev)"
    else:
        return cxx
    if "CXX" in os.environ:
        sys.exit(f"fastenh: {why_not}")
    print(f"fastenh: {why_not}: installing without the compiled core, on the slow PyTorch reference", file=sys.stderr)
    return None


def find_nvcc(cxx: str, flags: list[str]) -> str | None:
    """nvcc, if it is wanted, found, and takes these flags and this host compiler."""
    wanted = os.environ.get("FASTENH_CUDA")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if nvcc is None:
        why_not = "nvcc is neither on the PATH nor in CUDA_HOME/bin"
    elif not compiles([nvcc, *flags, "-E"], ".cu", ""):
        why_not = f"`{nvcc} {' '.join(flags)}` fails (too old, or unfit for {cxx}?)"
    else:
        return nvcc
    if wanted == "1":
        sys.exit(f"fastenh: FASTENH_CUDA=1 asks for CUDA, but {why_not}")
    print(f"fastenh: building without CUDA: {why_not}", file=sys.stderr)
    return None


class BuildCore(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cxx = find_compiler()
        if cxx is None:
            return
        import ninja
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"core-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(self.plan(cxx, pybind11.get_include(), build / "_C.so"))
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if "MAX_JOBS" in os.environ else []
        subprocess.run([os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(build), *jobs], check=True)
        shutil.copy2(build / "_C.so", target)

    def plan(self, cxx: str, pybind11_include: str, target: Path) -> str:
        """The build.ninja file: one edge per object, header dependencies kept by the compiler."""
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST", CARDS)
        cuda = nvcc_flags(cxx, archs)
        nvcc = find_nvcc(cxx, cuda)
        openmp = ["-fopenmp"] if compiles([*shlex.split(cxx), "-std=c++20", "-fopenmp"], ".cpp", PROBE) else []
        stems = sorted(p.stem for p in (ROOT / "csrc").glob("*.cpp") if p.stem != "bindings")
        cuda_stems = sorted(p.stem for p in (ROOT / "csrc").glob("*.cu")) if nvcc else []
        python = [f"-isystem{pybind11_include}", f"-isystem{sysconfig.get_paths()['include']}"]
        tables = " ".join(f"VARIANT({v}, {' '.join(f'STEM({s}, {v})' for s in stems)})" for v in VARIANTS)
        defines = [
            f"-DFASTENH_VARIANTS='{tables}'",
            f"-DFASTENH_TABLES='{' '.join(f'STEM({s}, {v})' for v in VARIANTS for s in stems)}'",
            f"-DFASTENH_CUDA_TABLES='{' '.join(f'STEM({s}, cuda)' for s in cuda_stems)}'",
            f"-DFASTENH_CUDA_ARCHS='\"{archs if cuda_stems else ''}\"'",
            f"-DFASTENH_VERSION='\"{self.distribution.get_version()}\"'",
        ]
        lines = [
            "rule cxx",
            "  command = $compiler $flags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $compiler $in -o $out $flags",
            "",
        ]
        objects = []

        def compile_edge(source: str, name: str, compiler: str, flags: list[str]) -> None:
            objects.append(name)
            path = str(ROOT / "csrc" / source).replace(" ", "$ ").replace(":", "$:")
            lines.extend([f"build {name}: cxx {path}", f"  compiler = {compiler}", f"  flags = {' '.join(flags)}"])

        compile_edge("bindings.cpp", "bindings.o", cxx, [*OPTIMISE, "-O2", *openmp, *python, *defines])
        for stem in stems:
            for variant, flags in VARIANTS.items():
                table = [f"-DFASTENH_TABLE={stem}_{variant}"]
                compile_edge(f"{stem}.cpp", f"{stem}.{variant}.o", cxx, [*OPTIMISE, *openmp, *flags, *table])
        for stem in cuda_stems:
            compile_edge(f"{stem}.cu", f"{stem}.cuda.o", str(nvcc), [*cuda, f"-DFASTENH_TABLE={stem}_cuda"])

        if cuda_stems:  # nvcc knows where cudart_static lies, and takes it by default
            linker, link = str(nvcc), ["-shared", *cuda, *(f"-Xcompiler={f}" for f in openmp)]
        else:
            linker, link = cxx, ["-shared", *openmp]
            link += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        lines.append(f"build {target.name}: link {' '.join(objects)}")
        lines.extend([f"  compiler = {linker}", f"  flags = {' '.join(link)}", ""])
        return "\n".join(lines)


if __name__ == "__main__":
    # setuptools never clears its copy of the package: files deleted since would go into the next wheel.
    for stale in (ROOT / "build").glob("lib*"):
        shutil.rmtree(stale)

    setup(
        packages=["fastenh.kernels"]
        + [".".join(p.parent.relative_to(ROOT).parts) for p in sorted((ROOT / "fastenh").rglob("__init__.py"))],
        package_dir={"fastenh": "fastenh", "fastenh.kernels": "kernels"},
        package_data={"fastenh": ["py.typed", "*.pyi", "weights/*"]},
        # optional: nothing to copy where there is no compiler. Errors of a compiler that is there still stop the build.
        ext_modules=[Extension("fastenh._C", sources=[], optional=True)],
        cmdclass={"build_ext": BuildCore},
    )
