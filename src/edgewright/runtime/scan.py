"""Whether a model names files outside of itself, read from its bytes: devices have no `onnx`.

A tensor with external data makes the runtime open a path that the model chooses, or read from a memory address that
it chooses. A model from the outside may do neither, so it is refused before a session sees it.
"""

from collections.abc import Iterator

from edgewright.contract.errors import ModelError

__all__ = ["external_tensors"]

# Field numbers of onnx.proto3, and what lies in them.
_MODEL = {7: "graph", 20: "training", 25: "function"}
_NESTED: dict[str, dict[int, str]] = {
    "model": _MODEL,
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_DEEPEST = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_tensors(content: bytes) -> list[str]:
    """Return the names of tensors whose values do not lie in the model itself.

    Raises:
        ModelError: The bytes are no ONNX model, or nested too deeply.
    """
    try:
        return list(_external(memoryview(content), "model", 0))
    except (IndexError, ValueError, RecursionError) as error:
        raise ModelError(f"the model cannot be read: {error}", remedy="Publish it again.") from error


def _external(content: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    name, external = "", False
    for number, value in _fields(content):
        if kind == "tensor":
            if number == _TENSOR_NAME and isinstance(value, memoryview):
                name = bytes(value).decode("utf-8", "replace")
            external |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
        elif number in _NESTED[kind] and isinstance(value, memoryview):
            yield from _external(value, _NESTED[kind][number], depth + 1)
    if external:
        yield name


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a protobuf message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:  # others could read the rest of such a number as another field
            raise ValueError(f"there is no field {number}")
        value: int | memoryview
        if wire == _VARINT:
            value, at = _varint(content, at)
        elif wire == _BYTES:
            size, at = _varint(content, at)
            value, at = content[at : at + size], at + size
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
            value = 0
        else:
            raise ValueError(f"there is no wire type {wire}")
        if at > len(content):
            raise ValueError("it is cut off")
        yield number, value


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")
