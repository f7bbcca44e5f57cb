"""The embedding comes out beside the answers, which stay as they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.embedding_output import EMBEDDING_OUTPUT, expose_embedding
from edgewright.compress.model.graph import Graph, clean_model, optimized
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe
from edgewright.contract.errors import CandidateError

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
MODELS = Path(__file__).parents[5] / "shared" / "models"


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_last_layer_turns_the_embedding_into_the_logits(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32], answers: Run
) -> None:
    exposed = expose_embedding(digits_proto)
    onnx.checker.check_model(exposed, full_check=True)
    logits, embedding = answers(exposed, image=digits_batch)
    np.testing.assert_allclose(logits, answers(digits_proto, image=digits_batch)[0], rtol=1e-5, atol=1e-6)
    assert embedding.shape == (64, 64)
    graph = Graph(digits_proto)
    last = next(node for node in reversed(graph.nodes) if node.op_type == "Gemm")
    weight, bias = (graph.constants[name] for name in last.input[1:])
    np.testing.assert_allclose(embedding @ weight.T + bias, logits, rtol=1e-4, atol=1e-4)
    assert exposed.graph.output[1].name == EMBEDDING_OUTPUT
    assert exposed.graph.output[1].type.tensor_type.shape.dim[1].dim_value == 64


def test_an_integer_graph_keeps_its_answers_and_kernels(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32], answers: Run
) -> None:
    cleaned = clean_model(digits_proto)
    seen = collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [{"image": digits_batch}])
    model = quantize_static(cleaned, StaticInt8(), seen)
    exposed = expose_embedding(model)
    np.testing.assert_array_equal(answers(exposed, image=digits_batch)[0], answers(model, image=digits_batch)[0])
    kinds = [[node.op_type for node in optimized(one, "all").graph.node] for one in (model, exposed)]
    assert kinds[1].count("QLinearConv") == kinds[0].count("QLinearConv") > 0
    # Dequantising the embedding is all that is added.
    assert len(kinds[1]) <= len(kinds[0]) + 1


def test_positions_are_averaged(built: Build, answers: Run) -> None:
    x = weights(3, 5, 4, 4)
    model = built(
        "g (float[n,5,4,4] x) => (float[n,2] y)"
        " { r = Relu(x) c = Conv(r, w) p = GlobalAveragePool(c) y = Flatten(p) }",
        w=weights(2, 5, 1, 1),
    )
    np.testing.assert_allclose(
        answers(expose_embedding(model), x=x)[1], np.maximum(x, 0).mean(axis=(2, 3)), rtol=1e-5
    )


@pytest.mark.parametrize("opset", [17, 18])
def test_rows_of_a_sequence_are_averaged(built: Build, answers: Run, opset: int) -> None:
    x = weights(3, 7, 5)
    model = built(
        "g (float[n,7,5] x) => (float[n,7,2] y) { r = Relu(x) y = MatMul(r, w) }", opset=opset, w=weights(5, 2)
    )
    np.testing.assert_allclose(answers(expose_embedding(model), x=x)[1], np.maximum(x, 0).mean(axis=1), rtol=1e-5)


def test_what_has_no_embedding_is_refused(built: Build, digits_proto: onnx.ModelProto) -> None:
    linear = built("g (float[n,6] x) => (float[n,4] y) { y = MatMul(x, w) }", w=weights(6, 4))
    with pytest.raises(CandidateError, match="no layer before"):
        expose_embedding(linear)
    with pytest.raises(CandidateError, match="exposed already"):
        expose_embedding(expose_embedding(digits_proto))


@pytest.mark.shared
@pytest.mark.skipif(not MODELS.is_dir(), reason="../shared/models is absent")
@pytest.mark.parametrize(
    ("name", "features"),
    [("ort_mnist_cnn", 256), ("mlperftiny_ic_resnet8_fp32", 64), ("mlperftiny_kws_dscnn_fp32", 64)],
)
def test_peer_models_have_an_embedding(name: str, features: int, answers: Run) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    given = model.graph.input[0]
    shape = [axis.dim_value or 1 for axis in given.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    result = answers(expose_embedding(model), **{given.name: x})
    np.testing.assert_allclose(result[0], answers(model, **{given.name: x})[0], rtol=1e-4, atol=1e-4)
    assert result[1].shape == (1, features)
