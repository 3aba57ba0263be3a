// lut_1d_transform on a GPU: applies a 1D table to each channel and, if given, a 3D table to the results.
#include "lut.cuh"

namespace fastenh {
namespace {

// The cell of a number (a cell lies between two entries) and the number's fraction within it. `inside`: the number is
// strictly inside the table's domain. A number on an entry is in the cell above and gets its slope.
struct Spot {
  int cell;
  float fraction;
  bool inside;
};

// The 1D table of a channel: its first entry is the output for `low`, its last the output for `high`. A position is the
// sum of two float32 numbers: a single one would be off by up to 1/256 among 65536 entries, and float64 is slow on most
// GPUs.
struct Line {
  const float* entries;
  int size;
  float low, high, scale, rest;  // the position of a number is (number - low) · (scale + rest)

  // tables (B, 3, S), rows contiguous; domain (B, 2, 3) contiguous
  __device__ Line(const Tensor& tables, const Tensor& domain, int64_t b, int64_t c)
      : entries(reinterpret_cast<const float*>(tables.data) + b * tables.strides[0] + c * tables.strides[1]),
        size(int(tables.shape[2])), low(0.f), high(1.f), scale(float(size - 1)), rest(0.f) {
    if (!domain.data) return;
    const float* ends = reinterpret_cast<const float*>(domain.data) + b * 6 + c;
    low = ends[0], high = ends[3];
    const float width = high - low, part = width - high, lost = (high - (width - part)) - (low + part);
    const float steps = scale;
    scale = steps / width;
    rest = (__fmaf_rn(-scale, width, steps) - __fmul_rn(scale, lost)) / width;
  }

  // Finds the cell of x / full.
  __device__ Spot find(float x, float full) const {
    const float number = full == 1.f ? x : x * (1.f / full);
    const float beyond = full == 1.f ? 0.f : __fmaf_rn(-number, full, x) * (1.f / full);  // rounding error of it
    const float above = number - low, part = above - number;
    const float lost = ((number - (above - part)) - (low + part)) + beyond;
    const float product = __fmul_rn(above, scale);  // __fmul_rn is never fused: the next line needs the rounded product
    const float more = __fmaf_rn(lost, scale, __fmaf_rn(above, rest, __fmaf_rn(above, scale, -product)));
    float position = product + more, little = more - (position - product);
    if (number <= low) position = little = 0.f;
    if (number >= high) position = float(size - 1), little = 0.f;
    Spot spot{min(int(fmaxf(position, 0.f)), size - 2), 0.f, number > low && number < high};
    spot.fraction = (position - float(spot.cell)) + little;
    if (spot.fraction < 0.f && spot.cell > 0) --spot.cell, spot.fraction += 1.f;  // rounded up to an entry
    if (spot.fraction == 1.f && spot.cell < size - 2) ++spot.cell, spot.fraction = 0.f;
    return spot;
  }

  __device__ float low_end(const Spot& spot) const { return __ldg(entries + spot.cell); }
  __device__ float high_end(const Spot& spot) const { return __ldg(entries + spot.cell + 1); }
  __device__ float look_up(float x, float full) const {
    const Spot spot = find(x, full);
    return lerp(low_end(spot), high_end(spot), spot.fraction);
  }
};

// ---- forward ----

enum class Then { nothing, trilinear, tetrahedral };

template <class T, Then then, Layout layout, int pixels>
__global__ void transform_kernel(Pixels places, Tensor out, Tensor image, Tensor tables, Tensor domain, Tensor packed,
                                 Uniform grid) {
  for_pieces(places, [&](int64_t b, int64_t band, int64_t x, int n) {
    const Line lines[3] = {{tables, domain, b, 0}, {tables, domain, b, 1}, {tables, domain, b, 2}};
    Batch<layout, T, 256, pixels>(image, b, band, x, n).map(out, [&](const float(&rgb)[3], T(&mapped)[3]) {
      float values[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) values[c] = lines[c].look_up(rgb[c], float(full_scale<T>));
      if constexpr (then != Then::nothing) {
        const auto* table = tables_of<Vertex<float, 4>>(packed, b);
        const auto v = interpolate<then == Then::tetrahedral>(table, find_cell<float>(values, grid), grid.steps);
#pragma unroll
        for (int c = 0; c < 3; ++c) values[c] = v.number(c);
      }
#pragma unroll
      for (int c = 0; c < 3; ++c) mapped[c] = from_float<T>(values[c]);
    });
  });
}

// Applies only the 1D tables; the result is float32.
template <int pixels>
__global__ void to_float_kernel(Pixels places, Tensor out, Tensor image, Tensor tables, Tensor domain) {
  const float full = image.dtype == Dtype::u8 ? 255.f : image.dtype == Dtype::u16 ? 65535.f : 1.f;
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    const int64_t x = x0 + threadIdx.x;
    if (int(threadIdx.x) >= n) return;
    for (int c = 0; c < 3; ++c) {
      const float number = load(image, b, c, y, x);  // integers: divided by full scale, rounded
      const float value = Line(tables, domain, b, c).look_up(full == 1.f ? number : rintf(number * full), full);
      store(out, b, c, y, x, value);
    }
  });
}

