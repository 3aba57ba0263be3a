"""Frames in bands of rows: a measure needs many floats for each pixel it looks at, and a frame may have any size."""

from collections.abc import Iterator

from torch import Tensor

PIXELS = 2**19  # of one band: SSIM, the hungriest, takes some 300 bytes for each


def bands(image: Tensor) -> Iterator[slice]:
    """The rows of (B, C, H, W), in slices of about `PIXELS` pixels."""
    rows = max(1, PIXELS // (image.shape[0] * image.shape[-1]))
    for start in range(0, image.shape[-2], rows):
        yield slice(start, min(start + rows, image.shape[-2]))
