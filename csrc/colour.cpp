// Converts a photo's colours, as curves and a matrix define them, to a model's input, and applies the model's change to
// them. fastenh/io/colour.py has the same in PyTorch and documents the curves.
#include "rows.h"

namespace fastenh {
namespace {

constexpr int size = 256;  // pixels that go through all steps together, in the L1 cache
constexpr int levels = 65536;
constexpr int octaves = 40, cells_per_octave = 512;  // of light below 1, in `numbers`
constexpr int entries = octaves * cells_per_octave + 1;

typedef float Rows[3][size];

// ---- sRGB's curve (IEC 61966-2-1), extended as an odd function and above 1 ----

// x^p for normal x > 0. The relative error is at most 1e-7 for each octave between the result and 1.
inline float power(float x, float p) {
  const int32_t bits = int32_t(to_bits(x));
  const int32_t octave = (bits - 0x3f3504f3) >> 23;  // x is 2^octave · (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)
  const float f = from_bits(uint32_t(bits) - (uint32_t(octave) << 23)) - 1.f;
  float log = -0.149731339f;  // log2(1 + f) / f, within 2.5e-7
  log = log * f + 0.235708904f;
  log = log * f - 0.248323115f;
  log = log * f + 0.286868979f;
  log = log * f - 0.360263447f;
  log = log * f + 0.480931159f;
  log = log * f - 0.721352488f;
  log = log * f + 1.44269492f;
  const float y = p * (log * f + float(octave));
  const float shifted = y + 12582912.f;  // 1.5 · 2^23: adding it leaves the integer in the low bits
  const float g = y - (shifted - 12582912.f);
  float result = 0.00132764669f;  // 2^g, within 7.5e-8, |g| <= 1/2
  result = result * g + 0.00967554137f;
  result = result * g + 0.0555071329f;
  result = result * g + 0.240221197f;
  result = result * g + 0.693146967f;
  result = result * g + 1.00000007f;
  return from_bits(to_bits(result) + (to_bits(shifted) << 23));
}

// NaN and infinities are kept.
inline float encode(float light) {
  const float part = std::fabs(light);
  float encoded = 1.055f * power(part, 1.f / 2.4f) - 0.055f;
  encoded = part < INFINITY ? encoded : part;
  encoded = part <= 0.0031308f ? 12.92f * part : encoded;
  return std::copysign(encoded, light);
}

inline float decode(float encoded) {
  const float part = std::fabs(encoded);
  float light = power((part + 0.055f) * (1.f / 1.055f), 2.4f);
  light = part < INFINITY ? light : part;
  light = part <= 0.04045f ? part * (1.f / 12.92f) : light;
  return std::copysign(light, encoded);
}

inline float within(float v) {  // NaN becomes 0
  v = v > 0.f ? v : 0.f;
  return v < 1.f ? v : 1.f;
}

// ---- tables ----

// A position between two entries of a table.
struct Place {
  WideInt cell;
  Wide fraction;
};

// In a table with an entry for each value of 16 bits; NaN counts as 0.
inline Place by_number(Wide x) {
  const Wide place = least(most(x, fill(0.f)), fill(1.f)) * float(levels - 1);
  const WideInt cell = __builtin_convertvector(place, WideInt), last = WideInt{} + (levels - 2);
  const WideInt inside = cell < last ? cell : last;
  return {inside, place - __builtin_convertvector(inside, Wide)};
}

// In a table with the same number of evenly spaced entries in each octave, indexed by the leading bits of a float.
inline Place by_light(Wide light) {
  constexpr int32_t first = (127 - octaves) << 23, shift = 14;  // 9 of 23 bits tell cells_per_octave apart
  static_assert(cells_per_octave == 1 << (23 - shift));
  const Wide v = least(most(light, fill(from_bits(first))), fill(1.f));
  const WideInt place = __builtin_bit_cast(WideInt, v) - first, cell = place >> shift;
  const WideInt last = WideInt{} + (entries - 2), inside = cell < last ? cell : last;
  return {inside, __builtin_convertvector(place - (inside << shift), Wide) * (1.f / (1 << shift))};
}

// Both entries are adjacent and, where the machine can do that, fetched together.
inline Wide fetch(const float* table, Place place) {
#if defined(__AVX512F__)
  const __m512i at = __builtin_bit_cast(__m512i, place.cell);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  const __m512i first = _mm512_i32gather_epi64(_mm512_castsi512_si256(at), table, 4);
  const __m512i second = _mm512_i32gather_epi64(_mm512_extracti64x4_epi64(at, 1), table, 4);
  const Wide left = _mm512_castsi512_ps(_mm512_permutex2var_epi32(first, even, second));
  const Wide right = _mm512_castsi512_ps(_mm512_permutex2var_epi32(first, odd, second));
#elif defined(__AVX2__)
  const __m256i at = __builtin_bit_cast(__m256i, place.cell);
  const Wide left = _mm256_i32gather_ps(table, at, 4), right = _mm256_i32gather_ps(table + 1, at, 4);
#else
  Wide left, right;
  for (int i = 0; i < wide; ++i) left[i] = table[place.cell[i]], right[i] = table[place.cell[i] + 1];
#endif
  return multiply_add(place.fraction, right - left, left);
}

template <Place (*find)(Wide)>
void look_up(const float* table, const float* x, int n, float* to) {
  for (int i = 0; i < n; i += wide) {
    if (n - i >= wide) {
      write(to + i, fetch(table, find(read<Wide>(x + i))));
    } else {
      float part[wide] = {};
      std::memcpy(part, x + i, size_t(n - i) * 4);
      write(part, fetch(table, find(read<Wide>(part))));
      std::memcpy(to + i, part, size_t(n - i) * 4);
    }
  }
}

// ---- a colour space ----

// curves (C, levels), numbers (C, entries), matrix (3, C), inverse (C, 3): contiguous float32. Without curves, numbers
// are light if `linear`, and otherwise have sRGB's curve. Without a matrix, light is that of sRGB.
struct Space {
  int64_t colours;
  const float *curves, *numbers, *matrix, *inverse;
  bool linear;

