"""Laws of weights as integers: rounding keeps half a step, packing keeps every bit."""

from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgewright.compress.model.graph import session_bytes
from edgewright.compress.quantize.bit_packing import (
    PACKED_DIGITS,
    digits_per_word,
    max_packed_integer,
    pack_integers,
)
from edgewright.compress.quantize.weight_quantizer import channel_scales, quantize_weights

weights = hn.arrays(
    np.float32,
    hn.array_shapes(min_dims=1, max_dims=3, max_side=9),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(weights, st.sampled_from([100, 127, 644, 23169]), st.data())
def test_no_weight_moves_by_more_than_half_a_step(
    values: NDArray[np.float32], peak: int, data: st.DataObject
) -> None:
    axes = tuple(data.draw(st.sets(st.integers(0, values.ndim - 1))))
    codes = quantize_weights(values, axes, peak)
    assert codes.integers.shape == values.shape
    assert np.abs(codes.integers.astype(np.int64)).max() <= peak
    error = np.abs(codes.dequantize().astype(np.float64) - values)
    slack = 1e-6 * np.abs(values).astype(np.float64)  # floats have 24 bits
    assert (error <= codes.scales / 2 + slack + np.finfo(np.float32).tiny).all()


@given(weights, st.integers(1, 99), st.data())
def test_the_chosen_step_is_never_worse_than_the_plain_one(
    values: NDArray[np.float32], peak: int, data: st.DataObject
) -> None:
    axes = tuple(data.draw(st.sets(st.integers(0, values.ndim - 1))))
    codes = quantize_weights(values, axes, peak)
    assert (codes.scales > 0).all()
    assert np.abs(codes.integers.astype(np.int64)).max() <= peak
    steps = channel_scales(values, axes, peak)
    plain = np.clip(np.round(values / steps), -peak, peak) * steps
    chosen_loss = np.square(codes.dequantize().astype(np.float64) - values).sum()
    assert chosen_loss <= np.square(plain.astype(np.float64) - values).sum() * (1 + 1e-6) + 1e-60


@given(weights, st.integers(1, 23169))
def test_what_is_encoded_twice_is_the_same(values: NDArray[np.float32], peak: int) -> None:
    first = quantize_weights(values, (0,), peak)
    np.testing.assert_array_equal(first.integers, quantize_weights(values, (0,), peak).integers)


@given(st.integers(1, max_packed_integer(PACKED_DIGITS[0])))
def test_digits_hold_the_peak_and_no_more_digits_would(peak: int) -> None:
    digits = digits_per_word(peak)
    assert max_packed_integer(digits) >= peak
    assert all(max_packed_integer(more) < peak for more in PACKED_DIGITS if more > digits)


@st.composite
def stores(draw: st.DrawFn) -> dict[str, NDArray[Any]]:
    """Draw a few tensors of any shape, type and spread of values."""
    made = {}
    for i in range(draw(st.integers(1, 4))):
        kind: Any = np.dtype(draw(st.sampled_from(["int8", "int16"])))
        info = np.iinfo(kind)
        low = draw(st.integers(info.min, 0))
        high = draw(st.integers(1, info.max))
        shape = draw(hn.array_shapes(min_dims=0, max_dims=3, max_side=40))
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        made[f"w{i}"] = random.integers(low, high + 1, shape).astype(kind)
    return made


@settings(max_examples=60, deadline=None)
@given(stores())
def test_packing_keeps_every_bit_type_and_shape(tensors: dict[str, NDArray[Any]]) -> None:
    names = list(tensors)
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"out_{name}"]) for name in names]
        + [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [
            helper.make_tensor_value_info(f"out_{name}", helper.np_dtype_to_tensor_dtype(t.dtype), t.shape)
            for name, t in tensors.items()
        ]
        + [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    packed = pack_integers(model)
    assert packed.ByteSize() <= model.ByteSize() + 200  # names of nodes, never a tensor's worth
    given_back = session_bytes(packed).run([f"out_{name}" for name in names], {"x": np.zeros(1, np.float32)})
    for name, back in zip(names, given_back, strict=True):
        assert back.dtype == tensors[name].dtype
        np.testing.assert_array_equal(back, tensors[name])
