"""How a device fares in a rollout: as assigned, alike in every arm, kept through restarts and power cuts."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.api.device_status import StageOutcome
from edgewright.contract.refusal import Refusal, RefusalCode
from edgewright.contract.rollout.plan import (
    HEALTH_EVENTS,
    DeviceSelector,
    HealthRule,
    RolloutArm,
    RolloutPlan,
    RolloutPolicy,
    RolloutStage,
)
from edgewright.device.filesystem import FileSystem
from edgewright.device.monitoring.outcomes import OutcomeTotal
from edgewright.device.reporting.stage_outcomes import (
    StageReport,
    StageReportFile,
    add_failures,
    failed_metrics,
    failure_metric,
    stage_outcome,
    update_report,
    worsened_outcomes,
)
from edgewright.device.slots import InstalledRelease, Slots
from edgewright.device.update.journal import JournalRecord, PostponedRelease
from edgewright.device.update.selection import DeviceContext, assigned_arm, choose_update
from edgewright.trust.keys.device_identity import device_id_of

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ONE, TWO, OLD = "1" * 64, "2" * 64, "0" * 64
POLICY = RolloutPolicy("m", "default", 1, "5a" * 8, holdout_fraction=0.1)
PLAN = RolloutPlan(
    "m",
    "default",
    "r",
    1,
    1,
    (RolloutArm("1.1.0", ONE), RolloutArm("1.2.0", TWO, weight=2.0)),
    (RolloutStage(0.2), RolloutStage(0.5), RolloutStage(1.0)),
)
PROVEN = Slots(proven=InstalledRelease("m", "1.0.0", OLD))


def changed(record: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(record, **changes)


def here(device_id: str = "d", now: datetime = NOW, **more: Any) -> DeviceContext:
    given: dict[str, Any] = {"labels": {}, "channel": "", "local_hour": 12} | more
    return DeviceContext(device_id, now=now, **given)


def device(number: int) -> str:
    """Return the name of a device by its key, as enrolment does."""
    return device_id_of(hashlib.sha256(number.to_bytes(4, "big")).digest())


def fate_of(
    plan: RolloutPlan = PLAN,
    situation: DeviceContext | None = None,
    fate: StageReport | None = None,
    *,
    counts: dict[str, dict[str, OutcomeTotal]] | None = None,
) -> StageReport:
    found = update_report(fate, plan, POLICY, situation or here(), counts or {})
    assert found is not None
    return found


# As assigned


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_who_knows_a_devices_key_knows_what_it_does(stage: int) -> None:
    """A server works the cohorts out of public keys alone; each device chooses by itself, and tells the same."""
    plan = changed(PLAN, stage=stage)
    arms: dict[str, int] = {}
    for number in range(3000):
        name = device(number)
        arm = assigned_arm(plan, POLICY, name)
        choice = choose_update(plan, POLICY, PROVEN, {}, here(name))
        does = "" if choice.release is None else choice.release.version
        told = stage_outcome(fate_of(plan, here(name)), NOW)
        assert told is not None
        assert ("" if arm is None else arm.version) == does == told.arm
        arms[does] = arms.get(does, 0) + 1
    joined = 3000 * plan.fraction * 0.9
    assert abs(arms["1.1.0"] - joined / 3) < 100
    assert abs(arms["1.2.0"] - 2 * joined / 3) < 100


def test_what_a_device_does_changes_nothing_of_what_it_was_assigned() -> None:
    name = next(
        device(n)
        for n in range(99)
        if (arm := assigned_arm(PLAN, POLICY, device(n))) and arm.manifest_sha256 == ONE
    )
    refused = {ONE: Refusal("self-test", "golden.npz", "")}
    assert choose_update(PLAN, POLICY, PROVEN, refused, here(name)).release is None
    fate = fate_of(PLAN, here(name))
    assert (fate.arm, add_failures(fate, {"self_test"}).arm) == ("1.1.0", "1.1.0")


def test_a_device_that_a_rollout_is_not_for_says_nothing_of_it() -> None:
    berlin = changed(PLAN, selector=DeviceSelector({"site": "berlin"}, "beta"))
    assert update_report(None, berlin, POLICY, here(), {}) is None
    assert update_report(None, berlin, POLICY, here(labels={"site": "berlin"}), {}) is None
    fate = fate_of(berlin, here(labels={"site": "berlin"}, channel="beta"))
    assert stage_outcome(fate, NOW) is not None
    gone = update_report(fate, berlin, POLICY, here(), {})
    assert stage_outcome(gone, NOW) is None
    assert stage_outcome(update_report(gone, None, POLICY, here(), {}), NOW) is None


# Stages


def test_each_stage_is_as_old_as_this_device_knows_it() -> None:
    fate = fate_of()
    later = fate_of(PLAN, here(now=NOW + timedelta(minutes=10)), fate)
    told = stage_outcome(later, NOW + timedelta(minutes=30))
    assert told is not None
    assert (told.stage, told.age_seconds) == (0, 1800.0)
    next_one = fate_of(changed(PLAN, stage=1), here(now=NOW + timedelta(minutes=40)), later)
    told = stage_outcome(next_one, NOW + timedelta(minutes=41))
    assert told is not None
    assert (told.stage, told.age_seconds) == (1, 60.0)


def test_what_failed_in_a_stage_is_failed_in_all_that_follow_and_in_no_other_rollout() -> None:
    fate = add_failures(fate_of(), {"crash"})
    assert fate_of(changed(PLAN, stage=1), here(), fate).failed_metrics == ("crash",)
    assert add_failures(fate_of(changed(PLAN, stage=2), here(), fate), {"budget_breach"}).failed_metrics == (
        "budget_breach",
        "crash",
    )
    for other in ({"rollout": "r2"}, {"epoch": 2}, {"model": "n"}):
        assert fate_of(changed(PLAN, **other), here(), fate).failed_metrics == ()


@pytest.mark.parametrize(
    "waits", [{"state": "paused"}, {"state": "aborted"}, {"state": "done"}, {"start_at": "2026-11-22"}]
)
def test_a_stage_counts_from_when_a_device_could_follow_it(waits: dict[str, str]) -> None:
    assert update_report(None, changed(PLAN, **waits), POLICY, here(), {}) is None
    known = fate_of()
    assert fate_of(changed(PLAN, stage=1, **waits), here(), known).stage == 0
    told = stage_outcome(fate_of(changed(PLAN, **waits), here(), known), NOW)  # what it knows it goes on to tell
    assert told is not None
    assert told.stage == 0


def test_a_clock_that_was_ahead_makes_no_stage_older() -> None:
    ahead = fate_of(PLAN, here(now=NOW + timedelta(days=400)))
    told = stage_outcome(ahead, NOW)
    assert told is not None
    assert told.age_seconds == 0
    fate = fate_of(PLAN, here(now=NOW), ahead)
    told = stage_outcome(fate, NOW + timedelta(hours=1))
    assert told is not None
    assert told.age_seconds == 3600


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["running", "paused"]),
            st.sets(st.sampled_from(HEALTH_EVENTS[:-1])),
            st.integers(0, 10_000),
        ),
        max_size=20,
    )
)
def test_nothing_that_failed_is_ever_taken_back(steps: list[tuple[int, Any, set[str], int]]) -> None:
    fate, now, failed = fate_of(), NOW, set[str]()
    for stage, state, metrics, seconds in steps:
        now += timedelta(seconds=seconds)
        fate = add_failures(fate_of(changed(PLAN, stage=stage, state=state), here(now=now), fate), metrics)
        failed |= metrics
        told = stage_outcome(fate, now)
        assert told is not None
        assert set(told.failed_metrics) == failed
        assert told.stage in fate.stage_seen_at
        assert msgspec.json.decode(msgspec.json.encode(told), type=StageOutcome) == told
        assert msgspec.json.decode(msgspec.json.encode(fate), type=StageReport) == fate


# Metrics


@pytest.mark.parametrize(
    ("why", "metric"),
    [
        (Refusal("self-test", "golden.npz", ""), "self_test"),
        (Refusal("self-test", "model.onnx", ""), "load_failure"),
        (Refusal("external data", "model.onnx", ""), "load_failure"),
        (Refusal("requirement", "m 1.1.0", ""), "load_failure"),
        (Refusal("installer", "1.1.0", ""), "load_failure"),
        (Refusal("budget", "model.onnx", ""), "budget_breach"),
        (Refusal("probation", "1.1.0", ""), "crash"),
        (Refusal("probation", "outcome:correction", ""), "outcome:correction"),
        (Refusal("battery", "r", ""), ""),
        (Refusal("unreachable", "timestamp.json", ""), ""),
        (Refusal("policy", "1.1.0", "it was rolled back by hand"), ""),
    ],
)
def test_what_a_release_was_refused_for_is_what_it_failed_in(why: Refusal, metric: str) -> None:
    assert failure_metric(why) == metric


def test_every_refusal_is_a_metric_of_the_contract_or_none() -> None:
    for code in get_args(RefusalCode):
        metric = failure_metric(Refusal(code, "", ""))
        assert metric == "" or metric in HEALTH_EVENTS
        assert metric != "offline"


def test_the_journal_tells_of_the_arm_that_was_assigned_and_of_no_other() -> None:
    why = Refusal("budget", "model.onnx", "")
    treated, control = fate_of(situation=here(TREATED)), fate_of(situation=here(CONTROL))
    assert (treated.manifest, control.manifest) == (ONE, "")
    record = JournalRecord(failed_releases={ONE: why, OLD: Refusal("self-test", "golden.npz", "")})
    assert failed_metrics(treated, record) == {"budget_breach"}
    assert failed_metrics(control, record) == set()
    later = JournalRecord(postponed_releases={ONE: PostponedRelease(Refusal("requirement", "m", ""), 1, "")})
    assert failed_metrics(treated, later) == {"load_failure"}


TREATED = next(
    device(n) for n in range(999) if (arm := assigned_arm(PLAN, POLICY, device(n))) and arm.manifest_sha256 == ONE
)
CONTROL = next(device(n) for n in range(999) if assigned_arm(PLAN, POLICY, device(n)) is None)


@pytest.mark.parametrize("name", [TREATED, CONTROL])
@pytest.mark.parametrize(
    "record",
    [
        JournalRecord(slots=PROVEN, corrupt_releases=(OLD,)),
        JournalRecord(slots=PROVEN, last_refusal=Refusal("tampered", "model.onnx", "a bit was flipped")),
    ],
)
def test_a_model_whose_bytes_are_broken_counts_in_every_arm(name: str, record: JournalRecord) -> None:
    assert failed_metrics(fate_of(situation=here(name)), record) == {"load_failure"}


RULED = changed(
    PLAN, stages=(RolloutStage(1.0, 0.0, (HealthRule("outcome:defect", 0.1), HealthRule("crash", 0.1))),)
)


@pytest.mark.parametrize("name", [TREATED, CONTROL])
def test_an_outcome_that_grows_worse_counts_in_every_arm(name: str) -> None:
    before = {OLD: {"defect": OutcomeTotal(500, 25.0)}}
    fate = fate_of(RULED, here(name), counts=before)
    assert worsened_outcomes(fate, before) == set()
    serving = ONE if fate.arm else OLD
    same = {"defect": OutcomeTotal(300, 15.0)} if fate.arm else {"defect": OutcomeTotal(800, 40.0)}
    assert worsened_outcomes(fate, {**before, serving: same}) == set()
    bad = {"defect": OutcomeTotal(300, 150.0)} if fate.arm else {"defect": OutcomeTotal(800, 175.0)}
    assert worsened_outcomes(fate, {**before, serving: bad}) == {"outcome:defect"}


def test_outcomes_that_were_forgotten_meanwhile_harm_nobody() -> None:
    fate = fate_of(
        RULED, here(), counts={OLD: {"defect": OutcomeTotal(500, 25.0)}, TWO: {"other": OutcomeTotal(5, 5.0)}}
    )
    assert worsened_outcomes(fate, {}) == set()
    assert worsened_outcomes(fate, {OLD: {"defect": OutcomeTotal(40, 39.0)}}) == set()


# The disk


class Torn(FileSystem):
    """A disk whose power is cut at its n-th operation, half of the bytes written."""

    def __init__(self, after: int) -> None:
        self.after = after

    def write_in_place(self, path: Path, content: bytes) -> None:
        self.after -= 1
        if self.after < 0:
            path.write_bytes(content[: len(content) // 2])
            raise KeyboardInterrupt
        super().write_in_place(path, content)

    def rename(self, path: Path, to: Path) -> None:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        super().rename(path, to)


@pytest.mark.parametrize("after", range(6))
def test_a_power_cut_leaves_what_was_there_or_what_was_to_be(tmp_path: Path, after: int) -> None:
    steps = [
        fate_of(),
        add_failures(fate_of(), {"crash"}),
        add_failures(fate_of(changed(PLAN, stage=1)), {"crash", "self_test"}),
    ]
    fates, written = StageReportFile(tmp_path, Torn(after)), 0
    try:
        for fate in steps:
            fates.report = fate
            fates.write()
            written += 1
    except KeyboardInterrupt:
        pass
    assert written == after // 2
    found = StageReportFile(tmp_path, FileSystem()).report
    assert found == ([None, *steps][written])


def test_a_disk_that_is_full_loses_nothing_that_is_known(tmp_path: Path) -> None:
    class Full(FileSystem):
        def write_in_place(self, path: Path, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    fates = StageReportFile(tmp_path, Full())
    fates.report = add_failures(fate_of(), {"crash"})
    with pytest.raises(OSError, match="space"):
        fates.write()
    assert fates.report.failed_metrics == ("crash",)
    fates.files = FileSystem()
    fates.write()
    assert StageReportFile(tmp_path, FileSystem()).report == fates.report


@pytest.mark.parametrize("at", [0, 40, 64, 65, 90, -1])
def test_a_flipped_bit_is_no_outcome(tmp_path: Path, at: int) -> None:
    fates = StageReportFile(tmp_path, FileSystem())
    fates.report = fate_of()
    fates.write()
    path = tmp_path / "stages.json"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    assert StageReportFile(tmp_path, FileSystem()).report is None


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    fates = StageReportFile(tmp_path, FileSystem())
    fates.write()
    assert not (tmp_path / "stages.json").exists()
    fates.report = fate_of()
    fates.write()
    path = tmp_path / "stages.json"
    path.unlink()
    fates.report = fate_of()
    fates.write()
    assert not path.exists()
