"""Weights stored in few bits and computed in floating point: a smaller file at the original's speed.

The graph turns the stored integers into floats itself. All inputs of that are constants, so the runtime folds
it when it loads the model, and then runs exactly the graph it ran before.
"""

import msgspec
import numpy as np
import onnx
from onnx import TensorProto

from edgewright.compress.model.graph import Graph
from edgewright.compress.model.layers import Weight, layer_weights
from edgewright.compress.quantize.weight_quantizer import encode

__all__ = ["StoreHalf", "StoreWeights", "store_half", "store_weights", "stored_layers"]


class StoreWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="store weights"):
    """Store float weights as integers with a step per channel.

    Attributes:
        peak: Largest integer, 127 for 8 bit; `pack.py` fits smaller ones tightly.
        peaks: Largest integer of single layers.
    """

    peak: int = 127
    peaks: dict[str, int] = {}


class StoreHalf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="store half"):
    """Store float weights as 16-bit floats."""


def stored_layers(graph: Graph) -> list[Weight]:
    """Return the weights that can be stored in fewer bits."""
    return layer_weights(graph)


def store_weights(model: onnx.ModelProto, step: StoreWeights) -> onnx.ModelProto:
    """Return the model with its float weights as integers and the nodes that scale them back."""
    graph = Graph(model)
    for weight in layer_weights(graph):
        values = graph.constants.pop(weight.tensor)
        codes = encode(values, weight.channel_axes, step.peaks.get(weight.layer, step.peak))
        integers = graph.constant("weight", codes.integers)
        floats = graph.node("Cast", [integers], to=TensorProto.FLOAT)
        graph.node("Mul", [floats, graph.constant("steps", codes.steps)], [weight.tensor])
    return graph.model()


def store_half(model: onnx.ModelProto, step: StoreHalf) -> onnx.ModelProto:
    """Return the model with its float weights in half precision; those beyond its range stay as they are."""
    del step
    graph = Graph(model)
    for weight in layer_weights(graph):
        values = graph.constants[weight.tensor]
        if np.abs(values).max() < np.finfo(np.float16).max:
            del graph.constants[weight.tensor]
            half = graph.constant("half", values.astype(np.float16))
            graph.node("Cast", [half], [weight.tensor], to=TensorProto.FLOAT)
    return graph.model()
