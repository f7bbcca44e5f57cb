"""One more output: what the last layer reads, by which a device can tell inputs that the model was not made for."""

import numpy as np
import onnx
from onnx import TensorProto

from edgewright.compress.model.classifier_head import find_classifier_head
from edgewright.compress.model.graph import Graph
from edgewright.contract.errors import CandidateError

__all__ = ["EMBEDDING_OUTPUT", "expose_embedding"]

EMBEDDING_OUTPUT = "edgewright_embedding"
"""Name of the output."""

# From this operator set on, axes are an input.
_AXES_AS_INPUT = 18


def expose_embedding(model: onnx.ModelProto, output: str | None = None) -> onnx.ModelProto:
    """Return the model with the output `EMBEDDING_OUTPUT` of shape [batch, features] behind its own.

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
    head = find_classifier_head(graph, output)
    if head.last_layer is None or head.last_layer.input[0] not in graph.producers():
        raise CandidateError(
            f"no layer before output {head.output!r} has an embedding",
            remedy="Use a measure of the logits, or add the embedding as an output when exporting.",
        )
    if EMBEDDING_OUTPUT in graph.producers() or EMBEDDING_OUTPUT in graph.input_names:
        raise CandidateError(f"the graph has a tensor {EMBEDDING_OUTPUT!r}", remedy="It was exposed already.")
    name = str(head.last_layer.input[0])
    inferred = onnx.shape_inference.infer_shapes(copy).graph
    kinds = {value.name: value.type.tensor_type for value in inferred.value_info}
    kind = kinds[name].elem_type if name in kinds else TensorProto.FLOAT
    shape = graph.shapes.get(name, ())
    features: int | None = shape[-1] if shape else None
    if head.last_layer.op_type == "Conv":
        features = shape[1] if len(shape) > 1 else None
        graph.make_node("Flatten", [graph.make_node("GlobalAveragePool", [name])], [EMBEDDING_OUTPUT])
    elif len(shape) > 2:
        positions = list(range(1, len(shape) - 1))
        if graph.opset >= _AXES_AS_INPUT:
            axes = graph.add_constant("axes", np.array(positions, np.int64))
            graph.make_node("ReduceMean", [name, axes], [EMBEDDING_OUTPUT], keepdims=0)
        else:
            graph.make_node("ReduceMean", [name], [EMBEDDING_OUTPUT], axes=positions, keepdims=0)
    else:
        graph.make_node("Identity", [name], [EMBEDDING_OUTPUT])
    batch = shape[0] if shape and shape[0] is not None else "batch"
    copy.graph.output.append(
        onnx.helper.make_tensor_value_info(EMBEDDING_OUTPUT, kind or TensorProto.FLOAT, [batch, features])
    )
    return graph.to_model()
