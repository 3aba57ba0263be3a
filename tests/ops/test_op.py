"""What `Op` does for every op, tested on two: curve_iterate is pointwise, context_voxels is not."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from laws import lives
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastenh
from fastenh.ops import context_voxels, curve, curve_iterate


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 9, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def curves() -> Tensor:
    return torch.rand(1, 3, 9, 20, generator=torch.Generator().manual_seed(2)) - 0.5


# ---- out= ----


def test_out_may_be_the_image_of_a_pointwise_op(image: Tensor, curves: Tensor) -> None:
    expected = curve_iterate(image, curves)
    assert curve_iterate(image, curves, out=image) is image
    assert torch.equal(image, expected)


def shifted(image: Tensor) -> Tensor:
    """The same memory, a few elements on."""
    storage = torch.rand(image.numel() + 8)
    image.set_(storage.untyped_storage(), 0, image.shape, image.stride())
    return torch.as_strided(storage, image.shape, image.stride(), 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda image: torch.empty(1, 3, 9, 21), r"out: expected \(1, 3, 9, 20\) float32 on cpu; got \(1, 3, 9, 21\)"),
        (lambda image: torch.empty(1, 3, 9, 20).half(), r"float32 on cpu; got \(1, 3, 9, 20\) float16 on cpu"),
        (lambda image: torch.empty(1, 3, 9, 20, device="meta"), r"on cpu; got \(1, 3, 9, 20\) float32 on meta"),
        (lambda image: torch.empty(1, 3, 1, 20).expand(1, 3, 9, 20), "no two elements to share memory; got strides"),
        (lambda image: torch.as_strided(torch.empty(600), (1, 3, 9, 20), (600, 180, 10, 1)), "share memory"),
        (shifted, "separate memory, or exactly the first argument; got one that overlaps argument 1"),
    ],
)
def test_bad_out(image: Tensor, curves: Tensor, make: Callable[[Tensor], Tensor], message: str) -> None:
    out = make(image)
    before = None if out.is_meta else out.clone()
    with pytest.raises(ValueError, match=f"^curve_iterate: .*{message}") as caught:
        curve_iterate(image, curves, out=out)
    assert "\n" not in str(caught.value)
    assert before is None or torch.equal(out.isnan(), before.isnan())  # nothing half written


def test_out_must_not_be_another_argument(image: Tensor, curves: Tensor) -> None:
    with pytest.raises(ValueError, match="overlaps argument 2"):
        curve_iterate(image, curves, out=curves)
    both = torch.rand(1, 30, 9, 20)
    with pytest.raises(ValueError, match="out: expected separate memory; got one that overlaps argument 1"):
        context_voxels(both[:, :3], torch.rand(1, 9, 9, 20), out=both[:, :27])
    apart = context_voxels(both[:, :3], torch.rand(1, 9, 9, 20), out=both[:, 3:])  # one storage, but apart
    assert apart.data_ptr() == both[:, 3:].data_ptr()


def test_out_of_a_call_with_gradients_is_refused(image: Tensor, curves: Tensor) -> None:
    curves.requires_grad_()
    out = torch.empty_like(image)
    with pytest.raises(ValueError, match=r"^curve_iterate: out= cannot be differentiated"):
        curve_iterate(image, curves, out=out)
    with torch.no_grad():
        assert curve_iterate(image, curves, out=out) is out
    assert not out.requires_grad


def test_out_with_a_history_or_a_tangent_is_refused(image: Tensor, curves: Tensor) -> None:
    computed = torch.rand_like(image).requires_grad_() * 2
    with pytest.raises(ValueError, match=r"^curve_iterate: out= cannot be differentiated"):
        curve_iterate(image, curves, out=computed)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(image, torch.ones_like(image))
        with pytest.raises(ValueError, match=r"^curve_iterate: out= cannot be differentiated"):
            curve_iterate(dual, curves, out=torch.empty_like(image))
    learned = curves.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^curve_iterate: out= cannot be differentiated"):
        torch.ops.fastenh.curve_iterate.out(image, learned, 8, out=torch.empty_like(image))


def test_autograd_detects_that_out_was_overwritten(image: Tensor, curves: Tensor) -> None:
    factor = torch.ones_like(image, requires_grad=True)
    loss = (image * factor).sum()
    curve_iterate(image, curves, out=image)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_out_that_overlaps_from_another_storage() -> None:
    memory = np.zeros(3 * 40 * 40 * 10, np.float32)
    image = torch.from_numpy(memory[: 3 * 1600]).view(1, 3, 40, 40)
    out = torch.from_numpy(memory[1600 : 1600 * 28]).view(1, 27, 40, 40)
    with pytest.raises(ValueError, match="out: expected separate memory; got one that overlaps argument 1"):
        context_voxels(image, torch.rand(1, 9, 40, 40), out=out)


def test_out_at_an_odd_address() -> None:
    """Large enough for streaming stores, which need aligned addresses."""
    image, curves = torch.rand(1, 3, 640, 1024), torch.rand(1, 3, 640, 1024)
    out = torch.frombuffer(bytearray(image.nbytes + 1), dtype=torch.float32, offset=1).view(image.shape)
    assert out.data_ptr() % 4
    assert torch.equal(curve_iterate(image, curves, out=out), curve_iterate(image, curves))


def test_default_dtype_does_not_matter(image: Tensor) -> None:
    curves = torch.rand(1, 24, 4, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(curve_iterate(image, curves).sum(), curves)
    torch.set_default_dtype(torch.bfloat16)
    try:
        (gradient,) = torch.autograd.grad(curve_iterate(image, curves).sum(), curves)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, c: (x[..., :8, :8], x, c, 8, [True, True]), r"grad: expected shape \(1, 3, 9, 20\)"),
        (lambda x, c: (x, x, c, 0, [True, True]), "iterations: expected 1 to 1024; got 0"),
        (lambda x, c: (x[0], x[0], c[0], 8, [True, True]), "image: expected shape"),
    ],
)
def test_backward_operators_check_as_well(image: Tensor, curves: Tensor, make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.fastenh.curve_iterate_backward(*make(image, curves))


@pytest.mark.parametrize("iterations", [8.0, None, "8"])
def test_options_of_another_type_are_one_line(image: Tensor, curves: Tensor, iterations: object) -> None:
    with pytest.raises(TypeError, match=r"^curve_iterate: iterations: expected an int; got"):
        curve_iterate(image, curves, iterations)
    with pytest.raises(TypeError, match=r"^curve_iterate: out: expected a torch.Tensor; got ndarray"):
        curve_iterate(image, curves, out=image.numpy())


# ---- choice of backend, and modes ----


def test_modes(image: Tensor, curves: Tensor) -> None:
    expected = curve_iterate(image, curves)
    with torch.inference_mode():
        assert torch.equal(curve_iterate(image, curves), expected)
        inside = image.clone()
    assert torch.equal(curve_iterate(inside, curves), expected)  # an inference tensor, used outside
    with torch.no_grad():
        assert torch.equal(curve_iterate(image, torch.nn.Parameter(curves)), expected)
    parameter = torch.nn.Parameter(curves)
    curve_iterate(image, parameter).sum().backward()
    assert parameter.grad.shape == curves.shape
    assert torch.equal(curve_iterate(image, parameter).detach(), expected)


def test_autocast_leaves_dtypes_alone(image: Tensor, curves: Tensor) -> None:
    curves.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = curve_iterate(image, curves)
        assert result.dtype == torch.float32
        assert torch.equal(result, curve_iterate(image, curves.detach()))
        mixed = curve_iterate(image, curves.bfloat16())
        assert mixed.dtype == torch.float32
    (gradient,) = torch.autograd.grad(result.sum(), curves)
    (expected,) = torch.autograd.grad(curve_iterate(image, curves).sum(), curves)
    assert torch.equal(gradient, expected)


def test_float64_is_the_reference_in_float64(image: Tensor, curves: Tensor) -> None:
    result = curve_iterate(image.double(), curves)
    x = image.double()
    for _ in range(8):
        x = x + curves.double() * (x * x - x)
    torch.testing.assert_close(result, x, rtol=1e-14, atol=1e-14)
    out = torch.empty_like(result)
    assert torch.equal(curve_iterate(image.double(), curves, out=out), result)


def test_lazily_negated_views(image: Tensor, curves: Tensor) -> None:
    """The imaginary part of a conjugate is a real tensor whose memory holds the values with the wrong sign."""
    negated = torch.complex(image, -image).conj().imag
    assert negated.is_neg()
    assert torch.equal(negated, image)
    assert torch.equal(curve_iterate(negated, curves), curve_iterate(image, curves))


class Seen(TorchDispatchMode):
    """Records the operators that the dispatcher calls while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def seen_by_a_dispatch_mode(image: Tensor, curves: Tensor) -> Sequence[str]:
    with Seen() as seen:
        curve_iterate(image, curves)
        curve_iterate(image, curves, out=torch.empty_like(image))
    assert "fastenh.curve_iterate.out" in seen.names
    return seen.names