  Space(int64_t colours, Optional curves, Optional numbers, Optional matrix, Optional inverse, int64_t linear)
      : colours(colours), curves(data(curves)), numbers(data(numbers)), matrix(data(matrix)), inverse(data(inverse)),
        linear(linear != 0) {}
  static const float* data(Optional t) { return t ? reinterpret_cast<const float*>(t->data) : nullptr; }

  // From numbers x: light, light in sRGB, and sRGB encoded. Not inlined, so that both kernels get the same bits.
  __attribute__((noinline)) void to_srgb(const float* const (&x)[3], int n, Rows& light, Rows& srgb,
                                         Rows& encoded) const {
    for (int64_t c = 0; c < colours; ++c) {
      if (curves) look_up<by_number>(curves + c * levels, x[c], n, light[c]);
      else if (linear) std::memcpy(light[c], x[c], size_t(n) * 4);
      else for (int i = 0; i < n; ++i) light[c][i] = decode(x[c][i]);
    }
    for (int c = 0; c < 3; ++c) {
      if (matrix) mix(matrix + c * colours, colours, light, n, srgb[c]);
      else std::memcpy(srgb[c], light[colours == 3 ? c : 0], size_t(n) * 4);
      for (int i = 0; i < n; ++i) encoded[c][i] = encode(srgb[c][i]);
    }
  }

