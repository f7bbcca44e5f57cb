"""Matrix layers on integer weights without calibration data: dynamic 8 bit, and blocks of 4 or 8 bit.

Both use onnxruntime's contributed operators (domain com.microsoft) directly: DynamicQuantizeMatMul and
DynamicQuantizeLSTM find the activations' range at run time; MatMulNBits has a step for each block of inputs.
"""

from typing import Any, Literal

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, attribute
from edgewright.compress.quantize.weight_quantizer import quantize_weights
from edgewright.contract.errors import CandidateError

__all__ = ["BlockwiseWeights", "DynamicInt8", "matrix_layers", "quantize_blockwise", "quantize_dynamic"]

_DOMAIN = "com.microsoft"


class DynamicInt8(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="dynamic int8"):
    """Integer weights, activations quantised at run time; for matrix products and LSTM.

    Attributes:
        per_channel: One step per output of a matrix product, otherwise one per tensor.
        max_integer: Largest weight integer; 63 on x86 without VNNI (see `static.py`).
        max_integer_by_layer: Largest weight integer of a layer where it is smaller (see `pack.py`).
    """

    per_channel: bool = True
    max_integer: int = 127
    max_integer_by_layer: dict[str, int] = {}


class BlockwiseWeights(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="weight blocks"
):
    """Weights of matrix products in blocks with a step each.

    Attributes:
        bits: 4 or 8.
        block_size: Inputs that share a step: 16, 32, 64 or 128.
        accuracy_level: 4 computes on 8-bit activations (fast), 1 on floats.
        max_integer_by_layer: Largest weight integer of a layer where it is not all that the bits allow.
    """

    bits: Literal[4, 8] = 4
    block_size: Literal[16, 32, 64, 128] = 32
    accuracy_level: Literal[1, 4] = 4
    max_integer_by_layer: dict[str, int] = {}


def matrix_layers(graph: Graph) -> list[onnx.NodeProto]:
    """Return the matrix products with constant weights."""
    return [
        node
        for node in graph.nodes
        if node.op_type in ("MatMul", "Gemm")
        and node.input[1] in graph.constants
        and graph.constants[node.input[1]].ndim == 2
        and graph.constants[node.input[1]].dtype == np.float32
        and attribute(node, "alpha", 1.0) == 1.0
        and attribute(node, "beta", 1.0) == 1.0
        and not attribute(node, "transA", 0)
        and np.isfinite(graph.constants[node.input[1]]).all()
    ]


def quantize_dynamic(model: onnx.ModelProto, step: DynamicInt8) -> onnx.ModelProto:
    """Return the model with dynamically quantised matrix products and LSTM.

    Raises:
        CandidateError: The model has neither.
    """
    graph = Graph(model)
    targets = matrix_layers(graph)
    recurrent = [node for node in graph.nodes if node.op_type == "LSTM" and _is_plain_lstm(node, graph)]
    if not targets and not recurrent:
        raise CandidateError("the model has no matrix product and no LSTM", remedy="Use another form.")
    for node in targets:
        peak = min(step.max_integer_by_layer.get(node.name, 127), step.max_integer)
        codes = quantize_weights(_matrix(node, graph), (1,) if step.per_channel else (), peak)
        vector = codes.scales.reshape(-1 if step.per_channel else ())
        inputs = [
            node.input[0],
            graph.add_constant("weight", codes.integers),
            graph.add_constant("steps", vector),
            graph.add_constant("zero", np.zeros(vector.shape, np.int8)),
        ]
        _replace(graph, node, "DynamicQuantizeMatMul", inputs)
    for node in recurrent:
        tensors = []
        for position in (1, 2):
            values = graph.constants[node.input[position]]
            codes = quantize_weights(
                values, (0, 1), min(step.max_integer_by_layer.get(node.name, 127), step.max_integer)
            )
            steps = codes.scales.reshape(values.shape[:2])
            tensors.append((codes.integers.transpose(0, 2, 1), steps))
        node.input[1] = graph.add_constant("weight", tensors[0][0])
        node.input[2] = graph.add_constant("weight", tensors[1][0])
        while len(node.input) < 8:
            node.input.append("")
        for _, steps in tensors:
            node.input.append(graph.add_constant("steps", steps))
            node.input.append(graph.add_constant("zero", np.zeros(steps.shape, np.int8)))
        node.op_type, node.domain = "DynamicQuantizeLSTM", _DOMAIN
    return graph.to_model()


def quantize_blockwise(model: onnx.ModelProto, step: BlockwiseWeights) -> onnx.ModelProto:
    """Return the model with its matrix products' weights in blocks.

    Raises:
        CandidateError: The model has no matrix product with constant weights.
    """
    graph = Graph(model)
    targets = matrix_layers(graph)
    if not targets:
        raise CandidateError("the model has no matrix product", remedy="Use another form.")
    for node in targets:
        matrix = _matrix(node, graph)
        packed, scales = _blocks(matrix, step.bits, step.block_size, step.max_integer_by_layer.get(node.name, 127))
        inputs = [node.input[0], graph.add_constant("weight", packed), graph.add_constant("steps", scales)]
        _replace(
            graph,
            node,
            "MatMulNBits",
            inputs,
            K=matrix.shape[0],
            N=matrix.shape[1],
            bits=step.bits,
            block_size=step.block_size,
            accuracy_level=step.accuracy_level,
        )
    return graph.to_model()


def _matrix(node: onnx.NodeProto, graph: Graph) -> NDArray[np.float32]:
    """Return the weights as [inputs, outputs]."""
    values = np.asarray(graph.constants[node.input[1]], np.float32)
    return values.T if node.op_type == "Gemm" and attribute(node, "transB", 0) else values


def _replace(graph: Graph, node: onnx.NodeProto, op: str, inputs: list[str], **attributes: Any) -> None:
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    graph.nodes.remove(node)
    if bias:
        product = graph.make_node(op, inputs, domain=_DOMAIN, **attributes)
        graph.make_node("Add", [product, bias], [node.output[0]])
    else:
        graph.make_node(op, inputs, [node.output[0]], domain=_DOMAIN, **attributes)


def _blocks(
    matrix: NDArray[np.float32], bits: int, block: int, peak: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return MatMulNBits' packed weights [outputs, blocks, bytes] and steps [outputs * blocks].

    Integers are unsigned around the middle value, which is the operator's default zero point.
    """
    inputs, outputs = matrix.shape
    count = -(-inputs // block)
    padded = np.zeros((outputs, count * block), np.float32)
    padded[:, :inputs] = matrix.T
    grouped = padded.reshape(outputs, count, block)
    middle = 1 << (bits - 1)
    codes = quantize_weights(grouped, (0, 1), min(peak, middle - 1))
    unsigned: NDArray[np.uint8] = (codes.integers.astype(np.int16) + middle).astype(np.uint8)
    if bits == 4:
        low, high = unsigned[..., 0::2], unsigned[..., 1::2]
        unsigned = np.bitwise_or(low, np.left_shift(high, np.uint8(4)), dtype=np.uint8)
    return unsigned, codes.scales.reshape(-1)


def _is_plain_lstm(node: onnx.NodeProto, graph: Graph) -> bool:
    weights = [graph.constants.get(name) for name in node.input[1:3]]
    return all(w is not None and w.dtype == np.float32 for w in weights) and len(node.input) <= 7
