"""What the agent adds to a bare `session.run`, measured in pairs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgewright.contract.signature import InputContract, TensorSpec
from edgewright.device.agent import Agent
from edgewright.device.guard import Guard
from edgewright.device.predictor import Engine, Predictor
from edgewright.device.slots import Installed
from edgewright.runtime.session import open_session

__all__ = ["Overhead", "overhead"]

_STRETCHES = 10


@dataclass(frozen=True, slots=True)
class Overhead:
    """What is added to one inference.

    Attributes:
        values: Of the input.
        added_us: Median difference of a call with the agent and a bare one right before or after, microseconds.
        noise_us: The same between the bare call and itself: what this machine's noise alone adds.
        bare_us: Of the bare call.
        pass_us: What one pass over the input (`numpy.minimum.reduce`) adds to a bare call, measured likewise.
    """

    values: int
    added_us: float
    noise_us: float
    bare_us: float
    pass_us: float


def overhead(values: int, *, pairs: int = 10_000) -> Overhead:
    """Measure for an input of so many values.

    Args:
        values: Of the input, float32.
        pairs: Of calls with and without, in turns.
    """
    content = _model(values)
    bare = ort.InferenceSession(content, _options(), providers=["CPUExecutionProvider"])
    session = open_session(content)
    # One opened model for both: two would lie elsewhere in memory, which alone makes up to 100 us of 200.
    session._session, session._run = bare, bare.run
    feed: dict[str, NDArray[Any]] = {"x": np.random.default_rng(0).random((1, values), np.float32)}
    contract = InputContract(
        inputs=(TensorSpec("x", "float32", ("batch", values), 0.0, 1.0),),
        outputs=(TensorSpec("y", "float32", ("batch", 8)),),
    )
    predictor = Predictor(Engine(Installed("m", "1", "0" * 64), session, Guard(contract)))
    agent = object.__new__(Agent)  # one without a state folder: what it predicts with is all that is asked for
    agent.predictor = predictor
    flat = feed["x"].reshape(-1)

    def with_guard() -> Any:
        return agent.predict(feed)

    def without() -> Any:
        return bare.run(None, feed)

    def with_pass() -> Any:
        np.minimum.reduce(flat)
        return bare.run(None, feed)

    added, noise = _paired(with_guard, without, pairs), _paired(without, without, pairs)
    return Overhead(values, added[0], abs(noise[0]), added[1], _paired(with_pass, without, pairs)[0])


def _paired(call: Callable[[], Any], other: Callable[[], Any], pairs: int) -> tuple[float, float]:
    """Return the median difference of two calls in turns, in changing order, and the median of the other, us.

    Of ten stretches that is the least disturbed one's: a busy neighbour makes everything slower for seconds.
    """
    stretches = [_stretch(call, other, max(20, pairs // _STRETCHES)) for _ in range(_STRETCHES)]
    return min(stretches, key=lambda stretch: stretch[1])


def _stretch(call: Callable[[], Any], other: Callable[[], Any], pairs: int) -> tuple[float, float]:
    differences, others = [], []
    clock = time.perf_counter_ns
    for number in range(pairs):
        first, second = (call, other) if number % 2 else (other, call)
        began = clock()
        first()
        between = clock()
        second()
        ended = clock()
        one, two = between - began, ended - between
        differences.append(one - two if number % 2 else two - one)
        others.append(two if number % 2 else one)
    return float(np.median(differences)) / 1e3, float(np.median(others)) / 1e3


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _model(values: int) -> bytes:
    """Return a linear classifier of eight classes."""
    weights = np.random.default_rng(1).normal(size=(values, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", values])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content
