"""What benchmarks say of a busy machine, by made-up figures: no test depends on how busy this one is."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import quiet  # noqa: E402

STAT = """cpu  1000 200 300 90000 4000 50 60 70 900 0
cpu0 500 100 150 45000 2000 25 30 35 450 0
intr 12345
"""


def test_processor_time_is_all_but_idle_and_waiting() -> None:
    assert quiet.busy_seconds(STAT, 100) == pytest.approx((1000 + 200 + 300 + 50 + 60 + 70) / 100)


def test_what_this_process_uses_itself_does_not_count() -> None:
    before = quiet.Usage(wall=100, everyone=50, own=10)
    assert quiet.cores_of_others(before, quiet.Usage(110, 70, 30)) == 0  # both cores, all ours
    assert quiet.cores_of_others(before, quiet.Usage(110, 70, 15)) == pytest.approx(1.5)
    assert quiet.cores_of_others(before, quiet.Usage(110, 69.9, 30)) == 0, "clocks that tick differently"
    assert quiet.cores_of_others(None, None) is None


def test_one_line_names_the_worst_sample() -> None:
    assert quiet.disturbance({"a": 0.09, "b": 0.0, "c": None}, machine=2) == ""
    said = quiet.disturbance({"a": 0.09, "b": 0.2, "c": 1.25}, machine=2)
    assert said == (
        "the machine is busy: other processes used more than 5% of its 2 cores in 2 of 3 samples, at most 1.2 cores (c)"
    )
    assert quiet.disturbance({"a": 1.5}, machine=64) == "", "a share of all cores"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="not Linux")
def test_usage_grows() -> None:
    before = quiet.usage()
    assert sum(range(10**6)) and all(b <= a for b, a in zip(before, quiet.usage(), strict=True))
