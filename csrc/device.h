// The one door to CUDA: everything the kernels in .cu files use of it stands here, so that a C++ compiler with another
// file in this one's place can build the same kernels for a CPU and run them under its sanitizers. Names are those of
// rows.h where they mean the same. Kernels have no early return before a barrier.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "kernel.h"

namespace fastenh {
namespace {

// ---- launch ----

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

// Starts `blocks` blocks of `threads` threads of a __global__ function on the device of `on` and on `stream`, and leaves
// the thread's current device as it was. Does not wait; errors of the launch itself raise RuntimeError.
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, const Tensor& on, int64_t stream, A&&... arguments) {
  struct Guard {
    int before = -1;
    ~Guard() { if (before >= 0) cudaSetDevice(before); }
  } guard;
  int current;
  check(cudaGetDevice(&current), "no current device");
  if (current != on.device_id) {
    check(cudaSetDevice(on.device_id), "cannot switch to the tensor's device");
    guard.before = current;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks < 0x7fffffff ? blocks : 0x7fffffff));
  config.blockDim = dim3(unsigned(threads));
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, P(arguments)...), "launch failed");
}

// An argument for a kernel: the tensor, or one without memory where Python passed None.
inline Tensor or_none(Optional t) { return t ? *t : Tensor{}; }

// ---- numbers ----

__device__ inline int64_t size_of(Dtype dtype) { return dtype == Dtype::u8 ? 1 : dtype == Dtype::f32 ? 4 : 2; }

__device__ inline float load(const char* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::f32: return reinterpret_cast<const float*>(data)[i];
    case Dtype::f16: return __half2float(reinterpret_cast<const __half*>(data)[i]);
    case Dtype::bf16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[i]);
    case Dtype::u8: return reinterpret_cast<const uint8_t*>(data)[i] * (1.f / 255.f);
    case Dtype::u16: return reinterpret_cast<const uint16_t*>(data)[i] * (1.f / 65535.f);
  }
  return 0.f;
}

// Integers are full scale: clamped to [0, 1] and rounded to nearest, NaN becomes 0.
__device__ inline void store(char* data, Dtype dtype, int64_t i, float value) {
  const float unit = fminf(fmaxf(value, 0.f), 1.f);
  switch (dtype) {
    case Dtype::f32: reinterpret_cast<float*>(data)[i] = value; break;
    case Dtype::f16: reinterpret_cast<__half*>(data)[i] = __float2half_rn(value); break;
    case Dtype::bf16: reinterpret_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value); break;
    case Dtype::u8: reinterpret_cast<uint8_t*>(data)[i] = uint8_t(__float2uint_rn(unit * 255.f)); break;
    case Dtype::u16: reinterpret_cast<uint16_t*>(data)[i] = uint16_t(__float2uint_rn(unit * 65535.f)); break;
  }
}

// ---- rows ----

struct Row {
  char* data;
  Dtype dtype;
  int64_t stride;  // in elements
};

// The row of a (B, ·, H, W) tensor from column x on.
__device__ inline Row row(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x) {
  const int64_t offset = b * t.strides[0] + c * t.strides[1] + y * t.strides[2] + x * t.strides[3];
  return {t.data + offset * size_of(t.dtype), t.dtype, t.strides[3]};
}

__device__ inline float load(const Row& from, int64_t i) { return load(from.data, from.dtype, i * from.stride); }
__device__ inline void store(const Row& to, int64_t i, float value) { store(to.data, to.dtype, i * to.stride, value); }

// The pixels of (B, ·, H, W) tensors as pieces of at most `piece` neighbours in a row, one block of threads each. Where
// every tensor's rows follow each other without a gap, the picture is one long row.
constexpr int threads = 256;
constexpr int piece = 4 * threads;

struct Pixels {
  int64_t batch, height, width;
  bool joined = true;

  template <class... T>
  static Pixels joining(int64_t batch, const Tensor& first, const T&... tensors) {
    Pixels pixels{batch, first.shape[2], first.shape[3]};
    pixels.join(first), (pixels.join(tensors), ...);
    if (pixels.joined) pixels.width *= pixels.height, pixels.height = 1;
    return pixels;
  }
  void join(const Tensor& t) { joined = joined && (!t.data || height == 1 || t.strides[2] == t.strides[3] * width); }
  __host__ __device__ int64_t per_row() const { return (width + piece - 1) / piece; }
  __host__ __device__ int64_t pieces() const { return batch * height * per_row(); }
};

// body(b, y, x, n): n pixels of row y of picture b, from column x on; all threads of a block take the same piece.
template <class Body>
__device__ void for_pieces(const Pixels& pixels, const Body& body) {
  for (int64_t i = blockIdx.x; i < pixels.pieces(); i += gridDim.x) {
    const int64_t line = i / pixels.per_row(), x = i % pixels.per_row() * piece;
    const int64_t left = pixels.width - x;
    body(line / pixels.height, line % pixels.height, x, int(left < piece ? left : piece));
  }
}

// body(i) for 0 <= i < n, shared out among the threads of the block.
template <class Body>
__device__ void for_threads(int n, const Body& body) {
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) body(i);
}

}  // namespace
}  // namespace fastenh
