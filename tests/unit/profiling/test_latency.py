from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewright.contract.errors import CandidateError
from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.profiling import latency
from edgewright.profiling.latency import LatencyResult, Workload, measure_latency, measure_ratios, paired_ratio
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.target import LocalTarget, Machine
from edgewright.runtime.options import RuntimeOptions

Make = Callable[..., Workload]


def _ends(figure: Measurement) -> tuple[float, float]:
    assert figure.low is not None
    assert figure.high is not None
    return figure.low, figure.high


def test_figures_come_with_intervals_and_say_where_they_are_from(subject: Make) -> None:
    (result,) = measure_latency(LocalTarget(), [subject(64)], seconds=0.3)
    assert isinstance(result, LatencyResult)
    assert result.p50.value <= result.p95.value <= result.p99.value
    for figure in (result.p50, result.p95, result.p99, result.throughput):
        low, high = _ends(figure)
        assert low <= figure.value <= high
        assert (figure.origin.kind, figure.origin.machine) == ("measured", result.machine.summary)
    assert len(result.round_medians_seconds) >= 6
    assert result.cpu_seconds > 0
    assert result.cold_start.value > result.p50.value
    assert result.throughput.value <= 1.1 / result.p50.value


def test_models_of_one_call_share_their_rounds_and_the_faster_one_wins(subject: Make) -> None:
    small, large = measure_latency(LocalTarget(), [subject(16), subject(700)], seconds=0.5)
    assert isinstance(small, LatencyResult)
    assert isinstance(large, LatencyResult)
    assert small.round_medians_seconds.shape == large.round_medians_seconds.shape
    assert _ends(paired_ratio(small, large))[1] < 1
    assert _ends(paired_ratio(large, small))[0] > 1


def test_a_model_is_not_faster_than_itself(subject: Make) -> None:
    """Where a session lies in memory alone makes this layer several per cent faster or slower."""
    differ = 0
    for seed in range(3):
        one, other = measure_latency(LocalTarget(), [subject(512), subject(512)], seconds=0.6, seed=seed)
        assert isinstance(one, LatencyResult)
        assert isinstance(other, LatencyResult)
        low, high = _ends(paired_ratio(one, other, confidence=0.99))
        differ += not low <= 1 <= high
    assert differ <= 1


def test_a_slow_model_still_gets_its_rounds(subject: Make) -> None:
    made = subject(1500)
    slow = Workload("slow", made.model, made.options, {"x": np.ones((400, 1500), np.float32)})
    (result,) = measure_latency(LocalTarget(), [slow], seconds=0.05)
    assert isinstance(result, LatencyResult)
    assert len(result.round_medians_seconds) >= 6


def test_one_bad_model_does_not_spoil_the_others(
    subject: Make, tmp_path: Path, lacking_op: Path, external: Path
) -> None:
    good = subject(16)
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(good.model.read_bytes()[:200])
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    (external.parent / "weights.bin").unlink()
    paths = [truncated, text, tmp_path / "absent.onnx", lacking_op, external]
    bad = [Workload(path.stem, path, RuntimeOptions(), good.inputs) for path in paths]
    wrong_feed = Workload("wrong feed", good.model, good.options, {"x": np.ones((1, 3), np.float32)})
    first, *failures, last = measure_latency(LocalTarget(), [good, *bad, wrong_feed, good], seconds=0.2)
    assert isinstance(first, LatencyResult)
    assert isinstance(last, LatencyResult)
    for failure, (label, reason) in zip(
        failures,
        [
            ("truncated", "truncated or is no ONNX model"),
            ("text", "truncated or is no ONNX model"),
            ("absent", "does not exist"),
            ("lacking", "NoSuchThing"),
            ("model", "'weights.bin', which is missing"),
            ("wrong feed", "invalid dimensions"),
        ],
        strict=True,
    ):
        assert isinstance(failure, CandidateError)
        assert failure.message.startswith(f"{label}: ")
        assert reason in failure.message


def test_external_data_outside_the_models_folder_is_refused(subject: Make, tmp_path: Path) -> None:
    import onnx

    proto = onnx.load(subject(16).model)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path = tmp_path / "escaping.onnx"
    path.write_bytes(proto.SerializeToString())
    (failure,) = measure_latency(
        LocalTarget(), [Workload("m", path, RuntimeOptions(), {"x": np.ones((1, 16), np.float32)})], seconds=0.1
    )
    assert isinstance(failure, CandidateError)
    assert "outside its folder" in failure.message


class _Fragile:
    """The local machine, whose runtime crashes over the model of a certain name."""

    name = "local"

    def run(
        self, request: Mapping[str, Any], files: Mapping[str, Path], *, timeout_seconds: float
    ) -> dict[str, Any]:
        if any(path.name == "dense13.onnx" for path in files.values()):
            raise CandidateError("local: the runtime was ended by signal 11", remedy="-")
        return LocalTarget().run(request, files, timeout_seconds=timeout_seconds)


def test_a_model_that_crashes_the_runtime_is_found_and_the_others_are_measured(subject: Make) -> None:
    first, crashed, last = measure_latency(_Fragile(), [subject(16), subject(13), subject(17)], seconds=0.2)
    assert isinstance(first, LatencyResult)
    assert isinstance(last, LatencyResult)
    assert isinstance(crashed, CandidateError)
    assert "dense13" in crashed.message
    assert "signal 11" in crashed.message


