// local_context_retouch on a GPU: LAM's four layers and the lookup in one pass.
//
// In float16 tensor cores do the layers, 16 pixels of a row a product. What one product gives a lane is what the next
// takes from it, so that between layers nothing leaves the registers:
//
// - Of the k² neighbours of a pixel, all but the centre, a lane q = lane % 4 has every fourth: a step of a product's sum
//   is four neighbours, one a lane, each R, G, B and one place more. In the first step these places hold the centre's
//   R, G, B and a 1, by which the bias is multiplied. So 3·k² + 1 numbers fill (k² - 1) / 4 steps of 16.
// - Scores are ordered so that each lane gets those of its own neighbours, and the centre's as well.
// - Weights of LUTs are ordered so that lane q gets that of table q, of which it looks R, G and B up, and that of table 4,
//   of which it looks up one channel: the 16 lanes of a packed vertex, four a lane.
#include "lut.cuh"

namespace fastenh {
namespace {

constexpr float log2_of_e = 1.4426950408889634f;

template <int k>
struct Window {
  static constexpr int area = k * k, radius = k / 2;
  static constexpr int steps = (area - 1) / 4;     // of a sum over neighbours
  static constexpr int scores = steps / 2 + 1;     // groups of 8: two steps each, and the centre's
  // The i-th neighbour, where the centre is not counted.
  __host__ __device__ static constexpr int neighbour(int i) { return i < area / 2 ? i : i + 1; }
};

// The sizes of the layers, channels in an even number of groups of 16, and where their numbers stand among the packed words. A fragment is
// what a product takes as b, 64 words; of two fragments of one step and 16 channels, a lane's four words lie together.
struct Layers {
  int steps, scores, features, hidden, panels;
  Layers(int64_t k, int64_t features, int64_t hidden, int64_t count)
      : steps(int(k * k - 1) / 4), scores(steps / 2 + 1), features(int(features + 31) / 32 * 2),
        hidden(int(hidden + 31) / 32 * 2), panels(int(count + tables_per_panel - 1) / tables_per_panel) {}
  __host__ __device__ int words_a_feature() const { return 64 * (2 * steps + scores); }
  __host__ __device__ int words_a_hidden() const { return 64 * (2 * steps + panels); }
  __host__ __device__ int first_hidden() const { return features * words_a_feature(); }
  __host__ __device__ int biases() const { return first_hidden() + hidden * words_a_hidden(); }
  __host__ __device__ int words() const { return biases() + 8 * (scores + panels); }
};

// A layer's weights and biases, contiguous float32.
struct Layer {
  const float *weights, *biases;
  int inputs, outputs;
  Layer(const Tensor& weight, const Tensor& bias)
      : weights(reinterpret_cast<const float*>(weight.data)), biases(reinterpret_cast<const float*>(bias.data)),
        inputs(int(weight.shape[1] * weight.shape[2] * weight.shape[3])), outputs(int(weight.shape[0])) {}
  __device__ float weight(int output, int input) const {
    return output < outputs && input < inputs ? weights[output * inputs + input] : 0.f;
  }
  __device__ float bias(int output) const { return output < outputs ? biases[output] : 0.f; }
};

struct Network {
  Layer features, attention, hidden, head;
};

// ---- packing ----

// The word `i` of the packed layers. `factors`: what the LUTs are multiplied by for the picture as a whole, or null.
__device__ inline uint32_t packed_word(int i, const Network& net, const Layers& layers, const float* factors) {
  const int area = layers.steps * 4 + 1;
  const auto pair = [](float low, float high) { return as_bits(__floats2half2_rn(low, high)); };
  const auto factor = [&](int table) { return factors && table < net.head.outputs ? factors[table] : 1.f; };
  // Columns of scores and of LUT weights: even ones are lane q's first, odd ones its second.
  const auto score_of = [&](int group, int column) {
    if (group == layers.scores - 1) return area / 2;
    const int number = 8 * group + column / 2 + column % 2 * 4;
    return number < area / 2 ? number : number + 1;
  };
  const auto table_of = [](int panel, int column) { return panel * tables_per_panel + (column % 2 ? 4 : column / 2); };
  // Two words of a layer whose inputs are neighbours.
  const auto of_neighbours = [&](const Layer& layer, int output, int step, int q, int which) {
    const int number = 4 * step + q, j = number < area / 2 ? number : number + 1;
    if (which == 0) return pair(layer.weight(output, j), layer.weight(output, area + j));
    const float extra = step ? 0.f : q < 3 ? layer.weight(output, q * area + area / 2) : layer.bias(output);
    return pair(layer.weight(output, 2 * area + j), extra);
  };

  const bool first = i < layers.first_hidden();
  const int in_all = first ? layers.words_a_feature() : layers.words_a_hidden();
  const int rest = first ? i : i - layers.first_hidden();
  const int group = rest / in_all, at = rest % in_all;
  if (i >= layers.biases()) {
    const int which = (i - layers.biases()) / 8, column = (i - layers.biases()) % 8;
    if (which < layers.scores) return __float_as_uint(log2_of_e * net.attention.bias(score_of(which, column)));
    const int table = table_of(which - layers.scores, column);
    return __float_as_uint(factor(table) * net.head.bias(table));
  }
  if (at < 128 * layers.steps) {
    const int lane = at % 128 / 4, output = 16 * group + at % 4 / 2 * 8 + lane / 4;
    return first ? of_neighbours(net.features, output, at / 128, lane % 4, at % 2)
                 : of_neighbours(net.hidden, output, at / 128, lane % 4, at % 2);
  }
  const int fragment = (at - 128 * layers.steps) / 64, lane = at % 64 / 2, column = lane / 4;
  const int input = 16 * group + lane % 4 * 2 + at % 2 * 8;
  if (first) {
    const int score = score_of(fragment, column);
    return pair(log2_of_e * net.attention.weight(score, input), log2_of_e * net.attention.weight(score, input + 1));
  }
  const int table = table_of(fragment, column);
  return pair(factor(table) * net.head.weight(table, input), factor(table) * net.head.weight(table, input + 1));
}

template <int pixels>
__global__ void pack_layers_kernel(Pixels words, Tensor packed, Tensor factors, Network net, Layers layers) {
  for_pieces(words, [&](int64_t b, int64_t, int64_t first, int n) {
    if (int(threadIdx.x) >= n) return;
    const auto* of_picture = factors.data ? reinterpret_cast<const float*>(factors.data) + b * net.head.outputs : nullptr;
    reinterpret_cast<uint32_t*>(packed.data)[b * packed.shape[1] + first + threadIdx.x] =
        packed_word(int(first) + int(threadIdx.x), net, layers, of_picture);
  });
}

// packed (B, words) from the layers; `factors` (B, N). All contiguous float32.
void pack_layers(const Tensor& packed, Optional factors, const Tensor& features_weight, const Tensor& features_bias,
                 const Tensor& attention_weight, const Tensor& attention_bias, const Tensor& hidden_weight,
                 const Tensor& hidden_bias, const Tensor& head_weight, const Tensor& head_bias, int64_t stream) {
  const Layers layers(features_weight.shape[3], features_bias.shape[0], hidden_bias.shape[0], head_bias.shape[0]);
  if (packed.shape[1] != layers.words()) throw std::invalid_argument("local_context_pack: not as many words");
  const Network net{{features_weight, features_bias}, {attention_weight, attention_bias},
                    {hidden_weight, hidden_bias}, {head_weight, head_bias}};
  launch(pack_layers_kernel<1>, Pixels(256, packed.shape[0], 1, packed.shape[1]), {}, packed, stream, packed,
         or_none(factors), net, layers);
}

// ---- float16, by tensor cores ----

// A block takes a tile of pixels at a time. A row of the tile and its halo is as long as leaves the neighbours that the
// lanes of a warp read in different banks.
constexpr int tile_width = 64, tile_height = 16, pitch = 74, threads = 256;

// A pixel in shared memory: R, G, B and 1.
using Pixel = uint2;

// How many times 16 pixels a warp takes at once: the more, the fewer reads of weights, as far as registers go.
template <int k>
constexpr int at_once = k == 3 ? 2 : 1;

// The tile at (y0, x0) and its halo; outside the picture colours are 0.
template <int k, class T>
__device__ inline void stage(Pixel* to, const Tensor& image, int64_t b, int64_t y0, int64_t x0) {
  constexpr int r = Window<k>::radius, width = tile_width + 2 * r, count = width * (tile_height + 2 * r);
  constexpr int turns = (count + threads - 1) / threads;
  T colours[turns][3];
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const int i = turn * threads + int(threadIdx.x);
    const int64_t y = y0 + i / width - r, x = x0 + i % width - r;
    const bool inside = i < count && y >= 0 && y < image.shape[2] && x >= 0 && x < image.shape[3];
    const T* from = at<const T>(image, b, 0, y, x);
#pragma unroll
    for (int c = 0; c < 3; ++c) colours[turn][c] = inside ? from[c * image.strides[1]] : T{};
  }
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const int i = turn * threads + int(threadIdx.x);
    const auto number = [&](int c) { return to_float(colours[turn][c]); };
    if (i < count)
      to[i / width * pitch + i % width] = {as_bits(__floats2half2_rn(number(0), number(1))),
                                           as_bits(__floats2half2_rn(number(2), 1.f))};
  }
}

