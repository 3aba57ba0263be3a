"""Every op test runs with fresh memory filled: NaN in float tensors, the largest number in integer ones. What a kernel
forgets to write, or reads before writing, then shows."""

import os
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


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    """Kernels share a picture among three threads, however many cores a machine has and pytest-xdist's workers get."""
    before = torch.get_num_threads()
    if "FASTENH_CUDA_ON_CPU" not in os.environ:
        torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
