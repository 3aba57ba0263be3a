// lut_transform on a GPU: colours through 3D lookup tables.
//
// On a large picture one table in float16 is first copied to the shared memory of every multiprocessor, where even the
// scattered reads of a noisy picture are fast.
#include "lut.cuh"

namespace fastenh {
namespace {

// The weights of a cell's vertices for a pixel; the index of a vertex is R + 2·G + 4·B.
template <bool tetrahedral>
__device__ inline void find_weights(const Cell& cell, Steps steps, float (&weights)[8]) {
  const float fr = cell.fraction[0], fg = cell.fraction[1], fb = cell.fraction[2];
  if constexpr (tetrahedral) {
    const Path path = find_path(cell, steps);
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      const int step = steps.to(v);
      weights[v] = v == 0 ? path.weight[0] : v == 7 ? path.weight[3] : step == path.second ? path.weight[1]
                   : step == path.third ? path.weight[2] : 0.f;
    }
  } else {
#pragma unroll
    for (int v = 0; v < 8; ++v)
      weights[v] = (v & 1 ? fr : 1.f - fr) * (v & 2 ? fg : 1.f - fg) * (v & 4 ? fb : 1.f - fb);
  }
}

// One float16 table in shared memory: R and G of all vertices, then B of all vertices, 6 bytes per vertex. Adjacent
// pixels have similar colours, mostly near gray: of all steps that fit, these distribute the vertices around a gray one
// best over the 32 banks. (With D = 33 itself as a step, all neighbours of a vertex would be in the same bank.)
struct Staged {
  __half2* rg;
  __half* blue;

  __host__ __device__ static constexpr Steps steps(int size) {
    const int g = size + (35 - size % 32) % 32, rows = (size - 1) * g + size;
    return {g, rows + (38 - rows % 32) % 32};
  }
  __host__ __device__ static constexpr int vertices(int size) { return steps(size).to(7) * (size - 1) + 1; }
  static int bytes(int size) { return 6 * vertices(size); }

  __device__ explicit Staged(int size)
      : rg(reinterpret_cast<__half2*>(memory)), blue(reinterpret_cast<__half*>(memory + 4 * vertices(size))) {}

