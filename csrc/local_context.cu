// local_context_retouch on a GPU: LAM's four layers and the lookup in one pass.
//
// In float16 the layers run on tensor cores, 16 pixels of a row per product. What a lane gets from one product is what
// it supplies to the next, so that nothing leaves the registers between layers:
//
// - Of the neighbours of a pixel, k² - 1 without the centre, lane q = lane % 4 has every fourth: a step of a product's
//   sum takes four neighbours, one from each lane, with R, G, B and one more slot each. In the first step these slots
//   hold the centre's R, G, B and a 1, by which the bias is multiplied. So 3·k² + 1 numbers fill (k² - 1) / 4 steps of
//   16.
// - Softmax depends only on differences, so the centre's score is subtracted from all scores and becomes 0. Scores are
//   ordered so that each lane gets those of its own neighbours.
// - The cell of a pixel in the tables is computed once, when the tile is read. Four lanes share a lookup: two vertices
//   that are neighbours along R are adjacent in memory, and each lane reads half of one, tables 0 and 1 or 2 and 3,
//   with two channels of table 4. A product with ones sums the results of the four lanes.
#include "lut.cuh"

namespace fastenh {
namespace {

constexpr float log2_of_e = 1.4426950408889634f;

template <int k>
struct Window {
  static constexpr int area = k * k;
  static constexpr int steps = (area - 1) / 4;     // of a sum over neighbours
  static constexpr int scores = steps / 2;         // groups of 8 scores: of two steps each
  // The i-th neighbour, where the centre is not counted.
  __host__ __device__ static constexpr int neighbour(int i) { return i < area / 2 ? i : i + 1; }
};

// The sizes of the layers, with channels in an even number of groups of 16, and the positions of their numbers in the
// packed words. A fragment is operand b of a product, 64 words. The two fragments of one step and 16 channels are
// interleaved so that each lane's four words are adjacent.
struct Layers {
  int steps, scores, features, hidden, panels;
  Layers(int64_t k, int64_t features, int64_t hidden, int64_t count)
      : steps(int(k * k - 1) / 4), scores(steps / 2), features(int(features + 31) / 32 * 2),
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

// The word `i` of the packed layers. `factors`: the weights of the LUTs for the picture as a whole, or null.
__device__ inline uint32_t packed_word(int i, const Network& net, const Layers& layers, const float* factors) {
  const int area = layers.steps * 4 + 1;
  const auto pair = [](float low, float high) { return as_bits(__floats2half2_rn(low, high)); };
  const auto factor = [&](int table) { return factors && table < net.head.outputs ? factors[table] : 1.f; };
  // Columns of scores and of LUT weights: 2q is lane q's first, 2q + 1 its second. Lanes 0 and 1 get the weights of two
  // tables each; lane 2 gets that of table 4 for R and G, and lane 3 for B.
  const auto score_of = [&](int group, int column) {
    const int number = 8 * group + column / 2 + column % 2 * 4;
    return number < area / 2 ? number : number + 1;
  };
  // The difference between a neighbour's score and the centre's, to base 2.
  const auto beyond = [&](int score, int input) {
    return log2_of_e * (net.attention.weight(score, input) - net.attention.weight(area / 2, input));
  };
  const auto table_of = [&](int panel, int column) {
    const bool none = column == 5 || column == 6;
    return none ? layers.panels * tables_per_panel : panel * tables_per_panel + (column < 4 ? column : 4);
  };
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
    if (which < layers.scores)
      return __float_as_uint(
          log2_of_e * (net.attention.bias(score_of(which, column)) - net.attention.bias(area / 2)));
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
    return pair(beyond(score, input), beyond(score, input + 1));
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

// A block takes one tile of pixels at a time. In shared memory R and G of the tile and its halo are a plane of words,
// and B and 1 another. Rows are padded so that the lanes of a warp read from different banks, except for 7 x 7, whose
// layers leave no room.
constexpr int tile_width = 64, threads = 256;
template <int k>
struct Tile {
  static constexpr int height = k == 7 ? 8 : k == 5 ? 16 : 32;
  static constexpr int radius = k / 2, width = tile_width + 2 * radius, rows = height + 2 * radius;
  static constexpr int pitch = k == 7 ? width : 78 + k, plane = rows * pitch, pixels = tile_width * height;
};

// The cells of pixels in the tables: their lowest vertices, in steps of 16 bytes, and the weights of their vertices.
struct Places {
  uint4* shares;
  uint32_t* corners;
};

// How many times 16 pixels a warp takes at once. Larger numbers save reads of weights, as far as the registers suffice.
template <int k, bool several>
constexpr int at_once = k > 3 ? 1 : several ? 2 : 4;

// How many blocks a multiprocessor runs at a time, as far as the registers suffice.
template <int k>
constexpr int at_a_time = k == 7 ? 1 : 2;

// f(Type<T>{}) with the type of a picture whose layers are computed in float16.
template <class F>
__device__ inline void with_pixel(Dtype dtype, const F& f) {
  if (dtype == Dtype::f16) f(Type<__half>{});
  else if (dtype == Dtype::bf16) f(Type<__nv_bfloat16>{});
  else f(Type<uint8_t>{});
}

// The weights of a cell's vertices: the lower ones along R, then the upper ones.
__device__ inline uint4 shares_of(const Cell& cell) {
  const float fr = cell.fraction[0], fg = cell.fraction[1], fb = cell.fraction[2], both = fg * fb;
  const float of_pair[4] = {1.f - fg - fb + both, fg - both, fb - both, both};
  float lower[4], upper[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) upper[i] = fr * of_pair[i], lower[i] = of_pair[i] - upper[i];
  const auto two = [](float a, float b) { return as_bits(__floats2half2_rn(a, b)); };
  return {two(lower[0], lower[1]), two(lower[2], lower[3]), two(upper[0], upper[1]), two(upper[2], upper[3])};
}

// Reads the tile at (y0, x0) and its halo; outside the picture colours are 0. A thread takes the pixels of a column.
template <int k, class T>
__device__ inline void stage(uint32_t* to, Places places, const Tensor& image, const Uniform& grid, int b, int y0,
                             int x0) {
  using Tile = Tile<k>;
  constexpr int r = Tile::radius, rows = threads / Tile::width, turns = (Tile::rows + rows - 1) / rows;
  const int first = int(threadIdx.x) / Tile::width - r, x = int(threadIdx.x) % Tile::width - r;
  const bool in_width = first < rows - r && x >= -x0 && x < int(image.shape[3]) - x0;
  const int height = int(image.shape[2]) - y0;
  const T* from[3];
#pragma unroll
  for (int c = 0; c < 3; ++c)
    from[c] = at<const T>(image, b, c, y0, x0) + (first * image.strides[2] + x * image.strides[3]);
  T colours[turns][3];
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const int y = first + turn * rows;
    const bool inside = in_width && y >= -y0 && y < height && y < Tile::height + r;
#pragma unroll
    for (int c = 0; c < 3; ++c) colours[turn][c] = inside ? from[c][turn * rows * image.strides[2]] : T{};
  }
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const int y = first + turn * rows;
    if (first >= rows - r || y >= Tile::height + r) break;
    const float rgb[3] = {to_float(colours[turn][0]), to_float(colours[turn][1]), to_float(colours[turn][2])};
    uint32_t* pixel = to + ((y + r) * Tile::pitch + x + r);
    pixel[0] = as_bits(__floats2half2_rn(rgb[0], rgb[1])), pixel[Tile::plane] = as_bits(__floats2half2_rn(rgb[2], 1.f));
    if (y < 0 || y >= Tile::height || x < 0 || x >= tile_width) continue;
    // NaN becomes 0 here, but the weights of the tables make the result NaN again.
    const Cell cell = find_inner_cell({__saturatef(rgb[0]), __saturatef(rgb[1]), __saturatef(rgb[2])}, grid);
    places.corners[y * tile_width + x] = cell.corner * uint32_t(sizeof(Vertex<__half, 16>) / sizeof(uint4));
    places.shares[y * tile_width + x] = shares_of(cell);
  }
}

// One warp's work on `m` times 16 pixels of a row. Of each 16, a lane has the two adjacent pixels number lane / 4.
template <int k, int m>
struct Row {
  using W = Window<k>;
  static constexpr bool kept = W::steps * m <= 8;  // whether all steps' neighbours are kept in registers
  const uint32_t* centre;  // the lane's first pixel
  int q, offsets[W::steps], own;

