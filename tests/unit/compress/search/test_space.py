"""Recipes on offer: those that make sense for the model at hand, each of which builds."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.quantize.sensitivity import make_noise_probe, weight_noise
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers
from edgewright.compress.search.recipe import CandidateBuilder, CleanGraph, Recipe, UseTrainedNetwork
from edgewright.compress.search.space import AS_TRAINED_FORMAT, Params, SearchSpace, build_search_space
from edgewright.contract.errors import CandidateError

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
Decibels = Callable[[list[NDArray[Any]], list[NDArray[Any]]], float]


class Dice:
    """Chooses at random, as Optuna would."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[int(self._random.integers(len(choices)))]


@pytest.fixture(scope="module")
def bench(digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32]) -> CandidateBuilder:
    return CandidateBuilder(digits_proto, [{"image": digits_batch}])


@pytest.fixture(scope="module")
def space(bench: CandidateBuilder, digits_batch: NDArray[np.float32]) -> SearchSpace:
    cleaned = bench.model_after((CleanGraph(),))
    noise = weight_noise(cleaned, make_noise_probe(cleaned, [{"image": digits_batch}]))
    layers = [weight.layer for weight in integer_layers(Graph(cleaned))]
    return build_search_space(cleaned, noise, {layer: 10.0**-i for i, layer in enumerate(layers)})


def test_a_convolutional_network_is_offered_what_suits_it(space: SearchSpace) -> None:
    assert space.quantization_formats == (
        "float",
        "static",
    )  # one small matrix product does not make it matrix-heavy
    assert space.can_equalize
    assert "none" in space.float_layer_sets
    assert len(set(space.float_layer_sets.values())) == len(space.float_layer_sets)


def test_every_first_idea_builds_and_answers_like_the_original(
    space: SearchSpace, bench: CandidateBuilder, digits_batch: NDArray[np.float32], answers: Run, decibels: Decibels
) -> None:
    truth = answers(bench.original, image=digits_batch)
    ideas = space.initial_candidates()
    assert len({str(idea) for idea in ideas}) == len(ideas)
    for idea in ideas:
        made = bench.build(space.recipe(idea))
        assert Graph(made).output_names == Graph(bench.original).output_names
        quality = decibels(truth, answers(made, image=digits_batch))
        assert quality > (0 if idea["form"] == "sparse" else 14), idea


def test_whatever_is_proposed_is_a_recipe_that_survives_being_written_down(space: SearchSpace) -> None:
    for seed in range(40):
        params = space.sample(Dice(seed))
        recipe = space.recipe(params)
        steps = msgspec.to_builtins(recipe)["steps"]
        assert msgspec.convert({"steps": steps}, Recipe) == recipe
        assert recipe.title
        again: Params = msgspec.json.decode(msgspec.json.encode(params))
        assert space.recipe(again) == recipe


def test_tighter_recipes_get_smaller_and_have_the_same_speed(space: SearchSpace, bench: CandidateBuilder) -> None:
    start: Params = {"form": "float", "half": False, "weights": "8 bit"}
    ladder = [{**start, "weights": "44"}, *space.with_fewer_bits(start)[4:]]
    sizes = [bench.build(space.recipe(params)).ByteSize() for params in ladder[::3]]
    assert sizes == sorted(sizes, reverse=True)
    assert {space.latency_key(params) for params in ladder} == {"float"}


def test_forms_that_run_differently_are_measured_apart(space: SearchSpace) -> None:
    ideas = space.initial_candidates()
    keys = {space.latency_key(idea) for idea in ideas}
    assert len(keys) > 2
    static = [idea for idea in ideas if idea["form"] == "static" and idea["in_float"] == "none"]
    assert len({space.latency_key(idea) for idea in static}) == 3  # signed, unsigned, per tensor


def test_signed_activations_come_first_where_the_target_prefers_them(space: SearchSpace) -> None:
    arm = build_search_space(space.clean, space.weight_noise, {}, signed_first=True)
    first = next(idea for idea in arm.initial_candidates() if idea["form"] == "static")
    assert first["activations"] == "int8"


def test_a_matrix_network_is_offered_blocks_and_dynamic_integers(built: Build) -> None:
    random = np.random.default_rng(0)
    model = built(
        "g (float[n,64] x) => (float[n,8] y) { h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, v) }",
        w=random.standard_normal((64, 64)).astype(np.float32),
        v=random.standard_normal((64, 8)).astype(np.float32),
    )
    assert set(build_search_space(clean_model(model), {}, {}).quantization_formats) == {
        "float",
        "static",
        "dynamic",
        "blocks",
    }


