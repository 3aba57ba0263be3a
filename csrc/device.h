// All that .cu files use of CUDA, apart from its intrinsics, so that a C++ compiler with stand-in CUDA headers can
// build the same kernels for a CPU and run them under its sanitizers. Names match those of rows.h where they mean the
// same. Kernels never return before a barrier, and the last template argument of each is `int pixels`: how many a
// thread takes in one pass of its loop.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernel.h"

namespace fastenh {

// A block's shared memory, of the size that its Grid asks for.
extern __shared__ __align__(16) char memory[];

namespace {

// ---- launch ----

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

// Makes a tensor's device the thread's current one for its lifetime, then restores the previous one.
struct OnDevice {
  int before = -1;
  explicit OnDevice(const Tensor& t) {
    int current;
    check(cudaGetDevice(&current), "no current device");
    if (current == t.device_id) return;
    check(cudaSetDevice(t.device_id), "cannot switch to the tensor's device");
    before = current;
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() { if (before >= 0) cudaSetDevice(before); }
};

inline int attribute(const Tensor& on, cudaDeviceAttr which) {
  int value;
  check(cudaDeviceGetAttribute(&value, which, on.device_id), "cannot ask the device");
  return value;
}

struct Grid {
  int64_t blocks = INT64_MAX;
  int threads = 256, shared_bytes = 0;
};

// Starts a __global__ function on the device of `on` and on `stream`. Does not wait; errors of the launch itself raise
// RuntimeError.
template <class... P, class... A>
void launch(void (*kernel)(P...), Grid grid, const Tensor& on, int64_t stream, A&&... arguments) {
  if (grid.blocks == 0) return;
  if (grid.blocks > 0x7fffffff) throw std::invalid_argument("CUDA: too many blocks");
  const OnDevice guard(on);
  if (grid.shared_bytes > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes),
          "not as much shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.blocks));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = size_t(grid.shared_bytes);
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, P(arguments)...), "launch failed");
}

// An argument for a kernel: the tensor, or one without memory where Python passed None.
inline Tensor or_none(Optional t) { return t ? *t : Tensor{}; }

// ---- numbers ----

template <class T>
struct Type {
  using type = T;
};

// f(Type<T>{}) with the C++ type of a dtype.
template <class F>
void with_float(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32: return f(Type<float>{});
    case Dtype::f16: return f(Type<__half>{});
    case Dtype::bf16: return f(Type<__nv_bfloat16>{});
    default: throw std::invalid_argument("expected a float dtype");
  }
}
template <class F>
void with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::u8: return f(Type<uint8_t>{});
    case Dtype::u16: return f(Type<uint16_t>{});
    default: return with_float(dtype, f);
  }
}

template <class T>
constexpr Dtype dtype_of = Dtype::f32;
template <>
constexpr Dtype dtype_of<__half> = Dtype::f16;
template <>
constexpr Dtype dtype_of<__nv_bfloat16> = Dtype::bf16;
template <>
constexpr Dtype dtype_of<uint8_t> = Dtype::u8;
template <>
constexpr Dtype dtype_of<uint16_t> = Dtype::u16;

__host__ __device__ inline int64_t size_of(Dtype dtype) {
  return dtype == Dtype::u8 ? 1 : dtype == Dtype::f32 ? 4 : dtype == Dtype::i64 ? 8 : 2;
}

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float to_float(uint8_t v) { return v * (1.f / 255.f); }
__device__ inline float to_float(uint16_t v) { return v * (1.f / 65535.f); }

// Integers are full scale: clamped to [0, 1] and rounded to nearest, NaN becomes 0.
template <class T>
__device__ inline T from_float(float v);
template <>
__device__ inline float from_float(float v) { return v; }
template <>
__device__ inline __half from_float(float v) { return __float2half_rn(v); }
template <>
__device__ inline __nv_bfloat16 from_float(float v) { return __float2bfloat16_rn(v); }
template <>  // adding 2²³ leaves the rounded number in the last bits
__device__ inline uint8_t from_float(float v) {
  return uint8_t(__float_as_uint(__fmaf_rn(__saturatef(v), 255.f, 8388608.f)));
}
template <>
__device__ inline uint16_t from_float(float v) {
  return uint16_t(__float_as_uint(__fmaf_rn(__saturatef(v), 65535.f, 8388608.f)));
}