  // To be called by all threads of the block, with a barrier after it.
  __device__ void fill(const Vertex<__half, 4>* table, int size) const {
    for (int i = int(threadIdx.x); i < size * size * size; i += int(blockDim.x)) {
      const int to = i % size + i / size % size * steps(size).g + i / (size * size) * steps(size).b;
      const Vertex<__half, 4> vertex = read_vertex(table + i);
      rg[to] = vertex.at[0];
      blue[to] = __low2half(vertex.at[1]);
    }
  }
};

template <bool tetrahedral>
__device__ inline Vertex<__half, 4> interpolate(const Staged& table, const Cell& cell, Steps steps) {
  const __half2* rg = table.rg + cell.corner;
  const __half* blue = table.blue + cell.corner;
  Vertex<__half, 4> result;
  if constexpr (tetrahedral) {
    const Path path = find_path(cell, steps);
    const int vertices[4] = {0, path.second, path.third, steps.to(7)};
    result.at[0] = scaled(path.weight[0], rg[0]), result.at[1] = scaled(path.weight[0], __half2half2(blue[0]));
#pragma unroll
    for (int i = 1; i < 4; ++i) {
      result.at[0] = add_scaled(result.at[0], path.weight[i], rg[vertices[i]]);
      result.at[1] = add_scaled(result.at[1], path.weight[i], __half2half2(blue[vertices[i]]));
    }
  } else {  // blue of both vertices along R in one register
    const float fr = cell.fraction[0], fg = cell.fraction[1], fb = cell.fraction[2];
    const int g = steps.g, b = steps.b;
    const auto pair = [&](int step) { return __halves2half2(blue[step], blue[step + 1]); };
    const __half2 low = lerp(lerp(rg[0], rg[b], fb), lerp(rg[g], rg[g + b], fb), fg);
    const __half2 high = lerp(lerp(rg[1], rg[1 + b], fb), lerp(rg[1 + g], rg[1 + g + b], fb), fg);
    const __half2 blues = lerp(lerp(pair(0), pair(b), fb), lerp(pair(g), pair(g + b), fb), fg);
    result.at[0] = lerp(low, high, fr);
    result.at[1] = lerp(__low2half2(blues), __high2half2(blues), fr);
  }
  return result;
}

// ---- results ----

template <class T, class V>
__device__ inline void to_colour(const Vertex<V, 4>& v, T (&rgb)[3]) {
  if constexpr (dtype_of<V> == Dtype::f16 && dtype_of<T> == Dtype::f16) {
    rgb[0] = __low2half(v.at[0]), rgb[1] = __high2half(v.at[0]), rgb[2] = __low2half(v.at[1]);
  } else if constexpr (dtype_of<V> == Dtype::f16 && dtype_of<T> == Dtype::u8) {
    // In float16, adding 1024 leaves the rounded number in the last bits.
    const auto rounded = [](__half2 h) {
      const __half2 inside = __hmin2(__hmax2(h, __float2half2_rn(0.f)), __float2half2_rn(1.f));  // NaN becomes 0
      const __half2 bits = __hfma2(inside, __float2half2_rn(255.f), __float2half2_rn(1024.f));
      uint32_t both;
      memcpy(&both, &bits, 4);
      return both;
    };
    const uint32_t rg = rounded(v.at[0]), b = rounded(v.at[1]);
    rgb[0] = uint8_t(rg), rgb[1] = uint8_t(rg >> 16), rgb[2] = uint8_t(b);
  } else {
    for (int c = 0; c < 3; ++c) rgb[c] = from_float<T>(v.number(c));
  }
}

// ---- one table ----

template <class T, class V, Layout layout, bool tetrahedral, int pixels>
__global__ void transform_kernel(Pixels places, Tensor out, Tensor image, Tensor packed, Uniform grid) {
  for_pieces(places, [&](int64_t b, int64_t band, int64_t x, int n) {
    const auto* table = tables_of<Vertex<V, 4>>(packed, b);
    Batch<layout, T, 256, pixels>(image, b, band, x, n).map(out, [&](const float(&rgb)[3], T(&mapped)[3]) {
      to_colour(interpolate<tetrahedral>(table, find_cell<T>(rgb, grid), grid.steps), mapped);
    });
  });
}

// The same with the table in shared memory, with one block per multiprocessor, each for many pieces. A thread reads the
// pixels of its next piece before it processes those of the current one. All pictures share the table. `fixed`: its D
// if that is known at compile time, else 0.
template <class T, Layout layout, bool tetrahedral, int fixed, int pixels>
__global__ void __launch_bounds__(1024) staged_kernel(Pixels places, Tensor out, Tensor image, Tensor packed,
                                                      Uniform grid) {
  const int size = fixed ? fixed : int(packed.shape[4]);
  if (fixed) grid.steps = Staged::steps(fixed);  // not the bias, though: the compiler would split it up in addresses
  const Staged table(size);
  Batch<layout, T, 1024, pixels> now;
  const auto work = [&] {
    now.map(out, [&](const float(&rgb)[3], T(&mapped)[3]) {
      to_colour(interpolate<tetrahedral>(table, find_cell<T>(rgb, grid), grid.steps), mapped);
    });
  };
  bool filled = false;
  for_pieces(places, [&](int64_t b, int64_t band, int64_t x, int n) {
    const Batch<layout, T, 1024, pixels> next(image, b, band, x, n);
    if (!filled) {
      table.fill(tables_of<Vertex<__half, 4>>(packed, 0), size);
      __syncthreads();
      filled = true;
    } else {
      work();
    }
    now = next;
  });
  work();
}

// ---- weights by pixel ----

template <class T, class V, class M, bool tetrahedral, int pixels>
__global__ void blended_kernel(Pixels places, Tensor out, Tensor image, Tensor packed,
                                                      Tensor weights, Tensor pixel_weights, Uniform grid) {
  constexpr int m = pixels;
  const int size = int(packed.shape[4]), count = int(pixel_weights.shape[1]);
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    const auto* table = tables_of<Vertex<V, 16>>(packed, b);
    const auto* w = reinterpret_cast<const float*>(weights.data) + b * count;
    const int i = int(threadIdx.x) * m;
    if (i >= n) return;
    uint32_t words[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const auto pack = read_once<T, m>(at<const T>(image, b, c, y, x0 + i));
      memcpy(&words[c], &pack, 4);
    }
    float sums[m][3] = {};
    for (int first = 0; first < count; first += tables_per_panel, table += size * size * size) {
      const int here = count - first < tables_per_panel ? count - first : tables_per_panel;
      Pack<M, m> by_pixel[tables_per_panel] = {};
#pragma unroll
      for (int k = 0; k < tables_per_panel; ++k)
        if (k < here) by_pixel[k] = read_once<M, m>(at<const M>(pixel_weights, b, first + k, y, x0 + i));
#pragma unroll
      for (int j = 0; j < m; ++j) {
        Blend blend;
#pragma unroll
        for (int k = 0; k < tables_per_panel; ++k)
          blend.of[k] = k < here ? to_float(by_pixel[k].at[j]) * (weights.data ? w[first + k] : 1.f) : 0.f;
        const float rgb[3] = {number_of<T>(words[0], j), number_of<T>(words[1], j), number_of<T>(words[2], j)};
        add_blended(sums[j], interpolate<tetrahedral>(table, find_cell<T>(rgb, grid), grid.steps), blend);
      }
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      Pack<T, m> result;
#pragma unroll
      for (int j = 0; j < m; ++j) result.at[j] = from_float<T>(sums[j][c]);
      write(at<T>(out, b, c, y, x0 + i), result);
    }
  });
}