// What a lane holds of 16 pixels' neighbours in one step, times `by` for either pixel; blue and the place beside it times
// `by_blue`.
__device__ inline void multiplied(uint32_t (&a)[4], Pixel first, Pixel second, const __half2 (&by)[2],
                                  const __half2 (&by_blue)[2]) {
  a[0] = as_bits(__hmul2(as_half2(first.x), by[0])), a[1] = as_bits(__hmul2(as_half2(second.x), by[1]));
  a[2] = as_bits(__hmul2(as_half2(first.y), by_blue[0])), a[3] = as_bits(__hmul2(as_half2(second.y), by_blue[1]));
}

// One warp's work on `m` times 16 pixels of a row. Of each 16, lane / 4 says which two neighbouring pixels a lane has.
template <int k, int m>
struct Row {
  using W = Window<k>;
  static constexpr bool kept = W::steps * m <= 8;  // whether all steps' neighbours are kept in registers
  const Pixel* centre;  // the lane's first pixel
  int q, offsets[W::steps];

  __device__ Row() : centre(nullptr), q(int(threadIdx.x) % 4) {
#pragma unroll
    for (int s = 0; s < W::steps; ++s) {
      const int j = W::neighbour(4 * s + q);
      offsets[s] = (j / k - W::radius) * pitch + j % k - W::radius;
    }
  }

