// local_context_retouch: four layers, a softmax and a lookup for a strip of pixels at a time, so that all intermediate
// values stay in registers and the L1 cache.
#include "lut.h"

namespace fastenh {
namespace {

constexpr int strip = 48;           // pixels that go through all layers together
constexpr int tables_at_once = 45;  // LUTs whose weights are computed at once: nine panels

// Sums that registers hold at once: `channels` channels of `columns` vectors of pixels. Each weight that is read serves
// all these pixels, and each vector of pixels all these channels; so many sums hide the latency of additions.
#if defined(__AVX512F__)
constexpr int channels = 8, columns = 3;  // of 32 registers
#elif defined(__AVX__)
constexpr int channels = 4, columns = 3;  // of 16 registers
#else
constexpr int channels = 4, columns = 2;
#endif
static_assert(strip % (columns * wide) == 0 && tables_at_once % tables_per_panel == 0);

// Two layers, second · ReLU(first · in + first_bias) + second_bias, for a strip of pixels.
struct Layers {
  const float *first, *first_bias, *second, *second_bias;
  int64_t middle, outputs;  // channels between the two, and of the second

  Layers(const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2)
      : first(reinterpret_cast<const float*>(w1.data)), first_bias(reinterpret_cast<const float*>(b1.data)),
        second(reinterpret_cast<const float*>(w2.data)), second_bias(reinterpret_cast<const float*>(b2.data)),
        middle(b1.shape[0]), outputs(b2.shape[0]) {}
};

// `rows` of the channels between the layers, from m on, for `columns` vectors of pixels, and what they add to the
// results. They never leave the registers. Input (i, j), of 3k times k, lies at in[i * outer + j * inner].
template <int rows, int k, int outer, int inner>
inline void add_channels(const Layers& layers, int64_t m, const float* in, int64_t from, int64_t count, float* out) {
  Wide sums[rows][columns];
  const float* weights = layers.first + m * 3 * k * k;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) sums[r][c] = fill(layers.first_bias[m + r]);
  for (int i = 0; i < 3 * k; ++i, in += outer, weights += k) {
#pragma GCC unroll 8
    for (int j = 0; j < k; ++j) {
      Wide x[columns];
      for (int c = 0; c < columns; ++c) x[c] = read<Wide>(in + j * inner + c * wide);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const Wide weight = fill(weights[r * 3 * k * k + j]);
        for (int c = 0; c < columns; ++c) sums[r][c] = multiply_add(weight, x[c], sums[r][c]);
      }
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) sums[r][c] = most(fill(0.f), sums[r][c]);  // NaN stays
  const float* second = layers.second + from * layers.middle + m;
  for (int64_t o = 0; o < count; ++o, second += layers.middle, out += strip) {
    Wide total[columns];
    for (int c = 0; c < columns; ++c) total[c] = read<Wide>(out + c * wide);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) total[c] = multiply_add(fill(second[r]), sums[r][c], total[c]);
    for (int c = 0; c < columns; ++c) write(out + c * wide, total[c]);
  }
}

// Outputs from .. from + count of the second layer.
template <int k, int outer, int inner>
void run_layers(const Layers& layers, const float* in, int64_t from, int64_t count, float (*out)[strip]) {
  for (int p = 0; p < strip; p += columns * wide) {
    for (int64_t o = 0; o < count; ++o)
      for (int c = 0; c < columns; ++c) write(out[o] + p + c * wide, fill(layers.second_bias[from + o]));
    int64_t m = 0;
    for (; m + channels <= layers.middle; m += channels)
      add_channels<channels, k, outer, inner>(layers, m, in + p, from, count, out[0] + p);
    for (; m < layers.middle; ++m) add_channels<1, k, outer, inner>(layers, m, in + p, from, count, out[0] + p);
  }
}

// e^x for x <= 0, to the last bit or two; 0 where the result is not a normal number. NaN stays NaN.
inline Wide exponential(Wide x) {
  x = most(fill(-88.f), x);
  const Wide magic = fill(12582912.f);  // 1.5 · 2^23: adding it leaves the integer in the low bits
  const Wide shifted = multiply_add(x, fill(1.44269504f), magic), n = shifted - magic;
  const Wide f = multiply_add(n, fill(2.12194440e-4f), multiply_add(n, fill(-0.693359375f), x));  // x - n · ln 2
  Wide q = multiply_add(f, fill(1.3814543e-3f), fill(8.3687454e-3f));  // (e^f - 1 - f) / f², |f| <= ln 2 / 2
  q = multiply_add(f, q, fill(4.1668389e-2f));
  q = multiply_add(f, q, fill(1.6666521e-1f));
  q = multiply_add(f, q, fill(0.49999994f));
  const Wide power = multiply_add(f * f, q, f) + fill(1.f);
  return power * Wide((WideInt(shifted) << 23) + 0x3f800000);  // · 2^n; n = -127 gives 0
}

