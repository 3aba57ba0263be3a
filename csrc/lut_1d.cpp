// lut_1d_transform: applies a 1D table to each channel and, in `transform_3d`, a 3D table to the results.
#include "lut.h"

namespace fastenh {
namespace {

// The 1D table of a channel: its first entry is the output for `low`, its last the output for `high`.
struct Line {
  const float* entries;
  int size;
  float low, high;
  double start, scale, full;  // the position of a number in the table is (number - start) · scale

  // tables (B, 3, S), rows contiguous; domain (B, 2, 3) contiguous. Numbers are floats, or integers in [0, full].
  Line(const Tensor& tables, Optional domain, int64_t b, int64_t c, double full)
      : entries(reinterpret_cast<const float*>(tables.data) + b * tables.strides[0] + c * tables.strides[1]),
        size(int(tables.shape[2])), low(0.f), high(1.f), full(full) {
    if (domain) {
      const auto* ends = reinterpret_cast<const float*>(domain->data) + b * 6 + c;
      low = ends[0], high = ends[3];
    }
    start = double(low) * full, scale = double(size - 1) / ((double(high) - double(low)) * full);
  }
};

// Finds the cell of each number (a cell lies between two entries) and its fraction within the cell. Positions are
// float64: in float32, a position among 65536 entries would be off by up to 1/256. NaN gets a NaN fraction in cell 0.
// `load` divides integers by full scale and rounds, so they are multiplied and rounded here to restore exact values.
template <bool integers>
inline void find_places(const Line& line, const float* x, int n, float* fraction, int32_t* cell) {
  const double start = line.start, scale = line.scale, full = line.full, end = line.size - 1;
  constexpr double integral = 0x1.8p52;  // adding and subtracting it rounds to an integer
  for (int i = 0; i < n; ++i) {
    double number = x[i];
    if (integers) number = number * full + integral - integral;
    double position = (number - start) * scale;
    position = position < 0. ? 0. : position;
    position = position > end ? end : position;
    const double inside = position < end - 1. ? position : end - 1.;
    cell[i] = int32_t(position == position ? inside : 0.);
    fraction[i] = float(position - double(cell[i]));
  }
}

// Reads the entries at both ends of each cell.
inline void read_ends(const float* entries, const int32_t* cell, int n, float* low, float* high) {
  int i = 0;
#if defined(__AVX512F__)  // both ends of eight cells in one instruction
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (; i + 16 <= n; i += 16) {
    const auto pairs = [&](int from) {
      const __m256i cells = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cell + from));
      return _mm512_castpd_ps(_mm512_i32gather_pd(cells, entries, 4));
    };
    const __m512 a = pairs(i), b = pairs(i + 8);
    _mm512_storeu_ps(low + i, _mm512_permutex2var_ps(a, even, b));
    _mm512_storeu_ps(high + i, _mm512_permutex2var_ps(a, odd, b));
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    const auto pairs = [&](int from) {
      const __m128i cells = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cell + from));
      return _mm256_castpd_ps(_mm256_i32gather_pd(reinterpret_cast<const double*>(entries), cells, 4));
    };
    const __m256 a = pairs(i), b = pairs(i + 4);
    const auto in_order = [](__m256 v) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8)); };
    _mm256_storeu_ps(low + i, in_order(_mm256_shuffle_ps(a, b, 0x88)));
    _mm256_storeu_ps(high + i, in_order(_mm256_shuffle_ps(a, b, 0xdd)));
  }
#endif
  for (; i < n; ++i) low[i] = entries[cell[i]], high[i] = entries[cell[i] + 1];
}

// Applies the table to n numbers of a channel.
template <bool integers>
inline void look_up(const Line& line, const float* x, int n, float* to) {
  alignas(64) float fraction[tile], low[tile], high[tile];
  alignas(64) int32_t cell[tile];
  if (line.size == 2) {  // a linear map: float32 is exact enough
    const float begin = line.entries[0], end = line.entries[1];
    const float start = line.low, stop = line.high, scale = 1.f / (stop - start);
    for (int i = 0; i < n; ++i) {
      float f = (x[i] - start) * scale;
      f = f < 0.f ? 0.f : x[i] >= stop ? 1.f : f;
      to[i] = (1.f - f) * begin + f * end;
    }
    return;
  }
  find_places<integers>(line, x, n, fraction, cell);
  read_ends(line.entries, cell, n, low, high);
  for (int i = 0; i < n; ++i) to[i] = (1.f - fraction[i]) * low[i] + fraction[i] * high[i];
}

inline double full_scale(const Tensor& image) {
  return image.dtype == Dtype::u8 ? 255. : image.dtype == Dtype::u16 ? 65535. : 1.;
}

// Applies the 1D tables to all pixels. after(rows, n, b) then changes the rows of n pixels of image b in place.
template <bool integers, class After>
void for_shaped(const Tensor& out, const Tensor& image, const Tensor& tables, Optional domain, int64_t threads,
                const After& after) {
  Pixels pixels{image.shape[0], image.shape[2], image.shape[3]};
  pixels.join_rows(image), pixels.join_rows(out);
  const bool streaming = worth_streaming(out);
  for_blocks<tile>(pixels, threads, [&](int64_t b, int64_t y, int64_t x, int n) {
    alignas(64) float rows[3][tile];
    const float* in[3];
    load_pixels(image, b, y, x, n, rows, in);
    prefetch_pixels<tile>(image, b, y, x);
    for (int c = 0; c < 3; ++c)
      look_up<integers>(Line(tables, domain, b, c, full_scale(image)), in[c], n, rows[c]);
    after(rows, n, b);
    store_pixels(rows, n, out, b, y, x, streaming);
  });
}