  // The neighbours that a lane has of its two pixels of 16 in a step; in the first, beside blue, what it has of the
  // centre, where else 1 stands.
  __device__ void neighbours(int i, int s, Pixel (&pixel)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      pixel[h] = centre[16 * i + h + offsets[s]];
      if (s == 0) {
        const uint32_t extra = reinterpret_cast<const unsigned short*>(centre + 16 * i + h)[q];
        pixel[h].y = __byte_perm(pixel[h].y, extra, 0x5410);
      }
    }
  }

  // ReLU of a layer over neighbours: body(a) for every group of 16 of its channels, of which there is an even number.
  // `fragment(i, s, a)` gives the neighbours; the words of a group are `apart`. Sums are in float16, as the next layer
  // takes them. While one group's products are on their way, those of the group before are passed on.
  template <class Fragment, class Body>
  __device__ void layer(const uint32_t* words, int groups, int apart, const Fragment& fragment, const Body& body) const {
    const int lane = int(threadIdx.x) % 32;
    uint32_t held[kept ? m : 1][kept ? W::steps : 1][4];
    if constexpr (kept) {
#pragma unroll
      for (int i = 0; i < m; ++i)
#pragma unroll
        for (int s = 0; s < W::steps; ++s) fragment(i, s, held[i][s]);
    }
    const auto products = [&](const uint32_t* words, uint32_t(&sums)[m][2][2]) {
#pragma unroll
      for (int i = 0; i < m; ++i) sums[i][0][0] = sums[i][0][1] = sums[i][1][0] = sums[i][1][1] = 0;
#pragma unroll
      for (int s = 0; s < W::steps; ++s) {
        const uint4 w = reinterpret_cast<const uint4*>(words)[s * 32 + lane];
        uint32_t a[m][4];
#pragma unroll
        for (int i = 0; i < m; ++i) {
          if constexpr (kept) memcpy(a[i], held[i][s], sizeof a[i]);
          else fragment(i, s, a[i]);
        }
#pragma unroll
        for (int i = 0; i < m; ++i) multiply_add(sums[i][0], a[i], w.x, w.y);
#pragma unroll
        for (int i = 0; i < m; ++i) multiply_add(sums[i][1], a[i], w.z, w.w);
      }
    };
    const auto pass_on = [&](const uint32_t* words, const uint32_t(&sums)[m][2][2]) {
      uint32_t a[m][4];
#pragma unroll
      for (int i = 0; i < m; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) a[i][j] = rectified(sums[i][j / 2][j % 2]);
      body(reinterpret_cast<const uint2*>(words + 128 * W::steps) + lane, a);
    };
    uint32_t even[m][2][2], odd[m][2][2];
    products(words, even);
#pragma unroll 1
    for (int group = 2;; group += 2, words += 2 * apart) {
      products(words + apart, odd);
      pass_on(words, even);
      if (group == groups) break;
      products(words + 2 * apart, even);
      pass_on(words + apart, odd);
    }
    pass_on(words + apart, odd);
  }

  // The attention of either pixel to the neighbour that a lane has in step s: [i][s / 2][s % 2], and of the second
  // pixel two places on; in the last group to the centre.
  __device__ void attend(const uint32_t* words, const Layers& layers, float (&attention)[m][W::scores][4]) const {
    const float* biases = reinterpret_cast<const float*>(words + layers.biases());
#pragma unroll
    for (int t = 0; t < W::scores; ++t)
#pragma unroll
      for (int i = 0; i < m; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) attention[i][t][j] = biases[8 * t + 2 * q + j % 2];
    const auto fragment = [&](int i, int s, uint32_t(&a)[4]) {
      Pixel pixel[2];
      neighbours(i, s, pixel);
      a[0] = pixel[0].x, a[1] = pixel[1].x, a[2] = pixel[0].y, a[3] = pixel[1].y;
    };
    layer(words, layers.features, layers.words_a_feature(), fragment, [&](const uint2* w, const uint32_t(&a)[m][4]) {
#pragma unroll
      for (int t = 0; t < W::scores; ++t) {
        const uint2 b = w[32 * t];
#pragma unroll
        for (int i = 0; i < m; ++i) multiply_add(attention[i][t], a[i], b.x, b.y);
      }
    });
    // Softmax to the base of 2: the scores come times log2(e).
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float most = attention[i][W::scores - 1][2 * h];
#pragma unroll
        for (int s = 0; s < W::steps; ++s) most = fmaxf(most, attention[i][s / 2][2 * h + s % 2]);
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 2));
        float sum = 0.f;
