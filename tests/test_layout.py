"""The house: each floor imports only those below it, no cycle hides in a package, and a photo passes straight
through."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

import fastenh
from fastenh import Enhancer

PACKAGE = Path(fastenh.__file__).parent
# From the ground up. A name stands for a module or for all of a package.
FLOORS = (
    ("version", "memory", "kernels"), ("backends",), ("ops",), ("atomic", "tiles", "finish"), ("models",),
    ("losses",), ("metrics",), ("io",), ("data",), ("engine",), ("pipelines",), ("enhance",), ("evaluate",), ("train",),
    ("__init__",), ("cli",), ("__main__",),
)  # fmt: skip
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the package by its name; of a package, its __init__."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[tuple[str, str, int]]:
    """What a module imports from fastenh, wherever in its file: the module, the name taken from it, and the line."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "fastenh":
                    yield alias.name.partition(".")[2] or "__init__", "", node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fastenh":
            assert node.level == 0
            source = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{source}.{alias.name}" if source else alias.name
                if inner in MODULES or inner.startswith("_C"):
                    yield inner, "", node.lineno
                else:
                    yield source or "__init__", alias.name, node.lineno


def test_each_floor_imports_only_those_below() -> None:
    assert {module.partition(".")[0] for module in MODULES} <= FLOOR.keys()
    upward = []
    for module, path in MODULES.items():
        for source, name, line in imports(module):
            if source.startswith("_C"):
                continue
            if FLOOR[source.partition(".")[0]] > FLOOR[module.partition(".")[0]]:
                upward.append(f"{path}:{line}: imports {source}.{name} from a floor above")
    assert not upward, "\n".join(upward)


def test_there_is_no_import_cycle() -> None:
    """Importing a module also runs the __init__ of each package above it, through which cycles hide."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        targets = set()
        for source, _, _ in imports(module):
            parts = source.split(".")
            targets |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        own = module.split(".")
        above = {".".join(own[:n]) for n in range(1, len(own))} | {"__init__"}  # they run first in any case
        graph[module] = {target for target in targets & MODULES.keys() if target not in above and target != module}
    for package in [name for name in MODULES if MODULES[name].name == "__init__.py"]:
        for module in MODULES:  # a module that imports from its own package's front needs all that the front needs
            if module.startswith(f"{package}.") and any(s == package for s, _, _ in imports(module)):
                graph[module] |= {package}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join((*way[way.index(module) :], module))
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_private_name_crosses_files() -> None:
    private = []
    for module, path in MODULES.items():
        text = path.read_text()
        imported = {source.rpartition(".")[2] for source, name, _ in imports(module) if not name}
        for source, name, line in imports(module):
            if name.startswith("_") and not name.startswith("__"):
                private.append(f"{path}:{line}: {name} of {source}")
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and isinstance(node.value, ast.Name)
                and node.value.id in imported
            ):
                private.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not private, "\n".join(private)


def test_models_are_never_asked_what_they_have() -> None:
    asked = [
        f"{path}:{node.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
        if module.partition(".")[0] in ("models", "engine", "pipelines", "enhance", "evaluate", "cli", "train")
        and path.name != "system.py"  # which warns about modules that look like systems
    ]
    assert not asked, asked


def moves(run) -> list[str]:
    """The calls and returns from one file of the package to another, as the files they lead to."""
    found: list[str] = []
    stack: list[str] = []

    def profile(frame, event, argument) -> None:
        name = frame.f_code.co_filename
        if not name.startswith(str(PACKAGE)) or event not in ("call", "return"):
            return
        here = name.removeprefix(f"{PACKAGE}/")
        if event == "call":
            if stack and stack[-1] != here:
                found.append(here)
            stack.append(here)
        elif stack:
            stack.pop()
            if stack and stack[-1] != here:
                found.append(stack[-1])

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def test_a_photo_passes_straight_through(tmp_path: Path) -> None:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "a.jpg")
    enhancer = Enhancer("auto", "cpu")
    for name in ("first", "second"):  # the first fills caches
        way = moves(lambda name=name: enhancer.enhance_files(tmp_path / "a.jpg", tmp_path / f"{name}.jpg"))
    assert len(way) <= 88, f"{len(way)} moves: {' '.join(way)}"
