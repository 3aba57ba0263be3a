// lut_transform: colour through 3D lookup tables.
//
// The tables are repacked so that what a pixel needs of a vertex is neighbouring floats, one vector load:
//   4 lanes   one table:              R G B 0
//   16 lanes  a panel of five tables: R0 G0 B0 R4 | R1 G1 B1 G4 | R2 G2 B2 B4 | R3 G3 B3 0
// A block of pixels passes in three steps, each over contiguous rows in the L1 cache: cells and fractions for many
// pixels at once; then pixel by pixel, interpolation across channels and tables; then back to planes.
#include "rows.h"
#include "vectors.h"

namespace fastenh {
namespace {

constexpr int tile = 128;  // pixels a block: all rows below together fit the L1 cache
constexpr int tables_per_panel = 5;

template <int lanes>
struct VectorOf {
  using type = F16;
};
template <>
struct VectorOf<4> {
  using type = F4;
};
template <int lanes>
using Vector = typename VectorOf<lanes>::type;

// Where the channel c of table n of a panel stands among the 16 lanes.
inline int lane(int n, int c) { return n < 4 ? 4 * n + c : 4 * c + 3; }

// Five weights, one a table, at the lanes of their tables.
inline F16 spread(F8 w) {
#if defined(__AVX__)
  return join(__builtin_shufflevector(w, w, 0, 0, 0, 4, 1, 1, 1, 4), __builtin_shufflevector(w, w, 2, 2, 2, 4, 3, 3, 3, 4));
#else
  const F4 a = low(w), b = high(w);
  return join(join(__builtin_shufflevector(a, b, 0, 0, 0, 4), __builtin_shufflevector(a, b, 1, 1, 1, 4)),
              join(__builtin_shufflevector(a, b, 2, 2, 2, 4), __builtin_shufflevector(a, b, 3, 3, 3, 4)));
#endif
}

// The three channels of one value at the lanes of every table.
inline F16 repeat(F4 v) {
  return join(join(__builtin_shufflevector(v, v, 0, 1, 2, 0), __builtin_shufflevector(v, v, 0, 1, 2, 1)),
              join(__builtin_shufflevector(v, v, 0, 1, 2, 2), v));
}

// Sums over the tables of a panel: R G B ·
inline F4 sum_tables(F16 v) {
  const F4 a = low(low(v)), b = high(low(v)), c = low(high(v)), d = high(high(v));
  const F4 last = __builtin_shufflevector(__builtin_shufflevector(a, b, 3, 7, 3, 7), c, 0, 1, 7, 7);
  return ((a + c) + (b + d)) + last;
}

// ---- step 1: cells ----

// Which cell of the grid a pixel falls into and where in it.
struct Cells {
  alignas(64) float fraction[3][tile];
  alignas(64) int32_t cell[3][tile];
  alignas(64) int32_t corner[tile];  // the cell's lowest vertex, counted in vertices
  // Tetrahedral: from the lowest vertex to the highest along the axes, the largest fraction first.
  alignas(64) int32_t second[tile], third[tile];
  alignas(64) float weight[4][tile];
};

// NaN passes through to the fraction, but not to the cell. Whole vectors: x is read, and the rest written, beyond n.
inline void uniform_cells(const float* x, int n, int size, float* fraction, int32_t* cell) {
  const Wide zero = {}, one = zero + 1.f, last = zero + (float(size) - 1.5f);
  for (int i = 0; i < n; i += wide) {
    const Wide position = least(one, most(zero, read<Wide>(x + i))) * float(size - 1);
    const WideInt c = __builtin_convertvector(least(most(position, zero), last), WideInt);
    std::memcpy(cell + i, &c, sizeof c);
    write(fraction + i, position - __builtin_convertvector(c, Wide));
  }
}

inline void vertex_cells(const float* x, int n, int size, const float* vertices, float* fraction, int32_t* cell) {
  for (int i = 0; i < n; ++i) cell[i] = 0;
  for (int v = 1; v < size - 1; ++v) {
    const float place = vertices[v];
    for (int i = 0; i < n; ++i) cell[i] += x[i] > place;
  }
  const float first = vertices[0], last = vertices[size - 1];
  for (int i = 0; i < n; ++i) {
    const float from = vertices[cell[i]], f = (x[i] - from) / (vertices[cell[i] + 1] - from + 1e-10f);
    const bool inside = x[i] > first && x[i] < last;
    fraction[i] = inside ? f : f < 0.f ? 0.f : f > 1.f ? 1.f : f;
  }
}

// slope[i]: how the fraction grows with the pixel's value; zero at the border of the grid and beyond it.
inline void find_slopes(const float* x, int n, int size, const float* vertices, const int32_t* cell, float* slope) {
  const float first = vertices ? vertices[0] : 0.f, last = vertices ? vertices[size - 1] : 1.f;
  for (int i = 0; i < n; ++i) {
    const float rise = vertices ? 1.f / (vertices[cell[i] + 1] - vertices[cell[i]] + 1e-10f) : float(size - 1);
    slope[i] = x[i] > first && x[i] < last ? rise : 0.f;
  }
}

template <bool tetrahedral>
inline void find_cells(Cells& cells, const float* const values[3], int n, int size, const float* vertices) {
  alignas(64) float padded[3][tile];
  const float* x[3] = {values[0], values[1], values[2]};
  for (int c = 0; c < 3; ++c) {
    if (n % wide) x[c] = static_cast<float*>(std::memcpy(padded[c], x[c], size_t(n) * sizeof(float)));
    if (vertices) {
      vertex_cells(x[c], n, size, vertices + c * size, cells.fraction[c], cells.cell[c]);
    } else {
      uniform_cells(x[c], n, size, cells.fraction[c], cells.cell[c]);
    }
  }
  for (int i = 0; i < n; ++i)
    cells.corner[i] = cells.cell[0][i] + size * (cells.cell[1][i] + size * cells.cell[2][i]);
  if (!tetrahedral) return;
  const int32_t all = 1 + size + size * size;
  for (int i = 0; i < n; ++i) {
    const float r = cells.fraction[0][i], g = cells.fraction[1][i], b = cells.fraction[2][i];
    const float rg_most = r >= g ? r : g, rg_least = r >= g ? g : r;
    const float most = rg_most >= b ? rg_most : b, least = rg_least < b ? rg_least : b;
    const float between = rg_most >= b ? (rg_least >= b ? rg_least : b) : rg_most;
    const int32_t rg_most_step = r >= g ? 1 : size, rg_least_step = r >= g ? size : 1;
    const int32_t b_step = size * size;
    cells.second[i] = rg_most >= b ? rg_most_step : b_step;
    cells.third[i] = all - (rg_least < b ? rg_least_step : b_step);
    cells.weight[0][i] = 1.f - most + (r - r) + (g - g) + (b - b);  // NaN where any is
    cells.weight[1][i] = most - between;
    cells.weight[2][i] = between - least;
    cells.weight[3][i] = least;
  }
}

// ---- step 2: interpolation ----

template <int lanes, bool tetrahedral>
inline Vector<lanes> interpolate(const float* table, const Cells& cells, int i, int64_t size) {
  using V = Vector<lanes>;
  const float* t = table + int64_t(cells.corner[i]) * lanes;
  if constexpr (tetrahedral) {
    const int64_t all = (1 + size + size * size) * lanes;
    return (cells.weight[0][i] * read<V>(t) + cells.weight[1][i] * read<V>(t + int64_t(cells.second[i]) * lanes)) +
           (cells.weight[2][i] * read<V>(t + int64_t(cells.third[i]) * lanes) + cells.weight[3][i] * read<V>(t + all));
  } else {
    const int64_t g = size * lanes, b = size * g;
    const float fr = cells.fraction[0][i], fg = cells.fraction[1][i], fb = cells.fraction[2][i];
    if constexpr (lanes == 4) {  // both vertices along R in one load
      const F8 v0 = lerp(read<F8>(t), read<F8>(t + b), fb), v1 = lerp(read<F8>(t + g), read<F8>(t + g + b), fb);
      const F8 v = lerp(v0, v1, fg);
      return lerp(low(v), high(v), fr);
    } else {
      const V v00 = lerp(read<V>(t), read<V>(t + b), fb), v01 = lerp(read<V>(t + g), read<V>(t + g + b), fb);
      const V v10 = lerp(read<V>(t + lanes), read<V>(t + lanes + b), fb);
      const V v11 = lerp(read<V>(t + lanes + g), read<V>(t + lanes + g + b), fb);
      return lerp(lerp(v00, v01, fg), lerp(v10, v11, fg), fr);
    }
  }
}

// R G B · R G B · ... to rows of R, G and B; whole vectors, beyond n.
inline void part_channels(const float* pixels, int n, float (&rows)[3][tile]) {
#if defined(__AVX__)
  for (int i = 0; i < n; i += 8) {
    const float* p = pixels + i * 4;
    const F8 a = join(read<F4>(p), read<F4>(p + 16)), b = join(read<F4>(p + 4), read<F4>(p + 20));
    const F8 c = join(read<F4>(p + 8), read<F4>(p + 24)), d = join(read<F4>(p + 12), read<F4>(p + 28));
    const F8 ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);  // R R G G of pixels 0 1, 4 5
    const F8 cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13);
    const F8 ab_b = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const F8 cd_b = __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    write(rows[0] + i, __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13));
    write(rows[1] + i, __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15));
    write(rows[2] + i, __builtin_shufflevector(ab_b, cd_b, 0, 1, 8, 9, 4, 5, 12, 13));
  }
