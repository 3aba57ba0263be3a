"""Tests that every op must pass, whatever it computes.

A test file describes the calls of its op (`Call`), subclasses `Laws`, and adds the tests that are specific to its op.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastenh
from fastenh import backends
from fastenh.ops.op import FULL_SCALE, Op

VARIANTS = list(backends.core.cpu)  # every instruction set that this machine runs
FEWER = 2 if "FASTENH_CUDA_ON_CPU" in os.environ else 1  # examples, where kernels are slow
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

# Tolerance of a result: half a step of its dtype, relative for floats ...
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float64: 2**-53}
# ... plus that of the float32 arithmetic before it, relative to the largest value.
ARITHMETIC = 2e-5


@dataclass
class Box:
    """A tensor to create: its shape, and the range of its values or a function that creates it from a generator."""

    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0
    make: Callable[[torch.Generator], Tensor] | None = None
    may_hold_nan: bool = True  # False if it is unspecified whether NaN times a weight of zero gives NaN

    def tensor(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.make:
            return self.make(generator)
        return torch.rand(self.shape, generator=generator) * (self.high - self.low) + self.low


@dataclass
class Call:
    """The arguments of one call: tensors (None where one is left out), then options."""

    tensors: list[Box | None]
    options: tuple[Any, ...] = ()


# ---- dtypes and layouts ----


def to_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype in FULL_SCALE:
        return (values.clamp(0, 1) * FULL_SCALE[dtype]).round().to(dtype)
    return values.to(dtype)


def to_values(t: Tensor) -> Tensor:
    """The values that a tensor represents, in float32."""
    return t.float() / FULL_SCALE[t.dtype] if t.dtype in FULL_SCALE else t.float()


LAYOUTS = ("contiguous", "channels_last", "transposed", "every other", "inner", "unaligned", "expanded")


def lay_out(t: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout ("expanded": constant along one dimension, with stride 0)."""
    if t.dim() == 0:
        return t.clone()
    if layout == "channels_last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and t.dim() >= 2:
        return t.mT.contiguous().mT
    if layout == "every other":
        return torch.stack([t, t], dim=-1).flatten(-2)[..., ::2]
    if layout == "inner":  # a crop of a larger tensor
        larger = torch.zeros([size + 2 for size in t.shape], dtype=t.dtype)
        inner = larger[tuple(slice(1, -1) for _ in t.shape)]
        return inner.copy_(t)
    if layout == "unaligned":
        storage = torch.zeros(t.numel() + 1, dtype=t.dtype)
        return storage[1:].view(t.shape).copy_(t)
    if layout == "expanded" and t.numel():
        dim = t.numel() % t.dim()
        return t.narrow(dim, 0, 1).expand(t.shape)
    return t.contiguous()


def outside(t: Tensor) -> Tensor:
    """The elements in the storage of t that are not part of it."""
    size = t.untyped_storage().nbytes() // t.element_size()
    no_part = torch.ones(size, dtype=torch.bool)
    torch.as_strided(no_part, t.shape, t.stride(), t.storage_offset()).fill_(False)
    # On the CPU, since torch cannot index uint16 on a GPU.
    return torch.as_strided(t, (size,), (1,), 0).cpu()[no_part]


def fenced(t: Tensor) -> Tensor:
    """A contiguous copy at the end of accessible memory: an access one byte past it kills the process."""
    if t.numel() == 0:
        return t.contiguous()
    size = t.numel() * t.element_size()
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    fence = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages * mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    offset = pages * mmap.PAGESIZE - size
    return torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=offset).view(t.shape).copy_(t)


def lives(work: Callable[[], object]) -> bool:
    """Whether a forked child with one thread does the work without error, crash or hang."""

    def child() -> None:
        torch.set_num_threads(1)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(600)  # far longer than the work takes on a busy machine
    if process.is_alive():
        process.kill()
    return process.exitcode == 0


def assert_close(result: Tensor, truth: Tensor, what: str = "result", arithmetic: float = ARITHMETIC) -> None:
    """Asserts that `result` equals `truth`, in float32 and unrounded, as closely as the dtype of the result allows."""
    truth = truth.double()
    scale = max(1.0, float(truth.nan_to_num(0.0, 0.0, 0.0).abs().amax())) if truth.numel() else 1.0
    if result.dtype in FULL_SCALE:
        full = FULL_SCALE[result.dtype]
        truth, result = truth.nan_to_num(0.0).clamp(0, 1) * full, result.double()
        tolerance = {"rtol": 0.0, "atol": 0.5 + arithmetic * scale * full}  # terms may be larger than a clamped sum
    else:
        tolerance = {"rtol": ROUNDING[result.dtype], "atol": arithmetic * scale + 1e-7}
        result = result.double()
    torch.testing.assert_close(result, truth, equal_nan=True, msg=lambda text: f"{what}: {text}", **tolerance)


