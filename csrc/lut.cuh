// Code shared by the GPU kernels of LUTs: vertices, cells, interpolation, pixels, sums and packing.
//
// The tables are packed as in lut.h, with the numbers of a vertex adjacent, 4 lanes (R G B 0: one table) or 16 (five
// tables): in float16 where the result is no finer than float16, else in float32. Float16 tables are interpolated in
// float16, two numbers per instruction.
#pragma once
#include <cmath>
#include <type_traits>

#include "device.h"

namespace fastenh {
namespace {

constexpr int tables_per_panel = 5;

// The lane of channel c of table n of a panel.
__host__ __device__ constexpr int lane(int n, int c) { return n < 4 ? 4 * n + c : 4 * c + 3; }

// The numbers of a vertex.
template <class V, int lanes>
struct Vertex;

template <int lanes>
struct alignas(16) Vertex<float, lanes> {
  using Load = uint4;
  float at[lanes];
  __device__ float number(int i) const { return at[i]; }
};

template <int lanes>
struct alignas(lanes * 2 < 16 ? lanes * 2 : 16) Vertex<__half, lanes> {
  using Load = std::conditional_t<lanes == 4, uint2, uint4>;
  __half2 at[lanes / 2];
  __device__ float number(int i) const { return i % 2 ? __high2float(at[i / 2]) : __low2float(at[i / 2]); }
};

// Reads a whole vertex: without this, the compiler would read only three of four lanes, in two steps.
template <class V, int lanes>
__device__ inline Vertex<V, lanes> read_vertex(const Vertex<V, lanes>* from) {
  using Load = typename Vertex<V, lanes>::Load;
  Vertex<V, lanes> vertex;
#pragma unroll
  for (int i = 0; i < int(sizeof vertex / sizeof(Load)); ++i) {
    const Load part = __ldca(reinterpret_cast<const Load*>(from) + i);
    memcpy(reinterpret_cast<char*>(&vertex) + i * sizeof part, &part, sizeof part);
  }
  return vertex;
}

// Not a + f · (b - a), which is NaN between infinite ends and overflows between large ones. Float16 ends are finite
// (see `fitting`), and 1 - f would lose more precision to rounding.
__device__ inline float lerp(float a, float b, float f) { return __fmaf_rn(f, b, (1.f - f) * a); }
__device__ inline __half2 lerp(__half2 a, __half2 b, float f) {
  const __half2 share = __float2half2_rn(f);
  return __hfma2(share, b, __hfma2(__hneg2(share), a, a));
}
__device__ inline float scaled(float f, float a) { return f * a; }
__device__ inline __half2 scaled(float f, __half2 a) { return __hmul2(__float2half2_rn(f), a); }
__device__ inline float add_scaled(float sum, float f, float a) { return __fmaf_rn(f, a, sum); }
__device__ inline __half2 add_scaled(__half2 sum, float f, __half2 a) { return __hfma2(__float2half2_rn(f), a, sum); }

template <class V, int lanes>
__device__ inline Vertex<V, lanes> lerp(const Vertex<V, lanes>& a, const Vertex<V, lanes>& b, float f) {
  Vertex<V, lanes> mixed;
#pragma unroll
  for (int i = 0; i < int(sizeof a.at / sizeof a.at[0]); ++i) mixed.at[i] = lerp(a.at[i], b.at[i], f);
  return mixed;
}

// ---- cells ----

// Distances in vertices from a vertex to the next along G and along B; along R it is 1.
struct Steps {
  int g, b;
  __host__ __device__ constexpr Steps(int g, int b) : g(g), b(b) {}
  __host__ __device__ explicit constexpr Steps(int64_t size) : g(int(size)), b(int(size * size)) {}
  // To the vertex v of a cell, whose bits say whether it is the upper one along R, G and B.
  __host__ __device__ constexpr int to(int v) const { return (v & 1) + (v & 2 ? g : 0) + (v & 4 ? b : 0); }
};

// The grid cell of a pixel, as the index of its lowest vertex, and the position within it.
struct Cell {
  uint32_t corner;
  float fraction[3];
};

// NaN in any channel sets the first fraction to NaN, which makes the whole result NaN.
__device__ inline void spread_nan(Cell& cell, const float (&x)[3]) {
  const bool nan = isnan(x[0]) | isnan(x[1]) | isnan(x[2]);
  cell.fraction[0] = nan ? __uint_as_float(0x7fffffff) : cell.fraction[0];
}

// A uniform grid of D points. `scale` maps a pixel's number to its position in the grid, and full scale to slightly
// less than D - 1, so that it falls into the last cell.
struct Uniform {
  Steps steps;
  uint32_t bias;
  float scale;
  Uniform(int64_t size, double full_scale, Steps steps)
      : steps(steps), bias(0x4b000000u * uint32_t(1 + steps.g + steps.b)), scale(float(double(size - 1) / full_scale)) {
    while (double(scale) * full_scale >= double(size - 1)) scale = std::nextafter(scale, 0.f);
  }
};

// Adding 2²³ and rounding down leaves the integer part in the low bits; `bias` subtracts the bits above them.
__device__ inline Cell find_inner_cell(const float (&x)[3], const Uniform& grid) {
  Cell cell;
  uint32_t whole[3];
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const float below = __fmaf_rd(x[c], grid.scale, 8388608.f);
    whole[c] = __float_as_uint(below);
    cell.fraction[c] = __fmaf_rn(x[c], grid.scale, 8388608.f - below);
  }
  cell.corner = whole[2] * uint32_t(grid.steps.b) + whole[1] * uint32_t(grid.steps.g) + (whole[0] - grid.bias);
  return cell;
}

// x: numbers as number_of<T> gives them.
template <class T>
__device__ inline Cell find_cell(const float (&x)[3], const Uniform& grid) {
  if constexpr (std::is_integral_v<T>) {
    return find_inner_cell(x, grid);
  } else {
    Cell cell = find_inner_cell({__saturatef(x[0]), __saturatef(x[1]), __saturatef(x[2])}, grid);
    spread_nan(cell, x);
    return cell;
  }
}

// The same on any grid, with the derivatives of the fractions, which are zero at the border and beyond. A pixel on a
// vertex gets the same cell as in the reference.
struct Slopes {
  int below[3];  // the cell along each axis
  float of[3];
};
__device__ inline Cell find_cell(const float (&x)[3], const float* places, int size, Slopes& slopes) {
  Cell cell;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    if (places) {
      const float* place = places + c * size;
      int below = 0, above = size - 1;  // the last vertex below x, among those before the last
      while (above - below > 1) {
        const int middle = (below + above) / 2;
        (x[c] > place[middle] ? below : above) = middle;
      }
      const float from = place[below], rise = 1.f / (place[below + 1] - from + 1e-10f);
      const bool inside = x[c] > place[0] && x[c] < place[size - 1];
      const float fraction = (x[c] - from) / (place[below + 1] - from + 1e-10f);
      slopes.below[c] = below;
      cell.fraction[c] = inside ? fraction : fraction < 0.f ? 0.f : fraction > 1.f ? 1.f : fraction;  // keeps NaN
      slopes.of[c] = inside ? rise : 0.f;
    } else {
      const float position = __saturatef(x[c]) * float(size - 1);
      const int whole = int(position);
      slopes.below[c] = whole < size - 2 ? whole : size - 2;
      cell.fraction[c] = position - float(slopes.below[c]);
      slopes.of[c] = x[c] > 0.f && x[c] < 1.f ? float(size - 1) : 0.f;
    }
  }
  cell.corner = uint32_t(slopes.below[0] + size * (slopes.below[1] + size * slopes.below[2]));
  spread_nan(cell, x);
  return cell;
}

