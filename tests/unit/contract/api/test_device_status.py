"""What a device says by name: readable, bounded, and about the device alone."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.api.device_status import DeviceStatus, StageOutcome, UpdateState
from edgewright.contract.errors import InputError
from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import HEALTH_EVENTS
from edgewright.device.update.state_machine import UpdateLifecycleState

FULL = DeviceStatus(
    model="digits",
    version="1.0",
    digest="a" * 64,
    state="probation",
    proven="1.0",
    trial="1.1",
    previous="0.9",
    target="1.2",
    refusal=Refusal("disk", "model.onnx", "no space"),
    notice=None,
    failed_releases=("b" * 64,),
    corrupt_releases=(),
    restart_needed=True,
    failed_inferences=3,
    latency_seconds=0.01,
    uptime_seconds=50.0,
    free_bytes=1 << 40,
    battery_level=0.5,
    agent_version="0.6.0",
    snapshot_digest="c" * 64,
    metadata_checked_at="2026-11-21T12:00:00+00:00",
)
# As schema 2 was published: devices in the field go on sending this.
GOLDEN = (
    b'{"model":"digits","version":"1.0","digest":"' + b"a" * 64 + b'","state":"probation","proven":"1.0",'
    b'"trial":"1.1","previous":"0.9","target":"1.2","refusal":{"code":"disk","file":"model.onnx",'
    b'"reason":"no space"},"notice":null,"failed_releases":["'
    + b"b"
    * 64
    + b'"],"corrupt_releases":[],"restart_needed":true,'
    b'"failed_inferences":3,"latency_seconds":0.01,"uptime_seconds":50.0,"free_bytes":1099511627776,"battery_level":0.5,"agent_version":"0.6.0",'
    b'"snapshot_digest":"' + b"c" * 64 + b'","metadata_checked_at":"2026-11-21T12:00:00+00:00","schema":2}'
)


def test_an_old_devices_status_stays_readable() -> None:
    assert msgspec.json.encode(FULL) == GOLDEN
    assert msgspec.json.decode(GOLDEN, type=DeviceStatus) == FULL
    assert msgspec.json.decode(b"{}", type=DeviceStatus) == DeviceStatus()


def test_states_are_those_of_an_update() -> None:
    assert set(get_args(UpdateState)) == {str(state) for state in UpdateLifecycleState}


@pytest.mark.parametrize("name", ["rejected", "served", "shadow", "confidence", "drift", "inputs"])
def test_nothing_that_comes_from_inputs_can_be_said_by_name(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"%s":1}' % name.encode(), type=DeviceStatus)


@pytest.mark.parametrize(
    "field",
    [
        {"model": "../x"},
        {"version": "latest"},
        {"trial": "1..2"},
        {"digest": "A" * 64},
        {"snapshot_digest": "c" * 63},
        {"failed_releases": ("x",)},
        {"corrupt_releases": ("b" * 64,) * 33},
        {"metadata_checked_at": "yesterday"},
        {"failed_inferences": -1},
        {"latency_seconds": float("nan")},
        {"latency_seconds": float("inf")},
        {"battery_level": 1.01},
        {"free_bytes": -1},
        {"free_bytes": 1 << 60},
        {"agent_version": "a b"},
        {"refusal": Refusal("disk", "", "x" * 501)},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_no_device_could_say_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        DeviceStatus(**field)
    with pytest.raises(InputError):
        msgspec.convert(msgspec.to_builtins(field), type=DeviceStatus)


@pytest.mark.parametrize(
    ("stage", "arm", "failed"),
    [
        (-1, "", ()),
        (0, "new", ()),
        (0, "", ("slow",)),
        (0, "", ("offline", "crash")),
        (0, "", ("crash", "crash")),
        (0, "", ("outcome:a b",)),
        (0, "", ("drift:x",)),
    ],
)
def test_an_outcome_that_could_be_read_in_two_ways_is_refused(
    stage: int, arm: str, failed: tuple[str, ...]
) -> None:
    with pytest.raises(InputError):
        StageOutcome("r1", stage, arm, failed)


@given(st.sets(st.sampled_from([*HEALTH_EVENTS, "outcome:taps", "outcome:x"])), st.integers(0, 1000))
def test_an_outcome_survives_the_wire(failed: set[str], stage: int) -> None:
    outcome = StageOutcome("r1", stage, "1.1", tuple(sorted(failed)))
    assert msgspec.json.decode(msgspec.json.encode(outcome), type=StageOutcome) == outcome


def test_what_the_agent_shows_of_itself_has_a_place_here_or_is_its_owners_alone() -> None:
    source = (Path(__file__).parents[4] / "src/edgewright/device/agent.py").read_text("utf-8")
    body = source.split("def status(self)")[1].split("def ")[0]
    shown = {line.split('"')[1] for line in body.splitlines() if line.strip().startswith('"') and '":' in line}
    said = {field.name for field in msgspec.structs.fields(DeviceStatus)}
    # By the enrolment; under a shorter name; what comes from inputs or from use, which is never said by name.
    assert shown - said == {
        "device_id",
        "device_class",
        "last_refusal",
        "postponed_releases",
        "served",
        "rejected",
        "shadow",
        "server",
    }
