// lut_transform: colour through 3D lookup tables.
#include "lut.h"

namespace fastenh {
namespace {

// The three channels of one value at the lanes of every table.
inline F16 repeat(F4 v) {
  return join(join(__builtin_shufflevector(v, v, 0, 1, 2, 0), __builtin_shufflevector(v, v, 0, 1, 2, 1)),
              join(__builtin_shufflevector(v, v, 0, 1, 2, 2), v));
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
    const auto* v = vertices ? reinterpret_cast<const float*>(vertices->data) + b * 3 * size : nullptr;
    find_cells<tetrahedral>(cells, in, n, int(size), v);
    const float* table = tables + (packed.shape[0] == 1 ? 0 : b) * panels * size * size * size * lanes;
    for (int64_t panel = 0; panel < panels; ++panel, table += size * size * size * lanes) {
      if constexpr (lanes == 4) {
        for (int i = 0; i < n; ++i) write(result + i * 4, interpolate<4, tetrahedral>(table, cells, i, size));
      } else {
        const auto* w = weights ? reinterpret_cast<const float*>(weights->data) + b * weights->shape[1] : nullptr;
        gather_blend(*pixel_weights, w, b, panel, y, x, n, blend);
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

// Where the channel c of table n of a panel stands among the 16 lanes.
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

// slope[i]: how the fraction grows with the pixel's value; zero at the border of the grid and beyond it.
inline void find_slopes(const float* x, int n, int size, const float* vertices, const int32_t* cell, float* slope) {
  const float first = vertices ? vertices[0] : 0.f, last = vertices ? vertices[size - 1] : 1.f;
  for (int i = 0; i < n; ++i) {
    const float rise = vertices ? 1.f / (vertices[cell[i] + 1] - vertices[cell[i]] + 1e-10f) : float(size - 1);
    slope[i] = x[i] > first && x[i] < last ? rise : 0.f;
  }
}

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