__device__ inline __half2 as_half2(uint32_t bits) {
  __half2 pair;
  memcpy(&pair, &bits, sizeof pair);
  return pair;
}
__device__ inline uint32_t as_bits(__half2 pair) {
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

// 2^x, fast and approximate.
__device__ inline float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  return exp2f(x);
#endif
}

// 1 / x, fast and approximate.
__device__ inline float reciprocal_fast(float x) {
#ifdef __CUDA_ARCH__
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  return 1.f / x;
#endif
}

// ReLU of two float16 numbers; NaN stays NaN.
__device__ inline uint32_t rectified(uint32_t pair) {
  return as_bits(__hmax2_nan(as_half2(pair), __float2half2_rn(0.f)));
}

// ---- tensor cores ----

// d += a · b, with a of 16 x 16 numbers in float16 and b of 16 x 8, by all lanes of a warp together. With r = lane / 4
// and q = lane % 4, a lane holds
//   of a, rows r and r + 8:       columns 2q and 2q + 1 (a[0], a[1]), columns 2q + 8 and 2q + 9 (a[2], a[3]);
//   of b, column r:               rows 2q and 2q + 1 (b0), rows 2q + 8 and 2q + 9 (b1);
//   of d, columns 2q and 2q + 1:  row r (d[0], d[1]), row r + 8 (d[2], d[3]).
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif defined(__CUDA_ARCH__)  // two products of half the depth
  for (int i = 0; i < 2; ++i)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(i ? b1 : b0));
#elif !defined(__CUDACC__)  // defined by the stand-in
  product_of_warp(d, a, b0, b1);
#endif
}

// The same with d in float16: d[0] of row r, d[1] of row r + 8.
__device__ inline void multiply_add(uint32_t (&d)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif defined(__CUDA_ARCH__)
  for (int i = 0; i < 2; ++i)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3}, {%4}, {%0, %1};"
                 : "+r"(d[0]), "+r"(d[1])
                 : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(i ? b1 : b0));
#elif !defined(__CUDACC__)
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = i % 2 ? __high2float(as_half2(d[i / 2])) : __low2float(as_half2(d[i / 2]));
  product_of_warp(sums, a, b0, b1);
  for (int i = 0; i < 2; ++i) d[i] = as_bits(__floats2half2_rn(sums[2 * i], sums[2 * i + 1]));
#endif
}

// ---- memory ----

// n numbers that are adjacent in memory.
template <class T, int n>
struct alignas(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Pack {
  T at[n];
};

// The same as words of up to 16 bytes, the unit of loads and stores. Keep data that is loaded well before its use in
// this form: the compiler unpacks a Pack as soon as it arrives, and may wait for it before it issues the next load.
template <class T, int n>
struct Words {
  static constexpr int bytes = sizeof(T) * n, count = bytes < 16 ? 1 : bytes / 16;
  template <int size, class Word, class Else>
  using If = std::conditional_t<bytes == size, Word, Else>;
  using Word = If<1, unsigned char, If<2, unsigned short, If<4, unsigned, If<8, uint2, uint4>>>>;
  Word word[count];
  static_assert(sizeof word == bytes);

  Words() = default;
  __device__ explicit Words(const Pack<T, n>& pack) { memcpy(word, &pack, bytes); }
  __device__ Pack<T, n> pack() const {
    Pack<T, n> pack;
    memcpy(&pack, word, bytes);
    return pack;
  }
  // Bypasses the L1 cache, which is left to data that is read again, except for words that share a sector of 32 bytes.
  __device__ void read_once(const T* from) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const Word* at = reinterpret_cast<const Word*>(from) + i;
      word[i] = count > 1 ? __ldca(at) : __ldcg(at);
    }
  }
  // Through the L1 cache, from memory that no thread writes meanwhile.
  __device__ void read(const T* from) {
#pragma unroll
    for (int i = 0; i < count; ++i) word[i] = __ldg(reinterpret_cast<const Word*>(from) + i);
  }
  __device__ void write(T* to) const {
#pragma unroll
    for (int i = 0; i < count; ++i) __stcg(reinterpret_cast<Word*>(to) + i, word[i]);
  }
};

template <class T, int n>
__device__ inline Pack<T, n> read_once(const T* from) {
  Words<T, n> words;
  words.read_once(from);
  return words.pack();
}
template <class T, int n>
__device__ inline void write(T* to, const Pack<T, n>& pack) {
  Words<T, n>(pack).write(to);
}

template <class T, int n>
__device__ inline void to_floats(const Pack<T, n>& pack, float (&values)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) values[i] = to_float(pack.at[i]);
}