#pragma unroll
        for (int s = 0; s < W::steps; ++s) {
          float& score = attention[i][s / 2][2 * h + s % 2];
          score = exp2_fast(score - most);
          sum += score;
        }
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        float& of_centre = attention[i][W::scores - 1][2 * h];
        of_centre = exp2_fast(of_centre - most);
        const float share = __fdividef(1.f, sum + of_centre);
        of_centre *= share;
#pragma unroll
        for (int s = 0; s < W::steps; ++s) attention[i][s / 2][2 * h + s % 2] *= share;
      }
  }

  // The weights of the tables of a panel: [i][0] of table q and [i][1] of table 4, then the same of the second pixel.
  __device__ void weigh(const uint32_t* words, const Layers& layers, int panel,
                        const float (&attention)[m][W::scores][4], float (&weights)[m][4]) const {
    const float* biases = reinterpret_cast<const float*>(words + layers.biases()) + 8 * (W::scores + panel);
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[i][j] = biases[2 * q + j % 2];
    const auto fragment = [&](int i, int s, uint32_t(&a)[4]) {
      Pixel pixel[2];
      __half2 by[2], by_blue[2];
      neighbours(i, s, pixel);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float own = attention[i][s / 2][2 * h + s % 2], of_centre = attention[i][W::scores - 1][2 * h];
        by[h] = __float2half2_rn(own);
        by_blue[h] = s == 0 ? __floats2half2_rn(own, q == 3 ? 1.f : of_centre) : by[h];
      }
      multiplied(a, pixel[0], pixel[1], by, by_blue);
    };
    layer(words + layers.first_hidden(), layers.hidden, layers.words_a_hidden(), fragment,
          [&](const uint2* w, const uint32_t(&a)[m][4]) {
            const uint2 b = w[32 * panel];
#pragma unroll
            for (int i = 0; i < m; ++i) multiply_add(weights[i], a[i], b.x, b.y);
          });
  }

  // Adds what a lane looks up for one pixel: three channels of table q, and one of table 4.
  __device__ void look_up(const Vertex<__half, 16>* tables, const Uniform& grid, Pixel pixel, float of_own, float of_last,
                          float (&sums)[4]) const {
    const float rgb[3] = {__low2float(as_half2(pixel.x)), __high2float(as_half2(pixel.x)),
                          __low2float(as_half2(pixel.y))};
    const Cell cell = find_cell<__half>(rgb, grid);
    const uint2* own = reinterpret_cast<const uint2*>(tables + cell.corner) + q;
    uint2 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = __ldg(own + 4 * grid.steps.to(i));
    const auto mixed = [&](auto part) {
      const auto along = [&](int i, int j, float f) { return lerp(as_half2(part(v[i])), as_half2(part(v[j])), f); };
      const float fr = cell.fraction[0], fg = cell.fraction[1], fb = cell.fraction[2];
      return lerp(lerp(along(0, 4, fb), along(2, 6, fb), fg), lerp(along(1, 5, fb), along(3, 7, fb), fg), fr);
    };
    const __half2 rg = mixed([](uint2 w) { return w.x; }), last = mixed([](uint2 w) { return w.y; });
    sums[0] = __fmaf_rn(of_own, __low2float(rg), sums[0]), sums[1] = __fmaf_rn(of_own, __high2float(rg), sums[1]);
    sums[2] = __fmaf_rn(of_own, __low2float(last), sums[2]), sums[3] = __fmaf_rn(of_last, __high2float(last), sums[3]);
  }

  // Channel q of a pixel, of what four lanes have looked up of it; 0 where q is 3.
  __device__ float channel(const float (&sums)[4]) const {
    const bool upper = q & 2, odd = q & 1;
    const float even = (upper ? sums[2] : sums[0]) + __shfl_xor_sync(0xffffffff, upper ? sums[0] : sums[2], 2);
    const float other = (upper ? 0.f : sums[1]) + __shfl_xor_sync(0xffffffff, upper ? sums[1] : 0.f, 2);
    return (odd ? other : even) + __shfl_xor_sync(0xffffffff, odd ? even : other, 1) + sums[3];
  }
};