#else
  for (int i = 0; i < n; ++i)
    for (int c = 0; c < 3; ++c) rows[c][i] = pixels[i * 4 + c];
#endif
}

// Weights of the (up to) five tables of a panel, eight floats a pixel: pixel_weights · weights, zero for no table.
inline void gather_blend(const Tensor& pixel_weights, const float* weights, int64_t b, int64_t panel, int64_t y,
                         int64_t x, int n, float* blend) {
  alignas(64) float scratch[tile];
  std::memset(blend, 0, size_t(n) * 8 * sizeof(float));
  for (int k = 0; k < tables_per_panel; ++k) {
    const int64_t table = panel * tables_per_panel + k;
    if (table >= pixel_weights.shape[1]) return;
    const float* row_k = load(row(pixel_weights, b, table, y).from(x), n, scratch);
    const float w = weights ? weights[table] : 1.f;
    for (int i = 0; i < n; ++i) blend[i * 8 + k] = row_k[i] * w;
  }
}

// image, out (B, 3, H, W); packed (B or 1, panels, D, D, D, 4 or 16) as in the head of this file;
// weights (B, N) and vertices (B, 3, D): contiguous float32; pixel_weights (B, N, H, W)
template <int lanes, bool tetrahedral>
void transform_as(const Tensor& out, const Tensor& image, const Tensor& packed, Optional weights,
                  Optional pixel_weights, Optional vertices, int64_t threads) {
  const int64_t size = packed.shape[4], panels = packed.shape[1];
  const auto* tables = reinterpret_cast<const float*>(packed.data);
  Pixels pixels{image.shape[0], image.shape[2], image.shape[3]};
  pixels.join_rows(image), pixels.join_rows(out), pixels.join_rows(pixel_weights);
  const bool streaming = worth_streaming(out);
  for_blocks<tile>(pixels, threads, [&](int64_t b, int64_t y, int64_t x, int n) {
    alignas(64) float rows[3][tile], result[tile * 4], blend[lanes == 16 ? tile * 8 : 1];
    Cells cells;
    const float* in[3];
    load_pixels(image, b, y, x, n, rows, in);
    prefetch_pixels<tile>(image, b, y, x);
    const auto* v = vertices ? reinterpret_cast<const float*>(vertices->data) + b * 3 * size : nullptr;
    find_cells<tetrahedral>(cells, in, n, int(size), v);
    const float* table = tables + (packed.shape[0] == 1 ? 0 : b) * panels * size * size * size * lanes;
    for (int64_t panel = 0; panel < panels; ++panel, table += size * size * size * lanes) {
      if constexpr (lanes == 4) {
        for (int i = 0; i < n; ++i) write(result + i * 4, interpolate<4, tetrahedral>(table, cells, i, size));
      } else {
        const auto* w = weights ? reinterpret_cast<const float*>(weights->data) + b * weights->shape[1] : nullptr;
        gather_blend(*pixel_weights, w, b, panel, y, x, n, blend);
        for (int i = 0; i < n; ++i) {
          const F16 value = interpolate<16, tetrahedral>(table, cells, i, size);
          const F4 sum = sum_tables(value * spread(read<F8>(blend + i * 8)));
          write(result + i * 4, panel == 0 ? sum : sum + read<F4>(result + i * 4));
        }
      }
    }
    part_channels(result, n, rows);
    store_pixels(rows, n, out, b, y, x, streaming);
  });
}

