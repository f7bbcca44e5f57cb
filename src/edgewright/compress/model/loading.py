"""A model file, read and judged before anything runs it.

A file from outside may be broken or hostile. These rules hold once `read_model` has returned:

- every byte that a tensor declares is present, in the file or in a file of the model's own folder;
- no tensor of known shape, stored or computed, is larger than `MAX_TENSOR_BYTES`;
- no weight is NaN, and infinity stands only where graphs use it on purpose (masks and limits);
- the ONNX checker accepts the graph and the installed runtime implements every operator.

Reading never executes code from the file: the graph is data, and custom operator libraries are not loaded.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from edgewright.compress.model.tensor_checks import (
    check_graph_sizes,
    check_stored_sizes,
    check_weights,
    every_tensor,
)
from edgewright.contract.errors import ModelError
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.runtime.options import RuntimeOptions, session_options

__all__ = ["MAX_FILE_BYTES", "MIN_OPSET", "LoadedModel", "read_model"]

MIN_OPSET = 7  # the oldest that onnxruntime guarantees
MAX_FILE_BYTES = 2 * 2**30 - 1  # where protobuf ends
_EXPORT_AGAIN = "Export or download the model again."


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that has passed every check of `read_model`.

    Attributes:
        path: Where it was read from.
        proto: The graph, external data loaded into it. Copy it before changing it.
        contract: Its inputs (without initializers, which old files list as inputs too) and outputs.
        opset: Version of the standard operator set.
        size_bytes: Of the file and its external data files together.
        sha256: Of the same bytes, hex; external files follow in the order of their names.
    """

    path: Path
    proto: onnx.ModelProto
    contract: ModelSignature
    opset: int
    size_bytes: int
    sha256: str


