// context_voxels on a GPU: the k x k neighbours of every pixel, each times the pixel's attention to it; zero outside.
//
// Where rows can be read in packs of 16 bytes, and k is 3, 5 or 7, a thread takes a pack of pixels, and a block a tile
// of several rows, so that data shared by its threads comes from the L1 cache. Everything else is done pixel by pixel.
#include "device.h"

namespace fastenh {
namespace {

constexpr int threads = 256, rows = 8;  // of a tile
constexpr int single = 128;             // threads of a block that goes pixel by pixel

__device__ inline bool within(int64_t i, int64_t size) { return uint64_t(i) < uint64_t(size); }

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

  // Reads from column x of a row, if the row exists, and only the sides that are needed.
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

// a · b, rounded. If both have the same half precision, two at a time, which rounds like a product in float32.
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

// Blocks that run on a multiprocessor at a time, which bounds the registers of a thread.
template <class T, class S, int k>
constexpr int blocks = (k == 3 ? 4 : 2) / (sizeof(T) == sizeof(S) ? 1 : 2);

// image (B, 3, H, W), attention (B, k², H, W), out (B, 3k², H, W): out[c·k² + j](p) = attention[j](p) · image[c](p + j)
template <class T, class S, int k, int pixels>
__global__ void __launch_bounds__(threads, blocks<T, S, k>) voxels_kernel(Pixels tiles, Tensor out, Tensor image,
                                                                          Tensor attention) {
  constexpr int n = pixels, r = k / 2;
  const int64_t height = image.shape[2], width = image.shape[3];
  for_packs<n>(tiles, height, [&](int64_t b, int64_t y, int64_t x) {
    const T* from = at<const T>(image, b, 0, y - r, x);
    const S* weights = at<const S>(attention, b, 0, y, x);
    T* to = at<T>(out, b, 0, y, x);
#pragma unroll 1
    for (int dy = -r; dy <= r; ++dy) {
      const bool exists = within(y + dy, height);
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

// The attention of pixel p to its neighbour j was multiplied by image[c](p + j). Pixel p itself is neighbour j of pixel
// p - j, and gathers its gradient from there, so that no two threads add to the same address.
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
      const bool below = within(y + dy, height), above = within(y - dy, height);
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
          const T* from = from_grad - dy * grad.strides[2];
#pragma unroll
          for (int c = 0; c < 3; ++c)
            there[c].read(from + c * k * k * grad.strides[1], above, x, width, dx > 0, dx < 0);
          weight.read(from_attention - dy * attention.strides[2], above, x, width, dx > 0, dx < 0);
        }
        if (to_attention) {
          float sum[n] = {};
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            float g[n];
            to_floats(here[c].pack(), g);
#pragma unroll
            for (int i = 0; i < n; ++i) sum[i] = __fmaf_rn(g[i], to_float(neighbours[c].at(i + dx)), sum[i]);
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

// Any k and any strides. If k is known at compile time (`columns`), all neighbours in a row are read before the first
// is used; otherwise one by one. Where the voxels of a pixel are adjacent in memory (channels_last), they are assembled
// in shared memory and written in words of 16 bytes.
template <class T, class S, int columns, int pixels>
__global__ void __launch_bounds__(single) any_voxels_kernel(Pixels places, Tensor out, Tensor image, Tensor attention,
                                                            int any_k, bool together) {
  const int k = columns > 1 ? columns : any_k, voxels = 3 * k * k;
  const int64_t height = image.shape[2], width = image.shape[3];
  T* tile = reinterpret_cast<T*>(memory);
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    T* const row = at<T>(out, b, 0, y, x0);
    const int i = int(threadIdx.x);
    if (i < n) {
      const int64_t above = y - k / 2, left = x0 + i - k / 2, step = together ? 1 : out.strides[1];
      T* to = together ? tile + i * voxels : row + i * out.strides[3];
      const S* weights = at<const S>(attention, b, 0, y, x0 + i);
#pragma unroll 1
      for (int dy = 0; dy < k; ++dy) {
        const bool exists = within(above + dy, height);
        const T* from = at<const T>(image, b, 0, above + dy, left);
#pragma unroll 1
        for (int dx = 0; dx < k; dx += columns) {
          Words<S, 1> weight[columns];
          Words<T, 1> values[columns][3];
#pragma unroll
          for (int d = 0; d < columns; ++d) {
            const bool inside = exists && within(left + dx + d, width);
            weight[d].read(weights);
#pragma unroll
            for (int c = 0; c < 3; ++c) {
              values[d][c] = {};
              if (inside) values[d][c].read(from + c * image.strides[1]);
            }
            weights += attention.strides[1], from += image.strides[3];
          }
#pragma unroll
          for (int d = 0; d < columns; ++d) {
#pragma unroll
            for (int c = 0; c < 3; ++c)
              to[c * k * k * step] =
                  from_float<T>(to_float(weight[d].pack().at[0]) * to_float(values[d][c].pack().at[0]));
            to += step;
          }
        }
      }
    }
    if (together) {
      __syncthreads();
      const int count = n * voxels, words = reinterpret_cast<uintptr_t>(row) % 16 ? 0 : count * int(sizeof(T)) / 16;
      for (int w = i; w < words; w += int(blockDim.x))
        reinterpret_cast<uint4*>(row)[w] = reinterpret_cast<const uint4*>(tile)[w];
      for (int v = words * 16 / int(sizeof(T)) + i; v < count; v += int(blockDim.x)) row[v] = tile[v];
      __syncthreads();
    }
  });
}

template <class T, class S, int columns, int pixels>
__global__ void __launch_bounds__(single) any_backward_kernel(Pixels places, Tensor grad_image, Tensor grad_attention,
                                                              Tensor grad, Tensor image, Tensor attention, int any_k) {
  const int k = columns > 1 ? columns : any_k, r = k / 2;
  const int64_t height = image.shape[2], width = image.shape[3];
  for_pieces(places, [&](int64_t b, int64_t y, int64_t x0, int n) {
    const int64_t x = x0 + threadIdx.x;
    if (int(threadIdx.x) >= n) return;
    float gathered[3] = {0.f, 0.f, 0.f};
#pragma unroll 1
    for (int dy = -r; dy <= r; ++dy) {
      const bool below = within(y + dy, height), above = within(y - dy, height);
#pragma unroll 1
      for (int dx = -r; dx <= r; dx += columns) {
        const int j = (dy + r) * k + dx + r;
        Words<T, 1> here[columns][3], neighbour[columns][3], there[columns][3];
        Words<S, 1> weight[columns];
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          const bool right = below && within(x + dx + i, width);
          const bool left = above && within(x - dx - i, width);
          weight[i] = {};
          if (left && grad_image.data) weight[i].read(at<const S>(attention, b, j + i, y - dy, x - dx - i));
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            neighbour[i][c] = there[i][c] = {};
            if (grad_attention.data) here[i][c].read(at<const T>(grad, b, c * k * k + j + i, y, x));
            if (right && grad_attention.data) neighbour[i][c].read(at<const T>(image, b, c, y + dy, x + dx + i));
            if (left && grad_image.data)
              there[i][c].read(at<const T>(grad, b, c * k * k + j + i, y - dy, x - dx - i));
          }
        }
        const auto number = [](const auto& words) { return to_float(words.pack().at[0]); };
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          float sum = 0.f;
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            if (grad_attention.data) sum = __fmaf_rn(number(here[i][c]), number(neighbour[i][c]), sum);
            gathered[c] = __fmaf_rn(number(weight[i]), number(there[i][c]), gathered[c]);
          }
          if (grad_attention.data) *at<S>(grad_attention, b, j + i, y, x) = from_float<S>(sum);
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

// f(Type<T>{}, Type<S>{}, Count<k>{}), with k = 0 for one without kernels in packs.
template <class F>
void with_types(Dtype image, Dtype attention, int64_t k, const F& f) {
  with_float(image, [&]<class T>(Type<T> t) {
    with_float(attention, [&]<class S>(Type<S> s) {
      if (k == 3) return f(t, s, Count<3>{});
      if (k == 5) return f(t, s, Count<5>{});
      if (k == 7) return f(t, s, Count<7>{});
      f(t, s, Count<0>{});
    });
  });
}

// Whether there is a kernel in packs for these types and k; and the columns of the other kernel.
template <class T, class S, int k>
constexpr bool has_packs = k > 0 && (std::is_same_v<S, T> || std::is_same_v<S, float>);
constexpr int columns_of(int k) { return k == 3 ? 3 : 1; }

Pixels singles_of(const Tensor& image) { return Pixels(single, image.shape[0], image.shape[2], image.shape[3]); }

void voxels(const Tensor& out, const Tensor& image, const Tensor& attention, int64_t any_k, int64_t stream) {
  with_types(image.dtype, attention.dtype, any_k, [&]<class T, class S, int k>(Type<T>, Type<S>, Count<k>) {
    constexpr int n = 16 / sizeof(T);
    if constexpr (has_packs<T, S, k>) {
      if (all_in_packs(n, image, attention, out))
        return launch(voxels_kernel<T, S, k, n>, tiles_of(image, n), {.threads = threads}, image, stream, out, image,
                      attention);
    }
    const int64_t bytes = single * 3 * any_k * any_k * int64_t(sizeof(T));
    const bool together = out.strides[1] == 1 && out.strides[3] == 3 * any_k * any_k && bytes <= largest_tile;
    launch(any_voxels_kernel<T, S, columns_of(k), 1>, singles_of(image),
           {.threads = single, .shared_bytes = together ? int(bytes) : 0}, image, stream, out, image, attention, any_k,
           together);
  });
}

void voxels_backward(Optional grad_image, Optional grad_attention, const Tensor& grad, const Tensor& image,
                     const Tensor& attention, int64_t any_k, int64_t stream) {
  if (grad.dtype != image.dtype) throw std::invalid_argument("context_voxels_backward: expected grad of image's dtype");
  const Tensor to_image = or_none(grad_image), to_attention = or_none(grad_attention);
  with_types(image.dtype, attention.dtype, any_k, [&]<class T, class S, int k>(Type<T>, Type<S>, Count<k>) {
    constexpr int n = 16 / sizeof(T);
    if constexpr (has_packs<T, S, k>) {
      if (all_in_packs(n, image, attention, grad, to_image, to_attention))
        return launch(backward_kernel<T, S, k, n>, tiles_of(image, n), {.threads = threads}, image, stream, to_image,
                      to_attention, grad, image, attention);
    }
    launch(any_backward_kernel<T, S, columns_of(k), 1>, singles_of(image), {.threads = single}, image, stream, to_image,
           to_attention, grad, image, attention, any_k);
  });
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&voxels>("context_voxels"),
    kernel<&voxels_backward>("context_voxels_backward"),
    {},
};

}  // namespace fastenh