  __device__ Row() : centre(nullptr), q(int(threadIdx.x) % 4), own(q / 2 * 2 * Tile<k>::plane + q % 2) {
#pragma unroll
    for (int s = 0; s < W::steps; ++s) {
      const int j = W::neighbour(4 * s + q);
      offsets[s] = (j / k - Tile<k>::radius) * Tile<k>::pitch + j % k - Tile<k>::radius;
    }
  }

  // The neighbours that a lane has of its two pixels of 16 in a step. In the first step the slot after blue, which is
  // otherwise 1, holds what the lane has of the centre.
  __device__ void neighbours(int i, int s, uint32_t (&a)[4]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t* pixel = centre + 16 * i + h;
      a[h] = pixel[offsets[s]], a[2 + h] = pixel[offsets[s] + Tile<k>::plane];
      if (s == 0) a[2 + h] = __byte_perm(a[2 + h], reinterpret_cast<const unsigned short*>(pixel)[own], 0x5410);
    }
  }

  // ReLU of a layer over neighbours: body(a) for every group of 16 of its channels, of which there is an even number.
  // `fragment(i, s, a)` returns the neighbours; the words of groups are `apart` from each other. Sums are in float16,
  // as the next layer takes them. While one group's products are in flight, those of the previous group are passed on.
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

