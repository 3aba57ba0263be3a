"""The cases on which all GPU kernels are tested, small enough for Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from laws import lay_out, to_dtype
from torch import Tensor

from fastenh import ops


def lut(*names: str, interpolation: str = "trilinear") -> Callable[..., Tensor]:
    """lut_transform of an image, LUTs and the named tensors; "vertices" are given as steps between them."""

    def function(image: Tensor, luts: Tensor, *others: Tensor) -> Tensor:
        given = dict(zip(names, others, strict=True))
        if "vertices" in given:
            places = F.pad((given["vertices"] + 0.5).cumsum(-1), (1, 0))
            given["vertices"] = places / places[..., -1:]
        return ops.lut_transform(image, luts, interpolation=interpolation, **given)

    return function


def lut_1d(*names: str, interpolation: str = "trilinear") -> Callable[..., Tensor]:
    """lut_1d_transform of an image, tables and the named tensors; of "domain" the ends are shifted apart."""

    def function(image: Tensor, tables: Tensor, *others: Tensor) -> Tensor:
        given = dict(zip(names, others, strict=True))
        if "domain" in given:
            given["domain"] = given["domain"] + given["domain"].new_tensor([-0.53, 0.71])[:, None]
        return ops.lut_1d_transform(image, tables, interpolation=interpolation, **given)

    return function


def local_context(image: Tensor, luts: Tensor, *others: Tensor) -> Tensor:
    """local_context_retouch with or without weights. No gradients: those are the reference's."""
    with torch.no_grad():
        return ops.local_context_retouch(image, luts, others[0] if len(others) > 8 else None, of_layers(others[-8:]))


def of_layers(params: Sequence[Tensor]) -> list[Tensor]:
    """Parameters, made from values in [0, 1], with which values neither explode nor vanish in any layer."""
    return [(p - 0.5) * (12 / p[0].numel()) ** 0.5 for p in params]


def layers(k: int, features: int, hidden: int, count: int) -> list[tuple[int, ...]]:
    """The shapes of `LocalContextParams`."""
    weights = [(features, 3, k, k), (k * k, features, 1, 1), (hidden, 3 * k * k, 1, 1), (count, hidden, 1, 1)]
    return [shape for weight in weights for shape in (weight, weight[:1])]


INTEGERS = (torch.uint8, torch.uint16)

CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {  # a function and the shapes of its tensors
    "split": (ops.channel_split_transform, [(2, 5, 7, 9), (2, 3, 7, 9), (2, 3, 7, 9)]),
    "split, broadcast": (ops.channel_split_transform, [(2, 4, 3, 1100), (2, 2, 1, 1), (2, 1, 1100)]),
    "split, nothing passes": (lambda *t: ops.channel_split_transform(*t, 0), [(1, 2, 1, 1), (1, 2, 1, 1), (1,)]),
    "split, all passes": (lambda *t: ops.channel_split_transform(*t, 2), [(1, 2, 4, 4), (1, 0, 4, 4), (1, 0, 4, 4)]),
    "voxels": (ops.context_voxels, [(2, 3, 2, 5), (2, 9, 2, 5)]),
    "voxels, k = 1": (lambda *t: ops.context_voxels(*t, 1), [(1, 3, 2, 1100), (1, 1, 2, 1100)]),
    "voxels, k = 5": (lambda *t: ops.context_voxels(*t, 5), [(1, 3, 2, 3), (1, 25, 2, 3)]),
    "voxels, aligned rows": (ops.context_voxels, [(1, 3, 2, 16), (1, 9, 2, 16)]),
    "lut": (lut(), [(2, 3, 5, 59), (1, 3, 33, 33, 33)]),
    "lut, tetrahedral": (lut(interpolation="tetrahedral"), [(2, 3, 5, 59), (1, 3, 5, 5, 5)]),
    "lut, one cell": (lut("weights"), [(1, 3, 9, 31), (2, 3, 2, 2, 2), (1, 2)]),
    "lut, one cell, tetrahedral": (
        lut("pixel_weights", interpolation="tetrahedral"), [(1, 3, 9, 31), (2, 3, 2, 2, 2), (1, 2, 9, 31)]
    ),
    "lut, vertices": (lut("weights", "vertices"), [(2, 3, 4, 7), (2, 3, 3, 5, 5, 5), (2, 3), (2, 3, 4)]),
    "lut, vertices, tetrahedral": (
        lut("vertices", interpolation="tetrahedral"), [(1, 3, 4, 7), (1, 3, 7, 7, 7), (1, 3, 6)]
    ),
    "lut, pixel weights": (lut("pixel_weights"), [(2, 3, 5, 7), (5, 3, 5, 5, 5), (2, 5, 5, 7)]),
    "lut, everything": (
        lut("weights", "pixel_weights", "vertices"),
        [(2, 3, 3, 5), (2, 7, 3, 4, 4, 4), (2, 7), (2, 7, 3, 5), (2, 3, 3)],
    ),
    "lut 1d": (lut_1d(), [(2, 3, 5, 59), (1, 3, 9)]),
    "lut 1d, domain": (lut_1d("domain"), [(2, 3, 4, 16), (2, 3, 40), (2, 2, 3)]),
    "lut 1d, two entries": (lut_1d("domain"), [(1, 3, 3, 7), (1, 3, 2), (1, 2, 3)]),
    "lut 1d, then 3d": (lut_1d("luts"), [(2, 3, 5, 16), (2, 3, 9), (1, 3, 4, 4, 4)]),
    "lut 1d, then 3d, tetrahedral": (
        lut_1d("luts", "domain", interpolation="tetrahedral"),
        [(2, 3, 5, 59), (1, 3, 17), (2, 3, 4, 4, 4), (1, 2, 3)],
    ),
    "curve": (lambda *t: ops.curve_iterate(*t, 3), [(2, 3, 3, 259), (2, 9, 3, 259)]),
    "curve, shared": (ops.curve_iterate, [(2, 3, 5, 7), (2, 3, 5, 7)]),
    "curve, nine iterations": (lambda *t: ops.curve_iterate(*t, 9), [(1, 3, 2, 16), (1, 27, 2, 16)]),
    "curve, larger": (lambda *t: ops.curve_iterate(*t, 2), [(2, 3, 7, 25), (2, 6, 3, 4)]),
    "curve, larger, shared": (lambda *t: ops.curve_iterate(*t, 3), [(1, 3, 21, 9), (1, 3, 2, 4)]),
    "curve, larger, nine iterations": (lambda *t: ops.curve_iterate(*t, 9), [(1, 3, 2, 5), (1, 27, 1, 3)]),
    "curve, smaller": (lambda *t: ops.curve_iterate(*t, 2), [(1, 3, 3, 5), (1, 3, 5, 13)]),
    "curve, of one value": (lambda *t: ops.curve_iterate(*t, 1), [(1, 3, 18, 260), (1, 3, 1, 1)]),
    "curve, of one pixel": (lambda *t: ops.curve_iterate(*t, 1), [(1, 3, 1, 1), (1, 3, 3, 2)]),
    "local context": (local_context, [(1, 3, 2, 131), (5, 3, 9, 9, 9), (1, 5), *layers(3, 64, 128, 5)]),
    "local context, k = 5": (local_context, [(1, 3, 3, 4), (3, 3, 9, 9, 9), (1, 3), *layers(5, 32, 64, 3)]),
    "local context, k = 7": (local_context, [(1, 3, 2, 6), (1, 3, 5, 5, 5), *layers(7, 16, 16, 1)]),
    "local context, odd widths": (local_context, [(1, 3, 10, 5), (2, 3, 2, 2, 2), *layers(3, 5, 70, 2)]),
    "local context, too wide to keep": (local_context, [(1, 3, 1, 2), (2, 3, 2, 2, 2), *layers(3, 16, 1700, 2)]),
    "local context, two panels": (local_context, [(2, 3, 1, 5), (2, 7, 3, 4, 4, 4), (2, 7), *layers(3, 16, 16, 7)]),
}  # fmt: skip


