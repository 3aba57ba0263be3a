// What CPU kernels share: they process rows of pixels, a block at a time, as float32 in the L1 cache.
//
// `load` converts a row of any dtype and stride to contiguous float32, and `store` converts it back, so that a kernel
// is written once, in float32, over contiguous rows. A float32 row with stride 1 is read in place.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernel.h"
#include "vectors.h"

namespace fastenh {
namespace {

constexpr int block = 512;                // pixels of a row that are processed at once: 2 KiB of float32
constexpr int64_t pixels_per_job = 8192;  // a thread takes this many at a time

// ---- numbers ----

inline float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t to_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

inline uint16_t to_bf16(float value) {  // round to nearest, ties to even; NaN stays NaN
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

// float16 -> float32 and back, rounded to nearest, ties to even; NaN keeps its sign and its upper bits, and becomes
// quiet. Processors without an instruction for it do arithmetic on the bits: GCC's own casts would call functions that
// only the libgcc of GCC 12 has. Float16 numbers below 2^-14 are subnormal, multiples of 2^-24, which is the last bit
// of float32 numbers from 0.5 to 1, so that adding 0.5 rounds to them.
#if defined(__F16C__)
inline float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
inline uint16_t float_to_half(float v) { return uint16_t(_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__aarch64__)
inline float half_to_float(uint16_t h) { return float(__builtin_bit_cast(_Float16, h)); }
inline uint16_t float_to_half(float v) { return __builtin_bit_cast(uint16_t, _Float16(v)); }
#else
constexpr int32_t rebias = 112 << 23;  // the exponents' bias is 127 in float32 and 15 in float16
constexpr int32_t half_bits = 0x3f000000, infinity_bits = 0x7f800000, quiet_bit = 0x400000;

inline float half_to_float(uint16_t h) {
  const int32_t magnitude = h & 0x7fff;
  const int32_t normal = (magnitude << 13) + rebias;
  const int32_t subnormal = int32_t(to_bits(from_bits(uint32_t(half_bits + magnitude)) - 0.5f));
  int32_t bits = magnitude < 0x0400 ? subnormal : normal;
  bits = magnitude < 0x7c00 ? bits : normal + rebias;
  bits = magnitude > 0x7c00 ? bits | quiet_bit : bits;
  return from_bits(uint32_t(bits) | uint32_t(h & 0x8000) << 16);
}

inline uint16_t float_to_half(float v) {
  const int32_t magnitude = int32_t(to_bits(v) & 0x7fffffff);
  const int32_t normal = (magnitude - rebias + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const int32_t subnormal = int32_t(to_bits(from_bits(uint32_t(magnitude)) + 0.5f)) - half_bits;
  int32_t half = magnitude < 0x38800000 ? subnormal : normal;  // 2^-14
  half = magnitude < 0x47800000 ? half : 0x7c00;               // 2^16; what rounds up to it is infinity already
  half = magnitude > infinity_bits ? 0x7e00 | ((magnitude >> 13) & 0x1ff) : half;
  return uint16_t(half | int32_t(to_bits(v) >> 16 & 0x8000));
}
#endif

// Full-scale integer of a value in [0, 1]: clamped, rounded to nearest with ties to even (adding 1.5·2^23 leaves the
// integer in the low bits). NaN becomes 0.
inline uint32_t to_full_scale(float value, float full) {
  value = value > 0.f ? value : 0.f;
  value = value < 1.f ? value : 1.f;
  return to_bits(value * full + 12582912.f) & 0xffff;
}

inline int64_t size_of(Dtype dtype) {
  return dtype == Dtype::u8 ? 1 : dtype == Dtype::f32 ? 4 : 2;
}

inline bool is_integer(Dtype dtype) { return dtype == Dtype::u8 || dtype == Dtype::u16; }

// ---- rows ----

struct Row {
  char* data;
  Dtype dtype;
  int64_t stride;  // in elements
  Row from(int64_t x) const { return {data + x * stride * size_of(dtype), dtype, stride}; }
};

inline Row row(const Tensor& t, int64_t b, int64_t c, int64_t y) {
  const int64_t offset = b * t.strides[0] + c * t.strides[1] + y * t.strides[2];
  return {t.data + offset * size_of(t.dtype), t.dtype, t.strides[3]};
}

inline void load_half(const uint16_t* from, int n, float* to) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < n; ++i) to[i] = half_to_float(from[i]);
}

inline void store_half(const float* from, int n, uint16_t* to) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), 0));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
  for (; i < n; ++i) to[i] = float_to_half(from[i]);
}

