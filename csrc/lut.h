// Lookups in 3D tables, for CPU kernels.
//
// The tables are packed so that all numbers of a vertex are adjacent and read with one vector load:
//   4 lanes   one table:              R G B 0
//   16 lanes  a panel of five tables: R0 G0 B0 R4 | R1 G1 B1 G4 | R2 G2 B2 B4 | R3 G3 B3 0
// A block of pixels is processed in three steps, each over contiguous rows in the L1 cache: cells and fractions of many
// pixels at once; interpolation, pixel by pixel, across channels and tables; and conversion back to planes.
#pragma once
#include "rows.h"
#include "vectors.h"

namespace fastenh {
namespace {

constexpr int tile = 128;  // pixels per block: all rows below fit into the L1 cache together
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

// Spreads five weights, one per table, over the lanes of their tables.
inline F16 spread(F8 w) {
#if defined(__AVX__)
  return join(__builtin_shufflevector(w, w, 0, 0, 0, 4, 1, 1, 1, 4), __builtin_shufflevector(w, w, 2, 2, 2, 4, 3, 3, 3, 4));
#else
  const F4 a = low(w), b = high(w);
  return join(join(__builtin_shufflevector(a, b, 0, 0, 0, 4), __builtin_shufflevector(a, b, 1, 1, 1, 4)),
              join(__builtin_shufflevector(a, b, 2, 2, 2, 4), __builtin_shufflevector(a, b, 3, 3, 3, 4)));
#endif
}

// Sums over the tables of a panel: R G B ·
inline F4 sum_tables(F16 v) {
  const F4 a = low(low(v)), b = high(low(v)), c = low(high(v)), d = high(high(v));
  const F4 last = __builtin_shufflevector(__builtin_shufflevector(a, b, 3, 7, 3, 7), c, 0, 1, 7, 7);
  return ((a + c) + (b + d)) + last;
}

// ---- step 1: cells ----

// The grid cells of pixels, and the positions within them.
struct Cells {
  alignas(64) float fraction[3][tile];
  alignas(64) int32_t cell[3][tile];
  alignas(64) int32_t corner[tile];  // the cell's lowest vertex, counted in vertices
  // Tetrahedral: the path from the lowest vertex to the highest along the axes, in order of decreasing fractions.
  alignas(64) int32_t second[tile], third[tile];
  alignas(64) float weight[4][tile];
};

// NaN passes through to the fraction, but not to the cell. Works on whole vectors, so it reads and writes beyond n.
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

// Adds a panel of five tables, each times its factor among the pixel's eight in `blend`, to R G B · of n pixels; or
// sets these, if `begin`.
template <bool tetrahedral>
inline void blend_panel(const float* table, const Cells& cells, const float* blend, int n, int64_t size, bool begin,
                        float* pixels) {
  for (int i = 0; i < n; ++i) {
    const F16 value = interpolate<16, tetrahedral>(table, cells, i, size);
    const F4 sum = sum_tables(value * spread(read<F8>(blend + i * 8)));
    write(pixels + i * 4, begin ? sum : sum + read<F4>(pixels + i * 4));
  }
}

// Numbers at the vertices of a pixel's cell. Trilinear: by bits, R + 2·G + 4·B. Tetrahedral: along the pixel's path.
template <bool tetrahedral>
constexpr int corners = tetrahedral ? 4 : 8;

template <int lanes, bool tetrahedral>
inline void read_vertices(const float* table, const Cells& cells, int i, int64_t size,
                          Vector<lanes> (&v)[corners<tetrahedral>]) {
  const float* t = table + int64_t(cells.corner[i]) * lanes;
  const int64_t g = size * lanes, b = size * g;
  if constexpr (tetrahedral) {
    const int64_t steps[4] = {0, int64_t(cells.second[i]) * lanes, int64_t(cells.third[i]) * lanes, lanes + g + b};
    for (int k = 0; k < 4; ++k) v[k] = read<Vector<lanes>>(t + steps[k]);
  } else {
    for (int k = 0; k < 8; ++k) v[k] = read<Vector<lanes>>(t + (k & 1) * lanes + (k >> 1 & 1) * g + (k >> 2) * b);
  }
}

// The derivatives of the interpolated number by the fractions of R, G and B.
template <bool tetrahedral, class V>
inline void differentiate(const V* v, const Cells& cells, int i, int size, V (&by)[3]) {
  if constexpr (tetrahedral) {
    const V edge[3] = {v[1] - v[0], v[2] - v[1], v[3] - v[2]};
    const int32_t steps[3] = {1, size, size * size}, second = cells.second[i], third = cells.third[i];
    for (int c = 0; c < 3; ++c) by[c] = edge[steps[c] == second ? 0 : steps[c] == third - second ? 1 : 2];
  } else {
    const float fr = cells.fraction[0][i], fg = cells.fraction[1][i], fb = cells.fraction[2][i];
    const auto across = [v](int from, int first, float f, int second, float g) {  // a face of the cell
      return lerp(lerp(v[from], v[from + first], f), lerp(v[from + second], v[from + first + second], f), g);
    };
    by[0] = across(1, 2, fg, 4, fb) - across(0, 2, fg, 4, fb);
    by[1] = across(2, 1, fr, 4, fb) - across(0, 1, fr, 4, fb);
    by[2] = across(4, 1, fr, 2, fg) - across(0, 1, fr, 2, fg);
  }
}

// ---- step 3: planes ----

// R G B · R G B · ... to rows of R, G and B. Works on whole vectors, so it reads and writes beyond n.
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

}  // namespace
}  // namespace fastenh
