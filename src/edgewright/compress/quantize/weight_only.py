"""Weights stored in few bits and computed in floating point: a smaller file at the original's speed.

The graph turns the stored integers into floats itself. All inputs of that are constants, so the runtime folds
it when it loads the model, and then runs exactly the graph it ran before.
"""

import msgspec
import numpy as np
import onnx
from onnx import TensorProto

from edgewright.compress.model.graph import Graph
from edgewright.compress.model.layers import LayerWeight, layer_weights
from edgewright.compress.quantize.weight_quantizer import quantize_weights

__all__ = [
    "StoreHalfWeights",
    "StoreIntegerWeights",
    "store_half_weights",
    "store_integer_weights",
    "stored_layers",
]


class StoreIntegerWeights(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="store weights"
):
    """Store float weights as integers with a step per channel.

    Attributes:
        max_integer: Largest integer, 127 for 8 bit; `pack.py` fits smaller ones tightly.
        max_integer_by_layer: Largest integer of single layers.
    """

    max_integer: int = 127
    max_integer_by_layer: dict[str, int] = {}


class StoreHalfWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="store half"):
    """Store float weights as 16-bit floats."""


def stored_layers(graph: Graph) -> list[LayerWeight]:
    """Return the weights that can be stored in fewer bits."""
    return layer_weights(graph)


def store_integer_weights(model: onnx.ModelProto, step: StoreIntegerWeights) -> onnx.ModelProto:
    """Return the model with its float weights as integers and the nodes that scale them back."""
    graph = Graph(model)
    for weight in layer_weights(graph):
        values = graph.constants.pop(weight.tensor)
        codes = quantize_weights(
            values, weight.channel_axes, step.max_integer_by_layer.get(weight.layer, step.max_integer)
        )
        integers = graph.add_constant("weight", codes.integers)
        floats = graph.make_node("Cast", [integers], to=TensorProto.FLOAT)
        graph.make_node("Mul", [floats, graph.add_constant("steps", codes.scales)], [weight.tensor])
    return graph.to_model()


def store_half_weights(model: onnx.ModelProto, step: StoreHalfWeights) -> onnx.ModelProto:
    """Return the model with its float weights in half precision; those beyond its range stay as they are."""
    del step
    graph = Graph(model)
    for weight in layer_weights(graph):
        values = graph.constants[weight.tensor]
        if np.abs(values).max() < np.finfo(np.float16).max:
            del graph.constants[weight.tensor]
            half = graph.add_constant("half", values.astype(np.float16))
            graph.make_node("Cast", [half], [weight.tensor], to=TensorProto.FLOAT)
    return graph.to_model()