void transform(const Tensor& out, const Tensor& image, const Tensor& packed, Optional weights, Optional pixel_weights,
               Optional vertices, int64_t tetrahedral, int64_t threads) {
  const auto as = packed.shape[5] == 4 ? (tetrahedral ? transform_as<4, true> : transform_as<4, false>)
                                       : (tetrahedral ? transform_as<16, true> : transform_as<16, false>);
  as(out, image, packed, weights, pixel_weights, vertices, threads);
}

// ---- packing ----

// packed (B or 1, panels, D, D, D, 4 or 16) from luts (B or 1, N, 3, D, D, D) of any dtype and strides. With 4 lanes
// the tables are blended: Σₙ weights[b, n] · luts[n]; weights (B, N) contiguous float32.
void pack(const Tensor& packed, const Tensor& luts, Optional weights, int64_t threads) {
  const int64_t size = packed.shape[4], panels = packed.shape[1], count = luts.shape[1];
  const int lanes = int(packed.shape[5]);
  const auto lut_row = [&](int64_t b, int64_t n, int c, int64_t line) {
    const int64_t offset = (luts.shape[0] == 1 ? 0 : b) * luts.strides[0] + n * luts.strides[1] + c * luts.strides[2] +
                           line / size * luts.strides[3] + line % size * luts.strides[4];
    return Row{luts.data + offset * size_of(luts.dtype), luts.dtype, luts.strides[5]};
  };
  parallel(packed.shape[0] * panels * size * size, threads, [&](int64_t job) {
    float scratch[256], sum[256];
    const int64_t line = job % (size * size), panel = job / (size * size) % panels, b = job / (size * size * panels);
    float* to = reinterpret_cast<float*>(packed.data) + job * size * lanes;
    std::memset(to, 0, size_t(size * lanes) * sizeof(float));
    const int n = int(size);
    if (lanes == 4) {
      const auto* w = weights ? reinterpret_cast<const float*>(weights->data) + b * count : nullptr;
      for (int c = 0; c < 3; ++c) {
        for (int64_t k = 0; k < count; ++k) {
          const float* from = load(lut_row(b, k, c, line), n, scratch);
          const float factor = w ? w[k] : 1.f;
          for (int i = 0; i < n; ++i) sum[i] = k == 0 ? factor * from[i] : sum[i] + factor * from[i];
        }
        for (int i = 0; i < n; ++i) to[i * 4 + c] = sum[i];
      }
    } else {
      for (int k = 0; k < tables_per_panel && panel * tables_per_panel + k < count; ++k)
        for (int c = 0; c < 3; ++c) {
          const float* from = load(lut_row(b, panel * tables_per_panel + k, c, line), n, scratch);
          for (int i = 0; i < n; ++i) to[i * 16 + lane(k, c)] = from[i];
        }
    }
  });
}

