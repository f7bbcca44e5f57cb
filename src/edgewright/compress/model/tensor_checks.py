"""What a graph's tensors declare, held against what is there: sizes and values."""

import math
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgewright.contract.errors import ModelError

__all__ = ["MAX_TENSOR_BYTES", "check_graph_sizes", "check_stored_sizes", "check_weights", "every_tensor"]

MAX_TENSOR_BYTES = 2**30  # far beyond any edge device; below what would stop this machine

_PACKED_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.items()
    if hasattr(onnx.TensorProto, name)
}
# Operators for which an infinite constant is a limit or a fill value, not a broken weight.
_LIMITING = {"Clip", "Where", "Max", "Min", "Pad", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"}


def every_graph(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the main graph, the functions, and every subgraph inside them."""
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def every_tensor(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initializers, sparse ones, and attributes such as a Constant's value."""
    for graph in every_graph(proto):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield sparse.values
                yield sparse.indices
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield attribute.sparse_tensor.values
                    yield attribute.sparse_tensor.indices


def declared_bytes(dims: list[int], data_type: int) -> int:
    """Return how many bytes a tensor of these sizes needs; sub-byte types are packed."""
    bits = _PACKED_BITS.get(data_type) or onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize * 8
    return math.ceil(math.prod(dims) * bits / 8)


def check_stored_sizes(proto: onnx.ModelProto, file: str) -> None:
    """Refuse tensors that declare more, or less, than the file holds.

    Raises:
        ModelError: Names the tensor, the bytes declared and the bytes present.
    """
    for tensor in every_tensor(proto):
        if tensor.data_type == onnx.TensorProto.STRING:
            continue
        if tensor.data_type == onnx.TensorProto.UNDEFINED or tensor.data_type not in _known_types():
            raise ModelError(
                f"{file}: tensor {tensor.name!r} has the unknown data type {tensor.data_type}",
                remedy="Export or download the model again.",
            )
        if any(size < 0 for size in tensor.dims):
            raise ModelError(
                f"{file}: tensor {tensor.name!r} has the shape {list(tensor.dims)}",
                remedy="Export the model again.",
            )
        declared = declared_bytes(list(tensor.dims), tensor.data_type)
        if tensor.HasField("raw_data"):
            present, complete = len(tensor.raw_data), len(tensor.raw_data) == declared
        else:
            field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
            entries = len(getattr(tensor, field))
            needed = _entries(math.prod(tensor.dims), tensor.data_type)
            present, complete = declared * entries // max(needed, 1), entries == needed
        if not complete:
            raise ModelError(
                f"{file}: tensor {tensor.name!r} declares {declared} bytes (shape {list(tensor.dims)}), "
                f"the file holds {present} for it",
                remedy="The file is damaged or made to exhaust memory; get it from its source again.",
            )
    for graph in every_graph(proto):
        for sparse in graph.sparse_initializer if isinstance(graph, onnx.GraphProto) else ():
            dense = declared_bytes(list(sparse.dims), sparse.values.data_type)
            if dense > MAX_TENSOR_BYTES:
                raise _too_large(file, sparse.values.name, list(sparse.dims), dense)


def check_graph_sizes(proto: onnx.ModelProto, file: str) -> onnx.ModelProto:
    """Infer shapes and refuse a graph that makes a huge tensor out of a small file.

    Returns:
        The model with the shapes that could be inferred.

    Raises:
        ModelError: A tensor of known shape is larger than `MAX_TENSOR_BYTES`.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{file}: shapes contradict each other: {reason}", remedy="Export the model again."
        ) from error
    for graph in every_graph(inferred):
        for value in (*graph.value_info, *(graph.output if isinstance(graph, onnx.GraphProto) else ())):
            tensor = value.type.tensor_type
            dims = [axis.dim_value for axis in tensor.shape.dim]
            if not tensor.HasField("shape") or tensor.elem_type not in _known_types() or min(dims, default=1) <= 0:
                continue
            size_bytes = declared_bytes(dims, tensor.elem_type)
            if size_bytes > MAX_TENSOR_BYTES:
                raise _too_large(file, value.name, dims, size_bytes)
    return inferred


def check_weights(proto: onnx.ModelProto, file: str) -> None:
    """Refuse NaN anywhere, and infinity except in masks and limits.

    Raises:
        ModelError: Names the tensor.
    """
    for graph in every_graph(proto):
        consumers: dict[str, set[str]] = {}
        for node in graph.node:
            for name in node.input:
                consumers.setdefault(name, set()).add(node.op_type)
        stored = [(tensor.name, tensor) for tensor in getattr(graph, "initializer", ())]
        stored += [(s.values.name, s.values) for s in getattr(graph, "sparse_initializer", ())]
        stored += [
            (node.output[0], attribute.t)
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.HasField("t")
        ]
        for name, tensor in stored:
            _check_values(name, tensor, consumers.get(name, set()), file)


def _check_values(name: str, tensor: onnx.TensorProto, consumers: set[str], file: str) -> None:
    if tensor.data_type not in _float_types():
        return
    values: NDArray[np.floating] = numpy_helper.to_array(tensor).astype(np.float32, copy=False)
    if tensor.data_type == onnx.TensorProto.DOUBLE:
        values = numpy_helper.to_array(tensor)
    if np.isfinite(values).all():
        return
    nans = int(np.isnan(values).sum())
    is_mask = not nans and bool(((values == 0) | np.isneginf(values)).all())
    if not nans and (consumers <= _LIMITING or (is_mask and consumers <= _LIMITING | {"Add"})):
        return
    raise ModelError(
        f"{file}: tensor {name!r} holds {nans} NaN and {int(np.isinf(values).sum())} infinite values",
        remedy="Training diverged or the export failed: take an earlier checkpoint.",
    )


def _known_types() -> set[int]:
    return set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING}


def _float_types() -> set[int]:
    return {number for name, number in onnx.TensorProto.DataType.items() if "FLOAT" in name or name == "DOUBLE"}


def _entries(count: int, data_type: int) -> int:
    """Return how many entries of its typed field a tensor of `count` elements has."""
    if data_type in _PACKED_BITS:
        return math.ceil(count * _PACKED_BITS[data_type] / 8)
    if data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * count
    return count


def _too_large(file: str, name: str, dims: list[int], size_bytes: int) -> ModelError:
    return ModelError(
        f"{file}: tensor {name!r} of shape {dims} would take {size_bytes} bytes, the limit is {MAX_TENSOR_BYTES}",
        remedy="The file is damaged or made to exhaust memory; no edge device could run it.",
    )
