"""Why a quantised graph would be slow on onnxruntime, and the mending of what can be mended exactly.

The runtime replaces a layer between quantize/dequantize pairs by an integer kernel only if everything about the
pairs is as its fusions expect; otherwise it computes in float *and* pays for the conversions. The same
accuracy can so cost half or four times the original's latency. Here the runtime's own optimised graph is the
judge: a layer is fused or it isn't. Mending never changes an answer.
"""

from collections import Counter
from typing import Literal

import msgspec
import numpy as np
import onnx

from edgewright.compress.model.graph import Graph, attribute, clean_model, optimized

__all__ = ["LintFinding", "LintReport", "fix_model", "lint_model"]

_INTEGER = frozenset(
    (
        "QLinearConv QGemm QLinearMatMul MatMulIntegerToFloat DynamicQuantizeMatMul "
        "DynamicQuantizeLSTM MatMulNBits MatMulInteger ConvInteger QAttention"
    ).split()
)
_FLOAT = frozenset("Conv FusedConv NhwcFusedConv Gemm FusedGemm MatMul FusedMatMul ConvTranspose LSTM GRU".split())
_LAYERS = frozenset(("Conv", "Gemm", "MatMul"))

Rule = Literal[
    "signed activations",
    "unquantized output",
    "missing zero point",
    "weights as inputs",
    "float layer among integers",
    "slow operator",
    "leftover pairs",
]


class LintFinding(msgspec.Struct, frozen=True):
    """One reason for slowness.

    Attributes:
        rule: Short name of the rule.
        where: The node, or "graph".
        reason: What the runtime does about it.
        remedy: What helps.
        fixable: Whether `fix_model` does it.
    """

    rule: Rule
    where: str
    reason: str
    remedy: str
    fixable: bool


class LintReport(msgspec.Struct, frozen=True):
    """The verdict on a graph.

    Attributes:
        layers: Convolutions, matrix products and recurrent layers after the runtime's own optimisation.
        integer_layers: Those of them that run on integers.
        conversions: Quantize and dequantize nodes that stay in the optimised graph.
        findings: What slows it down.
    """

    layers: int
    integer_layers: int
    conversions: int
    findings: tuple[LintFinding, ...]

    @property
    def fused_fraction(self) -> float:
        """Share of layers on integers: a cheap predictor of latency; 0 for a float model."""
        return self.integer_layers / self.layers if self.layers else 0.0


def lint_model(model: onnx.ModelProto) -> LintReport:
    """Explain how the runtime will run the graph.

    Raises:
        CandidateError: The runtime refuses the model.
    """
    counts = Counter(node.op_type for node in optimized(model, "all").graph.node)
    whole = sum(counts[op] for op in _INTEGER)
    floating = sum(counts[op] for op in _FLOAT)
    conversions = counts["QuantizeLinear"] + counts["DequantizeLinear"]
    graph = Graph(model)
    findings = [*_weights_as_inputs(model), *_slow_operators(counts)]
    quantized = any(node.op_type == "QuantizeLinear" for node in graph.nodes)
    if quantized:
        findings += _pair_findings(graph, everything_fused=floating == 0)
        if floating and whole and not findings:
            findings.append(
                LintFinding(
                    "float layer among integers",
                    "graph",
                    f"{floating} of {floating + whole} layers run in float, with conversions around them",
                    "Quantise their neighbours as well, or keep the whole branch in float.",
                    False,
                )
            )
        if conversions > 2 * (len(graph.input_names) + len(graph.output_names)) + 4 and floating:
            findings.append(
                LintFinding(
                    "leftover pairs",
                    "graph",
                    f"{conversions} conversions stay after optimisation; each walks over its whole tensor",
                    "See the findings on single nodes.",
                    False,
                )
            )
    return LintReport(floating + whole, whole, conversions, tuple(findings))


