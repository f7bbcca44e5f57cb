"""What a device counts of what its model sees: rightly, boundedly, through restarts and power cuts."""

import dataclasses
import json
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.compress.data.loader import load_data
from edgewright.compress.model.loading import read_model
from edgewright.compress.uncertainty.reference_profile import build_reference_profile
from edgewright.contract.errors import CandidateError, InputError
from edgewright.contract.model.guard import GuardRules, InputRule
from edgewright.contract.model.reference_profile import ReferenceProfile
from edgewright.contract.query.query import CountedSignal
from edgewright.device.filesystem import FileSystem
from edgewright.device.guard import Guard
from edgewright.device.inference.predictor import LoadedRelease, Predictor
from edgewright.device.inference.uncertainty import uncertainty_of
from edgewright.device.monitoring.aggregates import (
    REJECTION_REASONS,
    counts_between,
    new_monitor_state,
    state_from_bytes,
    state_to_bytes,
)
from edgewright.device.monitoring.monitor import Monitor, MonitorThread, open_monitor
from edgewright.device.slots import InstalledRelease
from edgewright.runtime.session import open_onnx_session

Arrays = dict[str, NDArray[Any]]


@dataclass
class Device:
    """A model with its monitor, without an agent around."""

    content: bytes
    profile: ReferenceProfile
    guard: Guard
    path: Path
    files: FileSystem = field(default_factory=FileSystem)

    def open(self) -> Predictor:
        monitor = open_monitor(msgspec.json.encode(self.profile), self.guard, self.path / "kept.json", self.files)
        session = open_onnx_session(self.content)
        return Predictor(LoadedRelease(InstalledRelease("digits", "1.0.0", "0" * 64), session, self.guard, monitor))


def monitor_of(predictor: Predictor) -> Monitor:
    assert predictor.current is not None
    assert predictor.current.monitor is not None
    return predictor.current.monitor


@pytest.fixture(scope="module")
def profile(digits_model: Path, digits_npz: Path) -> ReferenceProfile:
    loaded = read_model(digits_model)
    made = build_reference_profile(loaded.proto, load_data(str(digits_npz), loaded.contract), loaded.contract)
    assert made is not None
    return made


@pytest.fixture
def device(digits_model: Path, profile: ReferenceProfile, tmp_path: Path) -> Device:
    return Device(digits_model.read_bytes(), profile, Guard(read_model(digits_model).contract), tmp_path)


def feed(predictor: Predictor, samples: NDArray[Any]) -> None:
    for number, sample in enumerate(samples):
        found = predictor.predict({"image": sample[None].astype(np.float32)})
        assert found.outputs
        if number % 100 == 99:
            monitor_of(predictor).flush()
    monitor_of(predictor).flush()


def drawn(digits: Arrays, count: int, seed: int = 0) -> NDArray[Any]:
    chosen: NDArray[Any] = digits["x"][np.random.default_rng(seed).integers(0, len(digits["x"]), count)]
    return chosen


def test_the_profile_watches_inputs_and_answers(profile: ReferenceProfile) -> None:
    names = [signal.name for signal in profile.signals]
    assert {"min", "mean", "std", "roughness", "confidence", "margin", "energy", "class"} <= set(names)
    assert (profile.output_kind, profile.classes, profile.values_per_sample) == ("logits", 10, 64)
    assert len(msgspec.json.encode(profile)) < 8_000


