"""What keeps LUTs smooth and monotonic, against its formulas written as loops."""

import numpy as np
import pytest
import torch

from fastenh.losses import monotonicity, total_variation
from fastenh.models.lut3d import identity_lut


def test_total_variation_and_monotonicity_follow_their_formulas():
    size = 4
    luts = torch.randn(2, 3, size, size, size, dtype=torch.float64)
    for n, lut in enumerate(luts.numpy()):
        variation = fall = 0.0
        for axis in range(3):
            steps = np.moveaxis(lut, axis + 1, 0)
            squares = falls = count = 0.0
            for i in range(size - 1):
                d = steps[i] - steps[i + 1]
                squares += (2 if i in (0, size - 2) else 1) * (d**2).sum()
                falls += np.maximum(d, 0).sum()
                count += d.size
            variation += squares / count
            fall += falls / count
        assert total_variation(luts)[n].item() == pytest.approx(variation)
        assert monotonicity(luts)[n].item() == pytest.approx(fall)
    assert monotonicity(identity_lut(5)[None]).item() == 0