  static void mix(const float* row, int64_t count, const Rows& from, int n, float* to) {
    if (count == 3)
      for (int i = 0; i < n; ++i) to[i] = row[0] * from[0][i] + row[1] * from[1][i] + row[2] * from[2][i];
    else
      for (int i = 0; i < n; ++i) to[i] = row[0] * from[0][i];
  }
};

inline void load_colours(const Tensor& image, int64_t y, int64_t x, int n, Rows& scratch, const float* (&rows)[3]) {
  if (image.shape[1] == 3) load_pixels(image, 0, y, x, n, scratch, rows);
  else rows[0] = load(row(image, 0, 0, y).from(x), n, scratch[0]);
}

// out (1, 3, H, W), image (1, 1 or 3, H, W)
void seen(const Tensor& out, const Tensor& image, Optional curves, Optional matrix, int64_t linear, int64_t threads) {
  const Space space(image.shape[1], curves, {}, matrix, {}, linear);
  Pixels pixels{1, image.shape[2], image.shape[3]};
  pixels.join_rows(out), pixels.join_rows(image);
  const bool streaming = worth_streaming(out);
  for_blocks<size>(pixels, threads, [&](int64_t, int64_t y, int64_t x, int n) {
    alignas(64) Rows scratch, light, srgb, encoded;
    const float* in[3];
    load_colours(image, y, x, n, scratch, in);
    space.to_srgb(in, n, light, srgb, encoded);
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < n; ++i) encoded[c][i] = within(encoded[c][i]);
    store_pixels(encoded, n, out, 0, y, x, streaming);
  });
}

// out, image (1, 1 or 3, H, W); retouched (1, 3, H, W)
//
// x + B(wanted) - B(s), where B(s) is x up to values that its curve does not distinguish. B is linear except for its
// last step N, from light to numbers, so N(light + inverse · (decode(wanted) - srgb)) - N(light) is the same, and exact
// where nothing changes.
void back(const Tensor& out, const Tensor& image, const Tensor& retouched, Optional curves, Optional numbers,
          Optional matrix, Optional inverse, int64_t linear, int64_t threads) {
  const Space space(image.shape[1], curves, numbers, matrix, inverse, linear);
  Pixels pixels{1, image.shape[2], image.shape[3]};
  pixels.join_rows(out), pixels.join_rows(image), pixels.join_rows(retouched);
  const bool streaming = worth_streaming(out);
  for_blocks<size>(pixels, threads, [&](int64_t, int64_t y, int64_t x, int n) {
    alignas(64) Rows scratch, model_scratch, light, srgb, encoded, result;
    alignas(64) float mixed[size], after[size], before[size];
    const float *in[3], *model[3];
    load_colours(image, y, x, n, scratch, in);
    load_pixels(retouched, 0, y, x, n, model_scratch, model);
    space.to_srgb(in, n, light, srgb, encoded);
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < n; ++i) {
        const float s = encoded[c][i], wanted = s + (model[c][i] - within(s));
        const float change = decode(wanted) - srgb[c][i];
        srgb[c][i] = wanted == s ? 0.f : change;
      }
    for (int64_t c = 0; c < space.colours; ++c) {
      const float* change = srgb[c];
      if (space.inverse) Space::mix(space.inverse + c * 3, 3, srgb, n, mixed), change = mixed;
      const float* const from = light[c];
      for (int i = 0; i < n; ++i) after[i] = from[i] + change[i];
      if (space.numbers) {
        look_up<by_light>(space.numbers + c * entries, from, n, before);
        look_up<by_light>(space.numbers + c * entries, after, n, result[c]);
        for (int i = 0; i < n; ++i) result[c][i] -= before[i];
      } else if (space.linear) {
        for (int i = 0; i < n; ++i) result[c][i] = change[i];
      } else {
        for (int i = 0; i < n; ++i) result[c][i] = encode(after[i]) - encode(from[i]);
      }
      for (int i = 0; i < n; ++i)
        result[c][i] = in[c][i] + (std::fabs(result[c][i]) < INFINITY ? result[c][i] : 0.f);
    }
    if (space.colours == 3) store_pixels(result, n, out, 0, y, x, streaming);
    else store(result[0], n, row(out, 0, 0, y).from(x), streaming);
  });
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&seen>("colour_seen"),
    kernel<&back>("colour_back"),
    {},
};

}  // namespace fastenh
