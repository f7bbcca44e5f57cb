"""Packed weights: bit for bit the same, and gone from the graph once the runtime has loaded it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import optimized
from edgewright.compress.quantize.bit_packing import (
    PACKED_DIGITS,
    bits_per_weight,
    digits_per_word,
    max_packed_integer,
    pack_integers,
)

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]

RANDOM = np.random.default_rng(3)
UNPACKING = {"Div", "Mod", "Gather", "Split", "Reshape"}


def matrix_of(peak: int, kind: type[np.signedinteger[Any]], rows: int = 128, columns: int = 65) -> NDArray[Any]:
    integers = RANDOM.integers(-peak, peak + 1, (rows, columns))
    integers[0, 0], integers[-1, -1] = peak, -peak
    return integers.astype(kind)


@pytest.fixture
def product(built: Build) -> Callable[..., onnx.ModelProto]:
    """A matrix product whose weights are stored as integers with a step per output."""

    def make(codes: NDArray[Any]) -> onnx.ModelProto:
        return built(
            """g (float[n,K] x) => (float[n,N] y) {
                floats = Cast<to = 1>(codes)
                w = Mul(floats, steps)
                y = MatMul(x, w)
            }""",
            codes=codes,
            steps=np.linspace(0.1, 1, codes.shape[1], dtype=np.float32),
        )

    return make


@pytest.mark.parametrize("digits", PACKED_DIGITS)
def test_every_number_of_digits_gives_the_same_answers_bit_for_bit(
    product: Callable[..., onnx.ModelProto], answers: Run, digits: int
) -> None:
    peak = max_packed_integer(digits)
    plain = product(matrix_of(peak, np.int8 if peak <= 127 else np.int16))
    packed = pack_integers(plain)
    x = RANDOM.standard_normal((3, 128)).astype(np.float32)
    np.testing.assert_array_equal(answers(packed, x=x)[0], answers(plain, x=x)[0])
    np.testing.assert_array_equal(answers(packed, "disable", x=x)[0], answers(plain, "disable", x=x)[0])


@pytest.mark.parametrize("digits", [d for d in PACKED_DIGITS if d not in (2, 4)])
def test_the_runtime_folds_the_unpacking_away(product: Callable[..., onnx.ModelProto], digits: int) -> None:
    peak = max_packed_integer(digits)
    packed = pack_integers(product(matrix_of(peak, np.int8 if peak <= 127 else np.int16)))
    assert any(node.op_type in UNPACKING for node in packed.graph.node)  # it was packed indeed
    assert [node.op_type for node in optimized(packed, "all").graph.node] == ["MatMul"]


@pytest.mark.parametrize("digits", [d for d in PACKED_DIGITS if d not in (2, 4)])
def test_the_file_has_the_size_that_the_digits_promise(
    product: Callable[..., onnx.ModelProto], digits: int
) -> None:
    peak = max_packed_integer(digits)
    codes = matrix_of(peak, np.int8 if peak <= 127 else np.int16)
    plain = product(codes)
    packed = pack_integers(plain)
    expected = plain.ByteSize() - codes.nbytes + codes.size * bits_per_weight(digits) / 8
    assert abs(packed.ByteSize() - expected) < 1200 + 2 * peak * 2  # the unpacking, at most one table of integers


@pytest.mark.parametrize("digits", PACKED_DIGITS)
def test_the_peak_of_some_digits_asks_for_these_digits(digits: int) -> None:
    assert digits_per_word(max_packed_integer(digits)) == digits
    if digits != 4:  # a plain byte is no number of some base
        assert (2 * max_packed_integer(digits) + 1) ** digits <= 2**31


@pytest.mark.parametrize("shape", [(5000,), (1, 5000), (10, 5, 10, 10)])
def test_weights_of_every_shape_come_back(built: Build, answers: Run, shape: tuple[int, ...]) -> None:
    codes = RANDOM.integers(-4, 5, shape).astype(np.int8)
    model = built("g (float[1] x) => (float y) { f = Cast<to = 1>(codes)\n y = Mul(f, x) }", codes=codes)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    packed = pack_integers(model)
    assert packed.ByteSize() < model.ByteSize()
    np.testing.assert_array_equal(answers(packed, x=np.array([1], np.float32))[0], codes.astype(np.float32))


def test_scalars_and_small_tensors_are_left_alone(built: Build) -> None:
    model = built(
        """g (float[1] x) => (float[3] y) {
            f = Cast<to = 1>(codes)
            g = Cast<to = 1>(one)
            h = Mul(f, g)
            y = Mul(h, x)
        }""",
        codes=np.array([1, 2, 3], np.int8),
        one=np.int8(1),
    )
    assert [node.op_type for node in pack_integers(model).graph.node] == ["Cast", "Cast", "Mul", "Mul"]


def test_several_tensors_share_one_pool(built: Build, answers: Run) -> None:
    codes = {name: matrix_of(10, np.int8, 40, 41) for name in ("first", "second")}
    model = built(
        """g (float[1] x) => (float[40,41] y, float[40,41] z) {
            f = Cast<to = 1>(first)
            s = Cast<to = 1>(second)
            y = Mul(f, x)
            z = Mul(s, x)
        }""",
        **codes,
    )
    packed = pack_integers(model)
    assert sum(node.op_type == "Mod" for node in packed.graph.node) == 1
    y, z = answers(packed, x=np.array([1], np.float32))
    np.testing.assert_array_equal(y, codes["first"])
    np.testing.assert_array_equal(z, codes["second"])


def test_bytes_and_words_of_one_peak_keep_their_types(built: Build, answers: Run) -> None:
    """-128 needs a peak of 128, as 16-bit integers may: the two must not share a table."""
    byte = matrix_of(127, np.int8)
    byte[0, 0] = -128
    word = matrix_of(600, np.int16)
    small = matrix_of(36, np.int16)
    tight = matrix_of(36, np.int8)
    model = built(
        """g (float[1] x) => (int8[128,65] a, int16[128,65] b, int16[128,65] c, int8[128,65] d) {
            a = Identity(byte)
            b = Identity(word)
            c = Identity(small)
            d = Identity(tight)
        }""",
        byte=byte,
        word=word,
        small=small,
        tight=tight,
    )
    packed = pack_integers(model)
    for have, want in zip(answers(packed, x=np.array([1], np.float32)), (byte, word, small, tight), strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)


def test_integers_too_large_for_two_digits_stay_plain(built: Build, answers: Run) -> None:
    word = matrix_of(32767, np.int16)
    model = built("g (float[1] x) => (int16[128,65] y) { y = Identity(word) }", word=word)
    np.testing.assert_array_equal(answers(pack_integers(model), x=np.array([1], np.float32))[0], word)


def test_operator_sets_that_cannot_unpack_keep_plain_integers(built: Build, answers: Run) -> None:
    codes = matrix_of(4, np.int8)
    model = built("g (float[1] x) => (float[128,65] y) { f = Cast<to = 1>(w)\n y = Mul(f, x) }", opset=9, w=codes)
    np.testing.assert_array_equal(answers(pack_integers(model), x=np.array([1], np.float32))[0], codes)


def test_branches_read_packed_weights(built: Build, answers: Run) -> None:
    codes = matrix_of(4, np.int8)
    model = built(
        """g (float[1] x, bool go) => (float[128,65] y) {
            f = Cast<to = 1>(codes)
            y = If(go) <
                then_branch = yes () => (float[128,65] a) { a = Mul(f, x) },
                else_branch = no () => (float[128,65] b) { b = Identity(f) }
            >
        }""",
        codes=codes,
    )
    packed = pack_integers(model)
    assert packed.ByteSize() < model.ByteSize()
    np.testing.assert_array_equal(answers(packed, x=np.array([2], np.float32), go=np.array(True))[0], 2.0 * codes)
