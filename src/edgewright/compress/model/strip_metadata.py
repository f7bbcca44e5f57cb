"""What of a model file is for people or goes without saying is taken out: in a small file it is a fifth."""

import onnx
from onnx.defs import SchemaError, get_schema

from edgewright.compress.model.graph import Graph, share_equal_constants, walk_nodes

__all__ = ["strip_model"]

# Attributes of convolutions and pooling that mean nothing where all their numbers are this; no schema says so.
_NEUTRAL = {"dilations": 1, "strides": 1, "pads": 0}
_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")


def strip_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out what costs bytes and means nothing: long names, documentation, shapes of inner tensors, defaults.

    Names of the graph's inputs and outputs stay. Equal constants become one.
    """
    graph = Graph(model)
    share_equal_constants(graph)
    result = graph.to_model()
    kept = {value.name for value in (*result.graph.input, *result.graph.output)}
    kept |= {tensor.values.name for tensor in result.graph.sparse_initializer}
    if any(a.HasField("g") for node in result.graph.node for a in node.attribute):
        return _stripped(result)  # names inside subgraphs are scoped; leave them be
    short: dict[str, str] = {"": ""}

    def shortened(name: str) -> str:
        if name in kept:
            return name
        if name not in short:
            candidate = _short_name(len(short))
            while candidate in kept:
                candidate += "_"
            short[name] = candidate
        return short[name]

    for node in result.graph.node:
        node.input[:] = [shortened(name) for name in node.input]
        node.output[:] = [shortened(name) for name in node.output]
        node.name = ""
    for tensor in result.graph.initializer:
        tensor.name = shortened(tensor.name)
    return _stripped(result)


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    versions = {imported.domain: imported.version for imported in model.opset_import}
    for node in walk_nodes(model.graph.node):
        _without_defaults(node, versions.get(node.domain, 1))
    model.doc_string = ""
    model.graph.doc_string = ""
    model.graph.name = "g"
    model.producer_name = ""
    model.producer_version = ""
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for a in node.attribute:
            a.doc_string = ""
    return model


def _without_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Drop attributes that say what the operator does anyway."""
    try:
        known = get_schema(node.op_type, opset, node.domain).attributes
    except SchemaError:  # not one of the standard's
        return
    kept = []
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if node.op_type in _WINDOWED and attribute.name in _NEUTRAL:
            says_nothing = all(number == _NEUTRAL[attribute.name] for number in value)
        else:
            default = known[attribute.name].default_value if attribute.name in known else None
            says_nothing = (
                default is not None
                and default.type == attribute.type
                and onnx.helper.get_attribute_value(default) == value
            )
        if not says_nothing:
            kept.append(attribute)
    del node.attribute[:]
    node.attribute.extend(kept)


def _short_name(number: int) -> str:
    digits = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    text = ""
    while True:
        number, digit = divmod(number, len(digits))
        text = digits[digit] + text
        if not number:
            return text
