"""Scale moved between neighbours: the same answers, evener channels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.equalization import (
    CrossLayerEqualization,
    SmoothQuant,
    equalize_layers,
    layer_pairs,
    smooth_activations,
)
from edgewright.compress.quantize.static_int8 import tensors_to_observe
from edgewright.contract.errors import CandidateError

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
Decibels = Callable[[list[NDArray[Any]], list[NDArray[Any]]], float]

RANDOM = np.random.default_rng(9)


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.fixture
def uneven(built: Build) -> onnx.ModelProto:
    """A convolution, a depthwise one and a pointwise one, with channels of very different size."""
    scale = np.logspace(-2, 2, 8).astype(np.float32)
    return built(
        """g (float[n,3,8,8] x) => (float[n,4,4,4] y) {
            a = Conv(x, w, b)
            r = Relu(a)
            d = Conv<group = 8>(r, u, c)
            s = Relu(d)
            y = Conv(s, v)
        }""",
        w=normal(8, 3, 3, 3) * scale.reshape(8, 1, 1, 1),
        b=normal(8) * scale,
        u=normal(8, 1, 3, 3),
        c=normal(8),
        v=normal(4, 8, 1, 1),
    )


def test_equalised_networks_answer_the_same(uneven: onnx.ModelProto, answers: Run, decibels: Decibels) -> None:
    made = equalize_layers(uneven, CrossLayerEqualization())
    x = normal(4, 3, 8, 8)
    assert decibels(answers(uneven, x=x), answers(made, x=x)) > 100


def test_ranges_of_neighbours_are_balanced(uneven: onnx.ModelProto) -> None:
    def peaks(model: onnx.ModelProto) -> tuple[NDArray[Any], NDArray[Any]]:
        constants = Graph(model).constants
        return np.abs(constants["w"]).max(axis=(1, 2, 3)), np.abs(constants["u"]).max(axis=(1, 2, 3))

    before, after = peaks(uneven), peaks(equalize_layers(uneven, CrossLayerEqualization()))
    assert before[0].max() / before[0].min() > 100
    assert after[0].max() / after[0].min() < 0.1 * before[0].max() / before[0].min()
    # Converged: moving any more scale would unbalance the pair (Nagel 2019, equation 11).
    np.testing.assert_allclose(after[0], after[1], rtol=0.1)


def test_the_digits_network_keeps_its_answers(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32], answers: Run, decibels: Decibels
) -> None:
    cleaned = clean_model(digits_proto)
    assert layer_pairs(Graph(cleaned))
    truth = answers(cleaned, image=digits_batch)
    assert decibels(truth, answers(equalize_layers(cleaned, CrossLayerEqualization()), image=digits_batch)) > 90
    seen = collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [{"image": digits_batch}])
    for strength in (0.0, 0.5, 1.0):
        smoothed = smooth_activations(cleaned, SmoothQuant(strength=strength), seen)
        assert decibels(truth, answers(smoothed, image=digits_batch)) > 90


def test_smoothing_evens_the_activations_out(uneven: onnx.ModelProto, answers: Run) -> None:
    x = normal(16, 3, 8, 8)

    def peaks(model: onnx.ModelProto) -> NDArray[np.float32]:
        return collect_statistics(model, ["r"], [{"x": x}])["r"].channel_peak

    seen = collect_statistics(uneven, tensors_to_observe(Graph(uneven)), [{"x": x}])
    before, after = peaks(uneven), peaks(smooth_activations(uneven, SmoothQuant(), seen))
    assert after.max() / after.min() < 0.1 * before.max() / before.min()


def test_a_dead_channel_keeps_the_answers(uneven: onnx.ModelProto, answers: Run, decibels: Decibels) -> None:
    graph = Graph(uneven)
    graph.constants["w"] = graph.constants["w"].copy()
    graph.constants["w"][3] = 0
    graph.constants["v"] = graph.constants["v"].copy()
    graph.constants["v"][:, 5] = 0
    model = graph.to_model()
    x = normal(4, 3, 8, 8)
    made = equalize_layers(model, CrossLayerEqualization())
    seen = collect_statistics(model, tensors_to_observe(Graph(model)), [{"x": x}])
    for candidate in (made, smooth_activations(model, SmoothQuant(), seen)):
        assert decibels(answers(model, x=x), answers(candidate, x=x)) > 90


@pytest.mark.parametrize(
    "body",
    [
        "h = Conv(x, w)\n s = Sigmoid(h)\n y = Conv(s, v)",  # no scale passes through a sigmoid
        "h = Conv(x, w)\n r = Relu(h)\n z = Conv(r, v)\n y = Add(z, r)",  # a second reader
        "h = Conv(x, w)\n r = Relu(h)\n y = Conv(r, w)",  # the same weights twice
        "h = Conv(x, w)\n l = Clip(h, low, high)\n y = Conv(l, v)",  # the clamp has a scale of its own
    ],
)
def test_layers_with_more_than_relu_between_are_no_neighbours(built: Build, body: str) -> None:
    constants = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1), "low": np.float32(0), "high": np.float32(6)}
    model = built(f"g (float[n,4,8,8] x) => (float[n,4,8,8] y) {{ {body} }}", **constants)
    assert not layer_pairs(Graph(model))
    with pytest.raises(CandidateError, match="neighbours"):
        equalize_layers(model, CrossLayerEqualization())


def test_an_inner_tensor_that_is_an_output_keeps_its_values(built: Build) -> None:
    model = built(
        """g (float[n,4,8,8] x) => (float[n,4,8,8] r, float[n,4,8,8] y) {
            h = Conv(x, w)
            r = Relu(h)
            y = Conv(r, v)
        }""",
        w=normal(4, 4, 1, 1),
        v=normal(4, 4, 1, 1),
    )
    assert not layer_pairs(Graph(model))


def test_half_precision_and_infinite_weights_are_left_alone(built: Build) -> None:
    infinite = normal(4, 4, 1, 1)
    infinite[0] = np.inf
    for kind, weights in (("float16", normal(4, 4, 1, 1).astype(np.float16)), ("float", infinite)):
        model = built(
            f"""g ({kind}[n,4,8,8] x) => ({kind}[n,4,8,8] y) {{
                h = Conv(x, w)
                r = Relu(h)
                y = Conv(r, v)
            }}""",
            w=weights,
            v=weights * 2,
        )
        assert not layer_pairs(Graph(model))
