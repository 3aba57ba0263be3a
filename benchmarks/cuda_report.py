"""Reports registers, stack frame, spills, shared memory and instructions per pixel of every compiled CUDA kernel.

    python benchmarks/cuda_report.py                 the kernels in the installed core
    python benchmarks/cuda_report.py csrc/lut.cu     those of a file, compiled with the flags of setup.py

It reads machine code (SASS), so it needs no GPU. It fails if a kernel has spills that cost time.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tables import header, row

ROOT = Path(__file__).resolve().parent.parent

CAPTION = """\
Each column for {archs}. Registers: per thread. Stack: bytes of a thread's stack frame. Spills: instructions that load
or store spilled registers or arrays (LDL, STL). Shared: bytes of shared memory that are fixed in the code (CUDA
reserves 1024 from sm_90 on; a launch may ask for more). SASS: all instructions of the kernel. SASS per pixel: those in
its outermost loop (in the whole kernel if it has none) divided by the pixels that a thread takes in one pass of it, the
kernel's last template argument. Inner loops count once and branches with both sides: this counts code, not executed
instructions."""


# Which spills are failures. One release of ptxas fits a kernel into registers, the next stores a few values before a
# loop and loads them in it or after it: that is reported and allowed. Failures are spills that cost time: more than one
# instruction in 50 of any loop or of the kernel, or a frame above a quarter of the size of a thread's registers.
MOST_SPILLS = 1 / 50
MOST_STACK = 256  # bytes


@dataclass(frozen=True)
class Kernel:
    """A kernel as compiled for one architecture."""

    arch: str  # "sm_90"
    stem: str  # the .cu file it comes from
    signature: str  # in the form of c++filt and profilers
    registers: int
    stack: int
    shared: int
    spills: int
    instructions: int
    in_loop: int  # instructions of the outermost loop or, without one, of the kernel
    spill_share: float  # fraction of spills among the instructions of a loop or of the kernel, the largest of them

    @property
    def name(self) -> str:
        """Without namespaces and parameters: transform_kernel<__half, Layout 0, 8>"""
        short = re.sub(r"\((?:\w+::|\(anonymous namespace\)::)*(\w+)\)(\d+)", r"\1 \2", self.signature)  # an enum
        short = re.sub(r"^void |\w+::(?!\w+::)|\(anonymous namespace\)::", "", short)
        return short[: short.index("(")] if "(" in short else short

    @property
    def pixels(self) -> int | None:
        last = re.search(r"(\d+)>$", self.name)
        return int(last[1]) if last else None

    @property
    def per_pixel(self) -> float | None:
        return self.in_loop / self.pixels if self.pixels else None


# ---- machine code ----


def tool(name: str) -> str:
    """A program of the CUDA toolkit, from the PATH or from Triton."""
    found = shutil.which(name)
    if found is None and (triton := importlib.util.find_spec("triton")) and triton.origin:
        found = shutil.which(name, path=str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    if found is None:
        raise FileNotFoundError(f"{name} is neither on the PATH nor in an installed Triton")
    return found


def output(*command: object, text: str | None = None) -> str:
    return subprocess.run([*map(str, command)], input=text, capture_output=True, text=True, check=True).stdout


def kernels(binary: Path, cuobjdump: str | None = None) -> list[Kernel]:
    """Every kernel in a library, object file or cubin, once for each architecture with machine code."""
    usage, sass = (output(cuobjdump or tool("cuobjdump"), option, binary) for option in ("-res-usage", "-sass"))
    resources: dict[tuple[str, str], dict[str, int]] = {}
    arch = ""
    for line in usage.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            arch = found[1]
        elif found := re.match(r" Function (\w+):", line):
            symbol = found[1]
        elif "REG:" in line:
            resources[arch, symbol] = {key: int(n) for key, n in re.findall(r"(REG|STACK|SHARED):(\d+)", line)}
    symbols = [symbol for _, symbol in resources]
    signatures = dict(zip(symbols, output("c++filt", text="\n".join(symbols)).splitlines(), strict=False))
    found_kernels = []
    for arch, symbol, code in functions(sass):
        # The resources of a cubin, which is for one architecture, are listed without its name.
        use = resources.get((arch, symbol)) or resources["", symbol]
        stem = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_", symbol)
        instructions, in_loop, spills, spill_share = count(code)
        found_kernels.append(
            Kernel(arch, stem[1] if stem else "", signatures[symbol], use["REG"], use["STACK"], use["SHARED"],
                   spills, instructions, in_loop, spill_share)
        )  # fmt: skip
    return found_kernels


def functions(sass: str) -> Iterable[tuple[str, str, str]]:
    """(architecture, symbol, code) from the output of cuobjdump -sass."""
    for part in re.split(r"^\s*code for (?=sm_)", sass, flags=re.MULTILINE)[1:]:
        arch = part.split(maxsplit=1)[0]
        for function in re.split(r"^\s*Function : ", part, flags=re.MULTILINE)[1:]:
            symbol, code = function.split("\n", 1)
            yield arch, symbol.strip(), code


def count(code: str) -> tuple[int, int, int, float]:
    """The numbers of all instructions, of those in the longest loop (of all, without a loop), and of spills; and the
    largest fraction of spills in a loop or in the kernel."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*)([^;]*);", code)
    places = [(int(address, 16), name, operands) for address, name, operands in found]
    # After its end, code has a branch to itself and NOPs, which stop the processor from running on.
    places = [(at, name, operands) for at, name, operands in places if name != "NOP"]
    back = [
        (int(target[1], 16), at)
        for at, name, operands in places
        if name.startswith("BRA") and (target := re.search(r"0x([0-9a-f]+)", operands)) and int(target[1], 16) <= at
    ]
    spills = {at: name.startswith(("LDL", "STL")) for at, name, _ in places if (at, at) not in back}
    loops = [[s for at, s in spills.items() if first <= at <= last] for first, last in back if first < last]
    share = max((sum(part) / len(part) for part in [*loops, [*spills.values()]]), default=0.0)
    return len(spills), max(map(len, loops), default=len(spills)), sum(spills.values()), share


