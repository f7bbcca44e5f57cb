"""Static 8-bit quantisation: activations and weights as integers, in the form that the runtime can fuse.

The graph is written as quantize/dequantize pairs (QDQ). onnxruntime replaces them by integer kernels where
they stand right; so they are placed the way its fusions look for, clamps (Relu, Clip) are absorbed in the
integers' range, and biases stay floats, which the runtime itself turns into int32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, attribute
from edgewright.compress.model.layers import LayerWeight, weights_of
from edgewright.compress.quantize.activation_ranges import Calibrator, TensorStatistics, calibrate_range
from edgewright.compress.quantize.preprocess_folding import integer_affine
from edgewright.compress.quantize.weight_quantizer import QuantizedWeights, quantize_weights
from edgewright.contract.errors import CandidateError

__all__ = ["StaticInt8", "integer_layers", "quantize_static", "tensors_to_observe"]

# Operators that move values without changing them: one range before and after.
_MOVES = frozenset(
    (
        "DepthToSpace Expand Flatten Gather MaxPool Reshape Slice SpaceToDepth Split Squeeze "
        "Tile Transpose Unsqueeze"
    ).split()
)
# Operators with integer kernels and a range of their own.
_COMPUTES = frozenset("Add AveragePool Concat GlobalAveragePool LeakyRelu Mul Sigmoid".split())
_CLAMPS = frozenset(("Relu", "Clip"))
_LAYERS = frozenset(("Conv", "Gemm", "MatMul"))
# Inputs that are indices, shapes or sizes, not values.
_FIRST_INPUT_ONLY = _MOVES | {"AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"} | _CLAMPS


class StaticInt8(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="static int8"):
    """Quantise weights and activations with ranges from calibration data.

    Attributes:
        activations: `uint8` is what x86 fuses fastest (U8S8); ARM may want `int8` (S8S8).
        per_channel: One step per output channel of a weight, otherwise one per tensor.
        calibrator: How activations' ranges are chosen.
        bias_correction: Take the mean error that rounded weights cause out of the bias.
        float_layers: Layers that stay in floating point.
        max_integer: Largest weight integer; 63 where a kernel adds pairs of products in 16 bits (x86 without VNNI).
        max_integer_by_layer: Largest weight integer of a layer where it is smaller (see `pack.py`).
    """

    activations: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = True
    calibrator: Calibrator = "minmax"
    bias_correction: bool = False
    float_layers: tuple[str, ...] = ()
    max_integer: int = 127
    max_integer_by_layer: dict[str, int] = {}


@dataclass(slots=True)
class _QdqPlacement:
    """What is being written: the graph, the ranges, and which tensors already have their integer form."""

    graph: Graph
    step: StaticInt8
    ranges: dict[str, tuple[float, float]]
    dequantized: dict[str, str] = field(default_factory=dict)


def integer_layers(graph: Graph) -> list[LayerWeight]:
    """Return the layers that static quantisation can take."""
    return [
        weight
        for node in graph.nodes
        for weight in weights_of(node, graph)
        if node.op_type in _LAYERS and node.input[1] == weight.tensor and _fits(node, graph)
    ]


def tensors_to_observe(graph: Graph) -> list[str]:
    """Return the tensors whose ranges any form of static quantisation may need."""
    wanted: list[str] = []
    for node in graph.nodes:
        if node.op_type in _LAYERS | _MOVES | _COMPUTES | _CLAMPS:
            wanted += [name for name in _values_read(node) if name not in graph.constants]
            wanted += [name for name in node.output if name]
    return list(dict.fromkeys(wanted))


def quantize_static(
    model: onnx.ModelProto, step: StaticInt8, statistics: Mapping[str, TensorStatistics]
) -> onnx.ModelProto:
    """Return the model with integer weights and activations.

    Args:
        model: A cleaned float model.
        step: The form.
        statistics: Observations of `tensors_to_observe`.

    Raises:
        CandidateError: Nothing in the model can be quantised.
    """
    graph = Graph(model)
    inside = _integer_nodes(graph, step, statistics)
    if not any(node.op_type in _LAYERS for node in graph.nodes if node.name in inside):
        raise CandidateError("no layer can be quantised", remedy="Keep the float form.")
    _absorb_clamps(graph, inside, statistics)
    ranges = _ranges(graph, inside, step, statistics)
    _insert_quantization(_QdqPlacement(graph, step, ranges), inside, statistics)
    return graph.to_model()


def _fits(node: onnx.NodeProto, graph: Graph) -> bool:
    weight = graph.constants[node.input[1]]
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and not attribute(node, "transA", 0)
        return plain and attribute(node, "beta", 1.0) == 1.0
    if node.op_type == "MatMul":
        return weight.ndim == 2
    return len(node.input) < 3 or node.input[2] in graph.constants


def _values_read(node: onnx.NodeProto) -> list[str]:
    names = list(node.input[:1]) if node.op_type in _FIRST_INPUT_ONLY | _LAYERS else list(node.input)
    return [name for name in names if name]


def _integer_nodes(graph: Graph, step: StaticInt8, seen: Mapping[str, TensorStatistics]) -> set[str]:
    """Return the names of the nodes that will run on integers."""
    inside = {w.layer for w in integer_layers(graph)} - set(step.float_layers)
    producers, consumers = graph.producers(), graph.consumers()
    inside = {n.name for n in graph.nodes if n.name in inside and n.input[0] in seen and n.output[0] in seen}
    carriers = _MOVES | _COMPUTES | _CLAMPS
    for node in graph.nodes:  # forward: integers in, integers out
        if node.op_type not in carriers or any(name not in seen for name in node.output):
            continue
        values = [name for name in _values_read(node) if name not in graph.constants]
        made_inside = [name in producers and producers[name].name in inside for name in values]
        scalar_clip = node.op_type != "Clip" or _clip_limits(node, graph) is not None
        if values and all(made_inside) and scalar_clip:
            inside.add(node.name)
    for node in reversed(graph.nodes):  # backward: moving integers is cheaper than moving floats
        readers = consumers.get(node.output[0], []) if node.output else []
        if (
            node.op_type in _MOVES
            and node.input[0] in seen
            and readers
            and all(reader.name in inside for reader in readers)
            and node.output[0] not in graph.output_names
        ):
            inside.add(node.name)
    return inside


def _clip_limits(node: onnx.NodeProto, graph: Graph) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, np.inf
    limits = [-np.inf, np.inf]
    for i in (0, 1):
        name = node.input[i + 1] if len(node.input) > i + 1 else ""
        if name and name not in graph.constants:
            return None
        if name:
            limits[i] = float(graph.constants[name])
    return (limits[0], limits[1]) if limits[0] <= 0 <= limits[1] else None


def _absorb_clamps(graph: Graph, inside: set[str], seen: Mapping[str, TensorStatistics]) -> None:
    """Let a producer write its clamp's output: the range of the integers clamps by itself."""
    producers, consumers = graph.producers(), graph.consumers()
    for node in [n for n in graph.nodes if n.op_type in _CLAMPS and n.name in inside]:
        source = producers[node.input[0]]
        alone = len(consumers[node.input[0]]) == 1 and node.input[0] not in graph.output_names
        limits = _clip_limits(node, graph)
        if not alone or limits is None or source.op_type in _MOVES:
            continue
        result = seen[node.output[0]]
        if min(result.low, 0.0) < limits[0] or max(result.high, 0.0) > limits[1]:
            continue
        source.output[list(source.output).index(node.input[0])] = node.output[0]
        producers[node.output[0]] = source
        graph.nodes.remove(node)
        inside.discard(node.name)


