// curve_iterate: iterates x <- x + r·(x² − x), with a curve parameter r for every pixel. There is one map of parameters
// per iteration, or one for all iterations, of the picture's size or resampled to it on the fly.
#include "rows.h"

namespace fastenh {
namespace {

constexpr int at_once = 8;    // maps read together: with the picture, as many streams as the hardware prefetches
constexpr int states = 4096;  // floats that a gradient keeps of a stretch of pixels: x before every iteration, in L1
constexpr int stretch = 256;  // pixels in such a stretch; fewer where there are more than 16 iterations

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- maps of another size ----

// The positions of a picture's rows or columns in a map. They are float32, computed just as F.interpolate does with
// align_corners=True, so that both agree to the last bits.
struct Axis {
  int64_t map, picture;
  float scale;
  Axis(int64_t map, int64_t picture)
      : map(map), picture(picture), scale(picture > 1 ? float(map - 1) / float(picture - 1) : 0.f) {}
  int64_t cell(int64_t i) const { return least(int64_t(scale * float(i)), map - 1); }
  int64_t first_in(int64_t wanted) const {  // the first i whose cell is `wanted` or later
    int64_t low = 0, high = picture;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (cell(middle) < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};

// The cells, each between two rows or columns of a map, of adjacent rows or columns of the picture, and the fractions
// within them: the same for all maps.
struct Places {
  int32_t cell[block];
  alignas(64) float fraction[block];
  // Not inlined, so that the product is rounded before the subtraction, as in F.interpolate: no fused multiply-add.
  __attribute__((noinline)) void find(const Axis& axis, int64_t from, int n) {
    const int last = int(axis.map - 1);
    for (int i = 0; i < n; ++i) fraction[i] = axis.scale * float(from + i);
    for (int i = 0; i < n; ++i) cell[i] = int(fraction[i]) < last ? int(fraction[i]) : last;
    for (int i = 0; i < n; ++i) fraction[i] = cell[i] < last ? fraction[i] - float(cell[i]) : 0.f;
  }
};

// Interpolates to[i] between v[cell[i] - first] and its right neighbour. Where the map is smaller than the picture, the
// cells of a whole vector lie within one vector, and a permutation selects them.
void spread(const float* v, int64_t first, const int32_t* cell, const float* fraction, int n, float* to) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n && cell[i + 15] - cell[i] < 16; i += 16) {
    const float* here = v + (cell[i] - first);
    const __m512i which = _mm512_sub_epi32(_mm512_loadu_si512(cell + i), _mm512_set1_epi32(cell[i]));
    const __m512 left = _mm512_permutexvar_ps(which, _mm512_loadu_ps(here));
    const __m512 right = _mm512_permutexvar_ps(which, _mm512_loadu_ps(here + 1));
    _mm512_storeu_ps(to + i, _mm512_fmadd_ps(_mm512_loadu_ps(fraction + i), _mm512_sub_ps(right, left), left));
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n && cell[i + 7] - cell[i] < 8; i += 8) {
    const float* here = v + (cell[i] - first);
    const __m256i cells = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cell + i));
    const __m256i which = _mm256_sub_epi32(cells, _mm256_set1_epi32(cell[i]));
    const __m256 left = _mm256_permutevar8x32_ps(_mm256_loadu_ps(here), which);
    const __m256 right = _mm256_permutevar8x32_ps(_mm256_loadu_ps(here + 1), which);
    _mm256_storeu_ps(to + i, _mm256_fmadd_ps(_mm256_loadu_ps(fraction + i), _mm256_sub_ps(right, left), left));
  }
#endif
  for (; i < n; ++i) {
    const float left = v[cell[i] - first], right = v[cell[i] + 1 - first];
    to[i] = left + fraction[i] * (right - left);
  }
}

// The adjoint of `spread`: to[cell] and its right neighbour get their share of g.
void gather(const float* g, const int32_t* cell, const float* fraction, int n, float* to) {
  for (int i = 0; i < n;) {
    const int32_t here = cell[i];
    float left = 0.f, right = 0.f;
    for (; i < n && cell[i] == here; ++i) {
      right += fraction[i] * g[i];
      left += (1.f - fraction[i]) * g[i];
    }
    to[here] += left;
    to[here + 1] += right;
  }
}

