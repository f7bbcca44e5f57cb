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

from edgewright.compress.context import Run
from edgewright.compress.quantize.static_int8 import StaticInt8
from edgewright.compress.search.recipe import CleanUp, Recipe, Step, Workbench
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.data.training_data import Lessons
from edgewright.compress.train.nas.batchnorm import with_normalisation
from edgewright.compress.train.nas.downsample import coarser
from edgewright.compress.train.nas.families import grid, parameters, work
from edgewright.compress.train.nas.graph_builder import Ending, Targets, draft
from edgewright.compress.train.nas.latency_model import Features, LatencyModel, features
from edgewright.compress.train.nas.weight_inheritance import inherit
from edgewright.compress.train.policy import Prospect, shortlist, trainable
from edgewright.compress.train.prune.importance import Batch
from edgewright.compress.train.prune.pruner import Prune, prune
from edgewright.compress.train.throughput import seconds_per_row
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import Origin
from edgewright.profiling.latency import Subject, measure_ratios

__all__ = ["Idea", "eight_bit", "few_batches", "ideas", "measured_ratios", "simd_width", "survey"]

# Ranges of a network that is not trained yet mean nothing; a few batches show that it runs.
_FEW = 2
_SECONDS_EACH = 0.15
_PACE_ROWS = 32
_AT_ONCE = 8
# Members of each family that are looked at.
_OF_A_FAMILY = 12
# A warm start must take over at least this share of the weights to be called one.
_INHERITED = 0.5
# Rows that give the statistics of a normalisation its start.
_NORMALISED_BY = 256
_RATIOS = (0.3, 0.5, 0.65, 0.8)


@dataclass(slots=True)
class Idea:
    """A network that somebody could train.

    Attributes:
        title: What it is.
        family: Of its architecture; "" for the original's own.
        origin: Where its weights come from.
        model: Float, untrained.
        ratio: Measured latency of its 8-bit form relative to the original, None if not measured.
        pace: Seconds that one thread takes to train it on one row, None if not measured.
    """

    title: str
    family: str
    origin: Origin
    model: onnx.ModelProto
    ratio: float | None = None
    pace: float | None = None
    features: Features = field(init=False, repr=False)
    work: int = field(init=False)

    def __post_init__(self) -> None:
        self.features = features(self.model)
        self.work = work(self.model)


def ideas(
    run: Run, lessons: Lessons, ending: Ending, notes: list[str], *, seed: int, targets: Targets | None = None
) -> list[Idea]:
    """Return the networks that could be trained: the original made smaller, and members of the families.

    Args:
        run: Of `compress`.
        lessons: Whose form the families suit.
        ending: What turns the last layer's values into answers.
        notes: Takes what could not be had, for people.
        seed: Of weights.
        targets: For regression and reconstruction.
    """
    original = run.loaded.proto
    found = _narrowed(run, lessons, notes)
    contract = run.loaded.contract
    most = max(work(original), 1)
    members = grid(lessons.form.kind, contract, most_work=most, form=lessons.form, most=_OF_A_FAMILY)
    if not members:
        notes.append("no family has this model's inputs and outputs: only the model itself is trained")
    for architecture in members:
        drafted = draft(architecture, contract, ending=ending, seed=seed, form=lessons.form, targets=targets)
        found.append(Idea(architecture.title, architecture.family, "fresh", drafted))
    return found


def _narrowed(run: Run, lessons: Lessons, notes: list[str]) -> list[Idea]:
    """Return the original with fewer channels, heads and units, at its own resolution and at half of it."""
    original = run.loaded.proto
    batches = few_batches(lessons)
    bases = {"": original}
    try:
        bases["half resolution"] = coarser(original, run.dataset.feed(0))
        bases["quarter resolution"] = coarser(bases["half resolution"], run.dataset.feed(0))
    except CandidateError as error:
        notes.append(f"the model is not tried at a lower resolution: {error.message}")
    found: list[Idea] = []
    for name, base in bases.items():
        smallest = parameters(base)
        if name:
            found.append(Idea(name, "", "pruned", base))
        for ratio in _RATIOS:
            step = Prune(
                ratio=ratio,
                heads=ratio / 2,
                criterion="taylor" if batches else "magnitude",
                round_to=simd_width(run),
            )
            try:
                narrow = prune(base, step, batches)
            except CandidateError as error:
                notes.append(f"the model itself is not pruned or trained on: {error.message}")
                return found
            if parameters(narrow) < 0.97 * smallest:
                smallest = parameters(narrow)
                title = f"{name}, pruned by {ratio:.0%}" if name else f"pruned by {ratio:.0%}"
                found.append(Idea(title, "", "pruned", narrow))
    return found


def simd_width(run: Run) -> int:
    """Return the multiple that widths are best rounded to: what the runtime's kernels compute at once."""
    return 16 if "avx512f" in run.machine.features else 8


def few_batches(lessons: Lessons, count: int = 4, rows: int = 64) -> list[Batch]:
    """Return a few labelled batches for criteria that look at data; none without labels."""
    if lessons.labels is None:
        return []
    chosen = lessons.train[np.linspace(0, len(lessons.train) - 1, count * rows).astype(np.intp)]
    return [
        (tuple(array[part] for array in lessons.inputs), lessons.labels[part])
        for part in np.array_split(chosen, count)
    ]


