"""Weights stored in few bits: the runtime turns them back when it loads, and computes as before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model, optimized
from edgewright.compress.model.strip_metadata import strip_model
from edgewright.compress.quantize.bit_packing import pack_integers
from edgewright.compress.quantize.weight_only import (
    StoreHalfWeights,
    StoreIntegerWeights,
    store_half_weights,
    store_integer_weights,
    stored_layers,
)

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
Decibels = Callable[[list[NDArray[Any]], list[NDArray[Any]]], float]

RANDOM = np.random.default_rng(2)


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("peak", "least_db", "share"), [(127, 35, 0.28), (36, 25, 0.23), (6, 10, 0.16)])
def test_fewer_bits_make_a_smaller_file_of_the_same_kernels(
    digits_proto: onnx.ModelProto,
    digits_batch: NDArray[np.float32],
    answers: Run,
    decibels: Decibels,
    peak: int,
    least_db: float,
    share: float,
) -> None:
    cleaned = clean_model(digits_proto)
    made = strip_model(pack_integers(store_integer_weights(cleaned, StoreIntegerWeights(max_integer=peak))))
    assert decibels(answers(digits_proto, image=digits_batch), answers(made, image=digits_batch)) > least_db
    assert made.ByteSize() < share * digits_proto.ByteSize()
    kernels = [sorted(node.op_type for node in optimized(model, "all").graph.node) for model in (made, cleaned)]
    assert kernels[0] == kernels[1]


def test_single_layers_can_have_a_peak_of_their_own(digits_proto: onnx.ModelProto) -> None:
    cleaned = clean_model(digits_proto)
    layer = stored_layers(Graph(cleaned))[1]
    made = Graph(store_integer_weights(cleaned, StoreIntegerWeights(max_integer_by_layer={layer.layer: 3})))
    largest = {name: np.abs(value).max() for name, value in made.constants.items() if value.dtype == np.int8}
    assert sorted(set(largest.values())) == [3, 127]


def test_half_precision_halves_the_file(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32], answers: Run, decibels: Decibels
) -> None:
    made = strip_model(store_half_weights(clean_model(digits_proto), StoreHalfWeights()))
    assert made.ByteSize() < 0.52 * digits_proto.ByteSize()
    assert decibels(answers(digits_proto, image=digits_batch), answers(made, image=digits_batch)) > 55


def test_weights_beyond_half_precision_stay_floats(built: Build, answers: Run) -> None:
    weights = normal(16, 16)
    weights[0, 0] = 1e6
    model = built("g (float[n,16] x) => (float[n,16] y) { y = MatMul(x, w) }", w=weights)
    x = np.eye(16, dtype=np.float32)
    np.testing.assert_array_equal(answers(store_half_weights(model, StoreHalfWeights()), x=x)[0], weights)


@pytest.mark.parametrize(
    ("body", "shapes", "axes"),
    [
        ("y = Conv(x, w)", (8, 4, 3, 3), (0,)),
        ("y = ConvTranspose(x, w)", (4, 8, 3, 3), (1,)),
        ("f = Flatten(x)\n y = Gemm(f, w)", (256, 8), (1,)),
        ("f = Flatten(x)\n y = Gemm<transB = 1>(f, w)", (8, 256), (0,)),
        ("y = MatMul(x, w)", (8, 40), (1,)),
        ("y = MatMul(x, w)", (4, 8, 40), (0, 2)),
        ("i = Cast<to = 7>(x)\n y = Gather(w, i)", (10, 20), (0,)),
    ],
)
def test_every_kind_of_layer_has_a_step_per_channel(
    built: Build, answers: Run, decibels: Decibels, body: str, shapes: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    model = built(f"g (float[2,4,8,8] x) => (float y) {{ {body} }}", w=normal(*shapes))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (weight,) = stored_layers(Graph(model))
    assert weight.channel_axes == axes
    x = RANDOM.integers(0, 10, (2, 4, 8, 8)).astype(np.float32)
    made = store_integer_weights(model, StoreIntegerWeights())
    assert decibels(answers(model, x=x), answers(made, x=x)) > 35


def test_recurrent_layers_are_stored_with_a_step_per_gate(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        "g (float[5,2,12] x) => (float[5,1,2,16] y) { y = LSTM<hidden_size = 16>(x, w, r, b) }",
        w=normal(1, 64, 12) / 3,
        r=normal(1, 64, 16) / 3,
        b=normal(1, 128),
    )
    assert len(stored_layers(Graph(model))) == 2
    x = normal(5, 2, 12)
    assert decibels(answers(model, x=x), answers(store_integer_weights(model, StoreIntegerWeights()), x=x)) > 30


def test_a_weight_that_two_layers_share_is_stored_once(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        "g (float[n,16] x) => (float[n,16] y) { h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, w) }",
        w=normal(16, 16),
    )
    made = store_integer_weights(model, StoreIntegerWeights())
    assert sum(node.op_type == "Mul" for node in made.graph.node) == 1
    x = normal(3, 16)
    assert decibels(answers(model, x=x), answers(made, x=x)) > 30


def test_weights_inside_branches_are_stored(built: Build, answers: Run, decibels: Decibels) -> None:
    model = built(
        """g (float[3,16] x, bool go) => (float[3,16] y) {
            y = If(go) <
                then_branch = yes () => (float[3,16] a) { a = MatMul(x, w) },
                else_branch = no () => (float[3,16] b) { b = Neg(x) }
            >
        }""",
        w=normal(16, 16),
    )
    made = strip_model(store_integer_weights(clean_model(model), StoreIntegerWeights()))
    assert made.ByteSize() < model.ByteSize()
    feed = {"x": normal(3, 16), "go": np.array(True)}
    assert decibels(answers(model, **feed), answers(made, **feed)) > 30


def test_a_table_of_masks_with_infinity_stays_as_it_is(built: Build, answers: Run) -> None:
    mask = np.triu(np.full((16, 16), -np.inf, np.float32), 1)
    model = built("g (int64[n] x) => (float[n,16] y) { y = Gather(mask, x) }", mask=mask)
    assert stored_layers(Graph(model)) == []
    made = store_half_weights(store_integer_weights(model, StoreIntegerWeights()), StoreHalfWeights())
    np.testing.assert_array_equal(answers(made, x=np.arange(16))[0], mask)
