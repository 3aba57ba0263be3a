"""Writes the measurements of `make gpu-check` as a results file, as tables, and into README.

python benchmarks/gpu/tables.py benchmarks/results/<gpu>-<date>.json     writes the tables next to it and into README
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tables import header, judged, put_into_readme, row

from gpu.ops import CURVE_LOW, CURVE_MAPS, FIVE_LUTS, LOCAL, ONE_LUT, OPS, SPLIT, VOXELS
from gpu.speed import COMPILED, DTYPES, EAGER, OURS, PROFILED, REUSED, ROOT, SIZES, Journal, Unit, plan

RESULTS = ROOT / "benchmarks" / "results"
UNMEASURED = "No GPU has been measured yet: the speed of the CUDA and Triton kernels is unknown."
GOALS_ARE_FOR = "H200"
PEERS = (EAGER, REUSED, COMPILED)


# ---- the results file ----


def results_of(journal: Journal, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything in a journal, with the other `steps` of the check."""
    begun, records = journal.units("begin"), journal.units("record")
    failures, unsupported = journal.units("failure"), journal.units("unsupported")
    died = begun.keys() - records.keys() - failures.keys() - unsupported.keys()
    failures |= dict.fromkeys(died, "the process died here, or time ran out")
    failures |= {u: r["not captured"] for u, r in records.items() if u.code in OURS and "not captured" in r}
    about = journal.facts()
    missing = [u for u in plan() if u not in begun and u.code.split(",")[0] not in about.get("cannot run", ())]
    return {
        "about": about,
        "steps": steps,
        "failures": [f"{', '.join(u)}: {why}" for u, why in failures.items()],
        "peers that cannot": [f"{', '.join(u)}: {why}" for u, why in unsupported.items()],
        "not measured": [", ".join(u) for u in missing],
        "records": [unit._asdict() | record for unit, record in records.items()],
    }


def file_name(results: dict[str, Any]) -> str:
    about = results["about"]
    return re.sub(r"[^a-z0-9]+", "-", f"{about['gpu']}-{about['date']}".lower())


class Figures:
    """Looks up records; None means not measured."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.records = {Unit(*(r[field] for field in Unit._fields)): r for r in results["records"]}
        self.copy = results["about"]["before"]["copy, GB/s"] * 1e3  # bytes per microsecond

    def us(self, unit: Unit) -> float | None:
        """Ours: the time of a graph replay. A peer: the shorter of replay and call."""
        record = self.records.get(unit)
        if record is None:
            return None
        times = [record[way]["us"] for way in ("replayed", "called") if way in record]
        return times[0] if unit.code in OURS else min(times)

    def share(self, unit: Unit) -> float | None:
        """The op's bytes over its time, as a fraction of the copy bandwidth."""
        us = self.us(unit)
        return us and self.records[unit]["bytes"] / us / self.copy

    def times_faster(self, unit: Unit, peer: str) -> float | None:
        return ratio(self.us(unit._replace(code=peer)), self.us(unit))

    def sass(self, unit: Unit) -> float | None:
        """Instructions per pixel of the kernel that takes the longest."""
        record = self.records.get(unit._replace(size=list(SIZES)[-1], picture="photo", code=PROFILED))
        return record["kernels"][0]["sass"] if record and record["kernels"] else None

    def host(self, op: str, code: str, way: str = "us") -> float | None:
        record = self.records.get(Unit(op, "64 x 64", "float16", "noise", "host", code))
        return record and record[way]


def forward(op: str) -> Unit:
    """The case that goals and README refer to unless they say otherwise."""
    return Unit(op, "8K", "float16", "photo", "forward", "cuda")


def backward(op: str) -> Unit:
    return forward(op)._replace(direction="backward")


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b is not None else None


# ---- the goals ----