  // The attention to the neighbour that a lane has in step s: of the first pixel at [i][s / 2][s % 2], of the second at
  // [i][s / 2][2 + s % 2]; and the attention of both to the centre.
  struct Attention {
    float to[m][W::scores][4], to_centre[m][2];
  };
  __device__ void attend(const uint32_t* words, const Layers& layers, Attention& attention) const {
    const float* biases = reinterpret_cast<const float*>(words + layers.biases());
#pragma unroll
    for (int t = 0; t < W::scores; ++t)
#pragma unroll
      for (int i = 0; i < m; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) attention.to[i][t][j] = biases[8 * t + 2 * q + j % 2];
    const auto fragment = [&](int i, int s, uint32_t(&a)[4]) { neighbours(i, s, a); };
    layer(words, layers.features, layers.words_a_feature(), fragment, [&](const uint2* w, const uint32_t(&a)[m][4]) {
#pragma unroll
      for (int t = 0; t < W::scores; ++t) {
        const uint2 b = w[32 * t];
#pragma unroll
        for (int i = 0; i < m; ++i) multiply_add(attention.to[i][t], a[i], b.x, b.y);
      }
    });
    // Softmax to the base of 2.
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const auto score = [&](int s) -> float& { return attention.to[i][s / 2][2 * h + s % 2]; };
        float most = 0.f, sum = 0.f;
#pragma unroll
        for (int s = 0; s < W::steps; ++s) most = fmaxf(most, score(s));
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 2));
#pragma unroll
        for (int s = 0; s < W::steps; ++s) {
          score(s) = exp2_fast(score(s) - most);
          sum = s ? sum + score(s) : score(s);
        }
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        const float of_centre = exp2_fast(-most), share = reciprocal_fast(sum + of_centre);
        attention.to_centre[i][h] = share * of_centre;
#pragma unroll
        for (int s = 0; s < W::steps; ++s) score(s) *= share;
      }
  }

  // The weights of a panel's tables that lane q has: [i][0] and [i][1], then those of the second pixel.
  __device__ void weigh(const uint32_t* words, const Layers& layers, int panel, const Attention& attention,
                        float (&weights)[m][4]) const {
    const float* biases = reinterpret_cast<const float*>(words + layers.biases()) + 8 * (W::scores + panel);
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[i][j] = biases[2 * q + j % 2];
    const auto fragment = [&](int i, int s, uint32_t(&a)[4]) {
      neighbours(i, s, a);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float to = attention.to[i][s / 2][2 * h + s % 2];
        const __half2 by = __float2half2_rn(to);
        a[h] = as_bits(__hmul2(as_half2(a[h]), by));
        a[2 + h] = as_bits(__hmul2(
            as_half2(a[2 + h]), s == 0 ? __floats2half2_rn(to, q == 3 ? 1.f : attention.to_centre[i][h]) : by));
      }
    };
    layer(words + layers.first_hidden(), layers.hidden, layers.words_a_hidden(), fragment,
          [&](const uint2* w, const uint32_t(&a)[m][4]) {
            const uint2 b = w[32 * panel];
#pragma unroll
            for (int i = 0; i < m; ++i) multiply_add(weights[i], a[i], b.x, b.y);
          });
  }

  // A lane's part of one pixel's lookup, weighted: R and G of its tables, and B of either. `corner`: that of its half
  // vertex; `shares`: the weights of the lower or the upper vertices along R; `weight`, `next_weight`: as from `weigh`.
  __device__ void look_up(const Vertex<__half, 16>* tables, Steps steps, uint32_t corner, uint2 shares,
                          float weight, float next_weight, uint32_t& rg, uint32_t& blues) const {
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      v[i] = __ldg(reinterpret_cast<const uint4*>(tables) + (corner + 2 * uint32_t(steps.to(2 * i))));
    const uint32_t here = as_bits(__floats2half2_rn(weight, next_weight)), there = __shfl_xor_sync(0xffffffff, here, 2);
    const __half2 of_two = as_half2(q < 2 ? here : there), of_last = as_half2(q < 2 ? there : here);
    __half2 sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 two = as_half2(i < 2 ? shares.x : shares.y), share = i % 2 ? __high2half2(two) : __low2half2(two);
      const uint32_t words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sums[j] = i ? __hfma2(share, as_half2(words[j]), sums[j]) : __hmul2(share, as_half2(words[j]));
    }
    const __half2 last = __highs2half2(sums[1], sums[3]);
    __half2 sum = __hfma2(__high2half2(of_two), sums[2], __hmul2(__low2half2(of_two), sums[0]));
    rg = as_bits(__hfma2(__low2half2(of_last), last, sum));
    sum = __hmul2(of_two, __lows2half2(sums[1], sums[3]));
    blues = as_bits(__hfma2(__high2half2(of_last), last, sum));
  }
};