// The curves of a picture.
struct Curves {
  const Tensor& maps;
  bool shared, resized;  // one map a channel for all iterations; of another size than the picture
  Axis down, across;

  Curves(const Tensor& maps, const Tensor& image)
      : maps(maps),
        shared(maps.shape[1] == 3),
        resized(maps.shape[2] != image.shape[2] || maps.shape[3] != image.shape[3]),
        down(maps.shape[2], image.shape[2]),
        across(maps.shape[3], image.shape[3]) {}

  // Those of iteration k for n pixels from (y, x) on, in `to` or in place.
  const float* load(int64_t b, int64_t c, int64_t k, int64_t y, int64_t x, int n, const Places& columns,
                    float* to) const {
    const int64_t map = shared ? c : 3 * k + c;
    if (!resized) return fastenh::load(row(maps, b, map, y).from(x), n, to);
    Places rows;
    rows.find(down, y, 1);
    const Row upper = row(maps, b, map, rows.cell[0]);
    const Row lower = row(maps, b, map, least(rows.cell[0] + 1, down.map - 1));
    for (int i = 0; i < n;) {
      // As many pixels as need at most `block` columns of the map: all of them if the map is smaller than the picture.
      const int64_t first = columns.cell[i];
      int end = n;
      while (columns.cell[end - 1] - first > block - 2) end = i + (end - i + 1) / 2;
      const int count = int(least(columns.cell[end - 1] + 2, across.map) - first);
      float upper_row[block], lower_row[block], between[block + 16];  // a vector may be loaded across the end
      const float* u = fastenh::load(upper.from(first), count, upper_row);
      const float* l = fastenh::load(lower.from(first), count, lower_row);
      for (int j = 0; j < count; ++j) between[j] = u[j] + rows.fraction[0] * (l[j] - u[j]);
      between[count] = between[count - 1];  // right of the last column; its weight is 0
      spread(between, first, columns.cell + i, columns.fraction + i, end - i, to + i);
      i = end;
    }
    return to;
  }
};

// ---- forward ----

// image, out (B, 3, H, W); maps (B, 3·iterations or 3, h, w)
void forward(const Tensor& out, const Tensor& image, const Tensor& maps, int64_t iterations, int64_t threads) {
  const Curves curves(maps, image);
  Pixels planes{image.shape[0] * 3, image.shape[2], image.shape[3]};
  planes.join_rows(out), planes.join_rows(image), planes.join_rows(maps);
  planes.joined = planes.joined && !curves.resized;
  const bool streaming = worth_streaming(out);
  for_blocks(planes, threads, [&](int64_t plane, int64_t y, int64_t x, int n) {
    alignas(64) float values[block], scratch[at_once][block];
    const float* rows[at_once];
    Places columns;
    if (curves.resized) columns.find(curves.across, x, n);
    const int64_t b = plane / 3, c = plane % 3;
    const float* from = load(row(image, b, c, y).from(x), n, values);
    for (int64_t done = 0; done < iterations; done += at_once) {
      const int count = int(least(iterations - done, at_once));
      for (int k = 0; k < count; ++k) {
        if (!curves.shared) rows[k] = curves.load(b, c, done + k, y, x, n, columns, scratch[k]);
        else if (!done) rows[k] = k ? rows[0] : curves.load(b, c, 0, y, x, n, columns, scratch[0]);
      }
      const auto iterate = [&](int, int i) {
        F16 v = read<F16>(from + i);
        for (int k = 0; k < count; ++k) v = v + read<F16>(rows[k] + i) * (v * v - v);
        return v;
      };
      if (done + count == iterations) {
        store_computed(n, {row(out, b, c, y).from(x)}, streaming, iterate);
      } else {
        compute_rows({values}, n, false, iterate);
        from = values;
      }
    }
  });
}

