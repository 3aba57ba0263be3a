"""channel_split_transform: half of the channels pass, the other half are scaled and shifted (GFP-GAN's CS-SFT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastenh.backends import Kernels
from fastenh.ops.op import Op, check_dtype, check_float, check_int, check_is_tensor, to_float

SHARE = 8192  # pixels over which one block of a GPU sums a gradient


def channel_split_transform(
    features: Tensor, scale: Tensor, shift: Tensor, split: int | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Passes the first `split` channels unchanged and maps the others to features·scale + shift.

        out[:, c] = features[:, c]                                          for c < split
        out[:, c] = features[:, c] · scale[:, c-split] + shift[:, c-split]  for c >= split

    This is the channel-split spatial feature transform of GFP-GAN (Wang et al., CVPR 2021, eq. 4).

    Args:
        features: (B, C, H, W), float16, bfloat16, float32 or float64, any strides.
        scale, shift: (B, C - split, H, W) or broadcastable to it, any float dtype. Arithmetic is in float32. As always
            in PyTorch, missing dimensions are the leading ones: one number per channel is (C - split, 1, 1).
        split: number of channels that pass, 0 <= split <= C. Default C // 2.
        out: the tensor to write to, with the shape and dtype of `features`; may be `features` itself.

    Returns:
        Shape, dtype and memory format of `features`. Differentiable in `features`, `scale` and `shift`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype or device, in one line: what, expected, got.
    """
    if split is None:
        if not isinstance(features, Tensor) or features.dim() != 4:
            _shape(Arguments(features, scale, shift, 0))
        split = int(features.shape[1]) // 2  # a Tensor under torch.jit.trace, a SymInt under dynamic shapes
    return _op(Arguments(features, scale, shift, split), out=out)


class Arguments(NamedTuple):
    features: Tensor
    scale: Tensor
    shift: Tensor
    split: int


def _shape(args: Arguments) -> Sequence[int]:
    features, scale, shift, split = args
    op = "channel_split_transform"
    check_is_tensor(op, "features", features)
    if features.dim() != 4 or 0 in features.shape:
        raise ValueError(f"{op}: features: expected shape (B, C, H, W), all >= 1; got {tuple(features.shape)}")
    check_dtype(op, "features", features)
    check_int(op, "split", split, 0, features.shape[1])
    target = (features.shape[0], features.shape[1] - split, *features.shape[2:])
    for name, t in (("scale", scale), ("shift", shift)):
        check_is_tensor(op, name, t)
        if t.shape != target:
            sizes = (1,) * (4 - t.dim()) + tuple(t.shape)
            if len(sizes) > 4 or any(size not in (1, wanted) for size, wanted in zip(sizes, target, strict=True)):
                raise ValueError(f"{op}: {name}: expected shape {target} or broadcastable to it; got {tuple(t.shape)}")
        check_float(op, name, t, features)
    return features.shape


def _reference(args: Arguments) -> Tensor:
    features, scale, shift, split = args
    x = to_float(features, scale, shift)
    transformed = x[:, split:] * scale.to(x.dtype) + shift.to(x.dtype)
    return torch.cat([features[:, :split], transformed.to(features.dtype)], dim=1)


def _expanded(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    return t if t.shape == shape else t.expand(shape)


def _run(kernels: Kernels, out: Tensor, args: Arguments) -> None:
    features, scale, shift, split = args
    target = (out.shape[0], out.shape[1] - split, *out.shape[2:])
    kernels["channel_split_transform"](out, features, _expanded(scale, target), _expanded(shift, target), split)


def _run_backward(kernels: Kernels, gradients: Sequence[Tensor | None], grad: Tensor, args: Arguments) -> None:
    features, scale, shift, split = args
    grad_features, grad_scale, grad_shift = gradients
    target = (grad.shape[0], grad.shape[1] - split, *grad.shape[2:])
    full_scale = _expanded(scale, target)
    per_channel = [t if t is not None and _is_per_channel(t) else None for t in (grad_scale, grad_shift)]
    if (
        "channel_split_transform_backward_sums" in kernels
        and any(t is not None for t in per_channel)
        and _is_per_channel(scale)
        and grad.is_contiguous()
        and features.is_contiguous()
    ):
        shape = (*target[:2], -(-grad.shape[2] * grad.shape[3] // SHARE))
        sums = [None if t is None else grad.new_empty(shape, dtype=torch.float32) for t in per_channel]
        kernels["channel_split_transform_backward_sums"](grad_features, *sums, grad, features, full_scale, split)
        for gradient, partial_sums in zip(per_channel, sums, strict=True):
            if gradient is not None and partial_sums is not None:
                gradient.copy_(partial_sums.sum(2)[..., None, None].sum_to_size(gradient.shape))
        grad_features = grad_scale = None
        grad_shift = grad_shift if per_channel[1] is None else None
    product = grad_scale
    if grad_scale is not None and grad_scale.shape != target:  # scale was broadcast: sum the full product
        product = torch.empty(target, dtype=torch.float32, device=grad.device)
    if grad_features is not None or product is not None:
        kernels["channel_split_transform_backward"](grad_features, product, grad, features, full_scale, split)
    if grad_scale is not None and product is not None and product is not grad_scale:
        grad_scale.copy_(product.sum_to_size(scale.shape))
    if grad_shift is not None:
        grad_shift.copy_(_sum_to_size(grad[:, split:], shift.shape))


def _is_per_channel(t: Tensor) -> bool:
    return all(size == 1 for size in t.shape[-2:])


def _sum_to_size(t: Tensor, shape: Sequence[int]) -> Tensor:
    """t.sum_to_size(shape) in float32, without a copy in float32."""
    sizes = (1,) * (t.dim() - len(shape)) + tuple(shape)
    dims = [dim for dim in range(t.dim()) if sizes[dim] != t.shape[dim]]
    return (t.sum(dims, keepdim=True, dtype=torch.float32) if dims else t).reshape(shape)


class _ChannelSplit(Op):
    def _expanded(self, args: Any) -> Any:
        return args  # _run and _run_backward broadcast every dimension

    def _gradients(self, grad: Tensor, args: Any, needs: Sequence[bool]) -> list[Tensor | None]:
        """The gradient of a shift that is not broadcast is a view of the output's gradient, as in autograd itself."""
        _, _, shift, split = args
        grad_shift = grad[:, split:]
        if not needs[2] or grad_shift.shape != shift.shape or grad_shift.dtype != shift.dtype:
            return super()._gradients(grad, args, needs)
        others = [*needs[:2], False]
        gradients = super()._gradients(grad, args, others) if any(others) else [None, None, None]
        return [*gradients[:2], grad_shift]


_op = _ChannelSplit(
    "channel_split_transform",
    Arguments,
    shape=_shape,
    reference=_reference,
    run=_run,
    run_backward=_run_backward,
    pointwise=True,
    dims=(4, 4, 4),
)
