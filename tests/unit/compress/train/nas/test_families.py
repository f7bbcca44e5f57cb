"""Families: each member can stand in for the original, is right as ONNX, and becomes integers."""

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from edgewright.compress.model.fusion_lint import lint_model
from edgewright.compress.model.graph import Graph, clean_model, session_bytes
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe
from edgewright.compress.train.data.modality import Modality, SampleFormat
from edgewright.compress.train.nas.architecture import Architecture, NetworkFamily
from edgewright.compress.train.nas.families import (
    families_for,
    family_grid,
    multiply_accumulate_count,
    neighbouring_architectures,
    parameter_count,
)
from edgewright.compress.train.nas.graph_builder import GraphActivation, TargetStatistics, build_network
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature, TensorSpec


def contract_of(
    source: tuple[int | str, ...], target: tuple[int | str, ...], dtype: str = "float32", answer: str = "float32"
) -> ModelSignature:
    return ModelSignature((TensorSpec("x", dtype, source),), (TensorSpec("y", answer, target),))


def samples(contract: ModelSignature, count: int) -> NDArray[np.float32]:
    size = count if contract.has_free_batch_axis else 1
    shape = [int(side) for side in contract.inputs[0].shape[1:]]
    return np.random.default_rng(5).standard_normal((size, *shape)).astype(np.float32)


INPUTS: dict[str, tuple[Modality, ModelSignature]] = {
    "image": ("image", contract_of(("n", 3, 32, 32), ("n", 10))),
    "channels last": ("image", contract_of((1, 28, 28, 3), (1, 10))),
    "small image": ("image", contract_of(("n", 1, 8, 8), ("n", 10))),
    "spectrogram": ("spectrogram", contract_of(("n", 49, 10, 1), ("n", 12))),
    "series": ("series", contract_of(("n", 80, 6), ("n", 5))),
    "series, time last": ("series", contract_of((1, 6, 80), (1, 5))),
    "waveform": ("series", contract_of(("n", 400), ("n",))),
    "table": ("table", contract_of(("n", 20), ("n", 4))),
    "autoencoder": ("table", contract_of(("n", 640), ("n", 640))),
    "image autoencoder": ("image", contract_of(("n", 1, 16, 16), ("n", 1, 16, 16))),
}


def middle(family: NetworkFamily) -> Architecture:
    patch = 4 if family in ("patches", "transformer") else 1
    return Architecture(family, width=16, stages=2, depth=2, resolution=patch, expansion=2)


CASES = [(place, family) for place, (kind, contract) in INPUTS.items() for family in families_for(kind, contract)]


@pytest.mark.parametrize(("place", "family"), CASES)
def test_each_family_stands_in_for_the_original_and_becomes_integers(place: str, family: NetworkFamily) -> None:
    contract = INPUTS[place][1]
    model = build_network(middle(family), contract, seed=3)
    onnx.checker.check_model(model, full_check=True)
    x = samples(contract, 8)
    (answer,) = session_bytes(model).run(None, {"x": x})
    assert answer.shape == (len(x), *contract.outputs[0].shape[1:])
    assert 0 < answer.std() < 100

    cleaned = clean_model(model)
    np.testing.assert_allclose(
        session_bytes(cleaned).run(None, {"x": x})[0], answer, atol=1e-4 * np.abs(answer).max()
    )
    left = [node for node in cleaned.graph.node if node.op_type == "BatchNormalization"]
    assert len(left) == (family in ("mlp", "bottleneck", "gru"))  # those that begin with one

    integer = quantize_static(
        cleaned, StaticInt8(), collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [{"x": x}])
    )
    verdict = lint_model(integer)
    in_float = {"gru": 2, "patches": 2, "transformer": 2}.get(family, 0)  # states, and one product of attention
    assert verdict.layers - verdict.integer_layers == in_float
    (rounded,) = session_bytes(integer).run(None, {"x": x})
    assert np.square(rounded - answer).mean() < 0.05 * np.square(answer).mean()


ONCE = {family: place for place, family in reversed(CASES)}


@pytest.mark.parametrize(("family", "place"), ONCE.items())
def test_each_family_learns_as_a_module(family: NetworkFamily, place: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    contract = INPUTS[place][1]
    network = TrainableGraph(build_network(middle(family), contract, seed=3))
    shape = [int(size) for size in contract.inputs[0].shape[1:]]
    x, wanted = torch.randn(8, *shape), torch.randn(8, *[int(size) for size in contract.outputs[0].shape[1:]])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.mse_loss(network(x)[0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_many_positions_attend_in_linear_time() -> None:
    contract = contract_of(("n", 512, 3), ("n", 4))
    few, many = (build_network(Architecture("transformer", width=16, resolution=r), contract) for r in (8, 2))
    assert {node.op_type for node in few.graph.node} >= {"Softmax"}
    assert not {node.op_type for node in many.graph.node} & {"Softmax"}
    x = samples(contract, 3)
    assert np.isfinite(session_bytes(many).run(None, {"x": x})[0]).all()
    short, long = (build_network(Architecture("transformer", width=16, resolution=r), contract) for r in (2, 1))
    assert multiply_accumulate_count(long) < 2.2 * multiply_accumulate_count(short)


@pytest.mark.parametrize("ending", ["logits", "softmax", "sigmoid"])
def test_answers_end_as_those_of_the_original(ending: GraphActivation) -> None:
    contract = INPUTS["small image"][1]
    (answer,) = session_bytes(build_network(middle("plain"), contract, activation=ending)).run(
        None, {"x": samples(contract, 9)}
    )
    if ending == "logits":
        assert answer.min() < 0
    else:
        assert (answer > 0).all()
        assert (answer < 1).all()
    if ending == "softmax":
        np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)


def test_names_and_types_are_those_of_the_contract_even_where_layers_bear_them() -> None:
    source = TensorSpec("features", "uint8", ("n", 12, 12, 1))
    contract = ModelSignature((source,), (TensorSpec("head", "float64", ("n", 1, 3)),))
    model = build_network(middle("residual"), contract)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 1), np.uint8)
    (answer,) = session_bytes(model).run(["head"], {"features": x})
    assert answer.shape == (4, 1, 3)
    assert answer.dtype == np.float64


