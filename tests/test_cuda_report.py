"""What nvcc made of the CUDA kernels: no costly spills; and benchmarks/cuda_report.py, which reads it, on known
code."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import cuda_report  # noqa: E402

from fastenh import backends  # noqa: E402

# Two instructions, an outer loop of six with an inner loop of two and a spill in it, an exit, and what pads the end.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;                  /* 0x00000a0000017a02 */
                                                                           /* 0x000fe40000000f00 */
        /*0010*/                   S2R R0, SR_CTAID.X ;                    /* 0x0000000000007919 */
        /*0020*/                   LDG.E R2, [R2.64] ;                     /* 0x0000000402027981 */
        /*0030*/                   FADD R2, R2, R3 ;                       /* 0x0000000302027221 */
        /*0040*/               @P0 BRA 0x30 ;                              /* 0xffffffe000000947 */
        /*0050*/                   STL [R1], R2 ;                          /* 0x0000000201007387 */
        /*0060*/               @P1 BRA 0x80 ;                              /* 0x0000000000001947 */
        /*0070*/              @!P2 BRA P3, 0x20 ;                          /* 0xffffff900000a947 */
        /*0080*/                   EXIT ;                                  /* 0x000000000000794d */
        /*0090*/                   BRA 0x90;                               /* 0xfffffff000007947 */
        /*00a0*/                   NOP;                                    /* 0x0000000000007918 */
"""

SPILLS = """
namespace {
template <int pixels>
__global__ void __launch_bounds__(1024, 2) wide_kernel(float* out) {  // 32 registers each, and more numbers to keep
  float several[pixels];
  for (int i = 0; i < pixels; ++i) several[i] = out[i];
  __syncthreads();
  for (int i = 0; i < pixels; ++i) out[i] = several[pixels - 1 - i];
}
}
void launch(float* out) { wide_kernel<50><<<1, 1024>>>(out); }
"""


def test_counts_the_outermost_loop() -> None:
    no_outer = LISTING.replace("@!P2 BRA P3, 0x20", "@!P2 BRA P3, 0x80")
    no_loop = LISTING.replace("BRA P3, 0x20", "MOV R1, R2").replace("BRA 0x30", "EXIT")
    assert cuda_report.count(LISTING) == (9, 6, 1, 1 / 6)
    assert cuda_report.count(no_outer) == (9, 2, 1, 1 / 9)
    assert cuda_report.count(no_outer.replace("FADD R2, R2, R3", "LDL R2, [R1]")) == (9, 2, 2, 1 / 2)
    assert cuda_report.count(no_loop) == (9, 9, 1, 1 / 9)


def test_name_and_pixels_of_a_kernel() -> None:
    signature = (
        "void fastenh::(anonymous namespace)::f_kernel<__half, (fastenh::(anonymous namespace)::Layout)2, false, 8>"
        "(fastenh::(anonymous namespace)::Pixels, fastenh::Tensor)"
    )
    kernel = cuda_report.Kernel("sm_90", "f", signature, 40, 0, 0, 0, 100, 96, 0)
    assert kernel.name == "f_kernel<__half, Layout 2, false, 8>"
    assert kernel.per_pixel == 12
    plain = cuda_report.Kernel("sm_90", "f", "fastenh::(anonymous namespace)::probe_kernel()", 4, 0, 0, 0, 9, 9, 0)
    assert plain.name == "probe_kernel"
    assert plain.per_pixel is None


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
def test_a_kernel_that_spills_is_found(tmp_path: Path) -> None:
    source = tmp_path / "spills.cu"
    source.write_text(SPILLS)
    found = cuda_report.kernels(*cuda_report.compiled([source], tmp_path))
    assert [(kernel.stem, kernel.name, kernel.arch) for kernel in found] == [
        ("spills", "wide_kernel<50>", "sm_80"),
        ("spills", "wide_kernel<50>", "sm_90"),
    ]
    for kernel, problem in zip(found, cuda_report.unfit(found), strict=True):
        assert kernel.stack > 0 and kernel.spills > 0 and kernel.registers <= 32
        assert problem.startswith(f"spills: wide_kernel<50> for {kernel.arch}: {kernel.stack} bytes of stack")


@pytest.mark.parametrize(
    ("stack", "share", "refused"), [(0, 0, 0), (256, 0.02, 0), (264, 0, 1), (8, 0.021, 1)], ids=str
)
def test_spills_are_refused_where_they_cost(stack: int, share: float, refused: int) -> None:
    kernel = cuda_report.Kernel("sm_90", "f", "f_kernel<8>", 255, stack, 0, 9, 2000, 1000, share)
    assert len(cuda_report.unfit([kernel])) == refused


@pytest.mark.skipif(not backends.core.cuda, reason="the core was built without CUDA")
def test_no_kernel_spills_where_it_costs() -> None:
    found = cuda_report.of_the_core()
    assert {kernel.stem for kernel in found} == {source.stem for source in (ROOT / "csrc").glob("*.cu")}
    assert not cuda_report.unfit(found)
    assert all(kernel.pixels or kernel.name == "probe_kernel" for kernel in found), "the last template argument"
    kernel = found[-1]
    assert cuda_report.instructions_per_pixel(kernel.signature, kernel.arch) == kernel.per_pixel
