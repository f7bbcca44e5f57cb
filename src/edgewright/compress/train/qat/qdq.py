"""Quantize/dequantize pairs of a graph as fake quantisers, and their learned steps back in the graph."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgewright.compress.model.graph import Graph, attribute
from edgewright.compress.train.node_context import BuiltNode, ParameterBinding, to_graph_layout
from edgewright.compress.train.qat.fake_quant import BiasGrid, FakeQuantizer
from edgewright.contract.errors import CandidateError

__all__ = ["LATENT_SUFFIX", "QdqPairs"]

# An initializer of this name holds the float weight that the integers of the same name were rounded from.
LATENT_SUFFIX = ":latent"

_LAYERS = frozenset(("Conv", "Gemm", "MatMul"))
# Integers go through these as they are, so both sides have one step.
_MOVES = frozenset(
    (
        "DepthToSpace Expand Flatten Gather MaxPool Reshape Slice SpaceToDepth Split Squeeze "
        "Tile Transpose Unsqueeze"
    ).split()
)


class _Dequantized(nn.Module):
    """Raw bytes as real values, with a step that is not learned."""

    def __init__(self, step: float, zero: int) -> None:
        super().__init__()
        self._step, self._zero = step, zero

    def forward(self, value: Tensor) -> Tensor:
        return (value.to(torch.float32) - self._zero) * self._step


@dataclass(slots=True)
class _Weight:
    """Integers of a weight: the node that dequantizes them, and once the layer is built, where they are trained."""

    node: onnx.NodeProto
    quantizer: FakeQuantizer | None = None
    binding: ParameterBinding | None = None


@dataclass(slots=True)
class _Bias:
    """Integers of a bias."""

    node: onnx.NodeProto
    grid: BiasGrid | None = None
    binding: ParameterBinding | None = None


@dataclass(slots=True)
class QdqPairs:
    """What is quantised in a graph.

    Attributes:
        graph: The graph with its pairs.
        nodes: The nodes to build, without those that dequantize weights.
        constants: Float values of the tensors that stand for weights and biases.
        built_nodes: Node name to its part in the module, for nodes that quantize.
        frozen: Constants of activations: not trained.
    """

    graph: Graph
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    built_nodes: dict[str, BuiltNode] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    _weights: dict[str, _Weight] = field(default_factory=dict)
    _biases: dict[str, _Bias] = field(default_factory=dict)
    _sources: dict[str, FakeQuantizer] = field(default_factory=dict)
    _places: list[tuple[FakeQuantizer, list[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            if node.op_type == "QuantizeLinear":
                self._read_quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._read_dequantize(node)
            elif node.op_type == "Mul" and self._is_bias_scale(node):
                continue
            else:
                self.nodes.append(node)

    @property
    def quantized(self) -> bool:
        """Whether there is any pair."""
        return bool(self._places or self._weights)

    def attach(self, node: onnx.NodeProto, bindings: tuple[ParameterBinding, ...]) -> None:
        """Let a layer that was just built round its weight and bias."""
        weight = self._weights.get(node.input[1]) if node.op_type in _LAYERS else None
        if weight is None:
            return
        self._attach_weight(weight, bindings[0], node)
        bias = self._biases.get(node.input[2]) if len(node.input) > 2 else None
        source = self._sources.get(node.input[0])
        if source is None or weight.quantizer is None or len(bindings) < 2:
            if bias is not None:
                raise _unusual(bias.node, "its layer's input is not quantised")
            return
        module = bindings[1].module
        grid = BiasGrid(weight.quantizer, source)
        parametrize.register_parametrization(module, "bias", grid)
        bindings[1].module, bindings[1].attribute = module.parametrizations.bias, "original"  # type: ignore[union-attr, assignment]
        if bias is not None:
            bias.grid, bias.binding = grid, bindings[1]

    def owns(self, tensor: str) -> bool:
        """Whether `write_into` takes care of this tensor."""
        return tensor in self._weights or tensor in self._biases

    def write_into(self, graph: Graph) -> None:
        """Write integers, steps and scales into a copy of the graph."""
        by_name = {node.name: node for node in graph.nodes}
        scale_now: dict[int, str] = {}
        for quantizer, names in self._places:
            scale = graph.add_constant("scale", quantizer.step().detach().numpy().astype(np.float32))
            scale_now[id(quantizer)] = scale
            for name in names:
                by_name[name].input[1] = scale
        steps_now: dict[int, str] = {}
        for weight in self._weights.values():
            if weight.quantizer is None or weight.binding is None:
                continue
            node = by_name[weight.node.name]
            latent = getattr(weight.binding.module, weight.binding.attribute).detach()
            integers = weight.quantizer.quantize(latent).detach().numpy().astype(np.int8)
            before = graph.constants[node.input[0]]
            after = np.ascontiguousarray(to_graph_layout(integers, before, weight.binding))
            node.input[0] = graph.add_constant("weight", after)
            steps = weight.quantizer.step().detach().numpy().reshape(graph.constants[node.input[1]].shape)
            node.input[1] = graph.add_constant("steps", steps.astype(np.float32))
            steps_now[id(weight.quantizer)] = node.input[1]
        producers = graph.producers()
        for bias in self._biases.values():
            if bias.grid is None or bias.binding is None:
                continue
            node = by_name[bias.node.name]
            value = getattr(bias.binding.module, bias.binding.attribute).detach()
            integers = (value / bias.grid.grid()).round().clamp(-(2**31) + 128, 2**31 - 128).numpy()
            node.input[0] = graph.add_constant("bias", integers.astype(np.int32))
            product = producers.get(node.input[1])
            if product is None:
                node.input[1] = graph.add_constant("scale", bias.grid.grid().numpy())
            else:
                product.input[:] = [steps_now[id(bias.grid.weight)], scale_now[id(bias.grid.source)]]

    def _parameters(self, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]]:
        known = self.graph.constants
        if node.input[1] not in known:
            raise _unusual(node, "its scale is computed")
        scale = known[node.input[1]]
        if len(node.input) < 3 or not node.input[2]:
            return scale, np.zeros(scale.shape, np.uint8 if node.op_type == "QuantizeLinear" else np.int8)
        return scale, known[node.input[2]]

    def _read_quantize(self, node: onnx.NodeProto) -> None:
        scale, zero = self._parameters(node)
        readers = self.graph.consumers().get(node.output[0], [])
        if scale.size != 1 or any(reader.op_type != "DequantizeLinear" for reader in readers):
            raise _unusual(node, "it has several scales, or its integers are used as such")
        if node.output[0] in self.graph.output_names:
            raise _unusual(node, "its integers are an output")
        source = self._tied(node, scale, zero)
        names = [node.name, *(reader.name for reader in readers)]
        self.nodes.append(node)
        if source is not None:
            self.built_nodes[node.name] = BuiltNode(_same, (0,))
            next(places for quantizer, places in self._places if quantizer is source).extend(names)
        else:
            limits = np.iinfo(zero.dtype)
            offset = int(zero.reshape(()))
            source = FakeQuantizer(_scalar(scale), limits.min - offset, limits.max - offset, batched=True)
            self.built_nodes[node.name] = BuiltNode(source, (0,))
            self._places.append((source, names))
        self._sources[node.output[0]] = source

    def _tied(self, node: onnx.NodeProto, scale: NDArray[Any], zero: NDArray[Any]) -> FakeQuantizer | None:
        """Return the quantiser before the move whose output this node quantizes again in the same way."""
        producers = self.graph.producers()
        move = producers.get(node.input[0])
        pair = producers.get(move.input[0]) if move is not None and move.op_type in _MOVES else None
        if pair is None or pair.op_type != "DequantizeLinear" or pair.output[0] not in self._sources:
            return None
        before = self._parameters(pair)
        alike = before[0] == scale and before[1] == zero and before[1].dtype == zero.dtype
        return self._sources[pair.output[0]] if alike else None

    def _read_dequantize(self, node: onnx.NodeProto) -> None:
        name, made = node.input[0], node.output[0]
        if name in self._sources:
            self.built_nodes[node.name] = BuiltNode(_same, (0,))
            self._sources[made] = self._sources[name]
            self.nodes.append(node)
            return
        codes = self.graph.constants.get(name)
        if codes is None:
            scale, zero = self._parameters(node)
            self.built_nodes[node.name] = BuiltNode(
                _Dequantized(float(scale.reshape(())), int(zero.reshape(()))), (0,)
            )
            self.nodes.append(node)
            return
        reader, place = self._reader(made)
        if reader in _LAYERS and place == 2:
            self._biases[made] = _Bias(node)
            self.constants[made] = (codes * self._bias_scale(node)).astype(np.float32)
            return
        scale, zero = self._parameters(node)
        if reader in _LAYERS and place == 1:
            if np.any(zero) or codes.dtype != np.int8:
                raise _unusual(node, "its weights have a zero point")
            self._weights[made] = _Weight(node)
            latent = self.graph.constants.get(name + LATENT_SUFFIX)
            self.constants[made] = _decoded(codes, scale, zero, node) if latent is None else latent
        else:
            self.constants[made] = _decoded(codes, scale, zero, node)
            self.frozen.add(made)

    def _reader(self, name: str) -> tuple[str, int]:
        readers = self.graph.consumers().get(name, [])
        if len(readers) != 1:
            return "", 0
        return str(readers[0].op_type), list(readers[0].input).index(name)

    def _is_bias_scale(self, node: onnx.NodeProto) -> bool:
        readers = self.graph.consumers().get(node.output[0], [])
        scaled = [r.op_type == "DequantizeLinear" and r.input[1] == node.output[0] for r in readers]
        return bool(scaled) and all(scaled)

    def _bias_scale(self, node: onnx.NodeProto) -> NDArray[Any]:
        known = self.graph.constants
        if node.input[1] in known:
            return known[node.input[1]]
        product = self.graph.producers()[node.input[1]]
        scale: NDArray[Any] = known[product.input[0]] * known[product.input[1]]
        return scale

    def _attach_weight(self, weight: _Weight, binding: ParameterBinding, node: onnx.NodeProto) -> None:
        known: Mapping[str, NDArray[Any]] = self.graph.constants
        integers, steps = known[weight.node.input[0]], known[weight.node.input[1]]
        rank = getattr(binding.module, binding.attribute).ndim
        axis = attribute(weight.node, "axis", 1) % integers.ndim
        expected = int(binding.layout == "transposed")
        if steps.ndim and steps.size > 1 and axis != expected:
            raise _unusual(weight.node, f"its steps lie along the inputs of {node.name!r}")
        step = _scalar(steps) if steps.size == 1 else torch.from_numpy(steps.reshape(-1, *[1] * (rank - 1)).copy())
        peak = max(int(np.abs(integers.astype(np.int32)).max(initial=1)), 1)
        weight.quantizer = FakeQuantizer(step, -peak, peak, batched=False)
        module = binding.module
        parametrize.register_parametrization(module, binding.attribute, weight.quantizer)
        binding.module, binding.attribute = module.parametrizations.weight, "original"  # type: ignore[union-attr, assignment]
        weight.binding = binding


def _decoded(
    codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], node: onnx.NodeProto
) -> NDArray[np.float32]:
    if scale.size > 1:
        view = [1] * codes.ndim
        view[attribute(node, "axis", 1)] = -1
        scale, zero = scale.reshape(view), zero.reshape(view)
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    values: NDArray[np.float32] = ((codes.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)
    return values


def _same(value: Tensor) -> Tensor:
    return value


def _scalar(value: NDArray[Any]) -> Tensor:
    return torch.tensor(float(value.reshape(())), dtype=torch.float32)


def _unusual(node: onnx.NodeProto, reason: str) -> CandidateError:
    return CandidateError(
        f"operator {node.op_type} ({node.name!r}) cannot be trained: {reason}",
        remedy="Train the float model, and quantise it then.",
    )
