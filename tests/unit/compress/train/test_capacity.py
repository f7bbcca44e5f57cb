"""Capacity: deeper, wider and of larger windows is more, as far as layers alone can tell."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import pytest

from edgewright.compress.train.capacity import capacity

Build = Callable[..., onnx.ModelProto]


@pytest.fixture
def net(built: Build) -> Callable[..., float]:
    """Return the capacity of a plain network of 3 x 3 convolutions on 8 x 8 images, pooled, with ten classes."""

    def make(depth: int = 3, width: int = 16, window: int = 3, classes: int = 10) -> float:
        weights = {"w0": np.zeros((width, 1, window, window), np.float32)}
        for i in range(1, depth):
            weights[f"w{i}"] = np.zeros((width, width, window, window), np.float32)
        pad = window // 2
        conv = f"Conv<pads=[{pad},{pad},{pad},{pad}]>"
        layers = [f"c{i} = {conv}(h{i}, w{i})\n h{i + 1} = Relu(c{i})" for i in range(depth)]
        head = f"p = GlobalAveragePool(h{depth})\n f = Flatten(p)\n y = Gemm(f, v)"
        body = ["h0 = Identity(x)", *layers, head]
        text = f"g (float[n,1,8,8] x) => (float[n,{classes}] y) {{ {chr(10).join(body)} }}"
        return capacity(built(text, **weights, v=np.zeros((width, classes), np.float32)))

    return make


@pytest.mark.parametrize(
    ("name", "values"), [("depth", (1, 2, 3, 6)), ("width", (4, 8, 32, 128)), ("window", (1, 3, 5))]
)
def test_more_of_it_is_more_capacity(net: Callable[..., float], name: str, values: tuple[int, ...]) -> None:
    found = [net(**{name: value}) for value in values]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def test_depth_is_worth_more_than_one_wide_layer(net: Callable[..., float]) -> None:
    assert net(depth=6, width=16) > net(depth=2, width=64)


def test_width_counts_by_its_logarithm(net: Callable[..., float]) -> None:
    steps = [later - earlier for earlier, later in pairwise([net(width=w) for w in (8, 16, 32, 64)])]
    assert max(steps) < 2 * min(steps)


def test_the_head_does_not_count(net: Callable[..., float]) -> None:
    assert net(classes=10) == net(classes=1000)


def test_a_network_without_a_layer_before_its_head_has_none(built: Build) -> None:
    alone = built("g (float[n,4] x) => (float[n,2] y) { y = MatMul(x, w) }", w=np.zeros((4, 2), np.float32))
    assert capacity(alone) == 0
    assert capacity(built("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")) == 0


def test_a_depthwise_layer_is_worth_less_than_a_dense_one(built: Build) -> None:
    def two(group: int) -> float:
        weights = np.zeros((16, 16 // group, 3, 3), np.float32)
        text = (
            "g (float[n,16,8,8] x) => (float[n,2] y) {"
            f" h = Conv<group={group}, pads=[1,1,1,1]>(x, w)\n p = GlobalAveragePool(h)\n"
            " f = Flatten(p)\n y = Gemm(f, v) }"
        )
        return capacity(built(text, w=weights, v=np.zeros((16, 2), np.float32)))

    assert 0 < two(16) < two(1)
