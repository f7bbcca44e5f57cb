"""What a sum without a helper costs a device and the server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from benchmarks.report import Interval
from benchmarks.summing.fleet import Fleet, Round, neighbour_terms

from edgewright.privacy import secagg_client
from edgewright.privacy.protocol_params import NEIGHBOUR_DEGREE, share_threshold

__all__ = [
    "NEIGHBOUR_DEGREE",
    "THRESHOLD",
    "DeviceCost",
    "ServerCost",
    "cpu_ms",
    "device_cost",
    "leave_for_masking",
    "server_cost",
]

THRESHOLD = share_threshold(NEIGHBOUR_DEGREE)


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """What one device spends on one sum.

    Attributes:
        share_ms: CPU to check the roster and share, of the fleet's size.
        mask_ms: CPU to open shares, mask, pack and sign.
        reveal_ms: CPU to check survivors and reveal.
        bytes_up: Of all its letters.
        bytes_masked: Of the letter with the values.
        bytes_down: Of all that it pulls.
    """

    share_ms: Interval
    mask_ms: Interval
    reveal_ms: Interval
    bytes_up: int
    bytes_masked: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class ServerCost:
    """What the server spends on one sum.

    Attributes:
        take_ms: CPU to take one device's masked values.
        unmask_seconds: Wall time to take the masks off.
        unmask_cpu_seconds: CPU time of it.
    """

    take_ms: Interval
    unmask_seconds: Interval
    unmask_cpu_seconds: Interval


def cpu_ms(act: Callable[[], object], repeats: int) -> Interval:
    """Return the median CPU time of a function in milliseconds, with the quartiles around it."""
    act()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        act()
        found.append(1000 * (time.process_time() - began))
    low, middle, high = np.percentile(found, [25, 50, 75])
    return Interval(float(middle), float(low), float(high))


def _round(devices: int, length: int, floor: int) -> Round:
    terms = neighbour_terms(length=length, min_cohort=floor, degree=NEIGHBOUR_DEGREE, threshold=THRESHOLD)
    return Round(Fleet(devices), terms)


def device_cost(length: int, *, devices: int = 100, repeats: int = 30) -> DeviceCost:
    """Measure one device among so many; only this one does its last steps."""
    sum_ = _round(devices, length, devices - 10)
    name = sum_.fleet.names[0]
    sizes = []
    costs = []
    down = 0
    while sum_.server.step != "done":
        step = sum_.server.step
        if step != "advertise":
            costs.append(cpu_ms(lambda: sum_.act(name), repeats))
            down += len(_pulled(sum_, name))
        sum_.step()
        sizes.append(len(sum_.members[name].last_message))
        if step == "mask":  # the others' letters would fill the memory
            for other, member in sum_.members.items():
                if other != name:
                    sum_.members[other] = msgspec.structs.replace(member, last_message=b"")
            for other in sum_.fleet.names[1:]:
                del sum_.members[other]
    share, mask, reveal = costs
    return DeviceCost(share, mask, reveal, sum(sizes), sizes[2], down)


def _pulled(sum_: Round, name: bytes) -> bytes:
    if sum_.server.step == "mask":
        return sum_.server.share_inbox(name)
    return sum_.server.participants() if sum_.server.step == "share" else sum_.server.survivor_lists()


def leave_for_masking(folder: Path, length: int) -> None:
    """Write what a device has stored before it masks, and what it pulls then: files `member` and `inbox`."""
    sum_ = _round(20, length, 18).reach("mask")
    name = sum_.fleet.names[0]
    (folder / "member").write_bytes(msgspec.msgpack.encode(sum_.members[name]))
    (folder / "inbox").write_bytes(sum_.server.share_inbox(name))
    assert isinstance(sum_.members[name], secagg_client.ClientState)


def server_cost(length: int, *, devices: int = 100, dropouts: int = 10, repeats: int = 5) -> ServerCost:
    """Measure a server whose devices drop out after they shared."""
    sum_ = _round(devices, length, devices - dropouts).reach("mask")
    gone = set(sum_.fleet.names[:dropouts])
    takes = []
    for name in sum_.fleet.names:
        if name in gone:
            del sum_.members[name]
            continue
        sum_.members[name] = sum_.act(name)
        began = time.process_time()
        sum_.server.accept("mask", sum_.members[name].last_message)
        takes.append(1000 * (time.process_time() - began))
    sum_.server.advance()
    sum_.step()
    assert not sum_.declined
    wall, cpu = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        total = sum_.server.unmask_sum()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    assert np.array_equal(total, sum_.plain(set(sum_.fleet.names) - gone))
    return ServerCost(_spread(takes), _spread(wall), _spread(cpu))


def _spread(found: list[float]) -> Interval:
    low, middle, high = np.percentile(found, [25, 50, 75])
    return Interval(float(middle), float(low), float(high))