// ---- any strides, dtypes and grids ----

__device__ inline Blend read_blend(const Tensor& weights, const Tensor& pixel_weights, int first, int64_t b, int64_t y,
                                   int64_t x) {
  Blend blend;
#pragma unroll
  for (int k = 0; k < tables_per_panel; ++k) {
    const int64_t n = first + k, count = pixel_weights.shape[1];
    const float* w = reinterpret_cast<const float*>(weights.data) + b * count + n;
    blend.of[k] = n < count ? load(pixel_weights, b, n, y, x) * (weights.data ? *w : 1.f) : 0.f;
  }
  return blend;
}

__device__ inline const float* places_of(const Tensor& vertices, int64_t b) {
  return vertices.data ? reinterpret_cast<const float*>(vertices.data) + b * 3 * vertices.shape[2] : nullptr;
}

template <class V, int lanes, bool tetrahedral, int pixels>
__global__ void any_kernel(Pixels places, Tensor out, Tensor image, Tensor packed,
                                                  Tensor weights, Tensor pixel_weights, Tensor vertices) {
  const int size = int(packed.shape[4]);
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    for (int64_t x = x0 + threadIdx.x; x < x0 + n; x += blockDim.x) {
      const auto* table = tables_of<Vertex<V, lanes>>(packed, b);
      Slopes slopes;
      const float rgb[3] = {load(image, b, 0, y, x), load(image, b, 1, y, x), load(image, b, 2, y, x)};
      const Cell cell = find_cell(rgb, places_of(vertices, b), size, slopes);
      float sums[3] = {};
      if constexpr (lanes == 4) {
        const Vertex<V, 4> v = interpolate<tetrahedral>(table, cell, Steps(size));
        for (int c = 0; c < 3; ++c) sums[c] = v.number(c);
      } else {
        for (int first = 0; first < pixel_weights.shape[1]; first += tables_per_panel, table += size * size * size) {
          const Blend blend = read_blend(weights, pixel_weights, first, b, y, x);
          add_blended(sums, interpolate<tetrahedral>(table, cell, Steps(size)), blend);
        }
      }
      for (int c = 0; c < 3; ++c) store(out, b, c, y, x, sums[c]);
    }
  });
}

// ---- which kernel ----

// The number of pixels from which it pays that every multiprocessor copies the table first.
constexpr int64_t many = 3 << 20;

