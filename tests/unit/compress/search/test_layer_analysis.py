"""Recipes are laid out from measured noise, for the original and for trained networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.quantize.static_int8 import StaticInt8
from edgewright.compress.search.layer_analysis import analyse_layers, has_saturation_free_int8
from edgewright.compress.search.recipe import CandidateBuilder, CleanGraph, UseTrainedNetwork
from edgewright.profiling.target import LocalTarget, Machine, query_machine

STUDENT = UseTrainedNetwork("ab" * 32, "student")
With = Callable[..., Machine]


@pytest.fixture(scope="module")
def here() -> Machine:
    return query_machine(LocalTarget())


@pytest.fixture(scope="module")
def bench(digits_proto: onnx.ModelProto, digits_batch: NDArray[Any]) -> CandidateBuilder:
    return CandidateBuilder(
        digits_proto, [{"image": digits_batch[:16]}] * 4, load_trained=lambda _digest: digits_proto
    )


@pytest.fixture
def with_features(here: Machine) -> With:
    return lambda arch, *features: msgspec.structs.replace(here, arch=arch, features=features)


def test_every_layer_of_the_original_is_measured(bench: CandidateBuilder, here: Machine) -> None:
    space, noise = analyse_layers(bench, (CleanGraph(),), here, seconds=3)
    assert set(noise["few bits"]) == set(noise["integers"])
    layers = [node.name for node in space.clean.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert set(noise["integers"]) == set(layers)
    assert all(value >= 0 for part in noise.values() for value in part.values())
    assert space.network == ""
    assert "static" in space.quantization_formats
    assert space.weight_noise == noise["few bits"]


def test_a_trained_network_is_laid_out_like_the_original(bench: CandidateBuilder, here: Machine) -> None:
    space, noise = analyse_layers(bench, (STUDENT, CleanGraph()), here, seconds=3)
    assert space.network == STUDENT.network
    assert space.trained_network == (STUDENT,)
    assert space.architecture_key == STUDENT.network[:16]
    original, same = analyse_layers(bench, (CleanGraph(),), here, seconds=3)
    assert noise == same  # it is the same network here
    assert space.quantization_formats == original.quantization_formats
    assert [space.recipe(idea).steps[1:] for idea in space.initial_candidates()] == [
        original.recipe(idea).steps for idea in original.initial_candidates()
    ]


def test_without_time_the_usual_recipes_are_laid_out_all_the_same(bench: CandidateBuilder, here: Machine) -> None:
    space, noise = analyse_layers(bench, (CleanGraph(),), here, seconds=0.0)
    assert noise["few bits"]
    assert len(space.initial_candidates()) > 5


def test_a_network_of_integers_is_not_measured_as_integers_again(bench: CandidateBuilder, here: Machine) -> None:
    made = bench.model_after((CleanGraph(), StaticInt8()))
    quantized = CandidateBuilder(made, bench.calibration_batches)
    space, noise = analyse_layers(quantized, (CleanGraph(),), here, seconds=5)
    assert noise["integers"] == {}
    assert "static" not in space.quantization_formats


@pytest.mark.parametrize(
    ("arch", "features", "expected"),
    [
        ("x86_64", (), False),
        ("x86_64", ("avx2", "avx512f"), False),
        ("x86_64", ("avx512_vnni",), True),
        ("AMD64", ("avx_vnni",), True),
        ("aarch64", (), True),
        ("armv7l", (), True),
    ],
)
def test_products_that_saturate_get_smaller_weights(
    bench: CandidateBuilder, with_features: With, arch: str, features: tuple[str, ...], expected: bool
) -> None:
    machine = with_features(arch, *features)
    assert has_saturation_free_int8(machine) is expected
    space, _ = analyse_layers(bench, (CleanGraph(),), machine, seconds=0.0)
    assert space.max_int8_weight == (127 if expected else 63)
    assert space.signed_first is arch.startswith(("aarch64", "arm"))


def test_a_resumed_search_has_the_same_recipes_however_little_time_is_left(
    bench: CandidateBuilder, here: Machine, tmp_path: Path
) -> None:
    first = analyse_layers(bench, (CleanGraph(),), here, seconds=3, cache_path=tmp_path)
    assert analyse_layers(bench, (CleanGraph(),), here, seconds=0.0, cache_path=tmp_path) == first
    (damaged,) = tmp_path.iterdir()
    damaged.write_bytes(b"{")
    assert analyse_layers(bench, (CleanGraph(),), here, seconds=3, cache_path=tmp_path)[1] == first[1]
