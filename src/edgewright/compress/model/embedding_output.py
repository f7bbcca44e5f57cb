"""One more output: what the last layer reads, by which a device can tell inputs that the model was not made for."""

import numpy as np
import onnx
from onnx import TensorProto

from edgewright.compress.model.classifier_head import head_of
from edgewright.compress.model.graph import Graph
from edgewright.contract.errors import CandidateError

__all__ = ["EMBEDDING", "expose"]

EMBEDDING = "edgewright_embedding"
"""Name of the output."""

# From this operator set on, axes are an input.
_AXES_AS_INPUT = 18


def expose(model: onnx.ModelProto, output: str | None = None) -> onnx.ModelProto:
    """Return the model with the output `EMBEDDING` of shape [batch, features] behind its own.

    Answers stay the same. What the last layer reads is averaged over positions, if it has any.

    Args:
        model: A classifier.
        output: Name of the output whose last layer counts, None for the first.

    Raises:
        CandidateError: The last layer is not found, reads the input itself, or the name is taken.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    head = head_of(graph, output)
    if head.layer is None or head.layer.input[0] not in graph.producers():
        raise CandidateError(
            f"no layer before output {head.output!r} has an embedding",
            remedy="Use a measure of the logits, or add the embedding as an output when exporting.",
        )
    if EMBEDDING in graph.producers() or EMBEDDING in graph.input_names:
        raise CandidateError(f"the graph has a tensor {EMBEDDING!r}", remedy="It was exposed already.")
    name = str(head.layer.input[0])
    inferred = onnx.shape_inference.infer_shapes(copy).graph
    kinds = {value.name: value.type.tensor_type for value in inferred.value_info}
    kind = kinds[name].elem_type if name in kinds else TensorProto.FLOAT
    shape = graph.shapes.get(name, ())
    features: int | None = shape[-1] if shape else None
    if head.layer.op_type == "Conv":
        features = shape[1] if len(shape) > 1 else None
        graph.node("Flatten", [graph.node("GlobalAveragePool", [name])], [EMBEDDING])
    elif len(shape) > 2:
        positions = list(range(1, len(shape) - 1))
        if graph.opset >= _AXES_AS_INPUT:
            axes = graph.constant("axes", np.array(positions, np.int64))
            graph.node("ReduceMean", [name, axes], [EMBEDDING], keepdims=0)
        else:
            graph.node("ReduceMean", [name], [EMBEDDING], axes=positions, keepdims=0)
    else:
        graph.node("Identity", [name], [EMBEDDING])
    batch = shape[0] if shape and shape[0] is not None else "batch"
    copy.graph.output.append(
        onnx.helper.make_tensor_value_info(EMBEDDING, kind or TensorProto.FLOAT, [batch, features])
    )
    return graph.model()
