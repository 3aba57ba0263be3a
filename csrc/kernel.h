// The interface between kernels and bindings: tensors, and a table of named functions per file and instruction set.
//
// A file csrc/<stem>.cpp is compiled once per instruction set and defines one table, FASTENH_TABLE. All its code is in
// an anonymous namespace, so that the linker never picks AVX-512 code on a machine without it; the table is
// constant-initialised, so that loading the library runs no code of any variant.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace fastenh {

enum class Dtype : int32_t { u8, u16, f16, bf16, f32, i64 };

struct Tensor {
  char* data;
  Dtype dtype;
  int32_t ndim, device_type, device_id;
  int64_t shape[8], strides[8];  // strides count elements
};

// One argument of a call: a tensor (absent where Python passed None), an integer or a real number.
struct Value {
  char kind;  // 'T', 'N' (None), 'i', 'd'
  Tensor tensor;
  int64_t integer;
  double real;
};

struct Kernel {
  const char* name;
  const char* kinds;  // one letter an argument: T tensor, ? tensor or None, i integer, d real
  void (*run)(const Value*);
};

namespace {

// A tensor argument that may be None.
struct Optional {
  const Tensor* tensor;
  explicit operator bool() const { return tensor != nullptr; }
  const Tensor& operator*() const { return *tensor; }
  const Tensor* operator->() const { return tensor; }
};

template <class A>
struct Argument;
template <>
struct Argument<const Tensor&> {
  static constexpr char kind = 'T';
  static const Tensor& get(const Value& v) { return v.tensor; }
};
template <>
struct Argument<Optional> {
  static constexpr char kind = '?';
  static Optional get(const Value& v) { return {v.kind == 'T' ? &v.tensor : nullptr}; }
};
template <>
struct Argument<int64_t> {
  static constexpr char kind = 'i';
  static int64_t get(const Value& v) { return v.integer; }
};
template <>
struct Argument<double> {
  static constexpr char kind = 'd';
  static double get(const Value& v) { return v.kind == 'i' ? double(v.integer) : v.real; }
};

template <auto function, class Signature = decltype(function)>
struct Entry;
template <auto function, class... A>
struct Entry<function, void (*)(A...)> {
  static constexpr char kinds[] = {Argument<A>::kind..., 0};
  template <size_t... i>
  static void unpack(const Value* v, std::index_sequence<i...>) {
    function(Argument<A>::get(v[i])...);
  }
  static void run(const Value* v) { unpack(v, std::index_sequence_for<A...>{}); }
};

// kernel<&function>("name") is one row of a table; a table ends with an empty row.
template <auto function>
constexpr Kernel kernel(const char* name) {
  return {name, Entry<function>::kinds, &Entry<function>::run};
}

}  // namespace
}  // namespace fastenh