template <Then then>
void transform_as(const Tensor& out, const Tensor& image, const Tensor& tables, Optional domain, Optional packed,
                  int64_t stream) {
  const int64_t size = packed ? packed->shape[4] : 2;
  with_type(image.dtype, [&]<class T>(Type<T>) {
    const auto start = [&]<Layout layout>(std::integral_constant<Layout, layout>) {
      launch(transform_kernel<T, then, layout, 8>,
             bands_of<layout>(Batch<layout, T, 256, 8>::columns, image, out), {}, image, stream, out, image, tables,
             or_none(domain), or_none(packed), Uniform(size, 1., Steps(size)));
    };
    const Pixels lines(1, image.shape[0], image.shape[2], image.shape[3]);
    switch (image.shape[2] < 4 ? Layout::strided : layout_of(lines, in_a_word<T>, image, out)) {
      case Layout::planar: return start(std::integral_constant<Layout, Layout::planar>{});
      case Layout::interleaved: return start(std::integral_constant<Layout, Layout::interleaved>{});
      case Layout::strided: return start(std::integral_constant<Layout, Layout::strided>{});
    }
  });
}

// image (B, 3, H, W); out has the dtype of image or float32; tables (B, 3, S) and domain (B, 2, 3) as for `Line`
void transform(const Tensor& out, const Tensor& image, const Tensor& tables, Optional domain, int64_t stream) {
  if (out.dtype == image.dtype) return transform_as<Then::nothing>(out, image, tables, domain, {}, stream);
  launch(to_float_kernel<1>, Pixels::joining(256, image.shape[0], image, out), {}, image, stream, out, image, tables,
         or_none(domain));
}

// out has the dtype of image; packed (B or 1, 1, D, D, D, 4) float32, as in lut.h
void transform_3d(const Tensor& out, const Tensor& image, const Tensor& tables, Optional domain, const Tensor& packed,
                  int64_t tetrahedral, int64_t stream) {
  (tetrahedral ? transform_as<Then::tetrahedral> : transform_as<Then::trilinear>)(out, image, tables, domain, {&packed},
                                                                                 stream);
}

// ---- backward ----

// A warp processes 32 adjacent pixels per step. All lanes take part in every step, even those without a pixel.
constexpr int steps_a_warp = 8;

// Fills grad_image, and adds the gradient of the tables to sums (B, 3, S). As in lut.cu, a warp sums its pixels in a
// cell before it adds the sums to memory: lane 0 holds the sum for the lower entry, lane 1 the sum for the upper entry.
template <int pixels>
__global__ void __launch_bounds__(256) backward_kernel(Pixels places, Tensor grad_image, Sums sums, Tensor grad,
                                                       Tensor image, Tensor tables, Tensor domain) {
  const int self = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    for (int c = 0; c < 3; ++c) {
      const Line line(tables, domain, b, c);
      uint32_t before = none;
      float waiting = 0.f;
      const auto flush = [&] {
        if (before != none && self < 2) sums.add((b * 3 + c) * line.size + before + self, waiting);
      };
      for (int step = 0; step < steps_a_warp; ++step) {
        const int i = (warp * steps_a_warp + step) * 32 + self;
        const bool there = i < n;
        const int64_t x = x0 + (there ? i : 0);
        const Spot spot = line.find(load(image, b, c, y, x), 1.f);
        const float g = load(grad, b, c, y, x);
        if (grad_image.data && there) {
          const float rise = line.high_end(spot) - line.low_end(spot);
          store(grad_image, b, c, y, x, spot.inside ? g * rise * line.scale : 0.f);
        }
        if (!sums.to.data) continue;
        const float lower = (1.f - spot.fraction) * g, upper = spot.fraction * g;
        for_cells(there ? uint32_t(spot.cell) : none, [&](uint32_t current, bool in) {
          float low = in ? lower : 0.f, high = in ? upper : 0.f;
#pragma unroll
          for (int distance = 16; distance; distance /= 2) {
            low += __shfl_xor_sync(0xffffffff, low, distance);
            high += __shfl_xor_sync(0xffffffff, high, distance);
          }
          if (current != before) {
            flush();
            before = current, waiting = 0.f;
          }
          waiting += self == 0 ? low : high;
        });
      }
      flush();
    }
  });
}

// sums: float32, or int64 in units of 1 / scale
void backward(Optional grad_image, Optional sums, Optional scale, const Tensor& grad, const Tensor& image,
              const Tensor& tables, Optional domain, int64_t stream) {
  launch(backward_kernel<1>,
         Pixels::joining(256 * steps_a_warp, image.shape[0], image, grad, or_none(grad_image)), {}, image, stream,
         or_none(grad_image), Sums{or_none(sums), or_none(scale)}, grad, image, tables, or_none(domain));
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&pack>("lut_pack"),
    kernel<&transform>("lut_1d_transform"),
    kernel<&transform_3d>("lut_1d_transform_3d"),
    kernel<&backward>("lut_1d_transform_backward"),
    {},
};

}  // namespace fastenh
