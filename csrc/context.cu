// context_voxels on a GPU: the k x k neighbours of every pixel, each times the pixel's attention to it; zero outside.
//
// Where rows can be read in packs of 16 bytes, and k is 3, 5 or 7, a thread takes one pack of pixels, and a block a tile
// of several rows, so that the rows of the image that its threads share come from the L1 cache. Everything else is done
// pixel by pixel.
#include "device.h"

namespace fastenh {
namespace {

constexpr int threads = 256, rows = 8;  // of a tile

// ---- packs ----

// body(b, y, x): n pixels of row y of picture b, from column x on; x is a multiple of n.
template <int n, class Body>
__device__ void for_packs(const Pixels& tiles, int64_t height, const Body& body) {
  for_pieces(tiles, [&](int64_t b, int64_t tile, int64_t x, int count) {
    const int64_t y = tile * rows + threadIdx.x / (threads / rows);
    const int i = int(threadIdx.x) % (threads / rows) * n;
    if (y < height && i < count) body(b, y, x + i);
  });
}

// n pixels of a row and r more on either side, zero outside the picture.
template <class T, int n, int r>
struct Around {
  static constexpr int more = r < 3 ? r : 4;  // what an aligned read takes
  Words<T, n> middle{};
  Words<T, more> left{}, right{};

  // From column x of a row that exists or not; what no one needs is not read.
  __device__ void read(const T* from, bool exists, int64_t x, int64_t width, bool to_left, bool to_right) {
    if (exists) middle.read(from);
    if (to_left && exists && x > 0) left.read(from - more);
    if (to_right && exists && x + n < width) right.read(from + n);
  }
  // Pixel i, from -r to n + r - 1.
  __device__ T at(int i) const {
    return i < 0 ? left.pack().at[i + more] : i < n ? middle.pack().at[i] : right.pack().at[i - n];
  }
};

// a · b, rounded: halves of one kind two at a time, which rounds as float32 between them would.
template <int n>
__device__ inline void multiply(const __half (&a)[n], const __half (&b)[n], __half (&product)[n]) {
#pragma unroll
  for (int i = 0; i < n; i += 2) {
    const __half2 both = __hmul2(__halves2half2(a[i], a[i + 1]), __halves2half2(b[i], b[i + 1]));
    product[i] = __low2half(both), product[i + 1] = __high2half(both);
  }
}
template <int n>
__device__ inline void multiply(const __nv_bfloat16 (&a)[n], const __nv_bfloat16 (&b)[n], __nv_bfloat16 (&product)[n]) {
#pragma unroll
  for (int i = 0; i < n; i += 2) {
    const __nv_bfloat162 both = __hmul2(__halves2bfloat162(a[i], a[i + 1]), __halves2bfloat162(b[i], b[i + 1]));
    product[i] = __low2bfloat16(both), product[i + 1] = __high2bfloat16(both);
  }
}
template <class S, class T, int n>
__device__ inline void multiply(const S (&a)[n], const T (&b)[n], T (&product)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) product[i] = from_float<T>(to_float(a[i]) * to_float(b[i]));
}

// Blocks that a multiprocessor should have room for.
template <class T, class S, int k>
constexpr int blocks = k == 3 && sizeof(T) == sizeof(S) ? 4 : 2;

// image (B, 3, H, W), attention (B, k², H, W), out (B, 3k², H, W): out[c·k² + j](p) = attention[j](p) · image[c](p + j)
template <class T, class S, int k, int pixels>
__global__ void __launch_bounds__(threads, blocks<T, S, k>) voxels_kernel(Pixels tiles, Tensor out, Tensor image, Tensor attention) {
  constexpr int n = pixels, r = k / 2;
  const int64_t height = image.shape[2], width = image.shape[3];
  for_packs<n>(tiles, height, [&](int64_t b, int64_t y, int64_t x) {
    const T* from = at<const T>(image, b, 0, y - r, x);
    const S* weights = at<const S>(attention, b, 0, y, x);
    T* to = at<T>(out, b, 0, y, x);
#pragma unroll 1
    for (int dy = -r; dy <= r; ++dy) {
      const bool exists = 0 <= y + dy && y + dy < height;
      Around<T, n, r> neighbours[3];
      Words<S, n> weight[k];
#pragma unroll
      for (int c = 0; c < 3; ++c) neighbours[c].read(from + c * image.strides[1], exists, x, width, true, true);
#pragma unroll
      for (int dx = 0; dx < k; ++dx) weight[dx].read_once(weights + dx * attention.strides[1]);
#pragma unroll
      for (int dx = 0; dx < k; ++dx) {
        const Pack<S, n> factor = weight[dx].pack();
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          Pack<T, n> shifted, product;
#pragma unroll
          for (int i = 0; i < n; ++i) shifted.at[i] = neighbours[c].at(i + dx - r);
          multiply(factor.at, shifted.at, product.at);
          write<T, n>(to + (c * k * k + dx) * out.strides[1], product);
        }
      }
      from += image.strides[2], weights += k * attention.strides[1], to += k * out.strides[1];
    }
  });
}

