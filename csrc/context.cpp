// context_voxels: the k x k neighbours of every pixel, each times the pixel's attention to it; zero outside.
#include "rows.h"

namespace fastenh {
namespace {

// image (B, 3, H, W), attention (B, k², H, W), out (B, 3·k², H, W)
void forward(const Tensor& out, const Tensor& image, const Tensor& attention, int64_t k, int64_t threads) {
  constexpr int size = 256;
  const int64_t height = image.shape[2], width = image.shape[3], r = k / 2;
  const Pixels pixels{image.shape[0], height, width, false};
  const bool streaming = worth_streaming(out);
  for_blocks<size>(pixels, threads, [&](int64_t b, int64_t y, int64_t x, int n) {
    alignas(64) float weight_row[size], image_rows[3][size];
    for (int64_t j = 0; j < k * k; ++j) {
      // Reads and writes of memory overlap only if the reads are issued before the writes fill the queue.
      const bool more = j + 1 < k * k;
      prefetch(row(attention, b, more ? j + 1 : 0, y).from(more ? x : x + n), n);
      const float* weight = load(row(attention, b, j, y).from(x), n, weight_row);
      const float* values[3];
      Row to[3];
      for (int64_t c = 0; c < 3; ++c) {
        values[c] = load_padded(image, b, c, y + j / k - r, x + j % k - r, n, image_rows[c]);
        to[c] = row(out, b, c * k * k + j, y).from(x);
      }
      store_computed(n, to, streaming,
                     [&](int c, int i) { return read<F16>(weight + i) * read<F16>(values[c] + i); });
    }
  });
}

// The gradient of a pixel's attention comes from the pixel's own voxels. That of image pixel q comes from the voxels of
// all p = q - offset_j: each thread gathers for its own pixels, so that no two threads add to the same address.
void backward(Optional grad_image, Optional grad_attention, const Tensor& grad, const Tensor& image,
              const Tensor& attention, int64_t k, int64_t threads) {
  const int64_t height = image.shape[2], width = image.shape[3], r = k / 2;
  const Pixels pixels{image.shape[0], height, width, false};
  const bool streaming = worth_streaming(image);
  for_blocks(pixels, threads, [&](int64_t b, int64_t y, int64_t x, int n) {
    alignas(64) float grad_row[block], other_row[block], sums[3][block];
    if (grad_attention) {
      for (int64_t j = 0; j < k * k; ++j) {
        const int64_t below = y + j / k - r, right = x + j % k - r;
        for (int64_t c = 0; c < 3; ++c) {
          const float* g = load(row(grad, b, c * k * k + j, y).from(x), n, grad_row);
          const float* value = load_padded(image, b, c, below, right, n, other_row);
          if (c == 0) for (int i = 0; i < n; ++i) sums[0][i] = g[i] * value[i];
          else for (int i = 0; i < n; ++i) sums[0][i] += g[i] * value[i];
        }
        store(sums[0], n, row(*grad_attention, b, j, y).from(x), streaming);
      }
    }
    if (grad_image) {
      std::memset(sums, 0, sizeof sums);
      for (int64_t j = 0; j < k * k; ++j) {
        const int64_t above = y - (j / k - r), left = x - (j % k - r);
        if (above < 0 || above >= height) continue;
        const float* weight = load_padded(attention, b, j, above, left, n, other_row);
        for (int64_t c = 0; c < 3; ++c) {
          const float* g = load_padded(grad, b, c * k * k + j, above, left, n, grad_row);
          for (int i = 0; i < n; ++i) sums[c][i] += g[i] * weight[i];
        }
      }
      for (int64_t c = 0; c < 3; ++c) store(sums[c], n, row(*grad_image, b, c, y).from(x), streaming);
    }
  });
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&forward>("context_voxels"),
    kernel<&backward>("context_voxels_backward"),
    {},
};

}  // namespace fastenh
