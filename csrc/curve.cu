// curve_iterate on a GPU: iterates x <- x + r·(x² − x), with a curve parameter r for every pixel. There is one map of
// parameters per iteration, or one for all iterations, of the picture's size or resampled to it on the fly.
#include <algorithm>

#include "device.h"

namespace fastenh {
namespace {

constexpr int chunk = 8;  // iterations whose curves, and for gradients also states, a thread holds at once

__device__ inline float iterate(float x, float r) { return __fmaf_rn(r, __fmaf_rn(x, x, -x), x); }

// This many iterations, at most a chunk; curve(k, i) is the curve of value i in iteration k.
template <int n, class Curve>
__device__ inline void iterate(float (&x)[n], int iterations, const Curve& curve) {
  if (iterations >= chunk) {
#pragma unroll
    for (int k = 0; k < chunk; ++k)
#pragma unroll
      for (int i = 0; i < n; ++i) x[i] = iterate(x[i], curve(k, i));
  } else {
#pragma unroll
    for (int k = 0; k < chunk - 1; ++k)
      if (k < iterations) {
#pragma unroll
        for (int i = 0; i < n; ++i) x[i] = iterate(x[i], curve(k, i));
      }
  }
}

// Backpropagates n values, a chunk of iterations at a time. fetch(k) loads the curves so that curve(j, i) is that of
// iteration k + j, and begin(x, g) returns the image and the gradient of the result. share(j, i, v) receives what value
// i in iteration k + j contributes to the gradient of its curve, and done(k) ends that chunk. At the end g is the
// gradient of the image. With more than one chunk, x before each chunk is kept in shared memory.
template <int n, class Fetch, class Curve, class Begin, class Share, class Done>
__device__ inline void differentiate(int iterations, float (&g)[n], const Fetch& fetch, const Curve& curve,
                                     const Begin& begin, const Share& share, const Done& done) {
  float* const before = reinterpret_cast<float*>(memory) + threadIdx.x;
  const int last = (iterations - 1) / chunk * chunk;
  float x[chunk][n];
  fetch(0);  // issued before the image is loaded, so that it does not wait for it
  begin(x[0], g);
  for (int k = 0; k < last; k += chunk) {
#pragma unroll
    for (int i = 0; i < n; ++i) before[(k / chunk * n + i) * blockDim.x] = x[0][i];
    iterate(x[0], chunk, curve);
    fetch(k + chunk);
  }
  for (int k = last;;) {
#pragma unroll
    for (int j = 1; j < chunk; ++j)
      if (k + j < iterations) {
#pragma unroll
        for (int i = 0; i < n; ++i) x[j][i] = iterate(x[j - 1][i], curve(j - 1, i));
      }
#pragma unroll
    for (int j = chunk - 1; j >= 0; --j)
      if (k + j < iterations) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          share(j, i, g[i] * __fmaf_rn(x[j][i], x[j][i], -x[j][i]));
          g[i] *= __fmaf_rn(curve(j, i), __fmaf_rn(2.f, x[j][i], -1.f), 1.f);
        }
      }
    done(k);
    if (k == 0) break;
    k -= chunk;
    fetch(k);
#pragma unroll
    for (int i = 0; i < n; ++i) x[0][i] = before[(k / chunk * n + i) * blockDim.x];
  }
}

inline int bytes_before(int64_t iterations, int64_t values) { return int((iterations - 1) / chunk * values * 4); }

// ---- maps as large as the picture ----

// The curves of n values for a chunk of iterations or (maps = 1) the same for all, read `together` at a time.
template <class M, int maps, int n, int together>
struct Curves {
  Words<M, together> words[maps * n / together];
  __device__ float operator()(int k, int i) const {
    const int at = (maps == 1 ? 0 : k) * n + i;
    return to_float(words[at / together].pack().at[at % together]);
  }
};
template <class M, int maps, int n, int together>
struct Gradients {
  Pack<M, together> packs[maps * n / together];
  __device__ void set(int k, int i, float v) {
    packs[(k * n + i) / together].at[(k * n + i) % together] = from_float<M>(v);
  }
};

// n adjacent pixels in a row, one channel after the other.
template <class M, int n>
struct Run {
  using Map = M;
  static constexpr int values = n, together = n, parts = 3;
  int64_t b, y, x;
  int c = 0;