// A pixel's attention to its neighbour j met image[c](p + j). The pixel itself was neighbour j of p - j, and gathers
// from there, so that no two threads add to the same place.
template <class T, class S, int k, int pixels>
__global__ void __launch_bounds__(threads, 2) backward_kernel(Pixels tiles, Tensor grad_image, Tensor grad_attention,
                                                           Tensor grad, Tensor image, Tensor attention) {
  constexpr int n = pixels, r = k / 2;
  const int64_t height = image.shape[2], width = image.shape[3];
  for_packs<n>(tiles, height, [&](int64_t b, int64_t y, int64_t x) {
    const T* from_image = at<const T>(image, b, 0, y, x);
    const T* from_grad = at<const T>(grad, b, 0, y, x);
    const S* from_attention = at<const S>(attention, b, 0, y, x);
    S* to_attention = grad_attention.data ? at<S>(grad_attention, b, 0, y, x) : nullptr;
    float gathered[3][n] = {};
#pragma unroll 1
    for (int dy = -r; dy <= r; ++dy) {
      const bool below = 0 <= y + dy && y + dy < height, above = 0 <= y - dy && y - dy < height;
      Around<T, n, r> neighbours[3];
      if (to_attention) {
#pragma unroll
        for (int c = 0; c < 3; ++c)
          neighbours[c].read(from_image + c * image.strides[1] + dy * image.strides[2], below, x, width, true, true);
      }
#pragma unroll
      for (int dx = -r; dx <= r; ++dx) {
        Words<T, n> here[3];
        Around<T, n, r> there[3];
        Around<S, n, r> weight;
        if (to_attention) {
#pragma unroll
          for (int c = 0; c < 3; ++c) here[c].read(from_grad + c * k * k * grad.strides[1]);
        }
        if (grad_image.data) {
#pragma unroll
          for (int c = 0; c < 3; ++c)
            there[c].read(from_grad + c * k * k * grad.strides[1] - dy * grad.strides[2], above, x, width, dx > 0, dx < 0);
          weight.read(from_attention - dy * attention.strides[2], above, x, width, dx > 0, dx < 0);
        }
        if (to_attention) {
          float sum[n] = {};
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            const Pack<T, n> g = here[c].pack();
#pragma unroll
            for (int i = 0; i < n; ++i) sum[i] = __fmaf_rn(to_float(g.at[i]), to_float(neighbours[c].at(i + dx)), sum[i]);
          }
          write<S, n>(to_attention, from_floats<S>(sum));
          to_attention += grad_attention.strides[1];
        }
        if (grad_image.data) {
#pragma unroll
          for (int i = 0; i < n; ++i) {
            const float factor = to_float(weight.at(i - dx));
#pragma unroll
            for (int c = 0; c < 3; ++c)
              gathered[c][i] = __fmaf_rn(factor, to_float(there[c].at(i - dx)), gathered[c][i]);
          }
        }
        from_grad += grad.strides[1], from_attention += attention.strides[1];
      }
    }
    if (grad_image.data) {
#pragma unroll
      for (int c = 0; c < 3; ++c) write<T, n>(at<T>(grad_image, b, c, y, x), from_floats<T>(gathered[c]));
    }
  });
}

