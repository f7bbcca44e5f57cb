import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewright.profiling import worker
from edgewright.profiling.latency import Workload
from edgewright.profiling.sustained_load import LoadSlice, detect_throttling, measure_contention, measure_sustained
from edgewright.profiling.target import LocalTarget

Make = Callable[..., Workload]


def _slices(
    latencies: list[float], clocks: list[float] | None = None, heat: list[float] | None = None
) -> list[LoadSlice]:
    return [
        LoadSlice(float(i), latency, clocks[i] if clocks else None, heat[i] if heat else None)
        for i, latency in enumerate(latencies)
    ]


def test_a_steady_run_is_not_throttled() -> None:
    assert detect_throttling(_slices([1.0, 1.02, 0.99, 1.01, 1.0, 1.03])).verdict == "none"


def test_latency_that_grows_while_the_clock_falls_is_throttling() -> None:
    clocks = [2e9, 2e9, 1.8e9, 1.5e9, 1.2e9, 1.2e9]
    judged = detect_throttling(_slices([1.0, 1.0, 1.1, 1.3, 1.6, 1.6], clocks))
    assert judged.verdict == "throttled"
    assert judged.slowdown > 1.5
    assert "the clock 0.60 times" in judged.reason


def test_latency_that_grows_with_the_heat_is_throttling() -> None:
    judged = detect_throttling(_slices([1.0, 1.0, 1.1, 1.2, 1.3, 1.3], heat=[50, 55, 60, 70, 80, 85]))
    assert judged.verdict == "throttled"


def test_latency_that_grows_without_a_sign_is_only_called_slower() -> None:
    judged = detect_throttling(_slices([1.0, 1.0, 1.1, 1.2, 1.3, 1.3]))
    assert judged.verdict == "slower"
    assert "neither clock nor temperature" in judged.reason


def test_a_clock_that_falls_without_harm_is_not_throttling() -> None:
    assert detect_throttling(_slices([1.0] * 6, clocks=[2e9, 2e9, 2e9, 1e9, 1e9, 1e9])).verdict == "none"


def test_one_disturbed_part_does_not_decide() -> None:
    assert detect_throttling(_slices([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0])).verdict == "none"


def test_no_part_at_all_is_no_throttling() -> None:
    assert detect_throttling([]).verdict == "none"


def test_a_run_shows_its_course(subject: Make) -> None:
    sustained = measure_sustained(LocalTarget(), subject(128), seconds=0.4)
    assert len(sustained.slices) >= 10
    assert all(part.median_latency_seconds > 0 for part in sustained.slices)


def test_runs_beside_other_work_are_told_apart(subject: Make) -> None:
    contention = measure_contention(LocalTarget(), subject(256), seconds=0.6)
    assert contention.cpu_slowdown > 0
    assert contention.io_slowdown > 0
    assert contention.cpu_p99.value >= contention.cpu_p50.value
    assert contention.io_p99.value >= contention.io_p50.value
    assert "busy process per core" in contention.cpu_p50.origin.method


@pytest.mark.parametrize(("kind", "processes"), [("idle", 0), ("cpu", worker._usable_cores()), ("io", 2)])
def test_the_other_work_is_really_there_and_ends(kind: str, processes: int, tmp_path: Path) -> None:
    with worker._background_load(kind, str(tmp_path)):
        started = _children(str(tmp_path))
    assert len(started) == processes
    assert _children(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def _children(argument: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_ours = int((path / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
            if is_ours and argument.encode() in (path / "cmdline").read_bytes():
                found.append(path.name)
    return found