  __device__ int64_t at(const Tensor& t, int k) const { return offset(t, b, 3 * k + c, y, x); }
  __device__ void get(const Tensor& image, float (&v)[n]) const { load(image, at(image, 0), v); }
  __device__ void put(const Tensor& image, const float (&v)[n]) const { store(image, at(image, 0), v); }
  template <int maps>
  __device__ void get(const Tensor& curves, int k, int iterations, Curves<M, maps, n, n>& held) const {
    const M* from = reinterpret_cast<const M*>(curves.data) + at(curves, k);
#pragma unroll
    for (int j = 0; j < maps; ++j)  // beyond the last one, it again: cheaper than conditional loads
      held.words[j].read_once(from + min(j, iterations - 1 - k) * (3 * curves.strides[1]));
  }
  template <int maps>
  __device__ void put(const Tensor& curves, int k, int iterations, const Gradients<M, maps, n, n>& held) const {
    M* to = reinterpret_cast<M*>(curves.data) + at(curves, k);
#pragma unroll
    for (int j = 0; j < maps; ++j)
      if (k + j < iterations) write(to + j * (3 * curves.strides[1]), held.packs[j]);
  }
};

// The three channels of one pixel, in any layout; `chunks`: its curves are adjacent in memory, in whole chunks.
template <class M, bool chunks>
struct Pixel {
  using Map = M;
  static constexpr int values = 3, together = chunks ? 16 / sizeof(M) : 1, parts = 1;
  int64_t b, y, x;
  int c = 0;

  __device__ void get(const Tensor& image, float (&v)[3]) const {
#pragma unroll
    for (int c = 0; c < 3; ++c) v[c] = load(image, b, c, y, x);
  }
  __device__ void put(const Tensor& image, const float (&v)[3]) const {
#pragma unroll
    for (int c = 0; c < 3; ++c) store(image, b, c, y, x, v[c]);
  }
  template <int maps>
  __device__ void get(const Tensor& curves, int k, int iterations, Curves<M, maps, 3, together>& held) const {
    const M* from = at<const M>(curves, b, 3 * k, y, x);
#pragma unroll
    for (int j = 0; j < 3 * maps; j += together) {
      const int there = 3 * min(j / 3, iterations - 1 - k) + j % 3;
      held.words[j / together].read(from + (chunks ? j : there * curves.strides[1]));
    }
  }
  template <int maps>
  __device__ void put(const Tensor& curves, int k, int iterations, const Gradients<M, maps, 3, together>& held) const {
    M* to = at<M>(curves, b, 3 * k, y, x);
#pragma unroll
    for (int j = 0; j < 3 * maps; j += together)
      if (k + j / 3 < iterations) write(to + (chunks ? j : j * curves.strides[1]), held.packs[j / together]);
  }
};

template <class Place, int maps, int pixels>
__global__ void forward_kernel(Pixels pieces, Tensor out, Tensor image, Tensor curves, int iterations) {
  for_pieces(pieces, [&](int64_t b, int64_t y, int64_t x, int length) {
    const int first = int(threadIdx.x) * pixels;
    if (first >= length) return;
#pragma unroll 1
    for (Place place{b, y, x + first}; place.c < Place::parts; ++place.c) {
      Curves<typename Place::Map, maps, Place::values, Place::together> held;
      place.get(curves, 0, iterations, held);  // issued before the image is loaded, so that it does not wait for it
      float v[Place::values];
      place.get(image, v);
      for (int k = 0;;) {
        iterate(v, iterations - k, held);
        k += chunk;
        if (k >= iterations) break;
        if (maps > 1) place.get(curves, k, iterations, held);
      }
      place.put(out, v);
    }
  });
}

template <class Place, int maps, int pixels>
__global__ void backward_kernel(Pixels pieces, Tensor grad_image, Tensor grad_curves, Tensor grad, Tensor image,
                                Tensor curves, int iterations) {
  constexpr int n = Place::values;
  for_pieces(pieces, [&](int64_t b, int64_t y, int64_t x, int length) {
    const int first = int(threadIdx.x) * pixels;
    if (first >= length) return;
#pragma unroll 1
    for (Place place{b, y, x + first}; place.c < Place::parts; ++place.c) {
      Curves<typename Place::Map, maps, n, Place::together> held;
      Gradients<typename Place::Map, maps, n, Place::together> shares;
      float g[n], sums[n]{};
      differentiate(
          iterations, g,
          [&](int k) {
            if (maps > 1 || k == 0) place.get(curves, k, iterations, held);
          },
          held,
          [&](float (&v)[n], float (&g)[n]) {
            place.get(image, v);
            place.get(grad, g);
          },
          [&](int j, int i, float v) {
            if (maps == 1) sums[i] += v;
            else shares.set(j % maps, i, v);
          },
          [&](int k) {
            if (maps > 1 && grad_curves.data) place.put(grad_curves, k, iterations, shares);
          });
      if (maps == 1 && grad_curves.data) {
#pragma unroll
        for (int i = 0; i < n; ++i) shares.set(0, i, sums[i]);
        place.put(grad_curves, 0, 1, shares);
      }
      if (grad_image.data) place.put(grad_image, g);
    }
  });
}

