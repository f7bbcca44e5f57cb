"""An ONNX graph that can be asked who makes a tensor and who reads it, and its clean-up.

The clean-up keeps the answers: constants are folded, batch normalisation goes into the convolutions, dead
nodes vanish. onnxruntime's own basic optimisation does the folding; what it returns is plain ONNX again.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from edgewright.contract.errors import CandidateError

__all__ = ["MIN_WORKING_OPSET", "Graph", "clean_model", "raise_opset", "session_bytes", "share_equal_constants"]

# Quantisation along an axis, and so everything this room does, needs it.
MIN_WORKING_OPSET = 13

_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


@dataclass(slots=True)
class Graph:
    """A model under construction: nodes in order, initializers by name, fresh names.

    A working copy, changed in place by one step and handed to the next; `to_model()` gives the result.
    """

    proto: onnx.ModelProto
    nodes: list[onnx.NodeProto] = field(init=False)
    constants: dict[str, NDArray[Any]] = field(init=False)
    shapes: dict[str, tuple[int | None, ...]] = field(init=False)
    _serial: int = 0
    _taken: set[str] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.proto.graph
        self.nodes = [_copied(node) for node in graph.node]
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.shapes = _shapes(self.proto)
        for i, node in enumerate(self.nodes):
            node.name = node.name or f"{node.op_type}_{i}"
        seen: set[str] = set()
        for node in self.nodes:
            while node.name in seen:
                node.name += "_"
            seen.add(node.name)
        self._taken = seen | {value.name for value in graph.input} | set(self.constants)
        self._taken |= {name for node in walk_nodes(self.nodes) for name in node.output}

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return max((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), default=1)

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's true inputs."""
        return [value.name for value in self.proto.graph.input if value.name not in self.constants]

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.proto.graph.output]

    def producers(self) -> dict[str, onnx.NodeProto]:
        """Tensor name to the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """Tensor name to the nodes that read it, in this graph or in a subgraph of one of its nodes."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(names_read(node)):
                found.setdefault(name, []).append(node)
        return found

    def unique_name(self, stem: str) -> str:
        """Return a tensor or node name that is not taken."""
        while True:
            self._serial += 1
            name = f"ew_{stem}_{self._serial}"
            if name not in self._taken:
                return name

    def add_constant(self, stem: str, value: NDArray[Any] | np.generic) -> str:
        """Add an initializer and return its name."""
        name = self.unique_name(stem)
        self.constants[name] = np.asarray(value)
        return name

    def make_node(
        self, op: str, inputs: Iterable[str], outputs: Iterable[str] | None = None, **attributes: Any
    ) -> str:
        """Make a node (not yet placed) and return its first output; see `placed`."""
        made = onnx.helper.make_node(
            op,
            list(inputs),
            list(outputs) if outputs is not None else [self.unique_name(op)],
            name=self.unique_name(op),
            **attributes,
        )
        self.nodes.append(made)
        return str(made.output[0])

    def sort(self) -> None:
        """Bring the nodes into an order in which each reads only what stands before it."""
        ready = set(self.input_names) | set(self.constants) | {""}
        made_here = {name for node in self.nodes for name in node.output}
        waiting = list(self.nodes)
        ordered: list[onnx.NodeProto] = []
        while waiting:
            left = []
            for node in waiting:
                if all(name in ready or name not in made_here for name in names_read(node)):
                    ordered.append(node)
                    ready.update(node.output)
                else:
                    left.append(node)
            if len(left) == len(waiting):
                raise CandidateError(
                    f"the graph has a circle near {left[0].name!r}", remedy="This is a defect of the step."
                )
            waiting = left
        self.nodes = ordered

    def prune(self) -> None:
        """Drop nodes (sorted before) and constants that no output needs."""
        needed = set(self.output_names)
        kept = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(names_read(node))
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def replace_reads(self, old: str, new: str, nodes: Iterable[onnx.NodeProto]) -> None:
        """Let these nodes read `new` where they read `old`."""
        for node in nodes:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
            for inner in (a.g for a in node.attribute if a.HasField("g")):
                _rename_reads(inner, {old: new})

    def to_model(self, custom_domain: bool = False) -> onnx.ModelProto:
        """Return the sorted, pruned graph as a model."""
        self.sort()
        self.prune()
        result = onnx.ModelProto()
        result.CopyFrom(self.proto)
        graph = result.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(value) if value.ndim else value, name)
            for name, value in self.constants.items()
        )
        inputs = [value for value in graph.input if value.name not in self.constants]
        del graph.input[:]
        graph.input.extend(inputs)
        del graph.value_info[:]
        result.ir_version = max(result.ir_version, 8)
        used = {node.domain for node in walk_nodes(graph.node)}
        if (custom_domain or "com.microsoft" in used) and all(
            o.domain != "com.microsoft" for o in result.opset_import
        ):
            result.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        return result


def walk_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from walk_nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from walk_nodes(graph.node)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, its subgraphs' included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from names_read(inner)
            yield from (value.name for value in attribute.g.output)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return a node's attribute as a Python value."""
    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default


def session_bytes(
    model: onnx.ModelProto | bytes, *, level: str = "all", threads: int = 1, saved: Path | None = None
) -> ort.InferenceSession:
    """Open a session on a model in memory, for its answers (not for timing).

    Raises:
        CandidateError: The runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = {
        "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[level]
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    content = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CandidateError(
            f"onnxruntime refuses the graph: {reason}", remedy="The candidate is skipped."
        ) from error


def optimized(model: onnx.ModelProto, level: str) -> onnx.ModelProto:
    """Return the graph as onnxruntime would run it after its own optimisation."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimized.onnx"
        session_bytes(model, level=level, saved=saved)
        return onnx.load(saved)