def goals(figures: Figures) -> Iterator[tuple[str, str, float | None, str, float]]:
    """(what, format, figure, sign, goal): of a photo of 7680 x 4320 in float16 unless `what` says otherwise."""
    us, share, times_faster = figures.us, figures.share, figures.times_faster
    yield f"{ONE_LUT} (aim 116)", "{:.0f} µs", us(forward(ONE_LUT)), "<=", 170
    yield f"{ONE_LUT}, uint8", "{:.0f} µs", us(forward(ONE_LUT)._replace(dtype="uint8")), "<=", 130
    yield FIVE_LUTS, "{:.0f} µs", us(forward(FIVE_LUTS)), "<=", 1000
    yield f"{LOCAL} (aim 1500)", "{:.0f} µs", us(forward(LOCAL)), "<=", 2000
    yield f"{LOCAL}, 4K", "{:.0f} µs", us(forward(LOCAL)._replace(size="4K")), "<=", 600
    yield f"{LOCAL}: times faster than eager", "{:.2f}", times_faster(forward(LOCAL), EAGER), ">=", 10
    for op, goal in {CURVE_MAPS: 0.85, CURVE_LOW: 0.65, VOXELS: 0.85, SPLIT: 0.9}.items():
        yield f"{op}: of the copy bandwidth", "{:.2f}", share(forward(op)), ">=", goal
    for op in (ONE_LUT, FIVE_LUTS):
        noise = us(forward(op)._replace(picture="noise"))
        yield f"{op}: noise over photo", "{:.2f}", ratio(noise, us(forward(op))), "<=", 2.2
    for op in OPS:
        compiled = share(forward(op)._replace(code=COMPILED))
        if compiled is None or compiled < 0.7:
            yield (
                f"{op}: times faster than torch.compile",
                "{:.2f}",
                times_faster(forward(op), COMPILED),
                ">=",
                4 if op == LOCAL else 3,
            )
    for op, goal in {ONE_LUT: 10, FIVE_LUTS: 10, CURVE_MAPS: 5, CURVE_LOW: 5, VOXELS: 3, SPLIT: 2}.items():
        yield f"{op}, backward: times faster than eager", "{:.2f}", times_faster(backward(op), EAGER), ">=", goal
    for op in (ONE_LUT, FIVE_LUTS):
        flat = us(backward(op)._replace(picture="flat"))
        yield f"{op}, backward: flat picture over photo", "{:.2f}", ratio(flat, us(backward(op))), "<=", 5
    for unit in (unit for op in OPS for unit in (forward(op), backward(op))[: 1 + OPS[op].gradients]):
        what = f"{unit.op}, {unit.direction}: Triton over CUDA"
        yield what, "{:.2f}", times_faster(unit, "triton"), "<=", 1.5
    for op in OPS:
        yield f"{op}: host time of one call, 64 x 64", "{:.1f} µs", figures.host(op, "cuda"), "<=", 15


# ---- the tables ----


def tables(results: dict[str, Any]) -> str:
    figures = Figures(results)
    parts = [
        "; ".join(facts_of(results["about"])),
        "\n".join(goal_table(results)),
        "\n".join(forward_table(figures)),
        "\n".join(backward_table(figures)),
        "\n".join(host_table(figures)),
        "\n".join(f"- {step['step']}: {'' if step['ok'] else 'FAILED: '}{step['note']}" for step in results["steps"]),
    ]
    for title in ("failures", "peers that cannot", "not measured"):
        if results[title]:
            parts.append("\n".join([f"{title.capitalize()}:", "", *(f"- {line}" for line in results[title])]))
    return "\n\n".join(parts) + "\n"


def facts_of(about: dict[str, Any]) -> list[str]:
    """The facts as "name: value"; those of a group are joined after its name."""
    lines = []
    for key, value in about.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value:
            lines.append(f"{key}: {value}")
    return lines


def shown(text: str, figure: float | None) -> str:
    return "" if figure is None else text.format(figure)


def goal_table(results: dict[str, Any]) -> list[str]:
    judging = GOALS_ARE_FOR in results["about"]["gpu"]
    lines = header(
        "7680 x 4320 photo, float16, CUDA-graph replay, unless it says otherwise",
        f"figure{'' if judging else f' (goals are for {GOALS_ARE_FOR})'}",
    )
    for what, text, figure, sign, goal in goals(Figures(results)):
        lines.append(row(what, judged(text, figure, sign, goal if judging else None) or "not measured"))
    return lines


def forward_table(figures: Figures) -> list[str]:
    lines = header(
        "op", "size", "dtype", "picture", "MB", "CUDA, µs (quartiles)", "called, µs", "of copy bandwidth",
        "SASS a pixel", "Triton, µs", "over CUDA", *(f"times faster than {peer}" for peer in PEERS),
    )  # fmt: skip
    for unit, cuda, triton in rows(figures, "forward"):
        lines.append(row(
            *unit[:4], f"{(cuda or triton)['bytes'] / 1e6:.0f}",
            quartiles(cuda), shown("{:.0f}", cuda and cuda["called"]["us"]), shown("{:.2f}", figures.share(unit)),
            shown("{:.0f}", figures.sass(unit)),
            quartiles(triton), shown("{:.2f}", figures.times_faster(unit, "triton")),
            *(shown("{:.2f}", figures.times_faster(unit, peer)) for peer in PEERS),
        ))  # fmt: skip
    return lines


