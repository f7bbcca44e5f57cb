"""How much of each layer to prune: the loss that it costs against the time that it saves."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec
import onnx
import torch

from edgewright.compress.train.prune.importance import LabelledBatch, batch_loss
from edgewright.compress.train.prune.pruner import StructuredPruning, prunable_widths, prune_network
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.contract.errors import CandidateError

__all__ = ["allocate_ratios", "probe_gains", "probe_sensitivity", "prune_to_latency"]

_HALVINGS = 5
# Per layer: share of its channels that go, and what happens then; ascending, without the share 0.
RatioCurve = Mapping[float, float]


def allocate_ratios(
    sensitivity: Mapping[str, RatioCurve], gains: Mapping[str, RatioCurve], wanted: float
) -> dict[str, float]:
    """Choose how much of each layer goes so that the wanted share of the latency goes, at the least loss.

    Greedy: again and again the step, of any layer to any of its larger shares, with the least loss per latency
    gained. A longer list of steps begins with the shorter one, so who wants more speed never gets less of it in
    any layer.

    Args:
        sensitivity: Per layer and share removed, the rise of the loss.
        gains: Per layer and share removed, the share of the whole latency that it saves.
        wanted: Share of the latency to save; 0 prunes nothing, more than there is takes every useful step.

    Returns:
        Share per layer, 0 for layers that stay as they are.
    """
    chosen = dict.fromkeys(sensitivity, 0.0)
    saved = 0.0
    while saved < wanted:
        steps = [
            (cost, layer, share, gain)
            for layer, curve in sensitivity.items()
            for share in sorted(curve)
            if share > chosen[layer] and share in gains.get(layer, {})
            for cost, gain in [_step(layer, chosen[layer], share, sensitivity, gains)]
            if gain > 0
        ]
        if not steps:
            break
        _, layer, share, gain = min(steps)
        chosen[layer] = share
        saved += gain
    return chosen


def probe_sensitivity(
    model: onnx.ModelProto,
    batches: Sequence[LabelledBatch],
    layers: Collection[str] | None = None,
    *,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    step: StructuredPruning | None = None,
) -> dict[str, dict[float, float]]:
    """Return how much the loss on the batches rises when one layer alone loses a share of its channels.

    Args:
        model: A float graph.
        batches: Calibration data.
        layers: Names as in `prunable`; all of them if None.
        shares: What to try; a share that the SIMD width rounds to one tried before is left out.
        step: Criterion, widths and seed; its ratios are ignored.
    """
    before = _loss(model, batches)
    return {
        layer: {share: _loss(narrow, batches) - before for share, narrow in tried}
        for layer, tried in _alone(model, batches, layers, shares, step)
    }


def probe_gains(
    model: onnx.ModelProto,
    latency: Callable[[onnx.ModelProto], float],
    layers: Collection[str] | None = None,
    *,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    step: StructuredPruning | None = None,
) -> dict[str, dict[float, float]]:
    """Return the share of the latency that goes when one layer alone loses a share of its channels.

    Args:
        model: A float graph.
        latency: Predicts or measures a float graph's latency, in any unit.
        layers: Names as in `prunable`; all of them if None.
        shares: What to try.
        step: Widths; which channels go does not matter here.
    """
    before = latency(model)
    plain = msgspec.structs.replace(step or StructuredPruning(), criterion="magnitude")
    return {
        layer: {share: 1 - latency(narrow) / before for share, narrow in tried}
        for layer, tried in _alone(model, (), layers, shares, plain)
    }


def prune_to_latency(
    model: onnx.ModelProto,
    batches: Sequence[LabelledBatch],
    latency: Callable[[onnx.ModelProto], float],
    share: float,
    *,
    step: StructuredPruning | None = None,
) -> onnx.ModelProto:
    """Return the model pruned layer by layer until it takes at most a share of its latency.

    What a layer saves alone and what layers save together differ, since the channels that one gives are those
    that the next one takes. So more is asked for until the model as a whole is fast enough.

    Args:
        model: A float graph that answers well, or its layers' sensitivities mean nothing.
        batches: Labelled data.
        latency: Predicts or measures a float graph's latency, in any unit.
        share: Of the model's latency, above 0 and below 1.
        step: Criterion, widths and seed; its ratios are ignored.

    Raises:
        CandidateError: The model cannot be trained or traced, or does not become fast enough.
    """
    step = step or StructuredPruning()
    most = share * latency(model)
    sensitivity = probe_sensitivity(model, batches, step=step)
    gains = probe_gains(model, latency, step=step)
    known: dict[tuple[float, ...], onnx.ModelProto] = {}

    def pruned(wanted: float) -> onnx.ModelProto:
        ratios = allocate_ratios(sensitivity, gains, wanted)
        key = tuple(ratios.values())
        if key not in known:
            given = {layer: ratio for layer, ratio in ratios.items() if ratio}
            known[key] = prune_network(
                model, msgspec.structs.replace(step, ratio=0.0, head_ratio=0.0, ratios=given), batches
            )
        return known[key]

    low, high = 0.0, sum(max(curve.values(), default=0.0) for curve in gains.values())
    if latency(pruned(high)) > most:
        raise CandidateError(
            f"pruned as far as possible it still takes more than {share:.0%} of its latency", remedy="Ask for less."
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if latency(pruned(middle)) <= most else (middle, high)
    return pruned(high)


def _alone(
    model: onnx.ModelProto,
    batches: Sequence[LabelledBatch],
    layers: Collection[str] | None,
    shares: Sequence[float],
    step: StructuredPruning | None,
) -> Iterator[tuple[str, list[tuple[float, onnx.ModelProto]]]]:
    """Yield each layer with the models in which it alone is narrower."""
    widths = prunable_widths(model)
    for layer in layers if layers is not None else widths:
        tried: list[tuple[float, onnx.ModelProto]] = []
        seen = {widths[layer].count}
        for share in sorted(shares):
            alone = msgspec.structs.replace(
                step or StructuredPruning(), ratio=0.0, head_ratio=0.0, ratios={layer: share}
            )
            left = alone.remaining(widths[layer], share)
            if left not in seen:
                seen.add(left)
                tried.append((share, prune_network(model, alone, batches)))
        yield layer, tried


def _loss(model: onnx.ModelProto, batches: Sequence[LabelledBatch]) -> float:
    network = TrainableGraph(model).eval()
    with torch.no_grad():
        return sum(float(batch_loss(network, batch)) for batch in batches) / len(batches)


def _step(
    layer: str, now: float, share: float, sensitivity: Mapping[str, RatioCurve], gains: Mapping[str, RatioCurve]
) -> tuple[float, float]:
    """Return the rise of the loss per latency saved from `now` to `share`, and what is saved."""
    gain = gains[layer][share] - gains[layer].get(now, 0.0)
    rise = sensitivity[layer][share] - sensitivity[layer].get(now, 0.0)
    return (rise / gain if gain > 0 else float("inf")), gain
