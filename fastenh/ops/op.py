"""What all ops share: registration with PyTorch, gradients, `out=`, and the choice of backend.

An op supplies a NamedTuple of its arguments, a check that returns the output's shape, a reference in plain PyTorch, and
functions that call its kernels. `Op` registers three operators for it:

    fastenh::f(...) -> Tensor                            differentiable; its gradients come from
    fastenh::f_backward(grad, ..., needs) -> Tensor[]    the gradients that `needs` asks for, in the tensors' order
    fastenh::f.out(..., *, out) -> ()                    fills `out`

Each has a fake version for torch.compile and torch.export, which allocates with the same code as the real one.

The kernels also run under torch.func: `vmap` folds the mapped dimension into the batch, and `grad` and everything built
on it (vjp, jacrev, per-sample gradients) use the compiled gradients. Forward mode (jvp, jacfwd, hessian) and second
derivatives fall back to the reference automatically.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from fastenh import backends

LIBRARY = torch.library.Library("fastenh", "DEF")
FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS_AND_INTEGERS = (*FLOATS, *FULL_SCALE)
SCHEMA_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", str: "str"}


class Op:
    """One op.

    name: of the operator, torch.ops.fastenh.<name>.
    arguments: a NamedTuple of the operator's arguments, tensors first. Its fields, of the types in SCHEMA_TYPES, make
        up the operator's schema. The functions below take it as `args`.
    shape(args): returns the output's shape; raises ValueError or TypeError on bad arguments (what, expected, got).
    reference(args): the result in plain PyTorch, on any device, differentiable any number of times.
    run(kernels, out, args): fills `out` with the kernels of one backend.
    run_backward(kernels, gradients, grad, args): fills each of `gradients` (one per tensor argument) that is not None.
        An op without backward kernels passes None here and gets the reference's gradients.
    pointwise: whether an output pixel depends on the same input pixel alone, so that `out` may be the first argument.
    dims: for each tensor argument, its number of dimensions when the first is the batch; 0 if it never has a batch. A
        tensor with fewer dimensions, or (where `shape` allows it) with a batch of 1, is shared by all images. The first
        argument and the result always have the batch.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[..., Any],
        *,
        shape: Callable[..., Sequence[int]],
        reference: Callable[..., Tensor],
        run: Callable[..., None],
        run_backward: Callable[..., None] | None,
        pointwise: bool,
        dims: Sequence[int],
    ) -> None:
        self.name, self.shape, self.reference, self.pointwise, self.dims = name, shape, reference, pointwise, dims
        self.run, self.run_backward, self.arguments = run, run_backward, arguments
        hints = get_type_hints(arguments)
        schema = ", ".join(f"{SCHEMA_TYPES[hint]} {argument}" for argument, hint in hints.items())
        self.option_types = tuple(hint for hint in hints.values() if hint in (int, str))
        self.tensors = len(hints) - len(self.option_types)

        def implement(qualified: str, signature: str, real: Callable[..., Any], fake: Callable[..., Any]) -> None:
            def refuse_forward_mode(function: Callable[..., Any]) -> Callable[..., Any]:
                def checked(*args: Any, **out: Tensor) -> Any:
                    if forward_ad._current_level >= 0:  # under torch.func an operator cannot see which inputs are dual
                        raise RuntimeError(
                            f"torch.ops.fastenh.{qualified} has no forward-mode derivative; "
                            f"fastenh.ops.{name} has, without out= and outside torch.compile"
                        )
                    return function(*args, **out)

                return checked

            LIBRARY.define(qualified + signature, tags=torch.Tag.pt2_compliant_tag)
            LIBRARY.impl(qualified, refuse_forward_mode(real), "CompositeExplicitAutograd")
            torch.library.register_fake(f"fastenh::{qualified}", refuse_forward_mode(fake), lib=LIBRARY)

        forward, fill_out = self._flat(self._forward), self._flat(self._fill_out)
        implement(name, f"({schema}) -> Tensor", forward, self._flat(self._allocate))
        implement(f"{name}.out", f"({schema}, *, Tensor(a!) out) -> ()", fill_out, self._flat(self._check_out_kind))
        backward, signature = f"{name}_backward", f"(Tensor grad, {schema}, bool[] needs) -> Tensor[]"
        implement(backward, signature, self._backward, self._fake_backward)
        self.operator = getattr(torch.ops.fastenh, name).default
        self.operator_out = getattr(torch.ops.fastenh, name).out
        self.operator_backward = getattr(torch.ops.fastenh, backward).default

        self.function = autograd_function(name, self._setup_context, self._differentiate)
        function_backward = autograd_function(backward, self._setup_context_backward, self._differentiate_backward)
        register_autograd(self.operator, self.function)
        register_autograd(self.operator_backward, function_backward)
        torch.library.register_vmap(self.operator, self._vmap, lib=LIBRARY)
        torch.library.register_vmap(self.operator_backward, self._vmap_backward, lib=LIBRARY)

    def __call__(self, args: Any, out: Tensor | None = None) -> Tensor:
        tensors = args[: self.tensors]
        all_tensors = tensors if out is None else (*tensors, out)
        direct = can_skip_dispatcher(all_tensors)
        if direct and not gradient_wanted(all_tensors):
            if out is None:
                return self._forward(args)
            self._check_and_fill(args, out)
            return out
        if direct and out is None and not self._needs_reference(args):
            return self.function.apply(lambda *_: self._forward(args), *args)
        options = args[self.tensors :]
        if not all(t is None or isinstance(t, Tensor) for t in tensors) or not all(
            isinstance(option, kind) for option, kind in zip(options, self.option_types, strict=True)
        ):
            self.shape(args)  # raises
        if out is None:
            if self._needs_reference(args):
                self.shape(args)
                return self.reference(args)
            if torch._C._functorch.peek_interpreter_stack() is not None:
                self.shape(args)  # names the caller's shapes in errors; under torch.func the operator sees larger ones
            return self.operator(*args)
        check_is_tensor(self.name, "out", out)
        self._refuse_gradients(args, out)
        self.operator_out(*args, out=out)
        return out

    def _flat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(args)` called as `function(*args)`, as the dispatcher and autograd call it."""
        return lambda *args, **out: function(self.arguments(*args), **out)

    # ---- choice of backend ----

    def _needs_reference(self, args: Sequence[Any]) -> bool:
        """Whether only the reference can run this: the kernels have no forward mode and no float64."""
        if torch.compiler.is_compiling():
            return backends.chosen() == "reference"
        return (
            backends.chosen() == "reference"
            or forward_ad._current_level >= 0
            or any(t is not None and t.dtype is torch.float64 for t in args[: self.tensors])
        )

    def _refuse_gradients(self, args: Sequence[Any], out: Tensor) -> None:
        tensors = [t for t in (*args[: self.tensors], out) if t is not None]
        if gradient_wanted(tensors) or (
            forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
        ):
            raise ValueError(f"{self.name}: out= cannot be differentiated; expected tensors without grad, or no out=")

    def _kernels(self, args: Sequence[Any]) -> backends.Kernels | None:
        for t in args[: self.tensors]:
            if t is not None and t.dtype is torch.float64:
                return None
        return backends.kernels(self.name, args[0].device)

    # ---- forward ----

    def _allocate(self, args: Any) -> Tensor:
        first, shape = args[0], self.shape(args)
        if shape == first.shape:
            return torch.empty_like(first)
        channels_last = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=memory_format)

    def _forward(self, args: Any) -> Tensor:
        out = self._allocate(args)
        self._fill(out, args)
        return out

    def _fill(self, out: Tensor, args: Any) -> None:
        kernels = self._kernels(args)
        if kernels is None:
            out.copy_(self.reference(args))
        else:
            self.run(kernels, out, self._expanded(args))

    def _expanded(self, args: Any) -> Any:
        """The arguments as kernels take them: what all images share, with a batch of 1, is expanded to their number."""
        images = args[0].shape[0]
        if images == 1:
            return args
        tensors = [
            t.expand(images, *t.shape[1:]) if t is not None and dims == t.dim() and t.shape[0] == 1 else t
            for t, dims in zip(args, self.dims, strict=False)
        ]
        return self.arguments(*tensors, *args[self.tensors :])

    def _fill_out(self, args: Any, out: Tensor) -> None:
        self._refuse_gradients(args, out)
        self._check_and_fill(args, out)

    def _check_and_fill(self, args: Any, out: Tensor) -> None:
        self._check_out(args, out)
        self._fill(out, args)
        if not out.is_inference():  # bump the version counter, so that autograd detects the overwrite
            torch.autograd.graph.increment_version(out)

    def _check_out_kind(self, args: Any, out: Tensor) -> None:
        shape, first = self.shape(args), args[0]
        if out.shape != shape or out.dtype != first.dtype or out.device != first.device:
            expected, got = describe(shape, first.dtype, first.device), describe(out.shape, out.dtype, out.device)
            raise ValueError(f"{self.name}: out: expected {expected}; got {got}")

    def _check_out(self, args: Any, out: Tensor) -> None:
        self._check_out_kind(args, out)
        if not out.is_contiguous():
            span = 1
            for stride, size in sorted(zip(out.stride(), out.shape, strict=True)):
                if size > 1:
                    if stride < span:
                        raise ValueError(f"{self.name}: out: expected no two elements to share memory; got strides "
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
                allowed = "separate memory, or exactly the first argument" if self.pointwise else "separate memory"
                raise ValueError(f"{self.name}: out: expected {allowed}; got one that overlaps argument {i + 1}")

    # ---- backward ----

    def _setup_context(self, ctx: Any, *args: Any) -> None:
        ctx.save_for_backward(*args[: self.tensors])
        ctx.options = args[self.tensors :]

    def _differentiate(self, ctx: Any, needs: Sequence[bool], grad: Tensor) -> list[Tensor | None]:
        args = self.arguments(*ctx.saved_tensors, *ctx.options)
        return self._gradients(grad, args, list(needs[: self.tensors]))

    def _gradients(self, grad: Tensor, args: Any, needs: Sequence[bool]) -> list[Tensor | None]:
        if can_skip_dispatcher((grad, *args[: self.tensors])) and not torch.is_grad_enabled():
            return self._compute_gradients(grad, args, needs)  # the forward pass has checked the arguments
        args = unwrap_dead_wrappers(tuple(args))  # wrappers of a torch.func.vjp that has returned since it saved them
        run: Callable[..., Sequence[Tensor]] = self.operator_backward
        if torch._C._functorch.is_legacy_batchedtensor(grad):
            run = partial(vmap_over_legacy_batch, run)
        elif forward_ad._current_level >= 0:
            return self._reference_gradients(grad, args, needs)
        found = iter(run(grad, *args, needs))
        return [next(found) if need else None for need in needs]

    def _backward(self, grad: Tensor, *args_and_needs: Any) -> list[Tensor]:
        args, needs = self.arguments(*args_and_needs[:-1]), args_and_needs[-1]
        self._check_grad(grad, args)
        return [gradient for gradient in self._compute_gradients(grad, args, needs) if gradient is not None]

    def _fake_backward(self, grad: Tensor, *args_and_needs: Any) -> list[Tensor]:
        args, needs = self.arguments(*args_and_needs[:-1]), args_and_needs[-1]
        self._check_grad(grad, args)
        return [gradient for gradient in self._allocate_gradients(args, needs) if gradient is not None]

    def _check_grad(self, grad: Tensor, args: Any) -> None:
        check_tensor(f"{self.name}_backward", "grad", grad, self.shape(args), args[0])

    def _allocate_gradients(self, args: Any, needs: Sequence[bool]) -> list[Tensor | None]:
        return [torch.empty_like(t) if need else None for t, need in zip(args[: self.tensors], needs, strict=True)]

    def _compute_gradients(self, grad: Tensor, args: Any, needs: Sequence[bool]) -> list[Tensor | None]:
        gradients = self._allocate_gradients(args, needs)
        kernels = self._kernels(args)
        if kernels is None or self.run_backward is None or f"{self.name}_backward" not in kernels:
            for gradient, value in zip(gradients, self._reference_gradients(grad, args, needs), strict=True):
                if gradient is not None and value is not None:
                    gradient.copy_(value)
            return gradients
        expanded = self._expanded(args)
        filled = [
            g if g is None or g.shape == t.shape else torch.empty(t.shape, dtype=torch.float32, device=t.device)
            for g, t in zip(gradients, expanded, strict=False)
        ]
        self.run_backward(kernels, filled, grad, expanded)
        for gradient, per_image in zip(gradients, filled, strict=True):
            if gradient is not None and per_image is not None and per_image is not gradient:
                gradient.copy_(per_image.sum_to_size(gradient.shape))
        return gradients

    def _reference_gradients(self, grad: Tensor, args: Sequence[Any], needs: Sequence[bool]) -> list[Tensor | None]:
        return vjp(self._flat(self.reference), args, needs, grad)

    # ---- second derivatives ----

    def _setup_context_backward(self, ctx: Any, *args: Any) -> None:
        ctx.save_for_backward(*args[: 1 + self.tensors])
        ctx.options = args[1 + self.tensors :]

    def _differentiate_backward(self, ctx: Any, needs: Sequence[bool], *grads: Tensor) -> list[Tensor | None]:
        """With the reference, which can be differentiated any number of times."""
        saved = unwrap_dead_wrappers(ctx.saved_tensors)
        *options, wanted = ctx.options

        def gradients(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            found = self._reference_gradients(grad, (*tensors, *options), wanted)
            return tuple(gradient for gradient in found if gradient is not None)

        return vjp(gradients, saved, needs[: 1 + self.tensors], grads)

    # ---- vmap ----

    def _vmap(self, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Tensor, int]:
        """`info.batch_size` calls as a single one on the images of all."""
        calls, images = info.batch_size, shape_per_call(args[0], in_dims[0])[0]
        mapped = list(zip(args, in_dims, self.dims, strict=False))
        if any(in_dim is not None and not dims for _, in_dim, dims in mapped):
            return torch.stack(one_by_one(self.operator, calls, in_dims, args)), 0
        tensors = [fold(*each, calls, images, False) for each in mapped]
        return self.operator(*tensors, *args[self.tensors :]).unflatten(0, (calls, images)), 0

    def _vmap_backward(self, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[list[Tensor], int]:
        calls, images = info.batch_size, shape_per_call(args[0], in_dims[0])[0]
        if 0 in self.dims:
            gradients = one_by_one(self.operator_backward, calls, in_dims, args)
            return [torch.stack(each) for each in zip(*gradients, strict=True)], 0
        needs, mapped = args[-1], list(zip(args, in_dims, (self.dims[0], *self.dims), strict=False))
        tensors = [fold(*each, calls, images, need) for each, need in zip(mapped, (False, *needs), strict=True)]
        found = iter(self.operator_backward(*tensors, *args[1 + self.tensors :]))
        wanted = [each for each, need in zip(mapped[1:], needs, strict=True) if need]
        return [unfold(gradient, *each, calls, images) for gradient, each in zip(found, wanted, strict=True)], 0


# ---- PyTorch's dispatcher ----

PLAIN_TYPES = (Tensor, torch.nn.Parameter)
PLAIN_KEYS = 0
for _key in ("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA", "ADInplaceOrView",
             "BackendSelect"):  # fmt: skip
    PLAIN_KEYS |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key)).raw_repr()


def can_skip_dispatcher(tensors: Sequence[Any]) -> bool:
    """Whether PyTorch's dispatcher, autograd aside, would only pass these tensors on to the operator's own code.

    If so, `Op` calls that code directly, which saves half the host time of a call. Every layer of the dispatcher sets a
    key on a tensor or on the thread: modes and fake tensors, tracing, torch.func, functionalisation, lazy negation,
    other devices. The keys in PLAIN_KEYS do nothing for these operators, except autograd's where a gradient is wanted.
    What has no key is checked separately: __torch_function__ of a type or a mode, forward-mode derivatives, and the
    compiler and the profiler, which need to see an operator.
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


def autograd_function(name: str, setup_context: Callable[..., None], differentiate: Callable[..., Any]) -> Any:
    """An autograd Function whose apply(run, *args) returns run(*args). `setup_context(ctx, *args)` saves what
    `differentiate(ctx, needs, *grads)` needs to compute the gradients of the arguments."""

    def forward(ctx: Any, run: Callable[..., Any], *args: Any) -> Any:
        setup_context(ctx, *args)
        result = run(*args)
        return tuple(result) if isinstance(result, list) else result

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        gradients = differentiate(ctx, needs, *grads)
        return None, *gradients, *[None] * (len(needs) - len(gradients))

    return type(name, (_SingleLevelFunction,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def register_autograd(operator: Any, function: Any) -> None:
    """Like torch.library.register_autograd, but torch.func can differentiate the operator too: it removes its own
    levels before it calls this kernel, so a Function for a single level is enough."""

    def kernel(keys: Any, *args: Any) -> Any:
        grad_mode = torch.is_grad_enabled()

        def run(*args: Any) -> Any:
            with torch.set_grad_enabled(grad_mode), torch._C._AutoDispatchBelowAutograd():  # lower levels record too
                return operator.redispatch(keys & torch._C._after_autograd_keyset, *args)

        if not gradient_wanted([t for t in args if isinstance(t, Tensor)]):
            return run(*args)
        with enable_single_level_autograd_function():
            result = function.apply(run, *args)
        return list(result) if isinstance(result, tuple) else result

    LIBRARY.impl(operator, kernel, "Autograd", with_keyset=True)


def vjp(function: Callable[..., Any], args: Sequence[Any], needs: Sequence[bool], grad: Any) -> list[Tensor | None]:
    """PyTorch's own gradients of `function(*args)` with respect to the arguments that are needed; None for others."""
    wanted = [i for i, need in enumerate(needs) if need]

    def of_wanted(*tensors: Tensor) -> Any:
        inner = list(args)
        for i, t in zip(wanted, tensors, strict=True):
            inner[i] = t
        return function(*inner)

    found = iter(torch.func.vjp(of_wanted, *(args[i] for i in wanted))[1](grad))
    return [next(found) if need else None for need in needs]


# ---- vmap ----


def vmap_over_legacy_batch(function: Callable[..., Sequence[Tensor]], grad: Tensor, *args: Any) -> list[Tensor]:
    """function(grad, *args) under torch.func.vmap, for a `grad` batched by the older vmap of is_grads_batched and
    jacobian(vectorize=True), for which operators have no rule."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    grads = torch._remove_batch_dim(grad, level, 1, 0)
    return [torch._add_batch_dim(t, 0, level) for t in torch.func.vmap(lambda grad: function(grad, *args))(grads)]


def shape_per_call(t: Tensor, in_dim: int | None) -> list[int]:
    return [size for dim, size in enumerate(t.shape) if dim != in_dim]


def one_by_one(call: Callable[..., Any], calls: int, in_dims: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    def of_call(n: int) -> list[Any]:
        return [t.select(dim, n) if isinstance(dim, int) else t for t, dim in zip(args, in_dims, strict=True)]

    return [call(*of_call(n)) for n in range(calls)]


def fold(t: Tensor | None, in_dim: int | None, dims: int, calls: int, images: int, separate: bool) -> Tensor | None:
    """A tensor argument of all calls as one: (calls · images, ...), or unchanged if all share it and it has no batch.

    separate: give each call its own copy even then, so that its gradient is not summed over the calls.
    """
    if t is None or (in_dim is None and (t.dim() < dims or not dims) and not separate):
        return t
    t = t[None] if in_dim is None else t.movedim(in_dim, 0)
    t = t[(slice(None), *[None] * (1 + dims - t.dim()))]  # (calls or 1, images or 1, ...)
    return t.expand(calls, images, *t.shape[2:]).flatten(0, 1)


def unfold(gradient: Tensor, t: Tensor, in_dim: int | None, dims: int, calls: int, images: int) -> Tensor:
    """From the gradient of `fold(t, ...)` to that of `t`: (calls, ...)."""
    shape = shape_per_call(t, in_dim)
    summed = gradient.unflatten(0, (calls, images)).sum_to_size(calls, *[1] * (dims - len(shape)), *shape)
    return summed.reshape(calls, *shape)


# ---- helpers of references and checks ----


def to_float(image: Tensor, *others: Tensor | None) -> Tensor:
    """The image as float32, or float64 if any of the tensors is; integers are divided by their full scale."""
    double = any(t is not None and t.dtype is torch.float64 for t in (image, *others))
    x = image.to(torch.float64 if double else torch.float32)
    return x / FULL_SCALE[image.dtype] if image.dtype in FULL_SCALE else x


def from_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Back to the image's dtype. Integers: clamped to [0, 1], times full scale, rounded to nearest; NaN becomes 0."""
    if dtype in FULL_SCALE:
        return (x.nan_to_num(0.0).clamp(0, 1) * FULL_SCALE[dtype]).round().to(dtype)
    return x.to(dtype)


def memory_range(t: Tensor) -> tuple[int, int]:
    """Addresses of the first byte, and one past the last, that a tensor with non-negative strides covers."""
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
    """Raises unless `image` is (B, 3, H, W), not empty, and of a dtype that the op takes."""
    check_is_tensor(op, "image", image)
    if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"{op}: image: expected shape (B, 3, H, W) with B, H, W >= 1; got {tuple(image.shape)}")
    check_dtype(op, "image", image, FLOATS_AND_INTEGERS if integers else FLOATS)


def check_dtype(op: str, name: str, t: Tensor, allowed: Sequence[torch.dtype] = FLOATS) -> None:
    if t.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{op}: {name}: expected one of {names}; got {str(t.dtype).removeprefix('torch.')}")


def fits(shape: Sequence[int], expected: Sequence[int | str]) -> bool:
    return len(shape) == len(expected) and all(
        size >= 1 if isinstance(wanted, str) else size == wanted for size, wanted in zip(shape, expected, strict=True)
    )


def check_tensor(
    op: str, name: str, t: Tensor, shape: Sequence[int | str], image: Tensor, *, shared: bool = False
) -> None:
    """Raises unless `t` is a float tensor of this shape (a letter stands for any size >= 1) on the image's device. With
    `shared`, its batch may also be 1."""
    check_is_tensor(op, name, t)
    if t.shape != tuple(shape):  # usually equal, which makes the slower comparison below rare
        shapes = [shape, (1, *shape[1:])] if shared and shape[0] != 1 else [shape]
        if not any(fits(t.shape, expected) for expected in shapes):
            wanted = " or ".join("(" + ", ".join(map(str, expected)) + ")" for expected in shapes)
            raise ValueError(f"{op}: {name}: expected shape {wanted}; got {tuple(t.shape)}")
    check_float(op, name, t, image)


def check_float(op: str, name: str, t: Tensor, image: Tensor) -> None:
    """Raises unless `t` is a dense tensor of floats on the image's device."""
    check_is_tensor(op, name, t)
    check_dtype(op, name, t)
    if t.device != image.device:
        raise ValueError(f"{op}: {name}: expected device {image.device}, as the first argument; got {t.device}")