template <class T, class V, bool tetrahedral, Layout layout>
void transform_one(const Tensor& out, const Tensor& image, const Tensor& packed, int64_t stream) {
  const int size = int(packed.shape[4]);
  if constexpr (dtype_of<V> == Dtype::f16 && layout != Layout::strided) {
    if (packed.shape[0] == 1 && image.shape[0] * image.shape[2] * image.shape[3] >= many &&
        Staged::bytes(size) <= attribute(image, cudaDevAttrMaxSharedMemoryPerBlockOptin)) {
      const auto start = [&](auto kernel, int columns) {
        const Grid blocks{attribute(image, cudaDevAttrMultiProcessorCount), 1024, Staged::bytes(size)};
        launch(kernel, bands_of<layout>(columns, image, out), blocks, image, stream, out, image, packed,
               Uniform(size, full_scale<T>, Staged::steps(size)));
      };
      if (size == 33) return start(staged_kernel<T, layout, tetrahedral, 33, 8>, Batch<layout, T, 1024, 8>::columns);
      return start(staged_kernel<T, layout, tetrahedral, 0, 4>, Batch<layout, T, 1024, 4>::columns);  // fewer registers
    }
  }
  launch(transform_kernel<T, V, layout, tetrahedral, 8>, bands_of<layout>(Batch<layout, T, 256, 8>::columns, image, out),
         {}, image, stream, out, image, packed, Uniform(size, full_scale<T>, Steps(size)));
}

// Returns false if no fast kernel reads these tensors. It takes pixel_weights of the image's dtype or float32, and for
// uint8 images also float16.
template <class T, class V, bool tetrahedral>
bool transform_blended(const Tensor& out, const Tensor& image, const Tensor& packed, const Tensor& weights,
                       const Tensor& pixel_weights, int64_t stream) {
  using Own = std::conditional_t<std::is_same_v<T, uint8_t>, __half, std::conditional_t<std::is_same_v<T, uint16_t>, float, T>>;
  constexpr int pixels = in_a_word<T>;
  const Pixels places = Pixels::joining(256 * pixels, image.shape[0], image, out, pixel_weights);
  if (layout_of(places, pixels, image, out, pixel_weights) != Layout::planar) return false;
  const auto start = [&](auto kernel) {
    launch(kernel, places, {}, image, stream, out, image, packed, weights, pixel_weights, Uniform(packed.shape[4], full_scale<T>, Steps(packed.shape[4])));
    return true;
  };
  if (pixel_weights.dtype == dtype_of<Own>) return start(blended_kernel<T, V, Own, tetrahedral, pixels>);
  if (pixel_weights.dtype == Dtype::f32) return start(blended_kernel<T, V, float, tetrahedral, pixels>);
  return false;
}

template <bool tetrahedral>
void transform_as(const Tensor& out, const Tensor& image, const Tensor& packed, const Tensor& weights,
                  const Tensor& pixel_weights, const Tensor& vertices, int64_t stream) {
  bool done = false;
  if (!vertices.data) {
    with_type(image.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      using V = std::conditional_t<std::is_same_v<T, __half> || std::is_same_v<T, uint8_t>, __half, float>;
      if (packed.dtype != dtype_of<V>) throw std::invalid_argument("lut_transform: tables of another dtype");
      if (pixel_weights.data) {
        done = transform_blended<T, V, tetrahedral>(out, image, packed, weights, pixel_weights, stream);
        return;
      }
      done = true;
      const Pixels rows(1, image.shape[0], image.shape[2], image.shape[3]);
      switch (image.shape[2] < 4 ? Layout::strided : layout_of(rows, in_a_word<T>, image, out)) {
        case Layout::planar: return transform_one<T, V, tetrahedral, Layout::planar>(out, image, packed, stream);
        case Layout::interleaved:
          return transform_one<T, V, tetrahedral, Layout::interleaved>(out, image, packed, stream);
        case Layout::strided: return transform_one<T, V, tetrahedral, Layout::strided>(out, image, packed, stream);
      }
    });
  }
  if (done) return;
  const auto start = [&](auto kernel) {
    launch(kernel, Pixels::joining(256, image.shape[0], image, out, pixel_weights), {}, image, stream, out, image,
           packed, weights, pixel_weights, vertices);
  };
  const bool half = packed.dtype == Dtype::f16, one = packed.shape[5] == 4;
  if (half) one ? start(any_kernel<__half, 4, tetrahedral, 1>) : start(any_kernel<__half, 16, tetrahedral, 1>);
  else one ? start(any_kernel<float, 4, tetrahedral, 1>) : start(any_kernel<float, 16, tetrahedral, 1>);
}

