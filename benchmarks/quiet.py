"""Checks whether the machine is quiet enough to measure on: how much processor time other processes use meanwhile.

This is the processor time of the whole system, from /proc/stat, minus that of this process. The load average is no
substitute: it lags by minutes and includes this process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

QUIET = 0.05  # of all cores


class Usage(NamedTuple):
    """Seconds up to now: on the clock, and of processor time used by all processes and by this one."""

    wall: float
    everyone: float
    own: float


def usage() -> Usage | None:
    """None without /proc/stat, that is, not on Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    return Usage(time.perf_counter(), busy_seconds(stat.read_text(), os.sysconf("SC_CLK_TCK")), sum(os.times()[:4]))


def busy_seconds(stat: str, ticks: int) -> float:
    """Busy time of all processors since the start, from the text of /proc/stat, including time stolen by other virtual
    machines."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / ticks


def cores_of_others(before: Usage | None, after: Usage | None) -> float | None:
    """How many cores other processes used between two moments; None if unknown."""
    if before is None or after is None:
        return None
    used = (after.everyone - before.everyone) - (after.own - before.own)
    return max(0.0, used / (after.wall - before.wall))


def disturbance(cores: Mapping[str, float | None], machine: int) -> str:
    """One line with the worst of the samples, which say how many cores others used; "" if all were quiet."""
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
