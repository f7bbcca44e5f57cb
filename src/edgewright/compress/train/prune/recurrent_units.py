"""Units of recurrent layers: taking some of them out of all gates, and out of what reads them."""

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, attribute
from edgewright.compress.train.prune.feature_tracing import UnitTags, remove_tagged, trace_tags
from edgewright.contract.errors import CandidateError

__all__ = ["recurrent_layers", "remove_units", "unit_count", "unit_scores"]

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def recurrent_layers(graph: Graph) -> list[onnx.NodeProto]:
    """Return the recurrent nodes whose weights are constants."""
    return [n for n in graph.nodes if n.op_type in _GATES and all(name in graph.constants for name in n.input[1:3])]


def unit_count(node: onnx.NodeProto, graph: Graph) -> int:
    """Return the number of hidden units of one direction."""
    return int(graph.constants[node.input[2]].shape[2])


def unit_scores(node: onnx.NodeProto, graph: Graph) -> NDArray[np.float64]:
    """Sum what `graph` holds in place of weights over each unit's gates, recurrent inputs and directions.

    Args:
        node: The layer.
        graph: A graph whose constants are scores of single weights (see `importance.py`).

    Returns:
        [units].
    """
    gates, units = _GATES[node.op_type], unit_count(node, graph)
    total = np.zeros(units)
    for i, name in enumerate(node.input[1:4]):
        value = graph.constants[name].astype(np.float64) if name else np.zeros(0)
        if value.size:
            rows = 2 * gates if i == 2 else gates
            total += value.reshape(len(value), rows, units, -1).sum(axis=(0, 1, 3))
    total += graph.constants[node.input[2]].astype(np.float64).sum(axis=(0, 1))
    return total


def remove_units(graph: Graph, node: onnx.NodeProto, units: Collection[int]) -> None:
    """Take these units out of a layer, the same in each direction; the graph is changed in place.

    Raises:
        CandidateError: The layer's state comes from outside, or its units reach an output or a sum.
    """
    count = unit_count(node, graph)
    stay = np.array([unit for unit in range(count) if unit not in set(units)], np.intp)
    _drop_zero_states(node, graph)
    remove_tagged(
        graph, trace_tags(graph, {name: _tags(graph, name, count) for name in node.output if name}), units
    )
    gates = _GATES[node.op_type]

    def narrow(place: int, blocks: int, axis: int) -> None:
        """Keep the units in each of `blocks` equal parts of an axis."""
        value = graph.constants[node.input[place]]
        chosen = np.concatenate([stay + block * count for block in range(blocks)])
        node.input[place] = graph.add_constant("units", np.take(value, chosen, axis=axis))

    narrow(1, gates, 1)
    narrow(2, gates, 1)
    narrow(2, 1, 2)
    for place, blocks, axis in ((3, 2 * gates, 1), (5, 1, 2), (6, 1, 2), (7, 3, 1)):
        if len(node.input) > place and node.input[place]:
            narrow(place, blocks, axis)
    for candidate in node.attribute:
        if candidate.name == "hidden_size":
            candidate.i = len(stay)


def _tags(graph: Graph, name: str, count: int) -> UnitTags:
    shape = [d or 1 for d in graph.shapes[name]]
    return np.ascontiguousarray(np.broadcast_to(np.arange(count), shape))


def _drop_zero_states(node: onnx.NodeProto, graph: Graph) -> None:
    """Leave out initial states that are zero, which is what a missing one means."""
    if attribute(node, "layout", 0):
        raise CandidateError(
            f"{node.name!r} has its batch first inside the operator", remedy="Export it with layout 0."
        )
    producers = graph.producers()
    for place in (5, 6):
        name = node.input[place] if len(node.input) > place else ""
        if not name or (name in graph.constants and graph.constants[name].any()):
            continue
        maker = producers.get(name)
        spread = maker is not None and maker.op_type in ("Expand", "Tile", "ConstantOfShape")
        source = graph.constants.get(maker.input[0]) if maker is not None and spread else None
        filled = attribute(maker, "value") if maker is not None and maker.op_type == "ConstantOfShape" else None
        is_zero = name in graph.constants or (source is not None and not source.any())
        if maker is not None and maker.op_type == "ConstantOfShape":
            is_zero = filled is None or not onnx.numpy_helper.to_array(filled).any()
        if not is_zero:
            raise CandidateError(
                f"the state of {node.name!r} comes from outside", remedy="Such a layer keeps its width."
            )
        node.input[place] = ""