def test_targets_are_where_the_answers_begin() -> None:
    contract = contract_of(("n", 30), ("n", 30))
    targets = TargetStatistics(np.linspace(100, 200, 30), np.full(30, 0.5))
    model = build_network(Architecture("bottleneck", width=64), contract, targets=targets)
    (answer,) = session_bytes(model).run(None, {"x": samples(contract, 16)})
    assert np.abs(answer - targets.mean).max() < 10


def test_the_same_seed_draws_the_same_network() -> None:
    contract = INPUTS["image"][1]
    one, same, other = (build_network(middle("inverted"), contract, seed=seed) for seed in (1, 1, 2))
    assert one.SerializeToString() == same.SerializeToString()
    assert one.SerializeToString() != other.SerializeToString()


def test_the_meaning_of_axes_can_be_named() -> None:
    contract = contract_of(("n", 40, 60), ("n", 2))
    by_size, named = (
        build_network(Architecture("plain1d", width=8), contract, form=form)
        for form in (None, SampleFormat("series", (1,)))
    )
    assert Graph(by_size).constants["stem.weight"].shape[1] == 40
    assert Graph(named).constants["stem.weight"].shape[1] == 60


REFUSED = {
    "two inputs": ModelSignature((TensorSpec("a", "float32", (1, 3)), TensorSpec("b", "float32", (1, 3))), ()),
    "free side": contract_of(("n", 3, "h", "w"), ("n", 10)),
    "class ids": contract_of(("n", 20), ("n",), answer="int64"),
    "boxes": contract_of((1, 3, 64, 64), (1, 400, 4)),
    "no batch": contract_of((28, 28), (1, 10)),
    "words": contract_of(("n", 3), ("n", 2), dtype="bool"),
}


@pytest.mark.parametrize("contract", REFUSED.values(), ids=REFUSED)
def test_what_no_family_fits_is_refused_with_its_reason(contract: ModelSignature) -> None:
    assert families_for("other", contract) == ()
    with pytest.raises(CandidateError, match="no family"):
        build_network(Architecture("mlp"), contract)


@pytest.mark.parametrize("numbers", [{"width": 0}, {"kernel": 4}, {"family": "forest"}, {"depth": 99}], ids=str)
def test_impossible_numbers_are_refused(numbers: dict[str, object]) -> None:
    with pytest.raises(CandidateError):
        Architecture(**{"family": "plain", **numbers})  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["small image", "table", "autoencoder"])
def test_the_grid_goes_from_small_to_large_and_every_member_can_be_built(place: str) -> None:
    kind, contract = INPUTS[place]
    members = family_grid(kind, contract)
    assert len(members) == len(set(members)) >= 12
    assert {member.family for member in members} <= set(families_for(kind, contract))
    sizes = [multiply_accumulate_count(build_network(member, contract)) for member in members]
    assert sizes == sorted(sizes)
    most = sizes[len(sizes) // 2]
    assert len(family_grid(kind, contract, max_macs=most)) == sum(size <= most for size in sizes)
    for member in members[:: len(members) // 5]:
        session_bytes(build_network(member, contract))


def test_the_grid_can_be_held_to_some_families_and_a_form() -> None:
    kind, contract = INPUTS["spectrogram"]
    members = family_grid(
        kind, contract, families=("gru", "temporal", "mlp"), form=SampleFormat("spectrogram", (1, 2))
    )
    assert {member.family for member in members} == {"gru", "temporal"}


def test_neighbours_differ_in_one_dimension_and_lead_back() -> None:
    start = Architecture("inverted", width=16, stages=2, depth=2, kernel=5, resolution=2, expansion=3)
    found = neighbouring_architectures(start)
    assert len(found) == 12
    for each in found:
        differing = [name for name in start.dimensions if getattr(start, name) != getattr(each, name)]
        assert len(differing) == 1
        assert start in neighbouring_architectures(each)
    titles = [each.title for each in (start, *found)]
    assert len(set(titles)) == len(titles)


def test_sizes_are_those_of_the_formulas() -> None:
    contract = contract_of(("n", 1, 8, 8), ("n", 10))
    model = build_network(Architecture("plain", width=8), contract)
    assert multiply_accumulate_count(model) == 64 * 9 * 8 + 64 * 9 * 8 * 8 + 8 * 10
    assert parameter_count(model) == 9 * 8 + 9 * 64 + 2 * 4 * 8 + 80 + 10
    recurrent = build_network(Architecture("gru", width=16), contract_of(("n", 50, 3), ("n", 2)))
    assert multiply_accumulate_count(recurrent) == 50 * 3 * 16 * (3 + 16) + 16 * 2
