// channel_split_transform: the first `split` channels pass, the rest become x·scale + shift.
#include "rows.h"

namespace fastenh {
namespace {

// features, out (B, C, H, W); scale, shift (B, C - split, H, W), where a broadcast dimension has stride 0
void transform(const Tensor& out, const Tensor& features, const Tensor& scale, const Tensor& shift, int64_t split,
               int64_t threads) {
  const int64_t channels = out.shape[1];
  Pixels planes{out.shape[0] * channels, out.shape[2], out.shape[3]};
  planes.join_rows(out), planes.join_rows(features), planes.join_rows(scale), planes.join_rows(shift);
  const bool streaming = worth_streaming(out);
  for_blocks(planes, threads, [&](int64_t plane, int64_t y, int64_t x, int n) {
    alignas(64) float features_row[block], scale_row[block], shift_row[block];
    const int64_t b = plane / channels, c = plane % channels;
    const float* f = load(row(features, b, c, y).from(x), n, features_row);
    const Row to = row(out, b, c, y).from(x);
    if (c < split) return store(f, n, to, streaming);
    const float* a = load(row(scale, b, c - split, y).from(x), n, scale_row);
    const float* s = load(row(shift, b, c - split, y).from(x), n, shift_row);
    store_computed(n, {to}, streaming,
                   [&](int, int i) { return read<F16>(f + i) * read<F16>(a + i) + read<F16>(s + i); });
  });
}

// grad_features is grad, times scale from channel `split` on; grad_scale = grad · features; grad_shift is grad itself.
void transform_backward(Optional grad_features, Optional grad_scale, const Tensor& grad, const Tensor& features,
                        const Tensor& scale, int64_t split, int64_t threads) {
  const int64_t channels = grad.shape[1];
  Pixels planes{grad.shape[0] * channels, grad.shape[2], grad.shape[3]};
  planes.join_rows(grad_features), planes.join_rows(grad_scale);
  planes.join_rows(grad), planes.join_rows(features), planes.join_rows(scale);
  const bool streaming = worth_streaming(grad);
  for_blocks(planes, threads, [&](int64_t plane, int64_t y, int64_t x, int n) {
    alignas(64) float grad_row[block], other_row[block];
    const int64_t b = plane / channels, c = plane % channels;
    const float* g = load(row(grad, b, c, y).from(x), n, grad_row);
    const auto times = [&](const float* factor) {
      return [g, factor](int, int i) { return read<F16>(g + i) * read<F16>(factor + i); };
    };
    if (grad_features) {
      const Row to = row(*grad_features, b, c, y).from(x);
      if (c < split) {
        store(g, n, to, streaming);
      } else {
        const float* a = load(row(scale, b, c - split, y).from(x), n, other_row);
        store_computed(n, {to}, streaming, times(a));
      }
    }
    if (grad_scale && c >= split) {
      const float* f = load(row(features, b, c, y).from(x), n, other_row);
      store_computed(n, {row(*grad_scale, b, c - split, y).from(x)}, streaming, times(f));
    }
  });
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&transform>("channel_split_transform"),
    kernel<&transform_backward>("channel_split_transform_backward"),
    {},
};

}  // namespace fastenh