def eight_bit(run: Run, model: onnx.ModelProto) -> bytes:
    """Return the form of a float network that its latency is measured in.

    Raises:
        CandidateError: The runtime refuses it in any form.
    """
    space = run.space
    bench = Workbench(model, run.bench.feeds[:_FEW], seed=run.request.seed)
    step = StaticInt8(activations="int8" if space.signed_first else "uint8", peak=space.int8_peak)
    steps: tuple[Step, ...] = (CleanUp(), *space.fold)
    try:
        made = bench.build(Recipe((*steps, step)))
    except CandidateError:  # such as a network without a layer that can run on integers
        made = bench.build(Recipe(steps))
    return bytes(made.SerializeToString())


def measured_ratios(run: Run, paths: Sequence[Path], *, seconds: float = _SECONDS_EACH) -> list[float | None]:
    """Return each model's latency relative to the original's, measured in turns; None where it does not run."""
    sample = int(run.select.indices[0])
    original = Subject("original", run.source, run.options, run.dataset.feed(sample))
    feed = run.select.fed.feed(sample)
    others = [Subject(path.stem, path, run.options, feed) for path in paths]
    _, ratios = measure_ratios(
        run.target, original, others, seconds=seconds * (len(others) + 1), seed=run.request.seed
    )
    return [None if isinstance(ratio, CandidateError) else ratio.value for ratio in ratios]


def survey(
    run: Run,
    store: TrainingStore,
    lessons: Lessons,
    found: Sequence[Idea],
    *,
    places: int,
    slowest: float,
    core_seconds: float,
    until: float,
    seen: list[tuple[Features, float]],
) -> list[Prospect]:
    """Measure and predict latencies, and return the shortlist, all of it measured.

    Args:
        run: Of `compress`.
        store: Takes the networks of the shortlist.
        lessons: What they would be trained on.
        found: What could be trained.
        places: On the shortlist.
        slowest: Latency ratio of what needs no training.
        core_seconds: What training one network to the end may take.
        until: When to stop measuring, of `time.monotonic()`.
        seen: Takes what was measured, to predict other networks' latencies by.
    """
    known = list(found)
    order = sorted(range(len(known)), key=lambda i: known[i].work)
    spread = {order[round(i * (len(order) - 1) / max(1, _AT_ONCE - 1))] for i in range(_AT_ONCE)}
    spread |= {i for i, idea in enumerate(known) if idea.origin == "pruned"}
    _measure(run, [known[i] for i in sorted(spread)])
    for i in sorted(spread):
        known[i].pace = _pace(known[i], lessons)
    known = [idea for idea in known if idea.pace is None or np.isfinite(idea.pace)]
    chosen: list[Prospect] = []
    while True:
        by_title = {idea.title: idea for idea in known}
        able = trainable(_prospects(known), core_seconds, len(lessons.train))
        chosen = shortlist(able, places, slowest)
        waiting = [by_title[prospect.title] for prospect in chosen if by_title[prospect.title].ratio is None]
        if not waiting or time.monotonic() > until:
            break
        _measure(run, waiting)
        known = [idea for idea in known if idea.ratio is None or np.isfinite(idea.ratio)]
    known = [idea for idea in known if idea.ratio is None or np.isfinite(idea.ratio)]
    seen += [(idea.features, idea.ratio) for idea in known if idea.ratio is not None]
    return [_kept(run, store, lessons, prospect, by_title[prospect.title]) for prospect in chosen]


def _measure(run: Run, some: Sequence[Idea]) -> None:
    for start in range(0, len(some), _AT_ONCE):
        part = some[start : start + _AT_ONCE]
        paths: list[Path] = []
        able: list[Idea] = []
        for idea in part:
            try:
                paths.append(run.folder.candidate(eight_bit(run, idea.model))[1])
                able.append(idea)
            except CandidateError:
                idea.ratio = float("inf")
        for idea, ratio in zip(able, measured_ratios(run, paths) if able else [], strict=True):
            idea.ratio = float("inf") if ratio is None else ratio


def _pace(idea: Idea, lessons: Lessons) -> float:
    try:
        return seconds_per_row(idea.model, lessons, _PACE_ROWS)
    except (CandidateError, RuntimeError):
        return float("inf")


def _prospects(known: Sequence[Idea]) -> list[Prospect]:
    """Return the ideas with latency and pace, measured or else predicted from those that were."""
    measured = [(idea.features, idea.ratio) for idea in known if idea.ratio is not None and np.isfinite(idea.ratio)]
    paced = [(idea.features, idea.pace) for idea in known if idea.pace is not None]
    if not measured or not paced:
        return []
    latency = LatencyModel.fit([each for each, _ in measured], [ratio for _, ratio in measured])
    # Training is made of the same kinds of work as inference, at other prices.
    pace = LatencyModel.fit([each for each, _ in paced], [seconds for _, seconds in paced])
    return [
        Prospect(
            title=idea.title,
            family=idea.family,
            start="",
            origin=idea.origin,
            latency_ratio=latency.predict(idea.features)[0] if idea.ratio is None else idea.ratio,
            parameters=parameters(idea.model),
            work=idea.work,
            pace=pace.predict(idea.features)[0] if idea.pace is None else idea.pace,
        )
        for idea in known
        if idea.ratio is None or np.isfinite(idea.ratio)
    ]


def _kept(run: Run, store: TrainingStore, lessons: Lessons, prospect: Prospect, idea: Idea) -> Prospect:
    """Put a network of the shortlist into the store, with weights of the original where shapes allow."""
    model, origin = idea.model, idea.origin
    if origin == "fresh":
        try:
            inherited, share = inherit(model, run.loaded.proto)
        except CandidateError:
            share = 0.0
        if share >= _INHERITED:
            model, origin = inherited, "inherited"
    elif origin == "pruned":
        few = lessons.train[:_NORMALISED_BY]
        model = with_normalisation(model, [array[few] for array in lessons.inputs])
    return replace(prospect, start=store.put(model), origin=origin)
