"""channel_split_transform against its reference, GFP-GAN's own three lines, and the laws of every op."""

import pytest
import torch
from hypothesis import strategies as st
from laws import VARIANTS, Box, Call, Laws

import fastenh
from fastenh.ops import channel_split, channel_split_transform


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