template <class T, int n>
__device__ inline Pack<T, n> from_floats(const float (&values)[n]) {
  Pack<T, n> pack;
#pragma unroll
  for (int i = 0; i < n; ++i) pack.at[i] = from_float<T>(values[i]);
  return pack;
}

// Element (b, c, y, x) of a (B, ·, H, W) tensor.
__device__ inline int64_t offset(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x) {
  return b * t.strides[0] + c * t.strides[1] + y * t.strides[2] + x * t.strides[3];
}
template <class T>
__device__ inline T* at(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x) {
  return reinterpret_cast<T*>(t.data) + offset(t, b, c, y, x);
}

// One number of a tensor of any dtype, at an offset in elements.
__device__ inline float load(const Tensor& t, int64_t offset) {
  switch (t.dtype) {
    case Dtype::f16: return to_float(reinterpret_cast<const __half*>(t.data)[offset]);
    case Dtype::bf16: return to_float(reinterpret_cast<const __nv_bfloat16*>(t.data)[offset]);
    case Dtype::u8: return to_float(reinterpret_cast<const uint8_t*>(t.data)[offset]);
    case Dtype::u16: return to_float(reinterpret_cast<const uint16_t*>(t.data)[offset]);
    default: return reinterpret_cast<const float*>(t.data)[offset];
  }
}
__device__ inline void store(const Tensor& t, int64_t offset, float value) {
  switch (t.dtype) {
    case Dtype::f16: reinterpret_cast<__half*>(t.data)[offset] = from_float<__half>(value); break;
    case Dtype::bf16: reinterpret_cast<__nv_bfloat16*>(t.data)[offset] = from_float<__nv_bfloat16>(value); break;
    case Dtype::u8: reinterpret_cast<uint8_t*>(t.data)[offset] = from_float<uint8_t>(value); break;
    case Dtype::u16: reinterpret_cast<uint16_t*>(t.data)[offset] = from_float<uint16_t>(value); break;
    default: reinterpret_cast<float*>(t.data)[offset] = value;
  }
}
__device__ inline float load(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x) {
  return load(t, offset(t, b, c, y, x));
}
__device__ inline void store(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x, float value) {
  store(t, offset(t, b, c, y, x), value);
}

// The same for n adjacent numbers, in packs.
template <int n>
__device__ inline void load(const Tensor& t, int64_t offset, float (&values)[n]) {
  switch (t.dtype) {
    case Dtype::f16: return to_floats(read_once<__half, n>(reinterpret_cast<const __half*>(t.data) + offset), values);
    case Dtype::bf16:
      return to_floats(read_once<__nv_bfloat16, n>(reinterpret_cast<const __nv_bfloat16*>(t.data) + offset), values);
    case Dtype::u8: return to_floats(read_once<uint8_t, n>(reinterpret_cast<const uint8_t*>(t.data) + offset), values);
    case Dtype::u16:
      return to_floats(read_once<uint16_t, n>(reinterpret_cast<const uint16_t*>(t.data) + offset), values);
    default: return to_floats(read_once<float, n>(reinterpret_cast<const float*>(t.data) + offset), values);
  }
}
template <int n>
__device__ inline void store(const Tensor& t, int64_t offset, const float (&values)[n]) {
  switch (t.dtype) {
    case Dtype::f16: return write(reinterpret_cast<__half*>(t.data) + offset, from_floats<__half>(values));
    case Dtype::bf16: return write(reinterpret_cast<__nv_bfloat16*>(t.data) + offset, from_floats<__nv_bfloat16>(values));
    case Dtype::u8: return write(reinterpret_cast<uint8_t*>(t.data) + offset, from_floats<uint8_t>(values));
    case Dtype::u16: return write(reinterpret_cast<uint16_t*>(t.data) + offset, from_floats<uint16_t>(values));
    default: return write(reinterpret_cast<float*>(t.data) + offset, from_floats<float>(values));
  }
}

// ---- pixels ----

// n / by for 0 <= n < 2³¹, by a multiplication.
struct Divisor {
  uint32_t by, magic = 0;
  int shift = 0;
  explicit Divisor(int64_t divisor) : by(uint32_t(divisor)) {
    if (by < 2) return;
    while (int64_t(1) << shift < divisor) ++shift;
    magic = uint32_t(((uint64_t(1) << (31 + shift)) + by - 1) / by);
    --shift;
  }
  __device__ uint32_t divide(uint32_t n) const { return by < 2 ? n : __umulhi(n, magic) >> shift; }
};

