"""Drawing a network as an ONNX graph: layers with their random weights, and the blocks of the families.

Maps are [n, channels, height, width]; a series is a map of height 1, since onnxruntime has its fast kernels
for two dimensions. Each layer's name says where it stands, so that weights can be inherited by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["BLOCK_FUNCTIONS", "BlockFunction", "NetworkSketch", "TensorFlow"]


@dataclass(frozen=True, slots=True)
class TensorFlow:
    """A tensor that is being computed: its name, and its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Size of the first axis after the batch."""
        return self.shape[0]


@dataclass(slots=True)
class NetworkSketch:
    """Nodes and weights so far.

    Attributes:
        random: Where the weights come from.
        taken: Names that belong to the graph's inputs and outputs.
        nodes: In order.
        weights: Initializers by name.
    """

    random: np.random.Generator
    taken: frozenset[str] = frozenset()
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)

    def node(
        self, op: str, name: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any
    ) -> TensorFlow:
        """Add a node whose output bears its name."""
        made = f"{name}/out" if name in self.taken else name
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [made], name=name, **attributes))
        return TensorFlow(made, tuple(shape))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        name = f"{name}/constant" if name in self.taken else name
        self.weights[name] = value
        return name

    def random_weights(self, name: str, shape: Sequence[int], fan_in: int, gain: float = 2.0) -> str:
        """Add weights with the variance gain / fan_in (He 2015, arXiv:1502.01852)."""
        values = self.random.standard_normal(tuple(shape)) * np.sqrt(gain / fan_in)
        return self.constant(name, values.astype(np.float32))

    def zeros(self, name: str, *shape: int) -> str:
        """Add zeros."""
        return self.constant(name, np.zeros(shape, np.float32))

    def norm(self, name: str, flow: TensorFlow, scale: float | NDArray[np.float64] = 1.0) -> TensorFlow:
        """Normalise each channel over the batch; folded into the layer before it when training is over."""
        count = flow.channels
        parts = {"scale": np.broadcast_to(scale, count), "bias": np.zeros(count), "mean": np.zeros(count)}
        parts["var"] = np.ones(count)
        names = [self.constant(f"{name}.{part}", value.astype(np.float32)) for part, value in parts.items()]
        return self.node("BatchNormalization", name, [flow.name, *names], flow.shape)

    def relu(self, flow: TensorFlow) -> TensorFlow:
        """Clamp at zero."""
        return self.node("Relu", f"{flow.name}/relu", [flow.name], flow.shape)

    def conv(
        self,
        name: str,
        flow: TensorFlow,
        channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        *,
        depthwise: bool = False,
        dilation: int = 1,
        clamp: bool = True,
        scale: float | NDArray[np.float64] = 1.0,
    ) -> TensorFlow:
        """Convolve, normalise and clamp; the map keeps its sides but for the stride.

        Args:
            name: Of the layer.
            flow: [c, h, w].
            channels: Of the output; as many as of the input if depthwise.
            kernel: Odd sides.
            stride: Per side.
            depthwise: One filter per channel.
            dilation: Distance between the window's values along the last axis.
            clamp: Whether a Relu follows.
            scale: What the normalisation begins with.
        """
        inner = 1 if depthwise else flow.channels
        height, width = flow.shape[1:]
        weight = self.random_weights(f"{name}.weight", (channels, inner, *kernel), inner * kernel[0] * kernel[1])
        above, left = kernel[0] // 2, dilation * (kernel[1] // 2)
        made = self.node(
            "Conv",
            name,
            [flow.name, weight],
            (channels, -(-height // stride[0]), -(-width // stride[1])),
            kernel_shape=list(kernel),
            strides=list(stride),
            pads=[above, left, above, left],
            dilations=[1, dilation],
            group=flow.channels if depthwise else 1,
        )
        made = self.norm(f"{name}/norm", made, scale)
        return self.relu(made) if clamp else made

    def add(self, name: str, first: TensorFlow, second: TensorFlow, *, clamp: bool = True) -> TensorFlow:
        """Add two maps of one shape."""
        made = self.node("Add", name, [first.name, second.name], first.shape)
        return self.relu(made) if clamp else made

    def dense(
        self, name: str, flow: TensorFlow, count: int, *, gain: float = 2.0, clamp: bool = True
    ) -> TensorFlow:
        """Multiply [n, k] by a matrix and add a bias."""
        size = flow.shape[0]
        parts = [
            self.random_weights(f"{name}.weight", (count, size), size, gain),
            self.zeros(f"{name}.bias", count),
        ]
        made = self.node("Gemm", name, [flow.name, *parts], (count,), transB=1)
        return self.relu(made) if clamp else made

    def reshape(self, name: str, flow: TensorFlow, shape: Sequence[int]) -> TensorFlow:
        """Give each sample another shape of the same size."""
        if tuple(shape) == flow.shape:
            return flow
        target = self.constant(f"{name}.shape", np.array([0, *shape], np.int64))
        return self.node("Reshape", name, [flow.name, target], shape)

    def flatten(self, name: str, flow: TensorFlow) -> TensorFlow:
        """Lay each sample out as one row."""
        if len(flow.shape) == 1:
            return flow
        return self.node("Flatten", name, [flow.name], (int(np.prod(flow.shape)),), axis=1)

    def global_average(self, flow: TensorFlow) -> TensorFlow:
        """Average each channel over the map and lay the averages out as one row."""
        if flow.shape[1:] != (1, 1):
            flow = self.node("GlobalAveragePool", "pool", [flow.name], (flow.channels, 1, 1))
        return self.flatten("features", flow)


BlockFunction: TypeAlias = Callable[
    [NetworkSketch, str, TensorFlow, int, tuple[int, int], tuple[int, int], int], TensorFlow
]


def plain_block(
    s: NetworkSketch,
    at: str,
    x: TensorFlow,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    _: int,
) -> TensorFlow:
    """Draw one convolution."""
    return s.conv(f"{at}/conv", x, channels, kernel, stride)


def residual_block(
    s: NetworkSketch,
    at: str,
    x: TensorFlow,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    _: int,
) -> TensorFlow:
    """Draw two convolutions and what leads past them (He 2015, arXiv:1512.03385)."""
    inner = s.conv(f"{at}/conv1", x, channels, kernel, stride)
    inner = s.conv(f"{at}/conv2", inner, channels, kernel, clamp=False, scale=0.5)
    if inner.shape != x.shape:
        x = s.conv(f"{at}/past", x, channels, (1, 1), stride, clamp=False)
    return s.add(f"{at}/add", inner, x)


def separable_block(
    s: NetworkSketch,
    at: str,
    x: TensorFlow,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    _: int,
) -> TensorFlow:
    """Draw one filter per channel, then a mixture of the channels (Howard 2017, arXiv:1704.04861)."""
    inner = s.conv(f"{at}/each", x, x.channels, kernel, stride, depthwise=True)
    return s.conv(f"{at}/mix", inner, channels)


def inverted_block(
    s: NetworkSketch,
    at: str,
    x: TensorFlow,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    expansion: int,
) -> TensorFlow:
    """Draw an inverted residual: widen, one filter per channel, narrow (Sandler 2018, arXiv:1801.04381)."""
    wide, past = x.channels * expansion, stride == (1, 1) and channels == x.channels
    inner = s.conv(f"{at}/widen", x, wide) if expansion > 1 else x
    inner = s.conv(f"{at}/each", inner, wide, kernel, stride, depthwise=True)
    inner = s.conv(f"{at}/narrow", inner, channels, clamp=False, scale=0.5 if past else 1.0)
    return s.add(f"{at}/add", inner, x, clamp=False) if past else inner


def dilated_block(
    s: NetworkSketch,
    at: str,
    x: TensorFlow,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: int,
) -> TensorFlow:
    """Draw a residual block over spread-out moments (Bai 2018, arXiv:1803.01271), seeing both sides."""
    inner = s.conv(f"{at}/spread", x, channels, kernel, stride, dilation=dilation)
    inner = s.conv(f"{at}/mix", inner, channels, clamp=False, scale=0.5)
    if inner.shape != x.shape:
        x = s.conv(f"{at}/past", x, channels, (1, 1), stride, clamp=False)
    return s.add(f"{at}/add", inner, x)


BLOCK_FUNCTIONS: dict[str, BlockFunction] = {
    "plain": plain_block,
    "residual": residual_block,
    "separable": separable_block,
    "inverted": inverted_block,
    "plain1d": plain_block,
    "residual1d": residual_block,
    "separable1d": separable_block,
    "temporal": dilated_block,
}
