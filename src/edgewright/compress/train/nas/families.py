"""Which families of networks suit an input, which of their members to try, and how large those are."""

import itertools
import math
from collections.abc import Iterator

import onnx

from edgewright.compress.model.graph import Graph
from edgewright.compress.model.layers import multiply_accumulates
from edgewright.compress.train.data.modality import Modality, SampleFormat
from edgewright.compress.train.nas.architecture import Architecture, NetworkFamily
from edgewright.compress.train.nas.graph_builder import build_network, single_input_output
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature

__all__ = [
    "Architecture",
    "Modality",
    "NetworkFamily",
    "families_for",
    "family_grid",
    "multiply_accumulate_count",
    "neighbouring_architectures",
    "parameter_count",
]

_OVER_MAPS: tuple[NetworkFamily, ...] = ("plain", "residual", "separable", "inverted", "patches")
_OVER_TIME: tuple[NetworkFamily, ...] = ("plain1d", "residual1d", "separable1d", "temporal", "gru", "transformer")

# More steps than this make a recurrent network slow and hard to train.
_MAX_STEPS = 256
# More positions than this make a transformer slow.
_MAX_TOKENS = 256
# A network over rows longer than this would be mostly its first matrix.
_MAX_ROW = 4096


def families_for(kind: Modality, contract: ModelSignature) -> tuple[NetworkFamily, ...]:
    """Return the families that can take the input and give the output, none if there is none.

    >>> from edgewright.contract.model.signature import TensorSpec
    >>> row, classes = TensorSpec("x", "float32", ("n", 20)), TensorSpec("y", "float32", ("n", 3))
    >>> families_for("table", ModelSignature((row,), (classes,)))
    ('mlp',)
    """
    try:
        source, target = single_input_output(contract)
    except CandidateError:
        return ()
    shape = tuple(int(size) for size in source.shape[1:])
    short = math.prod(shape) <= _MAX_ROW
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


def family_grid(
    kind: Modality,
    contract: ModelSignature,
    *,
    families: tuple[NetworkFamily, ...] | None = None,
    max_macs: int | None = None,
    form: SampleFormat | None = None,
    max_count: int | None = None,
) -> list[Architecture]:
    """Return sensible members of the families, from small to large.

    Args:
        kind: What the input is.
        contract: Of the original model.
        families: Only these; all that suit if not given.
        max_macs: Multiply-accumulates of one inference that a member may have at most.
        form: See `draft`.
        max_count: Members of each family, spread over its sizes; all if not given.
    """
    sized = []
    suited = families_for(kind, contract)
    for family in suited if families is None else [each for each in suited if each in families]:
        members = list(_members(family, contract))
        for architecture in members if max_count is None else _thinned(members, max_count):
            size = multiply_accumulate_count(build_network(architecture, contract, form=form))
            if max_macs is None or size <= max_macs:
                sized.append((size, architecture.title, architecture))
    return [architecture for _, _, architecture in sorted(sized, key=lambda entry: entry[:2])]


def _thinned(members: list[Architecture], count: int) -> list[Architecture]:
    """Return `count` members, evenly spread over those that there are."""
    places = range(count) if count < len(members) else ()
    return [members[(2 * i + 1) * len(members) // (2 * count)] for i in places] or members


def neighbouring_architectures(architecture: Architecture) -> list[Architecture]:
    """Return the architectures one step smaller or larger in one dimension, for a local search."""
    return architecture.neighbours()


def parameter_count(model: onnx.ModelProto) -> int:
    """Return the number of floats that are stored: weights, biases, statistics."""
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)


def multiply_accumulate_count(model: onnx.ModelProto) -> int:
    """Return the multiply-accumulates of one inference of a float model, all steps of recurrent layers counted."""
    graph = Graph(model)
    counts = multiply_accumulates(graph)
    total = 0
    for node in graph.nodes:
        steps = graph.shapes.get(node.input[0], (1,))[0] if node.op_type in ("GRU", "LSTM", "RNN") else 1
        total += counts.get(node.name, 0) * (steps or 1)
    return total


def _members(family: NetworkFamily, contract: ModelSignature) -> Iterator[Architecture]:
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
        steps = [r for r in (8, 4, 2, 1) if side / r <= _MAX_STEPS and side / r >= 4] or [16]
        yield from (Architecture(family, width=w, resolution=r) for w in (16, 32, 64) for r in steps[-3:])
        return
    if family in ("patches", "transformer"):
        sides = side if family == "transformer" else side**2
        power = 1 if family == "transformer" else 2
        patches = [r for r in (16, 8, 4, 2) if 4 <= sides / r**power <= _MAX_TOKENS]
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
