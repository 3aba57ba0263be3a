// The one door to CUDA: everything the kernels in .cu files use of it that is not plain C++ stands here or is one of
// CUDA's own intrinsics, so that a C++ compiler with stand-in CUDA headers can build the same kernels for a CPU and run
// them under its sanitizers. Names are those of rows.h where they mean the same. Kernels have no early return before a
// barrier, and the last template argument of each is `int pixels`: how many a thread takes in one pass of its loop.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "kernel.h"

namespace fastenh {

// The shared memory of a block: as many bytes as its Grid says.
extern __shared__ __align__(16) char memory[];

namespace {

// ---- launch ----

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

// Makes a tensor's device the thread's current one, and the former one current again at the end of its life.
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
  int64_t blocks;
  int threads = 256, shared_bytes = 0;
};

// Starts a __global__ function on the device of `on` and on `stream`. Does not wait; errors of the launch itself raise
// RuntimeError.
template <class... P, class... A>
void launch(void (*kernel)(P...), Grid grid, const Tensor& on, int64_t stream, A&&... arguments) {
  if (grid.blocks == 0) return;
  const OnDevice guard(on);
  if (grid.shared_bytes > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes),
          "not as much shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.blocks < 0x7fffffff ? grid.blocks : 0x7fffffff));
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

// ---- memory ----

// n neighbours in memory, read and written at once: 16 bytes at a time where there are as many.
template <class T, int n>
struct alignas(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Pack {
  T at[n];
};

// Past the L1 cache, which keeps what is read again.
template <class T, int n>
__device__ inline Pack<T, n> read_once(const T* from) {
  constexpr int bytes = sizeof(T) * n;
  Pack<T, n> pack;
  if constexpr (bytes % 16 == 0) {
    for (int i = 0; i < bytes / 16; ++i) {
      const uint4 v = __ldcg(reinterpret_cast<const uint4*>(from) + i);
      memcpy(reinterpret_cast<char*>(&pack) + 16 * i, &v, 16);
    }
  } else if constexpr (bytes == 8) {
    const uint2 v = __ldcg(reinterpret_cast<const uint2*>(from));
    memcpy(&pack, &v, 8);
  } else if constexpr (bytes == 4) {
    const unsigned v = __ldcg(reinterpret_cast<const unsigned*>(from));
    memcpy(&pack, &v, 4);
  } else {
    static_assert(n == 1);
    pack.at[0] = *from;
  }
  return pack;
}

// Through the L1 cache.
template <class T, int n>
__device__ inline Pack<T, n> read(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}

template <class T, int n>
__device__ inline void write(T* to, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(to) = pack;
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
template <class T>
__device__ inline T* at(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x) {
  return reinterpret_cast<T*>(t.data) + (b * t.strides[0] + c * t.strides[1] + y * t.strides[2] + x * t.strides[3]);
}

// One number of a tensor of any dtype.
__device__ inline float load(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x) {
  switch (t.dtype) {
    case Dtype::f16: return to_float(*at<__half>(t, b, c, y, x));
    case Dtype::bf16: return to_float(*at<__nv_bfloat16>(t, b, c, y, x));
    case Dtype::u8: return to_float(*at<uint8_t>(t, b, c, y, x));
    case Dtype::u16: return to_float(*at<uint16_t>(t, b, c, y, x));
    default: return *at<float>(t, b, c, y, x);
  }
}
__device__ inline void store(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x, float value) {
  switch (t.dtype) {
    case Dtype::f16: *at<__half>(t, b, c, y, x) = from_float<__half>(value); break;
    case Dtype::bf16: *at<__nv_bfloat16>(t, b, c, y, x) = from_float<__nv_bfloat16>(value); break;
    case Dtype::u8: *at<uint8_t>(t, b, c, y, x) = from_float<uint8_t>(value); break;
    case Dtype::u16: *at<uint16_t>(t, b, c, y, x) = from_float<uint16_t>(value); break;
    default: *at<float>(t, b, c, y, x) = value;
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

// The pixels of (B, ·, H, W) tensors as pieces of at most `piece` neighbours in a row, one block of threads each. Where
// every tensor's rows follow each other without a gap, `joining` makes the picture one long row.
struct Pixels {
  int64_t batch, height, width;
  int piece;
  bool few;  // pieces, so that their numbers fit 31 bits
  Divisor per_row, rows;

  Pixels(int piece, int64_t batch, int64_t height, int64_t width)
      : batch(batch), height(height), width(width), piece(piece), few(pieces() < 0x7fffffff),
        per_row(few ? in_a_row() : 1), rows(few ? height : 1) {}

  template <class... T>
  static Pixels joining(int piece, int64_t batch, const Tensor& first, const T&... others) {
    const int64_t height = first.shape[2], width = first.shape[3];
    const auto joined = [&](const Tensor& t) {
      return !t.data || height == 1 || t.strides[2] == t.strides[3] * width;
    };
    if (joined(first) && (joined(others) && ...)) return Pixels(piece, batch, 1, height * width);
    return Pixels(piece, batch, height, width);
  }

  __host__ __device__ int64_t in_a_row() const { return (width + piece - 1) / piece; }
  __host__ __device__ int64_t pieces() const { return batch * height * in_a_row(); }
};

// body(b, y, x, n): n pixels of row y of picture b, from column x on; all threads of a block take the same piece.
template <class Body>
__device__ void for_pieces(const Pixels& pixels, const Body& body) {
  const int64_t pieces = pixels.pieces();
  for (int64_t i = blockIdx.x; i < pieces; i += gridDim.x) {
    int64_t b, y, x;
    if (pixels.few) {
      const uint32_t line = pixels.per_row.divide(uint32_t(i));
      b = pixels.rows.divide(line), y = line - b * pixels.rows.by;
      x = int64_t(uint32_t(i) - line * pixels.per_row.by) * pixels.piece;
    } else {
      const int64_t line = i / pixels.in_a_row();
      b = line / pixels.height, y = line % pixels.height;
      x = i % pixels.in_a_row() * pixels.piece;
    }
    const int64_t left = pixels.width - x;
    body(b, y, x, int(left < pixels.piece ? left : pixels.piece));
  }
}

// How neighbouring pixels lie in memory: channel by channel, all three channels of one beside each other, or else.
enum class Layout { planar, interleaved, strided };

// Whether all rows of `t` can be read in packs of n pixels: neighbours in memory that begin at multiples of a pack (of
// 16 bytes where it has more). A tensor without memory can.
inline bool in_packs(const Pixels& pixels, int n, const Tensor& t, bool interleaved = false) {
  if (!t.data) return true;
  const int64_t bytes = n * size_of(t.dtype), pack = bytes < 16 ? bytes : 16;
  const auto aligned = [&](int dim, int64_t count) { return count == 1 || t.strides[dim] * size_of(t.dtype) % pack == 0; };
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

// n pixels of an image (B, 3, H, W), x a multiple of n: one pack a channel, or the same numbers pixel by pixel.
template <class T, int n>
struct Colours {
  Pack<T, n> at[3];
};

template <Layout layout, class T, int n>
__device__ inline Colours<T, n> read_colours(const Tensor& image, int64_t b, int64_t y, int64_t x) {
  static_assert(layout != Layout::strided);
  Colours<T, n> colours;
  const T* from = at<const T>(image, b, 0, y, x);
#pragma unroll
  for (int c = 0; c < 3; ++c)
    colours.at[c] = read_once<T, n>(from + (layout == Layout::planar ? c * image.strides[1] : c * n));
  return colours;
}

template <Layout layout, class T, int n>
__device__ inline void write_colours(const Tensor& image, int64_t b, int64_t y, int64_t x, const Colours<T, n>& colours) {
  static_assert(layout != Layout::strided);
  T* to = at<T>(image, b, 0, y, x);
#pragma unroll
  for (int c = 0; c < 3; ++c)
    write<T, n>(to + (layout == Layout::planar ? c * image.strides[1] : c * n), colours.at[c]);
}

// Channel c of the i-th of these pixels.
template <Layout layout, class T, int n>
__device__ inline T& channel(Colours<T, n>& colours, int c, int i) {
  return layout == Layout::planar ? colours.at[c].at[i] : colours.at[(3 * i + c) / n].at[(3 * i + c) % n];
}

}  // namespace
}  // namespace fastenh
