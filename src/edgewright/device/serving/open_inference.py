"""The Open Inference Protocol, version 2, over HTTP: bytes to a feed and answers to bytes. No sockets here.

Source: https://github.com/kserve/open-inference-protocol, with the binary tensor data extension of Triton
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

__all__ = ["decode_request", "encode_response", "model_metadata"]

_NUMPY_TYPE_BY_DATATYPE = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_DATATYPE_BY_NUMPY_TYPE = {dtype: name for name, dtype in _NUMPY_TYPE_BY_DATATYPE.items()}


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = {}


class _RequestedOutput(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(msgspec.Struct):
    """An inference request; what it does not name is ignored, as the protocol has it."""

    inputs: list[_Tensor]
    id: str = ""
    outputs: list[_RequestedOutput] | None = None
    parameters: dict[str, Any] = {}


def decode_request(body: bytes, json_length: int | None) -> tuple[InferenceRequest, dict[str, NDArray[Any]]]:
    """Return a request and its feed.

    Args:
        body: Of the HTTP request.
        json_length: Length of the JSON part where binary tensors follow, bytes; None if all is JSON.

    Raises:
        DataError: It is no request, or its tensors are not what it says.
    """
    length = len(body) if json_length is None else json_length
    if not 0 <= length <= len(body):
        raise _invalid_request(f"its JSON part of {length} bytes is longer than its body of {len(body)}")
    try:
        request = msgspec.json.decode(body[:length], type=InferenceRequest)
    except msgspec.MsgspecError as error:
        raise _invalid_request(str(error)) from error
    rest = memoryview(body)[length:]
    feed: dict[str, NDArray[Any]] = {}
    for tensor in request.inputs:
        if tensor.name in feed:
            raise _invalid_request(f"input {tensor.name!r} comes twice")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            feed[tensor.name] = _from_json(tensor)
            continue
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise _invalid_request(f"input {tensor.name!r} says that it has {size} bytes, {len(rest)} are there")
        feed[tensor.name] = _from_bytes(tensor, rest[:size])
        rest = rest[size:]
    if len(rest):
        raise _invalid_request(f"{len(rest)} bytes follow its tensors")
    return request, feed


def encode_response(
    request: InferenceRequest, model: str, version: str, outputs: Mapping[str, NDArray[Any]]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON part if binary tensors follow.

    Raises:
        DataError: The request names an output that the model lacks.
    """
    usually = bool(request.parameters.get("binary_data_output", False))
    wanted = [_RequestedOutput(name) for name in outputs] if request.outputs is None else request.outputs
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for entry in wanted:
        if entry.name not in outputs:
            raise DataError(f"the model has no output {entry.name!r}", remedy=f"It has {', '.join(outputs)}.")
        array = np.ascontiguousarray(outputs[entry.name])
        tensor: dict[str, Any] = {
            "name": entry.name,
            "datatype": _DATATYPE_BY_NUMPY_TYPE[str(array.dtype)],
            "shape": list(array.shape),
        }
        if entry.parameters.get("binary_data", usually):
            parts.append(array.tobytes())
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = array.reshape(-1).tolist()
        described.append(tensor)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id:
        answer["id"] = request.id
    head = json.dumps(answer, allow_nan=False).encode()
    return b"".join([head, *parts]), len(head) if parts else None


def model_metadata(model: str, version: str, contract: ModelSignature) -> dict[str, Any]:
    """Return what the protocol tells of a model."""
    return {
        "name": model,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor_metadata(spec) for spec in contract.inputs],
        "outputs": [_tensor_metadata(spec) for spec in contract.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": _DATATYPE_BY_NUMPY_TYPE.get(spec.dtype, "BYTES"), "shape": shape}


def _from_json(tensor: _Tensor) -> NDArray[Any]:
    dtype = _dtype(tensor)
    try:
        array = np.array(tensor.data, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise _invalid_request(f"input {tensor.name!r} holds no {tensor.datatype}: {error}") from error
    return _reshape(tensor, array.reshape(-1))


def _from_bytes(tensor: _Tensor, content: memoryview) -> NDArray[Any]:
    dtype = _dtype(tensor)
    if len(content) % dtype.itemsize:
        raise _invalid_request(f"input {tensor.name!r} has {len(content)} bytes, no multiple of {dtype.itemsize}")
    return _reshape(tensor, np.frombuffer(content, dtype))


def _dtype(tensor: _Tensor) -> np.dtype[Any]:
    if tensor.datatype not in _NUMPY_TYPE_BY_DATATYPE:
        raise _invalid_request(f"input {tensor.name!r} is of type {tensor.datatype!r}")
    return np.dtype(_NUMPY_TYPE_BY_DATATYPE[tensor.datatype])


def _reshape(tensor: _Tensor, values: NDArray[Any]) -> NDArray[Any]:
    if any(size < 0 for size in tensor.shape) or math.prod(tensor.shape) != values.size:
        raise _invalid_request(f"input {tensor.name!r} has {values.size} values, its shape is {tensor.shape}")
    return values.reshape(tensor.shape)


def _invalid_request(reason: str) -> DataError:
    return DataError(f"the request cannot be read: {reason}", remedy="See the Open Inference Protocol, version 2.")
