// channel_split_transform: the first `split` channels pass, the rest become x·scale + shift.
#include "device.h"

namespace fastenh {
namespace {

// features, out (B, C, H, W); scale, shift (B, C - split, H, W), where a broadcast dimension has stride 0
__global__ void transform_kernel(Pixels planes, Tensor out, Tensor features, Tensor scale, Tensor shift, int64_t split) {
  const int64_t channels = out.shape[1];
  for_pieces(planes, [&](int64_t plane, int64_t y, int64_t x0, int n) {
    const int64_t b = plane / channels, c = plane % channels;
    for (int64_t x = x0 + threadIdx.x; x < x0 + n; x += blockDim.x) {
      const float f = load(features, b, c, y, x);
      const float result = c < split ? f : f * load(scale, b, c - split, y, x) + load(shift, b, c - split, y, x);
      store(out, b, c, y, x, result);
    }
  });
}

void transform(const Tensor& out, const Tensor& features, const Tensor& scale, const Tensor& shift, int64_t split,
               int64_t stream) {
  const Pixels planes = Pixels::joining(1024, out.shape[0] * out.shape[1], out, features, scale, shift);
  launch(transform_kernel, {planes.pieces()}, out, stream, planes, out, features, scale, shift, split);
}

// grad_features is grad, times scale behind the split; grad_scale = grad · features. (grad_shift is grad itself.)
__global__ void backward_kernel(Pixels planes, Tensor grad_features, Tensor grad_scale, Tensor grad, Tensor features,
                                Tensor scale, int64_t split) {
  const int64_t channels = grad.shape[1];
  for_pieces(planes, [&](int64_t plane, int64_t y, int64_t x0, int n) {
    const int64_t b = plane / channels, c = plane % channels;
    for (int64_t x = x0 + threadIdx.x; x < x0 + n; x += blockDim.x) {
      const float g = load(grad, b, c, y, x);
      if (grad_features.data) store(grad_features, b, c, y, x, c < split ? g : g * load(scale, b, c - split, y, x));
      if (grad_scale.data && c >= split) store(grad_scale, b, c - split, y, x, g * load(features, b, c, y, x));
    }
  });
}

void transform_backward(Optional grad_features, Optional grad_scale, const Tensor& grad, const Tensor& features,
                        const Tensor& scale, int64_t split, int64_t stream) {
  const Tensor to_features = or_none(grad_features), to_scale = or_none(grad_scale);
  const Pixels planes =
      Pixels::joining(1024, grad.shape[0] * grad.shape[1], grad, features, scale, to_features, to_scale);
  launch(backward_kernel, {planes.pieces()}, grad, stream, planes, to_features, to_scale, grad, features, scale, split);
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&transform>("channel_split_transform"),
    kernel<&transform_backward>("channel_split_transform_backward"),
    {},
};

}  // namespace fastenh
