"""How CPU kernels read and write float16: every half, and float32 wherever rounding decides, against NumPy."""

import numpy as np
import pytest
import torch
from laws import VARIANTS
from torch import Tensor

from fastenh import backends

# Rows as the kernels meet them: contiguous, channels beside each other, and any other stride.
STRIDES = (1, 3, 2)


def copied(variant: str, values: Tensor, dtype: torch.dtype, stride: int) -> Tensor:
    """A row of values as another dtype, by a kernel that multiplies each by one."""
    row = torch.empty(1, 1, 1, len(values) * stride, dtype=values.dtype)[..., ::stride]
    row.copy_(values)
    out = torch.empty(1, 1, 1, len(values) * stride, dtype=dtype)[..., ::stride]
    ones = torch.ones(1, 1, 1, len(values))
    kernel = backends.core.cpu[variant]["context_voxels"]
    kernel(out.expand(1, 3, -1, -1), row.expand(1, 3, -1, -1), ones, 1, 1)
    return out.flatten()


def quiet(halves: np.ndarray) -> np.ndarray:
    """Bits of float16 with the quiet bit set in every NaN, as processors do."""
    return np.where(halves & 0x7FFF > 0x7C00, halves | 0x0200, halves)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_half_is_read_exactly(variant: str, stride: int) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    expected = quiet(halves).view(np.float16).astype(np.float32)
    result = copied(variant, torch.from_numpy(halves.view(np.float16)), torch.float32, stride)
    np.testing.assert_array_equal(result.numpy().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_floats_are_rounded_to_the_nearest_half(variant: str, stride: int) -> None:
    """Each finite half, the middle between it and the next, and the eight floats around both; then any bits at all."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves + np.append(halves[1:], np.float32(65536))) / 2
    ulps = np.arange(-4, 5, dtype=np.int32)
    near = (np.concatenate([halves, middles]).view(np.int32)[:, None] + ulps).ravel()
    random = np.random.default_rng(0).integers(0, 2**31, 2**17, dtype=np.int32)
    special = np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF], np.int32)
    bits = np.concatenate([near[near >= 0], random, special]).view(np.uint32)
    floats = np.concatenate([bits, bits | 0x80000000]).view(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = floats.astype(np.float16).view(np.uint16)
    nan = np.isnan(floats)
    upper_bits = floats.view(np.uint32) >> 13 & 0x3FF  # NumPy keeps NaNs signalling
    expected[nan] = expected[nan] & 0x8000 | 0x7E00 | upper_bits[nan]
    result = copied(variant, torch.from_numpy(floats), torch.float16, stride).numpy().view(np.uint16)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_small_halves_stay_where_denormal_floats_are_flushed(variant: str) -> None:
    halves = torch.arange(0x0400, dtype=torch.int16).view(torch.float16)
    expected = halves.float()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        floats = copied(variant, halves, torch.float32, 1)
        back = copied(variant, expected, torch.float16, 1)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(floats, expected) and torch.equal(back, halves)
