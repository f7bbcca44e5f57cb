"""The fusion lint: every rule fires where the runtime is slow, and mending keeps the answers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgewright.compress.model.fusion_lint import fix_model, lint_model
from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.dynamic_int8 import DynamicInt8, quantize_dynamic
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers, quantize_static, tensors_to_observe
from edgewright.contract.errors import CandidateError

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
Decibels = Callable[[list[NDArray[Any]], list[NDArray[Any]]], float]

RANDOM = np.random.default_rng(21)


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def codes(*shape: int) -> NDArray[np.int8]:
    return RANDOM.integers(-127, 128, shape).astype(np.int8)


def rules(model: onnx.ModelProto) -> set[str]:
    return {finding.rule for finding in lint_model(model).findings}


@pytest.fixture
def digits_in_form(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32]
) -> Callable[[StaticInt8], onnx.ModelProto]:
    cleaned = clean_model(digits_proto)
    seen = collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [{"image": digits_batch}])
    return lambda step: quantize_static(cleaned, step, seen)


def test_a_float_network_has_nothing_to_mend(digits_proto: onnx.ModelProto) -> None:
    found = lint_model(digits_proto)
    assert found.findings == ()
    assert (found.layers, found.integer_layers, found.conversions) == (9, 0, 0)
    assert found.fused_fraction == 0


def test_a_fused_network_has_no_findings(digits_in_form: Callable[[StaticInt8], onnx.ModelProto]) -> None:
    found = lint_model(digits_in_form(StaticInt8()))
    assert found.findings == ()
    assert found.fused_fraction == 1


def test_signed_activations_are_found_and_mended_to_a_fully_fused_network(
    digits_in_form: Callable[[StaticInt8], onnx.ModelProto],
    digits_batch: NDArray[np.float32],
    answers: Run,
    decibels: Decibels,
) -> None:
    signed = digits_in_form(StaticInt8(activations="int8"))
    assert "signed activations" in rules(signed)
    mended, done = fix_model(signed)
    assert any("unsigned" in deed for deed in done)
    assert lint_model(mended).fused_fraction == 1
    assert not lint_model(mended).findings
    # The same integers, shifted; only the runtime's rounding of biases may differ.
    before = answers(signed, "disable", image=digits_batch)
    after = answers(mended, "disable", image=digits_batch)
    assert decibels(before, after) > 40
    np.testing.assert_array_equal(before[0].argmax(1), after[0].argmax(1))


def test_a_float_layer_among_integers_is_found(
    digits_in_form: Callable[[StaticInt8], onnx.ModelProto], digits_proto: onnx.ModelProto
) -> None:
    layers = [weight.layer for weight in integer_layers(Graph(clean_model(digits_proto)))]
    found = lint_model(digits_in_form(StaticInt8(float_layers=(layers[4],))))
    assert {finding.rule for finding in found.findings} == {"float layer among integers"}
    assert found.integer_layers == found.layers - 1


@pytest.fixture
def half_quantised(built: Build) -> onnx.ModelProto:
    """Quantised inputs and weights, float outputs: what a careless tool writes."""
    return built(
        """g (float[n,4,8,8] x) => (float[n,8,4,4] y) {
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            w1 = DequantizeLinear(first, s, zw)
            h = Conv(xd, w1)
            hq = Sigmoid(h)
            w2 = DequantizeLinear(second, s, zw)
            y = Conv(hq, w2)
        }""",
        s=np.float32(0.02),
        z=np.uint8(128),
        zw=np.int8(0),
        first=codes(8, 4, 3, 3),
        second=codes(8, 8, 3, 3),
    )


def test_an_output_that_is_not_quantised_is_found(half_quantised: onnx.ModelProto) -> None:
    found = [finding for finding in lint_model(half_quantised).findings if finding.rule == "unquantized output"]
    assert len(found) == 1
    assert not found[0].fixable
    assert found[0].reason
    assert found[0].remedy


def test_a_missing_zero_point_is_found_and_written_out(built: Build, answers: Run) -> None:
    model = built(
        """g (float[n,16] x) => (float[n,8] y) {
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            w = DequantizeLinear(codes, s)
            h = Gemm(xd, w)
            hq = QuantizeLinear(h, s, z)
            y = DequantizeLinear(hq, s, z)
        }""",
        s=np.float32(0.02),
        z=np.uint8(128),
        codes=codes(16, 8),
    )
    assert "missing zero point" in rules(model)
    mended, done = fix_model(model)
    assert any("zero point" in deed for deed in done)
    assert lint_model(mended).fused_fraction == 1
    x = normal(5, 16)
    step = 0.02  # of the output: fused kernels may round a tie the other way
    np.testing.assert_allclose(answers(mended, x=x)[0], answers(model, x=x)[0], atol=1.01 * step)


def test_weights_that_are_inputs_are_found_and_freed(built: Build, answers: Run) -> None:
    model = built("g (float[n,16] x) => (float[n,8] y) { y = MatMul(x, w) }", w=normal(16, 8))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 8]))
    assert rules(model) == {"weights as inputs"}
    mended, done = fix_model(model)
    assert any("inputs" in deed for deed in done)
    assert not lint_model(mended).findings
    x = normal(3, 16)
    np.testing.assert_allclose(answers(mended, x=x)[0], answers(model, x=x)[0], rtol=1e-5)


def test_dynamic_convolutions_are_called_slow(built: Build) -> None:
    model = built(
        """g (float[n,4,8,8] x) => (float[n,8,6,6] y) {
            q, s, z = DynamicQuantizeLinear(x)
            i = ConvInteger(q, w, z)
            y = Cast<to = 1>(i)
        }""",
        w=codes(8, 4, 3, 3),
    )
    found = lint_model(model)
    assert [finding.rule for finding in found.findings] == ["slow operator"]
    assert "ConvInteger" in found.findings[0].where


def test_leftover_pairs_are_counted(built: Build) -> None:
    lines = []
    last = "x"
    for i in range(6):
        lines += [
            f"q{i} = QuantizeLinear({last}, s, z)",
            f"d{i} = DequantizeLinear(q{i}, s, z)",
            f"e{i} = Erf(d{i})",
        ]
        last = f"e{i}"
    body = "\n".join(lines)
    model = built(
        f"g (float[n,16] x) => (float[n,16] y) {{ {body}\n y = MatMul({last}, w) }}",
        s=np.float32(0.02),
        z=np.uint8(128),
        w=normal(16, 16),
    )
    assert "leftover pairs" in rules(model)


def test_dynamic_matrix_products_count_as_integers(built: Build) -> None:
    model = built("g (float[n,16] x) => (float[n,8] y) { y = MatMul(x, w) }", w=normal(16, 8))
    assert lint_model(quantize_dynamic(model, DynamicInt8())).fused_fraction == 1


def test_signed_samples_at_the_door_get_one_conversion(built: Build, answers: Run) -> None:
    model = built(
        """g (int8[n,4,8,8] x) => (float[n,8,6,6] y) {
            xd = DequantizeLinear(x, s, z)
            w1 = DequantizeLinear(first, s, z)
            h = Conv(xd, w1)
            hq = QuantizeLinear(h, t, z)
            y = DequantizeLinear(hq, t, z)
        }""",
        s=np.float32(0.02),
        t=np.float32(0.1),
        z=np.int8(0),
        first=codes(8, 4, 3, 3),
    )
    mended, _ = fix_model(model)
    assert lint_model(mended).fused_fraction == 1
    assert [value.type.tensor_type.elem_type for value in mended.graph.input] == [TensorProto.INT8]
    x = codes(2, 4, 8, 8)
    before, after = answers(model, "disable", x=x)[0], answers(mended, "disable", x=x)[0]
    np.testing.assert_array_equal(before, after)


def test_a_graph_that_does_not_load_is_an_error_of_the_candidate(built: Build) -> None:
    with pytest.raises(CandidateError):
        lint_model(built("g (float[n] x) => (float[n] y) { y = NoSuchThing(x) }"))