// to[i] = convert(from[i]), with separate loops for the strides of planes and of channels_last.
template <class From, class To, class Convert>
inline void convert_row(const From* from, int64_t from_stride, int n, To* to, int64_t to_stride, Convert convert) {
  if (from_stride == 1 && to_stride == 1) {
    for (int i = 0; i < n; ++i) to[i] = convert(from[i]);
  } else if (from_stride == 3) {
    for (int i = 0; i < n; ++i) to[i] = convert(from[i * 3]);
  } else if (to_stride == 3) {
    for (int i = 0; i < n; ++i) to[i * 3] = convert(from[i]);
  } else {
    for (int i = 0; i < n; ++i) to[i * to_stride] = convert(from[i * from_stride]);
  }
}

// n values of a row as float32 (integers: full scale is 1). Returns `scratch`, or the row itself if it is contiguous
// float32 and not shorter than a vector, so that a whole vector can always be read.
inline const float* load(const Row& row, int n, float* scratch) {
  const int64_t s = row.stride;
  const auto* f32 = reinterpret_cast<const float*>(row.data);
  const auto* u16 = reinterpret_cast<const uint16_t*>(row.data);
  const auto* u8 = reinterpret_cast<const uint8_t*>(row.data);
  switch (row.dtype) {
    case Dtype::f32:
      if (s == 1 && n >= 16) return f32;
      convert_row(f32, s, n, scratch, 1, [](float v) { return v; });
      break;
    case Dtype::f16:
      if (s == 1) {
        load_half(u16, n, scratch);
      } else {
        convert_row(u16, s, n, scratch, 1, half_to_float);
      }
      break;
    case Dtype::bf16:
      convert_row(u16, s, n, scratch, 1, [](uint16_t v) { return from_bits(uint32_t(v) << 16); });
      break;
    case Dtype::u8:
      convert_row(u8, s, n, scratch, 1, [](uint8_t v) { return float(v) * (1.f / 255.f); });
      break;
    default:
      convert_row(u16, s, n, scratch, 1, [](uint16_t v) { return float(v) * (1.f / 65535.f); });
      break;
  }
  return scratch;
}

// n pixels of (B, ·, H, W) from (y, x) on, zero where they lie outside.
inline const float* load_padded(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x, int n,
                                float* scratch) {
  const int64_t height = t.shape[2], width = t.shape[3];
  const int64_t begin = x < 0 ? -x : 0, end = y < 0 || y >= height ? 0 : x + n > width ? width - x : n;
  if (begin == 0 && end == n) return load(row(t, b, c, y).from(x), n, scratch);
  std::memset(scratch, 0, size_t(n) * 4);
  if (begin >= end) return scratch;
  const float* values = load(row(t, b, c, y).from(x + begin), int(end - begin), scratch + begin);
  if (values != scratch + begin) std::memcpy(scratch + begin, values, size_t(end - begin) * 4);
  return scratch;
}

// Prefetches a row into the L2 cache.
inline void prefetch(const Row& row, int n) {
  if (row.stride != 1) return;
  for (int64_t byte = 0; byte < n * size_of(row.dtype); byte += 64) __builtin_prefetch(row.data + byte, 0, 2);
}

// The position of a float in its cache line.
inline int line_offset(const void* p) { return int(reinterpret_cast<uintptr_t>(p) / 4 & 15); }

// Streaming stores, which bypass the cache and need aligned addresses. They pay for outputs that are larger than the
// caches and not read soon, since they save reading each line before writing it.
inline void stream(float* to, F4 v) {
#if defined(__SSE2__)
  _mm_stream_ps(to, __m128(v));
#else
  write(to, v);
#endif
}
#if defined(__AVX__)
inline void stream(float* to, F8 v) { _mm256_stream_ps(to, __m256(v)); }
#endif
#if defined(__AVX512F__)
inline void stream(float* to, F16 v) { _mm512_stream_ps(to, __m512(v)); }
#endif
template <class Half>
inline void stream(float* to, Pair<Half> v) {
  stream(to, v.a), stream(to + sizeof(Half) / sizeof(float), v.b);
}