// Tetrahedral: the path from the lowest vertex to the highest along the axes, in order of decreasing fractions.
// `second` and `third` are offsets in vertices.
struct Path {
  int second, third;
  float weight[4];
};

__device__ inline Path find_path(const Cell& cell, Steps steps) {
  const float r = cell.fraction[0], g = cell.fraction[1], b = cell.fraction[2];
  const bool rg = r >= g, gb = g >= b, rb = r >= b;
  const float most = rg ? (rb ? r : b) : (gb ? g : b), least = rg ? (gb ? b : g) : (rb ? b : r);
  const float between = rg ? (gb ? g : (rb ? b : r)) : (rb ? r : (gb ? b : g));
  const int largest = rg ? (rb ? 1 : steps.b) : (gb ? steps.g : steps.b);
  const int smallest = rg ? (gb ? steps.b : steps.g) : (rb ? steps.b : 1);
  return {largest, steps.to(7) - smallest,
          {1.f - most + (r - r) + (g - g) + (b - b), most - between, between - least, least}};
}

// ---- interpolation ----

template <bool tetrahedral, class V, int lanes>
__device__ inline Vertex<V, lanes> interpolate(const Vertex<V, lanes>* table, const Cell& cell, Steps steps) {
  const auto vertex = [t = table + cell.corner](int64_t step) { return read_vertex(t + step); };
  if constexpr (tetrahedral) {
    const Path path = find_path(cell, steps);
    const Vertex<V, lanes> v0 = vertex(0), v1 = vertex(path.second), v2 = vertex(path.third), v3 = vertex(steps.to(7));
    Vertex<V, lanes> sum;
#pragma unroll
    for (int i = 0; i < int(sizeof sum.at / sizeof sum.at[0]); ++i) {
      sum.at[i] = add_scaled(scaled(path.weight[0], v0.at[i]), path.weight[1], v1.at[i]);
      sum.at[i] = add_scaled(add_scaled(sum.at[i], path.weight[2], v2.at[i]), path.weight[3], v3.at[i]);
    }
    return sum;
  } else {
    const float fr = cell.fraction[0], fg = cell.fraction[1], fb = cell.fraction[2];
    const int64_t g = steps.g, b = steps.b;
    const Vertex<V, lanes> v[8] = {vertex(0), vertex(1), vertex(g), vertex(g + 1),
                                   vertex(b), vertex(b + 1), vertex(g + b), vertex(g + b + 1)};
    const Vertex<V, lanes> low = lerp(lerp(v[0], v[4], fb), lerp(v[2], v[6], fb), fg);
    const Vertex<V, lanes> high = lerp(lerp(v[1], v[5], fb), lerp(v[3], v[7], fb), fg);
    return lerp(low, high, fr);
  }
}