def read_model(path: Path) -> LoadedModel:
    """Read a model and refuse whatever could not be compressed or run.

    Raises:
        ModelError: Missing, unreadable or truncated file, missing or escaping external data, a tensor whose
            declared size is not backed by bytes, NaN weights, an invalid graph, an operator or operator set
            that the runtime lacks.
    """
    data = _read_bytes(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{path} is truncated or not an ONNX model", remedy=_EXPORT_AGAIN) from error
    if not proto.graph.node:
        raise ModelError(f"{path} holds no ONNX graph, or an empty one", remedy=_EXPORT_AGAIN)
    opset = _standard_opset(proto, path)
    externals = _external_files(proto, path)
    digest, size_bytes = hashlib.sha256(data), len(data)
    for external in externals:
        with external.open("rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
        size_bytes += external.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise ModelError(
            f"{path} and its external data hold {size_bytes} bytes, the limit is 2 GiB", remedy=_TOO_LARGE_ADVICE
        )
    if externals:
        load_external_data_for_model(proto, str(path.parent))
    check_stored_sizes(proto, path.name)
    check_weights(proto, path.name)
    inferred = check_graph_sizes(proto, path.name)
    contract = _contract(proto, inferred, path)
    _check_graph(inferred, path)
    _check_runtime(proto, path)
    return LoadedModel(path, proto, contract, opset, size_bytes, digest.hexdigest())


_TOO_LARGE_ADVICE = "Edgewright compresses models for edge devices; split or shrink it first."


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"{path} is a folder", remedy="Name the .onnx file in it.")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelError(
                f"{path} holds {path.stat().st_size} bytes, the limit is 2 GiB", remedy=_TOO_LARGE_ADVICE
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", remedy="Check the path.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", remedy="Check its permissions.") from error
    if not data:
        raise ModelError(f"{path} is empty", remedy=_EXPORT_AGAIN)
    return data


def _standard_opset(proto: onnx.ModelProto, path: Path) -> int:
    versions: list[int] = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError(f"{path} names no version of the ONNX operator set", remedy=_EXPORT_AGAIN)
    if versions[0] < MIN_OPSET:
        raise ModelError(
            f"{path} uses operator set {versions[0]}, the oldest that the runtime guarantees is {MIN_OPSET}",
            remedy="Convert it with onnx.version_converter, or export it again with opset 17.",
        )
    return versions[0]


def _external_files(proto: onnx.ModelProto, path: Path) -> list[Path]:
    """Return the files that hold tensors, each inside the model's folder and long enough."""
    folder = path.parent.resolve()
    files: set[Path] = set()
    for tensor in every_tensor(proto):
        if not uses_external_data(tensor):
            continue
        try:
            info = ExternalDataInfo(tensor)
        except ValueError as error:
            raise ModelError(
                f"{path} describes the external data of {tensor.name!r} in a way that cannot be read: {error}",
                remedy=_EXPORT_AGAIN,
            ) from error
        location = (folder / info.location.replace("\0", "")).resolve()
        if not info.location or "\0" in info.location or not location.is_relative_to(folder):
            raise ModelError(
                f"{path} keeps tensor {tensor.name!r} in {info.location!r}, outside the model's own folder",
                remedy="Put the external data beside the model and save it again with a relative location.",
            )
        if not location.is_file():
            raise ModelError(
                f"{path} keeps tensor {tensor.name!r} in {info.location!r}, which is missing",
                remedy=f"Copy {info.location} into {path.parent}.",
            )
        end = (info.offset or 0) + (info.length or 0)
        if (info.offset or 0) < 0 or (info.length or 0) < 0 or end > location.stat().st_size:
            raise ModelError(
                f"{path} expects tensor {tensor.name!r} up to byte {end} of {info.location!r}, "
                f"which holds {location.stat().st_size}",
                remedy=f"{info.location} is truncated: copy it again.",
            )
        files.add(location)
    return sorted(files)


def _check_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Run the checker; it wants a shape on every output, which the runtime does without."""
    for output in proto.graph.output:
        output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason = str(error).strip()
        if unknown := re.search(r"No Op registered for (\S+) with domain_version of (\d+)", reason):
            raise _unknown_operator(path, unknown[1], "ai.onnx", f" at operator set {unknown[2]}") from error
        raise ModelError(
            f"{path} is not a valid ONNX graph: {reason.splitlines()[0]}", remedy="Export the model again."
        ) from error


def _check_runtime(proto: onnx.ModelProto, path: Path) -> None:
    """Create a session without optimisation, so that nothing is computed ahead of time."""
    options = session_options(RuntimeOptions(optimization="disable"))
    options.log_severity_level = 4
    try:
        # Without its fallback onnxruntime raises at once instead of printing to stdout and trying again.
        ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise _translated(str(error), path) from error


def _translated(reason: str, path: Path) -> ModelError:
    """Turn onnxruntime's message into one that names the operator, its domain and a way out."""
    if match := re.search(r"(\S+?):(\w+)\(-?\d*\) is not a registered function/op", reason):
        return _unknown_operator(path, match[2], match[1], "")
    if match := re.search(r"No Op registered for (\S+) with domain_version of (\d+)", reason):
        return _unknown_operator(path, match[1], "ai.onnx", f" at operator set {match[2]}")
    if match := re.search(r"Could not find an implementation for (?:(\S+)\.)?(\w+)\((\d+)\)", reason):
        return _unknown_operator(path, match[2], match[1] or "ai.onnx", f" in version {match[3]} for these types")
    if match := re.search(r"Opset (\d+) is under development.*domain (\S*) is till opset (\d+)", reason, re.DOTALL):
        return ModelError(
            f"{path} uses operator set {match[1]} of {match[2] or 'ai.onnx'}, the runtime knows up to {match[3]}",
            remedy=f"Export it with opset {match[3]} or lower, or install a newer onnxruntime.",
        )
    if match := re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", reason):
        return ModelError(
            f"{path} has ONNX file version {match[1]}, the runtime reads up to {match[2]}",
            remedy=f"Save it with ir_version = {match[2]}, or install a newer onnxruntime.",
        )
    first = reason.strip().splitlines()[0]
    return ModelError(
        f"onnxruntime {ort.__version__} cannot load {path}: {first}",
        remedy="Check that the model runs in onnxruntime by itself.",
    )


def _unknown_operator(path: Path, operator: str, domain: str, where: str) -> ModelError:
    return ModelError(
        f"{path} uses operator {operator} of domain {domain}, which onnxruntime {ort.__version__} lacks{where}",
        remedy="Export it without that operator, with another opset, or install a runtime that has it.",
    )


def _contract(proto: onnx.ModelProto, inferred: onnx.ModelProto, path: Path) -> ModelSignature:
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if not inputs:
        raise ModelError(f"{path} takes no input", remedy="A model without inputs always gives the same answer.")
    return ModelSignature(
        inputs=tuple(_tensor_spec(value, path, is_input=True) for value in inputs),
        outputs=tuple(_tensor_spec(value, path, is_input=False) for value in inferred.graph.output),
    )


def _tensor_spec(value: onnx.ValueInfoProto, path: Path, *, is_input: bool) -> TensorSpec:
    """Translate a graph input or output; an output of unknown rank gets the shape ("...",)."""
    role = "input" if is_input else "output"
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"{path}: {role} {value.name!r} is of kind {str(kind).removesuffix('_type')}; only tensors can be used",
            remedy="Export it with plain tensors (for scikit-learn models: options={'zipmap': False}).",
        )
    tensor = value.type.tensor_type
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    name = names.get(tensor.elem_type, "UNDEFINED")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if name != "UNDEFINED" else None
    if dtype is None or dtype.kind not in "biuf":
        raise ModelError(
            f"{path} has the {role} {value.name!r} of type {name}, which numpy cannot hold",
            remedy="Use a float, integer or bool tensor there.",
        )
    if not tensor.HasField("shape"):
        if is_input:
            raise ModelError(
                f"{path} does not say which shape input {value.name!r} has",
                remedy="Export it with input shapes; free axes may be symbolic.",
            )
        return TensorSpec(value.name, dtype.name, ("...",))
    shape = tuple(
        axis.dim_value if axis.dim_value > 0 else axis.dim_param or f"{value.name}_axis{place}"
        for place, axis in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, dtype.name, shape)