def _latency(label: str, rounds: list[float]) -> LatencyResult:
    figure = Measurement(1.0, "s", MeasurementOrigin(kind="measured", machine="-", method="-"))
    machine = Machine(
        cpu="cpu",
        cores=1,
        arch="x",
        features=(),
        memory_bytes=0,
        os="",
        python="",
        runtime="",
        providers=(),
        runtime_bytes=0,
        meters=(),
    )
    return LatencyResult(
        label=label,
        round_medians_seconds=np.array(rounds),
        p50=figure,
        p95=figure,
        p99=figure,
        cold_start=figure,
        throughput=figure,
        cpu_seconds=1.0,
        machine=machine,
    )


def test_a_machine_that_drifts_does_not_decide() -> None:
    random = np.random.default_rng(0)
    drift = np.linspace(1.0, 3.0, 40)
    a = _latency("a", list(drift * 0.97 * random.normal(1, 0.005, 40)))
    b = _latency("b", list(drift * random.normal(1, 0.005, 40)))
    ratio = paired_ratio(a, b)
    low, high = _ends(ratio)
    assert ratio.value == pytest.approx(0.97, abs=0.005)
    assert 0.96 < low < high < 0.98


def test_rounds_of_different_calls_are_not_compared() -> None:
    with pytest.raises(ValueError, match="measure them together"):
        paired_ratio(_latency("a", [1.0] * 6), _latency("b", [1.0] * 7))


Rounds = list[float] | None


@pytest.mark.parametrize(
    ("processes", "expected", "measured"),
    [
        ([([0.5] * 12, [0.2] * 12)], [0.5, 0.2], [2]),
        ([([0.5] * 6 + [0.8] * 6, [0.2] * 12), ([0.5] * 12,)], [0.5, 0.2], [2, 1]),  # the disturbed one only
        ([([0.6] * 6 + [0.8] * 6,), ([0.5] * 6 + [0.9] * 6,), ([0.4] * 6 + [0.9] * 6,)], [0.7], [1, 1, 1]),
        ([(None, [0.2] * 12)], [None, 0.2], [2]),  # what fails, fails again
    ],
)
def test_what_was_disturbed_is_measured_again_and_the_narrowest_interval_counts(
    processes: list[tuple[Rounds, ...]],
    expected: list[float | None],
    measured: list[int],
    subject: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def pretended(_target: object, subjects: list[Workload], **_: object) -> list[LatencyResult | CandidateError]:
        found = processes[len(calls)]
        calls.append(len(subjects) - 1)
        answers = [CandidateError("no", remedy="") if rounds is None else _latency("x", rounds) for rounds in found]
        return [_latency("base", [1.0] * 12), *answers]

    monkeypatch.setattr(latency, "measure_latency", pretended)
    others = [subject(16)] * len(expected)
    base, ratios = measure_ratios(LocalTarget(), subject(16), others, seconds=0.1)
    assert base.label == "base"
    assert calls == measured
    for ratio, value in zip(ratios, expected, strict=True):
        if value is None:
            assert isinstance(ratio, CandidateError)
        else:
            assert isinstance(ratio, Measurement)
            assert ratio.value == pytest.approx(value)


def test_without_the_base_there_is_no_ratio(subject: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure_latency", lambda *_, **__: [CandidateError("gone", remedy="")])
    with pytest.raises(CandidateError, match="gone"):
        measure_ratios(LocalTarget(), subject(16), [], seconds=0.1)


def test_a_larger_model_needs_more_memory(subject: Make) -> None:
    small, large = (measure_memory(LocalTarget(), subject(n)) for n in (16, 2048))
    weights = 2048 * 2048 * 4
    assert large.session_peak.value - small.session_peak.value > 0.8 * weights
    assert large.process_peak.value > large.session_peak.value
    assert small.runtime_size.origin.kind == "computed"


def test_memory_of_several_starts_has_an_interval(subject: Make) -> None:
    low, high = _ends(measure_memory(LocalTarget(), subject(), repeats=2).process_peak)
    assert 0 < low <= high


def test_memory_of_a_broken_model_is_a_clear_error(lacking_op: Path) -> None:
    feed = {"x": np.ones((1, 16), np.float32)}
    with pytest.raises(CandidateError, match="NoSuchThing"):
        measure_memory(LocalTarget(), Workload("m", lacking_op, RuntimeOptions(), feed))


def test_names_of_inputs_may_be_anything(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    names = ["file", "/conv/in:0"]
    graph = helper.make_graph(
        [helper.make_node("Add", names, ["y"])],
        "add",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    path = tmp_path / "add.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    feed = {name: np.ones(2, np.float32) for name in names}
    (result,) = measure_latency(LocalTarget(), [Workload("add", path, RuntimeOptions(), feed)], seconds=0.05)
    assert isinstance(result, LatencyResult)


def test_a_machine_is_a_record_that_survives_json() -> None:
    machine = _latency("a", [1.0]).machine
    assert msgspec.json.decode(msgspec.json.encode(machine), type=Machine) == machine
