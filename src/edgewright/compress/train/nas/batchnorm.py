"""Batch normalisation put back behind convolutions whose own was folded away when the model was exported.

At first it changes nothing: scale and shift undo what the statistics do. But it keeps the layers' values in range
while weights change, so that a network that was cut down is retrained much faster; the clean-up folds it again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph

__all__ = ["with_batch_norm"]

_EPSILON = 1e-5


def with_batch_norm(model: onnx.ModelProto, inputs: Sequence[NDArray[Any]]) -> onnx.ModelProto:
    """Return the model with a batch normalisation behind every convolution that has none.

    Args:
        model: Float.
        inputs: Of some samples, in the graph's order, [n, ...]; their statistics are the ones it begins with.

    Raises:
        CandidateError: The model cannot be trained.
    """
    graph = Graph(model)
    consumers = graph.consumers()
    bare = [
        node
        for node in graph.nodes
        if node.op_type == "Conv"
        and node.output[0] not in graph.output_names
        and not any(reader.op_type == "BatchNormalization" for reader in consumers.get(node.output[0], []))
    ]
    if not bare:
        return model
    network = TrainableGraph(model).eval()
    with torch.no_grad():
        given = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
        _, seen = network.run_with_tensors(given, [node.output[0] for node in bare])
    for node in bare:
        value = seen[node.output[0]].double()
        axes = [axis for axis in range(value.ndim) if axis != 1]
        mean = value.mean(dim=axes).numpy()
        variance = np.maximum(value.var(dim=axes, unbiased=False).numpy(), 1e-6)
        result = node.output[0]
        node.output[0] = graph.unique_name("conv")
        place = graph.nodes.index(node)
        statistics = (np.sqrt(variance + _EPSILON), mean, mean, variance)
        names = [graph.add_constant("norm", part.astype(np.float32)) for part in statistics]
        graph.make_node("BatchNormalization", [node.output[0], *names], [result], epsilon=_EPSILON)
        graph.nodes.insert(place + 1, graph.nodes.pop())
    return graph.to_model()
