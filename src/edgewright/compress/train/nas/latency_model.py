"""How long a network will take, predicted from what it consists of and the networks measured so far.

The latency of a small network is a sum: a little for each node that the runtime starts, and for each kind of work
what that work costs on this target. The prices are fitted to measurements; while there are few of them, they
stay near prices that are typical of processors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.optimize import nnls

from edgewright.compress.model.graph import Graph, attribute

__all__ = ["LatencyModel", "NetworkFeatures", "network_features"]

_FREE = frozenset("Cast Constant DequantizeLinear Dropout Flatten Identity QuantizeLinear Reshape Squeeze".split())
_FUSED_BEHIND = {
    "BatchNormalization": frozenset(("Conv", "ConvTranspose")),
    "Clip": frozenset(("Add", "BatchNormalization", "Conv", "Gemm", "MatMul")),
    "Relu": frozenset(("Add", "BatchNormalization", "Conv", "Gemm", "MatMul")),
}
_RECURRENT = frozenset(("GRU", "LSTM", "RNN"))
_MIN_MEASURED = 4
# Relative errors while nothing but typical prices is known, and the least that any measurement carries.
_UNKNOWN, _GUESSED, _LEAST = 1.0, 0.5, 0.02
_TIES = tuple(10.0**power for power in range(1, -11, -1))


class NetworkFeatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an inference consists of, after the fusions that every runtime does.

    Attributes:
        calls: Always 1: the call itself.
        dense_nodes: Convolutions that mix channels.
        depthwise_nodes: Convolutions of few channels per group.
        product_nodes: Matrix products.
        light_nodes: Everything else that touches values.
        steps: Of recurrent layers.
        windows: Thousand values of one channel that dense convolutions gather, place by place: what narrow
            convolutions take as long for as wide ones.
        dense_macs: Million multiply-accumulates of dense convolutions.
        depthwise_macs: Million, of grouped convolutions.
        product_macs: Million, of matrix products.
        recurrent_macs: Million, of recurrent layers.
        values: Thousand values that the nodes write.
    """

    calls: float = 1.0
    dense_nodes: float = 0.0
    depthwise_nodes: float = 0.0
    product_nodes: float = 0.0
    light_nodes: float = 0.0
    steps: float = 0.0
    windows: float = 0.0
    dense_macs: float = 0.0
    depthwise_macs: float = 0.0
    product_macs: float = 0.0
    recurrent_macs: float = 0.0
    values: float = 0.0

    @property
    def to_array(self) -> NDArray[np.float64]:
        """Return the numbers in order."""
        return np.array(msgspec.structs.astuple(self), np.float64)


# Typical prices in microseconds, in the order of the features; only their proportions matter.
_TYPICAL_COEFFICIENTS = np.array([8.0, 2.0, 2.0, 2.0, 1.0, 0.5, 3.0, 5.0, 120.0, 20.0, 100.0, 0.05])


def network_features(model: onnx.ModelProto) -> NetworkFeatures:
    """Return what a model consists of; float graphs and their integer forms give nearly the same."""
    graph = Graph(model)
    producers = graph.producers()
    counts = dict.fromkeys(NetworkFeatures.__struct_fields__, 0.0) | {"calls": 1.0}
    for node in graph.nodes:
        source = producers.get(node.input[0]) if node.input else None
        fused = source is not None and source.op_type in _FUSED_BEHIND.get(node.op_type, ())
        if fused or node.op_type in _FREE or all(name in graph.constants for name in node.input):
            continue
        shape = _sizes(graph, node.output[0])
        counts["values"] += np.prod(shape) / 1e3
        if node.op_type in ("Conv", "ConvTranspose"):
            weight = _sizes(graph, node.input[1])
            kind = "dense" if attribute(node, "group", 1) == 1 else "depthwise"
            counts[f"{kind}_nodes"] += 1
            if kind == "dense":
                counts["windows"] += np.prod(weight[2:]) * np.prod(shape[2:]) / 1e3
            counts[f"{kind}_macs"] += np.prod(weight) * np.prod(shape[2:]) / 1e6
        elif node.op_type in ("Gemm", "MatMul"):
            left = _sizes(graph, node.input[0])
            counts["product_nodes"] += 1
            counts["product_macs"] += np.prod(shape) * (left[-1] if left else 1) / 1e6
        elif node.op_type in _RECURRENT:
            steps = _sizes(graph, node.input[0])[0]
            weights = np.prod(_sizes(graph, node.input[1])) + np.prod(_sizes(graph, node.input[2]))
            counts["steps"] += steps
            counts["recurrent_macs"] += steps * weights / 1e6
        else:
            counts["light_nodes"] += 1
    return NetworkFeatures(**{name: float(value) for name, value in counts.items()})


