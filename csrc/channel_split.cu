// channel_split_transform on a GPU: the first `split` channels pass, the rest become x·scale + shift.
//
// A thread takes packs of 16 bytes along x or, where the channels of a pixel are adjacent in memory (channels_last),
// along the channels, and issues all its loads before it uses any of them. Data that is not in packs is processed
// number by number by the same kernels.
#include "device.h"

namespace fastenh {
namespace {

constexpr int threads = 256;

// ---- packs ----

// n numbers of scale or shift; a single one for all if the inner dimension is broadcast. S = void: of any dtype.
template <class S, int n>
struct Factor {
  Words<S, n> words;
  __device__ void read(const Tensor& t, int64_t b, int64_t y, int64_t outer, int64_t inner) {
    const S* from = at<const S>(t, b, y, outer, inner);
    if constexpr (n > 1) {
      if (t.strides[3] == 0) {
        const S one = *from;
        uint32_t bits = 0;
        memcpy(&bits, &one, sizeof one);
        if (sizeof one == 2) bits *= 0x10001;
        for (uint4& word : words.word) word = make_uint4(bits, bits, bits, bits);
        return;
      }
    }
    words.read_once(from);
  }
  __device__ void to_floats(float (&values)[n]) const { fastenh::to_floats(words.pack(), values); }
};

template <>
struct Factor<void, 1> {
  float value;
  __device__ void read(const Tensor& t, int64_t b, int64_t y, int64_t outer, int64_t inner) {
    value = load(t, b, y, outer, inner);
  }
  __device__ void to_floats(float (&values)[1]) const { values[0] = value; }
};

// Tensors are (B, H, outer, inner), one of the last two dimensions being the channels, and are rows (b, y) of packs.
struct Order {
  Divisor packs;  // of the inner dimension
  bool channels_inner;
};

// The packs of n numbers of a row that a thread takes, `threads` packs apart.
template <int packs, int n>
struct Places {
  bool exists[packs];
  uint32_t outer[packs], inner[packs], channel[packs];

