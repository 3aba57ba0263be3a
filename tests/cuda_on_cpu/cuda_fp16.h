// Half precision: every operation is done in float64 and rounded once, as the hardware rounds.
#pragma once
#include "cuda_runtime.h"

struct __half {
  _Float16 value;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half to_half(double value) { return {_Float16(value)}; }
inline double to_double(__half h) { return double(h.value); }

inline float __half2float(__half h) { return float(h.value); }
inline __half __float2half_rn(float value) { return {_Float16(value)}; }
inline __half2 __float2half2_rn(float value) { return {__float2half_rn(value), __float2half_rn(value)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __half2half2(__half h) { return {h, h}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __low2half2(__half2 v) { return {v.x, v.x}; }
inline __half2 __high2half2(__half2 v) { return {v.y, v.y}; }
inline __half2 __lows2half2(__half2 a, __half2 b) { return {a.x, b.x}; }
inline __half2 __highs2half2(__half2 a, __half2 b) { return {a.y, b.y}; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }

template <class Operation>
__half2 for_both(Operation operation, auto... v) {
  return {to_half(operation(to_double(v.x)...)), to_half(operation(to_double(v.y)...))};
}
inline __half2 __hneg2(__half2 a) {
  return for_both([](double a) { return -a; }, a);
}
inline __half2 __hmul2(__half2 a, __half2 b) {
  return for_both([](double a, double b) { return a * b; }, a, b);
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return for_both([](double a, double b, double c) { return a * b + c; }, a, b, c);
}
inline __half2 __hmin2(__half2 a, __half2 b) {  // a number, where one of both is
  return for_both([](double a, double b) { return fmin(a, b); }, a, b);
}
inline __half2 __hmax2(__half2 a, __half2 b) {
  return for_both([](double a, double b) { return fmax(a, b); }, a, b);
}
inline __half2 __hmax2_nan(__half2 a, __half2 b) {
  return for_both([](double a, double b) { return std::isnan(a) ? a : std::isnan(b) ? b : fmax(a, b); }, a, b);
}

// ---- tensor cores ----

// As multiply_add in csrc/device.h, in float32, one product after the other.
inline void product_of_warp(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Lane {
    __half2 a[4], b[2];
  };
  static Lane warps[32][32];
  Lane(&lanes)[32] = warps[threadIdx.x / 32];
  const int self = int(threadIdx.x % 32), r = self / 4, q = self % 4;
  for (int i = 0; i < 4; ++i) lanes[self].a[i] = std::bit_cast<__half2>(a[i]);
  lanes[self].b[0] = std::bit_cast<__half2>(b0), lanes[self].b[1] = std::bit_cast<__half2>(b1);
  __ballot_sync(0xffffffff, 1);  // all have written
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j)
      for (int depth = 0; depth < 2; ++depth) {
        const __half2 x = lanes[4 * r + j].a[i / 2 + 2 * depth], y = lanes[4 * (2 * q + i % 2) + j].b[depth];
        d[i] += __low2float(x) * __low2float(y) + __high2float(x) * __high2float(y);
      }
  __ballot_sync(0xffffffff, 1);  // all have read
}