def seen_by_a_dispatch_mode_in_training(image: Tensor, curves: Tensor) -> Sequence[str]:
    curves = curves.clone().requires_grad_()
    with Seen() as forward:
        loss = curve_iterate(image, curves).sum()
    with Seen() as backward:
        loss.backward()
    assert "fastenh.curve_iterate_backward.default" in backward.names
    return forward.names


def seen_by_a_function_mode(image: Tensor, curves: Tensor) -> Sequence[str]:
    names = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        curve_iterate(image, curves)
    return names


def seen_by_a_type(image: Tensor, curves: Tensor) -> Sequence[str]:
    names = []

    class Photo(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return super().__torch_function__(func, types, args, kwargs)

    assert type(curve_iterate(image.as_subclass(Photo), curves)) is Photo
    return names


def seen_by_a_wrapper(image: Tensor, curves: Tensor) -> Sequence[str]:
    assert isinstance(curve_iterate(TwoTensor(image, image), curves), TwoTensor)
    with Seen() as seen:
        curve_iterate(TwoTensor(image, image), curves)
    return seen.names


def seen_by_fake_tensors(image: Tensor, curves: Tensor) -> Sequence[str]:
    with FakeTensorMode() as mode:
        fake, fake_curves = mode.from_tensor(image), mode.from_tensor(curves)
        assert isinstance(curve_iterate(fake, fake_curves), FakeTensor)
    with Seen() as seen:
        assert isinstance(curve_iterate(fake, fake_curves), FakeTensor)
    return seen.names


def seen_by_make_fx(image: Tensor, curves: Tensor) -> Sequence[str]:
    traced = make_fx(lambda image, curves: curve_iterate(image, curves))(image, curves)
    return [str(node.target) for node in traced.graph.nodes]


def seen_by_export(image: Tensor, curves: Tensor) -> Sequence[str]:
    class Model(torch.nn.Module):
        def forward(self, image: Tensor, curves: Tensor) -> Tensor:
            return curve_iterate(image, curves)

    return [str(n.target) for n in torch.export.export(Model(), (image, curves), strict=False).graph.nodes]


def seen_by_jit_trace(image: Tensor, curves: Tensor) -> Sequence[str]:
    return [str(torch.jit.trace(curve_iterate, (image, curves)).graph).replace("::", ".") + "default"]


def seen_by_the_profiler(image: Tensor, curves: Tensor) -> Sequence[str]:
    with torch.profiler.profile() as profile:
        curve_iterate(image, curves)
    return [event.name.replace("::", ".") + ".default" for event in profile.events()]


@pytest.mark.parametrize("seen_by", [value for name, value in list(globals().items()) if name.startswith("seen_by")])
def test_calls_use_the_dispatcher_if_something_observes_it(
    image: Tensor, curves: Tensor, seen_by: Callable[[Tensor, Tensor], Sequence[str]]
) -> None:
    """Plain calls skip PyTorch's dispatcher, but not if anything would see them there."""
    assert any("fastenh.curve_iterate" in name and "default" in name for name in seen_by(image, curves))


def test_plain_calls_skip_the_dispatcher(image: Tensor, curves: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatched(*args: object, **out: object) -> None:
        raise AssertionError("went through the dispatcher")

    for operator in ("operator", "operator_out", "operator_backward"):
        monkeypatch.setattr(curve._op, operator, dispatched)
    curve_iterate(image, curves)
    curve_iterate(image, curves, out=torch.empty_like(image))
    parameter = torch.nn.Parameter(curves)
    curve_iterate(image, parameter).sum().backward()
    with torch.no_grad():
        curve_iterate(image, parameter)
    with torch.inference_mode():
        curve_iterate(image.clone(), parameter)
    with torch.autograd.forward_ad.dual_level():  # without tangents
        curve_iterate(image, curves, out=torch.empty_like(image))


# ---- derivatives that operators lack ----


def forward_mode(function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(image, torch.ones_like(image))
        return torch.autograd.forward_ad.unpack_dual(function(dual)).tangent


def functional(function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    return torch.func.jvp(function, (image,), (torch.ones_like(image),))[1]


@pytest.mark.parametrize("derivative", [forward_mode, functional])
@pytest.mark.parametrize(
    "call",
    [
        lambda image, curves: torch.ops.fastenh.curve_iterate(image, curves, 8),
        lambda image, curves: torch.ops.fastenh.curve_iterate_backward(image, image, curves, 8, [True, False])[0],
        lambda image, curves: torch.ops.fastenh.curve_iterate.out(image, curves, 8, out=torch.empty_like(image)),
        lambda image, curves: torch.compile(curve_iterate, backend="aot_eager")(image, curves),
    ],
)
def test_operators_refuse_forward_mode(image: Tensor, curves: Tensor, call: Callable, derivative: Callable) -> None:
    message = r"torch.ops.fastenh.curve_iterate\S* has no forward-mode derivative; fastenh.ops.curve_iterate has"
    with pytest.raises(RuntimeError, match=message):
        derivative(lambda image: call(image, curves), image)


def test_forward_mode_inside_a_compiled_program_is_refused(image: Tensor, curves: Tensor) -> None:
    compiled = torch.compile(lambda image: functional(lambda x: curve_iterate(x, curves), image), fullgraph=True)
    with pytest.raises(RuntimeError, match=r"torch.ops.fastenh.curve_iterate has no forward-mode derivative"):
        compiled(image)


def test_batched_gradients(image: Tensor, curves: Tensor) -> None:
    inputs = image.requires_grad_(), curves.requires_grad_()
    result = curve_iterate(*inputs)
    grads = torch.rand(3, *result.shape)

    def gradients(grad: Tensor, **options: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, inputs, grad, retain_graph=True, **options)

    expected = [torch.stack(batch) for batch in zip(*(gradients(grad) for grad in grads), strict=True)]
    for batched in (gradients(grads, is_grads_batched=True), torch.vmap(gradients)(grads)):
        torch.testing.assert_close(list(batched), expected)


def per_photo(image: Tensor, curves: Tensor, function: Callable[..., Tensor]) -> Tensor:
    """Separate gradients for three photos of curves that they share."""
    gradient = torch.func.grad(lambda curves, image: function(image, curves).square().mean())
    return torch.func.vmap(gradient, (None, 0))(curves, torch.stack([image, image**2, 1 - image]))


def second_derivative(image: Tensor, curves: Tensor, function: Callable[..., Tensor]) -> Tensor:
    gradient = torch.func.grad(lambda curves: function(image, curves).square().mean())
    return torch.func.grad(lambda curves: gradient(curves).square().sum())(curves)


def after_its_level_has_ended(image: Tensor, curves: Tensor, function: Callable[..., Tensor]) -> Tensor:
    """What torch.func.vjp saved belongs to a level that has ended when another level with the same number uses it: for
    a first and a second derivative."""
    gradient = torch.func.grad(lambda curves: function(image, curves).square().mean())
    _, first = torch.func.vjp(lambda curves: function(image, curves), curves)
    _, second = torch.func.vjp(gradient, curves)
    return torch.cat([torch.func.jvp(pull_back, (image,), (image,))[1][0] for pull_back in (first, second)])


def hessian(image: Tensor, curves: Tensor, function: Callable[..., Tensor]) -> Tensor:
    """In reverse mode only."""
    image, curves = image[..., :2, :2], curves[..., :2, :2]
    return torch.func.jacrev(torch.func.jacrev(lambda curves: function(image, curves).square().mean()))(curves)


def by_operator(image: Tensor, curves: Tensor) -> Tensor:
    return torch.ops.fastenh.curve_iterate(image, curves, 8)


@pytest.mark.parametrize("derivative", [per_photo, second_derivative, after_its_level_has_ended, hessian])
def test_operators_under_torch_func(image: Tensor, curves: Tensor, derivative: Callable[..., Tensor]) -> None:
    expected = derivative(image, curves, lambda *args: curve._op.reference(curve.Arguments(*args, 8)))
    torch.testing.assert_close(derivative(image, curves, by_operator), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("function", [curve_iterate, by_operator])
def test_torch_func_in_a_compiled_program(image: Tensor, curves: Tensor, function: Callable[..., Tensor]) -> None:
    compiled = torch.compile(lambda *args: per_photo(*args, function), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, curves), per_photo(image, curves, function))


def test_errors_under_vmap_name_the_shapes_of_one_call(image: Tensor, curves: Tensor) -> None:
    with pytest.raises(ValueError, match=r"curves: expected shape \(1, C, h, w\); got \(2, 3, 9, 20\)"):
        torch.func.vmap(curve_iterate)(image.repeat(5, 1, 1, 1, 1), curves.repeat(5, 2, 1, 1, 1))


def test_compiled_by_inductor(image: Tensor, curves: Tensor) -> None:
    """Together with other operations, with dynamic sizes, in one graph."""
    curves.requires_grad_()

    def function(image: Tensor, curves: Tensor) -> Tensor:
        return curve_iterate(image * 0.5, curves.tanh(), 4).clamp(0, 1).mean((2, 3))

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for width in (20, 13):
        args = image[..., :width], curves[..., :width]
        result, expected = compiled(*args), function(*args)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(
            torch.autograd.grad(result.sum(), curves), torch.autograd.grad(expected.sum(), curves)
        )


def test_saved_tensors_may_not_change(image: Tensor, curves: Tensor) -> None:
    curves.requires_grad_()
    result = curve_iterate(image, curves)
    image.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_a_forked_worker_with_one_thread_lives() -> None:
    """Like a DataLoader's workers: forked from a process whose thread pool has run."""
    image, curves = torch.rand(1, 3, 300, 300), torch.rand(1, 3, 300, 300)
    assert torch.get_num_threads() > 1  # by conftest.py
    expected = curve_iterate(image, curves)

    def work() -> None:
        assert torch.equal(curve_iterate(image, curves), expected)
        curve_iterate(image, curves.requires_grad_()).sum().backward()

    assert lives(work)


def test_every_variant_of_the_core_has_every_kernel() -> None:
    tables = fastenh.backends.core.cpu.values()
    for name in ("lut_transform", "context_voxels", "curve_iterate", "channel_split_transform"):
        for table in tables:
            assert name in table
            assert f"{name}_backward" in table