// Computes several rows of n floats together, 16 values at a time: compute(k, i) returns those of row k from i on. They
// are stored directly from registers, with streaming stores if `streaming`, which requires all rows to have the same
// position in their cache lines. Values before the first full line and after the last come from a vector that is moved
// left if it would pass the end of the row; in a row shorter than a vector, the excess is computed and dropped (see
// `load`). `to` may be the memory that is read.
template <int rows, class Compute>
inline void compute_rows(float* const (&to)[rows], int n, bool streaming, const Compute& compute) {
  const auto part = [&](int from, int end) {
    const int start = n < 16 ? 0 : from < n - 16 ? from : n - 16;
    for (int k = 0; k < rows && from < end; ++k) {
      float values[16];
      write(values, compute(k, start));
      std::memcpy(to[k] + from, values + (from - start), size_t(end - from) * 4);
    }
  };
  int i = 0;
  if (streaming) {
    i = line_offset(to[0]) ? 16 - line_offset(to[0]) : 0;
    i = i < n ? i : n;
    part(0, i);
    for (; i + 16 <= n; i += 16)
      for (int k = 0; k < rows; ++k) stream(to[k] + i, compute(k, i));
  } else {
    for (; i + 16 <= n; i += 16)
      for (int k = 0; k < rows; ++k) write(to[k] + i, compute(k, i));
  }
  part(i, n);
}

inline void store(const float* from, int n, const Row& row, bool streaming) {
  const int64_t s = row.stride;
  auto* f32 = reinterpret_cast<float*>(row.data);
  auto* u16 = reinterpret_cast<uint16_t*>(row.data);
  auto* u8 = reinterpret_cast<uint8_t*>(row.data);
  switch (row.dtype) {
    case Dtype::f32:
      if (s == 1 && streaming) {
        compute_rows({f32}, n, true, [from](int, int i) { return read<F16>(from + i); });
      } else if (f32 != from) {
        convert_row(from, 1, n, f32, s, [](float v) { return v; });
      }
      break;
    case Dtype::f16:
      if (s == 1) {
        store_half(from, n, u16);
      } else {
        convert_row(from, 1, n, u16, s, float_to_half);
      }
      break;
    case Dtype::bf16:
      convert_row(from, 1, n, u16, s, to_bf16);
      break;
    case Dtype::u8:
      convert_row(from, 1, n, u8, s, [](float v) { return uint8_t(to_full_scale(v, 255.f)); });
      break;
    default:
      convert_row(from, 1, n, u16, s, [](float v) { return uint16_t(to_full_scale(v, 65535.f)); });
      break;
  }
}

// Stores rows that are computed together, 16 values at a time; float32 rows without a detour through the L1 cache.
template <int rows, class Compute>
inline void store_computed(int n, const Row (&to)[rows], bool streaming, const Compute& compute) {
  float* direct[rows];
  bool alike = true;
  for (int k = 0; k < rows; ++k) {
    direct[k] = reinterpret_cast<float*>(to[k].data);
    alike = alike && to[k].dtype == Dtype::f32 && to[k].stride == 1;
    alike = alike && (!streaming || line_offset(direct[k]) == line_offset(direct[0]));
  }
  if (alike) return compute_rows(direct, n, streaming, compute);
  for (int k = 0; k < rows; ++k) {
    alignas(64) float values[block];
    float* const one[] = {values};
    compute_rows(one, n, false, [&](int, int i) { return compute(k, i); });
    store(values, n, to[k], streaming);
  }
}

// n adjacent pixels of a picture with three channels, as three rows. If the channels of a pixel are adjacent in memory
// (channels_last), they are read together and separated in the L1 cache.
inline bool interleaved(const Tensor& t) { return t.strides[1] == 1 && t.strides[3] == 3; }

