// lut_transform: colours through 3D lookup tables.
#include "lut.h"

namespace fastenh {
namespace {

// Repeats the three channels of a value at the lanes of every table.
inline F16 repeat(F4 v) {
  return join(join(__builtin_shufflevector(v, v, 0, 1, 2, 0), __builtin_shufflevector(v, v, 0, 1, 2, 1)),
              join(__builtin_shufflevector(v, v, 0, 1, 2, 2), v));
}

inline float weight_of(Optional weights, int64_t b, int64_t table) {
  return weights ? reinterpret_cast<const float*>(weights->data)[b * weights->shape[1] + table] : 1.f;
}

// The factors of a table at n pixels.
inline void load_factors(float weight, Optional pixel_weights, int64_t b, int64_t table, int64_t y, int64_t x, int n,
                         float* factors) {
  alignas(64) float scratch[tile];
  const float* by_pixel = pixel_weights ? load(row(*pixel_weights, b, table, y).from(x), n, scratch) : nullptr;
  for (int i = 0; i < n; ++i) factors[i] = by_pixel ? weight * by_pixel[i] : weight;
}

// The factors of the (up to) five tables of a panel, eight floats per pixel, zero where there is no table.
inline void gather_blend(const Tensor& pixel_weights, Optional weights, int64_t b, int64_t panel, int64_t y, int64_t x,
                         int n, float* blend) {
  alignas(64) float factors[tile];
  std::memset(blend, 0, size_t(n) * 8 * sizeof(float));
  for (int k = 0; k < tables_per_panel; ++k) {
    const int64_t table = panel * tables_per_panel + k;
    if (table >= pixel_weights.shape[1]) return;
    load_factors(weight_of(weights, b, table), {&pixel_weights}, b, table, y, x, n, factors);
    for (int i = 0; i < n; ++i) blend[i * 8 + k] = factors[i];
  }
}

inline const float* places_of(Optional vertices, int64_t b) {
  return vertices ? reinterpret_cast<const float*>(vertices->data) + b * 3 * vertices->shape[2] : nullptr;
}

// image, out (B, 3, H, W); packed (B or 1, panels, D, D, D, 4 or 16) as in the head of lut.h;
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
    find_cells<tetrahedral>(cells, in, n, int(size), places_of(vertices, b));
    const float* table = tables + (packed.shape[0] == 1 ? 0 : b) * panels * size * size * size * lanes;
    for (int64_t panel = 0; panel < panels; ++panel, table += size * size * size * lanes) {
      if constexpr (lanes == 4) {
        for (int i = 0; i < n; ++i) write(result + i * 4, interpolate<4, tetrahedral>(table, cells, i, size));
      } else {
        gather_blend(*pixel_weights, weights, b, panel, y, x, n, blend);
        blend_panel<tetrahedral>(table, cells, blend, n, size, panel == 0, result);
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

// The lane of channel c of table n of a panel.
inline int lane(int n, int c) { return n < 4 ? 4 * n + c : 4 * c + 3; }

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

// slope[i]: the derivative of the fraction by the pixel's value, zero at the border of the grid and beyond.
inline void find_slopes(const float* x, int n, int size, const float* vertices, const int32_t* cell, float* slope) {
  const float first = vertices ? vertices[0] : 0.f, last = vertices ? vertices[size - 1] : 1.f;
  for (int i = 0; i < n; ++i) {
    const float rise = vertices ? 1.f / (vertices[cell[i] + 1] - vertices[cell[i]] + 1e-10f) : float(size - 1);
    slope[i] = x[i] > first && x[i] < last ? rise : 0.f;
  }
}

// Converts the gradients by the fractions of n pixels to gradients by their values, and adds the gradients by the
// positions of the grid points to vertex_sums (3, D).
inline void finish_pixels(float (&by_fraction)[3][tile], Optional grad_image, float* vertex_sums, const Cells& cells,
                          const float* const in[3], int n, int size, const float* places, int64_t b, int64_t y,
                          int64_t x) {
  alignas(64) float slope[tile];
  for (int c = 0; c < 3; ++c) {
    find_slopes(in[c], n, size, places ? places + c * size : nullptr, cells.cell[c], slope);
    for (int i = 0; i < n; ++i) by_fraction[c][i] *= slope[i];
    for (int i = 0; vertex_sums && i < n; ++i) {
      float* at = vertex_sums + c * size + cells.cell[c][i];
      at[0] += by_fraction[c][i] * (cells.fraction[c][i] - 1.f);
      at[1] -= by_fraction[c][i] * cells.fraction[c][i];
    }
  }
  if (grad_image) store_pixels(by_fraction, n, *grad_image, b, y, x, false);
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
// `parts` threads divide into equal, fixed parts, so that the result is reproducible:
//   grad_packed (parts, 2, panels, D, D, D, lanes), zero at first; the result is the sum over parts of [:, 1]. The
//     pixels of a chunk are summed in [:, 0] first: a float32 sum over millions of pixels in a cell would stop growing.
//   grad_vertices (parts, 3, D), zero at first; the result is the sum over parts
// grad_packed is the gradient of the packed tables, which excludes `weights` where there are pixel_weights.
template <int lanes, bool tetrahedral>
void backward_as(Optional grad_image, Optional grad_packed, Optional grad_pixel_weights, Optional grad_vertices,
                 const Tensor& grad, const Tensor& image, const Tensor& packed, Optional weights,
                 Optional pixel_weights, Optional vertices, int64_t b, int64_t parts, int64_t threads) {
  using V = Vector<lanes>;
  constexpr int64_t chunk = 1 << 15;
  const int64_t size = packed.shape[4], panels = packed.shape[1], floats = size * size * size * lanes;
  const int64_t height = image.shape[2], width = image.shape[3];
  const auto* tables = reinterpret_cast<const float*>(packed.data) + (packed.shape[0] == 1 ? 0 : b) * panels * floats;
  const float* places = places_of(vertices, b);
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
          if (lanes == 16) gather_blend(*pixel_weights, {}, b, panel, y, x, n, blend);
          for (int i = 0; i < n; ++i) {
            const F4 g4 = {g[0][i], g[1][i], g[2][i], 0.f};
            V gradient, blended;  // of the panel's tables; the same times `weights`
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
              V v[corners<tetrahedral>], by[3];
              read_vertices<lanes, tetrahedral>(table, cells, i, size, v);
              differentiate<tetrahedral>(v, cells, i, int(size), by);
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
        finish_pixels(by_fraction, grad_image, vertex_sums, cells, in, n, int(size), places, b, y, x);
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

// ---- without packed tables ----
//
// For pictures so small that packing the tables would take longer than the lookups: luts (N, 3, D, D, D) or
// (B, N, 3, D, D, D) of any dtype and strides; the rest as for `transform` and `backward`.

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
inline float number(float v) { return v; }
inline float number(Half v) { return half_to_float(v.bits); }
inline float number(Bf16 v) { return from_bits(uint32_t(v.bits) << 16); }

// run(Number{}) for the kind of number that the tables hold.
template <class Run>
inline void with_numbers(const Tensor& luts, const Run& run) {
  luts.dtype == Dtype::f32 ? run(float{}) : luts.dtype == Dtype::f16 ? run(Half{}) : run(Bf16{});
}

// The tables of one picture. Strides count elements.
template <class Number>
struct Tables {
  Number* data;
  int64_t count, table, channel, b, g, r;

  Tables(const Tensor& luts, int64_t picture) {
    const int own = luts.ndim - 5;
    const int64_t* s = luts.strides + own;
    data = reinterpret_cast<Number*>(luts.data) + (own ? picture * luts.strides[0] : 0);
    count = luts.shape[own], table = s[0], channel = s[1], b = s[2], g = s[3], r = s[4];
  }
};

// Offsets in a table and weights of the vertices of each pixel's cell, in the order of `read_vertices`.
template <bool tetrahedral>
struct Corners {
  static constexpr int count = corners<tetrahedral>;
  int64_t step[count];                  // from the lowest vertex; tetrahedral: except the second and the third
  int64_t second[tile], third[tile];
  int64_t lowest[tile];
  alignas(64) float weight[count][tile];

  template <class Number>
  Corners(const Cells& cells, int n, int size, const Tables<Number>& t) {
    for (int i = 0; i < n; ++i)
      lowest[i] = cells.cell[0][i] * t.r + cells.cell[1][i] * t.g + cells.cell[2][i] * t.b;
    if constexpr (tetrahedral) {
      step[0] = 0, step[3] = t.r + t.g + t.b;
      const auto stride = [&](int32_t along) { return along == 1 ? t.r : along == size ? t.g : t.b; };
      for (int i = 0; i < n; ++i) {
        second[i] = stride(cells.second[i]);
        third[i] = step[3] - stride(1 + size + size * size - cells.third[i]);
      }
      std::memcpy(weight, cells.weight, sizeof weight);
    } else {
      const auto &[r, g, b] = cells.fraction;
      for (int k = 0; k < 8; ++k) {
        step[k] = (k & 1 ? t.r : 0) + (k & 2 ? t.g : 0) + (k & 4 ? t.b : 0);
        for (int i = 0; i < n; ++i)
          weight[k][i] = (k & 1 ? r[i] : 1.f - r[i]) * (k & 2 ? g[i] : 1.f - g[i]) * (k & 4 ? b[i] : 1.f - b[i]);
      }
    }
  }

  int64_t at(int k, int i) const {
    if constexpr (tetrahedral) return lowest[i] + (k == 1 ? second[i] : k == 2 ? third[i] : step[k]);
    return lowest[i] + step[k];
  }
};

template <bool tetrahedral, class Number>
void transform_small_as(const Tensor& out, const Tensor& image, const Tensor& luts, Optional weights,
                        Optional pixel_weights, Optional vertices, int64_t threads) {
  const int size = int(luts.shape[luts.ndim - 1]);
  Pixels pixels{image.shape[0], image.shape[2], image.shape[3]};
  pixels.join_rows(image), pixels.join_rows(out), pixels.join_rows(pixel_weights);
  for_blocks<tile>(pixels, threads, [&](int64_t b, int64_t y, int64_t x, int n) {
    alignas(64) float rows[3][tile], sums[3][tile] = {}, factors[tile];
    const float* in[3];
    load_pixels(image, b, y, x, n, rows, in);
    Cells cells;
    find_cells<tetrahedral>(cells, in, n, size, places_of(vertices, b));
    const Tables<Number> tables(luts, b);
    const Corners<tetrahedral> corners(cells, n, size, tables);
    for (int64_t k = 0; k < tables.count; ++k) {
      load_factors(weight_of(weights, b, k), pixel_weights, b, k, y, x, n, factors);
      const Number* red = tables.data + k * tables.table;
      const Number *green = red + tables.channel, *blue = green + tables.channel;
      for (int i = 0; i < n; ++i) {
        float sum[3] = {};
        for (int v = 0; v < corners.count; ++v) {
          const int64_t at = corners.at(v, i);
          const float weight = corners.weight[v][i];
          sum[0] += weight * number(red[at]), sum[1] += weight * number(green[at]), sum[2] += weight * number(blue[at]);
        }
        for (int c = 0; c < 3; ++c) sums[c][i] += factors[i] * sum[c];
      }
    }
    store_pixels(sums, n, out, b, y, x, false);
  });
}

void transform_small(const Tensor& out, const Tensor& image, const Tensor& luts, Optional weights,
                     Optional pixel_weights, Optional vertices, int64_t tetrahedral, int64_t threads) {
  with_numbers(luts, [&]<class Number>(Number) {
    const auto as = tetrahedral ? transform_small_as<true, Number> : transform_small_as<false, Number>;
    as(out, image, luts, weights, pixel_weights, vertices, threads);
  });
}

// Adds to grad_luts (float32, shape of luts). Threads take different tables and channels, so that none waits for
// another and the result is reproducible. Adjacent pixels in the same cell are summed first, which is faster and keeps
// the sums of flat pictures from losing small terms.
template <bool tetrahedral>
void scatter_small(const Tensor& grad_luts, const Tensor& grad, const Tensor& image, Optional weights,
                   Optional pixel_weights, Optional vertices, int64_t threads) {
  const int64_t pictures = grad_luts.ndim == 6 ? image.shape[0] : 1, count = grad_luts.shape[grad_luts.ndim - 5];
  const int64_t height = image.shape[2], width = image.shape[3];
  const int size = int(grad_luts.shape[grad_luts.ndim - 1]);
  if (image.shape[0] * height * width < pixels_per_job) threads = 1;
  parallel(pictures * count * 3, threads, [&](int64_t job) {
    const int64_t c = job % 3, k = job / 3 % count, own = job / (3 * count);
    alignas(64) float rows[3][tile], scratch[tile], factors[tile];
    for (int64_t b = own; b < (pictures > 1 ? own + 1 : image.shape[0]); ++b) {
      const Tables<float> tables(grad_luts, b);
      float* table = tables.data + k * tables.table + c * tables.channel;
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; x += tile) {
          const int n = int(width - x < tile ? width - x : tile);
          const float* in[3];
          load_pixels(image, b, y, x, n, rows, in);
          const float* g = load(row(grad, b, c, y).from(x), n, scratch);
          Cells cells;
          find_cells<tetrahedral>(cells, in, n, size, places_of(vertices, b));
          const Corners<tetrahedral> corners(cells, n, size, tables);
          load_factors(weight_of(weights, b, k), pixel_weights, b, k, y, x, n, factors);
          for (int i = 0; i < n;) {
            const int first = i;
            float sums[corners.count] = {};
            do {
              for (int v = 0; v < corners.count; ++v) sums[v] += corners.weight[v][i] * (factors[i] * g[i]);
              ++i;
            } while (i < n && corners.lowest[i] == corners.lowest[first] &&
                     (!tetrahedral || (corners.second[i] == corners.second[first] &&
                                       corners.third[i] == corners.third[first])));
            for (int v = 0; v < corners.count; ++v) table[corners.at(v, first)] += sums[v];
          }
        }
    }
  });
}

// Fills the gradients of image and pixel_weights, and adds those of weights to grad_weights (B, parts, N) and those of
// vertices to grad_vertices (B, parts, 3, D). Both are zero at first, and the result is their sum over parts.
template <bool tetrahedral, class Number>
void backward_small_as(Optional grad_image, Optional grad_weights, Optional grad_pixel_weights, Optional grad_vertices,
                       const Tensor& grad, const Tensor& image, const Tensor& luts, Optional weights,
                       Optional pixel_weights, Optional vertices, int64_t parts, int64_t threads) {
  const int64_t height = image.shape[2], width = image.shape[3];
  const int size = int(luts.shape[luts.ndim - 1]);
  parallel(image.shape[0] * parts, threads, [&](int64_t job) {
    const int64_t b = job / parts, part = job % parts;
    const Tables<Number> tables(luts, b);
    const float* places = places_of(vertices, b);
    auto* weight_sums = grad_weights ? reinterpret_cast<float*>(grad_weights->data) + job * tables.count : nullptr;
    auto* vertex_sums = grad_vertices ? reinterpret_cast<float*>(grad_vertices->data) + job * 3 * size : nullptr;
    alignas(64) float rows[3][tile], grad_rows[3][tile], factors[tile], by_factor[tile];
    alignas(64) float by_fraction[3][tile], at_corner[tile][corners<tetrahedral>];
    Cells cells;
    for (int64_t y = height * part / parts; y < height * (part + 1) / parts; ++y)
      for (int64_t x = 0; x < width; x += tile) {
        const int n = int(width - x < tile ? width - x : tile);
        const float *in[3], *g[3];
        load_pixels(image, b, y, x, n, rows, in);
        load_pixels(grad, b, y, x, n, grad_rows, g);
        find_cells<tetrahedral>(cells, in, n, size, places);
        const Corners<tetrahedral> corners(cells, n, size, tables);
        std::memset(at_corner, 0, sizeof at_corner);
        for (int64_t k = 0; k < tables.count; ++k) {
          load_factors(weight_of(weights, b, k), pixel_weights, b, k, y, x, n, factors);
          const Number* red = tables.data + k * tables.table;
          const Number *green = red + tables.channel, *blue = green + tables.channel;
          for (int i = 0; i < n; ++i) {
            float sum = 0.f;
            for (int v = 0; v < corners.count; ++v) {
              const int64_t at = corners.at(v, i);
              const float product = g[0][i] * number(red[at]) + g[1][i] * number(green[at]) + g[2][i] * number(blue[at]);
              sum += corners.weight[v][i] * product;
              at_corner[i][v] += factors[i] * product;
            }
            by_factor[i] = sum;
          }
          if (weight_sums) {
            load_factors(1.f, pixel_weights, b, k, y, x, n, factors);
            for (int i = 0; i < n; ++i) weight_sums[k] += by_factor[i] * factors[i];
          }
          if (grad_pixel_weights) {
            const float weight = weight_of(weights, b, k);
            for (int i = 0; i < n; ++i) by_factor[i] *= weight;
            store(by_factor, n, row(*grad_pixel_weights, b, k, y).from(x), false);
          }
        }
        for (int i = 0; i < n; ++i) {
          float by[3];
          differentiate<tetrahedral>(at_corner[i], cells, i, size, by);
          for (int c = 0; c < 3; ++c) by_fraction[c][i] = by[c];
        }
        finish_pixels(by_fraction, grad_image, vertex_sums, cells, in, n, size, places, b, y, x);
      }
  });
}

void backward_small(Optional grad_image, Optional grad_luts, Optional grad_weights, Optional grad_pixel_weights,
                    Optional grad_vertices, const Tensor& grad, const Tensor& image, const Tensor& luts,
                    Optional weights, Optional pixel_weights, Optional vertices, int64_t tetrahedral, int64_t parts,
                    int64_t threads) {
  if (grad_luts) {
    const auto as = tetrahedral ? scatter_small<true> : scatter_small<false>;
    as(*grad_luts, grad, image, weights, pixel_weights, vertices, threads);
  }
  if (!grad_image && !grad_weights && !grad_pixel_weights && !grad_vertices) return;
  with_numbers(luts, [&]<class Number>(Number) {
    const auto as = tetrahedral ? backward_small_as<true, Number> : backward_small_as<false, Number>;
    as(grad_image, grad_weights, grad_pixel_weights, grad_vertices, grad, image, luts, weights, pixel_weights, vertices,
       parts, threads);
  });
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&pack>("lut_pack"),
    kernel<&transform>("lut_transform"),
    kernel<&transform_small>("lut_transform_small"),
    kernel<&backward>("lut_transform_backward"),
    kernel<&backward_small>("lut_transform_backward_small"),
    {},
};

}  // namespace fastenh