// ---- pixel by pixel ----

// One pixel of a row that exists or not, as Around has n.
template <class T>
__device__ inline float pixel(const Tensor& t, int64_t b, int64_t c, int64_t y, int64_t x) {
  return 0 <= y && y < t.shape[2] && 0 <= x && x < t.shape[3] ? to_float(*at<const T>(t, b, c, y, x)) : 0.f;
}

// Any k, any strides. Where the voxels of a pixel are neighbours in memory (channels_last), they are first put together
// in shared memory, and leave it in words of 16 bytes.
template <class T, class S, int pixels>
__global__ void any_voxels_kernel(Pixels places, Tensor out, Tensor image, Tensor attention, int k, bool together) {
  const int r = k / 2, voxels = 3 * k * k;
  T* tile = reinterpret_cast<T*>(memory);
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    T* const row = at<T>(out, b, 0, y, x0);
    const int i = int(threadIdx.x);
    const int64_t x = x0 + i;
    if (i < n) {
      int j = 0;
      for (int dy = -r; dy <= r; ++dy) {
        for (int dx = -r; dx <= r; ++dx, ++j) {
          const float weight = to_float(*at<const S>(attention, b, j, y, x));
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            const T value = from_float<T>(weight * pixel<T>(image, b, c, y + dy, x + dx));
            const int voxel = c * k * k + j;
            if (together) tile[i * voxels + voxel] = value;
            else row[i * out.strides[3] + voxel * out.strides[1]] = value;
          }
        }
      }
    }
    if (!together) return;
    __syncthreads();
    const int count = n * voxels, words = reinterpret_cast<uintptr_t>(row) % 16 ? 0 : count * int(sizeof(T)) / 16;
    for (int w = i; w < words; w += int(blockDim.x))
      reinterpret_cast<uint4*>(row)[w] = reinterpret_cast<const uint4*>(tile)[w];
    for (int v = words * 16 / int(sizeof(T)) + i; v < count; v += int(blockDim.x)) row[v] = tile[v];
    __syncthreads();
  });
}

template <class T, class S, int pixels>
__global__ void any_backward_kernel(Pixels places, Tensor grad_image, Tensor grad_attention, Tensor grad, Tensor image,
                                    Tensor attention, int k) {
  const int r = k / 2;
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    const int64_t x = x0 + threadIdx.x;
    if (int(threadIdx.x) >= n) return;
    float gathered[3] = {0.f, 0.f, 0.f};
    int j = 0;
    for (int dy = -r; dy <= r; ++dy) {
      for (int dx = -r; dx <= r; ++dx, ++j) {
        if (grad_attention.data) {
          float sum = 0.f;
#pragma unroll
          for (int c = 0; c < 3; ++c)
            sum = __fmaf_rn(pixel<T>(grad, b, c * k * k + j, y, x), pixel<T>(image, b, c, y + dy, x + dx), sum);
          *at<S>(grad_attention, b, j, y, x) = from_float<S>(sum);
        }
        if (grad_image.data) {
          const float weight = pixel<S>(attention, b, j, y - dy, x - dx);
#pragma unroll
          for (int c = 0; c < 3; ++c)
            gathered[c] = __fmaf_rn(weight, pixel<T>(grad, b, c * k * k + j, y - dy, x - dx), gathered[c]);
        }
      }
    }
    for (int c = 0; c < 3 && grad_image.data; ++c) *at<T>(grad_image, b, c, y, x) = from_float<T>(gathered[c]);
  });
}