// Operand b of the product that sums the results of four lanes for a pixel: column 2c is 1 for channel c.
struct Adder {
  uint32_t rg, blues;
  __device__ Adder() {
    const int column = int(threadIdx.x % 32 / 4);
    const auto is = [column](int c) { return column == 2 * c ? 1.f : 0.f; };
    rg = as_bits(__floats2half2_rn(is(0), is(1))), blues = as_bits(__floats2half2_rn(is(2), is(2)));
  }
};

// `several`: more tables than a panel holds. `paired`: two adjacent pixels of `out` can be written together.
template <int k, bool several, int pixels>
__global__ void __launch_bounds__(threads, at_a_time<k>)
    retouch_kernel(Pixels tiles, Tensor out, Tensor image, Tensor tables, Tensor packed, Layers layers, Uniform grid,
                   bool paired) {
  using Tile = Tile<k>;
  constexpr int m = at_once<k, several>;
  auto* words = reinterpret_cast<uint32_t*>(memory);
  const Places places{reinterpret_cast<uint4*>(words + layers.words()),
                      words + layers.words() + 4 * Tile::pixels};
  uint32_t* staged = places.corners + Tile::pixels;
  const int pair = int(threadIdx.x % 32 / 4);  // which two pixels of 16
  Row<k, m> row;
  const Adder adder;
  int of_picture = -1;
  for_pieces(tiles, [&](int64_t picture, int64_t band, int64_t left, int n) {
    const int b = int(picture), y0 = int(band) * Tile::height, x0 = int(left);
    __syncthreads();  // the previous tile is finished
    if (of_picture != b) {
      const auto* from = reinterpret_cast<const uint2*>(packed.data) + picture * (layers.words() / 2);
      for (int i = int(threadIdx.x); i < layers.words() / 2; i += threads)
        reinterpret_cast<uint2*>(words)[i] = __ldg(from + i);
      of_picture = b;
    }
    with_pixel(image.dtype, [&]<class T>(Type<T>) { stage<k, T>(staged, places, image, grid, b, y0, x0); });
    __syncthreads();
    const auto* of_panel = tables_of<Vertex<__half, 16>>(tables, b);
    const int64_t first_out = offset(out, b, row.q, y0, x0);
    const int64_t vertices = tables.shape[2] * tables.shape[3] * tables.shape[4];
    for (uint32_t i = threadIdx.x / 32; i < Tile::height * (tile_width / 16 / m); i += threads / 32) {
      const int line = int(i % Tile::height), first = int(i / Tile::height) * 16 * m;
      if (y0 + line >= int(image.shape[2]) || first >= n) continue;
      row.centre = staged + (line + Tile::radius) * Tile::pitch + first + Tile::radius + 2 * pair;
      typename Row<k, m>::Attention attention;
      float weights[m][4];
      row.attend(words, layers, attention);
      const int place = line * tile_width + first + 2 * pair;
      float sums[m][4] = {};  // channel q of either pixel: [0] and [2]
      for (int panel = 0; panel < (several ? layers.panels : 1); ++panel) {
        row.weigh(words, layers, panel, attention, weights);
#pragma unroll
        for (int j = 0; j < m; ++j) {
          uint32_t found[4];
#pragma unroll
          for (int h = 0; h < 2; ++h)
            row.look_up(of_panel + panel * vertices, grid.steps, places.corners[place + 16 * j + h] + row.q,
                        reinterpret_cast<const uint2*>(places.shares + place + 16 * j + h)[row.q / 2],
                        weights[j][2 * h], weights[j][2 * h + 1], found[h], found[2 + h]);
          multiply_add(sums[j], found, adder.rg, adder.blues);
        }
      }
      if (row.q == 3) continue;
      with_pixel(out.dtype, [&]<class T>(Type<T>) {
        T* to = reinterpret_cast<T*>(out.data) + first_out + line * out.strides[2];
#pragma unroll
        for (int j = 0; j < m; ++j) {
          const int column = first + 16 * j + 2 * pair;
          const float both[2] = {sums[j][0], sums[j][2]};
          if (paired && column < n) write(to + column, from_floats<T>(both));
          if (paired) continue;
          if (column < n) to[column * out.strides[3]] = from_float<T>(both[0]);
          if (column + 1 < n) to[(column + 1) * out.strides[3]] = from_float<T>(both[1]);
        }
      });
    }
  });
}

