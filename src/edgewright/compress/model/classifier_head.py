"""How a classifier's graph ends: its last layer, the tensor of logits, and what makes probabilities of them."""

from dataclasses import dataclass

import onnx

from edgewright.compress.model.graph import Graph
from edgewright.contract.errors import CandidateError

__all__ = ["ClassifierHead", "find_classifier_head"]

# The last two are the runtime's own, which take floats and hold integer weights.
_LAYERS = frozenset("Conv Gemm MatMul DynamicQuantizeMatMul MatMulNBits".split())
_ENDINGS = frozenset("LogSoftmax Sigmoid Softmax".split())
# What may lie between the last layer and the logits without mixing classes.
_PASSED = frozenset(
    "Add AveragePool Cast DequantizeLinear Flatten GlobalAveragePool Identity Mul QuantizeLinear ReduceMean "
    "Reshape Squeeze Transpose Unsqueeze".split()
)


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """The end of a graph.

    Attributes:
        output: Name of the graph's output that it makes.
        logits: Name of the tensor that is read as logits; the output itself without an ending.
        activation: The node that makes probabilities, None if logits come out.
        path: Nodes from the last layer's reader to the one that makes the logits.
        last_layer: The last layer, None if something else makes the logits.
        after: Operators between the ending and the output.
    """

    output: str
    logits: str
    activation: onnx.NodeProto | None
    path: tuple[onnx.NodeProto, ...]
    last_layer: onnx.NodeProto | None
    after: frozenset[str] = frozenset()


def find_classifier_head(graph: Graph, output: str | None = None) -> ClassifierHead:
    """Find the end that makes an output.

    Args:
        graph: Of a classifier.
        output: Name of the output, None for the first.

    Raises:
        CandidateError: There is no such output.
    """
    name = graph.output_names[0] if output is None else output
    producers = graph.producers()
    if name not in graph.output_names or name not in producers:
        raise CandidateError(
            f"{name!r} is no output that the graph computes", remedy=f"Use one of {graph.output_names}."
        )
    ending, logits, at = None, name, name
    after: set[str] = set()
    while at in producers and producers[at].op_type in _PASSED:
        after.add(producers[at].op_type)
        at = _source(producers[at], graph)
    if at in producers and producers[at].op_type in _ENDINGS:
        ending = producers[at]
        logits = at = ending.input[0]
    else:
        at = name
        after.clear()
    path: list[onnx.NodeProto] = []
    while at in producers and producers[at].op_type in _PASSED:
        node = producers[at]
        path.insert(0, node)
        at = _source(node, graph)
    layer = producers.get(at)
    found = layer if layer is not None and layer.op_type in _LAYERS else None
    return ClassifierHead(name, logits, ending, tuple(path), found, frozenset(after))


def _source(node: onnx.NodeProto, graph: Graph) -> str:
    """Return the tensor that a node passes on; nothing for a residual sum, which has two sources."""
    values = [one for one in node.input if one and one not in graph.constants]
    return values[0] if values and (node.op_type not in ("Add", "Mul") or len(values) == 1) else ""
