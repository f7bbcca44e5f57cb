"""Which networks could be trained, and how fast each would be: known before any of them is trained.

Latency does not depend on what the weights are, so untrained networks are measured on the target in the 8-bit form
that they would be shipped in. A model fitted to those measurements predicts the others (see `predict.py`); whatever
comes on the shortlist is measured.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from edgewright.compress.context import CompressionRun
from edgewright.compress.quantize.static_int8 import StaticInt8
from edgewright.compress.search.recipe import CandidateBuilder, CleanGraph, Recipe, RecipeStep
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.nas.batchnorm import with_batch_norm
from edgewright.compress.train.nas.downsample import halve_resolution
from edgewright.compress.train.nas.families import family_grid, multiply_accumulate_count, parameter_count
from edgewright.compress.train.nas.graph_builder import GraphActivation, TargetStatistics, build_network
from edgewright.compress.train.nas.latency_model import LatencyModel, NetworkFeatures, network_features
from edgewright.compress.train.nas.weight_inheritance import inherit_weights
from edgewright.compress.train.policy import CandidateEstimate, affordable_candidates, select_shortlist
from edgewright.compress.train.prune.importance import LabelledBatch
from edgewright.compress.train.prune.pruner import StructuredPruning, prune_network
from edgewright.compress.train.throughput import measure_seconds_per_row
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import NetworkOrigin
from edgewright.profiling.latency import Workload, measure_ratios

__all__ = [
    "NetworkCandidate",
    "estimate_candidates",
    "few_batches",
    "list_candidates",
    "measure_latency_ratios",
    "simd_width",
    "to_int8",
]

# Ranges of a network that is not trained yet mean nothing; a few batches show that it runs.
_FEW = 2
_SECONDS_EACH = 0.15
_TIMING_ROWS = 32
_AT_ONCE = 8
# Members of each family that are looked at.
_PER_FAMILY = 12
# A warm start must take over at least this share of the weights to be called one.
_INHERITED = 0.5
# Rows that give the statistics of a normalisation its start.
_NORMALISED_BY = 256
_RATIOS = (0.3, 0.5, 0.65, 0.8)


@dataclass(slots=True)
class NetworkCandidate:
    """A network that somebody could train.

    Attributes:
        title: What it is.
        family: Of its architecture; "" for the original's own.
        origin: Where its weights come from.
        model: Float, untrained.
        latency_ratio: Measured latency of its 8-bit form relative to the original, None if not measured.
        seconds_per_row: Seconds that one thread takes to train it on one row, None if not measured.
    """

    title: str
    family: str
    origin: NetworkOrigin
    model: onnx.ModelProto
    latency_ratio: float | None = None
    seconds_per_row: float | None = None
    features: NetworkFeatures = field(init=False, repr=False)
    work: int = field(init=False)

    def __post_init__(self) -> None:
        self.features = network_features(self.model)
        self.work = multiply_accumulate_count(self.model)


def list_candidates(
    run: CompressionRun,
    data: TrainingData,
    activation: GraphActivation,
    notes: list[str],
    *,
    seed: int,
    targets: TargetStatistics | None = None,
) -> list[NetworkCandidate]:
    """Return the networks that could be trained: the original made smaller, and members of the families.

    Args:
        run: Of `compress`.
        data: Whose form the families suit.
        activation: What turns the last layer's values into answers.
        notes: Takes what could not be had, for people.
        seed: Of weights.
        targets: For regression and reconstruction.
    """
    original = run.loaded.proto
    found = _pruned_candidates(run, data, notes)
    contract = run.loaded.contract
    most = max(multiply_accumulate_count(original), 1)
    members = family_grid(data.format.kind, contract, max_macs=most, form=data.format, max_count=_PER_FAMILY)
    if not members:
        notes.append("no family has this model's inputs and outputs: only the model itself is trained")
    for architecture in members:
        drafted = build_network(
            architecture, contract, activation=activation, seed=seed, form=data.format, targets=targets
        )
        found.append(NetworkCandidate(architecture.title, architecture.family, "fresh", drafted))
    return found


def _pruned_candidates(run: CompressionRun, data: TrainingData, notes: list[str]) -> list[NetworkCandidate]:
    """Return the original with fewer channels, heads and units, at its own resolution and at half of it."""
    original = run.loaded.proto
    batches = few_batches(data)
    bases = {"": original}
    try:
        bases["half resolution"] = halve_resolution(original, run.dataset.inputs_of(0))
        bases["quarter resolution"] = halve_resolution(bases["half resolution"], run.dataset.inputs_of(0))
    except CandidateError as error:
        notes.append(f"the model is not tried at a lower resolution: {error.message}")
    found: list[NetworkCandidate] = []
    for name, base in bases.items():
        smallest = parameter_count(base)
        if name:
            found.append(NetworkCandidate(name, "", "pruned", base))
        for ratio in _RATIOS:
            step = StructuredPruning(
                ratio=ratio,
                head_ratio=ratio / 2,
                criterion="taylor" if batches else "magnitude",
                round_to=simd_width(run),
            )
            try:
                narrow = prune_network(base, step, batches)
            except CandidateError as error:
                notes.append(f"the model itself is not pruned or trained on: {error.message}")
                return found
            if parameter_count(narrow) < 0.97 * smallest:
                smallest = parameter_count(narrow)
                title = f"{name}, pruned by {ratio:.0%}" if name else f"pruned by {ratio:.0%}"
                found.append(NetworkCandidate(title, "", "pruned", narrow))
    return found


def simd_width(run: CompressionRun) -> int:
    """Return the multiple that widths are best rounded to: what the runtime's kernels compute at once."""
    return 16 if "avx512f" in run.machine.features else 8