def test_a_quantised_model_is_offered_mending_alone(bench: CandidateBuilder) -> None:
    made = bench.model_after((CleanGraph(), StaticInt8(activations="int8")))
    space = build_search_space(clean_model(made), {}, {})
    assert space.quantization_formats == ("float", "mended")
    assert space.initial_candidates()[1]["form"] == "mended"
    lazily = CandidateBuilder(made, bench.calibration_batches)
    for idea in space.initial_candidates():
        lazily.build(space.recipe(idea))


def test_a_model_without_layers_can_still_be_cleaned(built: Build) -> None:
    model = built("g (float[n,4] x) => (float[n,4] y) { h = Relu(x)\n y = Abs(h) }")
    space = build_search_space(clean_model(model), {}, {})
    assert space.quantization_formats == ("float",)
    bench = CandidateBuilder(model, [])
    assert [bench.build(space.recipe(idea)).graph.node[0].op_type for idea in space.initial_candidates()]


def test_no_step_at_all_is_the_original_itself(bench: CandidateBuilder) -> None:
    assert bench.build(Recipe(())) is bench.original


STUDENT = UseTrainedNetwork("ab" * 32, "student")


@pytest.fixture(scope="module")
def of_student(space: SearchSpace) -> SearchSpace:
    return build_search_space(space.clean, space.weight_noise, {}, trained_network=(STUDENT,))


def test_every_recipe_of_a_trained_network_begins_with_it(of_student: SearchSpace) -> None:
    assert of_student.network == STUDENT.network
    for idea in of_student.initial_candidates():
        assert idea["network"] == STUDENT.network
        recipe = of_student.recipe(idea)
        assert recipe.steps[:2] == (STUDENT, CleanGraph())
        assert recipe.title.startswith("student")
        written = msgspec.json.decode(msgspec.json.encode(recipe))
        assert msgspec.convert(written, Recipe) == recipe
        for tighter in of_student.with_fewer_bits(idea):
            assert of_student.recipe(tighter).steps[0] == STUDENT


def test_the_original_has_no_network(space: SearchSpace) -> None:
    assert space.network == ""
    assert all("network" not in idea for idea in space.initial_candidates())


def test_networks_are_never_measured_as_one_another(space: SearchSpace, of_student: SearchSpace) -> None:
    other = build_search_space(
        space.clean, space.weight_noise, {}, trained_network=(UseTrainedNetwork("cd" * 32, "other"),)
    )
    keys = [{each.latency_key(idea) for idea in each.initial_candidates()} for each in (space, of_student, other)]
    assert len(set.union(*keys)) == sum(len(part) for part in keys)
    assert len(keys[1]) == len(keys[2]) > 1
    tight = of_student.with_fewer_bits(of_student.initial_candidates()[0])[0]
    assert of_student.latency_key(tight) in keys[1]


def test_trained_integers_are_left_as_they_are(space: SearchSpace) -> None:
    as_trained = SearchSpace(
        space.clean, (AS_TRAINED_FORMAT,), False, {}, {}, trained_network=(STUDENT,), architecture_key="k: integers"
    )
    (idea,) = as_trained.initial_candidates()
    assert idea == {"form": AS_TRAINED_FORMAT, "network": STUDENT.network}
    assert as_trained.recipe(idea) == Recipe((STUDENT,))
    assert as_trained.recipe(idea).title == "student"
    assert as_trained.with_fewer_bits(idea) == []
    other = SearchSpace(
        space.clean,
        (AS_TRAINED_FORMAT,),
        False,
        {},
        {},
        trained_network=(UseTrainedNetwork("cd" * 32, "b"),),
        architecture_key="k: integers",
    )
    assert other.latency_key(other.initial_candidates()[0]) == as_trained.latency_key(idea)  # the same kernels run


def test_a_trained_network_is_fetched_by_its_digest(bench: CandidateBuilder, digits_proto: onnx.ModelProto) -> None:
    asked: list[str] = []

    def fetch(digest: str) -> onnx.ModelProto:
        asked.append(digest)
        return digits_proto

    with_networks = CandidateBuilder(bench.original, bench.calibration_batches, load_trained=fetch)
    made = with_networks.build(Recipe((STUDENT, CleanGraph())))
    again = with_networks.build(Recipe((STUDENT, CleanGraph(), StaticInt8())))
    assert asked == [STUDENT.network]  # once for both
    assert made.ByteSize() > 1.5 * again.ByteSize()


def test_without_training_there_is_no_such_network(bench: CandidateBuilder) -> None:
    with pytest.raises(CandidateError, match="nothing was trained"):
        bench.build(Recipe((STUDENT, CleanGraph())))
