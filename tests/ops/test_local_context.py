"""local_context_retouch against its layers as PyTorch's own modules, and the laws of every op."""

from collections.abc import Sequence

import laws
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from laws import FLOATS, VARIANTS, Box, Call, Laws, assert_close, lay_out, to_dtype, to_values
from torch import Tensor, nn

import fastenh
from fastenh.ops import LocalContextParams, local_context, local_context_retouch, lut_transform


def param_boxes(k: int, features: int, hidden: int, count: int) -> list[Box]:
    """Weights as large as layers of their width have them, so that no layer lies still or at the end of its range."""
    shapes = [(features, 3, k, k), (k * k, features, 1, 1), (hidden, 3 * k * k, 1, 1), (count, hidden, 1, 1)]
    boxes = []
    for shape in shapes:
        reach = 2 / (shape[1] * shape[2] * shape[3]) ** 0.5
        boxes += [Box(s, -reach, reach, may_hold_nan=False) for s in (shape, shape[:1])]
    return boxes


@st.composite
def calls(draw: st.DrawFn) -> Call:
    batch, height = draw(st.integers(1, 2)), draw(st.integers(1, 7))
    width = draw(st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 130])))
    k = draw(st.sampled_from([3, 3, 5, 7]))
    features, hidden = draw(st.sampled_from([1, 5, 16, 64])), draw(st.sampled_from([1, 6, 32, 128]))
    count, size = draw(st.integers(1, 7)), draw(st.sampled_from([2, 3, 9, 33]))
    luts = (batch,) * draw(st.booleans()) + (count, 3, size, size, size)
    images = draw(st.sampled_from([batch, 1]))
    weights = Box((images, count), -1, 1, may_hold_nan=False) if draw(st.booleans()) else None
    image = Box((batch, 3, height, width), -0.1, 1.1)
    return Call([image, Box(luts, may_hold_nan=False), weights, *param_boxes(k, features, hidden, count)])


def call(image: Tensor, luts: Tensor, weights: Tensor | None, *params: Tensor, out: Tensor | None = None) -> Tensor:
    return local_context_retouch(image, luts, weights, params, out=out)


class TestLaws(Laws):
    op = local_context._op
    function = staticmethod(call)
    calls = calls()
    small = (
        Call([Box((2, 3, 3, 4)), Box((2, 3, 3, 3, 3)), Box((2, 2)), *param_boxes(3, 4, 5, 2)]),
        Call([Box((1, 3, 1, 2)), Box((1, 1, 3, 2, 2, 2)), None, *param_boxes(5, 2, 3, 1)]),
    )
    large = Call([Box((1, 3, 593, 599)), Box((1, 3, 3, 3, 3)), None, *param_boxes(3, 4, 4, 1)])
    dtypes = (*FLOATS, torch.uint8, torch.uint16)
    half_on_gpu = {torch.float16: 1e-2, torch.bfloat16: 1e-2, torch.uint8: 1e-2}

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("k", [3, 5, 7])
    @pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8, torch.uint16], ids=str)
    def test_widths_of_the_paper(self, layout: str, k: int, dtype: torch.dtype) -> None:
        """5 LUTs of 33, 64 and 128 channels, several tiles with a rest in both directions."""
        height = 35 if k == 3 else 19
        boxes = [Box((2, 3, height, 70)), Box((5, 3, 33, 33, 33)), Box((2, 5), -1, 1), *param_boxes(k, 64, 128, 5)]
        tensors = [box.tensor(i) for i, box in enumerate(boxes)]
        image = tensors[0] = lay_out(to_dtype(tensors[0], dtype), layout)
        truth = self.truth([to_values(image), *tensors[1:]], ())
        with fastenh.backend(laws.VARIANTS[-1]):
            assert_close(call(*tensors), truth, "result", self.arithmetic(image))