// ---- backward ----

// For n pixels from (y, x) on: g[i], the gradient of the result, becomes that of the image, and shares[k·n + i] that of
// curve k at pixel i (its sum over k, at shares[i], where the curves are shared). Needs n·iterations <= states.
void differentiate(const Curves& curves, const Tensor& image, int64_t b, int64_t c, int64_t y, int64_t x, int n,
                   const Places& columns, int64_t iterations, float* g, float* shares) {
  alignas(64) float image_row[stretch], curve_row[stretch];
  const float* from = load(row(image, b, c, y).from(x), n, image_row);
  for (int i = 0; i < n; ++i) shares[i] = from[i];
  for (int64_t k = 0; k + 1 < iterations; ++k) {
    const float* r = curves.load(b, c, k, y, x, n, columns, curve_row);
    const float* before = shares + k * n;
    float* after = shares + (k + 1) * n;
    for (int i = 0; i < n; ++i) after[i] = before[i] + r[i] * (before[i] * before[i] - before[i]);
  }
  for (int64_t k = iterations - 1; k >= 0; --k) {
    const float* r = curves.load(b, c, k, y, x, n, columns, curve_row);
    float* state = shares + k * n;
    for (int i = 0; i < n; ++i) {
      const float before = state[i];
      state[i] = g[i] * (before * before - before);
      g[i] *= 1.f + r[i] * (2.f * before - 1.f);
    }
  }
  if (!curves.shared) return;
  for (int64_t k = 1; k < iterations; ++k)
    for (int i = 0; i < n; ++i) shares[i] += shares[k * n + i];
}

// Gradients of maps as large as the picture, or of the image alone.
void backward_pixels(Optional grad_image, Optional grad_maps, const Tensor& grad, const Tensor& image,
                     const Curves& curves, int64_t iterations, int64_t threads) {
  Pixels planes{image.shape[0] * 3, image.shape[2], image.shape[3]};
  planes.join_rows(grad_image), planes.join_rows(grad_maps);
  planes.join_rows(grad), planes.join_rows(image), planes.join_rows(curves.maps);
  planes.joined = planes.joined && !curves.resized;
  const bool streaming = worth_streaming(image);
  const int at_most = int(least(stretch, states / iterations));
  for_blocks(planes, threads, [&](int64_t plane, int64_t y, int64_t start, int length) {
    alignas(64) float g[stretch], shares[states];
    Places columns;
    const int64_t b = plane / 3, c = plane % 3;
    for (int64_t x = start; x < start + length; x += at_most) {
      const int n = int(least(at_most, start + length - x));
      if (curves.resized) columns.find(curves.across, x, n);
      const Row from = row(grad, b, c, y).from(x);
      const float* incoming = load(from, n, g);
      if (incoming != g) std::memcpy(g, incoming, size_t(n) * 4);
      differentiate(curves, image, b, c, y, x, n, columns, iterations, g, shares);
      if (grad_image) store(g, n, row(*grad_image, b, c, y).from(x), streaming);
      if (!grad_maps) continue;
      for (int64_t k = 0; k < (curves.shared ? 1 : iterations); ++k)
        store(shares + k * n, n, row(*grad_maps, b, 3 * k + c, y).from(x), streaming);
    }
  });
}