template <int size>
inline void load_pixels(const Tensor& t, int64_t b, int64_t y, int64_t x, int n, float (&scratch)[3][size],
                        const float* (&rows)[3]) {
  if (interleaved(t)) {
    alignas(64) float together_scratch[3 * size];
    Row pixels = row(t, b, 0, y).from(x);
    pixels.stride = 1;
    const float* together = load(pixels, 3 * n, together_scratch);
    for (int i = 0; i < n; ++i) {
      scratch[0][i] = together[3 * i];
      scratch[1][i] = together[3 * i + 1];
      scratch[2][i] = together[3 * i + 2];
    }
    for (int c = 0; c < 3; ++c) rows[c] = scratch[c];
  } else {
    for (int c = 0; c < 3; ++c) rows[c] = load(row(t, b, c, y).from(x), n, scratch[c]);
  }
}

// Prefetches the `size` pixels after those at x: three planes that are read in turn, a few lines each, do not let the
// hardware recognise the streams.
template <int size>
inline void prefetch_pixels(const Tensor& t, int64_t b, int64_t y, int64_t x) {
  for (int64_t c = 0; c < 3; ++c) {
    const Row next = row(t, b, c, y).from(x + size);
    for (int64_t i = 0; i < size * size_of(t.dtype); i += 64) __builtin_prefetch(next.data + i);
  }
}

template <int size>
inline void store_pixels(const float (&rows)[3][size], int n, const Tensor& t, int64_t b, int64_t y, int64_t x,
                         bool streaming) {
  if (interleaved(t)) {
    alignas(64) float together[3 * size];
    for (int i = 0; i < n; ++i) {
      together[3 * i] = rows[0][i];
      together[3 * i + 1] = rows[1][i];
      together[3 * i + 2] = rows[2][i];
    }
    Row pixels = row(t, b, 0, y).from(x);
    pixels.stride = 1;
    store(together, 3 * n, pixels, streaming);
  } else {
    for (int c = 0; c < 3; ++c) store(rows[c], n, row(t, b, c, y).from(x), streaming);
  }
}

// Streaming stores are weakly ordered: a thread fences before its rows are handed to another.
inline void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Whether a tensor is larger than the caches, and aligned as streaming stores need it.
inline bool worth_streaming(const Tensor& t) {
  int64_t bytes = size_of(t.dtype);
  for (int i = 0; i < t.ndim; ++i) bytes *= t.shape[i];
  return bytes >= (int64_t(4) << 20) && reinterpret_cast<uintptr_t>(t.data) % 4 == 0;
}

// ---- threads ----

// body(job) for every job, on `threads` threads of the pool that torch uses. One thread never enters a parallel region,
// so that a child process forked from a threaded parent can call this too.
template <class Body>
void parallel(int64_t jobs, int64_t threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1 && jobs > 1) {
#pragma omp parallel num_threads(int(threads))
    {
#pragma omp for schedule(dynamic) nowait
      for (int64_t job = 0; job < jobs; ++job) body(job);
      fence();
    }
    return;
  }
#endif
  for (int64_t job = 0; job < jobs; ++job) body(job);
  fence();
}

// The pixels of (B, ·, H, W) tensors as blocks of at most `block` adjacent pixels in a row. Where every tensor's rows
// follow each other without a gap, the picture is one long row.
struct Pixels {
  int64_t batch, height, width;
  void join_rows(const Tensor& t) { joined = joined && (height == 1 || t.strides[2] == t.strides[3] * width); }
  void join_rows(Optional t) { if (t) join_rows(*t); }
  bool joined = true;
};

// body(b, y, x, n): n pixels of row y of picture b, from column x on; n is at most `size`.
template <int size = block, class Body>
void for_blocks(Pixels pixels, int64_t threads, const Body& body) {
  if (pixels.joined) pixels.width *= pixels.height, pixels.height = 1;
  constexpr int64_t blocks_per_job = pixels_per_job / size;
  const int64_t per_row = (pixels.width + size - 1) / size;
  const int64_t blocks = pixels.batch * pixels.height * per_row;
  parallel((blocks + blocks_per_job - 1) / blocks_per_job, threads, [&](int64_t job) {
    const int64_t end = (job + 1) * blocks_per_job < blocks ? (job + 1) * blocks_per_job : blocks;
    for (int64_t i = job * blocks_per_job; i < end; ++i) {
      const int64_t x = i % per_row * size, line = i / per_row;
      const int n = int(pixels.width - x < size ? pixels.width - x : size);
      body(line / pixels.height, line % pixels.height, x, n);
    }
  });
}

}  // namespace
}  // namespace fastenh
