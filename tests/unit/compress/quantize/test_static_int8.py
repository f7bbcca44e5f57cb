"""Static 8 bit: what the runtime must fuse it fuses, and the integers are those of an independent quantiser."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model, optimized
from edgewright.compress.quantize.activation_ranges import calibrate_range, collect_statistics
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers, quantize_static, tensors_to_observe
from edgewright.contract.errors import CandidateError

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
Decibels = Callable[[list[NDArray[Any]], list[NDArray[Any]]], float]

RANDOM = np.random.default_rng(11)


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def quantized(model: onnx.ModelProto, step: StaticInt8 | None = None, **feed: NDArray[Any]) -> onnx.ModelProto:
    cleaned = clean_model(model)
    seen = collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [feed])
    return quantize_static(cleaned, step or StaticInt8(), seen)


def kernels(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators that the runtime will run."""
    return Counter(node.op_type for node in optimized(model, "all").graph.node)


FORMS = [
    StaticInt8(),
    StaticInt8(per_channel=False),
    StaticInt8(activations="int8"),
    StaticInt8(activations="int8", per_channel=False),
    StaticInt8(calibrator="percentile"),
    StaticInt8(calibrator="entropy"),
    StaticInt8(calibrator="mse"),
    StaticInt8(bias_correction=True),
]


@pytest.mark.parametrize("step", FORMS, ids=str)
def test_every_layer_of_the_digits_network_runs_on_integers(
    digits_proto: onnx.ModelProto,
    digits_batch: NDArray[np.float32],
    answers: Run,
    decibels: Decibels,
    step: StaticInt8,
) -> None:
    made = quantized(digits_proto, step, image=digits_batch)
    counts = kernels(made)
    convolutions = sum(node.op_type == "Conv" for node in digits_proto.graph.node)
    if step.activations == "uint8":  # x86 fuses signed activations only in part, which is why they are not usual
        assert counts["QLinearConv"] == convolutions
        assert counts["QLinearAdd"] == 3
        assert not {"Conv", "FusedConv", "Gemm"} & set(counts)
    assert not {"Relu", "Clip"} & {node.op_type for node in made.graph.node}
    truth = answers(digits_proto, image=digits_batch)
    given = answers(made, image=digits_batch)
    assert decibels(truth, given) > (15 if step.calibrator == "entropy" else 20)
    assert (truth[0].argmax(1) == given[0].argmax(1)).mean() > 0.95
    assert Graph(made).output_names == Graph(digits_proto).output_names


@pytest.fixture
def dense(built: Build) -> onnx.ModelProto:
    return built("g (float[n,20] x) => (float[n,7] y) { y = Gemm(x, w, b) }", w=normal(20, 7), b=normal(7))


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_integers_are_those_of_a_plain_numpy_quantiser(
    dense: onnx.ModelProto, answers: Run, activations: Any, per_channel: bool
) -> None:
    x = normal(50, 20)
    made = quantized(dense, StaticInt8(activations=activations, per_channel=per_channel), x=x)
    w, b = (Graph(dense).constants[name].astype(np.float64) for name in ("w", "b"))

    # Independent: affine activations over the seen range with zero, symmetric weights, int32 bias.
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float64(np.float32((high - low) / 255))
    zero = np.clip(round(-low / step), 0, 255)
    codes = np.clip(np.round(x.astype(np.float64) / step) + zero, 0, 255) - zero
    steps = (np.abs(w).max(axis=0) if per_channel else np.abs(w).max()) / 127
    weights = np.clip(np.round(w / steps), -127, 127)
    wanted = (codes @ weights + np.round(b / (steps * step))) * steps * step

    grain = float(np.max(steps)) * step  # what one unit of the integer sum stands for
    np.testing.assert_allclose(answers(made, x=x)[0], wanted, atol=grain * 1.01 + 1e-5)


def test_a_convolution_differs_from_a_numpy_quantiser_by_at_most_one_step(built: Build, answers: Run) -> None:
    model = built(
        "g (float[n,3,5,5] x) => (float[n,6,1,1] y) { y = Conv(x, w, b) }", w=normal(6, 3, 5, 5), b=normal(6)
    )
    x = normal(40, 3, 5, 5)
    made = quantized(model, x=x)
    assert kernels(made)["QLinearConv"] == 1
    w = Graph(model).constants["w"].reshape(6, -1).T.astype(np.float64)
    b = Graph(model).constants["b"].astype(np.float64)
    truth = answers(model, x=x)[0].reshape(40, 6)

    step_in = (max(x.max(), 0) - min(x.min(), 0)) / 255
    step_out = (max(truth.max(), 0) - min(truth.min(), 0)) / 255
    rows = np.round(x.reshape(40, -1) / step_in) * step_in
    steps = np.abs(w).max(axis=0) / 127
    wanted = rows @ (np.round(w / steps) * steps) + b
    np.testing.assert_allclose(answers(made, x=x)[0].reshape(40, 6), wanted, atol=1.01 * step_out)


