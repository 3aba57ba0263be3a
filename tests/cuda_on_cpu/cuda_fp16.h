// Half precision: every operation is done in float64 and rounded once, as the hardware rounds.
#pragma once
#include "cuda_runtime.h"

struct __half {
  _Float16 value;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half h) { return float(h.value); }
inline __half __float2half_rn(float value) { return {_Float16(value)}; }
inline __half __double2half(double value) { return {_Float16(value)}; }
inline double to_double(__half h) { return double(h.value); }

inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__float2half_rn(v.x), __float2half_rn(v.y)}; }
inline __half2 __float2half2_rn(float x) { return {__float2half_rn(x), __float2half_rn(x)}; }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __low2half2(__half2 v) { return {v.x, v.x}; }
inline __half2 __high2half2(__half2 v) { return {v.y, v.y}; }

inline __half __hadd(__half a, __half b) { return __double2half(to_double(a) + to_double(b)); }
inline __half __hsub(__half a, __half b) { return __double2half(to_double(a) - to_double(b)); }
inline __half __hmul(__half a, __half b) { return __double2half(to_double(a) * to_double(b)); }
inline __half __hfma(__half a, __half b, __half c) { return __double2half(to_double(a) * to_double(b) + to_double(c)); }
inline __half __hmin(__half a, __half b) { return to_double(b) != to_double(b) || to_double(a) < to_double(b) ? a : b; }
inline __half __hmax(__half a, __half b) { return to_double(b) != to_double(b) || to_double(a) > to_double(b) ? a : b; }
inline __half __hmin_nan(__half a, __half b) { return to_double(a) != to_double(a) || to_double(a) < to_double(b) ? a : b; }
inline __half __hmax_nan(__half a, __half b) { return to_double(a) != to_double(a) || to_double(a) > to_double(b) ? a : b; }
inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
inline __half2 __hmin2(__half2 a, __half2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
inline __half2 __hmax2(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline __half2 __hmin2_nan(__half2 a, __half2 b) { return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)}; }
inline __half2 __hmax2_nan(__half2 a, __half2 b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }
