"""What the op families share: registration with PyTorch, gradients, `out=`, and the choice of code.

An op brings a schema, a check that gives the output's shape, a reference in plain PyTorch, and the call of its kernels.
`Op` makes of them three registered operators:

    fastenh::f(...) -> Tensor                            differentiable, through
    fastenh::f_backward(grad, ..., needs) -> Tensor[]    the gradients that `needs` asks for, in the tensors' order
    fastenh::f.out(..., *, out) -> ()                    fills `out`

all with a fake version for torch.compile and torch.export that allocates by the same line as the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastenh import backends

LIBRARY = torch.library.Library("fastenh", "DEF")
FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS_AND_INTEGERS = (*FLOATS, *FULL_SCALE)


class Op:
    """One op family.

    name, arguments: as in a schema, tensors first: "Tensor image, Tensor curves, int iterations".
    shape(*args): raises ValueError or TypeError on bad arguments (what, expected, got); the output's shape.
    reference(*args): the result in plain PyTorch, any device, differentiable any number of times.
    run(kernels, out, *args): fills `out` with the kernels of one backend.
    run_backward(kernels, gradients, grad, *args): fills those of `gradients` (one a tensor argument) that are not None;
        None where the reference's gradients do.
    pointwise: whether an output pixel depends on the same pixel alone, so that `out` may be the first argument.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        *,
        shape: Callable[..., Sequence[int]],
        reference: Callable[..., Tensor],
        run: Callable[..., None],
        run_backward: Callable[..., None] | None,
        pointwise: bool,
    ) -> None:
        self.name, self.shape, self.reference, self.pointwise = name, shape, reference, pointwise
        self.run, self.run_backward = run, run_backward
        kinds = [argument.split()[0] for argument in arguments.split(",")]
        self.tensors = sum(kind.startswith("Tensor") for kind in kinds)
        self.option_types = tuple({"int": int, "str": str}[kind] for kind in kinds[self.tensors :])

        def implement(qualified: str, signature: str, real: Callable[..., Any], fake: Callable[..., Any]) -> None:
            def in_reverse_mode(function: Callable[..., Any]) -> Callable[..., Any]:
                def checked(*args: Any, **out: Tensor) -> Any:
                    if forward_ad._current_level >= 0:  # under torch.func nothing here tells whose derivative is meant
                        raise RuntimeError(
                            f"torch.ops.fastenh.{qualified} has no forward-mode derivative; "
                            f"fastenh.ops.{name} has, without out= and outside torch.compile"
                        )
                    return function(*args, **out)

                return checked

            LIBRARY.define(qualified + signature, tags=torch.Tag.pt2_compliant_tag)
            LIBRARY.impl(qualified, in_reverse_mode(real), "CompositeExplicitAutograd")
            torch.library.register_fake(f"fastenh::{qualified}", in_reverse_mode(fake), lib=LIBRARY)

        implement(name, f"({arguments}) -> Tensor", self._forward, self._allocate)
        implement(f"{name}.out", f"({arguments}, *, Tensor(a!) out) -> ()", self._fill_out, self._fake_out)
        backward = f"{name}_backward"
        implement(
            backward,
            f"(Tensor grad, {arguments}, bool[] needs) -> Tensor[]",
            self._backward,
            lambda grad, *args: [g for g in self._allocate_gradients(grad, args[:-1], args[-1]) if g is not None],
        )
        torch.library.register_autograd(
            f"fastenh::{name}", self._differentiate, setup_context=self._remember, lib=LIBRARY
        )
        torch.library.register_autograd(f"fastenh::{backward}", self._no_second_derivative, lib=LIBRARY)
        self.operator = getattr(torch.ops.fastenh, name).default
        self.operator_out = getattr(torch.ops.fastenh, name).out
        self.operator_backward = getattr(torch.ops.fastenh, backward).default
        # What register_autograd makes of the same two functions, for calls that need no dispatcher.
        functions = {"forward": staticmethod(self._remembering_forward), "backward": staticmethod(self._differentiate)}
        self.function: type[torch.autograd.Function] = type(name, (torch.autograd.Function,), functions)

    def __call__(self, *args: Any, out: Tensor | None = None) -> Tensor:
        tensors = args[: self.tensors]
        all_tensors = tensors if out is None else (*tensors, out)
        direct = nothing_to_dispatch(all_tensors)
        if direct and not gradient_wanted(all_tensors):
            if out is None:
                return self._forward(*args)
            self._check_and_fill(args, out)
            return out
        options = args[self.tensors :]
        if not all(t is None or isinstance(t, Tensor) for t in tensors) or not all(
            isinstance(option, kind) for option, kind in zip(options, self.option_types, strict=True)
        ):
            self.shape(*args)  # raises
        if out is None:
            if self._needs_reference(args):
                return self._reference_checked(*args)
            return self.function.apply(*args) if direct else self.operator(*args)
        check_is_tensor(self.name, "out", out)
        self._refuse_gradients(args, out)
        self.operator_out(*args, out=out)
        return out

    # ---- which code ----

    def _needs_reference(self, args: Sequence[Any]) -> bool:
        """The reference is differentiable in every way; the operators once, in reverse, outside torch.func."""
        if torch.compiler.is_compiling():
            return backends.chosen() == "reference"
        return (
            backends.chosen() == "reference"
            or torch._C._functorch.peek_interpreter_stack() is not None
            or forward_ad._current_level >= 0
            or any(t is not None and t.dtype is torch.float64 for t in args[: self.tensors])
        )

    def _refuse_gradients(self, args: Sequence[Any], out: Tensor) -> None:
        tensors = [t for t in (*args[: self.tensors], out) if t is not None]
        if gradient_wanted(tensors) or (
            forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
        ):
            raise ValueError(f"{self.name}: out= cannot be differentiated; expected tensors without grad, or no out=")

    def _reference_checked(self, *args: Any) -> Tensor:
        self.shape(*args)
        return self.reference(*args)

    def _kernels(self, args: Sequence[Any]) -> backends.Kernels | None:
        for t in args[: self.tensors]:
            if t is not None and t.dtype is torch.float64:
                return None
        return backends.kernels(self.name, args[0].device)

    # ---- forward ----

    def _allocate(self, *args: Any) -> Tensor:
        first, shape = args[0], self.shape(*args)
        if shape == first.shape:
            return torch.empty_like(first)
        channels_last = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=memory_format)

    def _forward(self, *args: Any) -> Tensor:
        out = self._allocate(*args)
        self._fill(out, args)
        return out

    def _fill(self, out: Tensor, args: Sequence[Any]) -> None:
        kernels = self._kernels(args)
        if kernels is None:
            out.copy_(self.reference(*args))
        else:
            self.run(kernels, out, *args)

    def _fill_out(self, *args: Any, out: Tensor) -> None:
        self._refuse_gradients(args, out)
        self._check_and_fill(args, out)

    def _check_and_fill(self, args: Sequence[Any], out: Tensor) -> None:
        self._check_out(args, out)
        self._fill(out, args)
        if not out.is_inference():  # who saved `out` for a gradient learns that it has changed
            torch.autograd.graph.increment_version(out)

    def _fake_out(self, *args: Any, out: Tensor) -> None:
        self._check_out_kind(args, out)

    def _check_out_kind(self, args: Sequence[Any], out: Tensor) -> None:
        shape, first = self.shape(*args), args[0]
        if out.shape != shape or out.dtype != first.dtype or out.device != first.device:
            expected, got = describe(shape, first.dtype, first.device), describe(out.shape, out.dtype, out.device)
            raise ValueError(f"{self.name}: out: expected {expected}; got {got}")

    def _check_out(self, args: Sequence[Any], out: Tensor) -> None:
        self._check_out_kind(args, out)
        if not out.is_contiguous():
            span = 1
            for stride, size in sorted(zip(out.stride(), out.shape, strict=True)):
                if size > 1:
                    if stride < span:
                        raise ValueError(f"{self.name}: out: expected every element in a place of its own; got strides "
                                         f"{tuple(out.stride())} for shape {tuple(out.shape)}")  # fmt: skip
                    span += stride * (size - 1)
        start, end = memory_range(out)
        for i, t in enumerate(args[: self.tensors]):
            if t is None:
                continue
            low, high = memory_range(t)
            if low < end and start < high:
                same = low == start and t.shape == out.shape and t.stride() == out.stride()
                if same and i == 0 and self.pointwise:
                    continue
                allowed = "memory of its own, or exactly the first argument" if self.pointwise else "memory of its own"
                raise ValueError(f"{self.name}: out: expected {allowed}; got one that overlaps argument {i + 1}")

    # ---- backward ----

    def _remember(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
        ctx.save_for_backward(*inputs[: self.tensors])
        ctx.options = inputs[self.tensors :]

    def _remembering_forward(self, ctx: Any, *args: Any) -> Tensor:
        self._remember(ctx, args, None)
        return self._forward(*args)

    def _differentiate(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = self._gradients(
            grad, (*ctx.saved_tensors, *ctx.options), list(ctx.needs_input_grad[: self.tensors])
        )
        return *gradients, *(None for _ in ctx.options)

    def _gradients(self, grad: Tensor, args: Sequence[Any], needs: Sequence[bool]) -> list[Tensor | None]:
        if is_batched(grad):
            return self._reference_gradients(grad, args, needs)
        direct = nothing_to_dispatch((grad, *args[: self.tensors])) and not torch.is_grad_enabled()
        found = iter((self._backward if direct else self.operator_backward)(grad, *args, needs))
        return [next(found) if need else None for need in needs]

    def _no_second_derivative(self, ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"fastenh::{self.name} has no second derivatives; take them under `with fastenh.backend('reference'):`"
        )

    def _allocate_gradients(self, grad: Tensor, args: Sequence[Any], needs: Sequence[bool]) -> list[Tensor | None]:
        check_tensor(f"{self.name}_backward", "grad", grad, self.shape(*args), args[0])
        return [torch.empty_like(t) if need else None for t, need in zip(args[: self.tensors], needs, strict=True)]

    def _backward(self, grad: Tensor, *args_and_needs: Any) -> list[Tensor]:
        *args, needs = args_and_needs
        gradients = self._allocate_gradients(grad, args, needs)
        kernels = self._kernels(args)
        if kernels is None or self.run_backward is None or f"{self.name}_backward" not in kernels:
            for gradient, value in zip(gradients, self._reference_gradients(grad, args, needs), strict=True):
                if gradient is not None and value is not None:
                    gradient.copy_(value)
        else:
            self.run_backward(kernels, gradients, grad, *args)
        return [gradient for gradient in gradients if gradient is not None]

    def _reference_gradients(self, grad: Tensor, args: Sequence[Any], needs: Sequence[bool]) -> list[Tensor | None]:
        """PyTorch's own gradients of the reference."""
        wanted = [i for i, need in enumerate(needs) if need]

        def function(*tensors: Tensor) -> Tensor:
            inner = list(args)
            for i, t in zip(wanted, tensors, strict=True):
                inner[i] = t
            return self.reference(*inner)

        found = iter(torch.func.vjp(function, *(args[i].detach() for i in wanted))[1](grad))
        return [next(found) if need else None for need in needs]


# ---- PyTorch's dispatcher ----

PLAIN_TYPES = (Tensor, torch.nn.Parameter)
PLAIN_KEYS = 0
for _key in ("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA", "ADInplaceOrView",
             "BackendSelect"):  # fmt: skip
    PLAIN_KEYS |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key)).raw_repr()


def nothing_to_dispatch(tensors: Sequence[Any]) -> bool:
    """Whether PyTorch's dispatcher, autograd apart, would only pass these tensors on to an operator's own code.

    Then that code is called without it, which saves half the host time of a call. Every layer of the dispatcher shows
    as a key of a tensor or of the thread: modes and fake tensors, tracing, torch.func, functionalisation, lazy
    negation, other devices. Those in PLAIN_KEYS have nothing to do for these operators; autograd has where a gradient
    is wanted. Beside the keys stand __torch_function__, of a type or a mode; forward-mode derivatives; and who looks
    on: the compiler, which must see an operator, and the profiler, which shows one.
    """
    if (
        torch.compiler.is_compiling()
        or torch.autograd.profiler._is_profiler_enabled
        or torch._C._len_torch_function_stack()
        or torch._C._dispatch_tls_local_include_set().raw_repr() | PLAIN_KEYS != PLAIN_KEYS
    ):
        return False
    for t in tensors:
        if t is not None and (
            type(t) not in PLAIN_TYPES
            or torch._C._dispatch_keys(t).raw_repr() | PLAIN_KEYS != PLAIN_KEYS
            or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None)
        ):
            return False
    return True


def gradient_wanted(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def is_batched(t: Tensor) -> bool:
    """Whether vmap batches `t`: torch.vmap, or the older one of is_grads_batched and jacobian(vectorize=True)."""
    return torch._C._functorch.is_batchedtensor(t) or torch._C._functorch.is_legacy_batchedtensor(t)


# ---- what references and checks are written with ----


def to_float(image: Tensor, *others: Tensor | None) -> Tensor:
    """The image as float32 (float64 if any of the tensors is), integers divided by their full scale."""
    double = any(t is not None and t.dtype is torch.float64 for t in (image, *others))
    x = image.to(torch.float64 if double else torch.float32)
    return x / FULL_SCALE[image.dtype] if image.dtype in FULL_SCALE else x


def from_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Back to the image's dtype; integers clamped to [0, 1], times full scale, rounded to nearest, NaN to 0."""
    if dtype in FULL_SCALE:
        return (x.nan_to_num(0.0).clamp(0, 1) * FULL_SCALE[dtype]).round().to(dtype)
    return x.to(dtype)


def memory_range(t: Tensor) -> tuple[int, int]:
    """First byte and one past the last byte that a tensor with non-negative strides touches."""
    start = t.data_ptr()
    if t.is_contiguous():
        return start, start + t.nbytes
    last = sum(stride * (size - 1) for stride, size in zip(t.stride(), t.shape, strict=True))
    return start, start + (last + 1) * t.element_size()


def describe(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')} on {device}"


def check_is_tensor(op: str, name: str, t: object) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name}: expected a torch.Tensor; got {type(t).__name__}")
    if t.layout is not torch.strided:
        raise TypeError(f"{op}: {name}: expected a dense tensor; got one of layout {t.layout}")


def check_int(op: str, name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{op}: {name}: expected an int; got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{op}: {name}: expected {low} to {high}; got {value}")


def check_image(op: str, image: Tensor, *, integers: bool = True) -> None:
    """Raises unless `image` is (B, 3, H, W), not empty, of a dtype that the op takes."""
    check_is_tensor(op, "image", image)
    if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"{op}: image: expected shape (B, 3, H, W) with B, H, W >= 1; got {tuple(image.shape)}")
    check_dtype(op, "image", image, FLOATS_AND_INTEGERS if integers else FLOATS)


def check_dtype(op: str, name: str, t: Tensor, allowed: Sequence[torch.dtype] = FLOATS) -> None:
    if t.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{op}: {name}: expected one of {names}; got {str(t.dtype).removeprefix('torch.')}")


def check_tensor(op: str, name: str, t: Tensor, shape: Sequence[int | str], image: Tensor) -> None:
    """Raises unless `t` is a float tensor on the image's device of this shape (a letter stands for any size >= 1)."""
    check_is_tensor(op, name, t)
    fits = t.dim() == len(shape)
    for size, expected in zip(t.shape, shape, strict=False):
        fits = fits and (size >= 1 if isinstance(expected, str) else size == expected)
    if not fits:
        expected_shape = "(" + ", ".join(map(str, shape)) + ")"
        raise ValueError(f"{op}: {name}: expected shape {expected_shape}; got {tuple(t.shape)}")
    check_dtype(op, name, t)
    if t.device != image.device:
        raise ValueError(f"{op}: {name}: expected device {image.device}, as the first argument; got {t.device}")
