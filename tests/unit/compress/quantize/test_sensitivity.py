"""Noise per layer: it predicts the noise of mixtures, and the bits that follow from it keep their target."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.bit_packing import PACKED_DIGITS, max_packed_integer
from edgewright.compress.quantize.sensitivity import (
    NoiseProbe,
    allocate_bits,
    integer_noise,
    make_noise_probe,
    weight_noise,
)
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers, quantize_static, tensors_to_observe
from edgewright.compress.quantize.weight_only import StoreIntegerWeights, store_integer_weights, stored_layers

Build = Callable[..., onnx.ModelProto]
_PROBE_PEAK = 8  # of `weight_noise`


@pytest.fixture(scope="module")
def cleaned(digits_proto: onnx.ModelProto) -> onnx.ModelProto:
    return clean_model(digits_proto)


@pytest.fixture(scope="module")
def probe(cleaned: onnx.ModelProto, digits_batch: NDArray[np.float32]) -> NoiseProbe:
    return make_noise_probe(cleaned, [{"image": digits_batch}])


@pytest.fixture(scope="module")
def noise(cleaned: onnx.ModelProto, probe: NoiseProbe) -> dict[str, float]:
    return weight_noise(cleaned, probe)


def total(noise: dict[str, float], peaks: dict[str, int]) -> float:
    return sum(noise[layer] * (_PROBE_PEAK / peak) ** 2 for layer, peak in peaks.items())


def test_every_stored_layer_has_a_noise(cleaned: onnx.ModelProto, noise: dict[str, float]) -> None:
    assert set(noise) == {weight.layer for weight in stored_layers(Graph(cleaned))}
    assert all(0 < value < 1 for value in noise.values())


def test_the_float_model_has_no_noise(cleaned: onnx.ModelProto, probe: NoiseProbe) -> None:
    assert probe.noise(cleaned) < 1e-9


@pytest.mark.parametrize("target_db", [24, 30, 36, 44, 54])
def test_the_predicted_noise_of_a_mixture_is_within_three_decibels(
    cleaned: onnx.ModelProto, probe: NoiseProbe, noise: dict[str, float], target_db: int
) -> None:
    peaks = allocate_bits(Graph(cleaned), noise, target_db)
    measured = probe.noise(store_integer_weights(cleaned, StoreIntegerWeights(max_integer_by_layer=peaks)))
    assert abs(10 * np.log10(measured / total(noise, peaks))) < 3


@pytest.mark.parametrize("target_db", [12, 15, 20, 27, 33, 40, 48, 60])
def test_an_allocation_never_exceeds_its_target(
    cleaned: onnx.ModelProto, noise: dict[str, float], target_db: int
) -> None:
    peaks = allocate_bits(Graph(cleaned), noise, target_db)
    assert set(peaks) == set(noise)
    assert total(noise, peaks) <= 10 ** (-target_db / 10) * (1 + 1e-9)
    assert set(peaks.values()) <= {max_packed_integer(digits) for digits in PACKED_DIGITS}


def test_more_decibels_never_cost_fewer_bits(cleaned: onnx.ModelProto, noise: dict[str, float]) -> None:
    graph = Graph(cleaned)
    before: dict[str, int] = {}
    for target in range(10, 70, 3):
        peaks = allocate_bits(graph, noise, target)
        assert all(peaks[layer] >= peak for layer, peak in before.items())
        before = peaks


def test_an_impossible_target_gets_the_most_bits_on_offer(
    cleaned: onnx.ModelProto, noise: dict[str, float]
) -> None:
    peaks = allocate_bits(Graph(cleaned), noise, 300, max_integer=127)
    assert set(peaks.values()) == {127}


def test_noise_of_integer_layers_adds_up(
    cleaned: onnx.ModelProto, probe: NoiseProbe, digits_batch: NDArray[np.float32]
) -> None:
    layers = [weight.layer for weight in integer_layers(Graph(cleaned))]
    seen = collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [{"image": digits_batch}])
    alone = integer_noise(cleaned, probe, StaticInt8(), seen, layers)
    assert set(alone) == set(layers)
    together = probe.noise(quantize_static(cleaned, StaticInt8(), seen))
    assert abs(10 * np.log10(together / sum(alone.values()))) < 6


def test_answers_are_judged_before_a_final_softmax(built: Build) -> None:
    random = np.random.default_rng(0)
    weights: NDArray[Any] = random.standard_normal((16, 8)).astype(np.float32)
    model = built("g (float[n,16] x) => (float[n,8] y) { h = MatMul(x, w)\n y = Softmax(h) }", w=weights)
    assert make_noise_probe(model, [{"x": np.ones((1, 16), np.float32)}]).observed_tensors == ("h",)
    graph = Graph(model)
    graph.constants["w"] = weights * np.float32(1.1)
    judged = make_noise_probe(model, [{"x": random.standard_normal((4, 16)).astype(np.float32)}]).noise(
        graph.to_model()
    )
    assert judged == pytest.approx(0.01, rel=1e-3)