// The pixels of (B, ·, H, W) tensors as pieces of at most `piece` adjacent pixels in a row, one block of threads each.
// Where every tensor's rows follow each other without a gap, `joining` makes the picture one long row.
struct Pixels {
  int64_t batch, height, width;
  int piece;
  int64_t first_b = 0, first_y = 0;
  Divisor per_row, rows;

  Pixels(int piece, int64_t batch, int64_t height, int64_t width)
      : batch(batch), height(height), width(width), piece(piece), per_row((width + piece - 1) / piece), rows(height) {}

  template <class... T>
  static Pixels joining(int piece, int64_t batch, const Tensor& first, const T&... others) {
    const int64_t height = first.shape[2], width = first.shape[3];
    const auto joined = [&](const Tensor& t) {
      return !t.data || height == 1 || t.strides[2] == t.strides[3] * width;
    };
    if (joined(first) && (joined(others) && ...)) return Pixels(piece, batch, 1, height * width);
    return Pixels(piece, batch, height, width);
  }

  __host__ __device__ int64_t pieces() const { return batch * height * per_row.by; }
};

// Launches a kernel, whose first argument is the pixels, with one block per piece (at most `blocks`). If there are more
// pieces than 31 bits can count, it launches it several times.
template <class... P, class... A>
void launch(void (*kernel)(Pixels, P...), const Pixels& pixels, Grid grid, const Tensor& on, int64_t stream,
            const A&... arguments) {
  constexpr int64_t most = 0x7fffffff;
  const auto start = [&](const Pixels& part) {
    const Grid enough{part.pieces() < grid.blocks ? part.pieces() : grid.blocks, grid.threads, grid.shared_bytes};
    launch(kernel, enough, on, stream, part, arguments...);
  };
  if (pixels.pieces() <= most) return start(pixels);
  const int64_t band = most / pixels.per_row.by;
  for (int64_t b = 0; b < pixels.batch; ++b)
    for (int64_t y = 0; y < pixels.height; y += band) {
      Pixels part(pixels.piece, 1, pixels.height - y < band ? pixels.height - y : band, pixels.width);
      part.first_b = b, part.first_y = y;
      start(part);
    }
}

// body(b, y, x, n): n pixels of row y of picture b, from column x on; all threads of a block take the same piece.
template <class Body>
__device__ void for_pieces(const Pixels& pixels, const Body& body) {
  const uint32_t pieces = uint32_t(pixels.pieces());
  for (uint32_t i = blockIdx.x; i < pieces; i += gridDim.x) {
    const uint32_t line = pixels.per_row.divide(i), b = pixels.rows.divide(line);
    const int64_t x = int64_t(i - line * pixels.per_row.by) * pixels.piece, left = pixels.width - x;
    body(pixels.first_b + b, pixels.first_y + (line - b * pixels.rows.by), x,
         int(left < pixels.piece ? left : pixels.piece));
  }
}

// The memory layout of pixels: channels in separate planes, the three channels of a pixel adjacent, or neither.
enum class Layout { planar, interleaved, strided };

// Whether all rows of `t` can be read in packs of n pixels, adjacent in memory and aligned to the size of a pack (to 16
// bytes if that is larger). A tensor without memory can.
inline bool in_packs(const Pixels& pixels, int n, const Tensor& t, bool interleaved = false) {
  if (!t.data) return true;
  const int64_t bytes = n * size_of(t.dtype), pack = bytes < 16 ? bytes : 16;
  const auto aligned = [&](int dim, int64_t count) {
    return count == 1 || t.strides[dim] * size_of(t.dtype) % pack == 0;
  };
  const bool neighbours = interleaved ? t.strides[3] == 3 && t.strides[1] == 1 : t.strides[3] == 1 || pixels.width == 1;
  return neighbours && pixels.width % n == 0 && reinterpret_cast<uintptr_t>(t.data) % uintptr_t(pack) == 0 &&
         aligned(0, t.shape[0]) && (interleaved || aligned(1, t.shape[1])) && aligned(2, pixels.height);
}

// The layout that all these images (B, 3, H, W) share, in packs of n pixels.
template <class... T>
Layout layout_of(const Pixels& pixels, int n, const T&... images) {
  if ((in_packs(pixels, n, images) && ...)) return Layout::planar;
  if ((in_packs(pixels, n, images, true) && ...)) return Layout::interleaved;
  return Layout::strided;
}

}  // namespace
}  // namespace fastenh