// image, out (B, 3, H, W), float16, bfloat16 or uint8; tables (B or 1, panels, D, D, D, 16) in float16; packed (B,
// words) as `local_context_pack` fills it, for layers of this many channels.
void retouch_half(const Tensor& out, const Tensor& image, const Tensor& tables, const Tensor& packed, int64_t k,
                  int64_t features, int64_t hidden, int64_t count, int64_t stream) {
  const Layers layers(k, features, hidden, count);
  const auto start = [&]<int k>(std::integral_constant<int, k>) {
    const int64_t size = tables.shape[4], height = image.shape[2], width = image.shape[3];
    using Tile = Tile<k>;
    const Pixels tiles(tile_width, image.shape[0], (height + Tile::height - 1) / Tile::height, width);
    const bool paired = in_packs(Pixels(1, image.shape[0], height, width), 2, out);
    const int bytes = 4 * (layers.words() + 5 * Tile::pixels + 2 * Tile::plane);
    const int fit = attribute(image, cudaDevAttrMaxSharedMemoryPerMultiprocessor) / (bytes + 1024);
    const int64_t blocks = int64_t(attribute(image, cudaDevAttrMultiProcessorCount)) *
                           (fit < 1 ? 1 : fit < at_a_time<k> ? fit : at_a_time<k>);
    launch(layers.panels == 1 ? retouch_kernel<k, false, 64> : retouch_kernel<k, true, 64>, tiles,
           {blocks, threads, bytes}, image, stream, out, image, tables, packed, layers, Uniform(size, 1., Steps(size)),
           paired);
  };
  switch (k) {
    case 3: return start(std::integral_constant<int, 3>{});
    case 5: return start(std::integral_constant<int, 5>{});
    default: return start(std::integral_constant<int, 7>{});
  }
}

// ---- float32 ----

// One thread per pixel, layer by layer. The neighbours of large windows exceed its registers and are in shared memory.
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