// ---- launches ----

constexpr int largest_tile = 96 << 10;  // bytes of shared memory that every card has

// Whether all rows of these tensors can be read in packs of n pixels.
template <class... T>
bool all_in_packs(int n, const Tensor& image, const T&... others) {
  const Pixels pixels(n, image.shape[0], image.shape[2], image.shape[3]);
  return in_packs(pixels, n, image) && (in_packs(pixels, n, others) && ...);
}

Pixels tiles_of(const Tensor& image, int n) {
  return Pixels(threads / rows * n, image.shape[0], (image.shape[2] + rows - 1) / rows, image.shape[3]);
}

template <int n>
using Count = std::integral_constant<int, n>;

// f(Type<T>{}, Type<S>{}, Count<k>{}) with k = 0 for what is done pixel by pixel.
template <class F>
void with_types(Dtype image, Dtype attention, int64_t k, const F& f) {
  with_float(image, [&]<class T>(Type<T> t) {
    with_float(attention, [&]<class S>(Type<S> s) {
      if constexpr (std::is_same_v<S, T> || std::is_same_v<S, float>) {
        if (k == 3) return f(t, s, Count<3>{});
        if (k == 5) return f(t, s, Count<5>{});
        if (k == 7) return f(t, s, Count<7>{});
      }
      f(t, s, Count<0>{});
    });
  });
}

void voxels(const Tensor& out, const Tensor& image, const Tensor& attention, int64_t k, int64_t stream) {
  const int pack = 16 / int(size_of(image.dtype));
  const bool packed = all_in_packs(pack, image, attention, out);
  with_types(image.dtype, attention.dtype, packed ? k : 0, [&]<class T, class S, int size>(Type<T>, Type<S>, Count<size>) {
    if constexpr (size > 0) {
      constexpr int n = 16 / sizeof(T);
      launch(voxels_kernel<T, S, size, n>, tiles_of(image, n), {.threads = threads}, image, stream, out, image, attention);
    } else {
      constexpr int n = 128;
      const int64_t bytes = n * 3 * k * k * int64_t(sizeof(T));
      const bool together = out.strides[1] == 1 && out.strides[3] == 3 * k * k && bytes <= largest_tile;
      launch(any_voxels_kernel<T, S, 1>, Pixels(n, out.shape[0], out.shape[2], out.shape[3]),
             {.threads = n, .shared_bytes = together ? int(bytes) : 0}, image, stream, out, image, attention, k, together);
    }
  });
}

void voxels_backward(Optional grad_image, Optional grad_attention, const Tensor& grad, const Tensor& image,
                     const Tensor& attention, int64_t k, int64_t stream) {
  if (grad.dtype != image.dtype) throw std::invalid_argument("context_voxels_backward: expected grad of the image's dtype");
  const Tensor to_image = or_none(grad_image), to_attention = or_none(grad_attention);
  const int pack = 16 / int(size_of(image.dtype));
  const bool packed = all_in_packs(pack, image, attention, grad, to_image, to_attention);
  with_types(image.dtype, attention.dtype, packed ? k : 0, [&]<class T, class S, int size>(Type<T>, Type<S>, Count<size>) {
    if constexpr (size > 0) {
      constexpr int n = 16 / sizeof(T);
      launch(backward_kernel<T, S, size, n>, tiles_of(image, n), {.threads = threads}, image, stream, to_image,
             to_attention, grad, image, attention);
    } else {
      constexpr int n = 128;
      launch(any_backward_kernel<T, S, 1>, Pixels(n, image.shape[0], image.shape[2], image.shape[3]), {.threads = n},
             image, stream, to_image, to_attention, grad, image, attention, k);
    }
  });
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&voxels>("context_voxels"),
    kernel<&voxels_backward>("context_voxels_backward"),
    {},
};

}  // namespace fastenh
