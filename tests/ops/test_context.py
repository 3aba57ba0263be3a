"""context_voxels against its reference, F.unfold, and the laws of every op."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from laws import FLOATS, VARIANTS, Box, Call, Laws, assert_close, lay_out

import fastenh
from fastenh.ops import context, context_voxels


@st.composite
def calls(draw: st.DrawFn) -> Call:
    batch, height = draw(st.integers(1, 2)), draw(st.integers(1, 10))
    width = draw(st.one_of(st.integers(1, 40), st.sampled_from([511, 512, 513, 1026])))
    k = draw(st.sampled_from([1, 3, 5, 7]))
    return Call([Box((batch, 3, height, width)), Box((batch, k * k, height, width), -1, 1)], (k,))


class TestLaws(Laws):
    op = context._op
    function = staticmethod(context_voxels)
    calls = calls()
    small = (
        Call([Box((2, 3, 4, 5)), Box((2, 9, 4, 5))], (3,)),
        Call([Box((1, 3, 1, 2)), Box((1, 25, 1, 2))], (5,)),
    )
    large = Call([Box((1, 3, 593, 599)), Box((1, 1, 593, 599), -1, 1)], (1,))

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize(("k", "width"), [(3, 8), (3, 264), (5, 136), (7, 16), (9, 8)])
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "float32 attention"])
    def test_rows_of_whole_packs(self, layout: str, k: int, width: int, dtype: torch.dtype, mixed: bool) -> None:
        """What GPUs take in the widest loads: all tensors of one layout, rows of a multiple of 16 bytes."""
        tensors = [Box((2, 3, 9, width)).tensor(0).to(dtype), Box((2, k * k, 9, width), -1, 1).tensor(1)]
        if not mixed:
            tensors[1] = tensors[1].to(dtype)
        tensors[1][0, 0, 0, 0] = tensors[0][1, 2, 8, width - 1] = float("nan")
        tensors = [lay_out(t, layout).requires_grad_() for t in tensors]
        exact = [t.detach().float().requires_grad_() for t in tensors]
        with fastenh.backend(VARIANTS[-1]):
            result, truth = context_voxels(*tensors, k), context.reference(context.Arguments(*exact, k))
            assert_close(result, truth.detach(), "result", self.arithmetic(tensors[0]))
            grad = lay_out(Box(tuple(result.shape), -1, 1).tensor(2).to(dtype), layout)
            for needed in ([0, 1], [0], [1]):
                gradients = torch.autograd.grad(result, [tensors[i] for i in needed], grad, retain_graph=True)
                true = torch.autograd.grad(truth, [exact[i] for i in needed], grad.float(), retain_graph=True)
                for i, gradient, true_gradient in zip(needed, gradients, true, strict=True):
                    assert_close(gradient, true_gradient, f"gradient {i}", self.arithmetic(tensors[0]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k", [1, 3, 5, 9])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (40, 700)])
def test_is_unfold_times_attention(variant: str, k: int, size: tuple[int, int]) -> None:
    image, attention = torch.rand(2, 3, *size), torch.rand(2, k * k, *size)
    unfolded = F.unfold(image, k, padding=k // 2).view(2, 3, k * k, *size)
    with fastenh.backend(variant):
        result = context_voxels(image, attention, k)
    assert torch.equal(result, (unfolded * attention[:, None]).flatten(1, 2))  # one product each: exact


def test_offsets_by_hand() -> None:
    """A single bright pixel at (1, 2) is seen by the pixel below it (2, 2) as its neighbour above: dy = -1, j = 1."""
    image = torch.zeros(1, 3, 4, 4)
    image[0, 1, 1, 2] = 1.0
    result = context_voxels(image, torch.ones(1, 9, 4, 4))
    assert result[0, 9 + 1, 2, 2] == 1
    assert result[0, 9 + 4, 1, 2] == 1
    assert result[0, 9 + 3, 1, 3] == 1  # the pixel to its right sees it on the left: dx = -1, j = 3
    assert result.sum() == 9
    assert result[0, :9].sum() == result[0, 18:].sum() == 0


def test_layout_of_the_result() -> None:
    image, attention = torch.rand(1, 3, 4, 5), torch.rand(1, 9, 4, 5)
    assert context_voxels(image, attention).is_contiguous()
    last = context_voxels(image.contiguous(memory_format=torch.channels_last), attention)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, context_voxels(image, attention))


image, attention = torch.rand(1, 3, 4, 4), torch.rand(1, 9, 4, 4)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((None, attention), TypeError, "image: expected a torch.Tensor; got NoneType"),
        ((image[0], attention), ValueError, r"image: expected shape \(B, 3, H, W\).*got \(3, 4, 4\)"),
        ((image[:, :2], attention), ValueError, r"image: expected shape .*got \(1, 2, 4, 4\)"),
        ((image[:0], attention[:0]), ValueError, r"B, H, W >= 1; got \(0, 3, 4, 4\)"),
        ((image.byte(), attention), TypeError, "image: expected one of float.*got uint8"),
        ((image, attention[:, :8]), ValueError, r"attention: expected shape \(1, 9, 4, 4\); got \(1, 8, 4, 4\)"),
        ((image, attention[..., :3]), ValueError, r"attention: expected shape \(1, 9, 4, 4\); got \(1, 9, 4, 3\)"),
        ((image, attention, 5), ValueError, r"attention: expected shape \(1, 25, 4, 4\); got \(1, 9, 4, 4\)"),
        ((image, attention.byte()), TypeError, "attention: expected one of float.*got uint8"),
        ((image, attention, 2), ValueError, "kernel_size: expected an odd number >= 1; got 2"),
        ((image, attention, -1), ValueError, "kernel_size: expected an odd number >= 1; got -1"),
        ((image, attention.to("meta")), ValueError, "attention: expected device cpu.*got meta"),
    ],
)
def test_bad_arguments(args: tuple[object, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^context_voxels: .*{message}") as caught:
        context_voxels(*args)
    assert "\n" not in str(caught.value)