// Gradients of maps of another size. A band of a map's rows is one job. Row j of the map gathers from picture rows
// between j - 1 and j + 1, so it is complete when the band has passed the next row. A band keeps its own first row, and
// what it contributes to the first row of the band below, in `scratch`, and a second pass adds them: no two threads
// write to the same address, and the sums do not depend on the number of threads.
// scratch (B, 3, bands, 3, maps per channel, w + 1): for each band its first row, and two that alternate
void backward_maps(Optional grad_image, const Tensor& grad_maps, const Tensor& scratch, const Tensor& grad,
                   const Tensor& image, const Curves& curves, int64_t iterations, int64_t threads) {
  const int64_t bands = scratch.shape[2], maps = scratch.shape[4], pitch = scratch.shape[5];
  const int64_t height = curves.down.map, width = image.shape[3];
  const bool streaming = worth_streaming(image);
  const int at_most = int(least(stretch, states / iterations));
  const auto begin_of = [&](int64_t band) { return height * band / bands; };
  const auto sums_of = [&](int64_t plane, int64_t band, int64_t turn) {
    return reinterpret_cast<float*>(scratch.data) + ((plane * bands + band) * 3 + turn) * maps * pitch;
  };
  const auto turn_of = [](int64_t rows) { return rows ? 2 - rows % 2 : 0; };
  const auto store_row = [&](const float* sums, int64_t plane, int64_t j) {
    for (int64_t k = 0; k < maps; ++k)
      for (int64_t x = 0; x < curves.across.map; x += block)
        store(sums + k * pitch + x, int(least(block, curves.across.map - x)),
              row(grad_maps, plane / 3, 3 * k + plane % 3, j).from(x), false);
  };

  parallel(image.shape[0] * 3 * bands, threads, [&](int64_t job) {
    const int64_t plane = job / bands, band = job % bands, b = plane / 3, c = plane % 3;
    alignas(64) float g[stretch], shares[states], upper[states], lower[states];
    Places rows, columns;
    std::memset(sums_of(plane, band, 0), 0, size_t(3 * maps * pitch) * 4);
    const int64_t begin = begin_of(band), end = begin_of(band + 1);
    for (int64_t j = begin; j < end; ++j) {
      float* sums = sums_of(plane, band, turn_of(j - begin));
      float* next = sums_of(plane, band, turn_of(j - begin + 1));
      const int64_t top = curves.down.first_in(j), bottom = curves.down.first_in(j + 1);
      for (int64_t x = 0; x < width && top < bottom; x += at_most) {
        const int n = int(least(at_most, width - x)), total = int(n * maps);
        columns.find(curves.across, x, n);
        for (int i = 0; i < total; ++i) upper[i] = lower[i] = 0.f;
        for (int64_t y = top; y < bottom; ++y) {
          const float* incoming = load(row(grad, b, c, y).from(x), n, g);
          if (incoming != g) std::memcpy(g, incoming, size_t(n) * 4);
          differentiate(curves, image, b, c, y, x, n, columns, iterations, g, shares);
          if (grad_image) store(g, n, row(*grad_image, b, c, y).from(x), streaming);
          rows.find(curves.down, y, 1);
          const float down = rows.fraction[0];
          for (int i = 0; i < total; ++i) upper[i] += (1.f - down) * shares[i], lower[i] += down * shares[i];
        }
        for (int64_t k = 0; k < maps; ++k) {
          gather(upper + k * n, columns.cell, columns.fraction, n, sums + k * pitch);
          gather(lower + k * n, columns.cell, columns.fraction, n, next + k * pitch);
        }
      }
      if (j == begin) continue;
      store_row(sums, plane, j);
      std::memset(sums, 0, size_t(maps * pitch) * 4);
    }
  });
  parallel(image.shape[0] * 3 * bands, threads, [&](int64_t job) {
    const int64_t plane = job / bands, band = job % bands;
    float* sums = sums_of(plane, band, 0);
    if (band > 0) {
      const float* fallen = sums_of(plane, band - 1, turn_of(begin_of(band) - begin_of(band - 1)));
      for (int64_t i = 0; i < maps * pitch; ++i) sums[i] += fallen[i];
    }
    store_row(sums, plane, begin_of(band));
  });
}

void backward(Optional grad_image, Optional grad_maps, Optional scratch, const Tensor& grad, const Tensor& image,
              const Tensor& maps, int64_t iterations, int64_t threads) {
  const Curves curves(maps, image);
  if (grad_maps && curves.resized)
    backward_maps(grad_image, *grad_maps, *scratch, grad, image, curves, iterations, threads);
  else
    backward_pixels(grad_image, grad_maps, grad, image, curves, iterations, threads);
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&forward>("curve_iterate"),
    kernel<&backward>("curve_iterate_backward"),
    {},
};

}  // namespace fastenh
