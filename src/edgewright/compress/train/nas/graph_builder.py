"""An architecture becomes a float ONNX graph with random weights that can stand in for the original model."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgewright.compress.train.data.modality import SampleFormat
from edgewright.compress.train.nas.architecture import Architecture
from edgewright.compress.train.nas.attention_block import add_positions, encoder_block
from edgewright.compress.train.nas.blocks import BLOCK_FUNCTIONS, NetworkSketch, TensorFlow
from edgewright.compress.train.nas.stem import to_map, to_series
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

__all__ = ["GraphActivation", "TargetStatistics", "build_network", "single_input_output"]

GraphActivation: TypeAlias = Literal["logits", "softmax", "sigmoid"]

_OPSET, _IR_VERSION = 20, 9
_MAX_CHANNELS = 512
_OVER_MAPS = frozenset(("plain", "residual", "separable", "inverted", "patches"))


@dataclass(frozen=True, slots=True)
class TargetStatistics:
    """Where the values to be learned lie, so that training need not find that out step by step.

    Attributes:
        mean: [k] mean of each value of the output.
        std: [k] its standard deviation.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def build_network(
    architecture: Architecture,
    contract: ModelSignature,
    *,
    activation: GraphActivation = "logits",
    seed: int = 0,
    form: SampleFormat | None = None,
    targets: TargetStatistics | None = None,
) -> onnx.ModelProto:
    """Return a network with the contract's names, types and shapes.

    Args:
        architecture: What to build.
        contract: Of the original model; the batch axis is free where it is free there.
        activation: What turns the last layer's values into answers.
        seed: Of the weights.
        form: Which axes of the samples mean what; guessed from the sizes if not given.
        targets: For regression and reconstruction.

    Raises:
        CandidateError: The family cannot take this input or give this output.
    """
    source, target = single_input_output(contract)
    sketch = NetworkSketch(np.random.default_rng(seed), frozenset((source.name, target.name)))
    flow = TensorFlow(source.name, tuple(int(size) for size in source.shape[1:]))
    if source.dtype != "float32":
        flow = sketch.node("Cast", "floats", [flow.name], flow.shape, to=onnx.TensorProto.FLOAT)
    features = _features(sketch, architecture, flow, form)
    _head(sketch, features, target, activation, targets)
    return _model(sketch, source, target, architecture)


def single_input_output(contract: ModelSignature) -> tuple[TensorSpec, TensorSpec]:
    """Return the one input and the one output.

    Raises:
        CandidateError: There are several, or their sizes are not fixed.
    """
    if len(contract.inputs) != 1 or len(contract.outputs) != 1:
        raise CandidateError(
            f"no family has {len(contract.inputs)} inputs and {len(contract.outputs)} outputs, only one of each",
            remedy="Prune the original model instead of replacing it.",
        )
    source, target = contract.inputs[0], contract.outputs[0]
    for spec in (source, target):
        batch = bool(spec.shape) and (spec.has_free_batch_axis or spec.shape[0] == 1)
        if not batch or any(not isinstance(size, int) for size in spec.shape[1:]):
            raise CandidateError(
                f"no family fits {spec.name!r} of shape {list(spec.shape)}: it takes a batch axis and fixed sizes",
                remedy="Fix the sizes, or prune the original model instead of replacing it.",
            )
    if not 2 <= len(source.shape) <= 4 or np.dtype(source.dtype).kind not in "fiu":
        raise CandidateError(
            f"no family takes {source.dtype} of shape {list(source.shape)}",
            remedy="Prune the original model instead of replacing it.",
        )
    wide = sum(int(size) > 1 for size in target.shape[1:])
    if not target.dtype.startswith("float") or (wide > 1 and target.shape[1:] != source.shape[1:]):
        raise CandidateError(
            f"no family answers with {target.dtype} of shape {list(target.shape)}",
            remedy="Prune the original model instead of replacing it.",
        )
    return source, target


