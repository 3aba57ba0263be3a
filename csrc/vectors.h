// Vectors of 4, 8 and 16 floats for every instruction set: the compiler's vector types where registers are long enough,
// else pairs of the next shorter vectors. (Compilers also split vectors that are too long, but then pass them through
// memory.)
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastenh {
namespace {

template <class Half>
struct Pair {
  Half a, b;
  float operator[](int i) const {
    constexpr int half = sizeof(Half) / sizeof(float);
    return i < half ? a[i] : b[i - half];
  }
  friend Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
  friend Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }
  friend Pair operator*(Pair x, Pair y) { return {x.a * y.a, x.b * y.b}; }
  friend Pair operator*(float f, Pair x) { return {f * x.a, f * x.b}; }
};

typedef float F4 __attribute__((vector_size(16)));
#if defined(__AVX__)
typedef float F8 __attribute__((vector_size(32)));
inline F4 low(F8 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
inline F4 high(F8 v) { return __builtin_shufflevector(v, v, 4, 5, 6, 7); }
inline F8 join(F4 a, F4 b) { return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7); }
#else
using F8 = Pair<F4>;
inline F4 low(F8 v) { return v.a; }
inline F4 high(F8 v) { return v.b; }
inline F8 join(F4 a, F4 b) { return {a, b}; }
#endif
#if defined(__AVX512F__)
typedef float F16 __attribute__((vector_size(64)));
inline F8 low(F16 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
inline F8 high(F16 v) { return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }
inline F16 join(F8 a, F8 b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#else
using F16 = Pair<F8>;
inline F8 low(F16 v) { return v.a; }
inline F8 high(F16 v) { return v.b; }
inline F16 join(F8 a, F8 b) { return {a, b}; }
#endif

// Reads and writes need no alignment.
template <class V>
struct Memory {
  static V read(const float* from) {
    V v;
    std::memcpy(&v, from, sizeof(V));
    return v;
  }
  static void write(float* to, V v) { std::memcpy(to, &v, sizeof(V)); }
};
template <class Half>
struct Memory<Pair<Half>> {
  static Pair<Half> read(const float* from) {
    return {Memory<Half>::read(from), Memory<Half>::read(from + sizeof(Half) / sizeof(float))};
  }
  static void write(float* to, Pair<Half> v) {
    Memory<Half>::write(to, v.a), Memory<Half>::write(to + sizeof(Half) / sizeof(float), v.b);
  }
};
template <class V>
inline V read(const float* from) { return Memory<V>::read(from); }
template <class V>
inline void write(float* to, V v) { Memory<V>::write(to, v); }

// Not a + f · (b - a), which is NaN between infinite ends and overflows between large ones.
template <class V>
inline V lerp(V a, V b, float f) { return (1.f - f) * a + f * b; }

// The longest vector of the machine, for rows of numbers. `most` and `least` return b if either is NaN; multiply_add is
// a · b + c, rounded once where the machine can do that.
#if defined(__AVX512F__)
using Wide = F16;
inline Wide most(Wide a, Wide b) { return _mm512_max_ps(a, b); }
inline Wide least(Wide a, Wide b) { return _mm512_min_ps(a, b); }
inline Wide fill(float f) { return _mm512_set1_ps(f); }
inline Wide multiply_add(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__AVX__)
using Wide = F8;
inline Wide most(Wide a, Wide b) { return _mm256_max_ps(a, b); }
inline Wide least(Wide a, Wide b) { return _mm256_min_ps(a, b); }
inline Wide fill(float f) { return _mm256_set1_ps(f); }
inline Wide multiply_add(Wide a, Wide b, Wide c) { return _mm256_fmadd_ps(a, b, c); }
#else
using Wide = F4;
inline Wide most(Wide a, Wide b) { return a > b ? a : b; }
inline Wide least(Wide a, Wide b) { return a < b ? a : b; }
inline Wide fill(float f) { return Wide{f, f, f, f}; }
inline Wide multiply_add(Wide a, Wide b, Wide c) { return a * b + c; }
#endif
constexpr int wide = sizeof(Wide) / sizeof(float);
typedef int32_t WideInt __attribute__((vector_size(sizeof(Wide))));

}  // namespace
}  // namespace fastenh