// Where all tensors are dense and have the same order of dimensions, the order does not matter: interleaved channels
// are treated as planes.
inline bool interleaved(const Tensor& t) {
  return !t.data || (t.strides[1] == 1 && t.strides[3] == 3 && t.strides[2] == 3 * t.shape[3]);
}
inline Tensor as_planar(Tensor t) {
  t.strides[1] = t.shape[2] * t.shape[3], t.strides[2] = t.shape[3], t.strides[3] = 1;
  return t;
}

// Whether a pixel's curves are adjacent, in chunks that can be read and written 16 bytes at a time.
inline bool in_chunks(const Tensor& t, int64_t iterations) {
  const auto aligned = [&](int dim) { return t.shape[dim] == 1 || t.strides[dim] * size_of(t.dtype) % 16 == 0; };
  return !t.data || (iterations % chunk == 0 && t.strides[1] == 1 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
                     aligned(0) && aligned(2) && aligned(3));
}

void forward_same_size(Tensor out, Tensor image, Tensor curves, int64_t iterations, int64_t stream) {
  const bool shared = curves.shape[1] == 3;
  if (shared && interleaved(out) && interleaved(image) && interleaved(curves))
    out = as_planar(out), image = as_planar(image), curves = as_planar(curves);
  with_float(curves.dtype, [&](auto type) {
    using M = typename decltype(type)::type;
    constexpr int n = 16 / sizeof(M), threads = 128;
    const auto start = [&](auto kernel, const Pixels& pieces) {
      launch(kernel, pieces, {.threads = threads}, out, stream, out, image, curves, int(iterations));
    };
    const Pixels runs = Pixels::joining(threads * n, image.shape[0], image, out, curves);
    const Pixels pixels = Pixels::joining(threads, image.shape[0], image, out, curves);
    if (in_packs(runs, n, image) && in_packs(runs, n, out) && in_packs(runs, n, curves)) {
      start(shared ? forward_kernel<Run<M, n>, 1, n> : forward_kernel<Run<M, n>, chunk, n>, runs);
    } else if (shared) {
      start(forward_kernel<Pixel<M, false>, 1, 1>, pixels);
    } else {
      const bool chunks = in_chunks(curves, iterations);
      start(chunks ? forward_kernel<Pixel<M, true>, chunk, 1> : forward_kernel<Pixel<M, false>, chunk, 1>, pixels);
    }
  });
}

void backward_same_size(Tensor grad_image, Tensor grad_curves, Tensor grad, Tensor image, Tensor curves,
                        int64_t iterations, int64_t stream) {
  const bool shared = curves.shape[1] == 3;
  if (shared && interleaved(grad_image) && interleaved(grad_curves) && interleaved(grad) && interleaved(image) &&
      interleaved(curves)) {
    grad_image = as_planar(grad_image), grad_curves = as_planar(grad_curves);
    grad = as_planar(grad), image = as_planar(image), curves = as_planar(curves);
  }
  const int threads = iterations <= 128 ? 128 : 32;  // limits the use of shared memory
  with_float(curves.dtype, [&](auto type) {
    using M = typename decltype(type)::type;
    constexpr int n = 4;
    const auto start = [&](auto kernel, int values, const Pixels& pieces) {
      launch(kernel, pieces, {.threads = threads, .shared_bytes = bytes_before(iterations, threads * values)}, grad,
             stream, grad_image, grad_curves, grad, image, curves, int(iterations));
    };
    const Pixels runs = Pixels::joining(threads * n, image.shape[0], image, grad, curves, grad_image, grad_curves);
    const Pixels pixels = Pixels::joining(threads, image.shape[0], image, grad, curves, grad_image, grad_curves);
    const auto packs = [&](const Tensor& t) { return in_packs(runs, n, t); };
    if (packs(image) && packs(grad) && packs(curves) && packs(grad_image) && packs(grad_curves)) {
      start(shared ? backward_kernel<Run<M, n>, 1, n> : backward_kernel<Run<M, n>, chunk, n>, n, runs);
    } else if (shared) {
      start(backward_kernel<Pixel<M, false>, 1, 1>, 3, pixels);
    } else {
      const bool chunks = in_chunks(curves, iterations) && in_chunks(grad_curves, iterations);
      start(chunks ? backward_kernel<Pixel<M, true>, chunk, 1> : backward_kernel<Pixel<M, false>, chunk, 1>, 3, pixels);
    }
  });
}

