// Just enough of CUDA for a C++ compiler to build csrc/*.cu and run it on a CPU, one thread after the other. (No kernel
// waits for its neighbours yet.) `stream` and devices are as good as none.
#pragma once
#include <math.h>

#include <cstdint>

#define __global__
#define __device__
#define __host__

struct dim3 {
  unsigned x = 0, y = 0, z = 0;
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  gridDim = config->gridDim, blockDim = config->blockDim;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(P(arguments)...);
  return cudaSuccess;
}

inline unsigned __float2uint_rn(float value) { return unsigned(nearbyintf(value)); }