  __device__ Places(const Order& order, int64_t first, int count) {
#pragma unroll
    for (int j = 0; j < packs; ++j) {
      const uint32_t i = j * threads + threadIdx.x;
      exists[j] = int(i) < count;
      outer[j] = order.packs.divide(uint32_t(first) + i);
      inner[j] = (uint32_t(first) + i - outer[j] * order.packs.by) * n;
      channel[j] = order.channels_inner ? inner[j] : outer[j];
    }
  }
};

// ---- forward ----

// scale and shift are offset as if they began with channel 0; a broadcast dimension has stride 0.
template <class T, class S, int packs, int pixels>
__global__ void __launch_bounds__(threads) transform_kernel(Pixels rows, Order order, Tensor out, Tensor features,
                                                            Tensor scale, Tensor shift, int64_t split) {
  constexpr int n = pixels / packs;
  for_pieces(rows, [&](int64_t b, int64_t y, int64_t first, int count) {
    const Places<packs, n> place(order, first, count);
    Words<T, n> f[packs];
    Factor<S, n> a[packs], s[packs];
#pragma unroll
    for (int j = 0; j < packs; ++j) {
      const uint32_t outer = place.outer[j], inner = place.inner[j];
      if (!place.exists[j]) continue;
      f[j].read_once(at<const T>(features, b, y, outer, inner));
      if (place.channel[j] < split) continue;
      a[j].read(scale, b, y, outer, inner);
      s[j].read(shift, b, y, outer, inner);
    }
#pragma unroll
    for (int j = 0; j < packs; ++j) {
      if (!place.exists[j]) continue;
      T* to = at<T>(out, b, y, place.outer[j], place.inner[j]);
      if (place.channel[j] < split) {
        f[j].write(to);
      } else {
        float x[n], factor[n], offset[n];
        to_floats(f[j].pack(), x), a[j].to_floats(factor), s[j].to_floats(offset);
#pragma unroll
        for (int i = 0; i < n; ++i) x[i] = __fmaf_rn(x[i], factor[i], offset[i]);
        write<T, n>(to, from_floats<T>(x));
      }
    }
  });
}

// ---- backward ----

// grad_features is grad, times scale from channel `split` on; product = grad · features, of dtype P. (The gradient of
// shift is grad itself.)
template <class T, class S, class P, int packs, int pixels>
__global__ void __launch_bounds__(threads) backward_kernel(Pixels rows, Order order, Tensor grad, Tensor features,
                                                           Tensor scale, Tensor grad_features, Tensor product,
                                                           int64_t split) {
  constexpr int n = pixels / packs;
  for_pieces(rows, [&](int64_t b, int64_t y, int64_t first, int count) {
    const Places<packs, n> place(order, first, count);
    Words<T, n> g[packs], f[packs];
    Factor<S, n> a[packs];
#pragma unroll
    for (int j = 0; j < packs; ++j) {
      const uint32_t outer = place.outer[j], inner = place.inner[j];
      if (!place.exists[j]) continue;
      g[j].read_once(at<const T>(grad, b, y, outer, inner));
      if (place.channel[j] < split) continue;
      if (product.data) f[j].read_once(at<const T>(features, b, y, outer, inner));
      if (grad_features.data) a[j].read(scale, b, y, outer, inner);
    }
#pragma unroll
    for (int j = 0; j < packs; ++j) {
      const uint32_t outer = place.outer[j], inner = place.inner[j];
      if (!place.exists[j]) continue;
      if (place.channel[j] < split) {
        if (grad_features.data) g[j].write(at<T>(grad_features, b, y, outer, inner));
        continue;
      }
      float values[n], factor[n];
      to_floats(g[j].pack(), values);
      if (product.data) {
        to_floats(f[j].pack(), factor);
#pragma unroll
        for (int i = 0; i < n; ++i) factor[i] *= values[i];
        if constexpr (std::is_void_v<P>) store(product, b, y, outer, inner, factor[0]);
        else write<P, n>(at<P>(product, b, y, outer, inner), from_floats<P>(factor));
      }
      if (grad_features.data) {
        a[j].to_floats(factor);
#pragma unroll
        for (int i = 0; i < n; ++i) values[i] *= factor[i];
        write<T, n>(at<T>(grad_features, b, y, outer, inner), from_floats<T>(values));
      }
    }
  });
}

// The same for planes (B, C, 1, pixels) where scale and shift are one number per channel and their gradients are sums:
// each block sums grad · features and grad over a share of a plane. The sums (B, C - split, shares) are float32.
template <class T, int pixels>
__global__ void __launch_bounds__(threads) sums_kernel(Pixels shares, int64_t share, Tensor grad_features,
                                                       Tensor scale_sums, Tensor shift_sums, Tensor grad,
                                                       Tensor features, Tensor scale, int64_t split) {
  constexpr int n = pixels;
  auto* by_warp = reinterpret_cast<float2*>(memory);
  for_pieces(shares, [&](int64_t b, int64_t c, int64_t number, int) {
    const bool passes = c < split;
    const float factor = passes ? 1.f : load(scale, b, c, 0, 0);
    const int64_t begin = number * share, left = grad.shape[3] - begin;
    const int count = int(left < share ? left : share);  // below 1 where there are more shares than packs
    const T* from = at<const T>(grad, b, c, 0, begin);
    const T* by = scale_sums.data && !passes ? at<const T>(features, b, c, 0, begin) : nullptr;
    T* to = grad_features.data ? at<T>(grad_features, b, c, 0, begin) : nullptr;
    float2 sums{0.f, 0.f};
    for (int i = int(threadIdx.x) * n; i < count; i += threads * n) {
      Words<T, n> g, f{};
      g.read_once(from + i);
      if (by) f.read_once(by + i);
      if (passes) {
        if (to) g.write(to + i);
        continue;
      }
      float values[n], other[n];
      to_floats(g.pack(), values), to_floats(f.pack(), other);
#pragma unroll
      for (int k = 0; k < n; ++k) {
        sums.x = __fmaf_rn(values[k], other[k], sums.x);
        sums.y += values[k];
        values[k] *= factor;
      }
      if (to) write<T, n>(to + i, from_floats<T>(values));
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      sums.x += __shfl_xor_sync(~0u, sums.x, lanes);
      sums.y += __shfl_xor_sync(~0u, sums.y, lanes);
    }
    if (threadIdx.x % 32 == 0) by_warp[threadIdx.x / 32] = sums;
    __syncthreads();
    if (threadIdx.x == 0 && !passes) {
      for (int warp = 1; warp < threads / 32; ++warp) sums.x += by_warp[warp].x, sums.y += by_warp[warp].y;
      const int64_t place = (b * (grad.shape[1] - split) + c - split) * shares.width + number;
      if (scale_sums.data) reinterpret_cast<float*>(scale_sums.data)[place] = sums.x;
      if (shift_sums.data) reinterpret_cast<float*>(shift_sums.data)[place] = sums.y;
    }
    __syncthreads();
  });
}

// ---- launches ----

constexpr int64_t most_packs = 0x7fffffff;  // of a row, so that 31 bits count them

// The tensor that begins with channel `first` of t; before t where that is negative.
Tensor from_channel(Tensor t, int64_t first) {
  if (t.data) t.data += first * t.strides[1] * size_of(t.dtype);
  t.shape[1] -= first;
  return t;
}

// Makes one long row of all rows of a channel, where they follow each other without a gap in all of these tensors.
template <size_t count>
void join_rows(Tensor (&tensors)[count]) {
  for (const Tensor& t : tensors)
    if (t.data && t.shape[2] > 1 && t.strides[2] != t.strides[3] * t.shape[3]) return;
  for (Tensor& t : tensors) t.shape[3] *= t.shape[2], t.shape[2] = 1;
}

// Arranges (B, C, H, W) tensors as (B, H, C, W) or, where channels are adjacent in memory, as (B, H, W, C); returns
// whether it did the latter.
template <size_t count>
bool arrange(Tensor (&tensors)[count]) {
  const Tensor& first = tensors[0];
  if (first.shape[2] * first.shape[3] <= most_packs) join_rows(tensors);
  const bool channels_inner = first.shape[1] > 1 && (first.shape[3] == 1 || first.strides[1] < first.strides[3]);
  for (Tensor& t : tensors) {
    std::swap(t.shape[1], t.shape[2]), std::swap(t.strides[1], t.strides[2]);
    if (channels_inner) std::swap(t.shape[2], t.shape[3]), std::swap(t.strides[2], t.strides[3]);
  }
  return channels_inner;
}

// Whether packs of n numbers along the last dimension are contiguous and aligned (to 16 bytes if they are longer).
bool in_packs(const Tensor& t, int n) {
  const int64_t bytes = n * size_of(t.dtype), pack = bytes < 16 ? bytes : 16;
  bool fits = t.strides[3] == 1 && t.shape[3] % n == 0 && reinterpret_cast<uintptr_t>(t.data) % uintptr_t(pack) == 0;
  for (int dim = 0; dim < 3; ++dim) fits = fits && (t.shape[dim] == 1 || t.strides[dim] * size_of(t.dtype) % pack == 0);
  return fits || !t.data;
}
bool in_packs_or_broadcast(const Tensor& t, int n) { return t.strides[3] == 0 || in_packs(t, n); }

template <int n>
using Count = std::integral_constant<int, n>;

// f(Type<S>{}, packs, n): scale and shift are read as S beside features of dtype T; a thread takes `packs` packs of n.
template <class T, class F>
void with_factor(Dtype scale, Dtype shift, bool packed, const F& f) {
  const auto typed = [&](auto type) {
    packed ? f(type, Count<2>{}, Count<16 / sizeof(T)>{}) : f(type, Count<4>{}, Count<1>{});
  };
  if (scale == shift && scale == dtype_of<T>) return typed(Type<T>{});
  if constexpr (dtype_of<T> != Dtype::f32) {
    if (scale == shift && scale == Dtype::f32) return typed(Type<float>{});
  }
  f(Type<void>{}, Count<4>{}, Count<1>{});
}

// Launches a kernel on arranged tensors, the first of which is never None; several times if a row has too many packs.
template <class... P, class First, class... T>
void launch_rows(void (*kernel)(Pixels, Order, P...), int packs, int n, bool channels_inner, int64_t split,
                 int64_t stream, const First& first, const T&... others) {
  const int64_t inner = first.shape[3] / n, outer = first.shape[2], most = most_packs / inner;
  if (most == 0) throw std::invalid_argument("channel_split_transform: a row is too long");
  for (int64_t begin = 0; begin < outer; begin += most) {
    const int64_t count = outer - begin < most ? outer - begin : most;
    const auto part = [&](Tensor t) {
      if (t.data) t.data += begin * t.strides[2] * size_of(t.dtype);
      return t;
    };
    launch(kernel, Pixels(threads * packs, first.shape[0], first.shape[1], inner * count), {.threads = threads}, first,
           stream, Order{Divisor(inner), channels_inner}, part(first), part(others)...,
           channels_inner ? split : split - begin);
  }
}

void transform(const Tensor& out, const Tensor& features, const Tensor& scale, const Tensor& shift, int64_t split,
               int64_t stream) {
  Tensor tensors[] = {out, features, from_channel(scale, -split), from_channel(shift, -split)};
  auto& [o, f, a, s] = tensors;
  if (o.data == f.data) {  // in place: the channels that pass are already there
    for (Tensor& t : tensors) t = from_channel(t, split);
    split = 0;
  }
  const bool channels_inner = arrange(tensors);
  with_float(o.dtype, [&]<class T>(Type<T>) {
    constexpr int most = 16 / sizeof(T);
    const bool packed = in_packs(o, most) && in_packs(f, most) && in_packs_or_broadcast(a, most) &&
                        in_packs_or_broadcast(s, most) && (!channels_inner || split % most == 0);
    with_factor<T>(a.dtype, s.dtype, packed, [&]<class S, int packs, int n>(Type<S>, Count<packs>, Count<n>) {
      launch_rows(transform_kernel<T, S, packs, packs * n>, packs, n, channels_inner, split, stream, o, f, a, s);
    });
  });
}

void check_same_dtype(const Tensor& grad, const Tensor& features) {
  if (grad.dtype != features.dtype)
    throw std::invalid_argument("channel_split_transform_backward: expected grad of the features' dtype");
}

void transform_backward(Optional grad_features, Optional product, const Tensor& grad, const Tensor& features,
                        const Tensor& scale, int64_t split, int64_t stream) {
  check_same_dtype(grad, features);
  Tensor tensors[] = {grad, features, from_channel(scale, -split), or_none(grad_features),
                      from_channel(or_none(product), -split)};
  auto& [g, f, a, to, p] = tensors;
  if (!to.data) {  // only the product is wanted: the channels that pass have none
    for (Tensor& t : tensors) t = from_channel(t, split);
    split = 0;
  }
  const bool channels_inner = arrange(tensors);
  with_float(g.dtype, [&]<class T>(Type<T>) {
    constexpr int most = 16 / sizeof(T);
    const bool packed = in_packs(g, most) && in_packs(f, most) && in_packs_or_broadcast(a, most) &&
                        in_packs(to, most) && in_packs(p, most) && (!channels_inner || split % most == 0);
    with_factor<T>(a.dtype, a.dtype, packed, [&]<class S, int packs, int n>(Type<S>, Count<packs>, Count<n>) {
      const auto start = [&]<class P>(Type<P>) {
        const auto kernel = backward_kernel<T, S, P, packs, packs * n>;
        launch_rows(kernel, packs, n, channels_inner, split, stream, g, f, a, to, p);
      };
      if constexpr (std::is_void_v<S>) start(Type<void>{});
      else if (!p.data || p.dtype == dtype_of<S>) start(Type<S>{});
      else start(Type<float>{});
    });
  });
}

// For tensors whose rows follow each other without a gap.
void transform_backward_sums(Optional grad_features, Optional scale_sums, Optional shift_sums, const Tensor& grad,
                             const Tensor& features, const Tensor& scale, int64_t split, int64_t stream) {
  check_same_dtype(grad, features);
  Tensor tensors[] = {grad, features, from_channel(scale, -split), or_none(grad_features)};
  auto& [g, f, a, to] = tensors;
  join_rows(tensors);
  if (g.shape[2] != 1) throw std::invalid_argument("channel_split_transform_backward_sums: expected joined rows");
  const Pixels shares(1, g.shape[0], g.shape[1], (scale_sums ? scale_sums : shift_sums)->shape[2]);
  with_float(g.dtype, [&]<class T>(Type<T>) {
    const auto start = [&]<int n>(Count<n>) {
      const int64_t share = (g.shape[3] / n + shares.width - 1) / shares.width * n;
      launch(sums_kernel<T, n>, shares, {.threads = threads, .shared_bytes = threads / 32 * 8}, g, stream, share, to,
             or_none(scale_sums), or_none(shift_sums), g, f, a, split);
    };
    constexpr int n = 16 / sizeof(T);
    in_packs(g, n) && in_packs(f, n) && in_packs(to, n) ? start(Count<n>{}) : start(Count<1>{});
  });
}

}  // namespace

extern constinit const Kernel FASTENH_TABLE[] = {
    kernel<&transform>("channel_split_transform"),
    kernel<&transform_backward>("channel_split_transform_backward"),
    kernel<&transform_backward_sums>("channel_split_transform_backward_sums"),
    {},
};

}  // namespace fastenh