// The tables of picture b.
template <class V>
__device__ inline const V* tables_of(const Tensor& packed, int64_t b) {
  const int64_t vertices = packed.shape[1] * packed.shape[2] * packed.shape[3] * packed.shape[4];
  return reinterpret_cast<const V*>(packed.data) + (packed.shape[0] == 1 ? 0 : b * vertices);
}

// ---- weights by pixel ----

// The factors of the (up to) five tables of a panel: pixel_weights · weights, zero where there is no table.
struct Blend {
  float of[tables_per_panel];
};

template <class V>
__device__ inline void add_blended(float (&rgb)[3], const Vertex<V, 16>& v, const Blend& blend) {
#pragma unroll
  for (int k = 0; k < tables_per_panel; ++k)
#pragma unroll
    for (int c = 0; c < 3; ++c) rgb[c] = __fmaf_rn(blend.of[k], v.number(lane(k, c)), rgb[c]);
}

// ---- pixels ----

template <class T>
constexpr double full_scale = std::is_integral_v<T> ? double(sizeof(T) == 1 ? 255 : 65535) : 1.;

// in_a_word: how many numbers of type T 4 bytes hold. The i-th number: floats unchanged, integers in [0, full scale].
template <class T>
constexpr int in_a_word = 4 / sizeof(T);

template <class T>
__device__ inline float number_of(uint32_t word, int i) {
  if constexpr (std::is_integral_v<T>) {  // above the number, the bytes of 2²³
    return __uint_as_float(__byte_perm(word, 0x4b000000, sizeof(T) == 1 ? 0x7440 + i : 0x7410 + 0x22 * i)) - 8388608.f;
  } else {
    Pack<T, in_a_word<T>> numbers;
    memcpy(&numbers, &word, 4);
    return to_float(numbers.at[i]);
  }
}