def raise_opset(model: onnx.ModelProto, least: int = MIN_WORKING_OPSET) -> onnx.ModelProto:
    """Return the model at opset `least` or newer; the model as it is where no conversion is known."""
    current = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    if current >= least:
        return model
    inputs = {tensor.name for tensor in model.graph.initializer}
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    kept = [value for value in bare.graph.input if value.name not in inputs]
    del bare.graph.input[:]
    bare.graph.input.extend(kept)
    bare.ir_version = max(bare.ir_version, 8)
    try:
        converted = onnx.version_converter.convert_version(bare, least)
        onnx.checker.check_model(converted)
        session_bytes(converted, level="basic")
    except Exception:  # the converter raises what it likes; the old opset still works
        return bare
    return converted


def clean_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and batch normalisation, drop dead nodes, free weights from the list of inputs.

    Returns:
        An equivalent model of standard operators; where the runtime's folding would bring in operators of
        its own, the model with dead nodes dropped only.
    """
    model = raise_opset(model)
    domains = {node.domain for node in walk_nodes(model.graph.node)}
    try:
        folded = optimized(model, "basic")
    except CandidateError:
        return Graph(model).to_model()
    candidates = [_lifted(model)]
    if not {node.domain for node in walk_nodes(folded.graph.node)} - domains - set(_STANDARD_DOMAINS):
        candidates.insert(0, _lifted(folded))
    # Folding may write a weight into several branches; then the unfolded graph is the better one.
    best = min(candidates, key=lambda candidate: round(candidate.ByteSize() / (0.02 * model.ByteSize())))
    graph = Graph(best)
    _fold_dequantized_weights(graph)
    return graph.to_model()


def share_equal_constants(graph: Graph) -> None:
    """Make equal constants one."""
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    outputs = set(graph.output_names)
    for name, value in list(graph.constants.items()):
        if name in outputs:
            continue
        key = (str(value.dtype), value.shape, value.tobytes())
        if key in first:
            graph.replace_reads(name, first[key], graph.nodes)
        else:
            first[key] = name


def _lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with all constants as initializers of the main graph, equal ones once."""
    graph = Graph(model)
    _constants_to_initializers(graph, graph.nodes)
    share_equal_constants(graph)
    result = graph.to_model()
    used = {node.domain for node in walk_nodes(result.graph.node)} | {""}
    imports = [o for o in result.opset_import if o.domain in used or (o.domain == "ai.onnx" and "" in used)]
    del result.opset_import[:]
    result.opset_import.extend(imports)
    return result


def _constants_to_initializers(graph: Graph, nodes: list[onnx.NodeProto]) -> None:
    """Lift constant nodes, and the constants of branches, to the graph's initializers."""
    outputs = set(graph.output_names)
    kept = []
    for node in nodes:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is not None and node.output[0] not in outputs:
            graph.constants[node.output[0]] = numpy_helper.to_array(value)
        else:
            kept.append(node)
    nodes[:] = kept
    for node in nodes:
        for inner in (a.g for a in node.attribute if a.HasField("g")):
            _lift_branch(graph, inner)


def _lift_branch(graph: Graph, branch: onnx.GraphProto) -> None:
    made_inside = {value.name for value in branch.output}
    lifted: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in branch.initializer}
    for node in branch.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is not None and node.output[0] not in made_inside:
            lifted[node.output[0]] = numpy_helper.to_array(value)
    renamed = {
        name: graph.add_constant("lifted", value) for name, value in lifted.items() if name not in made_inside
    }
    nodes = [node for node in branch.node if not (node.op_type == "Constant" and node.output[0] in renamed)]
    initializers = [t for t in branch.initializer if t.name not in renamed]
    copies = [_copied(node) for node in nodes]
    for node in copies:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        for inner in (a.g for a in node.attribute if a.HasField("g")):
            _rename_reads(inner, renamed)
            _lift_branch(graph, inner)
    del branch.node[:]
    branch.node.extend(copies)
    del branch.initializer[:]
    branch.initializer.extend(initializers)


def _rename_reads(branch: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for node in branch.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        for inner in (a.g for a in node.attribute if a.HasField("g")):
            _rename_reads(inner, renamed)


def _fold_dequantized_weights(graph: Graph) -> None:
    """Turn weights that are stored as integers into floats, unless activations are quantised too."""
    if any(node.op_type == "QuantizeLinear" for node in graph.nodes):
        return
    for node in list(graph.nodes):
        if node.op_type != "DequantizeLinear" or any(name not in graph.constants for name in node.input if name):
            continue
        if attribute(node, "block_size", 0):
            continue
        parts = [graph.constants[name] for name in node.input if name]
        codes, scale = parts[0].astype(np.float32), parts[1]
        zero = parts[2].astype(np.float32) if len(parts) > 2 else np.float32(0)
        if scale.ndim == 1 and codes.ndim > 0:
            view = [1] * codes.ndim
            view[attribute(node, "axis", 1)] = -1
            scale, zero = scale.reshape(view), np.broadcast_to(zero, scale.shape).reshape(view)
        graph.constants[node.output[0]] = ((codes - zero) * scale).astype(np.float32)
        graph.nodes.remove(node)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # shapes are a convenience; a graph without them still runs
        inferred = model
    graph = inferred.graph
    shapes: dict[str, tuple[int | None, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
            )
    return shapes
