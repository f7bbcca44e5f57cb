"""Preprocessing in the graph: raw samples go in, and an 8-bit model sees no float before its first layer.

Raw samples keep their type. Resizing and moving channels is done on the raw type. What remains is `y = a x + b` per
channel:

- where the samples are bytes and `y = 0` falls on a byte (or no padding can tell), the first convolution reads
  the bytes themselves: their step and zero point are those of a quantised tensor, the rest goes into weights;
- otherwise the float graph computes `a x + b`, and static quantisation replaces that by whole-number arithmetic.
"""

from dataclasses import replace

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.model.graph import Graph, attribute, raise_opset
from edgewright.contract.errors import CandidateError, DataError
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.model.signature import ModelSignature

__all__ = ["FoldPreprocess", "fold_preprocess", "integer_affine", "raw_contract", "raw_dataset"]

_TYPES = {"uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "float32": TensorProto.FLOAT}
_SHIFT = "fold/whole numbers"
# The operator set whose Resize knows antialiasing and axes.
_RESIZE_OPSET = 18
# How far from a whole number a zero point may lie to count as one.
_WHOLE = 1e-3


class FoldPreprocess(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="fold preprocessing"
):
    """Let the model take raw samples.

    Attributes:
        preprocess: What is done to a raw sample; with a `size`, images of any size go in.
    """

    preprocess: Preprocess


def raw_dataset(dataset: Dataset) -> Dataset:
    """Return the samples as they were before preprocessing, which is exact for samples of whole numbers.

    Raises:
        DataError: The dataset was not preprocessed.
    """
    steps = dataset.preprocess
    if steps is None:
        raise DataError(
            "there is no preprocessing to fold: none was stated or found out",
            remedy="State it in the project file under [preprocess].",
        )
    name, array = next(iter(dataset.inputs.items()))
    values = array[:, 0] if array.ndim > 2 else array
    if steps.layout == "NCHW":
        values = np.moveaxis(values, 1, -1)
    values = values.astype(np.float64)
    values = values * np.array(steps.std or (1.0,)) + np.array(steps.mean or (0.0,))
    values = values / steps.scale
    if steps.colour == "BGR":
        values = values[..., ::-1]
    raw = values.astype(np.float32)
    if steps.dtype != "float32":
        limits = np.iinfo(steps.dtype)
        raw = np.clip(np.rint(values), limits.min, limits.max).astype(steps.dtype)
    if array.ndim > 2:
        raw = raw[:, None]
    return replace(dataset, inputs={**dataset.inputs, name: raw})


def raw_contract(contract: ModelSignature, step: FoldPreprocess) -> ModelSignature:
    """Return the contract of the model that takes raw samples."""
    spec = contract.inputs[0]
    shape = spec.shape
    if step.preprocess.layout == "NCHW":
        shape = (shape[0], *shape[2:], shape[1])
    if step.preprocess.size is not None and len(shape) == 4:
        shape = (shape[0], "height", "width", shape[3])
    raw = msgspec.structs.replace(spec, dtype=step.preprocess.dtype, shape=shape)
    return msgspec.structs.replace(contract, inputs=(raw, *contract.inputs[1:]))


def fold_preprocess(model: onnx.ModelProto, step: FoldPreprocess) -> onnx.ModelProto:
    """Return the model with its first input taking raw samples.

    Raises:
        CandidateError: The input's shape is unknown.
    """
    steps = step.preprocess
    graph = Graph(model if steps.size is None else raise_opset(model, _RESIZE_OPSET))
    name = graph.input_names[0]
    readers = graph.consumers().get(name, [])
    value = next(v for v in model.graph.input if v.name == name)
    rank = len(value.type.tensor_type.shape.dim)
    if rank < 2:
        raise CandidateError(f"input {name!r} has rank {rank}", remedy="Preprocess before the model.")
    channel = 1 if steps.layout == "NCHW" else rank - 1
    current = name
    if steps.size is not None:
        if graph.opset < _RESIZE_OPSET or rank != 4:
            raise CandidateError(
                f"input {name!r} of rank {rank} at operator set {graph.opset} cannot be resized in the graph",
                remedy="Leave size out of [preprocess] and resize before the model.",
            )
        # With antialiasing, as Pillow's bilinear filter shrinks images.
        current = graph.make_node(
            "Resize",
            [current, "", "", graph.add_constant("size", np.array(steps.size))],
            mode="linear",
            antialias=1,
            axes=[1, 2],
            coordinate_transformation_mode="half_pixel",
        )
    if steps.layout == "NCHW":
        current = graph.make_node("Transpose", [current], perm=[0, rank - 1, *range(1, rank - 1)])
    if steps.colour == "BGR":
        reverse = [np.array([bound]) for bound in (-1, np.iinfo(np.int64).min + 1, channel, -1)]
        current = graph.make_node("Slice", [current, *(graph.add_constant("reverse", bound) for bound in reverse)])
    factor = np.float64(steps.scale) / np.array(steps.std or (1.0,))
    offset = -np.array(steps.mean or (0.0,)) / np.array(steps.std or (1.0,))
    factor, offset = np.broadcast_arrays(factor, offset)
    result = _into_weights(graph, current, readers, factor, offset) if steps.dtype == "uint8" else None
    if result is None:
        view = [1] * rank
        view[channel] = -1
        result = _arithmetic(
            graph, current, factor.reshape(view), offset.reshape(view), whole=steps.dtype != "float32"
        )
    graph.replace_reads(name, result, readers)
    built = graph.to_model()
    _retype(built, name, steps, rank)
    return built


def _into_weights(
    graph: Graph, raw: str, readers: list[onnx.NodeProto], factor: NDArray[np.float64], offset: NDArray[np.float64]
) -> str | None:
    """Let the first convolutions read bytes; None where that would not be exact."""
    if not readers or any(node.op_type != "Conv" or node.input[1] not in graph.constants for node in readers):
        return None
    if any(attribute(node, "group", 1) != 1 for node in readers):
        return None
    zeros = -offset / factor
    zero = float(np.clip(np.rint(zeros.mean()), 0, 255))
    padded = any(
        any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        for node in readers
    )
    if padded and np.abs(zeros - zero).max() > _WHOLE:
        return None
    step = float(np.abs(factor).max())
    channels = graph.constants[readers[0].input[1]].shape[1]
    if len(factor) not in (1, channels):
        return None
    for node in readers:
        weight = graph.constants[node.input[1]].astype(np.float64)
        view = (1, -1) + (1,) * (weight.ndim - 2)
        rest = (factor * zero + offset).reshape(view)
        shift = (weight * rest).reshape(len(weight), -1).sum(axis=1)
        bias = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(len(weight))
        node.input[1] = graph.add_constant("folded", (weight * (factor / step).reshape(view)).astype(np.float32))
        del node.input[2:]
        node.input.append(graph.add_constant("folded_bias", (bias + shift).astype(np.float32)))
    parameters = [graph.add_constant("step", np.float32(step)), graph.add_constant("zero", np.uint8(zero))]
    return graph.make_node("DequantizeLinear", [raw, *parameters])


def _arithmetic(
    graph: Graph, raw: str, factor: NDArray[np.float64], offset: NDArray[np.float64], *, whole: bool
) -> str:
    floats = graph.make_node("Cast", [raw], to=TensorProto.FLOAT)
    scaled = graph.make_node("Mul", [floats, graph.add_constant("factor", factor.astype(np.float32))])
    shifted = graph.make_node("Add", [scaled, graph.add_constant("offset", offset.astype(np.float32))])
    if whole:  # by this name `integer_affine` knows its own
        graph.nodes[-1].name = _SHIFT
    return shifted


def integer_affine(graph: Graph, name: str, step: float, zero: int) -> str | None:
    """Return the bytes of `name` from raw samples by whole-number arithmetic; None if it isn't folded.

    `q = (m x + c) / 2**s` with m, c and s chosen so that every product fits 32 bits; the result differs from
    rounding `(a x + b) / step + zero` by at most one.

    Args:
        graph: Being built.
        name: A tensor, perhaps the end of the arithmetic that `fold_preprocess` wrote.
        step: Of the bytes, the model's unit per integer.
        zero: Zero point of the bytes, 0 to 255.
    """
    producers = graph.producers()
    shift = producers.get(name)
    if shift is None or shift.name != _SHIFT:
        return None
    scale = producers[shift.input[0]]
    cast = producers[scale.input[0]]
    slope = graph.constants[scale.input[1]].astype(np.float64) / step
    start = graph.constants[shift.input[1]].astype(np.float64) / step + zero
    # |m x| stays under 2**29 for 16-bit samples, and |c| under 2**30.
    bits = int(
        min(np.floor(14 - np.log2(np.abs(slope).max())), np.floor(30 - np.log2(np.abs(start).max() + 1)), 24)
    )
    if bits < 1:
        return None
    factor = graph.add_constant("multiplier", np.rint(slope * 2**bits).astype(np.int32))
    offset = graph.add_constant("addend", np.rint(start * 2**bits + 2 ** (bits - 1)).astype(np.int32))
    whole = graph.make_node("Cast", [cast.input[0]], to=TensorProto.INT32)
    product = graph.make_node("Add", [graph.make_node("Mul", [whole, factor]), offset])
    positive = graph.make_node("Max", [product, graph.add_constant("least", np.int32(0))])
    divided = graph.make_node("Div", [positive, graph.add_constant("divisor", np.int32(2**bits))])
    clipped = graph.make_node("Min", [divided, graph.add_constant("most", np.int32(255))])
    return graph.make_node("Cast", [clipped], to=TensorProto.UINT8)


def _retype(model: onnx.ModelProto, name: str, steps: Preprocess, rank: int) -> None:
    """Declare the raw samples' type and layout."""
    tensor = next(v for v in model.graph.input if v.name == name).type.tensor_type
    tensor.elem_type = _TYPES[steps.dtype]
    if steps.layout == "NCHW":
        sizes = list(tensor.shape.dim)
        copies = [onnx.TensorShapeProto.Dimension() for _ in sizes]
        for copy, source in zip(copies, [sizes[0], *sizes[2:], sizes[1]], strict=True):
            copy.CopyFrom(source)
        del tensor.shape.dim[:]
        tensor.shape.dim.extend(copies)
    if steps.size is not None:
        for axis, free in ((1, "height"), (2, "width")):
            tensor.shape.dim[axis].dim_param = free
    assert len(tensor.shape.dim) == rank  # noqa: S101 - a permutation keeps the rank