def fix_model(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Mend what can be mended without changing an answer beyond rounding.

    Returns:
        The mended model and, in words, what was done.
    """
    done = []
    if _weights_as_inputs(model):
        done.append("took the weights off the list of inputs, so that the runtime may fold and prepack them")
    mended = clean_model(model)
    graph = Graph(mended)
    shifted = _shift_to_unsigned(graph)
    if shifted:
        done.append(f"moved {shifted} activation tensors from signed to unsigned 8 bit (the same values)")
    added = _add_zero_points(graph)
    if added:
        done.append(f"gave {added} Gemm weights the zero point that the runtime's fusion asks for")
    return graph.to_model(), done


def _weights_as_inputs(model: onnx.ModelProto) -> list[LintFinding]:
    weights = {tensor.name for tensor in model.graph.initializer}
    listed = [value.name for value in model.graph.input if value.name in weights]
    if not listed:
        return []
    return [
        LintFinding(
            "weights as inputs",
            "graph",
            f"{len(listed)} weights are also inputs, so the runtime must expect other values at each call: "
            "it can neither fold constants nor prepack weights",
            "Export without weights as inputs (keep_initializers_as_inputs=False).",
            True,
        )
    ]


def _slow_operators(counts: Counter[str]) -> list[LintFinding]:
    reasons = {
        "ConvInteger": "dynamic quantisation of convolutions has no fast kernel; use static quantisation",
        "MatMulInteger": "a matrix product that was not fused with its conversions",
    }
    return [
        LintFinding("slow operator", f"{counts[op]} × {op}", why, "Quantise statically (compress does).", False)
        for op, why in reasons.items()
        if counts[op]
    ]


def _pair_findings(graph: Graph, *, everything_fused: bool) -> list[LintFinding]:
    found = []
    producers, consumers = graph.producers(), graph.consumers()
    for node in graph.nodes:
        if node.op_type not in _LAYERS or len(node.input) < 2:
            continue
        source, weight = producers.get(node.input[0]), producers.get(node.input[1])
        if source is None or source.op_type != "DequantizeLinear" or weight is None:
            continue
        zero = graph.constants.get(source.input[2]) if len(source.input) > 2 else None
        if zero is not None and zero.dtype == np.int8:
            found.append(
                LintFinding(
                    "signed activations",
                    node.name,
                    "x86 kernels multiply unsigned by signed bytes; with signed activations the convolution "
                    "stays in float or takes a slow path",
                    "Use unsigned activations (U8S8); on ARM signed ones may be right: measure there.",
                    True,
                )
            )
        readers = consumers.get(node.output[0], [])
        clamp = readers[0] if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip") else None
        last = consumers.get(clamp.output[0], []) if clamp is not None else readers
        if node.op_type == "Conv" and not (last and all(r.op_type == "QuantizeLinear" for r in last)):
            found.append(
                LintFinding(
                    "unquantized output",
                    node.name,
                    "an integer convolution must write integers; without a quantize node behind it, it is float",
                    "Quantise the output too.",
                    False,
                )
            )
        if node.op_type == "Gemm" and weight.op_type == "DequantizeLinear" and len(weight.input) < 3:
            found.append(
                LintFinding(
                    "missing zero point",
                    node.name,
                    "the fusion of Gemm asks for the weight's zero point, even if it is zero",
                    "Write the zero point out.",
                    True,
                )
            )
    if everything_fused:  # the runtime coped; what is left is advice for other targets
        found = [f for f in found if f.rule == "signed activations"]
    return found


def _add_zero_points(graph: Graph) -> int:
    producers = graph.producers()
    added = 0
    for node in graph.nodes:
        weight = producers.get(node.input[1]) if node.op_type == "Gemm" else None
        if weight is None or weight.op_type != "DequantizeLinear" or len(weight.input) > 2:
            continue
        scale, codes = graph.constants.get(weight.input[1]), graph.constants.get(weight.input[0])
        if scale is not None and codes is not None and codes.dtype == np.int8:
            weight.input.append(graph.add_constant("zero", np.zeros(scale.shape, np.int8)))
            added += 1
    return added


_MOVES = frozenset("Reshape Transpose Flatten Squeeze Unsqueeze Slice MaxPool Identity Gather".split())


def _shift_to_unsigned(graph: Graph) -> int:
    """Turn int8 activations with zero point z into uint8 with z + 128: the same real values."""
    consumers = graph.consumers()
    shifted = 0
    for node in list(graph.nodes):
        if node.op_type != "QuantizeLinear" or len(node.input) < 3:
            continue
        zero = graph.constants.get(node.input[2])
        if zero is None or zero.dtype != np.int8:
            continue
        ends = _reachable_dequantizers(node.output[0], consumers)
        if any(e is None or len(e.input) < 3 or e.input[2] not in graph.constants for e in ends):
            continue
        if node.output[0] in graph.output_names:
            continue
        for pair in (node, *[e for e in ends if e is not None]):
            value = graph.constants[pair.input[2]]
            pair.input[2] = graph.add_constant("zero", (value.astype(np.int16) + 128).astype(np.uint8))
        shifted += 1
    inputs = set(graph.input_names)
    for node in list(graph.nodes):  # signed samples come in: one conversion at the door
        zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type != "DequantizeLinear" or node.input[0] not in inputs or zero is None:
            continue
        if zero.dtype != np.int8 or (attribute(node, "axis", None) is not None and zero.ndim):
            continue
        old = node.output[0]
        unsigned = graph.add_constant("zero", (zero.astype(np.int16) + 128).astype(np.uint8))
        readers = consumers.get(old, [])
        quantized = graph.make_node("QuantizeLinear", [old, node.input[1], unsigned])
        again = graph.make_node("DequantizeLinear", [quantized, node.input[1], unsigned])
        graph.replace_reads(old, again, readers)
        shifted += 1
    return shifted


def _reachable_dequantizers(name: str, consumers: dict[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto | None]:
    """Return the dequantize nodes that a tensor reaches over mere moves; None for anything else."""
    ends: list[onnx.NodeProto | None] = []
    for reader in consumers.get(name, []):
        if reader.op_type == "DequantizeLinear" and reader.input[0] == name:
            ends.append(reader)
        elif reader.op_type in _MOVES and reader.input[0] == name:
            ends += _reachable_dequantizers(reader.output[0], consumers)
        else:
            ends.append(None)
    return ends or [None]
