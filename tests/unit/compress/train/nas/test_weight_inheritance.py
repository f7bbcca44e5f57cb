"""Inheritance: a larger network starts with the smaller one's answers, a smaller one with its best."""

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, session_bytes
from edgewright.compress.train.nas.architecture import Architecture, NetworkFamily
from edgewright.compress.train.nas.graph_builder import build_network
from edgewright.compress.train.nas.weight_inheritance import inherit_weights
from edgewright.contract.model.signature import ModelSignature, TensorSpec

RANDOM = np.random.default_rng(2)


def contract_of(*shape: int) -> ModelSignature:
    return ModelSignature((TensorSpec("x", "float32", ("n", *shape)),), (TensorSpec("y", "float32", ("n", 5)),))


def contract_for(family: NetworkFamily) -> ModelSignature:
    if family == "mlp":
        return contract_of(12)
    over_maps = family in ("plain", "residual", "separable", "inverted", "patches")
    return contract_of(1, 16, 16) if over_maps else contract_of(40, 6)


def samples(contract: ModelSignature) -> NDArray[np.float32]:
    shape = [int(size) for size in contract.inputs[0].shape[1:]]
    return RANDOM.standard_normal((16, *shape)).astype(np.float32)


def seasoned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give normalisations statistics and scales as training leaves them."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type == "BatchNormalization":
            for place, (low, high) in zip(
                (1, 2, 3, 4), ((0.5, 2), (-0.3, 0.3), (-0.5, 0.5), (0.5, 2)), strict=True
            ):
                size = len(graph.constants[node.input[place]])
                graph.constants[node.input[place]] = RANDOM.uniform(low, high, size).astype(np.float32)
    return graph.to_model()


def distance(model: onnx.ModelProto, other: onnx.ModelProto, x: NDArray[np.float32]) -> float:
    """Return the error of the answers in units of their spread."""
    one, two = (session_bytes(each).run(None, {"x": x})[0] for each in (model, other))
    return float(np.sqrt(np.square(one - two).mean()) / two.std())


def start(family: NetworkFamily) -> Architecture:
    patch = 4 if family in ("patches", "transformer") else 1
    return Architecture(family, width=16, stages=1 if family == "temporal" else 2, resolution=patch, expansion=2)


LARGER: list[tuple[NetworkFamily, dict[str, int]]] = [
    *(
        (family, {"width": 32})
        for family in ("plain", "residual", "separable", "inverted", "patches", "mlp", "gru")
    ),
    *((family, {"depth": 2}) for family in ("plain", "residual", "separable", "inverted", "patches", "mlp")),
    *((family, {"width": 24, "depth": 3}) for family in ("residual1d", "temporal", "separable1d")),
    *((family, {"kernel": 5}) for family in ("plain", "residual", "inverted", "plain1d")),
    ("inverted", {"expansion": 4}),
]


@pytest.mark.parametrize(("family", "numbers"), LARGER, ids=str)
def test_a_larger_network_starts_with_nearly_the_same_answers(
    family: NetworkFamily, numbers: dict[str, int]
) -> None:
    contract = contract_for(family)
    small = seasoned(build_network(start(family), contract, seed=1))
    drawn = build_network(msgspec.structs.replace(start(family), **numbers), contract, seed=2)
    grown, share = inherit_weights(drawn, small)
    onnx.checker.check_model(grown, full_check=True)
    x = samples(contract)
    assert distance(grown, small, x) < 0.1
    assert distance(drawn, small, x) > 0.5
    assert 0.1 < share < 1


@pytest.mark.parametrize("family", ["plain", "residual", "separable", "inverted", "temporal", "gru", "mlp"])
def test_equal_sizes_inherit_all(family: NetworkFamily) -> None:
    contract = contract_for(family)
    old = seasoned(build_network(start(family), contract, seed=1))
    same, share = inherit_weights(build_network(start(family), contract, seed=2), old)
    assert share == 1
    assert distance(same, old, samples(contract)) == 0


@pytest.mark.parametrize("family", ["plain", "residual", "separable", "inverted", "temporal", "gru", "mlp"])
def test_what_was_grown_shrinks_back_to_what_it_was(family: NetworkFamily) -> None:
    contract = contract_for(family)
    old = seasoned(build_network(start(family), contract, seed=1))
    grown, _ = inherit_weights(
        build_network(msgspec.structs.replace(start(family), width=32), contract, seed=2), old
    )
    shrunk, share = inherit_weights(build_network(start(family), contract, seed=3), grown)
    assert share == 1
    assert distance(shrunk, old, samples(contract)) < 0.1


def test_the_important_channels_are_kept_wherever_they_stand() -> None:
    contract = contract_of(1, 16, 16)
    wide = Graph(build_network(Architecture("residual", width=16, stages=1), contract, seed=1))
    loud = np.sort(RANDOM.permutation(16)[:8])
    quiet = np.setdiff1d(np.arange(16), loud)
    for name, value in wide.constants.items():
        if name.startswith(("stage1/block1/conv2", "stem")):
            scaled = value.copy()
            if name.endswith((".weight", ".scale", ".bias")):
                scaled[quiet] = 0
            wide.constants[name] = scaled
    for name in ("stage1/block1/conv1.weight", "head.weight"):
        wide.constants[name] = wide.constants[name].copy()
        wide.constants[name][:, quiet] = 0
    source = wide.to_model()
    narrow, _ = inherit_weights(
        build_network(Architecture("residual", width=8, stages=1), contract, seed=2), source
    )
    stem = Graph(narrow).constants["stem.weight"]
    np.testing.assert_array_equal(stem, wide.constants["stem.weight"][loud])
    np.testing.assert_array_equal(Graph(narrow).constants["head.weight"], wide.constants["head.weight"][:, loud])


def test_strangers_inherit_nothing() -> None:
    drawn = build_network(Architecture("mlp"), contract_of(12), seed=1)
    kept, share = inherit_weights(drawn, build_network(Architecture("plain1d"), contract_of(40, 6), seed=2))
    given = Graph(kept).constants
    assert share < 0.5  # only the last layer has the same name
    np.testing.assert_array_equal(given["layer1.weight"], Graph(drawn).constants["layer1.weight"])