// image, out (B, 3, H, W); packed (B or 1, panels, D, D, D, 4 or 16), float16 for float16 and uint8 images, else
// float32; weights (B, N) and vertices (B, 3, D): contiguous float32; pixel_weights (B, N, H, W)
void transform(const Tensor& out, const Tensor& image, const Tensor& packed, Optional weights, Optional pixel_weights,
               Optional vertices, int64_t tetrahedral, int64_t stream) {
  (tetrahedral ? transform_as<true> : transform_as<false>)(out, image, packed, or_none(weights), or_none(pixel_weights),
                                                          or_none(vertices), stream);
}

// ---- small pictures ----

// One launch, with unpacked tables: luts (N, 3, D, D, D) or (B, N, 3, D, D, D), the rest as for `transform`.
template <bool tetrahedral, int pixels>
__global__ void small_kernel(Pixels places, Tensor out, Tensor image, Tensor luts, Tensor weights,
                             Tensor pixel_weights, Tensor vertices) {
  const int own = luts.ndim - 5, size = int(luts.shape[own + 2]);
  const int64_t count = luts.shape[own], *strides = luts.strides + own;
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    const int64_t x = x0 + threadIdx.x;
    if (int(threadIdx.x) >= n) return;
    Slopes slopes;
    const float rgb[3] = {load(image, b, 0, y, x), load(image, b, 1, y, x), load(image, b, 2, y, x)};
    const Cell cell = find_cell(rgb, places_of(vertices, b), size, slopes);
    constexpr int corners = tetrahedral ? 4 : 8;
    float by_corner[8], sums[3] = {};
    const Path path = find_path(cell, Steps(2, 4));  // steps that are the bits of a vertex
    if constexpr (tetrahedral) memcpy(by_corner, path.weight, sizeof path.weight);
    else find_weights<false>(cell, Steps(size), by_corner);
    for (int64_t k = 0; k < count; ++k) {
      const float blend = (weights.data ? reinterpret_cast<const float*>(weights.data)[b * count + k] : 1.f) *
                          (pixel_weights.data ? load(pixel_weights, b, k, y, x) : 1.f);
      const int64_t corner = (own ? b * luts.strides[0] : 0) + k * strides[0] + slopes.below[2] * strides[2] +
                             slopes.below[1] * strides[3] + slopes.below[0] * strides[4];
#pragma unroll
      for (int i = 0; i < corners; ++i) {
        const int v = !tetrahedral ? i : i == 0 ? 0 : i == 1 ? path.second : i == 2 ? path.third : 7;
        const int64_t at = corner + (v & 1 ? strides[4] : 0) + (v & 2 ? strides[3] : 0) + (v & 4 ? strides[2] : 0);
#pragma unroll
        for (int c = 0; c < 3; ++c) sums[c] = __fmaf_rn(blend * by_corner[i], load(luts, at + c * strides[1]), sums[c]);
      }
    }
    for (int c = 0; c < 3; ++c) store(out, b, c, y, x, sums[c]);
  });
}

void transform_small(const Tensor& out, const Tensor& image, const Tensor& luts, Optional weights,
                     Optional pixel_weights, Optional vertices, int64_t tetrahedral, int64_t stream) {
  launch(tetrahedral ? small_kernel<true, 1> : small_kernel<false, 1>,
         Pixels::joining(64, image.shape[0], image, out, or_none(pixel_weights)), {INT64_MAX, 64}, image, stream, out,
         image, luts, or_none(weights), or_none(pixel_weights), or_none(vertices));
}

// ---- backward ----

