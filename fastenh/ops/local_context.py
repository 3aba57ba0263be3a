"""local_context_retouch: LUTs weighted at every pixel by its local context (LAM), in one pass over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.backends import Kernels
from fastenh.ops import context, lut
from fastenh.ops.op import Op, check_image, check_is_tensor, check_tensor, from_float, to_float


class LocalContextParams(NamedTuple):
    """The four convolutions of LAM: weights and biases in the layout of `nn.Conv2d`, of any float dtype."""

    features_weight: Tensor  # (F, 3, k, k), k = 3, 5 or 7
    features_bias: Tensor  # (F,)
    attention_weight: Tensor  # (k², F, 1, 1)
    attention_bias: Tensor  # (k²,)
    hidden_weight: Tensor  # (V, 3·k², 1, 1)
    hidden_bias: Tensor  # (V,)
    head_weight: Tensor  # (N, V, 1, 1)
    head_bias: Tensor  # (N,)


def local_context_retouch(
    image: Tensor, luts: Tensor, weights: Tensor | None, params: Sequence[Tensor], *, out: Tensor | None = None
) -> Tensor:
    """Retouches with N LUTs, which are weighted per image and, from the pixel's neighbourhood, per pixel.

        f = ReLU(conv k×k(x))                      context features, F channels
        a = softmax over k² of conv 1×1(f)         the pixel's attention to its neighbours
        v = the neighbours, each times its attention, as in `context_voxels`
        w = conv 1×1(ReLU(conv 1×1(v)))            N weights per pixel, through V hidden channels
        out(p) = Σₙ weights[b, n] · wₙ(p) · LUTₙ(x(p)), trilinear, as in `lut_transform`

    This is the local-context aware module of "Learning Pixel-Adaptive Weights for Portrait Photo Retouching". Outside
    the image, colours are 0; the softmax gives attention to these neighbours like to any others. The image is read once
    and the result written once: features, attention, voxels and weights never reach memory.

    Args:
        image: (B, 3, H, W) RGB in [0, 1], float16, bfloat16, float32, float64, or uint8 and uint16 at full scale; any
            strides.
        luts: (N, 3, D, D, D), or (B, N, 3, D, D, D) with separate LUTs for each image; 2 <= D <= 256.
        weights: (B, N), or (1, N) for all images, or None for ones.
        params: the eight tensors of `LocalContextParams`.
        out: the tensor to write to, with the shape and dtype of `image`, in separate memory.

    Arithmetic is in float32, except on a GPU for float16, bfloat16 and uint8 images: there layers and LUT entries are
    float16, and none may exceed 65504. Two cases are slower on a GPU: compiled CUDA computes layers much wider than the
    paper's in float32, and Triton runs a 7 x 7 window layer by layer.

    Returns:
        Shape, dtype and memory format of `image`. Floats are not clamped; integers are clamped and rounded to nearest.
        Differentiable in all tensors, but layer by layer, with as much memory as the composed operations take.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype or device, in one line: what, expected, got.
    """
    if len(params) != len(LocalContextParams._fields):
        raise ValueError(f"local_context_retouch: params: expected 8 tensors, as LocalContextParams; got {len(params)}")
    return _op(Arguments(image, luts, weights, *params), out=out)


class Arguments(NamedTuple):
    image: Tensor
    luts: Tensor
    weights: Tensor | None
    features_weight: Tensor  # from here on `LocalContextParams`
    features_bias: Tensor
    attention_weight: Tensor
    attention_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    head_weight: Tensor
    head_bias: Tensor


def _shape(args: Arguments) -> Sequence[int]:
    op = "local_context_retouch"
    image, luts, weights, *params = args
    p = LocalContextParams(*params)
    check_image(op, image)
    check_is_tensor(op, "params.features_weight", p.features_weight)
    k = p.features_weight.shape[-1] if p.features_weight.dim() else 0
    if k not in (3, 5, 7):
        raise ValueError(
            f"{op}: params.features_weight: expected shape (F, 3, k, k) with k = 3, 5 or 7; "
            f"got {tuple(p.features_weight.shape)}"
        )
    check_tensor(op, "params.features_weight", p.features_weight, ("F", 3, k, k), image)
    check_is_tensor(op, "params.hidden_weight", p.hidden_weight)
    check_tensor(op, "params.hidden_weight", p.hidden_weight, ("V", 3 * k * k, 1, 1), image)
    features, hidden = p.features_weight.shape[0], p.hidden_weight.shape[0]
    check_is_tensor(op, "params.head_bias", p.head_bias)
    check_tensor(op, "params.head_bias", p.head_bias, ("N",), image)
    count = p.head_bias.shape[0]
    expected = {
        "features_bias": (features,),
        "attention_weight": (k * k, features, 1, 1),
        "attention_bias": (k * k,),
        "hidden_bias": (hidden,),
        "head_weight": (count, hidden, 1, 1),
    }
    for name, shape in expected.items():
        check_tensor(op, f"params.{name}", getattr(p, name), shape, image)
    lut.check_luts(op, luts, image, count)
    if weights is not None:
        check_tensor(op, "weights", weights, (image.shape[0], count), image, shared=True)
    return image.shape


def _reference(args: Arguments) -> Tensor:
    image, luts, weights, *params = args
    x = to_float(*args)
    p = LocalContextParams(*(t.to(x.dtype) for t in params))
    k = p.features_weight.shape[-1]

    def layer(weight: Tensor, bias: Tensor, channels: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", weight.flatten(1), channels) + bias[:, None, None]

    ones = torch.ones_like(x[:, :1]).expand(-1, k * k, -1, -1)
    neighbours = context.reference(context.Arguments(x, ones, k))
    features = F.relu(layer(p.features_weight, p.features_bias, neighbours))
    attention = layer(p.attention_weight, p.attention_bias, features).softmax(1)
    voxels = (neighbours.unflatten(1, (3, -1)) * attention[:, None]).flatten(1, 2)
    pixel_weights = layer(p.head_weight, p.head_bias, F.relu(layer(p.hidden_weight, p.hidden_bias, voxels)))
    blend = lut.Arguments(x, luts, weights, pixel_weights, None, "trilinear")
    return from_float(lut.reference(blend), image.dtype)


def _run(kernels: Kernels, out: Tensor, args: Arguments) -> None:
    image, luts, weights, *params = args
    p = LocalContextParams(*(t.float().contiguous() for t in params))
    k, cuda = p.features_weight.shape[-1], "local_context_pack" in kernels
    if kernels.gpu and not cuda and k == 7:  # Triton would compile for minutes
        out.copy_(_reference(args))
        return
    half = kernels.gpu and image.dtype in (torch.float16, torch.bfloat16, torch.uint8)
    words = _packed_words(p)
    tensor_cores = half and cuda and words <= _max_words(k)
    tables = lut.pack(
        kernels, luts, None, True, torch.float16 if tensor_cores or (half and not cuda) else torch.float32
    )
    factors = None if weights is None else weights.float().contiguous()
    if tensor_cores:
        packed = torch.empty((image.shape[0], words), dtype=torch.float32, device=image.device)
        kernels["local_context_pack"](packed, factors, *p)
        widths = (p.features_bias.shape[0], p.hidden_bias.shape[0], p.head_bias.shape[0])
        kernels["local_context_retouch_half"](out, image, tables, packed, k, *widths)
    else:
        kernels["local_context_retouch"](out, image, tables, factors, *p)


def _max_words(kernel_size: int) -> int:
    """How many words of packed layers fit beside a tile of pixels in 99 KB of shared memory, as on GPUs since 2020."""
    return {3: 9_500, 5: 16_800, 7: 20_700}[kernel_size]


def _packed_words(p: LocalContextParams) -> int:
    """How many words of 4 bytes csrc/local_context.cu packs the layers into for tensor cores."""
    steps = (p.features_weight.shape[-1] ** 2 - 1) // 4
    features, hidden = (-(-bias.shape[0] // 32) * 2 for bias in (p.features_bias, p.hidden_bias))
    scores, panels = steps // 2, -(-p.head_bias.shape[0] // lut.LUTS_PER_PANEL)
    fragments = features * (2 * steps + scores) + hidden * (2 * steps + panels)
    return 64 * fragments + 8 * (scores + panels)


_op = Op(
    "local_context_retouch",
    Arguments,
    shape=_shape,
    reference=_reference,
    run=_run,
    run_backward=None,  # the reference's gradients, layer by layer
    pointwise=False,
    dims=(4, 6, 2, *(0 for _ in LocalContextParams._fields)),
)
