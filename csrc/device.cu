// probe: raises CUDA's error if the driver is too old for this build, or if no kernel was compiled for the GPU of a
// tensor. It launches nothing, so it may be called while a CUDA graph is being captured.
#include "device.h"

namespace fastenh {
namespace {

__global__ void probe_kernel() {}

void probe(const Tensor& on, int64_t /*stream*/) {
  const OnDevice guard(on);
  // The first query makes CUDA load this library's kernels; a capture forbids that unless the thread's mode is relaxed.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel);
  cudaThreadExchangeStreamCaptureMode(&mode);
  check(status, "cannot load kernels");
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&probe>("probe"),
    {},
};

}  // namespace fastenh
