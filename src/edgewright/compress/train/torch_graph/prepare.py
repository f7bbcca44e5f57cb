"""A graph made ready for training: constants computed, biases joined to their layers, weights left as they are."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgewright.compress.model.graph import Graph, attribute, names_read, session_bytes

__all__ = ["fold_bias_additions", "prepare_graph"]

# Not computed ahead: their results differ from run to run.
_RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())


def prepare_graph(model: onnx.ModelProto) -> Graph:
    """Return the graph with constant nodes as initializers and what depends only on constants computed.

    Batch normalisation stays. Where activations are quantised, weights stay integers; unpacking is computed.
    """
    graph = Graph(_without_default_inputs(model))
    for node in list(graph.nodes):
        if node.op_type == "Constant" and node.output[0] not in graph.output_names:
            value = _constant(node)
            if value is not None:
                graph.constants[node.output[0]] = value
                graph.nodes.remove(node)
        elif node.op_type == "CastLike" and node.input[0] in graph.constants:
            number = graph.constants[node.input[0]]
            if number.dtype == np.float32:  # and what it is cast like is a float32 tensor of the network
                graph.constants[node.output[0]] = number
                graph.nodes.remove(node)
    graph.sort()
    _fold(graph)
    _untie_vectors(graph)
    return graph


def _without_default_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose initializers are not inputs too, as they were in old files."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name for tensor in copy.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    return copy


def _constant(node: onnx.NodeProto) -> NDArray[Any] | None:
    tensor = attribute(node, "value")
    if tensor is not None:
        return numpy_helper.to_array(tensor)
    for name, kind in (("value_float", "f4"), ("value_int", "i8"), ("value_floats", "f4"), ("value_ints", "i8")):
        value = attribute(node, name)
        if value is not None:
            return np.asarray(value, np.dtype(kind))
    return None


def _fold(graph: Graph) -> None:
    """Compute what depends on constants only."""
    quantized = any(node.op_type == "QuantizeLinear" for node in graph.nodes)
    known: dict[str, bool] = {name: value.dtype.kind != "f" for name, value in graph.constants.items()}
    consumers = graph.consumers()
    chosen: list[onnx.NodeProto] = []
    for node in graph.nodes:
        names = list(names_read(node))
        if not names or any(name not in known for name in names) or node.op_type in _RANDOM:
            continue
        if quantized and not all(known[name] for name in names):
            continue  # products of steps and scales change with training
        if any(_is_tied(name, graph, consumers) for name in names) or set(node.output) & set(graph.output_names):
            continue
        chosen.append(node)
        known.update(dict.fromkeys(node.output, all(known[name] for name in names)))
    if not chosen:
        return
    made = {name for node in chosen for name in node.output if name}
    left = [node for node in graph.nodes if all(node is not one for one in chosen)]
    wanted = [name for name in dict.fromkeys(n for node in left for n in names_read(node)) if name in made]
    graph.constants.update(zip(wanted, _computed(graph, chosen, wanted), strict=True))
    graph.nodes = left


def _untie_vectors(graph: Graph) -> None:
    """Give each layer its own bias and scale where files hold equal ones once.

    Vectors stay shared where the layers' weights are.
    """
    producers = graph.producers()
    first: dict[str, tuple[str, int]] = {}
    copies: dict[tuple[str, str, int], str] = {}
    for node in graph.nodes:
        for place, name in enumerate(node.input):
            value = graph.constants.get(name)
            if value is None or value.dtype.kind != "f" or value.size < 2 or value.size != max(value.shape):
                continue
            key = (_layer_of(node, name, graph, producers), place)
            if first.setdefault(name, key) != key:
                known = copies.get((name, *key)) or graph.add_constant("vector", value)
                copies[name, *key] = node.input[place] = known


def _layer_of(node: onnx.NodeProto, name: str, graph: Graph, producers: dict[str, onnx.NodeProto]) -> str:
    """Return what a vector belongs to: the weight of the layer that reads it or makes what it is added to."""
    makers = node.input if node.op_type == "Add" else ()
    readers = [node, *(producers[other] for other in makers if other in producers)]
    for reader in readers:
        if reader.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM"):
            weight = reader.input[1]
            if weight in graph.constants and weight != name:
                return str(weight)
    return str(node.name)


def _is_tied(name: str, graph: Graph, consumers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether a weight is read by several layers, so that computing ahead would untie them."""
    value = graph.constants.get(name)
    if value is None or value.dtype.kind != "f" or value.size < 128:
        return False
    return len(consumers[name]) > 1


def _computed(graph: Graph, nodes: Iterable[onnx.NodeProto], wanted: list[str]) -> list[NDArray[Any]]:
    if not wanted:
        return []
    model = onnx.ModelProto()
    model.CopyFrom(graph.proto)
    del model.graph.input[:]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    part = Graph(model)
    part.nodes = list(nodes)
    part.constants = dict(graph.constants)
    return [np.asarray(value) for value in session_bytes(part.to_model(), level="disable").run(wanted, {})]


def fold_bias_additions(nodes: Iterable[onnx.NodeProto], graph: Graph) -> list[onnx.NodeProto]:
    """Return copies of a graph's nodes in which a constant added to a layer's output is the layer's bias."""
    consumers = graph.consumers()
    copies: list[onnx.NodeProto] = []
    skipped: set[str] = set()
    for node in nodes:
        if node.name in skipped:
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
        weight = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        readers = consumers.get(node.output[0], []) if node.output else []
        if (
            node.op_type not in ("MatMul", "Conv")
            or weight is None
            or weight.dtype.kind != "f"
            or len(readers) != 1
        ):
            continue
        if (node.op_type == "MatMul" and weight.ndim != 2) or (node.op_type == "Conv" and len(node.input) > 2):
            continue
        bias = _bias_of(readers[0], node, weight, graph)
        if bias is not None and node.output[0] not in graph.output_names:
            copy.input.append(bias)
            copy.output[0] = readers[0].output[0]
            skipped.add(readers[0].name)
    return copies


def _bias_of(add: onnx.NodeProto, node: onnx.NodeProto, weight: NDArray[Any], graph: Graph) -> str | None:
    others = [name for name in add.input if name != node.output[0]]
    if add.op_type != "Add" or len(others) != 1 or others[0] not in graph.constants:
        return None
    value = graph.constants[others[0]]
    wide, behind = (weight.shape[1], 0) if node.op_type == "MatMul" else (weight.shape[0], weight.ndim - 2)
    shape = (wide,) + (1,) * behind
    fits = value.dtype.kind == "f" and value.shape[-len(shape) :] == shape and value.size == wide
    return others[0] if fits and value.ndim <= (weight.ndim if behind else value.ndim) else None