def few_batches(data: TrainingData, count: int = 4, rows: int = 64) -> list[LabelledBatch]:
    """Return a few labelled batches for criteria that look at data; none without labels."""
    if data.labels is None:
        return []
    chosen = data.train[np.linspace(0, len(data.train) - 1, count * rows).astype(np.intp)]
    return [
        (tuple(array[part] for array in data.inputs), data.labels[part]) for part in np.array_split(chosen, count)
    ]


def to_int8(run: CompressionRun, model: onnx.ModelProto) -> bytes:
    """Return the form of a float network that its latency is measured in.

    Raises:
        CandidateError: The runtime refuses it in any form.
    """
    space = run.search_space
    bench = CandidateBuilder(model, run.builder.calibration_batches[:_FEW], seed=run.request.seed)
    step = StaticInt8(activations="int8" if space.signed_first else "uint8", max_integer=space.max_int8_weight)
    steps: tuple[RecipeStep, ...] = (CleanGraph(), *space.fold)
    try:
        made = bench.build(Recipe((*steps, step)))
    except CandidateError:  # such as a network without a layer that can run on integers
        made = bench.build(Recipe(steps))
    return bytes(made.SerializeToString())


def measure_latency_ratios(
    run: CompressionRun, paths: Sequence[Path], *, seconds: float = _SECONDS_EACH
) -> list[float | None]:
    """Return each model's latency relative to the original's, measured in turns; None where it does not run."""
    sample = int(run.select_evaluator.indices[0])
    original = Workload("original", run.model_path, run.options, run.dataset.inputs_of(sample))
    feed = run.select_evaluator.model_dataset.inputs_of(sample)
    others = [Workload(path.stem, path, run.options, feed) for path in paths]
    _, ratios = measure_ratios(
        run.target, original, others, seconds=seconds * (len(others) + 1), seed=run.request.seed
    )
    return [None if isinstance(ratio, CandidateError) else ratio.value for ratio in ratios]