def _features(s: NetworkSketch, a: Architecture, flow: TensorFlow, form: SampleFormat | None) -> TensorFlow:
    """Draw all but the last layer; return a row of features."""
    if a.family in ("mlp", "bottleneck"):
        flow = s.norm("norm", s.flatten("row", flow))
        for i in range(1, a.depth + 1):
            flow = s.dense(f"layer{i}", flow, a.width)
        if a.family == "mlp":
            return flow
        flow = s.dense("middle", flow, max(1, a.width // (4 * a.expansion)))
        for i in range(1, a.depth + 1):
            flow = s.dense(f"wider{i}", flow, a.width)
        return flow
    flow = to_map(s, flow, form) if a.family in _OVER_MAPS else to_series(s, flow, form)
    if a.family == "gru":
        return _recurrent(s, a, flow)
    if a.family in ("patches", "transformer"):
        flow = add_positions(s, _stem(s, a, flow, clamp=False))
        for i in range(1, a.depth + 1):
            flow = encoder_block(s, f"block{i}", flow, a.expansion)
        return s.global_average(flow)
    flow = _stem(s, a, flow)
    block = BLOCK_FUNCTIONS[a.family]
    for stage in range(1, a.stages + 1):
        channels = min(a.width * 2 ** (stage - 1), max(_MAX_CHANNELS, a.width))
        for i in range(1, a.depth + 1):
            stride = (1, 1)
            if i == 1 and stage > 1:
                stride = (_step(flow.shape[1], 2), _step(flow.shape[2], 2))
            last = 2 ** (i - 1) if a.family == "temporal" else a.expansion
            flow = block(s, f"stage{stage}/block{i}", flow, channels, _window(flow, a.kernel), stride, last)
    return s.global_average(flow)


def _stem(s: NetworkSketch, a: Architecture, flow: TensorFlow, *, clamp: bool = True) -> TensorFlow:
    """Draw the first convolution, which reduces the map."""
    window = _window(flow, max(a.kernel, a.resolution + 1 - a.resolution % 2))
    stride = (_step(flow.shape[1], a.resolution), _step(flow.shape[2], a.resolution))
    return s.conv("stem", flow, a.width, window, stride, clamp=clamp)


def _window(flow: TensorFlow, kernel: int) -> tuple[int, int]:
    """Return a window that is no larger along an axis than what is there to see."""
    height, width = (min(kernel, 2 * size - 1) for size in flow.shape[1:])
    return height, width


def _step(size: int, wanted: int) -> int:
    """Return the stride, smaller where nothing would be left of an axis."""
    while wanted > 1 and size < 2 * wanted:
        wanted //= 2
    return wanted


def _recurrent(s: NetworkSketch, a: Architecture, flow: TensorFlow) -> TensorFlow:
    """Draw gated recurrent layers (Cho 2014, arXiv:1406.1078) over [c, 1, t]; the last state is the answer."""
    flow = _stem(s, a, flow) if a.resolution > 1 else s.norm("norm", flow)
    size, _, steps = flow.shape
    axes = s.constant("squeeze.axes", np.array([2], np.int64))
    flow = s.node("Squeeze", "squeeze", [flow.name, axes], (size, steps))
    sequence = s.node("Transpose", "steps", [flow.name], (steps, size), perm=[2, 0, 1]).name
    for i in range(1, a.depth + 1):
        at, hidden = f"gru{i}", a.width
        parts = [
            s.random_weights(f"{at}.weight", (1, 3 * hidden, size), size, 1.0),
            s.random_weights(f"{at}.recurrent", (1, 3 * hidden, hidden), hidden, 1.0),
            s.zeros(f"{at}.bias", 1, 6 * hidden),
        ]
        s.node("GRU", at, [sequence, *parts], (hidden,), hidden_size=hidden, linear_before_reset=1)
        last = i == a.depth
        s.nodes[-1].output[:] = [f"{at}/all", f"{at}/last"] if last else [f"{at}/all"]
        place = s.constant(f"{at}/squeeze.axes", np.array([0 if last else 1], np.int64))
        flow = s.node("Squeeze", f"{at}/squeeze", [s.nodes[-1].output[-1], place], (hidden,))
        sequence, size = flow.name, hidden
    return flow


def _head(
    s: NetworkSketch,
    features: TensorFlow,
    target: TensorSpec,
    ending: GraphActivation,
    targets: TargetStatistics | None,
) -> None:
    """Draw the last layer and what makes answers of it; the last node writes the output."""
    shape = tuple(int(size) for size in target.shape[1:])
    flow = s.dense("head", features, int(np.prod(shape)), gain=1.0, clamp=False)
    if targets is not None:
        spread = np.broadcast_to(targets.std.reshape(-1), flow.shape)
        s.weights["head.weight"] = (s.weights["head.weight"] * spread[:, None]).astype(np.float32)
        s.weights["head.bias"] = np.broadcast_to(targets.mean.reshape(-1), flow.shape).astype(np.float32)
    if ending == "softmax":
        flow = s.node("Softmax", "ending", [flow.name], flow.shape, axis=-1)
    elif ending == "sigmoid":
        flow = s.node("Sigmoid", "ending", [flow.name], flow.shape)
    if not shape:
        flow = s.node("Reshape", "form", [flow.name, s.constant("form.shape", np.array([-1], np.int64))], ())
    else:
        flow = s.reshape("form", flow, shape)
    if target.dtype != "float32":
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target.dtype))
        flow = s.node("Cast", "answer", [flow.name], shape, to=kind)
    s.nodes[-1].output[0] = target.name


def _model(s: NetworkSketch, source: TensorSpec, target: TensorSpec, a: Architecture) -> onnx.ModelProto:
    def value(spec: TensorSpec) -> Any:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        return onnx.helper.make_tensor_value_info(spec.name, kind, list(spec.shape))

    initializers = [numpy_helper.from_array(array, name) for name, array in s.weights.items()]
    graph = onnx.helper.make_graph(s.nodes, a.family, [value(source)], [value(target)], initializers)
    opset = onnx.helper.make_opsetid("", _OPSET)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="edgewright")