// ---- maps of another size ----

// The positions of a picture's rows or columns in a map. They are float32, computed just as F.interpolate does with
// align_corners=True, so that both agree to the last bits.
struct Axis {
  int map, picture;
  float scale, inverse;
  Axis(int64_t map, int64_t picture)
      : map(int(map)), picture(int(picture)), scale(picture > 1 ? float(map - 1) / float(picture - 1) : 0.f),
        inverse(scale > 0.f ? 1.f / scale : float(picture)) {
    if (map > INT32_MAX || picture > INT32_MAX)
      throw std::invalid_argument("curve_iterate: expected fewer than 2^31 rows and columns of a map to be resampled");
  }
  __device__ float position(int i) const { return __fmul_rn(scale, float(i)); }  // rounded before it is used
  __device__ int cell(int i) const { return min(int(position(i)), map - 1); }
  __device__ float fraction(int i, int cell) const { return cell + 1 < map ? position(i) - float(cell) : 0.f; }
  __device__ int first_in(int wanted) const {  // the first i whose cell is `wanted` or later
    if (wanted <= 0) return 0;
    int i = int(fminf(float(wanted) * inverse, float(picture)));
    while (i > 0 && cell(i - 1) >= wanted) --i;
    while (i < picture && cell(i) < wanted) ++i;
    return i;
  }
  // If the map is at least as large as the picture, each row or column of the picture is in a separate cell.
  __device__ bool apart() const { return map >= picture; }
};

// Adjacent numbers in a row: pixels of channel c from column x on or, if interleaved, channels of pixels from there on.
struct Neighbours {
  int64_t b;
  int x, c;
  bool interleaved;
  __device__ int column(int i) const { return interleaved ? x + (c + i) / 3 : x + i; }
  __device__ int channel(int i) const { return interleaved ? (c + i) % 3 : c; }
};

// The curves of n adjacent numbers between two rows of the maps: at the upper row, and their rise to the lower row.
template <int maps, int n>
struct Between {
  float upper[maps][n], rise[maps][n];

  // Finds those from iteration k on. A chunk of maps goes through shared memory, so that its loop need not be unrolled
  // and uses few registers.
  __device__ void find(const Tensor& curves, const Axis& across, const Neighbours& here, int cell, int k,
                       int iterations, float2* passing) {
    float2* const own = passing + threadIdx.x;
    const auto put = [&](int j, int i, float high, float low) {
      if (maps == 1) upper[0][i] = high, rise[0][i] = low - high;
      else own[(j * n + i) * blockDim.x] = {high, low - high};
    };
    const int count = maps == 1 ? 1 : min(maps, iterations - k);
    switch (curves.dtype) {
      case Dtype::f16: find<__half>(curves, across, here, cell, k, count, put); break;
      case Dtype::bf16: find<__nv_bfloat16>(curves, across, here, cell, k, count, put); break;
      default: find<float>(curves, across, here, cell, k, count, put);
    }
#pragma unroll
    for (int j = 0; j < maps && maps > 1; ++j)
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float2 v = own[(j * n + i) * blockDim.x];
        upper[j][i] = v.x, rise[j][i] = v.y;
      }
  }

 private:
  template <class M, class Put>
  __device__ void find(const Tensor& curves, const Axis& across, const Neighbours& here, int cell, int k, int count,
                       const Put& put) const {
    const int64_t below = cell + 1 < curves.shape[2] ? curves.strides[2] : 0;
    const auto step = [&](int left) { return left + 1 < across.map ? curves.strides[3] : 0; };  // to the next column
    if (!here.interleaved && across.scale * (n - 1) < 0.99f) {  // two cells at most: three columns, read once for all
      const int first = across.cell(here.x);
      const int64_t next = step(first), last = next + step(first + 1);
      const M* high = at<const M>(curves, here.b, 3 * k + here.c, cell, first);
      for (int j = 0; j < count; ++j, high += 3 * curves.strides[1]) {
        const M* const low = high + below;
        const float h[] = {to_float(high[0]), to_float(high[next]), to_float(high[last])};
        const float l[] = {to_float(low[0]), to_float(low[next]), to_float(low[last])};
#pragma unroll
        for (int i = 0; i < n; ++i) {
          const float position = across.position(here.x + i);
          const bool second = i > 0 && position >= float(first + 1);
          const float fraction = position - float(second ? first + 1 : first);
          put(j, i, __fmaf_rn(fraction, second ? h[2] - h[1] : h[1] - h[0], second ? h[1] : h[0]),
              __fmaf_rn(fraction, second ? l[2] - l[1] : l[1] - l[0], second ? l[1] : l[0]));
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const int left = across.cell(here.column(i));
        const int64_t next = step(left);
        const float fraction = across.position(here.column(i)) - float(left);
        const M* high = at<const M>(curves, here.b, 3 * k + here.channel(i), cell, left);
        for (int j = 0; j < count; ++j, high += 3 * curves.strides[1]) {
          const M* const low = high + below;
          const float h = to_float(high[0]), l = to_float(low[0]);
          put(j, i, __fmaf_rn(fraction, to_float(high[next]) - h, h), __fmaf_rn(fraction, to_float(low[next]) - l, l));
        }
      }
    }
  }
};