def ways_of(case: str) -> list[tuple[torch.dtype, str]]:
    """The dtypes (of the first tensor; the others are float32) and layouts of a case."""
    ways = [
        (torch.float32, "contiguous"),
        (torch.bfloat16, "channels_last"),
        (torch.float16, "contiguous"),
        (torch.float32, "every other"),
    ]
    integers = [(torch.uint8, "contiguous"), (torch.uint16, "channels_last")]
    return ways if case.startswith(("split", "voxels")) else ways + integers


def some_ways_of(case: str) -> list[tuple[torch.dtype, str]]:
    """The first two, and one of the others, in turn."""
    first, others = ways_of(case)[:2], ways_of(case)[2:]
    return [*first, others[list(CASES).index(case) % len(others)]]


def parametrize(ways: Callable[[str], list[tuple[torch.dtype, str]]]) -> pytest.MarkDecorator:
    """A test by `case`, `dtype` and `layout`."""
    calls = [(case, *way) for case in CASES for way in ways(case)]
    names = [f"{case}, {str(dtype).removeprefix('torch.')}, {layout}" for case, dtype, layout in calls]
    return pytest.mark.parametrize(("case", "dtype", "layout"), calls, ids=names)


every_case, fewer_cases = parametrize(ways_of), parametrize(some_ways_of)


def onto(t: Tensor, device: str | torch.device) -> Tensor:
    """Copies a tensor to a device with its whole storage, offset and strides: `to` would make it dense."""
    memory = t.untyped_storage().to(device=torch.device(device))
    return torch.empty(0, dtype=t.dtype, device=device).set_(memory, t.storage_offset(), t.shape, t.stride())


def run(case: str, dtype: torch.dtype, layout: str, device: str) -> list[Tensor]:
    """The op's output and its gradients, if it has any: integers have none."""
    function, shapes = CASES[case]
    generator = torch.Generator().manual_seed(0)
    tensors = [to_dtype(torch.rand(shapes[0], generator=generator) * 1.2 - 0.1, dtype)]
    # Multiples of 1/16, so that tables blended from them are exact in half precision too.
    tensors += [torch.randint(17, shape, generator=generator) / 16 for shape in shapes[1:]]
    tensors = [onto(lay_out(t, layout), device) for t in tensors]
    learned = [t.requires_grad_() for t in tensors if t.is_floating_point()]
    output = function(*tensors)
    if not output.requires_grad:
        return [output.cpu() if output.is_floating_point() else output.cpu().int()]
    grad = torch.rand(output.shape, generator=generator).to(dtype).to(device)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(layout == "every other", warn_only=True)  # LUTs' gradients: sums of integers
    gradients = torch.autograd.grad(output, learned, grad)
    torch.use_deterministic_algorithms(before, warn_only=True)
    return [t.detach().cpu() for t in (output, *gradients)]


def assert_agree(actual: list[Tensor], expected: list[Tensor], half: float = 1e-5) -> None:
    """Compares the results of `run` with kernels and with the reference. Sums may be in another order, and integers may
    be rounded to the other side; `half` is the tolerance of arithmetic in half precision."""
    tolerances = {
        torch.int32: {"rtol": 0, "atol": 1},
        torch.float32: {"rtol": 1e-5, "atol": 1e-5},
        torch.float16: {"rtol": 1e-3, "atol": half},
        torch.bfloat16: {"rtol": 1.6e-2, "atol": half},
    }
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, **tolerances.get(e.dtype, {}))
