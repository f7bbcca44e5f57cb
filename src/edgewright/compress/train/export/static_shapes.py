"""Shapes that a graph computes while it runs, written down as constants where only the batch changes them.

Exporters compute the targets of Reshape from the shapes of other tensors, even where all but the batch is known.
A graph without that arithmetic is smaller, quantises better, and can be trained in batches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, session_bytes

__all__ = ["fix_shapes"]

_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}  # places of the initial states among a node's inputs


def fix_shapes(
    model: onnx.ModelProto, small: Mapping[str, NDArray[Any]], large: Mapping[str, NDArray[Any]]
) -> onnx.ModelProto:
    """Write computed shapes down as constants, and leave out initial states that are zero.

    Args:
        model: A graph whose first axes are free.
        small: Inputs of a few samples.
        large: Inputs of another number of samples, with other values.

    Returns:
        The graph with the same answers for any batch, as far as two runs can tell; a target that depends on more
        than the batch stays computed.
    """
    graph = Graph(model)
    computed = [
        name
        for node in graph.nodes
        for place, name in enumerate(node.input)
        if name and name not in graph.constants and _is_settled(node.op_type, place)
    ]
    wanted = list(dict.fromkeys(computed))
    if not wanted:
        return model
    first, second = (_values(model, wanted, feed) for feed in (small, large))
    for node in graph.nodes:
        for place, name in enumerate(node.input):
            if name not in first or not _is_settled(node.op_type, place):
                continue
            if node.op_type in _STATES:
                if not first[name].any() and not second[name].any():
                    node.input[place] = ""
            elif (target := _target(first[name], second[name])) is not None:
                node.input[place] = graph.add_constant("shape", target)
    for node in graph.nodes:
        while node.input and not node.input[-1]:
            node.input.pop()
    return graph.to_model()


def _is_settled(op: str, place: int) -> bool:
    return (op == "Reshape" and place == 1) or place in _STATES.get(op, ())


def _target(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.int64] | None:
    """Return the target with -1 for what the batch changes; None where that cannot say it."""
    changed = first != second
    if changed.sum() > 1 or (changed.any() and (first == -1).any()) or (first == 0).any():
        return None
    return np.where(changed, -1, first).astype(np.int64)


def _values(
    model: onnx.ModelProto, wanted: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=name)
        for name in wanted
        if name not in {value.name for value in probe.graph.output}
    )
    session = session_bytes(probe, level="disable")
    return dict(zip(wanted, session.run(list(wanted), dict(inputs)), strict=True))
