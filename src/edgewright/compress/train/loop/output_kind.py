"""How a graph ends: in scores or in probabilities, and what its last layer reads."""

import onnx

from edgewright.compress.model.graph import Graph
from edgewright.compress.train.loop.losses import OutputActivation

__all__ = ["feature_tensor_of", "output_activation"]

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.UNDEFINED)
_PASSED = frozenset("Cast DequantizeLinear Flatten Identity QuantizeLinear Reshape Squeeze Unsqueeze".split())
_LAYERS = frozenset("Conv Gemm MatMul".split())
_ENDINGS: dict[str, OutputActivation] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


def output_activation(model: onnx.ModelProto) -> OutputActivation:
    """Return how the first float output is made; anything but softmax and sigmoid counts as scores."""
    graph = Graph(model)
    producers = graph.producers()
    outputs = model.graph.output
    name = next((o.name for o in outputs if o.type.tensor_type.elem_type in _FLOATS), outputs[0].name)
    while name in producers and producers[name].op_type in _PASSED:
        name = producers[name].input[0]
    return _ENDINGS.get(producers[name].op_type, "scores") if name in producers else "scores"


def feature_tensor_of(model: onnx.ModelProto) -> str | None:
    """Return the tensor that the last layer reads, None if that is the graph's own input."""
    graph = Graph(model)
    layers = [node for node in graph.nodes if node.op_type in _LAYERS]
    if not layers:
        return None
    name = str(layers[-1].input[0])
    return name if name in graph.producers() else None