// A warp first sums its pixels in the same cell, and adds the sum to memory only when the next pixels are in another
// cell: a picture of few colours would otherwise add to a few addresses all the time.
//
// Sums 8 numbers, one for each vertex, over all lanes of a warp, and distributes the sums by halving repeatedly: lane l
// gets that of vertex l % 8.
__device__ inline float share_out(const float (&of_vertex)[8]) {
  const int self = int(threadIdx.x) % 32;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool upper = self & 4;
    four[i] = (upper ? of_vertex[i + 4] : of_vertex[i]) +
              __shfl_xor_sync(0xffffffff, upper ? of_vertex[i] : of_vertex[i + 4], 4);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = self & 2;
    two[i] = (upper ? four[i + 2] : four[i]) + __shfl_xor_sync(0xffffffff, upper ? four[i] : four[i + 2], 2);
  }
  const bool upper = self & 1;
  float one = (upper ? two[1] : two[0]) + __shfl_xor_sync(0xffffffff, upper ? two[0] : two[1], 1);
  one += __shfl_xor_sync(0xffffffff, one, 8);
  return one + __shfl_xor_sync(0xffffffff, one, 16);
}

// The derivatives by the fractions of the interpolation between numbers at the vertices.
template <bool tetrahedral>
__device__ inline void differentiate(const float (&at)[8], const Cell& cell, Steps steps, float (&by)[3]) {
  const float fr = cell.fraction[0], fg = cell.fraction[1], fb = cell.fraction[2];
  if constexpr (tetrahedral) {
    const Path path = find_path(cell, steps);
    float second = 0.f, third = 0.f;
#pragma unroll
    for (int v = 1; v < 7; ++v) {
      second = steps.to(v) == path.second ? at[v] : second;
      third = steps.to(v) == path.third ? at[v] : third;
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int step = steps.to(1 << c);
      by[c] = step == path.second ? second - at[0] : step == path.third - path.second ? third - second : at[7] - third;
    }
  } else {
    const auto across = [&](int v, int first, float f, int second, float g) {  // a face of the cell
      return lerp(lerp(at[v], at[v + first], f), lerp(at[v + second], at[v + first + second], f), g);
    };
    by[0] = across(1, 2, fg, 4, fb) - across(0, 2, fg, 4, fb);
    by[1] = across(2, 1, fr, 4, fb) - across(0, 1, fr, 4, fb);
    by[2] = across(4, 1, fr, 2, fg) - across(0, 1, fr, 2, fg);
  }
}

// A pixel in the backward passes: the gradient of its result, its cell, and the derivatives of its fractions.
struct Graded {
  float g[3];
  Slopes slopes;
  Cell cell;
  __device__ Graded(const Tensor& grad, const Tensor& image, const float* grid, int size, int64_t b, int64_t y,
                    int64_t x) {
    float rgb[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) g[c] = load(grad, b, c, y, x), rgb[c] = load(image, b, c, y, x);
    cell = find_cell(rgb, grid, size, slopes);
  }
};

// A warp takes 32 adjacent pixels per step; all its lanes take every step, even those without a pixel.
constexpr int steps_a_warp = 8;

