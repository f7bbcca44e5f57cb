"""Answers stacked over samples are those of single inferences."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.model_outputs import model_outputs, open_cpu_session
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

CONTRACT = ModelSignature((TensorSpec("x", "float32", ("n", 4)),), (TensorSpec("y", "float32", ("...",)),))
X = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
DATASET = Dataset({"x": X[:, None]}, None, None, "fidelity", fingerprint="")
WEIGHTS = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)


def model_of(nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_batches_answer_as_single_samples() -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])])
    for source in (model, model.SerializeToString(), open_cpu_session(model)):
        (answer,) = model_outputs(source, DATASET, [5, 3, 8], CONTRACT)
        np.testing.assert_allclose(answer, X[[5, 3, 8]] @ WEIGHTS, atol=1e-5)


def test_answers_that_depend_on_the_batch_are_taken_one_by_one() -> None:
    centred = model_of(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ]
    )
    (answer,) = model_outputs(centred, DATASET, range(30), CONTRACT)
    assert (answer == 0).all()


def test_dynamically_quantised_models_are_run_one_by_one() -> None:
    quantised = model_of(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
    )
    session = open_cpu_session(quantised)
    (answer,) = model_outputs(session, DATASET, range(30), CONTRACT)
    singles = [session.run(None, {"x": X[i : i + 1]})[0][0] for i in range(30)]
    assert (answer == np.stack(singles)).all()


def test_models_that_break_on_batches_are_run_one_by_one() -> None:
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[1, 2, 2])
    (answer,) = model_outputs(
        model_of([shape, helper.make_node("Reshape", ["x", "shape"], ["y"])]), DATASET, range(30), CONTRACT
    )
    assert answer.shape == (30, 2, 2)


def test_an_output_whose_shape_changes_is_refused() -> None:
    model = model_of([helper.make_node("NonZero", ["positive"], ["y"])])
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["positive"]))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(CandidateError, match="changes its shape"):
        model_outputs(model, DATASET, range(30), CONTRACT)


def test_a_model_that_cannot_be_loaded_or_run_is_a_failed_candidate() -> None:
    with pytest.raises(CandidateError, match="cannot load"):
        open_cpu_session(b"nonsense")
    wrong = Dataset({"x": X[:, None, :3]}, None, None, "fidelity", fingerprint="")
    with pytest.raises(CandidateError, match="running the model failed"):
        model_outputs(model_of([helper.make_node("MatMul", ["x", "w"], ["y"])]), wrong, [0], CONTRACT)