template <int maps, int n>
__device__ inline void iterate(float (&v)[n], int iterations, const Between<maps, n>& curves, float down) {
  if constexpr (maps == 1) {
    float r[n];
#pragma unroll
    for (int i = 0; i < n; ++i) r[i] = __fmaf_rn(down, curves.rise[0][i], curves.upper[0][i]);
    for (int k = 0; k < iterations; k += chunk) iterate(v, iterations - k, [&](int, int i) { return r[i]; });
  } else {
    iterate(v, iterations, [&](int k, int i) { return __fmaf_rn(down, curves.rise[k][i], curves.upper[k][i]); });
  }
}

// A thread goes down `rows` rows of the picture with n adjacent numbers, and finds new curves where it reaches the next
// row of the map. With more than one chunk of maps it has to find them in every row.
template <class T, int maps, int pixels>
__global__ void resampled_kernel(Pixels bands, Axis down, Axis across, int rows, bool interleaved, Tensor out,
                                 Tensor image, Tensor curves, int iterations) {
  constexpr int n = pixels;
  for_pieces(bands, [&](int64_t plane, int64_t band, int64_t first, int length) {
    const int own = int(threadIdx.x) * n;
    if (own >= length) return;
    const int64_t x = first + own;
    const Neighbours here = interleaved ? Neighbours{plane, int(x / 3), int(x % 3), true}
                                        : Neighbours{plane / 3, int(x), int(plane % 3), false};
    const int begin = int(band) * rows, end = min(begin + rows, down.picture);
    int64_t from = offset(image, here.b, here.c, begin, here.x), to = offset(out, here.b, here.c, begin, here.x);
    Words<T, n> next;
    if constexpr (n > 1) next.read_once(reinterpret_cast<const T*>(image.data) + from);
    Between<maps, n> between;
    float cell = 0.f, end_of_cell = -1.f;
    for (int y = begin; y < end; ++y) {
      float v[n];
      if constexpr (n > 1) {
        to_floats(next.pack(), v);
        if (y + 1 < end) from += image.strides[2];  // else the last row again: cheaper than a conditional load
        next.read_once(reinterpret_cast<const T*>(image.data) + from);
      } else {
        v[0] = load(image, from);
        from += image.strides[2];
      }
      const float position = down.position(y);
      for (int k = 0;; k += chunk) {
        if (position >= end_of_cell || (maps > 1 && iterations > chunk)) {
          between.find(curves, across, here, down.cell(y), k, iterations, reinterpret_cast<float2*>(memory));
          cell = float(down.cell(y)), end_of_cell = cell + 1.f;
        }
        iterate(v, iterations - k, between, position - cell);
        if (maps == 1 || k + chunk >= iterations) break;
      }
      if constexpr (n > 1) write(reinterpret_cast<T*>(out.data) + to, from_floats<T>(v));
      else store(out, to, v[0]);
      to += out.strides[2];
    }
  });
}