// The lanes of a warp read 4 rows of 8 words: the more similar their pixels, the fewer different vertices they read at
// once. With the strided layout, where the picture may be one long row, they read one row.
template <Layout layout>
constexpr int rows = layout == Layout::strided ? 1 : 4;

template <Layout layout>
Pixels bands_of(int columns, const Tensor& image, const Tensor& out) {
  if (layout == Layout::strided) return Pixels::joining(columns, image.shape[0], image, out);
  return Pixels(columns, image.shape[0], (image.shape[2] + rows<layout> - 1) / rows<layout>, image.shape[3]);
}

// A thread reads several words per channel, `apart` columns from each other, before it uses the first. (In the strided
// layout, where pixels may not be adjacent, it reads single pixels.)
template <Layout layout, class T, int threads, int pixels>
struct Batch {
  static constexpr int n = layout == Layout::strided ? 1 : in_a_word<T>, packs = pixels / n;
  static constexpr int apart = threads / rows<layout> * n, columns = apart * packs;  // of a block in total
  uint32_t words[packs][3];
  int64_t b, y, x;
  int left = 0;  // pixels from the first one to the end of the piece

  __device__ Batch() {}
  // The arguments are those that for_pieces(bands_of<layout>(columns, ...)) passes to its body.
  __device__ Batch(const Tensor& image, int64_t b, int64_t band, int64_t piece, int count) : b(b) {
    constexpr int lanes = 32 / rows<layout>;
    const int lane = int(threadIdx.x) % 32, column = (int(threadIdx.x) / 32 * lanes + lane % lanes) * n;
    y = band * rows<layout> + lane / lanes, x = piece + column;
    left = layout == Layout::strided || y < image.shape[2] ? count - column : 0;
    const T* from = at<const T>(image, b, 0, y, 0) + x * pixel_step(image);
#pragma unroll
    for (int j = 0; j < packs; ++j)
      if (j * apart < left)
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          const auto pack = read_once<T, n>(from + j * apart * pixel_step(image) + c * word_step(image));
          words[j][c] = 0;
          memcpy(&words[j][c], &pack, sizeof pack);
        }
  }

  // Distances in elements from a pixel to the next, and from one of these words (or single numbers) to the next.
  static __device__ int64_t pixel_step(const Tensor& t) {
    return layout == Layout::planar ? 1 : layout == Layout::interleaved ? 3 : t.strides[3];
  }
  static __device__ int64_t word_step(const Tensor& t) { return layout == Layout::interleaved ? n : t.strides[1]; }

  // look_up(rgb, mapped): maps a pixel's colour to the result's
  template <class LookUp>
  __device__ void map(const Tensor& out, const LookUp& look_up) {
    T* to = at<T>(out, b, 0, y, 0) + x * pixel_step(out);
#pragma unroll
    for (int j = 0; j < packs; ++j) {
      if (j * apart >= left) continue;
      Pack<T, n> result[3];
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const auto at = [i](int c) { return layout == Layout::interleaved ? 3 * i + c : n * c + i; };
        float rgb[3];
        T mapped[3];
#pragma unroll
        for (int c = 0; c < 3; ++c) rgb[c] = number_of<T>(words[j][at(c) / n], at(c) % n);
        look_up(rgb, mapped);
#pragma unroll
        for (int c = 0; c < 3; ++c) result[at(c) / n].at[at(c) % n] = mapped[c];
      }
#pragma unroll
      for (int c = 0; c < 3; ++c) write(to + j * apart * pixel_step(out) + c * word_step(out), result[c]);
    }
  }
};

// ---- sums ----

// Sums over many threads, by atomic additions. float32 sums depend on the order of additions. int64 sums, of numbers
// multiplied by `scale` and rounded, do not. A number that is not finite makes the scale, and thus all sums, NaN.
struct Sums {
  Tensor to, scale;
  __device__ void add(int64_t i, float value) const {
    if (to.dtype == Dtype::i64) {
      auto* factor = reinterpret_cast<float*>(scale.data);
      const float units = value * *factor;
      if (!isfinite(units)) *factor = __uint_as_float(0x7fffffff);
      atomicAdd(reinterpret_cast<unsigned long long*>(to.data) + i,
                isfinite(units) ? (unsigned long long)(__float2ll_rn(units)) : 0ull);
    } else {
      atomicAdd(reinterpret_cast<float*>(to.data) + i, value);
    }
  }
};

