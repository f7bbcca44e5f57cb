"""What the agent adds to a bare `session.run`, measured in pairs."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgewright.contract.signature import InputContract, TensorSpec
from edgewright.device.guard import Guard
from edgewright.device.predictor import Engine, Predictor
from edgewright.device.slots import Installed
from edgewright.runtime.session import open_session

__all__ = ["Overhead", "overhead"]


@dataclass(frozen=True, slots=True)
class Overhead:
    """What is added to one inference.

    Attributes:
        values: Of the input.
        added_us: Median over rounds of the difference of the calls' medians, microseconds.
        noise_us: The same between the bare call and itself: what this machine's noise alone adds.
        bare_us: Of the bare call.
        pass_us: Of one pass over the input (`numpy.minimum.reduce`).
    """

    values: int
    added_us: float
    noise_us: float
    bare_us: float
    pass_us: float


def overhead(values: int, *, rounds: int = 60, calls: int = 200) -> Overhead:
    """Measure for an input of so many values.

    Args:
        values: Of the input, float32.
        rounds: Each with all calls in turn.
        calls: Of each in a round.
    """
    content = _model(values)
    session = open_session(content)
    bare = ort.InferenceSession(content, _options(), providers=["CPUExecutionProvider"])
    feed: dict[str, NDArray[Any]] = {"x": np.random.default_rng(0).random((1, values), np.float32)}
    contract = InputContract(
        inputs=(TensorSpec("x", "float32", ("batch", values), 0.0, 1.0),),
        outputs=(TensorSpec("y", "float32", ("batch", 8)),),
    )
    predictor = Predictor()
    predictor.switch(Engine(Installed("m", "1", "0" * 64), session, Guard(contract)))
    flat = feed["x"].reshape(-1)
    ways = {
        "agent": lambda: predictor.predict(feed),
        "bare": lambda: bare.run(None, feed),
        "again": lambda: bare.run(None, feed),
        "pass": lambda: np.minimum.reduce(flat),
    }
    medians: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            medians[name].append(_median_us(ways[name], calls))
    found = {name: np.array(times) for name, times in medians.items()}
    return Overhead(
        values,
        float(np.median(found["agent"] - found["bare"])),
        float(np.median(np.abs(found["again"] - found["bare"]))),
        float(np.median(found["bare"])),
        float(np.median(found["pass"])),
    )


def _median_us(call: Any, calls: int) -> float:
    times = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    return float(np.median(times)) / 1e3


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
