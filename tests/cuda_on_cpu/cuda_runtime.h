// As much of CUDA as csrc/*.cu use, for a C++ compiler that builds them for a CPU. Where CUDA leaves a case undefined,
// here it is an error. There is one device; a stream that is not 0 runs the last block first.
#pragma once
#include <math.h>

#include <algorithm>
#include <bit>
#include <concepts>
#include <limits>
#include <map>
#include <type_traits>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// ---- the host's side ----

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_on_cpu {
inline std::map<const void*, unsigned> allowed_memory;  // by kernel, beyond 48 KiB
inline std::string error;                               // the last, in words
}  // namespace cuda_on_cpu

inline const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu::error.c_str(); }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : int(cuda_on_cpu::most_memory);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (unsigned(bytes) > cuda_on_cpu::most_memory)
    return cuda_on_cpu::error = "too much shared memory", cudaErrorInvalidValue;
  cuda_on_cpu::allowed_memory[reinterpret_cast<const void*>(kernel)] = unsigned(bytes);
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  const unsigned blocks = config->gridDim.x, threads = config->blockDim.x, bytes = unsigned(config->dynamicSmemBytes);
  const auto error = [](cudaError_t code, const std::string& text) { return cuda_on_cpu::error = text, code; };
  if (blocks < 1 || threads < 1 || threads > 1024)
    return error(cudaErrorInvalidConfiguration, std::to_string(blocks) + " blocks of " + std::to_string(threads));
  if (bytes > std::max(48u << 10, cuda_on_cpu::allowed_memory[reinterpret_cast<const void*>(kernel)]))
    return error(cudaErrorInvalidValue, std::to_string(bytes) + " bytes of shared memory, not asked for before");
  auto call = [&] { kernel(P(arguments)...); };
  const std::string problem = cuda_on_cpu::launch(
      blocks, threads, bytes, config->stream, [](void* it) { (*static_cast<decltype(call)*>(it))(); }, &call);
  return problem.empty() ? cudaSuccess : error(cudaErrorLaunchFailure, problem);
}

// ---- vectors ----

#define VECTOR(T, name)                                             \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                 \
  struct alignas(4 * sizeof(T)) name##4 { T x, y, z, w; };           \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR(unsigned, uint)
VECTOR(float, float)
#undef VECTOR

// ---- threads ----

inline void __syncthreads() { cuda_on_cpu::barrier(); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(cuda_on_cpu::meet("__ballot_sync", mask, predicate != 0, cuda_on_cpu::of_each));
}

// Shuffles stay in segments of `width` lanes; who asks beyond the end of its segment gets its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const int self = int(threadIdx.x % 32);
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, (self & -width) | (lane & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int self = int(threadIdx.x % 32), source = self ^ lanes;
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source >= (self & -width) + width ? self : source);
}

template <class T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  return *to = before + value, before;
}

// ---- loads and stores that say how to use the caches ----

template <class T>
T __ldg(const T* from) { return *from; }
template <class T>
T __ldca(const T* from) { return *from; }
template <class T>
T __ldcg(const T* from) { return *from; }
template <class T>
void __stcg(T* to, std::type_identity_t<T> value) { *to = value; }

// ---- numbers ----

template <class A, class B>
  requires(std::integral<A> && std::integral<B>)
constexpr auto min(A a, B b) { return std::min<std::common_type_t<A, B>>(a, b); }
template <class A, class B>
  requires(std::integral<A> && std::integral<B>)
constexpr auto max(A a, B b) { return std::max<std::common_type_t<A, B>>(a, b); }

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

// To integers as the hardware does it: what does not fit goes to the nearest that does, NaN to the smallest.
inline long long __float2ll_rn(float value) {
  using Limits = std::numeric_limits<long long>;
  return value >= 0x1p63f ? Limits::max() : value >= -0x1p63f ? llrintf(value) : Limits::min();
}

// a · b + c rounded down: a float64 sum and its error say on which side of it the nearest float32 lies.
inline float __fmaf_rd(float a, float b, float c) {
  const double product = double(a) * b, sum = product + c, part = sum - product;
  const double error = (product - (sum - part)) + (c - part);
  const float nearest = float(sum);
  const bool above = nearest > sum || (nearest == sum && error < 0);
  return above ? nextafterf(nearest, -INFINITY) : nearest;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float value) { return value > 0 ? fminf(value, 1) : 0; }  // NaN becomes 0

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
