"""The same network at half the resolution: its first convolutions take twice the stride, its weights stay."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgewright.compress.data.model_outputs import open_cpu_session
from edgewright.compress.model.graph import Graph, attribute
from edgewright.contract.errors import CandidateError

__all__ = ["halve_resolution"]

_LAYERS = frozenset(("Conv", "Gemm", "MatMul", "GRU", "LSTM", "RNN"))
# A smaller map has nothing left to look at.
_MIN_SIDE = 12


def halve_resolution(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """Return the model with maps of half the height and width behind its first convolutions.

    Its answers change; what was learned mostly stays, so that it is retrained quickly.

    Args:
        model: Float.
        inputs: Inputs of one inference.

    Raises:
        CandidateError: It does not begin with convolutions, its maps are small already, or what follows needs
            maps of their size.
    """
    graph = Graph(model)
    first = _first_layers(graph)
    if not first or any(node.op_type != "Conv" for node in first):
        raise CandidateError("the model does not begin with a convolution", remedy="Prune its channels instead.")
    for node in first:
        sides = [side or 0 for side in graph.shapes.get(node.output[0], ())[2:]]
        wide = [side > 1 for side in sides]
        if not any(wide) or any(side < _MIN_SIDE for side, is_wide in zip(sides, wide, strict=True) if is_wide):
            raise CandidateError(f"its first maps are only {sides} large", remedy="Prune its channels instead.")
        strides = list(attribute(node, "strides", [1] * len(sides)))
        doubled = [2 * stride if is_wide else stride for stride, is_wide in zip(strides, wide, strict=True)]
        kept = [part for part in node.attribute if part.name != "strides"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("strides", doubled)])
    made = graph.to_model()
    del made.graph.value_info[:]
    if _shapes_of(made, inputs) != _shapes_of(model, inputs):
        raise CandidateError("what follows its first convolution needs maps of their size", remedy="Keep them.")
    return made


def _first_layers(graph: Graph) -> list[onnx.NodeProto]:
    """Return the layers that read the inputs, directly or through what is no layer."""
    reached = set(graph.input_names)
    found = []
    for node in graph.nodes:
        if not any(name in reached for name in node.input):
            continue
        if node.op_type in _LAYERS:
            found.append(node)
        else:
            reached.update(node.output)
    return found


def _shapes_of(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> list[tuple[int, ...]]:
    try:
        return [np.shape(output) for output in open_cpu_session(model).run(None, dict(inputs))]
    except CandidateError:
        raise
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise CandidateError(f"it does not run: {str(error)[:200]}", remedy="Leave it out.") from error
