"""Half the resolution with the same weights, and normalisation put back where it was folded away."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgewright.compress.data.model_outputs import open_cpu_session
from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.train.nas.architecture import Architecture
from edgewright.compress.train.nas.batchnorm import with_batch_norm
from edgewright.compress.train.nas.downsample import halve_resolution
from edgewright.compress.train.nas.families import multiply_accumulate_count
from edgewright.compress.train.nas.graph_builder import build_network
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

CLASSES = TensorSpec("y", "float32", ("n", 10))


def drafted(family: str, shape: tuple[int, ...], **changes: int) -> onnx.ModelProto:
    contract = ModelSignature((TensorSpec("x", "float32", ("n", *shape)),), (CLASSES,))
    return build_network(Architecture(family, **changes), contract, seed=1)  # type: ignore[arg-type]


def feed(*shape: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)}


@pytest.mark.parametrize(
    ("family", "shape", "less"),
    [("residual", (1, 28, 28), 4), ("separable", (3, 32, 32), 4), ("residual1d", (64, 6), 2)],
)
def test_half_the_resolution_is_less_work_with_the_same_weights(
    family: str, shape: tuple[int, ...], less: int
) -> None:
    model = drafted(family, shape, width=16, stages=2)
    half = halve_resolution(model, feed(*shape))
    assert multiply_accumulate_count(half) == pytest.approx(multiply_accumulate_count(model) / less, rel=0.3)
    before, after = (sorted(t.SerializeToString() for t in each.graph.initializer) for each in (model, half))
    assert before == after
    assert open_cpu_session(half).run(None, feed(*shape))[0].shape == (1, 10)


def test_half_the_resolution_trains() -> None:
    network = TrainableGraph(halve_resolution(drafted("plain", (1, 28, 28), width=8), feed(1, 28, 28)))
    network(torch.zeros(4, 1, 28, 28))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("family", "shape"), [("mlp", (20,)), ("plain", (1, 8, 8))])
def test_what_has_no_maps_to_spare_is_refused(family: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CandidateError, match=r"convolution|maps"):
        halve_resolution(drafted(family, shape, width=8), feed(*shape))


def test_a_head_that_needs_its_maps_is_refused() -> None:
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name)
        for name, size in (("k", (4, 1, 3, 3)), ("w", (4 * 16 * 16, 10)))
    ]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Flatten", ["c"], ["f"], "flat"),
        onnx.helper.make_node("Gemm", ["f", "w"], ["y"], "head"),
    ]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 16, 16])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 10])
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(CandidateError):
        halve_resolution(model, feed(1, 16, 16))


def test_normalisation_changes_nothing_until_it_is_trained() -> None:
    model = onnx.load(Path(__file__).parents[5] / "examples" / "digits" / "model.onnx")
    x = np.random.default_rng(0).random((64, 1, 8, 8), np.float32)
    made = with_batch_norm(model, [x])
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    assert sum(node.op_type == "BatchNormalization" for node in made.graph.node) == convolutions
    before, after, folded = (
        open_cpu_session(m).run(None, {"image": x})[0] for m in (model, made, clean_model(made))
    )
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    np.testing.assert_allclose(folded, before, atol=1e-4 * np.abs(before).max())
    assert not any(node.op_type == "BatchNormalization" for node in Graph(clean_model(made)).nodes)
    assert with_batch_norm(made, [x]) is made