// `several`: more tables than a panel holds. `paired`: two neighbouring pixels of `out` can be written together.
template <int k, bool several, int pixels>
__global__ void __launch_bounds__(threads, k == 7 ? 1 : 2) retouch_kernel(Pixels tiles, Tensor out, Tensor image, Tensor tables,
                                                             Tensor packed, Layers layers, Uniform grid, bool paired) {
  constexpr int m = at_once<k>, r = Window<k>::radius;
  auto* words = reinterpret_cast<uint32_t*>(memory);
  auto* staged = reinterpret_cast<Pixel*>(words + layers.words());
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  Row<k, m> row;
  int64_t of_picture = -1;
  for_pieces(tiles, [&](int64_t b, int64_t band, int64_t x0, int n) {
    const int64_t y0 = band * tile_height;
    __syncthreads();  // the tile before is done with
    if (of_picture != b) {
      const auto* from = reinterpret_cast<const uint2*>(packed.data) + b * (layers.words() / 2);
      for (int i = int(threadIdx.x); i < layers.words() / 2; i += threads)
        reinterpret_cast<uint2*>(words)[i] = __ldg(from + i);
      of_picture = b;
    }
    switch (image.dtype) {
      case Dtype::f16: stage<k, __half>(staged, image, b, y0, x0); break;
      case Dtype::bf16: stage<k, __nv_bfloat16>(staged, image, b, y0, x0); break;
      default: stage<k, uint8_t>(staged, image, b, y0, x0); break;
    }
    __syncthreads();
    const auto* of_panel = tables_of<Vertex<__half, 16>>(tables, b);
    const int64_t vertices = tables.shape[2] * tables.shape[3] * tables.shape[4];
    for (int i = warp; i < tile_height * (tile_width / 16 / m); i += threads / 32) {
      const int line = i % tile_height, first = i / tile_height * 16 * m;
      if (y0 + line >= image.shape[2] || first >= n) continue;
      row.centre = staged + (line + r) * pitch + first + r + lane / 4 * 2;
      float attention[m][Window<k>::scores][4], weights[m][4];
      row.attend(words, layers, attention);
      const auto write = [&](int j, float(&sums)[2][4]) {
        const float colours[2] = {row.channel(sums[0]), row.channel(sums[1])};
        const int column = first + 16 * j + lane / 4 * 2;
        if (row.q == 3 || column >= n) return;
        const int64_t to = offset(out, b, row.q, y0 + line, x0 + column);
        if (paired) {
          store(out, to, colours);
        } else {
          store(out, to, colours[0]);
          if (column + 1 < n) store(out, to + out.strides[3], colours[1]);
        }
      };
      if constexpr (several) {
        float sums[m][2][4] = {};
        for (int panel = 0; panel < layers.panels; ++panel) {
          row.weigh(words, layers, panel, attention, weights);
#pragma unroll
          for (int j = 0; j < m; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h)
              row.look_up(of_panel + panel * vertices, grid, row.centre[16 * j + h], weights[j][2 * h],
                          weights[j][2 * h + 1], sums[j][h]);
        }
#pragma unroll
        for (int j = 0; j < m; ++j) write(j, sums[j]);
      } else {
        row.weigh(words, layers, 0, attention, weights);
#pragma unroll
        for (int j = 0; j < m; ++j) {
          float sums[2][4] = {};
#pragma unroll
          for (int h = 0; h < 2; ++h)
            row.look_up(of_panel, grid, row.centre[16 * j + h], weights[j][2 * h], weights[j][2 * h + 1], sums[h]);
          write(j, sums);
        }
      }
    }
  });
}

