"""`pytest` runs the tests, `pytest --benchmark` the benchmarks.

Both use the built core and fastenh.kernels, or fail: nothing may pass on the reference by accident.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent

# `python -m pytest` puts the checkout first on the path, where an installed fastenh would be shadowed by its sources,
# which have no compiled core. An editable install finds the checkout by itself.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
os.environ["PYTHONSAFEPATH"] = "1"  # nor shall it in processes that tests start

# pytest-xdist's workers share the cores. Set before torch is imported, and inherited by processes that tests start.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run benchmarks/ instead of tests/")
    parser.addoption("--benchmark-results", action="store_true", help="write tables to benchmarks/results/ and README")


def pytest_configure(config: pytest.Config) -> None:
    from fastenh import backends, kernels

    if backends.core is None:
        raise pytest.UsageError(f"the compiled core is {backends.core_problem}; to fix it: {backends.REBUILD}")
    if not kernels.stems():
        raise pytest.UsageError("fastenh.kernels holds no kernel; to fix it: " + backends.REBUILD)
    if config.getoption("--benchmark") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = sorted(map(str, (ROOT / "benchmarks").glob("bench_*.py")))
