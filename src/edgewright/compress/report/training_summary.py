"""What training found, in words: the networks with where their weights come from, and what each step gave."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgewright.compress.report import formatting
from edgewright.compress.report.formatting import ABSENT, is_known
from edgewright.contract.compression_report import CompressionReport
from edgewright.contract.training_report import AblationResult, TrainedNetwork

__all__ = [
    "AblationSummary",
    "NetworkSummary",
    "TrainingRound",
    "ablation_summaries",
    "describe_ratio",
    "known_ablations",
    "training_rounds",
    "training_sentence",
    "validation_metric",
]

NetworkFate = Literal["chosen", "kept", "other"]

_WEIGHTS = {
    "fresh": "fresh weights",
    "inherited": "the original's weights, where shapes allow",
    "pruned": "what pruning left",
    "sparse": "weights with zeros that stay",
    "continued": "trained on",
    "integers": "rounded to integers",
}
_STAGES = {"sparse": "Zeros, step", "integers": "Integers, round"}
# Changes of a size or latency below this share are not worth a word.
_NEGLIGIBLE = 0.005


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """One trained network among the others.

    Attributes:
        number: In the order of the search, from 1.
        network: The record.
        weights_origin: Where its weights come from.
        events: What went wrong or was noted while it learned.
        outcome: `chosen`, if the chosen model comes from it, `kept`, if it was trained on, or `other`.
        on_pareto_front: Whether a candidate of the front was made from it.
    """

    number: int
    network: TrainedNetwork
    weights_origin: str
    events: tuple[str, ...]
    outcome: NetworkFate
    on_pareto_front: bool

    @property
    def curve_points(self) -> list[tuple[float, float, str]]:
        """Its learning curve: rows shown until then, the validation metric, what happened."""
        points = [point for point in self.network.learning_curve if is_known(point.validation_metric)]
        last = max((point.epoch for point in self.network.learning_curve), default=0)
        rows = self.network.training_rows / last if last else 0.0
        return [(rows * point.epoch, point.validation_metric, point.note) for point in points]


@dataclass(frozen=True, slots=True)
class TrainingRound:
    """Networks that were trained side by side.

    Attributes:
        title: Of the round.
        networks: In the order of the search.
    """

    title: str
    networks: tuple[NetworkSummary, ...]


@dataclass(frozen=True, slots=True)
class AblationSummary:
    """What a step gave in one comparison, in words.

    Attributes:
        step: Its name.
        compared_on: What it was tried on.
        measured_on: Which samples.
        metric_without: Metric without the step.
        metric_with: Metric with it.
        change: Of the metric.
        direction: Of that change.
        size: Change of the size.
        latency: Change of the latency.
    """

    step: str
    compared_on: str
    measured_on: str
    metric_without: str
    metric_with: str
    change: str
    direction: Literal["better", "worse", "same"]
    size: str
    latency: str


def training_rounds(report: CompressionReport) -> list[TrainingRound]:
    """Return the trained networks by round, in the order of the search."""
    networks = report.training.networks if report.training else ()
    parents = [_parent(networks, place) for place in range(len(networks))]
    chosen = _ancestry(parents, _chosen_place(report, networks))
    front = {trial.network_sha256 for trial in report.pareto_front if trial.network_sha256}
    found: dict[str, list[NetworkSummary]] = {}
    for place, network in enumerate(networks):
        learner = NetworkSummary(
            number=place + 1,
            network=network,
            weights_origin=_weights(network, parents[place]),
            events=_happened(network),
            outcome="chosen" if place in chosen else "kept" if place in parents else "other",
            on_pareto_front=network.network_sha256 in front,
        )
        kind = _STAGES.get(network.origin, "Round")
        found.setdefault(f"{kind} {network.search_round}", []).append(learner)
    return [TrainingRound(title, tuple(learners)) for title, learners in found.items()]


def _parent(networks: Sequence[TrainedNetwork], place: int) -> int | None:
    """Return the place of the network that one started from, None if that was not trained here."""
    parent = networks[place].parent_sha256
    return next((i for i in range(place - 1, -1, -1) if parent and networks[i].network_sha256 == parent), None)


def _chosen_place(report: CompressionReport, networks: Sequence[TrainedNetwork]) -> int | None:
    trials = [trial for trial in report.trials if trial.network_sha256 and trial.sha256 == report.chosen.sha256]
    names = {trial.network_sha256 for trial in trials}
    return next((i for i in range(len(networks) - 1, -1, -1) if networks[i].network_sha256 in names), None)


def _ancestry(parents: Sequence[int | None], place: int | None) -> set[int]:
    found: set[int] = set()
    while place is not None:
        found.add(place)
        place = parents[place]
    return found


def _weights(network: TrainedNetwork, parent: int | None) -> str:
    words = _WEIGHTS[network.origin]
    match network.origin:
        case "pruned" if parent is not None:
            words = f"what pruning left of no. {parent + 1}"
        case "continued" if parent is not None:
            words = f"those of no. {parent + 1}, trained on"
        case "integers" if parent is not None:
            words = f"those of no. {parent + 1}, rounded to integers"
    return words if network.distilled else f"{words}; without a teacher"


def _happened(network: TrainedNetwork) -> tuple[str, ...]:
    notes = [f"epoch {point.epoch}: {point.note}" for point in network.learning_curve if point.note]
    failed = "failed" if network.learning_curve else "not trained"
    return (*notes, f"{failed}: {network.error}") if network.error else tuple(notes)


def validation_metric(report: CompressionReport) -> tuple[str, bool]:
    """Name the metric that networks are compared by while they learn, and tell whether it is a share."""
    if report.certificate.metric == "agreement":
        return "agreement with the teacher", True
    is_share = report.data.get("task") in ("classification", "multilabel")
    if is_share or formatting.is_percentage(report.certificate.metric):
        return "share of right answers", True
    return "R²", False


def training_sentence(report: CompressionReport) -> str:
    """Say in one sentence how much was trained; empty if nothing."""
    training = report.training
    if training is None:
        return ""
    count, done = len(training.networks), sum(bool(network.network_sha256) for network in training.networks)
    many = f"{done}" if done == count else f"{done} of {count}"
    return (
        f"{many} network{'' if count == 1 else 's'} trained in {formatting.format_number(training.total_seconds, 3)} s "
        f"on {training.training_rows:,} rows ({training.engine}, {training.workers} at a time)"
    )


def ablation_summaries(report: CompressionReport) -> list[AblationSummary]:
    """Return what the steps gave, one comparison each."""
    return [_ablation_summary(report, contribution) for contribution in known_ablations(report)]


def known_ablations(report: CompressionReport) -> list[AblationResult]:
    """Return the comparisons whose metrics are known."""
    found = report.training.ablations if report.training else ()
    return [c for c in found if is_known(c.metric_without) and is_known(c.metric_with)]


def _ablation_summary(report: CompressionReport, contribution: AblationResult) -> AblationSummary:
    metric = report.certificate.metric
    if contribution.measured_on == "validation rows":
        metric = "accuracy" if validation_metric(report)[1] else "r2"
    gained = contribution.metric_with - contribution.metric_without
    direction: Literal["better", "worse", "same"] = "better" if gained > 0 else "worse" if gained < 0 else "same"
    words = {"better": "gained", "worse": "lost"}
    return AblationSummary(
        step=contribution.step,
        compared_on=contribution.compared_on,
        measured_on=contribution.measured_on,
        metric_without=formatting.format_metric(metric, contribution.metric_without),
        metric_with=formatting.format_metric(metric, contribution.metric_with),
        change=f"{formatting.format_drop(metric, abs(gained))} {words[direction]}" if gained else "no difference",
        direction=direction,
        size=describe_ratio(contribution.size_ratio),
        latency=describe_ratio(contribution.latency_ratio),
    )


def describe_ratio(ratio: float | None) -> str:
    """Write a ratio as a change.

    >>> describe_ratio(0.53), describe_ratio(1.2), describe_ratio(1.001), describe_ratio(None)
    ('47 % less', '20 % more', 'the same', '-')
    """
    if not is_known(ratio):
        return ABSENT
    if abs(ratio - 1) < _NEGLIGIBLE:
        return "the same"
    return f"{100 * abs(ratio - 1):.0f} % {'more' if ratio > 1 else 'less'}"
