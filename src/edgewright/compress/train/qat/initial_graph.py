"""Quantisation-aware training: the graph that static quantisation writes is the graph that is trained.

A layer's peak is not written in the graph; it is read as the largest integer among the layer's weights, which
rounding at any peak reaches in at least one channel. Training that begins again from an exported graph therefore
goes on with the peak that is still used: the same or a smaller one, never more integers than were asked for.
"""

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from edgewright.compress.model.graph import Graph
from edgewright.compress.quantize.activation_ranges import TensorStatistics
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers, quantize_static
from edgewright.compress.train.qat.qdq import LATENT_SUFFIX

__all__ = ["make_qat_graph"]


def make_qat_graph(
    model: onnx.ModelProto, step: StaticInt8, statistics: Mapping[str, TensorStatistics]
) -> onnx.ModelProto:
    """Return the quantised model that also carries the float weights from which training goes on.

    The float weights are initializers that no node reads: the runtime ignores them, `Network` trains them, and
    `Network.to_onnx` leaves them out.

    Args:
        model: A cleaned float model.
        step: The form; `peak` and `peaks` say how many integers a layer's weights have.
        statistics: Observations of `static.tensors_to_observe`.

    Raises:
        CandidateError: Nothing in the model can be quantised.
    """
    source = Graph(model)
    latent = {weight.layer: source.constants[weight.tensor] for weight in integer_layers(source)}
    made = quantize_static(model, step, statistics)
    graph = Graph(made)
    producers = graph.producers()
    for node in graph.nodes:
        pair = producers.get(node.input[1]) if node.name in latent else None
        if pair is not None and pair.op_type == "DequantizeLinear":
            made.graph.initializer.append(numpy_helper.from_array(latent[node.name], pair.input[0] + LATENT_SUFFIX))
    return made
