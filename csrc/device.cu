// probe: raises what CUDA says where the driver is too old for this build, or no kernel here was compiled for the card of
// a tensor. It only asks, so that nothing is launched into a CUDA graph that is being captured.
#include "device.h"

namespace fastenh {
namespace {

__global__ void probe_kernel() {}

void probe(const Tensor& on, int64_t /*stream*/) {
  const OnDevice guard(on);
  // What is asked first makes CUDA load this library's kernels, which a capture forbids unless the thread is relaxed.
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