def backward_table(figures: Figures) -> list[str]:
    lines = header(
        "op, backward", "size", "dtype", "picture", "MB", "CUDA, µs (quartiles)", "called, µs", "of copy bandwidth",
        "SASS a pixel", "Triton, µs", "over CUDA", f"times faster than {EAGER}",
    )  # fmt: skip
    for unit, cuda, triton in rows(figures, "backward"):
        lines.append(row(
            *unit[:4], f"{(cuda or triton)['bytes'] / 1e6:.0f}",
            quartiles(cuda), shown("{:.0f}", cuda and cuda["called"]["us"]), shown("{:.2f}", figures.share(unit)),
            shown("{:.0f}", figures.sass(unit)),
            quartiles(triton), shown("{:.2f}", figures.times_faster(unit, "triton")),
            shown("{:.2f}", figures.times_faster(unit, EAGER)),
        ))  # fmt: skip
    return lines


def host_table(figures: Figures) -> list[str]:
    ways = [(code, way) for code in OURS for way in ("us", "us with out=")]
    titles = [f"{code}, {way.replace('us', 'µs')}" for code, way in ways]
    lines = header("host time of one call, 64 x 64, float16", *titles)
    return lines + [row(op, *(shown("{:.1f}", figures.host(op, code, way)) for code, way in ways)) for op in OPS]


def rows(figures: Figures, direction: str) -> Iterator[tuple[Unit, dict[str, Any], dict[str, Any]]]:
    """Our measured units, ordered by op, size and dtype, each with its records."""
    orders = [list(OPS), list(SIZES), list(DTYPES), ["photo", "noise", "flat"]]
    units = {unit._replace(code="cuda") for unit in plan() if unit.direction == direction}
    for unit in sorted(units, key=lambda unit: [order.index(n) for order, n in zip(orders, unit, strict=False)]):
        cuda, triton = (figures.records.get(unit._replace(code=code)) for code in OURS)
        if cuda or triton:
            yield unit, cuda, triton


def quartiles(record: dict[str, Any] | None) -> str:
    """The time of a replay or, where there is none, of a call, marked as such."""
    if record is None:
        return ""
    time = record.get("replayed") or record["called"]
    return f"{time['us']:.0f} ({time['low']:.0f} to {time['high']:.0f}){'' if 'replayed' in record else ', called'}"


# ---- README ----


def readme_block(path: Path) -> str:
    """README's table for a results file."""
    results = json.loads(path.read_text())
    figures, about = Figures(results), results["about"]
    lines = header("7680 x 4320, float16 unless it says otherwise", "µs", "of copy bandwidth", "times faster than",
                   "backward, µs", "times faster than eager")  # fmt: skip
    for unit in (forward(ONE_LUT), forward(ONE_LUT)._replace(dtype="uint8"), *(forward(op) for op in list(OPS)[1:])):
        if figures.us(unit) is None:
            continue
        back = unit._replace(direction="backward")
        peers = {peer: figures.times_faster(unit, peer) for peer in PEERS}
        lines.append(row(
            unit.op + (", uint8" if unit.dtype == "uint8" else ""),
            shown("{:.0f}", figures.us(unit)), shown("{:.0%}", figures.share(unit)),
            "<br>".join(f"**{times:.3g}** {peer}" for peer, times in peers.items() if times),
            shown("{:.0f}", figures.us(back)), shown("**{:.3g}**", figures.times_faster(back, EAGER)),
        ))  # fmt: skip
    where = f"{about['gpu']}, which copies {about['before']['copy, GB/s']:.0f} GB/s; CUDA-graph replays of a photo"
    link = f"[All figures](benchmarks/results/{path.with_suffix('.md').name})"
    return "\n".join([f"{where}; commit {about['commit'][:9]}, {about['date']}. {link}.", "", *lines])


def write_tables(path: Path) -> str:
    text = tables(json.loads(path.read_text()))
    path.with_suffix(".md").write_text(text)
    return text


if __name__ == "__main__":
    file = Path(sys.argv[1])
    print(write_tables(file))
    put_into_readme("gpu-speed", readme_block(file))
