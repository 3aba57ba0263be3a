// What we use of DLPack's C ABI, major version 1 (https://dmlc.github.io/dlpack): how a tensor looks in memory, and the
// table of functions that a tensor type offers as `__dlpack_c_exchange_api__`. The layouts are fixed by that standard.
#pragma once
#include <cstdint>

extern "C" {

enum : int32_t { kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3 };
enum : uint8_t { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4 };

struct DLPackVersion {
  uint32_t major, minor;
};

struct DLDevice {
  int32_t device_type, device_id;
};

struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;  // strides count elements
  uint64_t byte_offset;
};

struct DLPackExchangeAPIHeader {
  DLPackVersion version;
  DLPackExchangeAPIHeader* prev_api;
};

struct DLPackExchangeAPI {
  DLPackExchangeAPIHeader header;
  void *managed_tensor_allocator, *managed_tensor_from_py_object, *managed_tensor_to_py_object;  // not used here
  // A view without ownership: valid while the Python object is. 0 on success, else -1 with a Python error set.
  int (*dltensor_from_py_object)(void* py_object, DLTensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out);
};
}