// ---- backward ----

// The gradient of one pixel's interpolation by its three fractions, each a vector over lanes: what the result gains as
// the fraction of R, G or B grows.
template <int lanes, bool tetrahedral, class V>
inline void differentiate(const float* table, const Cells& cells, int i, int64_t size, V& by_r, V& by_g, V& by_b) {
  const float* t = table + int64_t(cells.corner[i]) * lanes;
  const int64_t g = size * lanes, b = size * g;
  if constexpr (tetrahedral) {
    const int64_t second = int64_t(cells.second[i]) * lanes, third = int64_t(cells.third[i]) * lanes;
    const V v1 = read<V>(t + second), v2 = read<V>(t + third);
    const V edge[3] = {v1 - read<V>(t), v2 - v1, read<V>(t + lanes + g + b) - v2};
    const int64_t steps[3] = {lanes, g, b};
    V* const by[3] = {&by_r, &by_g, &by_b};
    for (int c = 0; c < 3; ++c)
      *by[c] = edge[steps[c] == second ? 0 : steps[c] == third - second ? 1 : 2];
  } else {
    const float fr = cells.fraction[0][i], fg = cells.fraction[1][i], fb = cells.fraction[2][i];
    const V v000 = read<V>(t), v100 = read<V>(t + lanes), v010 = read<V>(t + g), v110 = read<V>(t + g + lanes);
    const V v001 = read<V>(t + b), v101 = read<V>(t + b + lanes), v011 = read<V>(t + b + g);
    const V v111 = read<V>(t + b + g + lanes);
    const V v00 = lerp(v000, v001, fb), v10 = lerp(v100, v101, fb), v01 = lerp(v010, v011, fb);
    const V v11 = lerp(v110, v111, fb);
    by_r = lerp(v10 - v00, v11 - v01, fg);
    by_g = lerp(v01 - v00, v11 - v10, fr);
    by_b = lerp(lerp(v001 - v000, v101 - v100, fr), lerp(v011 - v010, v111 - v110, fr), fg);
  }
}