// The neighbours of every pixel, each times the softmax of its score.
template <int k, int pitch>
inline void attend(const float (*scores)[strip], const float (*neighbours)[pitch], float (*voxels)[strip]) {
  for (int p = 0; p < strip; p += wide) {
    Wide most_score = read<Wide>(scores[0] + p), sum = {}, attention[k * k];
    for (int j = 1; j < k * k; ++j) most_score = most(read<Wide>(scores[j] + p), most_score);
    for (int j = 0; j < k * k; ++j) {
      attention[j] = exponential(read<Wide>(scores[j] + p) - most_score);
      sum = sum + attention[j];
    }
    const Wide share = fill(1.f) / sum;
    for (int j = 0; j < k * k; ++j) {
      const Wide weight = attention[j] * share;
      for (int c = 0; c < 3; ++c)
        write(voxels[c * k * k + j] + p, weight * read<Wide>(neighbours[c * k + j / k] + j % k + p));
    }
  }
}

template <int k>
void retouch_as(const Tensor& out, const Tensor& image, const Tensor& packed, Optional weights, const Layers& attention,
                const Layers& head, int64_t threads) {
  constexpr int r = k / 2, pitch = strip + 16;
  const int64_t size = packed.shape[4], panels = packed.shape[1], floats = size * size * size * 16;
  const int64_t count = head.outputs;
  const Pixels pixels{image.shape[0], image.shape[2], image.shape[3], false};
  const bool streaming = worth_streaming(out);
  for_blocks<strip>(pixels, threads, [&](int64_t b, int64_t y, int64_t x, int n) {
    alignas(64) float neighbours[3 * k][pitch];  // row i of channel c, from r pixels before the strip to r after it
    alignas(64) float scores[k * k][strip], voxels[3 * k * k][strip], pixel_weights[tables_at_once][strip];
    alignas(64) float blend[strip * 8], result[strip * 4], rows[3][tile];
    for (int i = 0; i < 3 * k; ++i) {
      const float* from = load_padded(image, b, i / k, y + i % k - r, x - r, strip + 2 * r, neighbours[i]);
      if (from != neighbours[i]) std::memcpy(neighbours[i], from, (strip + 2 * r) * sizeof(float));
    }
    run_layers<k, pitch, 1>(attention, neighbours[0], 0, k * k, scores);
    attend<k>(scores, neighbours, voxels);

    Cells cells;
    const float* const colours[3] = {neighbours[r] + r, neighbours[k + r] + r, neighbours[2 * k + r] + r};
    find_cells<false>(cells, colours, strip, int(size), nullptr);
    const auto* factors = weights ? reinterpret_cast<const float*>(weights->data) + b * count : nullptr;
    const float* table = reinterpret_cast<const float*>(packed.data) + (packed.shape[0] == 1 ? 0 : b) * panels * floats;
    for (int64_t panel = 0; panel < panels; ++panel, table += floats) {
      const int64_t first = panel * tables_per_panel, done = first % tables_at_once;
      if (done == 0) {
        const int64_t rest = count - first < tables_at_once ? count - first : tables_at_once;
        run_layers<k, k * strip, strip>(head, voxels[0], first, rest, pixel_weights);
      }
      std::memset(blend, 0, sizeof blend);
      for (int t = 0; t < tables_per_panel && first + t < count; ++t) {
        const float factor = factors ? factors[first + t] : 1.f;
        for (int i = 0; i < n; ++i) blend[i * 8 + t] = pixel_weights[done + t][i] * factor;
      }
      blend_panel<false>(table, cells, blend, n, size, panel == 0, result);
    }
    part_channels(result, n, rows);
    store_pixels(rows, n, out, b, y, x, streaming);
  });
}

// image, out (B, 3, H, W) of any dtype and strides; packed (B or 1, panels, D, D, D, 16) as in the head of lut.h;
// weights (B, N) and the layers, as nn.Conv2d shapes them: contiguous float32
void retouch(const Tensor& out, const Tensor& image, const Tensor& packed, Optional weights,
             const Tensor& features_weight, const Tensor& features_bias, const Tensor& attention_weight,
             const Tensor& attention_bias, const Tensor& hidden_weight, const Tensor& hidden_bias,
             const Tensor& head_weight, const Tensor& head_bias, int64_t threads) {
  const Layers attention{features_weight, features_bias, attention_weight, attention_bias};
  const Layers head{hidden_weight, hidden_bias, head_weight, head_bias};
  const int64_t k = features_weight.shape[3];
  const auto as = k == 3 ? retouch_as<3> : k == 5 ? retouch_as<5> : retouch_as<7>;
  as(out, image, packed, weights, attention, head, threads);
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&retouch>("local_context_retouch"),
    {},
};

}  // namespace fastenh
