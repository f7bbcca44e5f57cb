"""Recipes are laid out from measured noise, for the original and for trained networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.quantize.static_int8 import StaticInt8
from edgewright.compress.search.layer_analysis import adds_in_32_bits, lay_out
from edgewright.compress.search.recipe import CleanUp, Trained, Workbench
from edgewright.profiling.target import LocalTarget, Machine, machine_of

STUDENT = Trained("ab" * 32, "student")
With = Callable[..., Machine]


@pytest.fixture(scope="module")
def here() -> Machine:
    return machine_of(LocalTarget())


@pytest.fixture(scope="module")
def bench(digits_proto: onnx.ModelProto, digits_batch: NDArray[Any]) -> Workbench:
    return Workbench(digits_proto, [{"image": digits_batch[:16]}] * 4, trained=lambda _digest: digits_proto)


@pytest.fixture
def with_features(here: Machine) -> With:
    return lambda arch, *features: msgspec.structs.replace(here, arch=arch, features=features)


def test_every_layer_of_the_original_is_measured(bench: Workbench, here: Machine) -> None:
    space, noise = lay_out(bench, (CleanUp(),), here, seconds=3)
    assert set(noise["few bits"]) == set(noise["integers"])
    layers = [node.name for node in space.clean.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert set(noise["integers"]) == set(layers)
    assert all(value >= 0 for part in noise.values() for value in part.values())
    assert space.network == ""
    assert "static" in space.forms
    assert space.weight_noise == noise["few bits"]


def test_a_trained_network_is_laid_out_like_the_original(bench: Workbench, here: Machine) -> None:
    space, noise = lay_out(bench, (STUDENT, CleanUp()), here, seconds=3)
    assert space.network == STUDENT.network
    assert space.start == (STUDENT,)
    assert space.kernels == STUDENT.network[:16]
    original, same = lay_out(bench, (CleanUp(),), here, seconds=3)
    assert noise == same  # it is the same network here
    assert space.forms == original.forms
    assert [space.recipe(idea).steps[1:] for idea in space.first_ideas()] == [
        original.recipe(idea).steps for idea in original.first_ideas()
    ]


def test_without_time_the_usual_recipes_are_laid_out_all_the_same(bench: Workbench, here: Machine) -> None:
    space, noise = lay_out(bench, (CleanUp(),), here, seconds=0.0)
    assert noise["few bits"]
    assert len(space.first_ideas()) > 5


def test_a_network_of_integers_is_not_measured_as_integers_again(bench: Workbench, here: Machine) -> None:
    made = bench.after((CleanUp(), StaticInt8()))
    quantized = Workbench(made, bench.feeds)
    space, noise = lay_out(quantized, (CleanUp(),), here, seconds=5)
    assert noise["integers"] == {}
    assert "static" not in space.forms


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
    bench: Workbench, with_features: With, arch: str, features: tuple[str, ...], expected: bool
) -> None:
    machine = with_features(arch, *features)
    assert adds_in_32_bits(machine) is expected
    space, _ = lay_out(bench, (CleanUp(),), machine, seconds=0.0)
    assert space.int8_peak == (127 if expected else 63)
    assert space.signed_first is arch.startswith(("aarch64", "arm"))


def test_a_resumed_search_has_the_same_recipes_however_little_time_is_left(
    bench: Workbench, here: Machine, tmp_path: Path
) -> None:
    first = lay_out(bench, (CleanUp(),), here, seconds=3, kept=tmp_path)
    assert lay_out(bench, (CleanUp(),), here, seconds=0.0, kept=tmp_path) == first
    (damaged,) = tmp_path.iterdir()
    damaged.write_bytes(b"{")
    assert lay_out(bench, (CleanUp(),), here, seconds=3, kept=tmp_path)[1] == first[1]
