"""Tests use the built core and fastenh.kernels, or fail: nothing here may pass on the reference by accident."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the checkout first on the path, where an installed fastenh would be shadowed by its sources,
# which have no compiled core. An editable install finds the checkout by itself.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]


def pytest_configure(config: pytest.Config) -> None:
    from fastenh import backends, kernels

    if backends.core is None:
        raise pytest.UsageError(f"the compiled core is {backends.core_problem}; to mend it: {backends.REBUILD}")
    if not kernels.stems():
        raise pytest.UsageError("fastenh.kernels holds no kernel; to mend it: " + backends.REBUILD)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Published weights, photos and golden outputs; FASTENH_ASSETS says where, default ../shared/assets."""
    folder = Path(os.environ.get("FASTENH_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no published assets at {folder} (FASTENH_ASSETS says where they are)")
    return folder
