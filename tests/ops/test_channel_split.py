"""channel_split_transform against its reference, GFP-GAN's own three lines, and the laws of every op."""

import pytest
import torch
from hypothesis import strategies as st
from laws import FLOATS, VARIANTS, Box, Call, Laws, assert_close, lay_out

import fastenh
from fastenh.ops import channel_split, channel_split_transform

Shape = tuple[int, ...]


@st.composite
def calls(draw: st.DrawFn) -> Call:
    batch, channels, height = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 10))
    width = draw(st.one_of(st.integers(1, 40), st.sampled_from([511, 512, 513, 1026])))
    split = draw(st.integers(0, channels))

    def broadcastable() -> tuple[int, ...]:
        shape = [draw(st.sampled_from([1, size])) for size in (batch, channels - split, height, width)]
        if draw(st.booleans()):
            shape = [batch, channels - split, height, width]
        leading = 0
        while leading < 4 and shape[leading] == 1 and draw(st.booleans()):
            leading += 1
        return tuple(shape[leading:])

    boxes = [Box((batch, channels, height, width), -2, 2), Box(broadcastable(), -2, 2), Box(broadcastable(), -2, 2)]
    return Call(boxes, (split,))


class TestLaws(Laws):
    op = channel_split._op
    function = staticmethod(channel_split_transform)
    calls = calls()
    small = (
        Call([Box((2, 6, 3, 5)), Box((2, 3, 3, 5)), Box((2, 3, 3, 5))], (3,)),
        Call([Box((2, 5, 3, 4)), Box((3, 1, 1)), Box((2, 1, 3, 4))], (2,)),
    )
    large = Call([Box((1, 4, 593, 599)), Box((2, 593, 599)), Box((2, 593, 599))], (2,))

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "float32 scale and shift"])
    @pytest.mark.parametrize(
        ("sizes", "split", "scale", "shift"),
        [
            ((2, 24, 5, 40), 8, (2, 16, 5, 40), (2, 16, 5, 40)),
            ((1, 16, 3, 704), 8, (1, 8, 3, 704), (8, 1, 1)),
            ((2, 16, 80, 104), 8, (2, 8, 1, 1), (2, 8, 1, 1)),
            ((2, 16, 5, 8), 0, (16, 1, 1), (5, 8)),
            ((2, 16, 5, 8), 8, (2, 1, 5, 1), (1, 8, 1, 8)),
            ((1, 16, 5, 8), 5, (1, 11, 5, 8), (1, 11, 5, 8)),
        ],
        ids=str,
    )
    def test_whole_packs(
        self, layout: str, dtype: torch.dtype, mixed: bool, sizes: Shape, split: int, scale: Shape, shift: Shape
    ) -> None:
        """What GPUs take in the widest loads: all tensors of one layout, and runs of a multiple of 16 bytes."""
        other = torch.float32 if mixed else dtype
        tensors = [Box(shape, -2, 2).tensor(i) for i, shape in enumerate((sizes, scale, shift))]
        tensors = [lay_out(t.to(other if i else dtype), layout) for i, t in enumerate(tensors)]
        exact = [t.float().clone().requires_grad_() for t in tensors]
        truth = channel_split._reference(channel_split.Arguments(*exact, split))
        with fastenh.backend(VARIANTS[-1]):
            out = tensors[0].clone()
            assert_close(channel_split_transform(*[out, *tensors[1:]], split, out=out), truth.detach(), "in place")
            tensors = [t.requires_grad_() for t in tensors]
            result = channel_split_transform(*tensors, split)
            assert_close(result, truth.detach())
            grad = lay_out(Box(sizes, -1, 1).tensor(3).to(dtype), layout)
            for needed in ([0, 1, 2], [0], [1], [2]):
                gradients = torch.autograd.grad(result, [tensors[i] for i in needed], grad, retain_graph=True)
                true = torch.autograd.grad(truth, [exact[i] for i in needed], grad.float(), retain_graph=True)
                for i, gradient, true_gradient in zip(needed, gradients, true, strict=True):
                    assert gradient.dtype == tensors[i].dtype
                    assert_close(gradient, true_gradient, f"gradient {i}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_is_split_scale_shift_cat(variant: str, dtype: torch.dtype) -> None:
    features, scale, shift = (torch.randn(2, c, 70, 90) for c in (64, 32, 32))
    features = features.to(dtype)
    identity, transformed = torch.split(features, 32, dim=1)
    expected = torch.cat([identity, torch.addcmul(shift, transformed.float(), scale).to(dtype)], dim=1)
    with fastenh.backend(variant):
        result = channel_split_transform(features, scale, shift)
    assert torch.equal(result[:, :32], identity)  # what passes is untouched, bit for bit
    torch.testing.assert_close(result, expected)


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns that it records sizes
def test_default_split_of_a_program() -> None:
    """Tracing and exporting know sizes as other kinds of numbers."""
    tensors = tuple(torch.rand(2, c, 3, 5) for c in (4, 2, 2))
    others = tuple(torch.rand(3, c, 4, 6) for c in (4, 2, 2))

    class Module(torch.nn.Module):
        def forward(self, features: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return channel_split_transform(features, scale, shift)

    traced = torch.jit.trace(channel_split_transform, tensors)
    free = {0: torch.export.Dim("b"), 1: torch.export.Dim.AUTO, 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    exported = torch.export.export(Module(), tensors, dynamic_shapes=(free, free, free)).module()
    for program in (traced, exported):
        for inputs in (tensors, others):
            torch.testing.assert_close(program(*inputs), channel_split_transform(*inputs, 2))


def test_gradient_of_a_whole_shift_is_a_view() -> None:
    tensors = [torch.rand(2, c, 3, 5).requires_grad_() for c in (4, 3, 3)]
    grad = torch.rand(2, 4, 3, 5)
    gradient = torch.autograd.grad(channel_split_transform(*tensors, 1), tensors, grad)[2]
    assert gradient.data_ptr() == grad[:, 1:].data_ptr()


features, side = torch.rand(1, 4, 3, 3), torch.rand(1, 2, 3, 3)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((None, side, side), TypeError, "features: expected a torch.Tensor; got NoneType"),
        ((features[0], side, side), ValueError, r"features: expected shape \(B, C, H, W\).*got \(4, 3, 3\)"),
        ((features[:0], side, side), ValueError, r"features: expected shape .*got \(0, 4, 3, 3\)"),
        ((features.byte(), side, side), TypeError, "features: expected one of float.*got uint8"),
        ((features, None, side), TypeError, "scale: expected a torch.Tensor; got NoneType"),
        ((features, side, 1.0), TypeError, "shift: expected a torch.Tensor; got float"),
        ((features, side.repeat(1, 2, 1, 1), side), ValueError, r"scale: expected shape \(1, 2, 3, 3\).*got \(1, 4"),
        ((features, side, side[..., :2]), ValueError, r"shift: expected shape \(1, 2, 3, 3\).*got \(1, 2, 3, 2\)"),
        ((features, side[None], side), ValueError, r"scale: expected shape \(1, 2, 3, 3\).*got \(1, 1, 2, 3, 3\)"),
        ((features, side.byte(), side), TypeError, "scale: expected one of float.*got uint8"),
        ((features, side, side, 5), ValueError, "split: expected 0 to 4; got 5"),
        ((features, side, side, -1), ValueError, "split: expected 0 to 4; got -1"),
        ((features, side, side.to("meta")), ValueError, "shift: expected device cpu.*got meta"),
    ],
)
def test_bad_arguments(args: tuple[object, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^channel_split_transform: .*{message}") as caught:
        channel_split_transform(*args)
    assert "\n" not in str(caught.value)
