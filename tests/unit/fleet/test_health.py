"""How devices are, by what they say by name."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.alert import HEALTH_METRICS
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.timestamps import to_iso8601
from edgewright.fleet.health import (
    STALE_SECONDS,
    CheckInTotals,
    DeviceGroup,
    HealthEvidence,
    SampledDevice,
    group_health,
    health_readings,
)

NOW = 1_800_000_000.0
FRESH = DeviceStatus(
    metadata_checked_at=to_iso8601(NOW - 60).isoformat(), free_bytes=1000, snapshot_digest="a" * 64
)


def evidence(
    alike: list[DeviceGroup] | None = None,
    said: list[CheckInTotals] | None = None,
    seen: list[SampledDevice] | None = None,
    known: str = "a",
) -> HealthEvidence:
    return HealthEvidence(alike or [], said or [], seen or [], {each * 64 for each in known}, NOW)


def camera(devices: int, heard: int, *, refusal: str = "", version: str = "1.0", arm: str = "") -> DeviceGroup:
    return DeviceGroup("camera", version, arm, refusal, devices, heard)


def values(found: HealthEvidence, **more: int) -> dict[str, float | None]:
    return {reading.metric: reading.value for reading in health_readings(found, **more)}


def test_shares_are_of_those_who_could_say_so() -> None:
    alike = [
        camera(50, 30),
        camera(10, 10, refusal="probation"),
        camera(5, 5, refusal="self-test"),
        camera(3, 3, refusal="tampered"),
        camera(12, 12, refusal="battery"),
    ]
    said = [
        CheckInTotals("camera", "1.0", "", 200, 30, 50, 0.5),
        CheckInTotals("camera", "1.1", "", 100, 0, 50, 1.5),
    ]
    found = values(evidence(alike, said))
    assert found["offline"] == 20 / 80
    assert found["rolled_back"] == 15 / 60
    assert found["refused"] == 3 / 60
    assert found["failing"] == 30 / 300
    assert found["latency_ms"] == 20.0


def test_a_sample_tells_disk_staleness_and_strange_snapshots() -> None:
    old = msgspec.structs.replace(
        FRESH, metadata_checked_at=to_iso8601(NOW - STALE_SECONDS - 1).isoformat(), free_bytes=5
    )
    strange = msgspec.structs.replace(FRESH, snapshot_digest="b" * 64)
    statuses = [old, strange, *[FRESH] * 38]
    seen = [SampledDevice("camera", "1.0", "", each) for each in statuses]
    found = values(evidence([camera(40, 40)], seen=seen))
    assert (found["stale"], found["strange_snapshots"]) == (1 / 40, 1.0)
    assert found["free_bytes"] == 1000.0  # two of 40 may have less
    assert values(evidence([camera(40, 40)], seen=seen[:19]))["free_bytes"] == 5.0


def test_where_the_repository_cannot_be_read_no_snapshot_is_strange() -> None:
    seen = [SampledDevice("camera", "1.0", "", FRESH)] * 5
    assert values(evidence([camera(5, 5)], seen=seen, known=""))["strange_snapshots"] is None
    assert values(evidence([camera(5, 5)], seen=seen))["strange_snapshots"] == 0.0


def test_too_few_devices_have_no_figure_and_say_so() -> None:
    found = health_readings(evidence([camera(2, 2)], [CheckInTotals("camera", "1.0", "", 9, 9, 9, 9.0)]))
    assert all(reading.value is None and reading.reason for reading in found)
    assert values(evidence([camera(2, 2)]), min_devices=2)["offline"] == 0.0


def test_a_fleet_that_went_dark_is_silent_and_says_nothing_else() -> None:
    found = values(evidence([camera(100, 0)]))
    assert found.pop("offline") == 1.0
    assert set(found.values()) == {None}


def test_versions_and_arms_are_told_apart() -> None:
    alike = [camera(10, 10), camera(5, 4, version="1.1", arm="1.1"), camera(3, 0, refusal="probation", arm="1.1")]
    assert [(one.name, one.devices) for one in group_health(evidence(alike), "version")] == [
        ("1.0", 13),
        ("1.1", 5),
    ]
    arms = {one.name: one for one in group_health(evidence(alike), "arm")}
    assert {name: one.values["offline"].value for name, one in arms.items()} == {"": 0.0, "1.1": 0.5}


groups = st.builds(
    lambda name, version, refusal, devices, offline: DeviceGroup(
        name, version, "", refusal, devices + offline, devices
    ),
    st.sampled_from(["camera", "door"]),
    st.sampled_from(["1.0", "1.1"]),
    st.sampled_from(["", "probation", "policy", "hours"]),
    st.integers(0, 50),
    st.integers(0, 50),
)


@given(st.lists(groups, max_size=20))
def test_every_share_lies_between_0_and_1_and_every_metric_is_told(alike: list[DeviceGroup]) -> None:
    for by in ("class", "version", "arm"):
        found = group_health(evidence(alike), by)
        assert sum(one.devices for one in found) == sum(one.devices for one in alike)
        for one in found:
            assert tuple(one.values) == HEALTH_METRICS
            assert all(0 <= (figure.value or 0) <= 1 for figure in one.values.values())


@given(st.lists(groups, min_size=1, max_size=10), st.integers(1, 20))
def test_more_silent_devices_never_look_better(alike: list[DeviceGroup], more: int) -> None:
    name = alike[0].device_class

    def offline(groups: list[DeviceGroup]) -> float:
        return {
            one.device_class: one.value
            for one in health_readings(evidence(groups), min_devices=1)
            if one.metric == "offline"
        }[name] or 0.0

    assert offline([*alike, DeviceGroup(name, "1.0", "", "", more, 0)]) >= offline(alike)
