"""A float or quantised ONNX graph as a trainable torch module, and back again."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.compress.model.graph import Graph, session_bytes
from edgewright.compress.train.node_context import (
    BuiltNode,
    NodeContext,
    ParameterBinding,
    to_graph_layout,
    to_module_layout,
)
from edgewright.compress.train.qat.qdq import QdqPairs
from edgewright.compress.train.torch_graph.ops_conv_pool import WINDOW_OPERATORS
from edgewright.compress.train.torch_graph.ops_elementwise import ELEMENTWISE_OPERATORS
from edgewright.compress.train.torch_graph.ops_linear import LINEAR_OPERATORS
from edgewright.compress.train.torch_graph.ops_recurrent import RECURRENT_OPERATORS
from edgewright.compress.train.torch_graph.ops_shape import SHAPE_OPERATORS
from edgewright.compress.train.torch_graph.prepare import fold_bias_additions, prepare_graph
from edgewright.compress.train.torch_graph.reshape import BatchFreeReshape
from edgewright.contract.errors import CandidateError

__all__ = ["TrainableGraph"]

_BUILDERS = {
    **ELEMENTWISE_OPERATORS,
    **SHAPE_OPERATORS,
    **WINDOW_OPERATORS,
    **LINEAR_OPERATORS,
    **RECURRENT_OPERATORS,
}
# A free axis that is not the batch gets this size in the reference run.
_FREE_AXIS = 32
# Answers differ by rounding only; relative to the largest answer.
_TOLERANCE = 1e-3
# In integers, a difference in a last digit may become a whole step.
_INTEGER_TOLERANCE = 0.2
# Larger numbers are masks, not weights.
_MAX_WEIGHT = 1e4
# So many ways to find the batch in the targets of reshapes are tried.
_MAX_READINGS = 64
_LAYERS = frozenset("Conv ConvTranspose Gather Gemm GRU LSTM MatMul".split())


class TrainableGraph(nn.Module):
    """An ONNX graph as a trainable module; the first axis of every input and output is the batch.

    Layers are torch's own modules, named after their nodes. Constants in arithmetic are parameters where they
    look like weights. The graph may be for a batch of one: the module takes any.

    Attributes:
        input_names: The graph's inputs, in order.
        output_names: The graph's outputs, in order.

    Raises:
        CandidateError: An operator cannot be trained, or samples of a batch influence each other.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._graph = prepare_graph(model)
        self.input_names = tuple(self._graph.input_names)
        self.output_names = tuple(self._graph.output_names)
        self._pairs = QdqPairs(self._graph)
        self._constants = {**self._graph.constants, **self._pairs.constants}
        self._slots: dict[str, int] = {}
        self._steps: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = []
        self._held: list[tuple[int, str]] = []
        self._bindings: list[ParameterBinding] = []
        self._layers: dict[str, ParameterBinding] = {}
        self._reshapes: dict[str, BatchFreeReshape] = {}
        self._owners: dict[tuple[str, tuple[int, int, int]], ParameterBinding] = {}
        self._inputs = [self._slot(name) for name in self.input_names]
        self._examples = _examples(self._graph)
        self.eval()
        first = self._build(fold_bias_additions(self._pairs.nodes, self._graph))
        self._outputs = [self._slot(name) for name in self.output_names]
        self._check(first)
        # Convolutions over images are up to half as fast again with their channels last.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the graph's outputs.

        Args:
            inputs: The graph's inputs in order, [batch, ...].
        """
        values = self._run(inputs)
        return tuple(values[slot] for slot in self._outputs)

    def run_with_tensors(
        self, inputs: Sequence[Tensor], wanted: Sequence[str]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Return the outputs, and the inner tensors of these names.

        Raises:
            CandidateError: The network does not compute a tensor of such a name.
        """
        unknown = [name for name in wanted if name not in self._slots]
        if unknown:
            raise CandidateError(
                f"the network has no tensor {unknown[0]!r}", remedy="Name the output of one of its nodes."
            )
        values = self._run(inputs)
        return tuple(values[slot] for slot in self._outputs), {name: values[self._slots[name]] for name in wanted}

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the weight of each layer under its node's name, in torch's layout: outputs first, then inputs."""
        return {name: getattr(binding.module, binding.attribute) for name, binding in self._layers.items()}

    def to_onnx(self) -> onnx.ModelProto:
        """Return the graph with the current weights; sizes that pruning changed are carried through."""
        graph = Graph(self._graph.to_model())
        changed = self._write_weights(graph)
        if changed:
            self._write_sizes(graph)
        self._pairs.write_into(graph)
        return graph.to_model()

    def _slot(self, name: str) -> int:
        return self._slots.setdefault(name, len(self._slots))

    def _run(self, inputs: Sequence[Tensor]) -> list[Any]:
        values: list[Any] = [None] * len(self._slots)
        for slot, value in zip(self._inputs, inputs, strict=True):
            values[slot] = value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for slot, name in self._held:
            values[slot] = getattr(self, name)
        for call, reads, writes in self._steps:
            result = call(*[values[slot] for slot in reads])
            if len(writes) == 1:
                values[writes[0]] = result
            else:
                for slot, part in zip(writes, result, strict=False):
                    values[slot] = part
        return values

    def _build(self, nodes: Sequence[onnx.NodeProto]) -> list[Tensor]:
        """Turn the nodes into steps, running each on the example as it is made; return the outputs."""
        known: dict[str, Any] = dict(zip(self.input_names, self._examples, strict=True))
        any_batch = all(self._graph.shapes[name][:1] == (None,) for name in self.input_names)
        with torch.no_grad():
            for node in nodes:
                builder = _BUILDERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
                built = self._pairs.built_nodes.get(node.name)
                shapes = [self._shape(known, name) for name in node.input]
                site = NodeContext(node, self._graph.opset, self._constants, shapes, any_batch)
                if built is None:
                    if builder is None:
                        raise site.unsupported("it is not known")
                    built = builder(site)
                self._place(node, built, known)
                try:
                    result = built.call(*[known[node.input[place]] for place in built.reads])
                except (RuntimeError, IndexError, ValueError) as error:
                    raise site.unsupported(" ".join(str(error).split())[:200]) from error
                results = result if isinstance(result, tuple | list) else (result,)
                known.update(zip([name for name in node.output if name], results, strict=False))
        return [known[name] for name in self.output_names]

    def _shape(self, known: Mapping[str, Any], name: str) -> tuple[int, ...]:
        if name in self._constants:
            return tuple(self._constants[name].shape)
        return tuple(known[name].shape) if name in known else ()

    def _place(self, node: onnx.NodeProto, built: BuiltNode, known: dict[str, Any]) -> None:
        """Register a step: its module, its parameters, and the constants that it reads."""
        if isinstance(built.call, nn.Module):
            self.add_module(self._free_name(node.name), built.call)
            built.call.eval()
        if isinstance(built.call, BatchFreeReshape):
            self._reshapes[node.name] = built.call
        for binding in built.bindings:
            self._bind(binding)
        self._pairs.attach(node, built.bindings)
        if built.bindings and node.op_type in _LAYERS:
            self._layers[node.name] = built.bindings[0]
        for place in built.reads:
            name = node.input[place]
            if name in self._constants and name not in self._slots:
                known[name] = self._register_constant(name, node)
        reads = tuple(self._slot(node.input[place]) for place in built.reads)
        writes = tuple(self._slot(name) for name in node.output if name)
        self._steps.append((built.call, reads, writes))

    def _free_name(self, name: str) -> str:
        plain = re.sub(r"\W+", "_", name).strip("_") or "node"
        while hasattr(self, plain):
            plain += "_"
        return plain

    def _bind(self, binding: ParameterBinding) -> None:
        """Fill a parameter from the graph, or share it where another layer has it already."""
        self._bindings.append(binding)
        owner = self._owners.setdefault((binding.tensor, binding.part), binding)
        if owner is not binding:
            if owner.layout != binding.layout:
                raise CandidateError(
                    f"weight {binding.tensor!r} is shared by layers of different kinds",
                    remedy="Export the model with a copy of its own for each layer.",
                )
            setattr(binding.module, binding.attribute, getattr(owner.module, owner.attribute))
            return
        value = to_module_layout(self._constants[binding.tensor], binding)
        target = getattr(binding.module, binding.attribute)
        if tuple(target.shape) != value.shape:
            value = np.broadcast_to(value, tuple(target.shape))
        target.data = _tensor(value).to(target.dtype)

    def _register_constant(self, name: str, node: onnx.NodeProto) -> Tensor:
        """Register a constant that is read as a tensor."""
        value = self._constants[name]
        owner = self._owners.get((name, (0, 0, 1)))
        if owner is not None and owner.layout == "same":
            shared: Tensor = getattr(owner.module, owner.attribute)
            label = self._free_name(f"tensor_{name}")
            self.register_parameter(label, shared)  # type: ignore[arg-type]
            self._held.append((self._slot(name), label))
            return shared
        label = self._free_name(f"tensor_{name}")
        tensor = _tensor(value)
        if name not in self._pairs.frozen and self._is_weight(value, node):
            self.register_parameter(label, nn.Parameter(tensor))
            binding = ParameterBinding(name, self, label)
            self._owners[name, binding.part] = binding
            self._bindings.append(binding)
        else:
            self.register_buffer(label, tensor)
        self._held.append((self._slot(name), label))
        return tensor

    def _is_weight(self, value: NDArray[Any], node: onnx.NodeProto) -> bool:
        if value.dtype.kind != "f" or not np.isfinite(value).all() or np.abs(value).max(initial=0) > _MAX_WEIGHT:
            return False
        normalises_inputs = any(name in self.input_names for name in node.input)
        return node.op_type == "PRelu" or (value.size > 1 and not normalises_inputs)

    def _check(self, first: Sequence[Tensor]) -> None:
        """Let reshapes learn the batch, and see that batches and the runtime give the same answers."""
        others = [value.flip(-1) if value.ndim > 1 else value for value in self._examples]
        both = [torch.cat((a, b)) if a.ndim else a for a, b in zip(self._examples, others, strict=True)]
        failures: list[CandidateError] = []
        while True:
            try:
                self._check_batch(first, others, both)
            except CandidateError as error:
                failures.append(error)
                # What was read last comes before what failed, so that is tried in another way first.
                latest = reversed(self._reshapes.values())
                if len(failures) == _MAX_READINGS or not any(one.try_next_reading() for one in latest):
                    raise failures[0] from None
            else:
                break
        self._compare_with_runtime(first)

    def _check_batch(self, first: Sequence[Tensor], others: Sequence[Tensor], both: Sequence[Tensor]) -> None:
        """Raise CandidateError unless a batch of two answers as two samples do."""
        with torch.no_grad():
            try:
                together = self(*both)
                second = self(*others)
            except (RuntimeError, IndexError, ValueError) as error:
                raise _not_batchable(" ".join(str(error).split())[:200]) from error
        for one, two, many, name in zip(first, second, together, self.output_names, strict=True):
            if (
                one.ndim
                and tuple(many.shape) == tuple(one.shape)
                and self._alike(many, one)
                and self._alike(many, two)
            ):
                continue
            if not one.ndim or len(many) != 2 * len(one) or not self._alike(many, torch.cat((one, two))):
                raise _not_batchable(f"output {name!r} of a sample depends on the batch")

    def _compare_with_runtime(self, given: Sequence[Tensor]) -> None:
        feed = {name: value.numpy() for name, value in zip(self.input_names, self._examples, strict=True)}
        wanted = session_bytes(self._graph.to_model(), level="disable").run(list(self.output_names), feed)
        for have, want, name in zip(given, wanted, self.output_names, strict=True):
            if not self._alike(have, torch.from_numpy(np.asarray(want))):
                raise CandidateError(
                    f"output {name!r} of the trainable network is not that of the runtime",
                    remedy="This is a defect; compress without training.",
                )

    def _alike(self, have: Tensor, want: Tensor) -> bool:
        if have.shape != want.shape:
            return False
        have, want = have.to(torch.float64), want.to(torch.float64)
        share = _INTEGER_TOLERANCE if self._pairs.quantized else _TOLERANCE
        limit = share * max(float(want.abs().max()) if want.numel() else 0.0, 1e-3)
        return torch.allclose(have, want, rtol=0, atol=limit, equal_nan=True)

    def _write_weights(self, graph: Graph) -> bool:
        """Write the parameters into the graph; whether a size changed."""
        changed = False
        parts: dict[str, list[ParameterBinding]] = {}
        for binding in [one for one in self._bindings if not self._pairs.owns(one.tensor)]:
            parts.setdefault(binding.tensor, []).append(binding)
        for tensor, bindings in parts.items():
            before = graph.constants[tensor]
            after = np.ascontiguousarray(_gathered(bindings, before)).astype(before.dtype)
            if after.shape != before.shape:
                changed = True
            graph.constants[tensor] = after
        if changed:
            by_name = {node.name: node for node in graph.nodes}
            for name, binding in self._layers.items():
                _write_attributes(by_name[name], binding.module)
        return changed

    def _write_sizes(self, graph: Graph) -> None:
        training = self.training
        self.eval()
        with torch.no_grad():
            self(*self._examples)
        self.train(training)
        for node in graph.nodes:
            reshape = self._reshapes.get(node.name)
            if reshape is not None and len(node.input) > 1:
                target = np.array(reshape.target_for(reshape.made), np.int64)
                if not np.array_equal(target, graph.constants[node.input[1]]):
                    node.input[1] = graph.add_constant("shape", target)


def _gathered(bindings: Sequence[ParameterBinding], before: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor's value from the parameters that hold it."""
    pieces: dict[tuple[int, int], NDArray[Any]] = {}
    for binding in bindings:
        value = getattr(binding.module, binding.attribute).detach().numpy()
        pieces[binding.part[:2]] = to_graph_layout(value, before, binding)
    if bindings[0].layout not in ("gru", "lstm"):
        return pieces[0, 0]
    directions = sorted({direction for direction, _ in pieces})
    halves = sorted({half for _, half in pieces})
    return np.stack([np.concatenate([pieces[turn, half] for half in halves]) for turn in directions])


