"""How much a network could learn, guessed from its layers alone: the shortlist is drawn up by it."""

import math

import onnx

from edgewright.compress.graph import Graph
from edgewright.compress.layers import weights_of

__all__ = ["capacity"]


def capacity(model: onnx.ModelProto) -> float:
    """Return the entropy of a network's last features under random weights, in nats.

    Depth adds to it, width and windows by their logarithm, as they do to measured accuracies; by
    multiply-accumulates alone one wide layer would be worth many.

    Source: DeepMAD, Shen 2023, arXiv:2303.02165, equation 4, at the last feature map; the head does not count.
    """
    graph = Graph(model)
    entropies: list[float] = []
    sizes: list[int] = []
    for node in graph.nodes:
        weights = list(weights_of(node, graph))
        if not weights:
            continue
        fan_in = 0
        for weight in weights:
            shape = graph.constants[weight.tensor].shape
            axis = weight.input_axis
            fan_in += 1 if axis is None else shape[axis] * (math.prod(shape[2:]) if node.op_type == "Conv" else 1)
        entropies.append(math.log(max(fan_in, 1)))
        sizes.append(math.prod(axis or 1 for axis in graph.shapes.get(node.output[0], ())[1:]))
    if len(entropies) < 2:
        return 0.0
    return math.log(max(sizes[-2], 2)) * sum(entropies[:-1])