// Adds value · (its interpolation weight) to every vertex of the pixel's cell.
template <int lanes, bool tetrahedral, class V>
inline void scatter(float* table, const Cells& cells, int i, int64_t size, V value) {
  float* t = table + int64_t(cells.corner[i]) * lanes;
  const int64_t g = size * lanes, b = size * g;
  if constexpr (tetrahedral) {
    const int64_t steps[4] = {0, int64_t(cells.second[i]) * lanes, int64_t(cells.third[i]) * lanes, lanes + g + b};
    for (int k = 0; k < 4; ++k) write(t + steps[k], read<V>(t + steps[k]) + cells.weight[k][i] * value);
  } else {
    const float fr = cells.fraction[0][i], fg = cells.fraction[1][i], fb = cells.fraction[2][i];
    const V v1 = fr * value, v0 = value - v1;
    const float weight[4] = {(1 - fg) * (1 - fb), fg * (1 - fb), (1 - fg) * fb, fg * fb};
    const int64_t steps[4] = {0, g, b, g + b};
    for (int k = 0; k < 4; ++k) {
      float* to = t + steps[k];
      if constexpr (lanes == 4) {  // both vertices along R at once
        const F8 both = join(v0, v1);
        write(to, read<F8>(to) + weight[k] * both);
      } else {
        write(to, read<V>(to) + weight[k] * v0);
        write(to + lanes, read<V>(to + lanes) + weight[k] * v1);
      }
    }
  }
}

