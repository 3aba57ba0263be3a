// context_voxels: the k x k neighbours of every pixel, each times the pixel's attention to it; zero outside the image.
#include "device.h"

namespace fastenh {
namespace {

__device__ inline bool inside(const Tensor& image, int64_t y, int64_t x) {
  return 0 <= y && y < image.shape[2] && 0 <= x && x < image.shape[3];
}

// image (B, 3, H, W), attention (B, k², H, W), out (B, 3k², H, W): out[c·k² + j](p) = attention[j](p) · image[c](p + j)
__global__ void voxels_kernel(Pixels pixels, Tensor out, Tensor image, Tensor attention, int64_t k) {
  const int64_t r = k / 2;
  for_pieces(pixels, [&](int64_t b, int64_t y, int64_t x0, int n) {
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
      const int64_t x = x0 + i;
      int64_t j = 0;
      for (int64_t dy = -r; dy <= r; ++dy) {
        for (int64_t dx = -r; dx <= r; ++dx, ++j) {
          const float weight = load(attention, b, j, y, x);
          const bool neighbour = inside(image, y + dy, x + dx);
          for (int64_t c = 0; c < 3; ++c) {
            const float value = neighbour ? load(image, b, c, y + dy, x + dx) : 0.f;
            store(out, b, c * k * k + j, y, x, weight * value);
          }
        }
      }
    }
  });
}

void voxels(const Tensor& out, const Tensor& image, const Tensor& attention, int64_t k, int64_t stream) {
  const Pixels pixels(1024, out.shape[0], out.shape[2], out.shape[3]);
  launch(voxels_kernel, {pixels.pieces()}, out, stream, pixels, out, image, attention, k);
}

// A pixel's attention to its neighbour j met image[c](p + j). The pixel itself was neighbour j of p - j, and gathers
// from there, so that no two threads add to the same place.
__global__ void backward_kernel(Pixels pixels, Tensor grad_image, Tensor grad_attention, Tensor grad, Tensor image,
                                Tensor attention, int64_t k) {
  const int64_t r = k / 2;
  for_pieces(pixels, [&](int64_t b, int64_t y, int64_t x0, int n) {
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
      const int64_t x = x0 + i;
      float gathered[3] = {0.f, 0.f, 0.f};
      int64_t j = 0;
      for (int64_t dy = -r; dy <= r; ++dy) {
        for (int64_t dx = -r; dx <= r; ++dx, ++j) {
          if (grad_attention.data) {
            float sum = 0.f;
            if (inside(image, y + dy, x + dx)) {
              for (int64_t c = 0; c < 3; ++c)
                sum += load(grad, b, c * k * k + j, y, x) * load(image, b, c, y + dy, x + dx);
            }
            store(grad_attention, b, j, y, x, sum);
          }
          if (grad_image.data && inside(image, y - dy, x - dx)) {
            const float weight = load(attention, b, j, y - dy, x - dx);
            for (int64_t c = 0; c < 3; ++c)
              gathered[c] += weight * load(grad, b, c * k * k + j, y - dy, x - dx);
          }
        }
      }
      if (grad_image.data) {
        for (int64_t c = 0; c < 3; ++c) store(grad_image, b, c, y, x, gathered[c]);
      }
    }
  });
}

void voxels_backward(Optional grad_image, Optional grad_attention, const Tensor& grad, const Tensor& image,
                     const Tensor& attention, int64_t k, int64_t stream) {
  const Pixels pixels(1024, image.shape[0], image.shape[2], image.shape[3]);
  launch(backward_kernel, {pixels.pieces()}, grad, stream, pixels, or_none(grad_image), or_none(grad_attention),
         grad, image, attention, k);
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&voxels>("context_voxels"),
    kernel<&voxels_backward>("context_voxels_backward"),
    {},
};

}  // namespace fastenh