# ---- the laws ----


class Laws:
    op: ClassVar[Op]
    function: ClassVar[Callable[..., Tensor]]  # the public one; wrap in staticmethod
    calls: ClassVar[st.SearchStrategy[Call]]  # any valid call
    small: ClassVar[Sequence[Call]]  # a few, of 1 to 100 pixels, that take different code paths
    large: ClassVar[Call]  # whose first tensor and result are larger than 4 MiB, with an odd width
    dtypes: ClassVar[Sequence[torch.dtype]] = FLOATS  # of the first tensor; the others are floats
    half_on_gpu: ClassVar[Mapping[torch.dtype, float]] = {}  # ARITHMETIC where GPU kernels compute in half precision

    def call(self, tensors: Sequence[Tensor | None], options: Sequence[Any], out: Tensor | None = None) -> Tensor:
        """Calls the public function with the operator's arguments."""
        return type(self).function(*tensors, *options, out=out)

    def tensors(self, call: Call, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
        return [None if box is None else box.tensor(i).to(dtype) for i, box in enumerate(call.tensors)]

    def truth(self, tensors: Sequence[Tensor | None], options: Sequence[Any]) -> Tensor:
        return self.op.reference(self.op.arguments(*tensors, *options))

    def arithmetic(self, first: Tensor) -> float:
        kernels = backends.kernels(self.op.name, first.device)
        return self.half_on_gpu.get(first.dtype, ARITHMETIC) if kernels and kernels.gpu else ARITHMETIC

    @settings(max_examples=120 // FEWER, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_result_is_the_references(self, data: st.DataObject) -> None:
        """Any size, batch, dtype, layout of inputs and output, instruction set; one NaN somewhere, or none."""
        call = data.draw(type(self).calls)
        tensors: list[Tensor | None] = []
        for i, box in enumerate(call.tensors):
            if box is None:
                tensors.append(None)
                continue
            dtype = data.draw(st.sampled_from(self.dtypes if i == 0 else FLOATS))
            values = to_dtype(box.tensor(i), dtype)
            tensors.append(lay_out(values, data.draw(st.sampled_from(LAYOUTS))))
        if data.draw(st.booleans()):
            boxes = enumerate(zip(call.tensors, tensors, strict=True))
            may = [i for i, (box, t) in boxes if box and box.may_hold_nan and t.is_floating_point() and t.numel()]
            if may:
                poisoned = tensors[data.draw(st.sampled_from(may))]
                poisoned[tuple(data.draw(st.integers(0, size - 1)) for size in poisoned.shape)] = float("nan")
        truth = self.truth([None if t is None else to_values(t) for t in tensors], call.options)
        with fastenh.backend(data.draw(st.sampled_from(VARIANTS))):
            result = self.call(tensors, call.options)
            first = tensors[0]
            assert_close(result, truth, "result", self.arithmetic(first))
            assert result.dtype == first.dtype
            if first.is_contiguous() or first.is_contiguous(memory_format=torch.channels_last):
                assert result.is_contiguous() or result.is_contiguous(memory_format=torch.channels_last)

            out = torch.full_like(result, 77, memory_format=torch.contiguous_format)
            out = lay_out(out, data.draw(st.sampled_from([layout for layout in LAYOUTS if layout != "expanded"])))
            before = outside(out)
            assert self.call(tensors, call.options, out=out) is out
            assert_close(out, truth, "out", self.arithmetic(first))
            assert torch.equal(outside(out), before)

    @settings(max_examples=80 // FEWER, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_gradients_are_the_references(self, data: st.DataObject) -> None:
        torch.use_deterministic_algorithms(data.draw(st.booleans()), warn_only=True)  # GPUs sum in another way then
        call = data.draw(type(self).calls)
        fast: list[Tensor | None] = []
        for i, box in enumerate(call.tensors):
            dtype, layout = data.draw(st.sampled_from(FLOATS)), data.draw(st.sampled_from(LAYOUTS))
            fast.append(None if box is None else lay_out(box.tensor(i).to(dtype), layout))
        plain = [None if t is None else t.float() for t in fast]
        there = [i for i, t in enumerate(fast) if t is not None]
        wanted = sorted(data.draw(st.sets(st.sampled_from(there), min_size=1)))
        for i in wanted:
            fast[i].requires_grad_()
            plain[i].requires_grad_()
        expected = self.truth(plain, call.options)
        layout = data.draw(st.sampled_from(LAYOUTS))
        grad = lay_out(Box(tuple(expected.shape), -1.0, 1.0).tensor(99).to(fast[0].dtype), layout)
        truth = torch.autograd.grad(expected, [plain[i] for i in wanted], grad.float())
        with fastenh.backend(data.draw(st.sampled_from(VARIANTS))):
            gradients = torch.autograd.grad(self.call(fast, call.options), [fast[i] for i in wanted], grad)
        for i, gradient, true in zip(wanted, gradients, truth, strict=True):
            assert gradient.dtype == fast[i].dtype
            assert_close(gradient, true, f"gradient {i}")

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_touches_nothing_behind_its_tensors(self, data: st.DataObject) -> None:
        call = data.draw(type(self).calls)
        dtype, variant = data.draw(st.sampled_from(FLOATS)), data.draw(st.sampled_from(VARIANTS))
        tensors = self.tensors(call, dtype)
        out = fenced(self.call(tensors, call.options))
        tensors = [None if t is None else fenced(t) for t in tensors]
        needs = [t is not None for t in tensors]

        def work() -> None:
            with fastenh.backend(variant):
                self.op.operator_out(*tensors, *call.options, out=out)
                self.op.operator_backward(out, *tensors, *call.options, needs)

        assert lives(work)

    @pytest.mark.parametrize("layout", ["unaligned", "inner"])
    def test_large_results_may_begin_anywhere(self, layout: str) -> None:
        """They are written with streaming stores, in whole cache lines, which rows may begin or end within."""
        call = type(self).large
        tensors = [None if t is None else lay_out(t, layout).requires_grad_() for t in self.tensors(call)]
        inputs = [t for t in tensors if t is not None]
        truth = self.truth(tensors, call.options)
        assert min(truth.nbytes, inputs[0].nbytes) > 4 << 20
        for variant in VARIANTS:
            with fastenh.backend(variant), torch.no_grad():
                out = lay_out(torch.zeros_like(truth), layout)
                before = outside(out)
                assert_close(self.call(tensors, call.options, out=out), truth, variant)
                assert torch.equal(outside(out), before)
        if self.op.run_backward is None:
            return
        grad = Box(tuple(truth.shape), -1.0, 1.0).tensor(99)
        true_gradients = torch.autograd.grad(truth, inputs, grad)
        for variant in VARIANTS:
            with fastenh.backend(variant):
                gradients = torch.autograd.grad(self.call(tensors, call.options), inputs, grad)
                for i, (gradient, true) in enumerate(zip(gradients, true_gradients, strict=True)):
                    assert_close(gradient, true, f"{variant}, gradient {i}")

    def of_inputs(self, tensors: Sequence[Tensor | None], options: Sequence[Any]) -> tuple[Callable[..., Tensor], Any]:
        """The call as a function of the tensors that are not None, and these tensors."""

        def function(*inputs: Tensor) -> Tensor:
            given_inputs = iter(inputs)
            return self.call([None if t is None else next(given_inputs) for t in tensors], options)

        return function, tuple(t for t in tensors if t is not None)

    def each_small(self) -> Sequence[tuple[list[Tensor | None], tuple[Any, ...]]]:
        return [(self.tensors(call), call.options) for call in type(self).small]

    def test_operators_keep_torchs_rules(self) -> None:
        for tensors, options in self.each_small():
            result = self.op.operator(*tensors, *options)
            needs = [t is not None for t in tensors]
            torch.library.opcheck(self.op.operator_out, (*tensors, *options), {"out": torch.empty_like(result)})
            backward = (torch.ones_like(result), *tensors, *options, needs)
            if self.op.run_backward is None:  # the other checks cannot trace torch.func
                torch.library.opcheck(self.op.operator_backward, backward, test_utils=("test_autograd_registration",))
            else:
                torch.library.opcheck(self.op.operator_backward, backward)
            learned = [None if t is None else t.requires_grad_() for t in tensors]
            torch.library.opcheck(self.op.operator, (*learned, *options))

    def test_reference_is_differentiated_right(self) -> None:
        for call in type(self).small:
            function, inputs = self.of_inputs(self.tensors(call, torch.float64), call.options)
            inputs = [t.requires_grad_() for t in inputs]
            assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)

    def test_second_derivatives_are_the_references(self) -> None:
        """By autograd, by torch.func, by each over the other, by forward over reverse mode; and third derivatives."""
        for tensors, options in self.each_small():
            function, inputs = self.of_inputs(tensors, options)
            every = tuple(range(len(inputs)))

            def loss(*inputs: Tensor, function: Callable[..., Tensor] = function) -> Tensor:
                return function(*inputs).square().mean()

            def size(gradients: Sequence[Tensor]) -> Tensor:
                return sum((g.square().sum() for g in gradients), torch.zeros(()))

            def by_autograd(*inputs: Tensor) -> Tensor:
                return size(torch.autograd.grad(loss(*inputs), inputs, create_graph=True))

            def by_grad(*inputs: Tensor, every: tuple[int, ...] = every) -> Tensor:
                return size(torch.func.grad(loss, every)(*inputs))

            def by_vjp(*inputs: Tensor) -> Tensor:  # its level has ended when the gradients are computed
                return size(torch.func.vjp(loss, *inputs)[1](torch.ones(())))

            def derivatives(
                inputs: tuple[Tensor, ...] = inputs,
                every: tuple[int, ...] = every,
                ways: tuple[Callable[..., Tensor], ...] = (by_autograd, by_grad, by_vjp),
            ) -> list[Tensor]:
                found: list[Tensor] = []
                for first in ways:
                    learned = [t.clone().requires_grad_() for t in inputs]
                    found += torch.autograd.grad(first(*learned), learned)
                for first in ways[1:]:
                    found += torch.func.grad(first, every)(*inputs)
                    found.append(torch.func.jvp(first, inputs, inputs)[1])
                second = torch.func.grad(ways[1], every)
                return [*found, *torch.func.grad(lambda *t: size(second(*t)), every)(*inputs)]

            with fastenh.backend("reference"):
                expected = derivatives()
            for derivative, true in zip(derivatives(), expected, strict=True):
                largest = float(true.abs().max())
                torch.testing.assert_close(derivative, true, rtol=1e-3, atol=1e-4 * largest + 1e-7)

    def test_forward_mode_agrees_with_the_gradient(self) -> None:
        """⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩, with J·v by torch.func from the reference and Jᵀ·u by the kernel."""
        for call in type(self).small:
            function, inputs = self.of_inputs(self.tensors(call), call.options)
            along = tuple(Box(tuple(t.shape), -1.0, 1.0).tensor(50 + i) for i, t in enumerate(inputs))
            result, forward = torch.func.jvp(function, inputs, along)
            torch.testing.assert_close(result, function(*inputs), rtol=1e-5, atol=1e-5)
            u = Box(tuple(result.shape), -1.0, 1.0).tensor(60)
            backward = torch.autograd.grad(function(*[t.requires_grad_() for t in inputs]), inputs, u)
            expected = sum((g * v).sum() for g, v in zip(backward, along, strict=True))
            torch.testing.assert_close((forward * u).sum(), expected, rtol=1e-4, atol=1e-3)

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Counts the calls of the op's kernels and of its reference."""
        counts: Counter[str] = Counter()

        def counting(name: str) -> Callable[..., Any]:
            function = getattr(self.op, name)

            def count(*args: Any) -> Any:
                counts[name] += 1
                return function(*args)

            return count

        with pytest.MonkeyPatch.context() as patch:
            for name in ("run", "reference", *(["run_backward"] if self.op.run_backward else [])):
                patch.setattr(self.op, name, counting(name))
            yield counts

    def mapped(self, call: Call) -> Iterator[tuple[list[int | None], list[Tensor]]]:
        """Dimensions for vmap to map, and tensors with three values along each: of one input alone, and of all."""
        boxes = [box for box in call.tensors if box is not None]
        here = [-1 - i % (len(box.shape) + 1) for i, box in enumerate(boxes)]
        for chosen in (*([i] for i in range(len(boxes))), range(len(boxes))):
            dims = [here[i] if i in chosen else None for i in range(len(boxes))]
            values = [[box.tensor(10 * n + i) for n in range(3)] for i, box in enumerate(boxes)]
            yield dims, [v[0] if dim is None else torch.stack(v, dim) for v, dim in zip(values, dims, strict=True)]

    def has_batch(self, call: Call, dims: Sequence[int | None]) -> bool:
        """Whether all mapped inputs can be folded into the batch."""
        there = [dims for box, dims in zip(call.tensors, self.op.dims, strict=True) if box is not None]
        return all(there[i] for i, dim in enumerate(dims) if dim is not None)

    def test_vmap_is_a_loop_in_one_call_of_the_kernel(self) -> None:
        """Over any input or all, along any dimension, of the function and of the operator."""
        for call in type(self).small:
            function, _ = self.of_inputs(self.tensors(call), call.options)
            absent = [box is None for box in call.tensors]

            def operator(*inputs: Tensor, call: Call = call, absent: Sequence[bool] = absent) -> Tensor:
                given_inputs = iter(inputs)
                return self.op.operator(*(None if a else next(given_inputs) for a in absent), *call.options)

            for dims, stacks in self.mapped(call):
                each = [
                    [t if d is None else t.select(d, n) for t, d in zip(stacks, dims, strict=True)] for n in range(3)
                ]
                with fastenh.backend("reference"):
                    looped = torch.stack([function(*inputs) for inputs in each], 1)
                for f in (function, operator):
                    with self.counted() as counts:
                        result = torch.func.vmap(f, tuple(dims), 1)(*stacks)
                    assert counts == {"run": 1 if self.has_batch(call, dims) else 3}
                    torch.testing.assert_close(result, looped, rtol=1e-5, atol=1e-5)

            # The first input by an outer vmap, the others by an inner one.
            dims, stacks = list(self.mapped(call))[-1]
            nested = torch.func.vmap(torch.func.vmap(function, (None, *dims[1:])), (dims[0], *[None] * (len(dims) - 1)))
            with fastenh.backend("reference"):
                expected = nested(*stacks)
            torch.testing.assert_close(nested(*stacks), expected, rtol=1e-5, atol=1e-5)

    def test_gradients_of_torch_func_run_the_kernels(self) -> None:
        """grad, vmap of grad (per-sample gradients), grad of vmap, jacrev, and batched cotangents."""
        for call in type(self).small:
            function, inputs = self.of_inputs(self.tensors(call), call.options)
            u = Box(tuple(function(*inputs).shape), -1.0, 1.0).tensor(60)
            gradient = torch.func.grad(lambda *t, f=function, u=u: (f(*t) * u).sum(), tuple(range(len(inputs))))

            def batched(inputs: tuple[Tensor, ...] = inputs, f: Callable[..., Tensor] = function) -> Any:
                learned = [t.clone().requires_grad_() for t in inputs]
                result = f(*learned)
                grads = Box((3, *result.shape), -1.0, 1.0).tensor(61)
                return torch.autograd.grad(result, learned, grads, is_grads_batched=True)

            ways: list[Callable[[], Any]] = [
                lambda g=gradient, inputs=inputs: g(*inputs),
                batched,
                lambda f=function, inputs=inputs: torch.func.jacrev(lambda *t: f(*t).mean((2, 3)))(*inputs),
            ]
            for dims, stacks in self.mapped(call):
                if self.has_batch(call, dims):
                    over = tuple(dims)
                    ways += [
                        lambda g=gradient, over=over, stacks=stacks: torch.func.vmap(g, over)(*stacks),
                        lambda f=function, over=over, stacks=stacks: torch.func.grad(
                            lambda *t: torch.func.vmap(f, over)(*t).square().mean(), tuple(range(len(stacks)))
                        )(*stacks),
                    ]
            for way in ways:
                with fastenh.backend("reference"):
                    expected = way()
                with self.counted() as counts:
                    result = way()
                if self.op.run_backward:
                    assert counts == {"run": 1, "run_backward": 1}
                else:
                    assert counts["run"] == 1
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns that it records sizes
    def test_traces_as_one_operator(self) -> None:
        for call in type(self).small:
            function, inputs = self.of_inputs(self.tensors(call), call.options)
            traced = torch.jit.trace(function, inputs)
            assert f"fastenh::{self.op.name}(" in str(traced.graph)
            _, others = self.of_inputs([box and box.tensor(20 + i) for i, box in enumerate(call.tensors)], call.options)
            torch.testing.assert_close(traced(*others), function(*others))

    def test_compiles_and_exports_as_one_operator(self) -> None:
        function, inputs = self.of_inputs(*self.each_small()[0])
        inputs = [t.requires_grad_() for t in inputs]

        class Module(torch.nn.Module):
            def forward(self, *inputs: Tensor) -> Tensor:
                return function(*inputs) * 2

        expected = Module()(*inputs)
        gradients = torch.autograd.grad(expected.sum(), inputs)
        compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(compiled, expected)
        torch.testing.assert_close(torch.autograd.grad(compiled.sum(), inputs), gradients)

        plain = tuple(t.detach() for t in inputs)
        exported = torch.export.export(Module(), plain)
        assert any(node.target is self.op.operator for node in exported.graph.nodes)
        torch.testing.assert_close(exported.module()(*plain), expected.detach())
