"""8-bit kernels of x86 without VNNI add pairs of products in 16 bits: there weights keep to half their range."""

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe
from edgewright.compress.search.layer_analysis import has_saturation_free_int8
from edgewright.compress.search.space import build_search_space
from edgewright.profiling.target import Machine

LAPTOP = Machine(
    cpu="laptop",
    cores=4,
    arch="x86_64",
    features=("avx2",),
    memory_bytes=0,
    os="Linux",
    python="3.11",
    runtime="1.31.1",
    providers=("CPUExecutionProvider",),
    runtime_bytes=0,
    meters=(),
)


@pytest.mark.parametrize(
    ("arch", "features", "safe"),
    [
        ("x86_64", ("avx2",), False),
        ("x86_64", ("avx2", "avx512f"), False),
        ("x86_64", ("avx2", "avx_vnni"), True),
        ("x86_64", ("avx512f", "avx512_vnni"), True),
        ("aarch64", ("asimd",), True),
    ],
)
def test_the_target_tells_whether_products_can_saturate(arch: str, features: tuple[str, ...], safe: bool) -> None:
    assert has_saturation_free_int8(msgspec.structs.replace(LAPTOP, arch=arch, features=features)) is safe


def test_no_pair_of_products_exceeds_16_bits(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32]
) -> None:
    cleaned = clean_model(digits_proto)
    seen = collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [{"image": digits_batch}])
    made = quantize_static(cleaned, StaticInt8(max_integer=63), seen)
    weights = [value for value in Graph(made).constants.values() if value.dtype == np.int8 and value.ndim > 1]
    assert len(weights) >= 9
    assert all(2 * 255 * int(np.abs(value.astype(int)).max()) < 2**15 for value in weights)


def test_every_integer_recipe_for_such_a_target_keeps_below(digits_proto: onnx.ModelProto) -> None:
    space = build_search_space(clean_model(digits_proto), {}, {}, max_int8_weight=63)
    steps = [step for idea in space.initial_candidates() for step in space.recipe(idea).steps]
    integer = [step for step in steps if isinstance(step, StaticInt8)]
    assert integer
    assert all(step.max_integer == 63 for step in integer)
