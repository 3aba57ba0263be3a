// fastenh._C: the tables of kernels as Python callables. Tensors come in through DLPack's exchange API, so that this
// file, like all of csrc, does not depend on torch. Arguments are positional, in the order of the kernel's parameters.
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>

#include "dlpack.h"
#include "kernel.h"

namespace py = pybind11;
using namespace fastenh;

namespace fastenh {
#define STEM(stem, variant) extern const Kernel stem##_##variant[];
FASTENH_TABLES
FASTENH_CUDA_TABLES
#undef STEM
}  // namespace fastenh

namespace {

constexpr int max_arguments = 16;

const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  // Nearly all arguments have one type (torch.Tensor, sometimes torch.nn.Parameter): cache the last two.
  static PyTypeObject* types[2];
  static const DLPackExchangeAPI* apis[2];
  for (int i = 0; i < 2; ++i)
    if (types[i] == type) return apis[i];
  auto attribute = py::reinterpret_steal<py::object>(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
  if (!attribute) {
    PyErr_Clear();
    throw py::type_error(std::string("expected a tensor with __dlpack_c_exchange_api__, got ") + type->tp_name);
  }
  auto* header = static_cast<DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(attribute.ptr(), "dlpack_exchange_api"));
  if (!header) throw py::error_already_set();
  while (header && header->version.major > 1) header = header->prev_api;
  auto* api = reinterpret_cast<const DLPackExchangeAPI*>(header);
  if (!api || api->header.version.major != 1 || !api->dltensor_from_py_object)
    throw py::type_error(std::string("expected DLPack exchange API version 1 from ") + type->tp_name);
  Py_INCREF(type);  // keeps a cached type alive, so that no other type can have its address
  types[1] = types[0], apis[1] = apis[0];
  types[0] = type, apis[0] = api;
  return api;
}

Dtype dtype_of(DLDataType t) {
  if (t.lanes == 1) {
    if (t.code == kDLUInt && t.bits == 8) return Dtype::u8;
    if (t.code == kDLUInt && t.bits == 16) return Dtype::u16;
    if (t.code == kDLInt && t.bits == 64) return Dtype::i64;
    if (t.code == kDLFloat && t.bits == 16) return Dtype::f16;
    if (t.code == kDLBfloat && t.bits == 16) return Dtype::bf16;
    if (t.code == kDLFloat && t.bits == 32) return Dtype::f32;
  }
  throw py::type_error("expected dtype uint8, uint16, int64, float16, bfloat16 or float32, got DLPack code " +
                       std::to_string(t.code) + " with " + std::to_string(t.bits) + " bits");
}

Tensor tensor_of(PyObject* object) {
  DLTensor view;
  if (exchange_api(Py_TYPE(object))->dltensor_from_py_object(object, &view) != 0) throw py::error_already_set();
  if (view.ndim > 8) throw py::type_error("expected at most 8 dimensions, got " + std::to_string(view.ndim));
  Tensor tensor;
  tensor.data = static_cast<char*>(view.data) + view.byte_offset;
  tensor.dtype = dtype_of(view.dtype);
  tensor.ndim = view.ndim;
  tensor.device_type = view.device.device_type == kDLCUDAHost ? kDLCPU : view.device.device_type;  // pinned memory
  tensor.device_id = view.device.device_id;
  // The shape belongs to the Python object: copied here, before the GIL is released.
  int64_t numel = 1;
  for (int i = 0; i < view.ndim; ++i) {
    tensor.shape[i] = view.shape[i];
    tensor.strides[i] = view.strides[i];
    numel *= view.shape[i];
  }
  // Fake and functional tensors convert successfully, without memory.
  if (!view.data && numel > 0) throw py::type_error("expected a tensor with memory, got one without (a fake tensor?)");
  return tensor;
}

void call(const Kernel& kernel, int32_t device_type, const py::args& args) {
  const size_t count = std::strlen(kernel.kinds);
  const bool cuda = device_type == kDLCUDA;  // CUDA kernels take the stream as one more integer
  if (args.size() + cuda != count)
    throw py::type_error(std::string(kernel.name) + " takes " + std::to_string(count - cuda) + " arguments, got " +
                         std::to_string(args.size()));
  Value values[max_arguments];
  const Tensor* first = nullptr;
  PyTypeObject* first_type = nullptr;
  for (size_t i = 0; i < args.size(); ++i) {
    PyObject* object = PyTuple_GET_ITEM(args.ptr(), i);
    Value& value = values[i];
    const char kind = kernel.kinds[i];
    value.kind = kind;
    if (kind == 'i') {
      value.integer = PyLong_AsLongLong(object);
    } else if (kind == 'd') {
      value.real = PyFloat_AsDouble(object);
    } else if (kind == '?' && object == Py_None) {
      value.kind = 'N';
    } else {
      value.kind = 'T';
      value.tensor = tensor_of(object);
      if (!first) first = &value.tensor, first_type = Py_TYPE(object);
      if (value.tensor.device_type != device_type || value.tensor.device_id != first->device_id)
        throw py::type_error(std::string(kernel.name) + ": argument " + std::to_string(i) + " is on another device");
    }
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  if (cuda && first) {
    void* stream = nullptr;
    if (exchange_api(first_type)->current_work_stream(kDLCUDA, first->device_id, &stream) != 0)
      throw py::error_already_set();
    values[count - 1].kind = 'i';
    values[count - 1].integer = reinterpret_cast<int64_t>(stream);
  }
  py::gil_scoped_release unlocked;
  kernel.run(values);
}

void add(py::dict& functions, const Kernel* table, int32_t device_type) {
  for (; table->name; ++table) {
    if (std::strlen(table->kinds) > max_arguments) throw std::length_error(table->name);
    functions[table->name] = py::cpp_function(
        [table, device_type](const py::args& args) { call(*table, device_type, args); }, py::name(table->name));
  }
}

bool runs(const std::string& variant) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (variant == "avx2") return avx2;
  if (variant == "avx512")
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return variant == "baseline";
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastenh's compiled core";
  m.attr("version") = FASTENH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("cuda_archs") = FASTENH_CUDA_ARCHS;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  py::dict cpu;  // variants this machine can run, slowest first
  py::list built;
#define STEM(stem, variant) add(functions, stem##_##variant, kDLCPU);
#define VARIANT(variant, stems)        \
  built.append(#variant);              \
  if (runs(#variant)) {                \
    py::dict functions;                \
    stems cpu[#variant] = functions;   \
  }
  FASTENH_VARIANTS
#undef STEM
  m.attr("built") = built;
  m.attr("cpu") = cpu;
  py::dict cuda;
#define STEM(stem, variant) add(cuda, stem##_##variant, kDLCUDA);
  FASTENH_CUDA_TABLES
#undef STEM
  m.attr("cuda") = cuda;
}