void forward_resampled(const Tensor& out, const Tensor& image, const Tensor& curves, int64_t iterations,
                       int64_t stream) {
  const int64_t batch = image.shape[0], height = image.shape[2], width = image.shape[3];
  const bool shared = curves.shape[1] == 3;
  const auto beside = [](const Tensor& t) { return t.strides[1] == 1 && t.strides[3] == 3; };
  const bool interleaved = beside(image) && beside(out);
  const int64_t planes = interleaved ? batch : 3 * batch, length = interleaved ? 3 * width : width;
  const Axis down(curves.shape[2], height), across(curves.shape[3], width);
  const auto start = [&](auto kernel, int n) {
    const int threads = int(std::min<int64_t>(128, (length + 32 * n - 1) / (32 * n) * 32));
    const int64_t pieces = planes * ((length + threads * n - 1) / (threads * n));
    // Long bands rarely need new curves; short ones keep all multiprocessors busy.
    const int64_t few = 16 * attribute(image, cudaDevAttrMultiProcessorCount);
    const int rows = int(std::clamp<int64_t>(height * pieces / few, 1, 24));
    launch(kernel, Pixels(threads * n, planes, (height + rows - 1) / rows, length),
           {.threads = threads, .shared_bytes = shared ? 0 : chunk * n * threads * int(sizeof(float2))}, image, stream,
           down, across, rows, interleaved, out, image, curves, int(iterations));
  };
  with_type(image.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int n = sizeof(T) == 4 ? 4 : 8;
    const auto packs = [&](int n) {
      const Pixels all(1, planes, height, length);
      return in_packs(all, n, image, interleaved) && in_packs(all, n, out, interleaved);
    };
    if (shared && packs(n)) start(resampled_kernel<T, 1, n>, n);
    else if (!shared && packs(2)) start(resampled_kernel<T, chunk, 2>, 2);
    else start(shared ? resampled_kernel<float, 1, 1> : resampled_kernel<float, chunk, 1>, 1);
  });
}

// Gradients of maps: a block sums a tile of the picture, up to 128 columns of rows that lie in one cell of the map. For
// each cell that the tile touches, it writes four sums to scratch (B, C, bands of rows, tiles in a band, cells, 4): the
// contributions to the cell's upper left, upper right, lower left and lower right corner. A second kernel adds them,
// point by point. No two threads write to the same address, and the order of additions is always the same.
constexpr int tile = 128;

__device__ inline int64_t corners_of_a_map(const Tensor& scratch) {
  return scratch.shape[2] * scratch.shape[3] * scratch.shape[4];
}
__device__ inline float4* corners(const Tensor& scratch, int64_t b, int64_t map, int64_t band, int64_t number) {
  return reinterpret_cast<float4*>(scratch.data) + (b * scratch.shape[1] + map) * corners_of_a_map(scratch) +
         (band * scratch.shape[3] + number) * scratch.shape[4];
}

