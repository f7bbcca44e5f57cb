"""How much noise each layer brings into the answers, and how few bits each can do with.

Noise of different layers adds up, since rounding errors are nearly independent; so one measurement per layer
predicts every mixture, and the best mixture for a total noise is a Lagrangian problem over single layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, session_bytes
from edgewright.compress.quantize.bit_packing import PACKED_DIGITS, bits_per_weight, max_packed_integer
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers, quantize_static
from edgewright.compress.quantize.weight_only import stored_layers
from edgewright.compress.quantize.weight_quantizer import quantize_weights
from edgewright.contract.errors import CandidateError

__all__ = ["NoiseProbe", "allocate_bits", "integer_noise", "make_noise_probe", "weight_noise"]

# The probe stores one layer with integers -8..8; noise at other peaks follows by the square law.
_PROBE_PEAK = 8


@dataclass(frozen=True, slots=True)
class NoiseProbe:
    """A few inputs and what the float model answers to them.

    Attributes:
        batches: Inputs, one dictionary per run.
        reference: Per run the judged tensors.
        observed_tensors: Names of the judged tensors: the outputs, before a final softmax or sigmoid.
    """

    batches: tuple[Mapping[str, NDArray[Any]], ...]
    reference: tuple[tuple[NDArray[Any], ...], ...]
    observed_tensors: tuple[str, ...]

    def noise(self, model: onnx.ModelProto) -> float:
        """Return noise over signal of the worst judged tensor, as a power ratio."""
        session = session_bytes(_with_outputs(model, self.observed_tensors))
        noise = np.zeros(len(self.observed_tensors))
        signal = np.full(len(self.observed_tensors), 1e-30)
        for feed, truth in zip(self.batches, self.reference, strict=True):
            for i, (have, want) in enumerate(
                zip(session.run(list(self.observed_tensors), dict(feed)), truth, strict=True)
            ):
                noise[i] += float(np.square(have.astype(np.float64) - want).sum())
                signal[i] += float(np.square(want.astype(np.float64)).sum())
        return float((noise / signal).max())


def make_noise_probe(model: onnx.ModelProto, batches: Sequence[Mapping[str, NDArray[Any]]]) -> NoiseProbe:
    """Return a probe for a cleaned float model."""
    graph = Graph(model)
    producers = graph.producers()
    judged = []
    for name in graph.output_names:
        node = producers.get(name)
        if node is not None and node.op_type in ("Softmax", "Sigmoid", "LogSoftmax"):
            name = node.input[0]
        judged.append(name)
    session = session_bytes(_with_outputs(model, judged))
    reference = [session.run(judged, dict(feed)) for feed in batches]
    return NoiseProbe(
        tuple(batches), tuple(tuple(np.asarray(value) for value in run) for run in reference), tuple(judged)
    )


def weight_noise(model: onnx.ModelProto, probe: NoiseProbe) -> dict[str, float]:
    """Return, per layer, the noise ratio when its weights alone are stored with integers -8..8."""
    result: dict[str, float] = {}
    for weight in stored_layers(Graph(model)):
        graph = Graph(model)
        codes = quantize_weights(graph.constants[weight.tensor], weight.channel_axes, _PROBE_PEAK)
        graph.constants[weight.tensor] = codes.dequantize()
        try:
            noise = probe.noise(graph.to_model())
        except CandidateError:
            noise = 1.0
        result[weight.layer] = result.get(weight.layer, 0.0) + max(noise, 1e-12)
    return result


def integer_noise(
    model: onnx.ModelProto,
    probe: NoiseProbe,
    step: StaticInt8,
    statistics: Mapping[str, Any],
    layers: Sequence[str],
) -> dict[str, float]:
    """Return, per layer, the noise ratio when it alone runs on integers."""
    everything = [weight.layer for weight in integer_layers(Graph(model))]
    result = {}
    for layer in layers:
        alone = StaticInt8(
            activations=step.activations,
            per_channel=step.per_channel,
            calibrator=step.calibrator,
            float_layers=tuple(name for name in everything if name != layer),
        )
        try:
            result[layer] = max(probe.noise(quantize_static(model, alone, statistics)), 1e-12)
        except CandidateError:
            continue
    return result


def allocate_bits(
    graph: Graph,
    noise: Mapping[str, float],
    target_db: float,
    *,
    max_integer: int = max_packed_integer(PACKED_DIGITS[0]),
) -> dict[str, int]:
    """Return the largest integer of each layer's weights: least bytes for a total noise.

    Args:
        graph: The cleaned float model.
        noise: From `weight_noise`.
        target_db: Signal to noise of the answers that the weights alone may cause, dB.
        max_integer: Largest integer on offer.
    """
    sizes: dict[str, int] = {}
    for weight in stored_layers(graph):
        sizes[weight.layer] = sizes.get(weight.layer, 0) + graph.constants[weight.tensor].size
    peaks = sorted(peak for d in PACKED_DIGITS if (peak := max_packed_integer(d)) <= max_integer)
    storage = {
        peak: min(bits_per_weight(d) for d in PACKED_DIGITS if max_packed_integer(d) >= peak) for peak in peaks
    }
    layers = [layer for layer in sizes if layer in noise]
    allowed = 10 ** (-target_db / 10)

    def best(price: float) -> dict[str, int]:
        return {
            layer: min(
                peaks,
                key=lambda peak: sizes[layer] * storage[peak] + price * noise[layer] * (_PROBE_PEAK / peak) ** 2,
            )
            for layer in layers
        }

    def total(choice: Mapping[str, int]) -> float:
        return sum(noise[layer] * (_PROBE_PEAK / peak) ** 2 for layer, peak in choice.items())

    low, high = 1e-6, 1e18
    for _ in range(90):
        middle = float(np.sqrt(low * high))
        if total(best(middle)) > allowed:
            low = middle
        else:
            high = middle
    return best(high)


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    present = {value.name for value in result.graph.output}
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return result