// sums (B, panels, D, D, D, lanes), zero at first: the gradient of the packed tables, which excludes `weights` where
// there are pixel_weights.
template <int lanes, bool tetrahedral, int pixels>
__global__ void __launch_bounds__(256) table_sums_kernel(Pixels places, Sums sums, Tensor grad, Tensor image,
                                                         Tensor pixel_weights, Tensor vertices) {
  constexpr int tables = lanes == 4 ? 1 : tables_per_panel;
  const int size = int(sums.to.shape[4]), self = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int count = lanes == 4 ? 1 : int(pixel_weights.shape[1]);
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    for (int first = 0; first < count; first += tables_per_panel) {
      // The sums of the previous cell, not added to memory yet: each lane's share, a number for each table and channel.
      uint32_t before = none;
      float waiting[tables][3];
      // Lane l holds vertex l % 8, of which lanes 0 to 7 add R, 8 to 15 G, 16 to 23 B.
      const auto flush = [&] {
        const int c = self / 8;
        if (before == none || c == 3) return;
        const int64_t vertex = before + Steps(size).to(self);
        const int64_t panel = b * sums.to.shape[1] + first / tables_per_panel;
        const int64_t at = (panel * size * size * size + vertex) * lanes;
#pragma unroll
        for (int k = 0; k < tables; ++k)
          if (first + k < count)
            sums.add(at + (lanes == 4 ? c : k < 4 ? 4 * k + c : 4 * c + 3), c == 0   ? waiting[k][0]
                                                                            : c == 1 ? waiting[k][1]
                                                                                     : waiting[k][2]);
      };
      for (int step = 0; step < steps_a_warp; ++step) {
        const int i = (warp * steps_a_warp + step) * 32 + self;
        const bool there = i < n;
        const int64_t x = x0 + (there ? i : 0);
        const Graded pixel(grad, image, places_of(vertices, b), size, b, y, x);
        float weights[8], blend[tables];
        find_weights<tetrahedral>(pixel.cell, Steps(size), weights);
#pragma unroll
        for (int k = 0; k < tables; ++k)
          blend[k] = lanes == 4 ? 1.f : first + k < count ? load(pixel_weights, b, first + k, y, x) : 0.f;
        for_cells(there ? pixel.cell.corner : none, [&](uint32_t current, bool in) {
          if (current != before) {
            flush();
            before = current;
#pragma unroll
            for (int k = 0; k < tables; ++k) waiting[k][0] = waiting[k][1] = waiting[k][2] = 0.f;
          }
          float here[8];
#pragma unroll
          for (int v = 0; v < 8; ++v) here[v] = in ? weights[v] : 0.f;
#pragma unroll
          for (int k = 0; k < tables; ++k)
#pragma unroll
            for (int c = 0; c < 3; ++c) {
              const float gradient = in ? blend[k] * pixel.g[c] : 0.f;
              float shares[8];
#pragma unroll
              for (int v = 0; v < 8; ++v) shares[v] = here[v] * gradient;
              waiting[k][c] += share_out(shares);
            }
        });
      }
      flush();
    }
  });
}

// The gradients of pixels and, in sums (B, 3, D), zero at first, those of the positions of the grid points.
template <int lanes, bool tetrahedral, int pixels>
__global__ void __launch_bounds__(256) pixel_gradients_kernel(Pixels places, Tensor grad_image,
                                                              Tensor grad_pixel_weights, Sums sums, Tensor grad,
                                                              Tensor image, Tensor packed, Tensor weights,
                                                              Tensor pixel_weights, Tensor vertices) {
  constexpr int tables = lanes == 4 ? 1 : tables_per_panel;
  const int size = int(packed.shape[4]), self = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int count = lanes == 4 ? 1 : int(pixel_weights.shape[1]);
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    const float* w = reinterpret_cast<const float*>(weights.data) + b * count;
    uint32_t before[3] = {none, none, none};  // as in table_sums_kernel; lane 0 has the lower vertex, lane 1 the upper
    float waiting[3] = {};
    const auto flush = [&](int c) {
      if (before[c] != none && self < 2) sums.add((b * 3 + c) * size + before[c] + self, waiting[c]);
    };
    for (int step = 0; step < steps_a_warp; ++step) {
      const int i = (warp * steps_a_warp + step) * 32 + self;
      const bool there = i < n;
      const int64_t x = x0 + (there ? i : 0);
      const Graded pixel(grad, image, places_of(vertices, b), size, b, y, x);
      float at[8] = {}, by_vertex[8];  // at the cell's vertices: the blended tables times the pixel's gradient
      find_weights<tetrahedral>(pixel.cell, Steps(size), by_vertex);
      for (int first = 0; first < count; first += tables_per_panel) {
        const auto* table = tables_of<Vertex<float, lanes>>(packed, b) + pixel.cell.corner +
                            int64_t(first / tables_per_panel) * size * size * size;
        float blend[tables], by_blend[tables] = {};
#pragma unroll
        for (int k = 0; k < tables; ++k)
          blend[k] = lanes == 4          ? 1.f
                     : first + k < count ? load(pixel_weights, b, first + k, y, x) * (weights.data ? w[first + k] : 1.f)
                                         : 0.f;
#pragma unroll(lanes == 4 ? 8 : 1)  // all vertices of five tables at once would not fit the registers
        for (int v = 0; v < 8; ++v) {
          const auto vertex = read_vertex(table + Steps(size).to(v));
          float weight = 0.f, total = 0.f;
#pragma unroll
          for (int u = 0; u < 8; ++u) weight = u == v ? by_vertex[u] : weight;
#pragma unroll
          for (int k = 0; k < tables; ++k) {
            float sum = 0.f;
#pragma unroll
            for (int c = 0; c < 3; ++c) sum = __fmaf_rn(pixel.g[c], vertex.at[lanes == 4 ? c : lane(k, c)], sum);
            by_blend[k] = __fmaf_rn(weight, sum, by_blend[k]);
            total = __fmaf_rn(blend[k], sum, total);
          }
#pragma unroll
          for (int u = 0; u < 8; ++u) at[u] += u == v ? total : 0.f;
        }
        if (!grad_pixel_weights.data || !there) continue;
#pragma unroll
        for (int k = 0; k < tables; ++k)
          if (first + k < count)
            store(grad_pixel_weights, b, first + k, y, x, by_blend[k] * (weights.data ? w[first + k] : 1.f));
      }
      float by[3];
      differentiate<tetrahedral>(at, pixel.cell, Steps(size), by);
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        by[c] *= pixel.slopes.of[c];
        if (grad_image.data && there) store(grad_image, b, c, y, x, by[c]);
        if (!sums.to.data) continue;
        const float upper = by[c] * pixel.cell.fraction[c];
        for_cells(there ? uint32_t(pixel.slopes.below[c]) : none, [&](uint32_t current, bool in) {
          float low = in ? upper - by[c] : 0.f, high = in ? -upper : 0.f;
#pragma unroll
          for (int distance = 16; distance; distance /= 2) {
            low += __shfl_xor_sync(0xffffffff, low, distance);
            high += __shfl_xor_sync(0xffffffff, high, distance);
          }
          if (current != before[c]) {
            flush(c);
            before[c] = current, waiting[c] = 0.f;
          }
          waiting[c] += self == 0 ? low : high;
        });
      }
    }
    for (int c = 0; c < 3; ++c) flush(c);
  });
}

