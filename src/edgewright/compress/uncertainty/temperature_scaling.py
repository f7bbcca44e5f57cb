"""A temperature, or a factor and shift per class, folded into the graph: calibrated probabilities at no cost.

They go into the last layer's weights, float or quantised, or into the scales between it and the logits. Where that
is not possible without changing something else, a multiplication and an addition stand before the softmax. A
temperature changes no answer; in a quantised graph not even one integer.
"""

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.classifier_head import ClassifierHead, find_classifier_head
from edgewright.compress.model.graph import Graph, attribute
from edgewright.contract.errors import CandidateError
from edgewright.stats.calibration import LogitScaling

__all__ = ["scale_logits"]

_Floats = NDArray[np.float64]
_Edit = Callable[[], None]

_RESHAPING = frozenset("Flatten Identity Reshape Squeeze Unsqueeze".split())
# What passes one factor on, but not different ones, or not a shift.
_LINEAR = frozenset("AveragePool GlobalAveragePool Mul ReduceMean Transpose".split())
# Input 2 holds the weights' steps, 3 their zero points, later ones a bias or an order.
_WITH_STEPS = frozenset("DynamicQuantizeMatMul MatMulNBits".split())
_PAIR = frozenset("DequantizeLinear QuantizeLinear".split())


def scale_logits(model: onnx.ModelProto, scaling: LogitScaling, output: str | None = None) -> onnx.ModelProto:
    """Return the model whose logits are scaled and shifted.

    Args:
        model: A classifier that ends in logits, or in a softmax, its logarithm or a sigmoid of them.
        scaling: Fitted to the model's logits, or to the logarithms of its probabilities.
        output: Name of the output, None for the first.

    Raises:
        CandidateError: The output is not of floats, its classes cannot be told, or probabilities are averaged.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    head = find_classifier_head(graph, output)
    if head.after & {"Add", *_LINEAR} - {"Transpose"}:
        raise CandidateError(
            f"output {head.output!r} is made of probabilities that are averaged or changed afterwards",
            remedy="Soften the logits before the graph is exported.",
        )
    edits = _LogitFold(graph, head, scaling.scale, scaling.bias).edits()
    if edits is None:
        _insert_scaling(graph, copy, head, scaling)
    else:
        for edit in edits:
            edit()
    return graph.to_model()


class _LogitFold:
    """Changes of constants that scale the logits and nothing else, collected before the first is made."""

    def __init__(self, graph: Graph, head: ClassifierHead, scale: _Floats, shift: _Floats) -> None:
        self.graph = graph
        self.head = head
        self.uniform = scale.size == 1 and not shift.any()
        # A number, not an array of one: what it meets keeps its shape.
        self.scale = scale.reshape(()) if self.uniform else scale
        self.shift = shift.reshape(()) if self.uniform else shift
        self.producers = graph.producers()
        self.consumers = graph.consumers()

    def edits(self) -> list[_Edit] | None:
        """Return the changes, None if the logits cannot be scaled alone."""
        layer = self.head.last_layer
        if layer is None or not self._is_alone() or (self.scale <= 0).any():
            return None
        found = self._weight(layer)
        shifted = False
        parts = [found]
        for node in self.head.path:
            if node.op_type == "Add":
                parts.append(self._addend(node, shift=not shifted))
                shifted = True
            elif node.op_type in _PAIR:
                parts.append(self._pair(node))
            elif not self._keeps_classes(node):
                return None
        if layer.op_type not in _WITH_STEPS and len(layer.input) > 2 and layer.input[2]:
            parts.append(self._bias(layer, shift=not shifted))
        elif self.shift.any() and not shifted:
            parts.append(self._new_bias(layer))
        if not self.uniform and layer.op_type == "Conv" and not self._is_pooled(layer):
            return None
        return None if any(part is None for part in parts) else [edit for part in parts if part for edit in part]

    def _is_alone(self) -> bool:
        """Whether nobody but the logits' reader sees what lies between the layer and them."""
        assert self.head.last_layer is not None  # noqa: S101 - asked before
        names = [self.head.last_layer.output[0], *(node.output[0] for node in self.head.path)]
        last = self.head.logits
        inner = all(
            len(self.consumers.get(name, [])) == 1 and name not in self.graph.output_names
            for name in names
            if name != last
        )
        readers = 0 if self.head.activation is None else 1
        outer = len(self.consumers.get(last, [])) == readers
        return inner and outer and (readers == 0 or last not in self.graph.output_names)

    def _keeps_classes(self, node: onnx.NodeProto) -> bool:
        # An average of scaled values is the scaled average; shifts and factors per class need their axis kept.
        kept = _RESHAPING | (_LINEAR if self.uniform else {"GlobalAveragePool"})
        return node.op_type in kept

    def _is_pooled(self, layer: onnx.NodeProto) -> bool:
        """Whether a convolution's classes are what is left of it, so that reshaping cannot mix them."""
        shape = self.graph.shapes.get(layer.output[0], ())
        pooled = any(node.op_type == "GlobalAveragePool" for node in self.head.path)
        return pooled or (len(shape) > 2 and all(size == 1 for size in shape[2:]))

    def _channels(self, layer: onnx.NodeProto) -> int:
        """Return the axis of the weight along which the classes lie."""
        if layer.op_type == "Gemm":
            return 0 if attribute(layer, "transB", 0) else 1
        return 0 if layer.op_type == "Conv" else -1

    def _weight(self, layer: onnx.NodeProto) -> list[_Edit] | None:
        if layer.op_type in _WITH_STEPS:
            of_weight = self.graph.constants.get(layer.input[2])
            if of_weight is None or not self.uniform or any(layer.input[4:]):
                return None
            return [self._constant(layer, 2, of_weight * self.scale)]
        name = layer.input[1]
        axis = self._channels(layer)
        value = self.graph.constants.get(name)
        if value is not None:
            if value.dtype.kind != "f" or value.ndim < 2 or not self._fits(value.shape[axis]):
                return None
            return [self._constant(layer, 1, value * self._along(axis, value.ndim))]
        source = self.producers.get(name)
        if source is None or source.op_type != "DequantizeLinear" or len(self.consumers[name]) != 1:
            return None
        steps = self.graph.constants.get(source.input[1])
        codes = self.graph.constants.get(source.input[0])
        if steps is None or codes is None:
            return None
        if self.uniform:
            return [self._constant(source, 1, steps * self.scale)]
        along = attribute(source, "axis", 1) % codes.ndim
        if steps.ndim != 1 or along != axis % codes.ndim or not self._fits(steps.size):
            return None
        return [self._constant(source, 1, steps * self.scale)]

    def _bias(self, layer: onnx.NodeProto, *, shift: bool) -> list[_Edit] | None:
        name = layer.input[2]
        added = self._shift_of(layer) if shift else np.zeros(())
        if added is None:
            return None
        value = self.graph.constants.get(name)
        if value is not None:
            if value.dtype.kind != "f" or not (self.uniform or (value.ndim == 1 and self._fits(value.size))):
                return None
            return [self._constant(layer, 2, value * self.scale + added)]
        source = self.producers.get(name)
        if source is None or source.op_type != "DequantizeLinear" or len(self.consumers[name]) != 1:
            return None
        steps, codes = self._value(source.input[1]), self.graph.constants.get(source.input[0])
        zero = self._value(source.input[2]) if len(source.input) > 2 else np.zeros(())
        if steps is None or codes is None or zero is None or zero.any():
            return None
        if not self.uniform and not self._fits(codes.size):
            return None
        # The integers of a scaled bias are those of before; a shift is written in the new steps.
        scaled = steps * self.scale
        moved = np.rint(codes + added / scaled)
        if np.abs(moved).max() >= 2**31:
            return None
        return [self._constant(source, 0, moved), self._constant(source, 1, np.asarray(scaled), np.float32)]

    def _new_bias(self, layer: onnx.NodeProto) -> list[_Edit] | None:
        added = self._shift_of(layer)
        value = self.graph.constants.get(layer.input[1])
        if added is None or layer.op_type == "MatMul" or value is None:
            return None

        def edit() -> None:
            del layer.input[2:]
            layer.input.append(self.graph.add_constant("softened", added.astype(value.dtype)))

        return [edit]

    def _shift_of(self, layer: onnx.NodeProto) -> _Floats | None:
        beta = attribute(layer, "beta", 1.0) if layer.op_type == "Gemm" else 1.0
        if not self.shift.any():
            return np.zeros(())
        return self.shift / beta if beta else None

    def _addend(self, node: onnx.NodeProto, *, shift: bool) -> list[_Edit] | None:
        place = 0 if node.input[0] in self.graph.constants else 1
        value = self.graph.constants.get(node.input[place])
        if value is None or value.dtype.kind != "f":
            return None
        if not self.uniform and (value.ndim < 1 or not self._fits(value.shape[-1])):
            return None
        if not self.uniform and self.head.last_layer is not None and self.head.last_layer.op_type == "Conv":
            return None
        return [self._constant(node, place, value * self.scale + (self.shift if shift else 0.0))]

    def _pair(self, node: onnx.NodeProto) -> list[_Edit] | None:
        step = self.graph.constants.get(node.input[1])
        if step is None or not self.uniform:
            return None
        return [self._constant(node, 1, step * self.scale)]

    def _fits(self, classes: int) -> bool:
        return self.scale.size in (1, classes)

    def _along(self, axis: int, ndim: int) -> _Floats:
        view = [1] * ndim
        view[axis] = -1
        return self.scale.reshape(view)

    def _value(self, name: str) -> _Floats | None:
        """Return a constant, or the product of two."""
        if name in self.graph.constants:
            return np.asarray(self.graph.constants[name], np.float64)
        node = self.producers.get(name)
        if node is None or node.op_type != "Mul" or any(one not in self.graph.constants for one in node.input):
            return None
        first, second = (np.asarray(self.graph.constants[one], np.float64) for one in node.input)
        return np.asarray(first * second)

    def _constant(
        self, node: onnx.NodeProto, place: int, value: NDArray[np.floating], kind: type[np.floating] | None = None
    ) -> _Edit:
        """Return the change that lets this node alone read a new constant: equal ones are shared in a graph."""
        before = self.graph.constants.get(node.input[place])
        dtype = before.dtype if before is not None else np.dtype(kind or np.float32)

        def edit() -> None:
            node.input[place] = self.graph.add_constant("softened", np.asarray(value).astype(dtype))

        return edit