template <int maps, int pixels>
__global__ void resampled_backward_kernel(Pixels tiles, Axis down, Axis across, Tensor grad_image, Tensor scratch,
                                          Tensor grad, Tensor image, Tensor curves, int iterations, int bytes_before) {
  constexpr int n = pixels;
  float4* const sums = reinterpret_cast<float4*>(memory + bytes_before);   // of each map and column of the tile
  float2* const passing = reinterpret_cast<float2*>(sums + maps * tile);   // curves
  int* const starts = reinterpret_cast<int*>(passing + maps * tile);       // the first column of each cell
  for_pieces(tiles, [&](int64_t b, int64_t band, int64_t number, int) {
    const int c = int(number % 3), first = int(number / 3) * tile, own = int(threadIdx.x) * n;
    int begin = int(band), end = begin + 1, cell = down.cell(begin);
    if (!down.apart()) {
      const int parts = int(scratch.shape[2] / down.map), part = int(band % parts);
      cell = int(band / parts);
      const int top = down.first_in(cell), rows = down.first_in(cell + 1) - top;
      begin = top + int(int64_t(rows) * part / parts), end = top + int(int64_t(rows) * (part + 1) / parts);
    }
    const int columns = min(tile, across.picture - first), first_cell = across.cell(first);
    const int cells = across.apart() ? columns : across.cell(first + columns - 1) - first_cell + 1;
    if (scratch.data)
      for (int i = int(threadIdx.x); i <= cells; i += int(blockDim.x))
        starts[i] = across.apart() ? i : max(0, min(across.first_in(first_cell + i) - first, columns));

    // Sums of the shares, and of the shares times the vertical position in the cell.
    float sum[maps][n]{}, lower[maps][n]{};
    const auto write_corners = [&](int k, bool add) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const int x = first + own + i;
        const float right = across.fraction(x, across.cell(x));
#pragma unroll
        for (int j = 0; j < maps; ++j) {
          sums[j * tile + own + i] = {sum[j][i], right * sum[j][i], lower[j][i], right * lower[j][i]};
          sum[j][i] = lower[j][i] = 0.f;
        }
      }
      __syncthreads();
      int lanes = 1;  // of a warp, to sum the columns of one cell
      while (lanes < 32 && 4 * lanes * cells <= columns) lanes *= 2;
      const int lane = int(threadIdx.x) % lanes, count = min(maps, iterations - k);
      float4* const to = corners(scratch, b, 3 * k + c, band, number / 3);
      for (int j = int(threadIdx.x) / 32; j < count; j += int(blockDim.x) / 32) {
        for (int base = 0; base < cells; base += 32 / lanes) {
          const int which = base + int(threadIdx.x) % 32 / lanes;
          float4 all{};
          for (int x = which < cells ? starts[which] + lane : tile; x < starts[min(which + 1, cells)]; x += lanes) {
            const float4 v = sums[j * tile + x];
            all.x += v.x, all.y += v.y, all.z += v.z, all.w += v.w;
          }
          for (int away = lanes / 2; away > 0; away /= 2) {
            all.x += __shfl_xor_sync(~0u, all.x, away), all.y += __shfl_xor_sync(~0u, all.y, away);
            all.z += __shfl_xor_sync(~0u, all.z, away), all.w += __shfl_xor_sync(~0u, all.w, away);
          }
          if (which < cells && lane == 0) {
            float4& corner = to[j * 3 * corners_of_a_map(scratch) + which];
            const float4 before = add ? corner : float4{};
            corner = {before.x + (all.x - all.y) - (all.z - all.w), before.y + (all.y - all.w),
                      before.z + (all.z - all.w), before.w + all.w};
          }
        }
      }
      __syncthreads();
    };

    const Neighbours here{b, first + own, c, false};
    const bool inside = own < columns, again = maps > 1 && iterations > chunk;
    Between<maps, n> between;
    if (!again) between.find(curves, across, here, cell, 0, iterations, passing);
    int64_t from = offset(image, b, c, begin, here.x), from_grad = offset(grad, b, c, begin, here.x);
    int64_t to = offset(grad_image, b, c, begin, here.x);
    for (int y = begin; y < end; ++y) {
      const float fraction = down.fraction(y, cell);
      float g[n], r[n], shares[n]{};
      differentiate(
          iterations, g,
          [&](int k) {
            if (again) between.find(curves, across, here, cell, k, iterations, passing);
#pragma unroll
            for (int i = 0; i < n; ++i) r[i] = __fmaf_rn(fraction, between.rise[0][i], between.upper[0][i]);
          },
          [&](int j, int i) {
            return maps == 1 ? r[i] : __fmaf_rn(fraction, between.rise[j % maps][i], between.upper[j % maps][i]);
          },
          [&](float (&v)[n], float (&g)[n]) {
#pragma unroll
            for (int i = 0; i < n; ++i) v[i] = g[i] = 0.f;
            if (!inside) return;
            load(image, from, v);
            load(grad, from_grad, g);
          },
          [&](int j, int i, float v) {
            if (maps == 1) {
              shares[i] += v;
            } else {
              sum[j % maps][i] += v;
              lower[j % maps][i] = __fmaf_rn(fraction, v, lower[j % maps][i]);
            }
          },
          [&](int k) {
            if (again && scratch.data) write_corners(k, y > begin);
          });
      if (maps == 1) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          sum[0][i] += shares[i];
          lower[0][i] = __fmaf_rn(fraction, shares[i], lower[0][i]);
        }
      }
      if (grad_image.data && inside) store(grad_image, to, g);
      from += image.strides[2], from_grad += grad.strides[2], to += grad_image.strides[2];
    }
    if (scratch.data && !again) write_corners(0, false);
    if (scratch.data && again && begin == end)
      for (int k = 0; k < iterations; k += chunk) write_corners(k, false);
  });
}