def estimate_candidates(
    run: CompressionRun,
    store: TrainingStore,
    data: TrainingData,
    found: Sequence[NetworkCandidate],
    *,
    count: int,
    max_latency_ratio: float,
    core_seconds: float,
    deadline: float,
    seen: list[tuple[NetworkFeatures, float]],
) -> list[CandidateEstimate]:
    """Measure and predict latencies, and return the shortlist, all of it measured.

    Args:
        run: Of `compress`.
        store: Takes the networks of the shortlist.
        data: What they would be trained on.
        found: What could be trained.
        count: On the shortlist.
        max_latency_ratio: Latency ratio of what needs no training.
        core_seconds: What training one network to the end may take.
        deadline: When to stop measuring, of `time.monotonic()`.
        seen: Takes what was measured, to predict other networks' latencies by.
    """
    known = list(found)
    order = sorted(range(len(known)), key=lambda i: known[i].work)
    spread = {order[round(i * (len(order) - 1) / max(1, _AT_ONCE - 1))] for i in range(_AT_ONCE)}
    spread |= {i for i, idea in enumerate(known) if idea.origin == "pruned"}
    _measure(run, [known[i] for i in sorted(spread)])
    for i in sorted(spread):
        known[i].seconds_per_row = _training_seconds_per_row(known[i], data)
    known = [idea for idea in known if idea.seconds_per_row is None or np.isfinite(idea.seconds_per_row)]
    chosen: list[CandidateEstimate] = []
    while True:
        by_title = {idea.title: idea for idea in known}
        able = affordable_candidates(_estimated(known), core_seconds, len(data.train))
        chosen = select_shortlist(able, count, max_latency_ratio)
        waiting = [
            by_title[prospect.title] for prospect in chosen if by_title[prospect.title].latency_ratio is None
        ]
        if not waiting or time.monotonic() > deadline:
            break
        _measure(run, waiting)
        known = [idea for idea in known if idea.latency_ratio is None or np.isfinite(idea.latency_ratio)]
    known = [idea for idea in known if idea.latency_ratio is None or np.isfinite(idea.latency_ratio)]
    seen += [(idea.features, idea.latency_ratio) for idea in known if idea.latency_ratio is not None]
    return [_store_candidate(run, store, data, prospect, by_title[prospect.title]) for prospect in chosen]


def _measure(run: CompressionRun, some: Sequence[NetworkCandidate]) -> None:
    for start in range(0, len(some), _AT_ONCE):
        part = some[start : start + _AT_ONCE]
        paths: list[Path] = []
        able: list[NetworkCandidate] = []
        for idea in part:
            try:
                paths.append(run.folder.store_candidate(to_int8(run, idea.model))[1])
                able.append(idea)
            except CandidateError:
                idea.latency_ratio = float("inf")
        for idea, ratio in zip(able, measure_latency_ratios(run, paths) if able else [], strict=True):
            idea.latency_ratio = float("inf") if ratio is None else ratio


def _training_seconds_per_row(idea: NetworkCandidate, data: TrainingData) -> float:
    try:
        return measure_seconds_per_row(idea.model, data, _TIMING_ROWS)
    except (CandidateError, RuntimeError):
        return float("inf")


def _estimated(known: Sequence[NetworkCandidate]) -> list[CandidateEstimate]:
    """Return the ideas with latency and pace, measured or else predicted from those that were."""
    measured = [
        (idea.features, idea.latency_ratio)
        for idea in known
        if idea.latency_ratio is not None and np.isfinite(idea.latency_ratio)
    ]
    paced = [(idea.features, idea.seconds_per_row) for idea in known if idea.seconds_per_row is not None]
    if not measured or not paced:
        return []
    latency = LatencyModel.fit([each for each, _ in measured], [ratio for _, ratio in measured])
    # Training is made of the same kinds of work as inference, at other prices.
    pace = LatencyModel.fit([each for each, _ in paced], [seconds for _, seconds in paced])
    return [
        CandidateEstimate(
            title=idea.title,
            family=idea.family,
            initial_sha256="",
            origin=idea.origin,
            latency_ratio=latency.predict(idea.features)[0] if idea.latency_ratio is None else idea.latency_ratio,
            parameters=parameter_count(idea.model),
            macs=idea.work,
            seconds_per_row=pace.predict(idea.features)[0]
            if idea.seconds_per_row is None
            else idea.seconds_per_row,
        )
        for idea in known
        if idea.latency_ratio is None or np.isfinite(idea.latency_ratio)
    ]


def _store_candidate(
    run: CompressionRun,
    store: TrainingStore,
    data: TrainingData,
    estimate: CandidateEstimate,
    idea: NetworkCandidate,
) -> CandidateEstimate:
    """Put a network of the shortlist into the store, with weights of the original where shapes allow."""
    model, origin = idea.model, idea.origin
    if origin == "fresh":
        try:
            inherited, share = inherit_weights(model, run.loaded.proto)
        except CandidateError:
            share = 0.0
        if share >= _INHERITED:
            model, origin = inherited, "inherited"
    elif origin == "pruned":
        few = data.train[:_NORMALISED_BY]
        model = with_batch_norm(model, [array[few] for array in data.inputs])
    return replace(estimate, initial_sha256=store.store_network(model), origin=origin)