def test_what_looks_as_it_did_is_no_drift_and_noise_is(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    feed(predictor, drawn(digits, 600))
    monitor = monitor_of(predictor)
    before = monitor.describe()
    assert (before["verdict"], before["observations"], before["drifted_signals"]) == ("no evidence", 600, [])
    noise = np.random.default_rng(1).normal(scale=0.25, size=(600, 1, 8, 8))
    feed(predictor, drawn(digits, 600, 2) + noise)
    after = monitor.describe()
    assert after["verdict"] == "drift"
    assert set(after["drifted_signals"]) & {"roughness", "std", "min", "max", "energy", "confidence"}
    worst = max(after["signals"], key=lambda each: each["log_e_value"])
    assert worst["psi"] > 0.2


def test_what_was_counted_survives_a_restart(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    feed(predictor, drawn(digits, 300))
    known = monitor_of(predictor).describe()
    monitor_of(predictor).write()
    again = monitor_of(device.open())
    assert again.describe() == known
    assert (again.state.drift_state.counts == monitor_of(predictor).state.drift_state.counts).all()
    assert again.state.windows[-1].counts.sum() == monitor_of(predictor).state.windows[-1].counts.sum()
    assert len(state_to_bytes(again.state)) < 64_000


@pytest.mark.parametrize("kept", [b"", b"{}", b"\xff", b'{"shape":[1,1]}', None])
def test_what_is_damaged_is_counted_anew(device: Device, digits: Arrays, kept: bytes | None) -> None:
    predictor = device.open()
    feed(predictor, drawn(digits, 50))
    monitor_of(predictor).write()
    path = device.path / "kept.json"
    path.write_bytes(path.read_bytes()[:-10] if kept is None else kept)
    again = device.open()
    assert monitor_of(again).describe()["observations"] == 0
    feed(again, drawn(digits, 20))
    assert monitor_of(again).describe()["observations"] == 20


def test_negative_counts_are_no_counts(device: Device) -> None:
    reference = monitor_of(device.open()).reference
    known = json.loads(zlib.decompress(state_to_bytes(new_monitor_state(reference, 0.0))))
    assert state_from_bytes(zlib.compress(json.dumps(known).encode()), reference) is not None
    known["counts"][0] = -1
    assert state_from_bytes(zlib.compress(json.dumps(known).encode()), reference) is None
    assert state_from_bytes(zlib.compress(b" " * (1 << 26)), reference) is None


def test_a_disk_that_fails_loses_nothing_that_was_there(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    feed(predictor, drawn(digits, 40))
    monitor_of(predictor).write()

    class Broken(FileSystem):
        def write(self, path: Path, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    feed(predictor, drawn(digits, 40))
    monitor_of(predictor).files = Broken()
    watch = MonitorThread(lambda: monitor_of(predictor), lambda: True)
    watch.stop()
    assert monitor_of(device.open()).describe()["observations"] == 40
    monitor_of(predictor).files = FileSystem()
    watch.stop()  # nothing came since, and it is tried again all the same
    assert monitor_of(device.open()).describe()["observations"] == 80


def test_what_the_guard_rejects_is_counted_and_not_watched(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    bad = np.full((1, 1, 8, 8), np.nan, np.float32)
    for _ in range(3):
        assert predictor.predict({"image": bad}).rejection is not None
    feed(predictor, drawn(digits, 5))
    seen = monitor_of(predictor).describe()
    assert (seen["counters"]["rejected"][REJECTION_REASONS.index("not finite")], seen["observations"]) == (3, 5)


def test_what_the_guard_mends_is_watched_as_mended(device: Device, digits_model: Path) -> None:
    contract = read_model(digits_model).contract
    spec = msgspec.structs.replace(contract.inputs[0], low=0.0, high=1.0)
    contract = msgspec.structs.replace(contract, inputs=(spec,))
    device.guard = Guard(contract, GuardRules(inputs=(InputRule("range", "clamp"),)))
    predictor = device.open()
    assert predictor.predict({"image": np.full((1, 1, 8, 8), 7, np.float32)}).outputs
    minus_nothing = np.zeros((1, 1, 8, 8), np.float32) * -1
    assert predictor.predict({"image": minus_nothing}).outputs
    monitor = monitor_of(predictor)
    rows = np.frombuffer(monitor._ring.drain()).reshape(-1, monitor._ring.columns)
    assert rows[:, 3].tolist() == [1.0, 0.0], "the greatest value that the model got"


def test_one_of_so_many_observations_is_taken(device: Device, digits: Arrays) -> None:
    device.profile = msgspec.structs.replace(device.profile, thinning_step=5)
    predictor = device.open()
    feed(predictor, np.repeat(drawn(digits, 200), 5, axis=0))
    seen = monitor_of(predictor).describe()
    assert (seen["observations"], seen["verdict"]) == (200, "no evidence")
    assert sum(seen["counters"]["latency"]) == 1000, "latency is that of every inference"


def test_a_stream_that_repeats_itself_cannot_be_tested(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    zeros = digits["x"][digits["y"] == 0]
    ones = digits["x"][digits["y"] == 1]
    random = np.random.default_rng(0)
    for number in range(24):  # regimes of 250
        source = zeros if number % 2 else ones
        feed(predictor, source[random.integers(0, len(source), 250)])
    assert monitor_of(predictor).describe()["verdict"] == "cannot test"


def test_what_was_counted_in_a_day_is_kept_for_another(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    monitor = monitor_of(predictor)
    moment = [1.7e9 - 1.7e9 % 86400]
    first = moment[0]
    monitor.wall_clock = lambda: moment[0]
    for _ in range(47):
        feed(predictor, drawn(digits, 30))
        moment[0] += 3600
    signals = [CountedSignal("rejected", len(REJECTION_REASONS)), CountedSignal("latency", 26)]
    counts = counts_between(monitor.reference, monitor.state, signals, first, first + 86400)
    assert counts.sum() == 24 * 30
    with pytest.raises(InputError, match="window of 25 hours"):
        counts_between(monitor.reference, monitor.state, signals, first, first + 25 * 3600)
    assert len(state_to_bytes(monitor.state)) < 8_000


def test_an_inference_that_never_ends_stops_nothing(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    image = drawn(digits, 1).astype(np.float32)
    assert monitor_of(predictor).begin_checked({"image": image}) >= 0  # and is never released
    feed(predictor, drawn(digits, 600))
    assert monitor_of(predictor).describe()["observations"] == 600


def test_what_interrupts_an_inference_frees_its_place(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    assert predictor.current is not None

    class Interrupted:
        outputs = ("logits",)

        def run(self, _: Any) -> Any:
            raise KeyboardInterrupt

    broken = dataclasses.replace(predictor.current, session=Interrupted())
    image = drawn(digits, 1).astype(np.float32)
    for _ in range(300):
        with pytest.raises(KeyboardInterrupt):
            Predictor(broken).predict({"image": image})
    assert monitor_of(predictor)._ring.dropped == 0


def test_a_rejected_output_is_counted_once_and_not_watched(device: Device, digits: Arrays) -> None:
    spec = device.guard.contract.outputs[0]
    contract = msgspec.structs.replace(device.guard.contract, outputs=(spec, spec))
    device.guard = Guard(contract)
    predictor = device.open()
    assert predictor.current is not None

    class Broken:
        outputs = (spec.name, "other")

        def run(self, _: Any) -> Any:
            return [np.zeros((1, 10), np.float32), np.full((1, 10), np.nan, np.float32)]

    broken = Predictor(dataclasses.replace(predictor.current, session=Broken()))
    for _ in range(5):
        assert broken.predict({"image": drawn(digits, 1).astype(np.float32)}).rejection is not None
    assert device.guard.counts["output", spec.name] == 5
    monitor_of(predictor).flush()
    seen = monitor_of(predictor).describe()
    assert (seen["observations"], seen["counters"]["rejected"][REJECTION_REASONS.index("output")]) == (0, 5)


def test_windows_are_bounded_and_close_by_the_hour(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    monitor = monitor_of(predictor)
    moment = [1e9]
    monitor.wall_clock = lambda: moment[0]
    for _ in range(60):
        feed(predictor, drawn(digits, 3))
        moment[0] += 3600
    assert len(monitor.state.windows) == 49
    assert all(window.counts[0].sum() == 3 for window in monitor.state.windows)
    moment[0] -= 1e6  # the clock is set back
    feed(predictor, drawn(digits, 3))
    assert all(window.started_at <= window.ended_at for window in monitor.state.windows)


def test_the_thread_counts_by_itself_and_writes_at_its_end(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    watch = MonitorThread(lambda: monitor_of(predictor), lambda: True)
    watch.start()
    for sample in drawn(digits, 30):
        predictor.predict({"image": sample[None].astype(np.float32)})
    ends = time.monotonic() + 10
    while monitor_of(predictor).state.observations < 30 and time.monotonic() < ends:
        time.sleep(0.05)
    assert monitor_of(predictor).state.observations == 30
    watch.stop()
    assert monitor_of(device.open()).state.observations == 30


def test_who_does_not_change_the_state_writes_nothing(device: Device, digits: Arrays) -> None:
    predictor = device.open()
    feed(predictor, drawn(digits, 3))
    MonitorThread(lambda: monitor_of(predictor), lambda: False).stop()
    assert not (device.path / "kept.json").exists()


def test_doubt_tells_noise_from_digits_and_keeps_its_promises(device: Device, digits: Arrays) -> None:
    assert device.profile.ood_rules
    assert device.profile.prediction_sets is not None
    predictor = device.open()
    random = np.random.default_rng(3)
    samples = digits["x"][random.permutation(len(digits["x"]))[:300]].astype(np.float32)
    labels = {
        sample.tobytes(): label for sample, label in zip(digits["x"].astype(np.float32), digits["y"], strict=True)
    }
    doubts = []
    for sample in samples:
        (scores,) = predictor.predict({"image": sample[None]}).outputs.values()
        doubts.append((uncertainty_of(device.profile, scores[0]), int(labels[sample.tobytes()])))
    assert np.mean([bool(doubt.ood_scores) for doubt, _ in doubts]) <= 0.15
    assert np.mean([label in doubt.prediction_set for doubt, label in doubts]) >= 0.87
    accepted = [(doubt, label) for doubt, label in doubts if doubt.is_accepted]
    assert len(accepted) > 100
    feed(predictor, samples)
    usual = monitor_of(predictor).describe()["counters"]["out_of_distribution"]
    strange = random.normal(scale=0.05, size=(300, 1, 8, 8)) + 0.5
    feed(predictor, strange)
    both = monitor_of(predictor).describe()["counters"]["out_of_distribution"]
    assert both[1] - usual[1] > 3 * usual[1] + 10
    nothing = uncertainty_of(device.profile, np.full(10, np.nan))
    assert nothing.ood_scores
    assert nothing.is_accepted is False


@pytest.mark.parametrize(
    "change",
    [
        {"input": "other"},
        {"values_per_sample": 63},
        {"signals": [{"name": "no such", "edges": [0.0], "counts": [1, 1, 0]}]},
        {"signals": [{"name": "mean", "edges": [1.0, 0.0], "counts": [1, 1, 1, 0]}]},
        {"signals": []},
        {"thinning_step": 0},
        {"classes": 0},
        {"alpha": 0.9},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_profile_that_does_not_fit_is_refused(device: Device, change: dict[str, Any]) -> None:
    known = json.loads(msgspec.json.encode(device.profile)) | change
    if change == {"values_per_sample": 63}:
        known |= {"channels": 2}
    with pytest.raises(CandidateError, match="profile cannot be used"):
        open_monitor(json.dumps(known).encode(), device.guard, device.path / "kept", FileSystem())