// image, out (B, 3, H, W), float16, bfloat16 or uint8; tables (B or 1, panels, D, D, D, 16) in float16; packed (B, words)
// as `local_context_pack` fills it, for layers of this many channels.
void retouch_half(const Tensor& out, const Tensor& image, const Tensor& tables, const Tensor& packed, int64_t k,
                  int64_t features, int64_t hidden, int64_t count, int64_t stream) {
  const Layers layers(k, features, hidden, count);
  const int64_t size = tables.shape[4];
  const Pixels tiles(tile_width, image.shape[0], (image.shape[2] + tile_height - 1) / tile_height, image.shape[3]);
  const bool paired = in_packs(Pixels(1, image.shape[0], image.shape[2], image.shape[3]), 2, out);
  const int bytes = 4 * layers.words() + int(sizeof(Pixel)) * pitch * int(tile_height + 2 * (k / 2));
  const int per_multiprocessor = 2 * bytes <= attribute(image, cudaDevAttrMaxSharedMemoryPerMultiprocessor) - 2048 ? 2 : 1;
  const Grid grid{per_multiprocessor * int64_t(attribute(image, cudaDevAttrMultiProcessorCount)), threads, bytes};
  const auto start = [&](auto one, auto several) {
    launch(layers.panels == 1 ? one : several, tiles, grid, image, stream, out, image, tables, packed, layers,
           Uniform(size, 1., Steps(size)), paired);
  };
  switch (k) {
    case 3: return start(retouch_kernel<3, false, 64>, retouch_kernel<3, true, 64>);
    case 5: return start(retouch_kernel<5, false, 64>, retouch_kernel<5, true, 64>);
    default: return start(retouch_kernel<7, false, 64>, retouch_kernel<7, true, 64>);
  }
}

// ---- float32 ----

// A thread a pixel, layer by layer; the neighbours of large windows do not fit its registers and lie in shared memory.
template <int k, int pixels>
__global__ void __launch_bounds__(128) exact_kernel(Pixels places, Tensor out, Tensor image, Tensor tables,
                                                    Tensor factors, Network net) {
  constexpr int area = k * k, inputs = 3 * area;
  constexpr bool in_registers = k < 7;
  const int size = int(tables.shape[4]);
  float held[in_registers ? inputs : 1];
  float* column = reinterpret_cast<float*>(memory) + threadIdx.x;
  const auto input = [&](int i) -> float& {
    if constexpr (in_registers) return held[i];
    else return column[128 * i];
  };
  const auto rectified_sum = [&](const Layer& layer, int output) {
    float sum = __ldg(layer.biases + output);
    const float* weights = layer.weights + output * inputs;
#pragma unroll
    for (int i = 0; i < inputs; ++i) sum = __fmaf_rn(__ldg(weights + i), input(i), sum);
    return sum < 0.f ? 0.f : sum;  // NaN stays
  };
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    const int64_t x = x0 + threadIdx.x;
    if (x >= x0 + n) return;
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      const int64_t dy = y + i % area / k - k / 2, dx = x + i % k - k / 2;
      const bool inside = dy >= 0 && dy < image.shape[2] && dx >= 0 && dx < image.shape[3];
      input(i) = inside ? load(image, b, i / area, dy, dx) : 0.f;
    }
    float attention[area];
