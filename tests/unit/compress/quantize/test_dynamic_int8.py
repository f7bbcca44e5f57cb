"""Matrix layers without calibration: against plain numpy, which knows nothing of the runtime's operators."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.quantize.dynamic_int8 import (
    BlockwiseWeights,
    DynamicInt8,
    matrix_layers,
    quantize_blockwise,
    quantize_dynamic,
)
from edgewright.contract.errors import CandidateError

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
Decibels = Callable[[list[NDArray[Any]], list[NDArray[Any]]], float]

RANDOM = np.random.default_rng(4)


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.fixture
def gemm(built: Build) -> onnx.ModelProto:
    return built(
        "g (float[n,40] x) => (float[n,6] y) { y = Gemm<transB = 1>(x, w, b) }", w=normal(6, 40), b=normal(6)
    )


def dequantised(matrix: NDArray[np.float64], bits: int, block: int) -> NDArray[np.float64]:
    """Round [inputs, outputs] in blocks of inputs, symmetric, one step per block; the step is the largest's."""
    result = matrix.copy()
    peak = 2 ** (bits - 1) - 1
    for start in range(0, len(matrix), block):
        rows = matrix[start : start + block]
        step = np.abs(rows).max(axis=0) / peak
        result[start : start + block] = np.clip(np.round(rows / step), -peak, peak) * step
    return result


@pytest.mark.parametrize("block", [16, 32, 128])
def test_blocks_of_eight_bits_are_those_of_numpy(gemm: onnx.ModelProto, answers: Run, block: Any) -> None:
    made = quantize_blockwise(gemm, BlockwiseWeights(bits=8, block_size=block, accuracy_level=1))
    constants = Graph(gemm).constants
    weights = dequantised(constants["w"].T.astype(np.float64), 8, block)
    x = normal(9, 40)
    np.testing.assert_allclose(answers(made, x=x)[0], x @ weights + constants["b"], atol=1e-4)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_blocks_of_four_bits_are_no_worse_than_the_plain_step(
    gemm: onnx.ModelProto, answers: Run, block: Any
) -> None:
    made = quantize_blockwise(gemm, BlockwiseWeights(bits=4, block_size=block, accuracy_level=1))
    constants = Graph(gemm).constants
    identity = np.eye(40, dtype=np.float32)
    have = answers(made, x=identity)[0] - constants["b"]  # the weights that the operator computes with
    plain = dequantised(constants["w"].T.astype(np.float64), 4, block)
    error = np.square(have - constants["w"].T).sum()
    assert error <= np.square(plain - constants["w"].T).sum() * 1.0001
    whole = -(-40 // block) * block // 2  # rows are padded to whole blocks
    assert max(v.nbytes for v in Graph(made).constants.values() if v.dtype == np.uint8) == 6 * whole


def test_dynamic_matrix_products_are_close_to_the_floats(
    gemm: onnx.ModelProto, answers: Run, decibels: Decibels
) -> None:
    made = quantize_dynamic(gemm, DynamicInt8())
    assert [node.op_type for node in made.graph.node] == ["DynamicQuantizeMatMul", "Add"]
    x = normal(9, 40)
    assert decibels(answers(gemm, x=x), answers(made, x=x)) > 30


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_dynamic_lstm_is_close_to_the_floats(
    built: Build, answers: Run, decibels: Decibels, direction: str
) -> None:
    d = 1 if direction == "forward" else 2
    model = built(
        f"""g (float[7,3,12] x, float[{d},3,16] h, float[{d},3,16] c)
            => (float[7,{d},3,16] y, float[{d},3,16] hn, float[{d},3,16] cn) {{
            y, hn, cn = LSTM<hidden_size = 16, direction = "{direction}">(x, w, r, b, , h, c)
        }}""",
        w=normal(d, 64, 12) / 3,
        r=normal(d, 64, 16) / 3,
        b=normal(d, 128),
    )
    made = quantize_dynamic(model, DynamicInt8())
    assert [node.op_type for node in made.graph.node] == ["DynamicQuantizeLSTM"]
    feed = {"x": normal(7, 3, 12), "h": normal(d, 3, 16), "c": normal(d, 3, 16)}
    assert decibels(answers(model, **feed), answers(made, **feed)) > 28


def test_an_lstm_without_state_or_bias_is_taken_too(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        "g (float[5,2,12] x) => (float[5,1,2,16] y) { y = LSTM<hidden_size = 16>(x, w, r) }",
        w=normal(1, 64, 12) / 3,
        r=normal(1, 64, 16) / 3,
    )
    x = normal(5, 2, 12)
    assert decibels(answers(model, x=x), answers(quantize_dynamic(model, DynamicInt8()), x=x)) > 28


@pytest.mark.parametrize("attributes", ["alpha = 0.5", "beta = 2.0", "transA = 1"])
def test_scaled_and_transposed_products_are_left_alone(built: Build, attributes: str) -> None:
    text = "g (float[16,16] x) => (float[16,8] y) { y = Gemm<" + attributes + ">(x, w, b) }"
    model = built(text, w=normal(16, 8), b=normal(8))
    assert not matrix_layers(Graph(model))
    with pytest.raises(CandidateError):
        quantize_dynamic(model, DynamicInt8())
    with pytest.raises(CandidateError):
        quantize_blockwise(model, BlockwiseWeights())


def test_names_of_the_digits_network_stay(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32], answers: Run, decibels: Decibels
) -> None:
    cleaned = clean_model(digits_proto)
    for made in (quantize_dynamic(cleaned, DynamicInt8()), quantize_blockwise(cleaned, BlockwiseWeights(bits=8))):
        assert Graph(made).output_names == Graph(digits_proto).output_names
        assert decibels(answers(digits_proto, image=digits_batch), answers(made, image=digits_batch)) > 28


def test_matrices_with_infinity_are_left_alone(built: Build) -> None:
    weights = normal(16, 8)
    weights[0, 0] = np.inf
    model = built("g (float[n,16] x) => (float[n,8] y) { y = MatMul(x, w) }", w=weights)
    assert matrix_layers(Graph(model)) == []