// packed in float32. The sums as in the kernels above, of all pictures; float32, or int64 in units of 1 / scale.
void backward(Optional grad_image, Optional table_sums, Optional grad_pixel_weights, Optional vertex_sums,
              const Tensor& grad, const Tensor& image, const Tensor& packed, Optional weights, Optional pixel_weights,
              Optional vertices, Optional table_scale, Optional vertex_scale, int64_t tetrahedral, int64_t stream) {
  const bool one = packed.shape[5] == 4;
  const Pixels places = Pixels::joining(256 * steps_a_warp, image.shape[0], image, grad, or_none(grad_image),
                                        or_none(pixel_weights), or_none(grad_pixel_weights));
  if (table_sums) {
    const auto kernel = one ? (tetrahedral ? table_sums_kernel<4, true, 1> : table_sums_kernel<4, false, 1>)
                            : (tetrahedral ? table_sums_kernel<16, true, 1> : table_sums_kernel<16, false, 1>);
    launch(kernel, places, {}, image, stream, Sums{*table_sums, or_none(table_scale)}, grad, image,
           or_none(pixel_weights), or_none(vertices));
  }
  if (grad_image || grad_pixel_weights || vertex_sums) {
    const auto kernel = one ? (tetrahedral ? pixel_gradients_kernel<4, true, 1> : pixel_gradients_kernel<4, false, 1>)
                            : (tetrahedral ? pixel_gradients_kernel<16, true, 1> : pixel_gradients_kernel<16, false, 1>);
    launch(kernel, places, {}, image, stream, or_none(grad_image), or_none(grad_pixel_weights),
           Sums{or_none(vertex_sums), or_none(vertex_scale)}, grad, image, packed, or_none(weights),
           or_none(pixel_weights), or_none(vertices));
  }
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&pack>("lut_pack"),
    kernel<&transform>("lut_transform"),
    kernel<&transform_small>("lut_transform_small"),
    kernel<&backward>("lut_transform_backward"),
    {},
};

}  // namespace fastenh