def _ranges(
    graph: Graph, inside: set[str], step: StaticInt8, seen: Mapping[str, TensorStatistics]
) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}
    for node in graph.nodes:
        if node.name not in inside:
            continue
        for name in _values_read(node):
            if name in graph.constants:
                value = graph.constants[name]
                ranges[name] = (min(float(value.min()), 0.0), max(float(value.max()), 0.0))
            elif name not in ranges:
                ranges[name] = calibrate_range(seen[name], step.calibrator)
        for name in node.output:
            if node.op_type in _MOVES:
                ranges[name] = ranges[node.input[0]]
            elif node.op_type == "Sigmoid":
                ranges[name] = (0.0, 1.0)
            else:
                ranges[name] = calibrate_range(seen[name], step.calibrator)
    return ranges


def _insert_quantization(work: _QdqPlacement, inside: set[str], seen: Mapping[str, TensorStatistics]) -> None:
    graph = work.graph
    consumers = graph.consumers()
    originals = list(graph.nodes)
    graph.nodes = []
    for node in originals:
        if node.name not in inside:
            graph.nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name in _values_read(node) and (i == 0 or node.op_type not in _FIRST_INPUT_ONLY | _LAYERS):
                node.input[i] = _quantized_source(work, name)
        if node.op_type in _LAYERS:
            _quantize_weight(work, node, seen)
        graph.nodes.append(node)
        readers = [r for name in node.output for r in consumers.get(name, [])]
        if node.op_type in ("Gemm", "MatMul") and not any(r.name in inside for r in readers):
            continue  # integers in, floats out: the logits keep their precision
        for i, name in enumerate(node.output):
            if name in graph.output_names:
                inner = graph.unique_name("out")
                node.output[i] = inner
                quantized = _quantize(work, inner, work.ranges[name])
                graph.make_node("DequantizeLinear", [quantized, *_parameters(work, work.ranges[name])], [name])
                replacement = _dequantize(work, quantized, work.ranges[name])
                graph.replace_reads(name, replacement, originals)
                work.dequantized[replacement] = replacement
            else:
                quantized = _quantize(work, name, work.ranges[name])
                replacement = _dequantize(work, quantized, work.ranges[name])
                graph.replace_reads(name, replacement, [n for n in originals if n is not node])
                work.dequantized[replacement] = replacement