// Calls body(cell, in) with all lanes of a warp together, once for each different cell of its lanes; `in`: whether the
// cell is this lane's. Lanes without a pixel have the cell `none`.
constexpr uint32_t none = 0xffffffff;
template <class Body>
__device__ void for_cells(uint32_t cell, const Body& body) {
  uint32_t waiting = __ballot_sync(0xffffffff, cell != none);
  while (waiting) {
    const uint32_t current = __shfl_sync(0xffffffff, cell, __ffs(int(waiting)) - 1);
    const bool in = cell == current;
    body(current, in);
    waiting &= ~__ballot_sync(0xffffffff, in);
  }
}

// ---- packing ----

// The nearest finite number of type V; NaN stays NaN.
template <class V>
__device__ inline float fitting(float number) {
  if constexpr (std::is_same_v<V, __half>) return number > 65504.f ? 65504.f : number < -65504.f ? -65504.f : number;
  else return number;
}

// packed (B or 1, panels, D, D, D, 4 or 16) from luts (B or 1, N, 3, D, D, D) of any dtype and strides. With 4 lanes
// the tables are blended: Σₙ weights[b, n] · luts[n]; weights (B, N) contiguous float32.
template <class V, int lanes, int pixels>
__global__ void pack_kernel(Pixels places, Tensor packed, Tensor luts, Tensor weights) {
  const int64_t size = packed.shape[4], panels = packed.shape[1], count = luts.shape[1];
  for_pieces(places, [&](int64_t which, int64_t, int64_t x0, int n) {
    const int64_t b = which / panels, panel = which % panels, i = x0 + threadIdx.x;
    if (i >= x0 + n) return;
    const int64_t from = (luts.shape[0] == 1 ? 0 : b) * luts.strides[0] + i / (size * size) * luts.strides[3] +
                         i / size % size * luts.strides[4] + i % size * luts.strides[5];
    const auto number = [&](int64_t table, int64_t c) {
      return load(luts, from + table * luts.strides[1] + c * luts.strides[2]);
    };
    Pack<V, lanes> vertex = {};
    if constexpr (lanes == 4) {
      const float* w = reinterpret_cast<const float*>(weights.data) + b * count;
      float sums[4] = {};
      for (int64_t k = 0; k < count; ++k)
        for (int c = 0; c < 3; ++c) sums[c] = __fmaf_rn(weights.data ? w[k] : 1.f, number(k, c), sums[c]);
      for (float& sum : sums) sum = fitting<V>(sum);
      vertex = from_floats<V>(sums);
    } else {
#pragma unroll
      for (int k = 0; k < tables_per_panel; ++k)
        if (panel * tables_per_panel + k < count)
          for (int c = 0; c < 3; ++c)
            vertex.at[lane(k, c)] = from_float<V>(fitting<V>(number(panel * tables_per_panel + k, c)));
    }
    write(reinterpret_cast<V*>(packed.data) + (which * size * size * size + i) * lanes, vertex);
  });
}

void pack(const Tensor& packed, const Tensor& luts, Optional weights, int64_t stream) {
  const int64_t size = packed.shape[4];
  const Pixels places(256, packed.shape[0] * packed.shape[1], 1, size * size * size);
  const auto start = [&](auto kernel) {
    launch(kernel, places, {}, packed, stream, packed, luts, or_none(weights));
  };
  const bool half = packed.dtype == Dtype::f16, one = packed.shape[5] == 4;
  if (half) one ? start(pack_kernel<__half, 4, 1>) : start(pack_kernel<__half, 16, 1>);
  else one ? start(pack_kernel<float, 4, 1>) : start(pack_kernel<float, 16, 1>);
}

}  // namespace
}  // namespace fastenh
