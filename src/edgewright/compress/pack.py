"""Small integers packed tightly into a model file, unpacked by the runtime when it loads the model.

ONNX has types of 8 and 4 bit and nothing between, and onnxruntime computes in 8. A number of base B with n
digits fills an int64 if B**n < 2**63; so n from 9 to 39 gives weights of 7 down to 1.6 bit. The graph itself
unpacks them by division and remainder. All inputs of that are constants, so onnxruntime folds it when the
session is made: inference costs exactly what it costs with plain 8-bit weights, only the file is smaller.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgewright.compress.graph import Graph

__all__ = ["DIGITS", "bits_per_weight", "digits_for", "pack_integers", "peak_of"]

# Digits per 63-bit word that differ in the peak they allow; 8 is a plain byte per weight.
DIGITS = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 22, 27, 39)

# Weights that are unpacked together; each takes 16 bytes while the model is loaded.
_MOST_AT_ONCE = 1 << 17

# Below this many bytes saved, the nodes that unpack cost more than they save.
_LEAST_SAVING = 300


def peak_of(digits: int) -> int:
    """Return the largest integer p such that numbers -p..p fit `digits` times into 63 bits.

    >>> [peak_of(d) for d in (5, 8, 9, 10, 12, 15, 22, 39)]
    [3103, 127, 63, 38, 18, 8, 3, 1]
    """
    if digits == 8:  # a plain byte, not packed at all
        return 127
    return (int(2 ** (63 / digits) + 1e-9) - 1) // 2


def bits_per_weight(digits: int) -> float:
    """Return the storage of one weight."""
    return 64 / digits


def digits_for(peak: int) -> int:
    """Return the most digits per word for integers from -peak to peak."""
    return max(d for d in DIGITS if peak_of(d) >= peak)


def pack_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Pack the integer initializers whose values leave room; the answers stay bit for bit the same."""
    graph = Graph(model)
    pools: dict[int, list[str]] = {}
    for name, value in graph.constants.items():
        if (
            value.dtype in (np.int8, np.int16)
            and value.ndim >= 1
            and value.size >= 64
            and name not in graph.output_names
        ):
            digits = digits_for(max(1, int(np.abs(value.astype(np.int32)).max())))
            if digits != 8:
                pools.setdefault(digits, []).append(name)
    for digits, names in _divided(pools, graph):
        size = sum(graph.constants[name].size for name in names)
        plain = 1 if digits >= 8 else 2
        if size * (plain - bits_per_weight(digits) / 8) > _LEAST_SAVING + 60 * len(names):
            _pack_pool(graph, digits, names)
    return graph.model()


def _divided(pools: dict[int, list[str]], graph: Graph) -> Iterator[tuple[int, list[str]]]:
    """Yield the pools in pieces, so that unpacking needs little memory at once."""
    for digits, names in pools.items():
        piece: list[str] = []
        size = 0
        for name in names:
            if piece and size + graph.constants[name].size > _MOST_AT_ONCE:
                yield digits, piece
                piece, size = [], 0
            piece.append(name)
            size += graph.constants[name].size
        yield digits, piece


def _pack_pool(graph: Graph, digits: int, names: list[str]) -> None:
    peak = peak_of(digits)
    values: list[NDArray[Any]] = [graph.constants.pop(name) for name in names]
    flat = np.concatenate([value.reshape(-1) for value in values]).astype(np.int64) + peak
    padding = -flat.size % digits
    table = np.concatenate([flat, np.zeros(padding, np.int64)]).reshape(digits, -1)
    places = (2 * peak + 1) ** np.arange(digits, dtype=np.int64)[:, None]
    words = graph.constant("words", (table * places).sum(axis=0))
    shifted = graph.node("Div", [words, graph.constant("places", places)])
    digit = graph.node("Mod", [shifted, graph.constant("base", np.int64(2 * peak + 1))])
    signed = graph.node("Sub", [digit, graph.constant("peak", np.int64(peak))])
    small = graph.node("Cast", [signed], to=TensorProto.INT8 if peak <= 127 else TensorProto.INT16)
    line = graph.node("Reshape", [small, graph.constant("flat", np.array([-1]))])
    sizes = [value.size for value in values] + ([padding] if padding else [])
    if len(sizes) == 1:
        parts = [line]
    else:
        parts = [graph.fresh("part") for _ in sizes]
        graph.node("Split", [line, graph.constant("sizes", np.array(sizes))], parts, axis=0)
    for name, value, part in zip(names, values, parts, strict=False):
        graph.node("Reshape", [part, graph.constant("shape", np.array(value.shape))], [name])