// The gradients for picture b. All but grad_image and grad_pixel_weights are sums over the picture's pixels, which
// `parts` threads take in equal, fixed shares, so that the result does not depend on luck:
//   grad_packed (parts, 2, panels, D, D, D, lanes), zero; the result is the sum over parts of [:, 1]. The pixels of a
//     chunk add up in [:, 0] first: a float32 sum over millions of pixels in one cell would stop growing.
//   grad_vertices (parts, 3, D), zero; the result is the sum over parts
// grad_packed is the gradient by the table that a pixel's blend multiplies: without `weights` where there are
// pixel_weights.
template <int lanes, bool tetrahedral>
void backward_as(Optional grad_image, Optional grad_packed, Optional grad_pixel_weights, Optional grad_vertices,
                 const Tensor& grad, const Tensor& image, const Tensor& packed, Optional weights,
                 Optional pixel_weights, Optional vertices, int64_t b, int64_t parts, int64_t threads) {
  using V = Vector<lanes>;
  constexpr int64_t chunk = 1 << 15;
  const int64_t size = packed.shape[4], panels = packed.shape[1], floats = size * size * size * lanes;
  const int64_t height = image.shape[2], width = image.shape[3];
  const auto* tables = reinterpret_cast<const float*>(packed.data) + (packed.shape[0] == 1 ? 0 : b) * panels * floats;
  const auto* places = vertices ? reinterpret_cast<const float*>(vertices->data) + b * 3 * size : nullptr;
  const auto* w = weights && pixel_weights ? reinterpret_cast<const float*>(weights->data) + b * weights->shape[1]
                                           : nullptr;
  parallel(parts, threads, [&](int64_t part) {
    alignas(64) float in_rows[3][tile], grad_rows[3][tile], blend[tile * 8], by_fraction[3][tile], by_blend[8][tile];
    Cells cells;
    float* sums = grad_packed ? reinterpret_cast<float*>(grad_packed->data) + part * 2 * panels * floats : nullptr;
    float* vertex_sums = grad_vertices ? reinterpret_cast<float*>(grad_vertices->data) + part * 3 * size : nullptr;
    const auto flush = [&] {
      float* totals = sums + panels * floats;
      for (int64_t i = 0; i < panels * floats; ++i) totals[i] += sums[i], sums[i] = 0.f;
    };
    int64_t in_chunk = 0;
    for (int64_t y = height * part / parts; y < height * (part + 1) / parts; ++y) {
      for (int64_t x = 0; x < width; x += tile) {
        const int n = int(width - x < tile ? width - x : tile);
        const float *in[3], *g[3];
        load_pixels(image, b, y, x, n, in_rows, in);
        load_pixels(grad, b, y, x, n, grad_rows, g);
        find_cells<tetrahedral>(cells, in, n, int(size), places);
        std::memset(by_fraction, 0, sizeof by_fraction);
        for (int64_t panel = 0; panel < panels; ++panel) {
          const float* table = tables + panel * floats;
          if (lanes == 16) gather_blend(*pixel_weights, nullptr, b, panel, y, x, n, blend);
          for (int i = 0; i < n; ++i) {
            const F4 g4 = {g[0][i], g[1][i], g[2][i], 0.f};
            V gradient, blended;  // by the panel's tables; the same with `weights`
            if constexpr (lanes == 4) {
              gradient = blended = g4;
            } else {
              const F16 g16 = repeat(g4);
              if (grad_pixel_weights) {
                const F16 product = g16 * interpolate<16, tetrahedral>(table, cells, i, size);
                for (int k = 0; k < 4; ++k)
                  by_blend[k][i] = product[4 * k] + product[4 * k + 1] + product[4 * k + 2];
                by_blend[4][i] = product[3] + product[7] + product[11];
              }
              gradient = g16 * spread(read<F8>(blend + i * 8));
              blended = gradient;
              if (w) {
                float factor[8] = {};
                for (int k = 0; k < tables_per_panel && panel * tables_per_panel + k < weights->shape[1]; ++k)
                  factor[k] = w[panel * tables_per_panel + k];
                blended = blended * spread(read<F8>(factor));
              }
            }
            if (sums) scatter<lanes, tetrahedral>(sums + panel * floats, cells, i, size, gradient);
            if (grad_image || vertex_sums) {
              V by[3];
              differentiate<lanes, tetrahedral>(table, cells, i, size, by[0], by[1], by[2]);
              for (int c = 0; c < 3; ++c) {
                const V product = by[c] * blended;
                float sum = 0.f;
                for (int k = 0; k < (lanes == 4 ? 3 : 15); ++k) sum += product[k];
                by_fraction[c][i] += sum;
              }
            }
          }
          for (int k = 0; grad_pixel_weights && k < tables_per_panel; ++k) {
            const int64_t table_index = panel * tables_per_panel + k;
            if (table_index >= pixel_weights->shape[1]) break;
            const float factor = w ? w[table_index] : 1.f;
            for (int i = 0; i < n; ++i) by_blend[k][i] *= factor;
            store(by_blend[k], n, row(*grad_pixel_weights, b, table_index, y).from(x), false);
          }
        }
        for (int c = 0; c < 3; ++c) {
          alignas(64) float slope[tile];
          find_slopes(in[c], n, int(size), places ? places + c * size : nullptr, cells.cell[c], slope);
          for (int i = 0; i < n; ++i) by_fraction[c][i] *= slope[i];
          for (int i = 0; vertex_sums && i < n; ++i) {
            float* at = vertex_sums + c * size + cells.cell[c][i];
            at[0] += by_fraction[c][i] * (cells.fraction[c][i] - 1.f);
            at[1] -= by_fraction[c][i] * cells.fraction[c][i];
          }
        }
        if (grad_image) store_pixels(by_fraction, n, *grad_image, b, y, x, false);
        if ((in_chunk += n) >= chunk && sums) flush(), in_chunk = 0;
      }
    }
    if (sums) flush();
  });
}

void backward(Optional grad_image, Optional grad_packed, Optional grad_pixel_weights, Optional grad_vertices,
              const Tensor& grad, const Tensor& image, const Tensor& packed, Optional weights, Optional pixel_weights,
              Optional vertices, int64_t tetrahedral, int64_t b, int64_t parts, int64_t threads) {
  const auto as = packed.shape[5] == 4 ? (tetrahedral ? backward_as<4, true> : backward_as<4, false>)
                                       : (tetrahedral ? backward_as<16, true> : backward_as<16, false>);
  as(grad_image, grad_packed, grad_pixel_weights, grad_vertices, grad, image, packed, weights, pixel_weights, vertices,
     b, parts, threads);
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&pack>("lut_pack"),
    kernel<&transform>("lut_transform"),
    kernel<&backward>("lut_transform_backward"),
    {},
};

}  // namespace fastenh
