"""Whether a model names files outside of itself, read from its bytes: devices have no `onnx`.

A tensor with external data makes the runtime open a path that the model chooses, or read from a memory address that
it chooses. A model from the outside may do neither, so it is refused before a session sees it.
"""

from collections.abc import Iterator

from edgewright.contract.errors import ModelError

__all__ = ["external_locations", "external_tensors"]

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
_KEY, _VALUE = 1, 2  # of an entry of the external data
_MAX_DEPTH = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_tensors(content: bytes) -> list[str]:
    """Return the names of tensors whose values do not lie in the model itself.

    Raises:
        ModelError: The bytes are no ONNX model, or nested too deeply.
    """
    return [name for name, _ in _scanned(content)]


def external_locations(content: bytes) -> set[str]:
    """Return the paths, as the model writes them, of all files that its tensors lie in.

    Raises:
        ModelError: As `external_tensors`; or a tensor lies elsewhere and does not say where.
    """
    found: set[str] = set()
    for name, locations in _scanned(content):
        if not locations:
            raise ModelError(f"the model does not say where {name!r} lies", remedy="Save it with all data inside.")
        found |= locations
    return found


def _scanned(content: bytes) -> list[tuple[str, set[str]]]:
    try:
        return list(_external(memoryview(content), "model", 0))
    except (IndexError, ValueError, RecursionError) as error:
        raise ModelError(f"the model cannot be read: {error}", remedy="Publish it again.") from error


def _external(content: memoryview, kind: str, depth: int) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of each such tensor, and the locations that it gives."""
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    name, external, locations = "", False, set[str]()
    for number, value in _fields(content):
        if kind == "tensor":
            if number == _TENSOR_NAME and isinstance(value, memoryview):
                name = bytes(value).decode("utf-8", "replace")
            if number == _EXTERNAL_DATA and isinstance(value, memoryview):
                locations |= _locations(value)
            external |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
        elif number in _NESTED[kind] and isinstance(value, memoryview):
            yield from _external(value, _NESTED[kind][number], depth + 1)
    if external:
        yield name, locations


def _locations(entry: memoryview) -> set[str]:
    """Return all values of an entry that calls itself a location; readers differ in which of several they take."""
    fields = [(number, bytes(value)) for number, value in _fields(entry) if isinstance(value, memoryview)]
    if (_KEY, b"location") not in fields:
        return set()
    return {value.decode("utf-8", "replace") for number, value in fields if number == _VALUE}


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
