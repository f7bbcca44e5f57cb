"""Small integers packed tightly into a model file, unpacked by the runtime when it loads the model.

ONNX has types of 8 and 4 bit and nothing between, and onnxruntime computes in 8. A number of base B with n
digits fits an int32 if B**n <= 2**31; so n from 2 to 19 gives weights of 16 down to 1.7 bit. The graph itself
unpacks them by division, remainder and a table. All inputs of that are constants, so onnxruntime folds it
when the session is made: inference costs exactly what it costs with plain 8-bit weights, only the file is
smaller. Loading takes about 12 bytes per weight for a moment.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgewright.compress.model.graph import MIN_WORKING_OPSET, Graph

__all__ = ["PACKED_DIGITS", "bits_per_weight", "digits_per_word", "max_packed_integer", "pack_integers"]

# Digits per word that differ in the peak they allow; 4 stands for a plain byte per weight, not packed at all.
PACKED_DIGITS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 19)
_BYTE_DIGITS = 4
_WORD_BITS = 31  # words are never negative

# Below this many bytes saved, the nodes that unpack cost more than they save.
_MIN_SAVING = 500
_MIN_ELEMENTS = 64


def max_packed_integer(digits: int) -> int:
    """Return the largest integer p such that numbers -p..p fit `digits` times into a word.

    >>> [max_packed_integer(d) for d in PACKED_DIGITS]
    [23169, 644, 127, 36, 17, 10, 6, 4, 3, 2, 1]
    """
    if digits == _BYTE_DIGITS:
        return 127
    return (int(2 ** (_WORD_BITS / digits) + 1e-9) - 1) // 2


def bits_per_weight(digits: int) -> float:
    """Return the storage of one weight."""
    return 32 / digits


def digits_per_word(peak: int) -> int:
    """Return the most digits per word for integers from -peak to peak."""
    return max(d for d in PACKED_DIGITS if max_packed_integer(d) >= peak)


def pack_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Pack the integer initializers whose values leave room; the answers stay bit for bit the same."""
    graph = Graph(model)
    if graph.opset < MIN_WORKING_OPSET:
        return model  # no remainder, no split by sizes that are inputs
    pools: dict[tuple[str, int, int], list[str]] = {}
    for name, value in graph.constants.items():
        if value.dtype in (np.int8, np.uint8, np.int16) and value.size >= _MIN_ELEMENTS and value.ndim:
            if name in graph.output_names:
                continue
            low, base = _span(value)
            digits = _max_digits(base)
            if digits * value.dtype.itemsize > 4:  # more per word than plain storage has
                pools.setdefault((str(value.dtype), digits, low), []).append(name)
    for (_kind, digits, low), names in pools.items():
        size = sum(graph.constants[name].nbytes for name in names)
        count = sum(graph.constants[name].size for name in names)
        if size - 4 * count / digits > _MIN_SAVING + 60 * len(names):
            _pack_pool(graph, digits, low, names)
    return graph.to_model()


def _span(value: NDArray[Any]) -> tuple[int, int]:
    """Return the least value and the number of values up to the greatest; signed weights span both signs alike."""
    low, high = int(value.min()), int(value.max())
    if value.dtype != np.uint8 and max(-low, high) <= max_packed_integer(PACKED_DIGITS[0]):
        peak = max_packed_integer(digits_per_word(max(-low, high, 1)))
        return -peak, 2 * peak + 1
    return low, high - low + 1


def _max_digits(base: int) -> int:
    return int(np.floor(_WORD_BITS / np.log2(max(base, 2)) + 1e-12))


def _pack_pool(graph: Graph, digits: int, low: int, names: list[str]) -> None:
    values: list[NDArray[Any]] = [graph.constants.pop(name) for name in names]
    flat = np.concatenate([value.reshape(-1) for value in values]).astype(np.int64) - low
    base = int(2 ** (_WORD_BITS / digits) + 1e-9)
    padding = -flat.size % digits
    rows = np.concatenate([flat, np.zeros(padding, np.int64)]).reshape(digits, -1)
    places = base ** np.arange(digits, dtype=np.int64)[:, None]
    words = graph.add_constant("words", (rows * places).sum(axis=0).astype(np.int32))
    shifted = graph.make_node("Div", [words, graph.add_constant("places", places.astype(np.int32))])
    digit = graph.make_node("Mod", [shifted, graph.add_constant("base", np.int32(base))])
    if values[0].dtype == np.int16:  # a table of them would be longer than many a weight
        whole = graph.make_node("Add", [digit, graph.add_constant("least", np.int32(low))])
        integers = graph.make_node("Cast", [whole], to=TensorProto.INT16)
    else:
        table = (np.arange(int(flat.max()) + 1) + low).astype(values[0].dtype)
        integers = graph.make_node("Gather", [graph.add_constant("table", table), digit])
    line = graph.make_node("Reshape", [integers, graph.add_constant("flat", np.array([-1]))])
    sizes = [value.size for value in values] + ([padding] if padding else [])
    if len(sizes) == 1:
        parts = [line]
    else:
        parts = [graph.unique_name("part") for _ in sizes]
        graph.make_node("Split", [line, graph.add_constant("sizes", np.array(sizes))], parts, axis=0)
    for name, value, part in zip(names, values, parts, strict=False):
        graph.make_node("Reshape", [part, graph.add_constant("shape", np.array(value.shape))], [name])
