"""Recipes on offer: those that make sense for the model at hand, each of which builds."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.graph import Graph, clean
from edgewright.compress.recipe import CleanUp, Recipe, Workbench
from edgewright.compress.sensitivity import probe_on, weight_noise
from edgewright.compress.space import Params, Space, space_of
from edgewright.compress.static import StaticInt8, integer_layers

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
def bench(digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32]) -> Workbench:
    return Workbench(digits_proto, [{"image": digits_batch}])


@pytest.fixture(scope="module")
def space(bench: Workbench, digits_batch: NDArray[np.float32]) -> Space:
    cleaned = bench.after((CleanUp(),))
    noise = weight_noise(cleaned, probe_on(cleaned, [{"image": digits_batch}]))
    layers = [weight.layer for weight in integer_layers(Graph(cleaned))]
    return space_of(cleaned, noise, {layer: 10.0**-i for i, layer in enumerate(layers)})


def test_a_convolutional_network_is_offered_what_suits_it(space: Space) -> None:
    assert space.forms == ("float", "static")  # one small matrix product does not make it matrix-heavy
    assert space.neighbours
    assert "none" in space.float_sets
    assert len(set(space.float_sets.values())) == len(space.float_sets)


def test_every_first_idea_builds_and_answers_like_the_original(
    space: Space, bench: Workbench, digits_batch: NDArray[np.float32], answers: Run, decibels: Decibels
) -> None:
    truth = answers(bench.original, image=digits_batch)
    ideas = space.first_ideas()
    assert len({str(idea) for idea in ideas}) == len(ideas)
    for idea in ideas:
        made = bench.build(space.recipe(idea))
        assert Graph(made).output_names == Graph(bench.original).output_names
        quality = decibels(truth, answers(made, image=digits_batch))
        assert quality > (0 if idea["form"] == "sparse" else 14), idea


def test_whatever_is_proposed_is_a_recipe_that_survives_being_written_down(space: Space) -> None:
    for seed in range(40):
        params = space.propose(Dice(seed))
        recipe = space.recipe(params)
        steps = msgspec.to_builtins(recipe)["steps"]
        assert msgspec.convert({"steps": steps}, Recipe) == recipe
        assert recipe.title
        again: Params = msgspec.json.decode(msgspec.json.encode(params))
        assert space.recipe(again) == recipe


def test_tighter_recipes_get_smaller_and_have_the_same_speed(space: Space, bench: Workbench) -> None:
    start: Params = {"form": "float", "half": False, "weights": "8 bit"}
    ladder = [{**start, "weights": "44"}, *space.tighter(start)[4:]]
    sizes = [bench.build(space.recipe(params)).ByteSize() for params in ladder[::3]]
    assert sizes == sorted(sizes, reverse=True)
    assert {space.speed_key(params) for params in ladder} == {"float"}


def test_forms_that_run_differently_are_measured_apart(space: Space) -> None:
    ideas = space.first_ideas()
    keys = {space.speed_key(idea) for idea in ideas}
    assert len(keys) > 2
    static = [idea for idea in ideas if idea["form"] == "static" and idea["in_float"] == "none"]
    assert len({space.speed_key(idea) for idea in static}) == 3  # signed, unsigned, per tensor


def test_signed_activations_come_first_where_the_target_prefers_them(space: Space) -> None:
    arm = space_of(space.clean, space.weight_noise, {}, signed_first=True)
    first = next(idea for idea in arm.first_ideas() if idea["form"] == "static")
    assert first["activations"] == "int8"


def test_a_matrix_network_is_offered_blocks_and_dynamic_integers(built: Build) -> None:
    random = np.random.default_rng(0)
    model = built(
        "g (float[n,64] x) => (float[n,8] y) { h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, v) }",
        w=random.standard_normal((64, 64)).astype(np.float32),
        v=random.standard_normal((64, 8)).astype(np.float32),
    )
    assert set(space_of(clean(model), {}, {}).forms) == {"float", "static", "dynamic", "blocks"}


def test_a_quantised_model_is_offered_mending_alone(bench: Workbench) -> None:
    made = bench.after((CleanUp(), StaticInt8(activations="int8")))
    space = space_of(clean(made), {}, {})
    assert space.forms == ("float", "mended")
    assert space.first_ideas()[1]["form"] == "mended"
    lazily = Workbench(made, bench.feeds)
    for idea in space.first_ideas():
        lazily.build(space.recipe(idea))


def test_a_model_without_layers_can_still_be_cleaned(built: Build) -> None:
    model = built("g (float[n,4] x) => (float[n,4] y) { h = Relu(x)\n y = Abs(h) }")
    space = space_of(clean(model), {}, {})
    assert space.forms == ("float",)
    bench = Workbench(model, [])
    assert [bench.build(space.recipe(idea)).graph.node[0].op_type for idea in space.first_ideas()]


def test_no_step_at_all_is_the_original_itself(bench: Workbench) -> None:
    assert bench.build(Recipe(())) is bench.original
