// What the stand-in for CUDA itself must do: `check FAULT ORDER` runs kernels with a fault, or none, in an order of
// their blocks and threads, and says what came of it.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace fastenh {
extern __shared__ __align__(16) char memory[];

enum Fault { none, barrier_left_out, barrier_not_for_all, lane_outside, odd_address, beyond_memory, memory_unasked };
constexpr const char* faults[] = {"none",        "barrier_left_out", "barrier_not_for_all", "lane_outside",
                                  "odd_address", "beyond_memory",    "memory_unasked"};

#define EXPECT(condition) \
  if (!(condition)) std::printf("thread %u: %s\n", threadIdx.x, #condition)

// Sums `in` over a block, by shuffles in a warp and through shared memory between warps.
__global__ void sum_kernel(float* out, const float* in, int fault) {
  float* sums = reinterpret_cast<float*>(memory);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = in[threadIdx.x];
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) sums[warp] = sum;
  if (fault != barrier_left_out) __syncthreads();
  if (threadIdx.x == 0)
    for (unsigned i = 0; i < blockDim.x / 32; ++i) atomicAdd(out, sums[i]);

  if (fault == barrier_not_for_all && warp > 0) __syncthreads();
  if (fault == lane_outside && warp == 0 && lane < 16) __shfl_sync(0xffff, sum, 16);
  if (fault == odd_address) atomicAdd(out, __ldcg(reinterpret_cast<const float4*>(in + 1)).x);
  if (fault == beyond_memory) sums[blockDim.x / 32] = 0.f;
}

__global__ void warp_kernel() {
  const int lane = int(threadIdx.x % 32);
  EXPECT(__shfl_sync(~0u, lane, 5) == 5);
  EXPECT(__shfl_sync(~0u, lane, 3, 8) == (lane & ~7) + 3);
  EXPECT(__shfl_xor_sync(~0u, double(lane), 9) == (lane ^ 9));
  EXPECT(__ballot_sync(~0u, lane % 3 == 0) == 0x49249249u);
  if (lane < 12) {
    EXPECT(__ballot_sync(0xfff, lane > 2) == 0xff8);
  } else {
    EXPECT(__shfl_sync(0xfffff000, lane, 31) == 31);
  }
  EXPECT(__ballot_sync(~0u, 1) == ~0u);
}

void check_numbers() {
  EXPECT(__fmaf_rd(.1f, 32.f, 8388608.f) == 8388611.f && __fmaf_rd(-1e-20f, 1.f, 1.f) == 0x1.fffffep-1f);
  EXPECT(__float2ll_rn(2.5f) == 2 && __float2ll_rn(1e20f) == INT64_MAX && __saturatef(NAN) == 0.f);
  EXPECT(__byte_perm(0x33221100, 0x77665544, 0x7250) == 0x77225500 && __umulhi(1u << 31, 6) == 3 && __ffs(12) == 3);
  const __half2 a = __halves2half2(__float2half_rn(.1f), __float2half_rn(NAN)), b = __float2half2_rn(3.f);
  EXPECT(__low2float(__hfma2(a, b, b)) == float(_Float16(double(_Float16(.1f)) * 3 + 3)));
  EXPECT(__low2float(__hmin2(a, b)) < 1.f && __high2float(__hmin2(a, b)) == 3.f && __high2float(__hmax2(a, b)) == 3.f);
  const __half2 one = __float2half2_rn(1.f);
  EXPECT(__low2float(__hfma2(one, __float2half2_rn(2048.f), one)) == 2048.f);  // a tie, to even
  EXPECT(__low2float(__hneg2(b)) == -3.f && __high2float(__hneg2(b)) == -3.f);
  EXPECT(__bfloat162float(__float2bfloat16_rn(1 + 0x1p-8f)) == 1.f);
}

}  // namespace fastenh

int main(int, char** arguments) {
  using namespace fastenh;
  int fault = 0;
  while (std::strcmp(arguments[1], faults[fault])) ++fault;
  cudaLaunchConfig_t config{{2}, {96}, fault == memory_unasked ? 50u << 10 : 3 * sizeof(float), nullptr};
  config.stream = arguments[2][0] == 'r' ? &config : nullptr;
  alignas(16) float in[96], out = 0;
  for (int i = 0; i < 96; ++i) in[i] = float(i);
  cudaError_t error = cudaLaunchKernelEx(&config, sum_kernel, &out, in, fault);
  if (!error) error = cudaLaunchKernelEx(&config, warp_kernel);
  check_numbers();
  std::printf("%s\n%g\n", error ? cudaGetErrorString(error) : "done", out);
}
