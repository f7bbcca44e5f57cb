"""The least that a network of given input and output can be, to see what the runtime itself costs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["write_floor"]


def write_floor(model: Path, path: Path) -> Path:
    """Write the floor of a classifier: the mean of its input, and one product that gives its classes.

    Args:
        model: With one input [batch, ...] of float32 and one output [batch, classes].
        path: To write.
    """
    graph = onnx.load(model).graph
    (given,), (answer,) = graph.input, graph.output
    axes = np.arange(1, len(given.type.tensor_type.shape.dim))
    classes = answer.type.tensor_type.shape.dim[-1].dim_value
    weights = [
        numpy_helper.from_array(axes.astype(np.int64), "axes"),
        numpy_helper.from_array(np.linspace(-1, 1, classes, dtype=np.float32)[None], "weight"),
        numpy_helper.from_array(np.linspace(0, 1, classes, dtype=np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("ReduceMean", [given.name, "axes"], ["mean"], "mean", keepdims=1),
        helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "weight", "bias"], [answer.name], "gemm"),
    ]
    logits = helper.make_tensor_value_info(answer.name, TensorProto.FLOAT, ["batch", classes])
    made = helper.make_graph(nodes, "floor", [given], [logits], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