def _quantized_source(work: _QdqPlacement, name: str) -> str:
    """Return the tensor to read for `name`: itself if it comes out of integers, else a new pair before it."""
    graph = work.graph
    if name in work.dequantized:
        return work.dequantized[name]
    scale, zero = _parameters(work, work.ranges[name])
    if name in graph.constants:
        step = float(graph.constants[scale])
        offset = int(graph.constants[zero])
        kind = graph.constants[zero].dtype
        limits = np.iinfo(kind)
        codes = np.clip(np.round(graph.constants[name] / step) + offset, limits.min, limits.max).astype(kind)
        form = graph.make_node("DequantizeLinear", [graph.add_constant("codes", codes), scale, zero])
    elif _is_bytes(graph, name) and work.step.activations == "uint8":
        form = name
    else:
        quantized = None
        if work.step.activations == "uint8":
            quantized = integer_affine(graph, name, float(graph.constants[scale]), int(graph.constants[zero]))
        form = _dequantize(work, quantized or _quantize(work, name, work.ranges[name]), work.ranges[name])
    work.dequantized[name] = form
    return form


def _is_bytes(graph: Graph, name: str) -> bool:
    """Whether a tensor is the real value of raw bytes (see `fold.py`)."""
    node = graph.producers().get(name)
    return node is not None and node.op_type == "DequantizeLinear" and node.input[2] in graph.constants


def _parameters(work: _QdqPlacement, limits: tuple[float, float]) -> tuple[str, str]:
    low, high = limits
    step = max(np.float32((high - low) / 255), np.finfo(np.float32).tiny) if high > low else np.float32(1)
    zero = int(np.clip(round(-low / float(step)), 0, 255))
    offset = np.uint8(zero) if work.step.activations == "uint8" else np.int8(zero - 128)
    return work.graph.add_constant("scale", step), work.graph.add_constant("zero", offset)