def test_outputs_keep_their_names_and_all_are_right(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        """g (float[n,3,8,8] x) => (float[n,4,8,8] features, float[n,4,8,8] clamped, float[n,4] pooled) {
            features = Conv<pads = [1,1,1,1]>(x, w, b)
            clamped = Relu(features)
            c = Conv<pads = [1,1,1,1]>(clamped, v)
            p = GlobalAveragePool(c)
            pooled = Flatten(p)
        }""",
        w=normal(4, 3, 3, 3),
        b=normal(4),
        v=normal(4, 4, 3, 3),
    )
    x = normal(8, 3, 8, 8)
    made = quantized(model, x=x)
    assert Graph(made).output_names == ["features", "clamped", "pooled"]
    assert kernels(made)["QLinearConv"] == 2
    assert decibels(answers(model, x=x), answers(made, x=x)) > 30


@pytest.mark.parametrize("clamp", ["Relu(h)", "Clip(h, low, high)", "Clip(h, low)"])
def test_clamps_are_absorbed_in_the_range(built: Build, answers: Run, decibels: Decibels, clamp: str) -> None:
    model = built(
        f"""g (float[n,3,8,8] x) => (float[n,4,4,4] y) {{
            h = Conv(x, w)
            r = {clamp}
            y = Conv(r, v)
        }}""",
        w=normal(4, 3, 3, 3),
        v=normal(4, 4, 3, 3),
        low=np.float32(0),
        high=np.float32(6),
    )
    x = normal(8, 3, 8, 8)
    made = quantized(model, x=x)
    assert not {"Relu", "Clip"} & set(kernels(made))
    assert decibels(answers(model, x=x), answers(made, x=x)) > 30


def test_a_clamp_that_others_look_behind_stays(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        """g (float[n,3,8,8] x) => (float[n,4,6,6] y) {
            h = Conv(x, w)
            r = Relu(h)
            y = Add(h, r)
        }""",
        w=normal(4, 3, 3, 3),
    )
    x = normal(8, 3, 8, 8)
    assert decibels(answers(model, x=x), answers(quantized(model, x=x), x=x)) > 30


def test_sums_joins_and_pools_run_on_integers(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        """g (float[n,4,8,8] x) => (float[n,5] y) {
            a = Conv<pads = [1,1,1,1]>(x, w)
            b = Conv<pads = [1,1,1,1]>(x, v)
            s = Add(a, b)
            c = Concat<axis = 1>(s, a)
            m = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c)
            p = AveragePool<kernel_shape = [2,2], strides = [2,2]>(m)
            f = Flatten(p)
            y = Gemm<transB = 1>(f, dense, bias)
        }""",
        w=normal(4, 4, 3, 3),
        v=normal(4, 4, 3, 3),
        dense=normal(5, 32),
        bias=normal(5),
    )
    x = normal(16, 4, 8, 8)
    made = quantized(model, x=x)
    counts = kernels(made)
    assert counts["QLinearConv"] == 2
    assert counts["QLinearAdd"] == counts["QLinearConcat"] == counts["QLinearAveragePool"] == counts["QGemm"] == 1
    assert counts["QuantizeLinear"] == 1  # at the door; the answers leave the integer product as floats
    assert counts["DequantizeLinear"] == 0
    assert decibels(answers(model, x=x), answers(made, x=x)) > 30


def test_a_matrix_product_is_fused(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        "g (float[n,5,16] x) => (float[n,5,12] y) { h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, v) }",
        w=normal(16, 24),
        v=normal(24, 12),
    )
    x = normal(6, 5, 16)
    made = quantized(model, x=x)
    assert not {"MatMul", "FusedMatMul"} & set(kernels(made))
    assert decibels(answers(model, x=x), answers(made, x=x)) > 30