@pytest.mark.parametrize("k", [3, 5, 7])
def test_is_its_layers_one_after_the_other(k: int) -> None:
    """Torch's own convolutions, unfold and softmax, and a LUT at a time; outside the image colours are 0."""
    torch.manual_seed(k)
    layers = [
        nn.Conv2d(3, 8, k, padding=k // 2),
        nn.Conv2d(8, k * k, 1),
        nn.Conv2d(3 * k * k, 6, 1),
        nn.Conv2d(6, 3, 1),
    ]
    params = LocalContextParams(*(p.detach() for layer in layers for p in layer.parameters()))
    image, luts, weights = torch.rand(2, 3, 9, 11), torch.rand(3, 3, 5, 5, 5), torch.rand(2, 3)
    with torch.no_grad(), fastenh.backend("reference"):
        attention = layers[1](layers[0](image).relu()).softmax(1)
        neighbours = F.unfold(image, k, padding=k // 2).view(2, 3, k * k, 9, 11)
        pixel_weights = layers[3](layers[2]((neighbours * attention[:, None]).flatten(1, 2)).relu())
        looked_up = torch.stack([lut_transform(image, table[None]) for table in luts], 1)
    expected = (weights[..., None, None, None] * pixel_weights[:, :, None] * looked_up).sum(1)
    torch.testing.assert_close(local_context_retouch(image, luts, weights, params), expected, rtol=1e-5, atol=1e-5)


def paper(k: int = 3) -> tuple[Tensor, Tensor, list[Tensor]]:
    tensors = [box.tensor(i) for i, box in enumerate([Box((5, 3, 9, 9, 9)), Box((1, 5)), *param_boxes(k, 64, 128, 5)])]
    return tensors[0], tensors[1], tensors[2:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k", [3, 5, 7])
def test_tiles_with_their_halo_are_the_whole(variant: str, k: int) -> None:
    """Bit for bit, wherever the cuts are: no pixel's arithmetic depends on its place in a vector or a block."""
    luts, weights, params = paper(k)
    image, halo = torch.rand(1, 3, 23, 301), k // 2
    with fastenh.backend(variant):
        whole = local_context_retouch(image, luts, weights, params)
        for top, bottom, left, right in [(0, 7, 0, 131), (7, 23, 131, 301), (5, 6, 17, 18), (9, 23, 3, 200)]:
            t, b, le, r = max(0, top - halo), min(23, bottom + halo), max(0, left - halo), min(301, right + halo)
            tile = local_context_retouch(image[..., t:b, le:r], luts, weights, params)
            assert torch.equal(
                tile[..., top - t : bottom - t, left - le : right - le], whole[..., top:bottom, left:right]
            )


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_luts_than_are_weighted_at_once(variant: str) -> None:
    boxes = [Box((1, 3, 3, 50)), Box((93, 3, 2, 2, 2)), Box((1, 93), -1, 1), *param_boxes(3, 16, 9, 93)]
    tensors = [box.tensor(i) for i, box in enumerate(boxes)]
    with fastenh.backend(variant):
        assert_close(call(*tensors), local_context._op.reference(local_context.Arguments(*tensors)))


def test_scores_of_any_size() -> None:
    """The softmax neither overflows nor divides by zero."""
    luts, weights, params = paper()
    image = torch.rand(1, 3, 5, 20)
    params[2] = params[2] * 1e4
    arguments = local_context.Arguments(image.double(), luts, weights, *params)
    expected = local_context._op.reference(arguments).float()
    torch.testing.assert_close(local_context_retouch(image, luts, weights, params), expected, rtol=1e-4, atol=1e-4)


image, (luts, weights, params) = torch.rand(1, 3, 4, 4), paper()


def changed(index: int, tensor: object) -> list[object]:
    return [*params[:index], tensor, *params[index + 1 :]]


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((image[0], luts, weights, params), ValueError, r"image: expected shape \(B, 3, H, W\)"),
        ((image, luts[0], weights, params), ValueError, r"\(B, 5, 3, D, D, D\) with B = 1; got \(3"),
        ((image, luts[0, 0], weights, params), ValueError, r"luts: .* \(5, 3, D, D, D\) or .*; got \(9,"),
        (
            (image, luts[:4], weights, params),
            ValueError,
            r"luts: expected shape \(5, 3, D, D, D\) or .*got \(4, 3, 9",
        ),
        ((image, luts, weights[:, :4], params), ValueError, r"weights: expected shape \(1, 5\); got \(1, 4\)"),
        (
            (image.repeat(3, 1, 1, 1), luts, weights.repeat(2, 1), params),
            ValueError,
            r"weights: .*\(3, 5\) or \(1, 5\)",
        ),
        ((image, luts, weights, params[:7]), ValueError, "params: expected 8 tensors.*got 7"),
        ((image, luts, weights, changed(0, None)), TypeError, "params.features_weight: expected a torch.Tensor"),
        ((image, luts, weights, changed(0, params[0][..., :2])), ValueError, r"k = 3, 5 or 7; got \(64, 3, 3, 2\)"),
        (
            (image, luts, weights, changed(1, params[1][:3])),
            ValueError,
            r"features_bias: expected shape \(64\)",
        ),
        (
            (image, luts, weights, changed(2, params[2][:8])),
            ValueError,
            r"attention_weight: .* \(9, 64, 1, 1\)",
        ),
        (
            (image, luts, weights, changed(4, params[4][:, :9])),
            ValueError,
            r"hidden_weight: .* \(V, 27, 1, 1\)",
        ),
        ((image, luts, weights, changed(6, params[6].int())), TypeError, "head_weight: expected one of float"),
    ],
)
def test_bad_arguments(args: Sequence[object], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^local_context_retouch: .*({message})") as caught:
        local_context_retouch(*args)
    assert "\n" not in str(caught.value)