#pragma unroll
    for (int j = 0; j < area; ++j) attention[j] = __ldg(net.attention.biases + j);
#pragma unroll 1
    for (int o = 0; o < net.features.outputs; ++o) {
      const float feature = rectified_sum(net.features, o);
#pragma unroll
      for (int j = 0; j < area; ++j)
        attention[j] = __fmaf_rn(__ldg(net.attention.weights + j * net.attention.inputs + o), feature, attention[j]);
    }
    float most = attention[0], sum = 0.f;
#pragma unroll
    for (int j = 1; j < area; ++j) most = fmaxf(most, attention[j]);
#pragma unroll
    for (int j = 0; j < area; ++j) attention[j] = expf(attention[j] - most), sum += attention[j];
    float rgb[3], colours[3] = {};
#pragma unroll
    for (int c = 0; c < 3; ++c) rgb[c] = input(c * area + area / 2);
#pragma unroll
    for (int i = 0; i < inputs; ++i) input(i) *= attention[i % area] / sum;
    Slopes slopes;
    const Cell cell = find_cell(rgb, nullptr, size, slopes);
    const auto* table = tables_of<Vertex<float, 16>>(tables, b);
    const auto* w = reinterpret_cast<const float*>(factors.data) + b * net.head.outputs;
#pragma unroll 1
    for (int first = 0; first < net.head.outputs; first += tables_per_panel, table += size * size * size) {
      Blend blend;
#pragma unroll
      for (int t = 0; t < tables_per_panel; ++t) blend.of[t] = net.head.bias(first + t);
#pragma unroll 1
      for (int o = 0; o < net.hidden.outputs; ++o) {
        const float hidden = rectified_sum(net.hidden, o);
#pragma unroll
        for (int t = 0; t < tables_per_panel; ++t) blend.of[t] = __fmaf_rn(net.head.weight(first + t, o), hidden, blend.of[t]);
      }
#pragma unroll
      for (int t = 0; t < tables_per_panel; ++t)
        if (factors.data && first + t < net.head.outputs) blend.of[t] *= w[first + t];
      add_blended(colours, interpolate<false>(table, cell, Steps(size)), blend);
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) store(out, b, c, y, x, colours[c]);
  });
}

// image, out (B, 3, H, W) of any dtype; tables (B or 1, panels, D, D, D, 16), factors (B, N) and layers in float32
void retouch(const Tensor& out, const Tensor& image, const Tensor& tables, Optional factors,
             const Tensor& features_weight, const Tensor& features_bias, const Tensor& attention_weight,
             const Tensor& attention_bias, const Tensor& hidden_weight, const Tensor& hidden_bias,
             const Tensor& head_weight, const Tensor& head_bias, int64_t stream) {
  const Network net{{features_weight, features_bias}, {attention_weight, attention_bias},
                    {hidden_weight, hidden_bias}, {head_weight, head_bias}};
  const auto start = [&](auto kernel, int shared_bytes) {
    launch(kernel, Pixels(128, image.shape[0], image.shape[2], image.shape[3]), {INT64_MAX, 128, shared_bytes}, image,
           stream, out, image, tables, or_none(factors), net);
  };
  switch (features_weight.shape[3]) {
    case 3: return start(exact_kernel<3, 1>, 0);
    case 5: return start(exact_kernel<5, 1>, 0);
    default: return start(exact_kernel<7, 1>, 3 * 49 * 128 * int(sizeof(float)));
  }
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&pack>("lut_pack"),
    kernel<&pack_layers>("local_context_pack"),
    kernel<&retouch_half>("local_context_retouch_half"),
    kernel<&retouch>("local_context_retouch"),
    {},
};

}  // namespace fastenh
