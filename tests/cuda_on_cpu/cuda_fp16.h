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
inline __half2 __half2half2(__half h) { return {h, h}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __low2half2(__half2 v) { return {v.x, v.x}; }
inline __half2 __high2half2(__half2 v) { return {v.y, v.y}; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }

template <class Operation>
__half2 for_both(Operation operation, auto... v) {
  return {to_half(operation(to_double(v.x)...)), to_half(operation(to_double(v.y)...))};
}
inline __half2 __hsub2(__half2 a, __half2 b) {
  return for_both([](double a, double b) { return a - b; }, a, b);
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
