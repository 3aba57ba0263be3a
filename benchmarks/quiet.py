"""Whether the machine is quiet enough to measure on: how much of it other processes use meanwhile.

Processor time of the whole system, from /proc/stat, less that of this process. The load average would not do: it lags
by minutes, and counts this process too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

QUIET = 0.05  # of all cores


class Usage(NamedTuple):
    """Seconds until now: on the clock, of processors in use by anyone, and of processors in use by this process."""

    wall: float
    everyone: float
    own: float


def usage() -> Usage | None:
    """None where /proc/stat is missing: not on Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    return Usage(time.perf_counter(), busy_seconds(stat.read_text(), os.sysconf("SC_CLK_TCK")), sum(os.times()[:4]))


def busy_seconds(stat: str, ticks: int) -> float:
    """Of all processors since the start, by the text of /proc/stat. Steal, what other virtual machines took, counts."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / ticks


def cores_of_others(before: Usage | None, after: Usage | None) -> float | None:
    """How many cores other processes used between two moments; None where nobody knows."""
    if before is None or after is None:
        return None
    used = (after.everyone - before.everyone) - (after.own - before.own)
    return max(0.0, used / (after.wall - before.wall))


def disturbance(cores: Mapping[str, float | None], machine: int) -> str:
    """One line that names the worst of the moments, each with how many cores others used; "" if all were quiet."""
    busy = {name: used for name, used in cores.items() if used is not None and used > QUIET * machine}
    if not busy:
        return ""
    worst = max(busy, key=lambda name: busy[name])
    return (
        f"the machine is busy: other processes used more than {QUIET:.0%} of its {machine} cores in {len(busy)} of "
        f"{len(cores)} samples, at most {busy[worst]:.1f} cores ({worst})"
    )


def disturbance_now(seconds: float = 1) -> str:
    before = usage()
    time.sleep(seconds)
    return disturbance({"before the first case": cores_of_others(before, usage())}, os.cpu_count() or 1)
