import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewright.profiling.energy import measure_energy
from edgewright.profiling.latency import LatencyResult, Workload, measure_latency
from edgewright.profiling.target import LocalTarget

Make = Callable[..., Workload]


@dataclass(frozen=True)
class _WithSysfs:
    """The local machine with another tree in the place of /sys."""

    sysfs: Path
    name: str = "local"

    def run(
        self, request: Mapping[str, Any], files: Mapping[str, Path], *, timeout_seconds: float
    ) -> dict[str, Any]:
        return LocalTarget().run({**request, "sysfs": str(self.sysfs)}, files, timeout_seconds=timeout_seconds)


@pytest.fixture
def latency(subject: Make) -> LatencyResult:
    (result,) = measure_latency(LocalTarget(), [subject(64)], seconds=0.1)
    assert isinstance(result, LatencyResult)
    return result


def _metered(latency: LatencyResult) -> LatencyResult:
    return replace(latency, machine=msgspec.structs.replace(latency.machine, meters=("package-0",)))


@pytest.fixture
def rapl(tmp_path: Path) -> Path:
    folder = tmp_path / "sys/class/powercap/intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0\n")
    (folder / "energy_uj").write_text("1000000\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    return tmp_path / "sys"


@pytest.fixture
def busy_counter(rapl: Path) -> Iterator[Path]:
    """A counter of 5 W while idle and 5 W more for each CPU second that this test's workers use."""
    counter, stop = rapl / "class/powercap/intel-rapl:0/energy_uj", threading.Event()

    def count() -> None:
        start = time.perf_counter()
        used: dict[int, float] = {}
        while not stop.wait(0.004):
            used |= _children_cpu_seconds()
            joules = 1.0 + 5 * (time.perf_counter() - start) + 5 * sum(used.values())
            staged = counter.with_suffix(".new")
            staged.write_text(f"{joules * 1e6:.0f}\n")
            staged.replace(counter)

    thread = threading.Thread(target=count)
    thread.start()
    yield rapl
    stop.set()
    thread.join()


def _children_cpu_seconds() -> dict[int, float]:
    seconds = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                seconds[int(path.name)] = int((path / "schedstat").read_text().split()[0]) * 1e-9
        except (OSError, ValueError, IndexError):
            continue
    return seconds


def test_a_meter_is_believed_and_idle_power_is_taken_off(
    busy_counter: Path, subject: Make, latency: LatencyResult
) -> None:
    made = subject(64)
    figure = measure_energy(
        _WithSysfs(busy_counter), made, watts_per_core=99.0, latency=_metered(latency), seconds=2.0
    )
    assert figure.origin.kind == "measured"
    assert "rapl package-0 less idle power" in figure.origin.method
    # 5 W while it runs; the counter moves in steps and the machine is shared.
    assert figure.value == pytest.approx(5 * latency.p50.value, rel=0.6)


def test_a_meter_that_does_not_move_is_not_believed(rapl: Path, subject: Make, latency: LatencyResult) -> None:
    figure = measure_energy(
        _WithSysfs(rapl), subject(64), watts_per_core=2.0, latency=_metered(latency), seconds=0.3
    )
    assert figure.origin.kind == "estimated"


def test_without_a_meter_the_estimate_says_how_it_was_made(subject: Make, latency: LatencyResult) -> None:
    bare = replace(latency, machine=msgspec.structs.replace(latency.machine, meters=()))
    figure = measure_energy(LocalTarget(), subject(64), watts_per_core=2.5, latency=bare)
    assert figure.origin.kind == "estimated"
    assert "2.5 W per busy core" in figure.origin.method
    assert figure.value == pytest.approx(2.5 * latency.cpu_seconds)
