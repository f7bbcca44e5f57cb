"""What the agent adds to a bare `session.run`, measured in pairs."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.uncertainty.reference_profile import build_reference_profile
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.device.agent import Agent
from edgewright.device.filesystem import FileSystem
from edgewright.device.guard import Guard
from edgewright.device.inference.predictor import LoadedRelease, Predictor
from edgewright.device.monitoring.monitor import Monitor, MonitorThread, open_monitor
from edgewright.device.slots import InstalledRelease
from edgewright.runtime.session import open_onnx_session

__all__ = ["Overhead", "Tail", "overhead", "tail"]

_STRETCHES = 10
_CLASSES = 8
# Calls after which the ring is emptied, outside of what is timed; it holds more.
_EMPTIED = 100
_REFERENCE = 400


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


@dataclass(frozen=True, slots=True)
class Tail:
    """The slowest calls.

    Attributes:
        bare_us: p99.9 of the bare call, microseconds.
        agent_us: p99.9 of the call with the agent.
        noise: p99.9 of the bare call over that of the same call measured beside it.
    """

    bare_us: float
    agent_us: float
    noise: float


def overhead(values: int, *, pairs: int = 10_000, hidden: int = 0, watched: bool = False) -> Overhead:
    """Measure for an input of so many values.

    Args:
        values: Of the input, float32.
        pairs: Of calls with and without, in turns.
        hidden: Width of two hidden layers, 0 for a linear classifier.
        watched: Whether the monitor counts what goes by.
    """
    with _calls(values, hidden, watched=watched) as calls:

        def with_pass() -> Any:
            np.minimum.reduce(calls.flat)
            return calls.without()

        added = _paired(calls.with_agent, calls.without, pairs, calls.empty)
        noise = _paired(calls.without, calls.without, pairs, calls.empty)
        passes = _paired(with_pass, calls.without, pairs, calls.empty)
        return Overhead(values, added[0], abs(noise[0]), added[1], passes[0])


def tail(values: int, *, calls: int = 20_000, hidden: int = 0) -> Tail:
    """Measure the slowest calls with the monitor and its thread, and without, in turns.

    Args:
        values: Of the input, float32.
        calls: Of each kind.
        hidden: Width of two hidden layers, 0 for a linear classifier.
    """
    with _calls(values, hidden, watched=True) as made:
        kinds = (made.with_agent, made.without, made.without)
        times: list[list[int]] = [[], [], []]
        clock = time.perf_counter_ns
        for number in range(calls):
            for turn in range(3):
                which = (number + turn) % 3
                began = clock()
                kinds[which]()
                times[which].append(clock() - began)
            if number % _EMPTIED == 0:
                made.empty()
    agent, bare, again = (float(np.quantile(each, 0.999)) / 1e3 for each in times)
    return Tail(bare, agent, again / bare)


@dataclass(frozen=True, slots=True)
class _Calls:
    """What is compared.

    Attributes:
        with_agent: Call of the agent.
        without: Bare call.
        flat: The input.
        empty: Makes room in the monitor's ring, so that every call is watched and none finds it full.
    """

    with_agent: Callable[[], Any]
    without: Callable[[], Any]
    flat: NDArray[Any]
    empty: Callable[[], Any]


@contextmanager
def _calls(values: int, hidden: int, *, watched: bool) -> Iterator[_Calls]:
    """Yield the calls on one opened model."""
    content = _model(values, hidden)
    bare = ort.InferenceSession(content, _options(), providers=["CPUExecutionProvider"])
    session = open_onnx_session(content)
    # One opened model for both: two would lie elsewhere in memory, which alone makes up to 100 us of 200.
    session._session, session._run = bare, bare.run
    feed: dict[str, NDArray[Any]] = {"x": np.random.default_rng(0).random((1, values), np.float32)}
    contract = ModelSignature(
        inputs=(TensorSpec("x", "float32", ("batch", values), 0.0, 1.0),),
        outputs=(TensorSpec("y", "float32", ("batch", _CLASSES)),),
    )
    guard = Guard(contract)
    with tempfile.TemporaryDirectory() as folder:
        monitor = _monitor(content, contract, guard, Path(folder)) if watched else None
        predictor = Predictor(LoadedRelease(InstalledRelease("m", "1", "0" * 64), session, guard, monitor))
        watch = MonitorThread(lambda: monitor, lambda: True)
        watch.start()
        agent = object.__new__(Agent)  # one without a state folder: what it predicts with is all that is asked for
        agent.predictor = predictor
        empty = bytes if monitor is None else monitor._ring.drain
        yield _Calls(lambda: agent.predict(feed), lambda: bare.run(None, feed), feed["x"].reshape(-1), empty)
        if monitor is not None and monitor._ring.dropped:
            raise RuntimeError(f"{monitor._ring.dropped} calls found no room and were not watched")
        watch.stop()


def _monitor(content: bytes, contract: ModelSignature, guard: Guard, folder: Path) -> Monitor:
    random = np.random.default_rng(2)
    values = int(contract.inputs[0].shape[1])
    inputs = {"x": random.random((_REFERENCE, 1, values), np.float32)}
    labels = random.integers(0, _CLASSES, _REFERENCE)
    dataset = Dataset(inputs, labels, None, "classification", "0" * 64)
    profile = build_reference_profile(content, dataset, contract)
    assert profile is not None
    return open_monitor(msgspec.json.encode(profile), guard, folder / "kept.json", FileSystem())


def _paired(
    call: Callable[[], Any], other: Callable[[], Any], pairs: int, empty: Callable[[], Any]
) -> tuple[float, float]:
    """Return the median difference of two calls in turns, in changing order, and the median of the other, us.

    Of ten stretches that is the least disturbed one's: a busy neighbour makes everything slower for seconds.
    """
    stretches = [_stretch(call, other, max(20, pairs // _STRETCHES), empty) for _ in range(_STRETCHES)]
    return min(stretches, key=lambda stretch: stretch[1])


def _stretch(
    call: Callable[[], Any], other: Callable[[], Any], pairs: int, empty: Callable[[], Any]
) -> tuple[float, float]:
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
        if number % _EMPTIED == 0:
            empty()
    return float(np.median(differences)) / 1e3, float(np.median(others)) / 1e3


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _model(values: int, hidden: int = 0) -> bytes:
    """Return a classifier of eight classes: linear, or with two hidden layers."""
    random = np.random.default_rng(1)
    widths = [values, *([hidden, hidden] if hidden else []), _CLASSES]
    nodes, weights, name = [], [], "x"
    for layer, (rows, columns) in enumerate(pairwise(widths)):
        last = layer == len(widths) - 2
        matrix = (random.normal(size=(rows, columns)) / np.sqrt(rows)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], ["y" if last else f"m{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer}"]))
        name = f"h{layer}"
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", values])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", _CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content