def _insert_scaling(graph: Graph, model: onnx.ModelProto, head: ClassifierHead, scaling: LogitScaling) -> None:
    """Put a multiplication and an addition behind the logits."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output, *inferred.input)}
    kind = kinds.get(head.logits)
    element = kind.elem_type if kind is not None else onnx.TensorProto.FLOAT
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element) if element else np.dtype(np.float32)
    if dtype.kind != "f":
        raise CandidateError(
            f"output {head.output!r} is {dtype}, not floats",
            remedy="Soften the graph before its answers are chosen.",
        )
    view = _view(graph, head, scaling.scale.size)
    source, target = head.logits, ""
    if head.activation is None:
        source, target = graph.unique_name("logits"), head.logits
        producer = graph.producers()[target]
        producer.output[list(producer.output).index(target)] = source
        graph.replace_reads(target, source, graph.nodes)
    scale = graph.add_constant("scale", scaling.scale.reshape(view).astype(dtype))
    shift = graph.add_constant("shift", scaling.bias.reshape(view).astype(dtype))
    if scaling.bias.any():
        scaled = graph.make_node("Mul", [source, scale])
        result = graph.make_node("Add", [scaled, shift], [target] if target else None)
    else:
        result = graph.make_node("Mul", [source, scale], [target] if target else None)
    if head.activation is not None:
        head.activation.input[0] = result


def _view(graph: Graph, head: ClassifierHead, classes: int) -> tuple[int, ...]:
    """Return the shape in which one number per class meets the logits."""
    if classes == 1:
        return ()
    shape = graph.shapes.get(head.logits, ())
    default = -1 if graph.opset >= 13 else 1
    ending = head.activation
    axis = attribute(ending, "axis", default) if ending is not None and ending.op_type != "Sigmoid" else None
    if axis is None:
        axes = [place for place, size in enumerate(shape) if place > 0 and size == classes]
        axis = axes[-1] if axes else -1
    if axis == -1 or axis == len(shape) - 1:
        return (classes,)
    if not shape or shape[axis] != classes:
        raise CandidateError(
            f"the {classes} classes lie on axis {axis} of {head.logits!r}, whose shape is {list(shape)}",
            remedy="Use a temperature, or export the model with known shapes.",
        )
    return (classes, *(1 for _ in shape[axis % len(shape) + 1 :]))
