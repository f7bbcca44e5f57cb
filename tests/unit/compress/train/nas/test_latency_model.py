"""The latency model finds the law behind measurements, knows how far off it may be, and ranks real networks."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe
from edgewright.compress.train.nas.architecture import Architecture
from edgewright.compress.train.nas.families import multiply_accumulate_count
from edgewright.compress.train.nas.graph_builder import build_network
from edgewright.compress.train.nas.latency_model import LatencyModel, NetworkFeatures, network_features
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.profiling.latency import LatencyResult, Workload, measure_latency
from edgewright.profiling.target import open_target
from edgewright.runtime.options import RuntimeOptions

IMAGES = ModelSignature((TensorSpec("x", "float32", ("n", 1, 28, 28)),), (TensorSpec("y", "float32", ("n", 10)),))
SERIES = ModelSignature((TensorSpec("x", "float32", ("n", 60, 6)),), (TensorSpec("y", "float32", ("n", 4)),))


def integer_form(model: onnx.ModelProto, x: NDArray[np.float32]) -> onnx.ModelProto:
    cleaned = clean_model(model)
    return quantize_static(
        cleaned, StaticInt8(), collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [{"x": x}])
    )


def imagined(random: np.random.Generator) -> NetworkFeatures:
    whole = [float(value) for value in random.integers(0, 20, 5)]
    work = [float(value) for value in random.exponential(1.0, 6)]
    return NetworkFeatures(1.0, *whole, *work)


LAW = np.array([0.05, 0.02, 0.03, 0.01, 0.01, 0.004, 0.05, 0.5, 3.0, 0.7, 1.0, 0.01])


def law(network: NetworkFeatures, prices: NDArray[np.float64] = LAW) -> float:
    return float(network.to_array @ prices)


def test_a_law_without_noise_is_found_exactly() -> None:
    random = np.random.default_rng(1)
    seen = [imagined(random) for _ in range(30)]
    model = LatencyModel.fit(seen, [law(each) for each in seen])
    np.testing.assert_allclose(model.coefficients, LAW, rtol=0.02)
    for each in (imagined(random) for _ in range(20)):
        assert model.predict(each)[0] == pytest.approx(law(each), rel=0.01)


def test_prices_are_never_negative() -> None:
    random = np.random.default_rng(2)
    seen = [imagined(random) for _ in range(6)]
    model = LatencyModel.fit(seen, random.uniform(0.1, 10, 6).tolist())
    assert (model.coefficients >= 0).all()
    assert model.relative_error > 0.1


def test_the_stated_error_is_the_error_on_new_networks() -> None:
    random = np.random.default_rng(3)

    def noisy(network: NetworkFeatures) -> float:
        return law(network) * float(random.lognormal(0, 0.1))

    seen = [imagined(random) for _ in range(25)]
    model = LatencyModel.fit(seen, [noisy(each) for each in seen])
    new = [imagined(random) for _ in range(300)]
    predictions = [model.predict(each) for each in new]
    errors = [(ratio / noisy(each) - 1) / error for each, (ratio, error) in zip(new, predictions, strict=True)]
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.6


def test_few_measurements_scale_typical_prices() -> None:
    small, large = (
        network_features(build_network(Architecture("plain", width=width), IMAGES)) for width in (8, 32)
    )
    model = LatencyModel.fit([small], [0.2])
    ratio, error = model.predict(small)
    assert ratio == pytest.approx(0.2)
    assert error == 0.5
    assert model.predict(large)[0] > 0.25
    unmeasured = LatencyModel.fit([], [], original=large)
    assert unmeasured.predict(large)[0] == pytest.approx(1.0)
    assert unmeasured.predict(small)[0] < 0.9


def test_what_is_unlike_all_measured_networks_is_less_certain() -> None:
    random = np.random.default_rng(4)
    seen = [msgspec.structs.replace(imagined(random), steps=0.0, recurrent_macs=0.0) for _ in range(12)]
    model = LatencyModel.fit(seen, [law(each) * float(random.lognormal(0, 0.05)) for each in seen])
    recurrent = NetworkFeatures(steps=100.0, recurrent_macs=20.0)
    assert model.predict(recurrent)[1] > 2 * model.predict(seen[0])[1]


@pytest.mark.parametrize(
    ("seen", "ratios"), [([], []), ([NetworkFeatures()], [0.0]), ([NetworkFeatures()], [1.0, 2.0])]
)
def test_impossible_measurements_are_refused(seen: list[NetworkFeatures], ratios: list[float]) -> None:
    with pytest.raises(ValueError, match=r"latencies|neither"):
        LatencyModel.fit(seen, ratios)


@pytest.mark.parametrize("family", ["plain", "residual", "separable"])
def test_float_and_integer_form_consist_of_the_same(family: str) -> None:
    drawn = build_network(msgspec.convert({"family": family, "width": 8, "stages": 2}, Architecture), IMAGES)
    x = np.random.default_rng(0).standard_normal((4, 1, 28, 28)).astype(np.float32)
    one, cleaned, integer = (network_features(each) for each in (drawn, clean_model(drawn), integer_form(drawn, x)))
    assert one == cleaned == integer
    assert one.dense_macs + one.depthwise_macs + one.product_macs == pytest.approx(
        multiply_accumulate_count(drawn) / 1e6
    )


def test_recurrent_steps_are_counted() -> None:
    found = network_features(build_network(Architecture("gru", width=16), SERIES))
    assert found.steps == 60
    assert found.recurrent_macs == pytest.approx(60 * 3 * 16 * (6 + 16) / 1e6)


@pytest.mark.slow
def test_real_networks_are_ranked_as_measured(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 1, 28, 28)).astype(np.float32)
    chosen = [
        *(Architecture("plain", width=width, stages=stages) for width in (8, 48) for stages in (1, 3)),
        *(Architecture("residual", width=width, depth=depth) for width in (16, 48) for depth in (1, 2)),
        *(Architecture("separable", width=width, stages=2, resolution=2) for width in (8, 32)),
        *(Architecture("inverted", width=16, depth=depth, stages=2, expansion=3) for depth in (1, 2)),
    ]
    subjects, seen = [], []
    for i, architecture in enumerate(chosen):
        path = tmp_path / f"{i}.onnx"
        model = integer_form(build_network(architecture, IMAGES), x)
        onnx.save(model, path)
        subjects.append(Workload(str(i), path, RuntimeOptions(), {"x": x[:1]}))
        seen.append(network_features(model))
    measured = measure_latency(open_target("local"), subjects, seconds=6)
    latencies = [each.p50.value for each in measured if isinstance(each, LatencyResult)]
    assert len(latencies) == len(chosen)
    predicted = [
        LatencyModel.fit(
            [each for j, each in enumerate(seen) if j != i], [t for j, t in enumerate(latencies) if j != i]
        ).predict(network)[0]
        for i, network in enumerate(seen)
    ]
    assert spearmanr(predicted, latencies).statistic >= 0.8
