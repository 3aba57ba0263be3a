"""For pytest: fastenh with the CUDA kernels of a core built for the CPU, as if CPU tensors lay on a GPU.

FASTENH_CUDA_ON_CPU names the core. What tests know as instruction sets are here the orders in which a kernel's blocks
and threads run, "forward" and "reversed".
"""

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import pytest

ORDERS = ("forward", "reversed")


def pytest_configure(config: pytest.Config) -> None:
    from fastenh import backends

    spec = importlib.util.spec_from_file_location("_C", os.environ["FASTENH_CUDA_ON_CPU"])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = module.cpu["baseline"]

    def in_order(kernel: Callable[..., None], order: str) -> Callable[..., None]:
        return lambda *args: kernel(*args, ORDERS.index(order))  # as the stream

    @cache
    def kernels(op: str, device: object) -> backends.Kernels | None:
        if backends.chosen() == "reference" or op not in table:  # an op of another file, which the tested one calls
            return None
        order = backends.chosen() if backends.chosen() in ORDERS else "forward"
        return backends.Kernels({name: in_order(kernel, order) for name, kernel in table.items()}, gpu=True)

    backends.core = SimpleNamespace(cpu=dict.fromkeys(ORDERS, table), built=ORDERS, cuda=table)
    backends.CPU, backends.NAMES = ORDERS, ("auto", "reference", *ORDERS)
    backends.kernels = kernels