@pytest.mark.parametrize("bias", [(5,), (1, 5), (1,)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_biases_of_every_shape_are_kept(
    built: Build, answers: Run, decibels: Decibels, bias: tuple[int, ...], per_channel: bool
) -> None:
    model = built(
        "g (float[n,32] x) => (float[n,5] y) { y = Gemm(x, w, b) }", w=normal(32, 5), b=10 * normal(*bias)
    )
    x = normal(16, 32)
    made = quantized(model, StaticInt8(per_channel=per_channel), x=x)
    assert decibels(answers(model, x=x), answers(made, x=x)) > 30


def test_a_float_layer_in_the_middle_stays_one(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32], answers: Run, decibels: Decibels
) -> None:
    layers = [weight.layer for weight in integer_layers(Graph(clean_model(digits_proto)))]
    made = quantized(digits_proto, StaticInt8(float_layers=(layers[4],)), image=digits_batch)
    counts = kernels(made)
    assert counts["Conv"] + counts["FusedConv"] + counts["NhwcFusedConv"] == 1
    assert counts["QLinearConv"] == sum(node.op_type == "Conv" for node in digits_proto.graph.node) - 1
    assert decibels(answers(digits_proto, image=digits_batch), answers(made, image=digits_batch)) > 20


def test_nothing_to_quantise_is_said(built: Build) -> None:
    model = built("g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }")
    with pytest.raises(CandidateError, match="no layer can be quantised"):
        quantized(model, x=normal(4, 3))


def test_masks_with_infinity_do_not_become_ranges(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        """g (float[n,16] x) => (float[n,8] y, float[n,8] masked) {
            h = MatMul(x, w)
            masked = Add(h, mask)
            s = Softmax(masked)
            y = MatMul(s, v)
        }""",
        w=normal(16, 8),
        v=normal(8, 8),
        mask=np.array([0, 0, -np.inf, 0, 0, -np.inf, 0, 0], np.float32),
    )
    x = normal(32, 16)
    made = quantized(model, x=x)
    truth, given = answers(model, x=x), answers(made, x=x)
    assert np.isneginf(given[1][:, [2, 5]]).all()
    assert decibels(truth[:1], given[:1]) > 25


def test_dead_and_tiny_activations_have_a_step(built: Build, answers: Run) -> None:
    model = built(
        "g (float[n,16] x) => (float[n,8] y) { h = MatMul(x, w)\n y = MatMul(h, v) }",
        w=normal(16, 8) * 0,
        v=normal(8, 8),
    )
    x = np.full((4, 16), 1e-44, np.float32)
    for calibrator in ("minmax", "percentile", "entropy", "mse"):
        assert np.isfinite(answers(quantized(model, StaticInt8(calibrator=calibrator), x=x), x=x)[0]).all()


def test_bias_correction_takes_the_mean_error_out(built: Build, answers: Run) -> None:
    model = built(
        """g (float[n,8,6,6] x) => (float[n,4,4,4] y, float[n,4,2,2] z) {
            h = Conv(x, w, b)
            y = Relu(h)
            z = Conv(y, v)
        }""",
        w=normal(4, 8, 3, 3),
        b=normal(4) + 20,
        v=normal(4, 4, 3, 3),
    )
    x = np.abs(normal(32, 8, 6, 6)) + 1
    truth = answers(model, x=x)[0]
    peaks = {weight.layer: 7 for weight in integer_layers(Graph(clean_model(model)))}  # few bits, large errors

    def mean_error(step: StaticInt8) -> float:
        error = answers(quantized(model, step, x=x), x=x)[0] - truth
        return float(np.abs(error.mean(axis=(0, 2, 3))).max())

    assert mean_error(StaticInt8(max_integer_by_layer=peaks, bias_correction=True)) < 0.5 * mean_error(
        StaticInt8(max_integer_by_layer=peaks)
    )


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy", "mse"])
def test_every_range_holds_zero_and_lies_within_what_was_seen(built: Build, calibrator: Any) -> None:
    model = built("g (float[n,4] x) => (float[n,4] y) { y = Identity(x) }")
    for values in (normal(500, 4) + 3, -np.abs(normal(500, 4)) - 1, normal(500, 4), np.full((5, 4), 2, np.float32)):
        seen = collect_statistics(model, ["x"], [{"x": values}])["x"]
        low, high = calibrate_range(seen, calibrator)
        assert min(seen.low, 0) - 1e-6 <= low <= 0 <= high <= max(seen.high, 0) + 1e-6
        assert low < high


def test_clipping_a_lone_outlier_is_preferred_by_squared_error(built: Build) -> None:
    values = normal(2000, 4)
    values[0, 0] = 12
    model = built("g (float[n,4] x) => (float[n,4] y) { y = Identity(x) }")
    seen = collect_statistics(model, ["x"], [{"x": values}])["x"]
    assert calibrate_range(seen, "minmax", 15)[1] == 12
    assert calibrate_range(seen, "mse", 15)[1] < 10


def test_observations_are_those_of_numpy(built: Build) -> None:
    model = built(
        """g (float[n,3,4,4] x) => (float[n,3,4,4] y, int64[4] s) {
            h = Mul(x, two)
            y = Relu(h)
            s = Shape(h)
        }""",
        two=np.float32(2),
    )
    batches = [normal(2, 3, 4, 4), normal(5, 3, 4, 4)]
    seen = collect_statistics(model, ["x", "h", "y", "s"], [{"x": batch} for batch in batches])
    every = 2 * np.concatenate(batches)
    assert set(seen) == {"x", "h", "y"}
    assert (seen["h"].low, seen["h"].high) == (every.min(), every.max())
    np.testing.assert_allclose(seen["h"].channel_mean, every.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen["y"].channel_peak, every.max(axis=(0, 2, 3)))


def test_weights_with_infinity_are_left_in_float(built: Build) -> None:
    weights = normal(16, 8)
    weights[0, 0] = -np.inf
    model = built(
        "g (float[n,16] x) => (float[n,8] y) { h = MatMul(x, v)\n y = MatMul(h, w) }", v=normal(16, 16), w=weights
    )
    assert [weight.tensor for weight in integer_layers(Graph(model))] == ["v"]
