"""Bands of rows: a metric needs many floats per pixel, and an image may have any size."""

from collections.abc import Iterator

from torch import Tensor

PIXELS = 2**19  # of one band: SSIM, which needs most, takes some 300 bytes per pixel


def bands(image: Tensor) -> Iterator[slice]:
    """Slices of the rows of (B, C, H, W), about `PIXELS` pixels each."""
    rows = max(1, PIXELS // (image.shape[0] * image.shape[-1]))
    for start in range(0, image.shape[-2], rows):
        yield slice(start, min(start + rows, image.shape[-2]))