// A point of a map is a corner of four cells; `lanes` threads sum what these contribute to it.
template <int pixels>
__global__ void add_corners_kernel(Pixels points, Axis down, Axis across, Tensor grad_curves, Tensor scratch,
                                   int lanes) {
  for_pieces(points, [&](int64_t plane, int64_t y, int64_t first, int length) {
    const int64_t b = plane / grad_curves.shape[1], map = plane % grad_curves.shape[1];
    const int own = int(threadIdx.x) / lanes, lane = int(threadIdx.x) % lanes, x = int(first) + own;
    const int parts = down.apart() ? 1 : int(scratch.shape[2] / down.map);
    float sum = 0.f;
    for (int left = 0; own < length && left < 2; ++left) {  // this point is the left corner of its own column of cells,
      const int column = x - left;                          // and the right one of those to the left
      if (column < 0) continue;
      const int begin = across.first_in(column), end = across.first_in(column + 1);
      for (int above = 0; above < 2; ++above) {
        const int row = int(y) - above;
        if (row < 0) continue;
        const int top = down.apart() ? down.first_in(row) : row * parts;
        const int bottom = down.apart() ? down.first_in(row + 1) : top + parts;
        for (int band = top + lane; band < bottom; band += lanes) {
          for (int i = begin; i < end; i = across.apart() ? i + 1 : (i / tile + 1) * tile) {
            const int cell = across.apart() ? i % tile : column - across.cell(i / tile * tile);
            const float4 from = corners(scratch, b, map, band, i / tile)[cell];
            sum += above ? (left ? from.w : from.z) : (left ? from.y : from.x);
          }
        }
      }
    }
    for (int away = lanes / 2; away > 0; away /= 2) sum += __shfl_xor_sync(~0u, sum, away);
    if (own < length && lane == 0) store(grad_curves, b, map, y, x, sum);
  });
}

void backward_resampled(const Tensor& grad_image, const Tensor& grad_curves, const Tensor& scratch, const Tensor& grad,
                        const Tensor& image, const Tensor& curves, int64_t iterations, int64_t stream) {
  const int64_t batch = image.shape[0], bands = scratch.shape[2], tiles = scratch.shape[3];
  const Axis down(curves.shape[2], image.shape[2]), across(curves.shape[3], image.shape[3]);
  const auto start = [&](auto kernel, int maps, int n) {
    const int before = bytes_before(iterations, tile), starts = int(scratch.shape[4] + 1) * int(sizeof(int));
    const int sums = maps * tile * int(sizeof(float4) + sizeof(float2));
    launch(kernel, Pixels(1, batch, bands, 3 * tiles), {.threads = tile / n, .shared_bytes = before + sums + starts},
           grad, stream, down, across, grad_image, scratch, grad, image, curves, int(iterations), before);
  };
  const Pixels all(1, 3 * batch, image.shape[2], image.shape[3]);
  if (curves.shape[1] > 3) start(resampled_backward_kernel<chunk, 1>, chunk, 1);
  else if (in_packs(all, 4, image) && in_packs(all, 4, grad) && in_packs(all, 4, grad_image))
    start(resampled_backward_kernel<1, 4>, 1, 4);
  else
    start(resampled_backward_kernel<1, 1>, 1, 1);
  if (!grad_curves.data) return;
  constexpr int threads = 128;
  int lanes = 1;
  while (lanes < 32 && 4 * lanes * curves.shape[2] <= bands) lanes *= 2;
  launch(add_corners_kernel<1>, Pixels(threads / lanes, batch * curves.shape[1], curves.shape[2], curves.shape[3]),
         {.threads = threads}, grad, stream, down, across, grad_curves, scratch, lanes);
}

// ---- the op ----

inline bool of_one_size(const Tensor& image, const Tensor& curves) {
  return curves.shape[2] == image.shape[2] && curves.shape[3] == image.shape[3];
}

// image, out (B, 3, H, W); curves (B, 3·iterations or 3, h, w)
void forward(const Tensor& out, const Tensor& image, const Tensor& curves, int64_t iterations, int64_t stream) {
  if (of_one_size(image, curves)) forward_same_size(out, image, curves, iterations, stream);
  else forward_resampled(out, image, curves, iterations, stream);
}

void backward(Optional grad_image, Optional grad_curves, Optional scratch, const Tensor& grad, const Tensor& image,
              const Tensor& curves, int64_t iterations, int64_t stream) {
  const Tensor to_image = or_none(grad_image), to_curves = or_none(grad_curves);
  if (of_one_size(image, curves)) backward_same_size(to_image, to_curves, grad, image, curves, iterations, stream);
  else backward_resampled(to_image, to_curves, *scratch, grad, image, curves, iterations, stream);
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&forward>("curve_iterate"),
    kernel<&backward>("curve_iterate_backward"),
    {},
};

}  // namespace fastenh
