"""Attention over the positions of a map, out of layers that become integers: 1x1 convolutions with normalisation.

Normalisation over the batch in place of that over the channels is folded away after training (LeViT, Graham 2021,
arXiv:2104.01136). Few positions attend through a softmax; many through products of clamped queries and keys,
whose cost grows with their number only linearly (Katharopoulos 2020, arXiv:2006.16236; clamped as in
EfficientViT, Cai 2022, arXiv:2205.14756).
"""

import numpy as np

from edgewright.compress.train.nas.blocks import NetworkSketch, TensorFlow

__all__ = ["MAX_SOFTMAX_TOKENS", "add_positions", "encoder_block"]

MAX_SOFTMAX_TOKENS = 128


def add_positions(s: NetworkSketch, x: TensorFlow) -> TensorFlow:
    """Lay the positions of [c, h, w] out in one row [c, 1, t] and add to each what tells it from the others."""
    x = s.reshape("tokens", x, (x.channels, 1, x.shape[1] * x.shape[2]))
    places = s.random.standard_normal((1, *x.shape)) * 0.1
    return s.node("Add", "places", [x.name, s.constant("places.weight", places.astype(np.float32))], x.shape)


def encoder_block(s: NetworkSketch, at: str, x: TensorFlow, expansion: int) -> TensorFlow:
    """Draw one block: attention, then a mixture of the channels, each with what leads past it."""
    mixed = s.conv(f"{at}/project", _attended(s, at, x), x.channels, clamp=False, scale=0.5)
    x = s.add(f"{at}/add1", mixed, x, clamp=False)
    inner = s.conv(f"{at}/widen", x, x.channels * expansion)
    inner = s.conv(f"{at}/narrow", inner, x.channels, clamp=False, scale=0.5)
    return s.add(f"{at}/add2", inner, x, clamp=False)


def _attended(s: NetworkSketch, at: str, x: TensorFlow) -> TensorFlow:
    """Return [c, 1, t]: for each position a mixture of all positions' values."""
    channels, _, count = x.shape
    size = next(size for size in (16, 8, channels) if channels % size == 0)
    heads, linear = channels // size, count > MAX_SOFTMAX_TOKENS
    scale = np.ones((heads, 3, size))
    scale[:, 0] = 1.0 if linear else size**-0.5  # queries; the temperature of the softmax costs no node so
    made = s.conv(f"{at}/qkv", x, 3 * channels, clamp=False, scale=scale.reshape(-1))
    made = s.reshape(f"{at}/heads", made, (heads, 3 * size, count))
    sizes = s.constant(f"{at}/split.sizes", np.array([size] * 3, np.int64))
    s.node("Split", f"{at}/split", [made.name, sizes], (heads, size, count), axis=2)
    parts = [TensorFlow(f"{at}/{part}", (heads, size, count)) for part in ("q", "k", "v")]
    s.nodes[-1].output[:] = [part.name for part in parts]
    mixed = (_linear if linear else _softmax)(s, at, *parts)
    return s.reshape(f"{at}/merged", mixed, x.shape)


def _transpose_last(s: NetworkSketch, x: TensorFlow) -> TensorFlow:
    """Exchange the last two axes; the runtime makes it part of the product that follows."""
    heads, rows, columns = x.shape
    return s.node("Transpose", f"{x.name}/turned", [x.name], (heads, columns, rows), perm=[0, 1, 3, 2])


def _product(s: NetworkSketch, name: str, a: TensorFlow, b: TensorFlow) -> TensorFlow:
    return s.node("MatMul", name, [a.name, b.name], (a.shape[0], a.shape[1], b.shape[2]))


def _softmax(s: NetworkSketch, at: str, q: TensorFlow, k: TensorFlow, v: TensorFlow) -> TensorFlow:
    scores = _product(s, f"{at}/scores", _transpose_last(s, q), k)
    shares = s.node("Softmax", f"{at}/shares", [scores.name], scores.shape, axis=-1)
    return _product(s, f"{at}/mixed", v, _transpose_last(s, shares))


def _linear(s: NetworkSketch, at: str, q: TensorFlow, k: TensorFlow, v: TensorFlow) -> TensorFlow:
    q, k = s.relu(q), _transpose_last(s, s.relu(k))
    axes = s.constant(f"{at}/total.axes", np.array([2], np.int64))
    total = s.node("ReduceSum", f"{at}/total", [k.name, axes], (k.shape[0], 1, k.shape[2]), keepdims=1)
    weight = _product(s, f"{at}/weight", total, q)
    least = s.constant(f"{at}/least.value", np.array(1e-3, np.float32))
    weight = s.node("Add", f"{at}/least", [weight.name, least], weight.shape)
    mixed = _product(s, f"{at}/mixed", _product(s, f"{at}/pairs", v, k), q)
    return s.node("Div", f"{at}/share", [mixed.name, weight.name], mixed.shape)