// image, out (B, 3, H, W); tables (B, 3, S) and domain (B, 2, 3) as for `Line`
template <class After>
void shape(const Tensor& out, const Tensor& image, const Tensor& tables, Optional domain, int64_t threads,
           const After& after) {
  if (is_integer(image.dtype)) for_shaped<true>(out, image, tables, domain, threads, after);
  else for_shaped<false>(out, image, tables, domain, threads, after);
}

void transform(const Tensor& out, const Tensor& image, const Tensor& tables, Optional domain, int64_t threads) {
  shape(out, image, tables, domain, threads, [](float (&)[3][tile], int, int64_t) {});
}

// packed (B or 1, 1, D, D, D, 4), as described at the top of lut.h
template <bool tetrahedral>
void transform_3d_as(const Tensor& out, const Tensor& image, const Tensor& tables, Optional domain,
                     const Tensor& packed, int64_t threads) {
  const int64_t size = packed.shape[4];
  shape(out, image, tables, domain, threads, [&](float (&rows)[3][tile], int n, int64_t b) {
    alignas(64) float result[tile * 4];
    const float* const in[3] = {rows[0], rows[1], rows[2]};
    const float* table = reinterpret_cast<const float*>(packed.data) + (packed.shape[0] == 1 ? 0 : b) * packed.strides[0];
    Cells cells;
    find_cells<tetrahedral>(cells, in, n, int(size), nullptr);
    for (int i = 0; i < n; ++i) write(result + i * 4, interpolate<4, tetrahedral>(table, cells, i, size));
    part_channels(result, n, rows);
  });
}

void transform_3d(const Tensor& out, const Tensor& image, const Tensor& tables, Optional domain, const Tensor& packed,
                  int64_t tetrahedral, int64_t threads) {
  (tetrahedral ? transform_3d_as<true> : transform_3d_as<false>)(out, image, tables, domain, packed, threads);
}

// ---- backward ----

// sums (B, parts, 3, 3, S) must be zero; the gradient of the tables is the sum over parts of [:, :, :, 2]. An image is
// divided into `parts` fixed, equal parts, one per job, so that the result is reproducible. A chunk of pixels is summed
// in [..., 0, :] and [..., 1, :], alternately, and then added to [..., 2, :]. Chunks are needed because a float32 sum
// over millions of pixels in a cell stops growing; with two sums, an addition need not wait for the previous pixel's.
void backward(Optional grad_image, Optional sums, const Tensor& grad, const Tensor& image, const Tensor& tables,
              Optional domain, int64_t parts, int64_t threads) {
  const int64_t height = image.shape[2], width = image.shape[3], size = tables.shape[2];
  const int64_t chunk = size < 1024 ? 1024 : size;
  parallel(image.shape[0] * parts, threads, [&](int64_t job) {
    alignas(64) float in_rows[3][tile], grad_rows[3][tile], by_image[3][tile], fraction[tile], low[tile], high[tile];
    alignas(64) int32_t cell[tile];
    const int64_t b = job / parts, part = job % parts;
    float* of_part = sums ? reinterpret_cast<float*>(sums->data) + job * 9 * size : nullptr;
    const auto flush = [&] {
      for (float* s = of_part; s && s < of_part + 9 * size; s += 3 * size)
        for (int64_t i = 0; i < size; ++i) {
          s[2 * size + i] += s[i] + s[size + i];
          s[i] = s[size + i] = 0.f;
        }
    };
    int64_t in_chunk = 0;
    for (int64_t y = height * part / parts; y < height * (part + 1) / parts; ++y)
      for (int64_t x = 0; x < width; x += tile) {
        const int n = int(width - x < tile ? width - x : tile);
        const float *in[3], *g[3];
        load_pixels(image, b, y, x, n, in_rows, in);
        load_pixels(grad, b, y, x, n, grad_rows, g);
        for (int c = 0; c < 3; ++c) {
          const Line line(tables, domain, b, c, 1.);
          const float *number = in[c], *of = g[c];
          find_places<false>(line, number, n, fraction, cell);
          for (int i = 0; i < n; ++i) {  // a number on an entry gets the slope of the cell above
            const bool next = (fraction[i] == 1.f) & (cell[i] < line.size - 2);
            cell[i] += next;
            fraction[i] = next ? 0.f : fraction[i];
          }
          if (grad_image) {
            const float first = line.low, last = line.high, slope = float(line.scale);
            read_ends(line.entries, cell, n, low, high);
            for (int i = 0; i < n; ++i) {
              const float by = of[i] * (high[i] - low[i]) * slope;
              by_image[c][i] = (number[i] > first) & (number[i] < last) ? by : 0.f;
            }
          }
          if (of_part) {
            float* to[2] = {of_part + c * 3 * size, of_part + (c * 3 + 1) * size};
            for (int i = 0; i < n; ++i) {
              float* at = to[i % 2] + cell[i];
              at[0] += (1.f - fraction[i]) * of[i];
              at[1] += fraction[i] * of[i];
            }
          }
        }
        if (grad_image) store_pixels(by_image, n, *grad_image, b, y, x, false);
        if ((in_chunk += n) >= chunk) flush(), in_chunk = 0;
      }
    flush();
  });
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&transform>("lut_1d_transform"),
    kernel<&transform_3d>("lut_1d_transform_3d"),
    kernel<&backward>("lut_1d_transform_backward"),
    {},
};

}  // namespace fastenh
