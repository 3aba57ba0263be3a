"""Which code runs: chosen by hand, refused with a reason, replaced where it cannot run."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastenh
from fastenh import backends, kernels
from fastenh.ops import context

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in `folder`, where no checkout shadows the installed package."""
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, cwd=folder, capture_output=True, text=True
    )


def test_every_source_of_a_kernel_is_in_the_core_or_the_package() -> None:
    for variant in backends.core.cpu.values():
        assert {"lut_transform", "curve_iterate", "context_voxels", "channel_split_transform"} <= variant.keys()
    assert set(kernels.stems()) == {path.stem for path in (ROOT / "kernels").glob("[!_]*.py")}
    if backends.core.cuda_archs:
        assert {"context_voxels", "channel_split_transform", "probe"} <= backends.core.cuda.keys()


def test_a_name_holds_until_the_block_ends() -> None:
    assert backends.chosen() == "auto"
    with pytest.raises(ZeroDivisionError), fastenh.backend("reference"):
        with fastenh.backend("baseline"):
            assert backends.chosen() == "baseline"
        assert backends.chosen() == "reference"
        assert backends.kernels("context_voxels", CPU) is None
        raise ZeroDivisionError
    assert backends.chosen() == "auto"


@pytest.mark.parametrize("variant", backends.core.cpu)
def test_each_instruction_set_is_code_of_its_own(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    marked = {"context_voxels": lambda *args: ran.append(variant)}
    monkeypatch.setitem(backends.core.cpu, variant, marked)
    with fastenh.backend(variant):
        fastenh.ops.context_voxels(torch.rand(1, 3, 2, 2), torch.rand(1, 9, 2, 2))
    backends.kernels.cache_clear()
    assert ran == [variant]


def test_auto_takes_the_last_of_the_core() -> None:
    table = backends.kernels("lut_transform", CPU)
    assert table is not None
    assert table.keys() == list(backends.core.cpu.values())[-1].keys()
    assert list(backends.core.cpu) == [name for name in backends.CPU if name in backends.core.cpu], "slowest first"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of auto, reference, .*; got 'gpu'"), fastenh.backend("gpu"):
        pass
    assert backends.chosen() == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_what_cannot_run_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' cannot run here: .*CUDA"), fastenh.backend(name):
        pass
    assert backends.chosen() == "auto"


def test_the_environment_chooses(tmp_path: Path) -> None:
    code = "import fastenh; print(fastenh.backends.chosen())"
    assert python(code, tmp_path, FASTENH_BACKEND="baseline").stdout == "baseline\n"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fastest", "FASTENH_BACKEND: expected one of auto, reference, .*; got 'fastest'"),
        ("cuda", "FASTENH_BACKEND: 'cuda' cannot run here: .*CUDA"),
    ],
)
def test_a_wrong_name_in_the_environment_shows_when_it_matters(
    name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(backends, "_chosen", name)  # as at import, which it must not stop
    backends.kernels.cache_clear()
    with pytest.raises(ValueError, match=why) as caught:
        fastenh.ops.context_voxels(torch.rand(1, 3, 2, 2), torch.rand(1, 9, 2, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("core", "why"),
    [
        ("None", "not built"),
        ("types.SimpleNamespace(version='0.0.1')", f"built for fastenh 0.0.1, this is {fastenh.__version__}"),
    ],
)
def test_without_its_core_it_says_so_once_and_runs_the_reference(tmp_path: Path, core: str, why: str) -> None:
    code = (
        f"import sys, types; sys.modules['fastenh._C'] = {core}\n"
        "import torch, fastenh, fastenh.ops\n"
        "x = torch.rand(1, 4, 2, 2)\n"
        "for _ in range(2): y = fastenh.ops.channel_split_transform(x, x[:, 2:], x[:, 2:])\n"
        "assert torch.equal(y[:, 2:], x[:, 2:] * x[:, 2:] + x[:, 2:])"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert why in done.stderr and "To fix it: pip install" in done.stderr


@pytest.mark.parametrize("statement", ["import fastenh", "from fastenh.models.lut3d import ImageAdaptiveLUT"])
def test_the_warning_points_at_the_line_that_imports(tmp_path: Path, statement: str) -> None:
    (tmp_path / "library.py").write_text(f"import torch\n\n{statement}\n")
    (tmp_path / "program.py").write_text("import sys\nsys.modules['fastenh._C'] = None\nimport library\n")
    done = python("import runpy; runpy.run_path('program.py')", tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    place = f"{tmp_path / 'library.py'}:3"
    assert f"{place}: RuntimeWarning: fastenh runs on its slow PyTorch reference" in done.stderr


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two GPUs, where CUDA kernels were compiled for the first alone; which were asked is returned."""
    asked = []

    def probe(device: torch.device) -> None:
        asked.append(device)
        if device.index == 1:
            raise RuntimeError("CUDA: cannot load kernels: no kernel image is available for execution on the device")

    core = SimpleNamespace(cuda={"probe": probe, "context_voxels": None}, cuda_archs="9.0")
    monkeypatch.setattr(backends, "core", core)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda size, device: torch.device(device))
    backends.kernels.cache_clear()
    return asked


def test_each_card_takes_what_runs_on_it(two_cards: list[torch.device]) -> None:
    cards = [torch.device("cuda", i) for i in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        tables = [backends.kernels("context_voxels", card) for card in (*cards, *cards)]
    backends.kernels.cache_clear()
    assert two_cards == cards  # once each
    for table in tables[::2]:
        assert table == backends.core.cuda and table.gpu
    for table in tables[1::2]:
        assert table["__name__"] == "fastenh.kernels.context" and table.gpu
    assert [str(w.message) for w in caught] == [
        "fastenh does not use its CUDA kernels on cuda:1: CUDA: cannot load kernels: no kernel image is available for "
        "execution on the device (built for 9.0)"
    ]


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize("through", [lambda call: call, torch.no_grad()], ids=["fastenh", "torch"])
def test_the_warning_points_at_the_users_line(through: Callable[..., Any]) -> None:
    tensor = SimpleNamespace(device=torch.device("cuda", 1), dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match="does not use its CUDA kernels on cuda:1") as caught:
        through(context._op._kernels)([tensor])
    backends.kernels.cache_clear()
    assert [w.filename for w in caught] == [__file__]


def test_a_card_chosen_by_hand_is_asked_before(two_cards: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda size, device: torch.device("cuda", 1))  # the current device
    with pytest.raises(ValueError, match=r"^fastenh.backend: 'cuda' cannot run here: CUDA: .*no kernel image"):
        backends._choose("cuda")
    assert two_cards == [torch.device("cuda", 1)]


def test_what_runs_is_described() -> None:
    rows = dict(backends.describe())
    assert rows["fastenh"] == fastenh.__version__
    assert rows["core, CPU"].split(", ") == list(backends.core.built)
    assert rows["CPU tensors take"] == list(backends.core.cpu)[-1]
    assert all(rows[name] == (backends.problem(name) or "runs here") for name in backends.NAMES[2:])
    with fastenh.backend("reference"):
        assert dict(backends.describe())["CPU tensors take"] == "reference"
