"""Every op test runs with fresh memory filled: NaN in float tensors, the largest number in integer ones. What a kernel
forgets to write, or reads before writing, then shows."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # laws.py, which the test files beside it take their laws from
pytest.register_assert_rewrite("laws")


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