def compiled(sources: Iterable[Path], folder: Path) -> list[Path]:
    """Object files for the cards that setup.py builds for."""
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    assert spec and spec.loader
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    cxx = setup.find_compiler()
    flags = setup.nvcc_flags(cxx, setup.CARDS)
    nvcc = setup.find_nvcc(cxx, flags)
    if nvcc is None:
        raise FileNotFoundError("nvcc is needed to compile CUDA sources")

    def build(source: Path) -> Path:
        built = folder / f"{source.stem}.o"
        output(nvcc, *flags, f"-DFASTENH_TABLE={source.stem}_cuda", "-c", source, "-o", built)
        return built

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(build, sources))


@cache
def of_the_core() -> tuple[Kernel, ...]:
    """The kernels of the installed core; none if it was built without CUDA."""
    from fastenh import backends

    return tuple(kernels(Path(backends.core.__file__))) if backends.core and backends.core.cuda else ()


def instructions_per_pixel(signature: str, arch: str) -> float | None:
    """SASS instructions per pixel of a kernel of the installed core, by its name in torch.profiler; None if the core
    has no such kernel for this architecture ("sm_90"), as for kernels that are not ours."""
    wanted = signature.replace(" ", "")
    for kernel in of_the_core():
        if kernel.arch == arch and kernel.signature.replace(" ", "") == wanted:
            return kernel.per_pixel
    return None


# ---- the table ----


def table(found: Iterable[Kernel]) -> str:
    """A row for every kernel, with the figures of all architectures."""
    by_name: dict[tuple[str, str], dict[str, Kernel]] = {}
    for kernel in found:
        by_name.setdefault((kernel.stem, kernel.name), {})[kernel.arch] = kernel
    archs = sorted({arch for by_arch in by_name.values() for arch in by_arch})
    lines = header("File", "Kernel", "Registers", "Stack", "Spills", "Shared", "SASS", "SASS per pixel")
    for (stem, name), by_arch in sorted(by_name.items()):
        figures = [
            (k.registers, k.stack, k.spills, k.shared, k.instructions, f"{k.per_pixel:.1f}" if k.per_pixel else "–")
            for k in map(by_arch.__getitem__, sorted(by_arch))
        ]
        lines.append(row(stem, f"`{name}`", *(" · ".join(map(str, column)) for column in zip(*figures, strict=True))))
    return "\n".join([*lines, "", CAPTION.format(archs=" · ".join(archs))])


def unfit(found: Iterable[Kernel]) -> list[str]:
    """The kernels with spills that cost time, one line each."""
    return [
        f"{k.stem or 'Triton'}: {k.name} for {k.arch}: {k.stack} bytes of stack frame (limit {MOST_STACK}), "
        f"{k.spill_share:.1%} of a loop's instructions are spills (limit {MOST_SPILLS:.0%})"
        for k in found
        if k.stack > MOST_STACK or k.spill_share > MOST_SPILLS
    ]


def main(sources: list[str]) -> None:
    found = list(of_the_core())
    if sources or not found:
        with tempfile.TemporaryDirectory() as folder:
            paths = map(Path, sources) if sources else sorted((ROOT / "csrc").glob("*.cu"))
            found = [kernel for built in compiled(paths, Path(folder)) for kernel in kernels(built)]
    print(table(found))
    if problems := unfit(found):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main(sys.argv[1:])
