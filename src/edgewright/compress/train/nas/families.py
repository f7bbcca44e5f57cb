"""Which families of networks suit an input, which of their members to try, and how large those are."""

import itertools
import math
from collections.abc import Iterator

import onnx

from edgewright.compress.model.graph import Graph
from edgewright.compress.model.layers import multiply_accumulates
from edgewright.compress.train.data.modality import Form, Kind
from edgewright.compress.train.nas.architecture import Architecture, Family
from edgewright.compress.train.nas.graph_builder import draft, drawable
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import InputContract

__all__ = ["Architecture", "Family", "Kind", "families_for", "grid", "neighbours", "parameters", "work"]

_OVER_MAPS: tuple[Family, ...] = ("plain", "residual", "separable", "inverted", "patches")
_OVER_TIME: tuple[Family, ...] = ("plain1d", "residual1d", "separable1d", "temporal", "gru", "transformer")

# More steps than this make a recurrent network slow and hard to train.
_MOST_STEPS = 256
# More positions than this make a transformer slow.
_MOST_TOKENS = 256
# A network over rows longer than this would be mostly its first matrix.
_LONGEST_ROW = 4096


def families_for(kind: Kind, contract: InputContract) -> tuple[Family, ...]:
    """Return the families that can take the input and give the output, none if there is none.

    >>> from edgewright.contract.model.signature import TensorSpec
    >>> row, classes = TensorSpec("x", "float32", ("n", 20)), TensorSpec("y", "float32", ("n", 3))
    >>> families_for("table", InputContract((row,), (classes,)))
    ('mlp',)
    """
    try:
        source, target = drawable(contract)
    except CandidateError:
        return ()
    shape = tuple(int(size) for size in source.shape[1:])
    short = math.prod(shape) <= _LONGEST_ROW
    if sum(int(size) > 1 for size in target.shape[1:]) > 1 or (target.shape[1:] == shape and len(shape) > 1):
        return ("bottleneck",) if short else ()
    if target.shape[1:] == shape and shape[0] > 1:
        return ("bottleneck", "mlp") if short else ()
    if kind == "image" and len(shape) > 1:
        return _OVER_MAPS
    if kind == "spectrogram" and len(shape) > 1:
        return (*_OVER_MAPS, *_OVER_TIME)
    if kind == "series" or (kind in ("spectrogram", "image") and len(shape) == 1):
        return _OVER_TIME
    if kind == "other" and len(shape) > 1:
        return (*(_OVER_MAPS if len(shape) == 3 else _OVER_TIME), *(("mlp",) if short else ()))
    return ("mlp",) if short else _OVER_TIME


def grid(
    kind: Kind,
    contract: InputContract,
    *,
    families: tuple[Family, ...] | None = None,
    most_work: int | None = None,
    form: Form | None = None,
    most: int | None = None,
) -> list[Architecture]:
    """Return sensible members of the families, from small to large.

    Args:
        kind: What the input is.
        contract: Of the original model.
        families: Only these; all that suit if not given.
        most_work: Multiply-accumulates of one inference that a member may have at most.
        form: See `draft`.
        most: Members of each family, spread over its sizes; all if not given.
    """
    sized = []
    suited = families_for(kind, contract)
    for family in suited if families is None else [each for each in suited if each in families]:
        members = list(_members(family, contract))
        for architecture in members if most is None else _thinned(members, most):
            size = work(draft(architecture, contract, form=form))
            if most_work is None or size <= most_work:
                sized.append((size, architecture.title, architecture))
    return [architecture for _, _, architecture in sorted(sized, key=lambda entry: entry[:2])]


def _thinned(members: list[Architecture], count: int) -> list[Architecture]:
    """Return `count` members, evenly spread over those that there are."""
    places = range(count) if count < len(members) else ()
    return [members[(2 * i + 1) * len(members) // (2 * count)] for i in places] or members


def neighbours(architecture: Architecture) -> list[Architecture]:
    """Return the architectures one step smaller or larger in one dimension, for a local search."""
    return architecture.neighbours()


def parameters(model: onnx.ModelProto) -> int:
    """Return the number of floats that are stored: weights, biases, statistics."""
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)


def work(model: onnx.ModelProto) -> int:
    """Return the multiply-accumulates of one inference of a float model, all steps of recurrent layers counted."""
    graph = Graph(model)
    counts = multiply_accumulates(graph)
    total = 0
    for node in graph.nodes:
        steps = graph.shapes.get(node.input[0], (1,))[0] if node.op_type in ("GRU", "LSTM", "RNN") else 1
        total += counts.get(node.name, 0) * (steps or 1)
    return total


def _members(family: Family, contract: InputContract) -> Iterator[Architecture]:
    """Yield a few dozen combinations; those whose map would vanish are left out."""
    shape = tuple(int(size) for size in contract.inputs[0].shape[1:])
    if family in ("mlp", "bottleneck"):
        for width, depth in itertools.product((16, 32, 64, 128), (1, 2, 3)):
            if family == "mlp":
                yield Architecture(family, width=width, depth=depth)
            else:
                yield from (Architecture(family, width=width, depth=depth, expansion=e) for e in (1, 4))
        return
    # The longest way to go: a side of the image, or time.
    side = max(shape) if family in _OVER_TIME or len(shape) < 3 else sorted(shape)[-2]
    if family == "gru":
        steps = [r for r in (8, 4, 2, 1) if side / r <= _MOST_STEPS and side / r >= 4] or [16]
        yield from (Architecture(family, width=w, resolution=r) for w in (16, 32, 64) for r in steps[-3:])
        return
    if family in ("patches", "transformer"):
        sides = side if family == "transformer" else side**2
        power = 1 if family == "transformer" else 2
        patches = [r for r in (16, 8, 4, 2) if 4 <= sides / r**power <= _MOST_TOKENS]
        for width, depth, patch in itertools.product((16, 32, 64), (1, 2), patches):
            yield Architecture(family, width=width, depth=depth, resolution=patch, expansion=2)
        return
    over_time = family in _OVER_TIME
    strides = (1, 2, 4) if over_time or side >= 64 else (1, 2)
    kernel = 5 if over_time else 3
    expansion = 3 if family == "inverted" else 1
    stages = (1,) if family == "temporal" else (1, 2, 3)
    depths = (2, 4) if family == "temporal" else (1, 2)
    widths = (16, 32, 64) if over_time else (8, 16, 32, 64)
    for width, stage, depth, stride in itertools.product(widths, stages, depths, strides):
        deep_enough = stage > 1 or depth == depths[0] or family == "temporal"
        if deep_enough and side / (stride * 2 ** (stage - 1)) >= 4:
            yield Architecture(
                family,
                width=width,
                stages=stage,
                depth=depth,
                kernel=kernel,
                resolution=stride,
                expansion=expansion,
            )
