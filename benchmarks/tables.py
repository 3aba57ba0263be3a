"""Markdown tables, shared by the benchmarks of CPUs and GPUs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"


def row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> list[str]:
    return [row(*cells), row(*["---"] * len(cells))]


def judged(text: str, figure: float | None, sign: str, goal: float | None) -> str:
    """The figure with its goal and whether it was met; "" if nothing was measured."""
    if figure is None:
        return ""
    if goal is None:
        return text.format(figure)
    met = figure <= goal if sign == "<=" else figure >= goal
    return f"{text.format(figure)}, goal {sign} {goal:g} {'met' if met else 'MISSED'}"


def put_into_readme(block: str, text: str, readme: Path = README) -> None:
    """Replaces the text between <!-- block --> and <!-- /block -->."""
    pattern = re.compile(rf"(?<=<!-- {block} -->\n).*(?=<!-- /{block} -->)", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: f"{text}\n\n", readme.read_text()))
