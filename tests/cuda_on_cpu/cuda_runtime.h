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
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// ---- the host's side ----

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
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
  if (unsigned(bytes) > cuda_on_cpu::most_memory) return cuda_on_cpu::error = "too much shared memory", cudaErrorInvalidValue;
  cuda_on_cpu::allowed_memory[reinterpret_cast<const void*>(kernel)] = unsigned(bytes);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  return *blocks = 2, cudaSuccess;
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

#define VECTOR(T, name, bytes2, bytes4)                                                \
  struct alignas(bytes2) name##2 { T x, y; };                                          \
  struct alignas(bytes4) name##4 { T x, y, z, w; };                                    \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                           \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR(unsigned char, uchar, 2, 4)
VECTOR(unsigned short, ushort, 4, 8)
VECTOR(int, int, 8, 16)
VECTOR(unsigned, uint, 8, 16)
VECTOR(float, float, 8, 16)
#undef VECTOR

// ---- threads ----

inline void __syncthreads() { cuda_on_cpu::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::meet("__syncwarp", mask, cuda_on_cpu::Result::nothing); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(cuda_on_cpu::meet("__ballot_sync", mask, cuda_on_cpu::Result::bit_of_each, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) {
  return cuda_on_cpu::meet("__any_sync", mask, cuda_on_cpu::Result::bit_of_each, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return cuda_on_cpu::meet("__all_sync", mask, cuda_on_cpu::Result::bit_of_each, predicate != 0) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t bits = cuda_on_cpu::to_bits(value);
  return unsigned(cuda_on_cpu::meet("__match_any_sync", mask, cuda_on_cpu::Result::bit_of_equals, bits));
}

// Shuffles stay in segments of `width` lanes; who asks beyond the end of its segment gets its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const int self = int(threadIdx.x % 32);
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, (self & -width) | (lane & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int self = int(threadIdx.x % 32), source = self - int(delta);
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, source < (self & -width) ? self : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int self = int(threadIdx.x % 32), source = self + int(delta);
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, source >= (self & -width) + width ? self : source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int self = int(threadIdx.x % 32), source = self ^ lanes;
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source >= (self & -width) + width ? self : source);
}

template <class T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  if constexpr (std::is_arithmetic_v<T>) *to = before + value;
  else if constexpr (std::is_same_v<T, float4>)
    *to = {before.x + value.x, before.y + value.y, before.z + value.z, before.w + value.w};
  else
    *to = __hadd2(before, value);
  return before;
}
template <class T>
T atomicMax(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  return *to = std::max(before, value), before;
}
template <class T>
T atomicMin(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  return *to = std::min(before, value), before;
}

// ---- loads and stores that say how to use the caches ----

template <class T>
T __ldg(const T* from) { return *from; }
template <class T>
T __ldca(const T* from) { return *from; }
template <class T>
T __ldcg(const T* from) { return *from; }
template <class T>
T __ldcs(const T* from) { return *from; }
template <class T>
void __stcs(T* to, std::type_identity_t<T> value) { *to = value; }
template <class T>
void __stcg(T* to, std::type_identity_t<T> value) { *to = value; }

// ---- numbers ----

template <class A, class B>
  requires(std::integral<A> && std::integral<B>)
constexpr auto min(A a, B b) { return std::min<std::common_type_t<A, B>>(a, b); }
template <class A, class B>
  requires(std::integral<A> && std::integral<B>)
constexpr auto max(A a, B b) { return std::max<std::common_type_t<A, B>>(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }

// To integers as the hardware does it: what does not fit goes to the nearest that does, NaN to 0.
template <class T>
T to_integer(double whole) {
  using Limits = std::numeric_limits<T>;
  if (whole != whole) return 0;
  return whole >= double(Limits::max()) ? Limits::max() : whole <= double(Limits::min()) ? Limits::min() : T(whole);
}
inline int __float2int_rd(float value) { return to_integer<int>(floor(value)); }
inline int __float2int_rz(float value) { return to_integer<int>(trunc(value)); }
inline int __float2int_rn(float value) { return to_integer<int>(nearbyint(value)); }
inline unsigned __float2uint_rz(float value) { return to_integer<unsigned>(trunc(value)); }
inline unsigned __float2uint_rn(float value) { return to_integer<unsigned>(nearbyint(value)); }
inline long long __float2ll_rn(float value) { return to_integer<long long>(nearbyint(value)); }

// a + b in float32, rounded down: a float64 sum and its error say on which side of it the nearest float32 lies.
inline float add_down(double a, double b) {
  const double sum = a + b, part = sum - a, error = (a - (sum - part)) + (b - part);
  const float nearest = float(sum);
  const bool above = nearest > sum || (nearest == sum && error < 0);
  return above ? nextafterf(nearest, -INFINITY) : nearest;
}
inline float __fadd_rd(float a, float b) { return add_down(a, b); }
inline float __fmaf_rd(float a, float b, float c) { return add_down(double(a) * b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float value) { return value > 0 ? fminf(value, 1) : 0; }  // NaN becomes 0

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