def _quantize(work: _QdqPlacement, name: str, limits: tuple[float, float]) -> str:
    return work.graph.make_node("QuantizeLinear", [name, *_parameters(work, limits)])


def _dequantize(work: _QdqPlacement, name: str, limits: tuple[float, float]) -> str:
    return work.graph.make_node("DequantizeLinear", [name, *_parameters(work, limits)])


def _quantize_weight(work: _QdqPlacement, node: onnx.NodeProto, seen: Mapping[str, TensorStatistics]) -> None:
    graph, step = work.graph, work.step
    weight = next(iter(weights_of(node, graph)))
    values = graph.constants[weight.tensor]
    axes = weight.channel_axes if step.per_channel else ()
    codes = quantize_weights(values, axes, min(step.max_integer_by_layer.get(weight.layer, 127), step.max_integer))
    steps = codes.scales.reshape(-1) if step.per_channel else codes.scales.reshape(())
    inputs = [graph.add_constant("weight", codes.integers), graph.add_constant("steps", steps)]
    if node.op_type == "Gemm":  # the runtime's fusion of Gemm asks for the zero point, that of Conv does not
        inputs.append(graph.add_constant("zero", np.zeros(steps.shape, np.int8)))
    axis: dict[str, Any] = {"axis": weight.channel_axes[0]} if step.per_channel else {}
    source = node.input[0]
    node.input[1] = graph.make_node("DequantizeLinear", inputs, **axis)
    if step.bias_correction:
        _correct_bias(graph, node, weight, codes, values, _mean_of(source, work, seen))
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] in graph.constants:
        scale = _scale_of(source, graph)
        integers = np.round(graph.constants[node.input[2]].reshape(-1) / (steps * graph.constants[scale]))
        limit = np.float64(2**31 - 1)
        bias = graph.add_constant("bias", np.clip(integers, -limit, limit).astype(np.int32))
        # The product is folded when the model is loaded: a scale per channel that costs no bytes.
        node.input[2] = graph.make_node(
            "DequantizeLinear", [bias, graph.make_node("Mul", [inputs[1], scale])], axis=0
        )


def _scale_of(name: str, graph: Graph) -> str:
    """Return the scale of a dequantized tensor."""
    return str(graph.producers()[name].input[1])


def _mean_of(name: str, work: _QdqPlacement, seen: Mapping[str, TensorStatistics]) -> NDArray[np.float64] | None:
    """Return the channel means of the float tensor whose integer form is `name`."""
    producers = work.graph.producers()
    quantize = producers.get(producers[name].input[0]) if name in producers else None
    original = quantize.input[0] if quantize is not None else name
    return seen[original].channel_mean if original in seen else None


def _correct_bias(
    graph: Graph,
    node: onnx.NodeProto,
    weight: LayerWeight,
    codes: QuantizedWeights,
    values: NDArray[np.float32],
    mean: NDArray[np.float64] | None,
) -> None:
    """Subtract the mean output error of the rounded weights (Nagel 2019, arXiv:1906.04721, section 4.2)."""
    error = codes.dequantize().astype(np.float64) - values
    if mean is None or node.op_type == "MatMul":
        return
    if node.op_type == "Conv":
        per_input = error.reshape(*error.shape[:2], -1).sum(axis=2)  # [out, in / groups]
        groups = attribute(node, "group", 1)
        if len(mean) != per_input.shape[1] * groups:
            return
        blocks = mean.reshape(groups, -1).repeat(per_input.shape[0] // groups, axis=0)  # [out, in / groups]
        shift = (per_input * blocks).sum(axis=1)
    else:
        matrix = error if weight.input_axis == 1 else error.T  # [out, in]
        if len(mean) != matrix.shape[1]:
            return
        shift = matrix @ mean
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constants[node.input[2]] - shift
        node.input[2] = graph.add_constant("bias", bias.astype(np.float32))
    else:
        name = graph.add_constant("bias", (-shift).astype(np.float32))
        del node.input[2:]
        node.input.append(name)