def _write_attributes(node: onnx.NodeProto, module: nn.Module) -> None:
    names = {"Conv": ("group", "groups"), "ConvTranspose": ("group", "groups")}
    names |= dict.fromkeys(("GRU", "LSTM"), ("hidden_size", "hidden_size"))
    if node.op_type in names:
        name, attribute = names[node.op_type]
        for given in node.attribute:
            if given.name == name:
                given.i = int(getattr(module, attribute))


def _tensor(value: NDArray[Any]) -> Tensor:
    kinds = {"u2": np.int32, "u4": np.int64, "u8": np.int64}
    kind = kinds.get(value.dtype.str[1:], value.dtype)
    return torch.from_numpy(np.array(value, kind, order="C"))


def _examples(graph: Graph) -> list[Tensor]:
    """Return reproducible inputs in the graph's own batch: random numbers from 0 to 1, zeros for whole numbers."""
    generator = torch.Generator().manual_seed(0)
    made = []
    given = {value.name: value for value in graph.proto.graph.input}
    for name in graph.input_names:
        kind = given[name].type.tensor_type
        shape = [
            axis.dim_value if axis.dim_value > 0 else (1 if i == 0 else _FREE_AXIS)
            for i, axis in enumerate(kind.shape.dim)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        random = torch.rand(shape, generator=generator)
        made.append(random if dtype.kind == "f" else _tensor(np.zeros(shape, dtype)))
    return made


def _not_batchable(reason: str) -> CandidateError:
    return CandidateError(
        f"the network cannot be trained in batches: {reason}",
        remedy="Export the model with a free batch axis, or compress without training.",
    )
