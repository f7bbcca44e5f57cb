"""Magnitude pruning of single weights: freely, or N of every M.

onnxruntime computes zeros like any number, so sparsity gains no speed on its own; it shows in the size of the
file under compression (and in what the update that carries the model weighs).
"""

import zlib

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph
from edgewright.compress.model.layers import layer_weights
from edgewright.contract.errors import CandidateError

__all__ = ["MagnitudePruning", "compressed_size", "prune_by_magnitude"]


class MagnitudePruning(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="sparsify"):
    """Set the smallest weights to zero.

    Attributes:
        fraction: Of each layer's weights to drop, in [0, 1); ignored with a pattern.
        pattern: (n, m) keeps the n largest of every m along the input axis, e.g. (2, 4).
        dense_layers: Layers that are left alone.
    """

    fraction: float = 0.5
    pattern: tuple[int, int] | None = None
    dense_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse fractions and patterns that keep nothing or everything."""
        if self.pattern is None and not 0 < self.fraction < 1:
            raise CandidateError(f"sparsity {self.fraction} is not between 0 and 1", remedy="Use 0.5, say.")
        if self.pattern is not None and not 0 < self.pattern[0] < self.pattern[1]:
            raise CandidateError(f"pattern {self.pattern} keeps nothing or all", remedy="Use (2, 4), say.")


def prune_by_magnitude(model: onnx.ModelProto, step: MagnitudePruning) -> onnx.ModelProto:
    """Return the model with the smallest weights of each layer at zero."""
    graph = Graph(model)
    for weight in layer_weights(graph):
        if weight.layer in step.dense_layers:
            continue
        values = graph.constants[weight.tensor]
        if step.pattern is None:
            graph.constants[weight.tensor] = _drop_fraction(values, step.fraction)
        elif weight.input_axis is not None:
            graph.constants[weight.tensor] = _drop_pattern(values, weight.input_axis, *step.pattern)
    return graph.to_model()


def compressed_size(model: onnx.ModelProto | bytes) -> int:
    """Return the size in bytes under zlib's strongest compression, as a download or a flash image would hold it."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return len(zlib.compress(content, 9))


def _drop_fraction(values: NDArray[np.float32], fraction: float) -> NDArray[np.float32]:
    magnitudes = np.abs(values).reshape(-1)
    drop = int(fraction * magnitudes.size)
    result = values.copy().reshape(-1)
    result[np.argpartition(magnitudes, drop)[:drop]] = 0
    return result.reshape(values.shape)


def _drop_pattern(values: NDArray[np.float32], axis: int, keep: int, of: int) -> NDArray[np.float32]:
    moved = np.moveaxis(values, axis, -1)
    whole = moved.shape[-1] // of * of
    if not whole:
        return values
    groups = moved[..., :whole].reshape(*moved.shape[:-1], -1, of)
    order = np.argsort(np.abs(groups), axis=-1)
    kept = groups.copy()
    np.put_along_axis(kept, order[..., : of - keep], 0, axis=-1)
    result = moved.copy()
    result[..., :whole] = kept.reshape(*moved.shape[:-1], whole)
    return np.ascontiguousarray(np.moveaxis(result, -1, axis))