def _sizes(graph: Graph, name: str) -> tuple[int, ...]:
    """Return a tensor's shape for one sample; free axes count as 1."""
    return tuple(size or 1 for size in graph.shapes.get(name, (1,)))


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Prices, and how far predictions with them may be off.

    Attributes:
        coefficients: Per feature, in units of the measured ratios.
        relative_error: Relative error of predicting a network that was not measured (root mean square).
        measured_networks: How many networks were measured.
    """

    coefficients: NDArray[np.float64]
    relative_error: float
    measured_networks: int
    _units: NDArray[np.float64]
    _spread: NDArray[np.float64]

    @classmethod
    def fit(
        cls, seen: Iterable[NetworkFeatures], ratios: Sequence[float], *, original: NetworkFeatures | None = None
    ) -> "LatencyModel":
        """Fit prices to measured latencies.

        Prices are not negative, the squared relative error is minimised, and prices are tied to the typical
        ones as tightly as predicts left-out measurements best.

        Args:
            seen: What the measured networks consist of, all in one form (float, or 8 bit).
            ratios: Their latencies in any one unit, for example the original's latency.
            original: What the original consists of: of use only while nothing is measured.

        Raises:
            ValueError: Not as many features as latencies, a latency that is not positive, or neither
                measurements nor an original.
        """
        rows = np.array([each.to_array for each in seen]).reshape(-1, len(_TYPICAL_COEFFICIENTS))
        latencies = np.asarray(ratios, np.float64)
        if len(rows) != len(latencies) or not (latencies > 0).all():
            raise ValueError(f"{len(rows)} networks with the latencies {latencies.tolist()}")
        if not len(rows):
            if original is None:
                raise ValueError("neither measurements nor an original")
            units = _TYPICAL_COEFFICIENTS / float(original.to_array @ _TYPICAL_COEFFICIENTS)
            return cls(units, _UNKNOWN, 0, units, np.zeros((len(units), len(units))))
        units = _units(rows, latencies)
        if len(rows) < _MIN_MEASURED:
            return cls(units, _GUESSED, len(rows), units, np.zeros((len(units), len(units))))
        errors = [_leave_one_out_error(rows, latencies, tie) for tie in _TIES]
        tie = _TIES[int(np.argmin(errors))]
        scaled = rows * units / latencies[:, None]
        spread = np.asarray(np.linalg.inv(scaled.T @ scaled + tie * np.eye(len(units))), np.float64)
        return cls(_solve(rows, latencies, tie), max(min(errors), _LEAST), len(rows), units, spread)

    def predict(self, network: NetworkFeatures) -> tuple[float, float]:
        """Return the latency in the unit of the measured ones, and its relative standard error.

        The error grows for networks that are unlike all measured ones.
        """
        ratio = max(float(network.to_array @ self.coefficients), float(np.finfo(np.float64).tiny))
        place = network.to_array * self._units / ratio
        return ratio, self.relative_error * float(np.sqrt(1 + place @ self._spread @ place))


def _units(rows: NDArray[np.float64], latencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the typical prices in the unit of the latencies."""
    return np.asarray(_TYPICAL_COEFFICIENTS * float(np.median(latencies / (rows @ _TYPICAL_COEFFICIENTS))))


def _solve(rows: NDArray[np.float64], latencies: NDArray[np.float64], tie: float) -> NDArray[np.float64]:
    """Return prices >= 0 that are tied to the typical ones."""
    units = _units(rows, latencies)
    scaled = rows * units / latencies[:, None]
    count = len(units)
    matrix = np.vstack([scaled, np.sqrt(tie) * np.eye(count)])
    wanted = np.concatenate([np.ones(len(rows)), np.full(count, np.sqrt(tie))])
    return np.asarray(nnls(matrix, wanted)[0] * units)


def _leave_one_out_error(rows: NDArray[np.float64], latencies: NDArray[np.float64], tie: float) -> float:
    """Return the relative error of predicting each network from the others, root mean square."""
    errors = []
    for i in range(len(rows)):
        others = np.arange(len(rows)) != i
        errors.append(rows[i] @ _solve(rows[others], latencies[others], tie) / latencies[i] - 1)
    return float(np.sqrt(np.mean(np.square(errors))))
