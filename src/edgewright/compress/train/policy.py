"""What to train, for how long, and what to train on: pure functions from figures to decisions.

Training is the dear part, so it goes in rounds (successive halving, Jamieson 2016, arXiv:1502.07943): many networks
for a short time, the promising ones for longer. Latency is known before any training, since it does not depend on
the weights; so only what would be fast enough is trained at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.contract.training_report import NetworkOrigin, TrainedNetwork

__all__ = [
    "CHEAPER_FACTOR",
    "CandidateEstimate",
    "TrainedCandidate",
    "affordable_candidates",
    "cheapest_candidate",
    "meets_drop_limit",
    "near_misses",
    "next_noise_level",
    "parent_for_pruning",
    "plan_epochs",
    "promise_score",
    "rows_per_network",
    "select_baseline",
    "select_finalists",
    "select_shortlist",
    "select_survivors",
    "trained_candidate",
]

# A network as slow as what needs no training is not worth training.
_FASTER = 0.95
# What size counts beside latency, in logarithms. For the choice it counts more (see `choice.py`): fewer bits make a
# network that is able small, but nothing makes a small one able.
_SIZE_WEIGHT = 0.25
# The graph in a file takes as many bytes as so many weights of few bits.
_GRAPH_WEIGHTS = 12_000
# So many smaller versions of the model are among the first, however few places there are.
_MIN_WARM = 4
# Networks closer in cost than this compete for one place.
_STEP = 1.12
# How much of its drop will be left after all training, by round: early drops are mostly haste.
_RECOVERED_SHARE = (0.2, 0.35, 0.6, 1.0)
# A round that leaves this share of a drop does not help much.
_STALLED = 0.8
# Of the limit on the drop, what the certificate's uncertainty will take.
_MARGIN = 0.5
# What a drop that is too large weighs beside a cost that is too high, in logarithms, and ever more as it grows.
_DEAR, _DEARER = 0.8, 0.3
# What is expected to lose so many limits in the end is given up, if at least so many others are left.
_HOPELESS_FACTOR, _MIN_SURVIVORS = 2.0, 3
# While cheaper ones are looked for, one of at most this latency, in units of what needs no training, is trained
# until its bound is this share of the limit.
_ANCHORED, _SURE = 0.3, 0.6
# What is trained beside a network that keeps the drop must cost so much less.
CHEAPER_FACTOR = 0.92
# What costs so much less and loses at most so many limits gets more time.
_MUCH_CHEAPER, _NEAR = 0.8, 3.0
# Passes that a network needs at least, with fresh weights and with the original's; over so many rows at most.
_COLD_PASSES, _WARM_PASSES = 4.0, 1.0
_MANY_ROWS = 60_000
_FEW = 8
# More passes over the rows than this teach nothing more.
_MAX_PASSES = 150
# Signal to noise that rounding may cause before integers are trained, dB; few bits lose more and shrink more.
_NOISE_LEVELS_DB = (36, 30, 24, 21, 18, 15, 12, 10, 8, 6)


@dataclass(frozen=True, slots=True)
class CandidateEstimate:
    """A network that could be trained.

    Attributes:
        title: What it is.
        family: Of its architecture; "" for the original's own.
        initial_sha256: sha256 of its ONNX file before training.
        origin: Where its weights come from.
        latency_ratio: Of its 8-bit form to the original, measured or predicted.
        parameters: Weights of its layers.
        macs: Multiply-accumulates of one inference.
        seconds_per_row: Seconds that one thread takes to train it on one row, measured or predicted.
    """

    title: str
    family: str
    initial_sha256: str
    origin: NetworkOrigin
    latency_ratio: float
    parameters: int
    macs: int = 0
    seconds_per_row: float = 0.0

    @property
    def cost(self) -> float:
        """What it costs a device: its latency, and a quarter as much, in logarithms, its size.

        In small networks most of the time goes into starting their nodes, so latency alone tells them apart badly;
        and most of a tiny file is its graph, so fewer weights do not make it smaller.
        """
        return float(self.latency_ratio * (self.parameters + _GRAPH_WEIGHTS) ** _SIZE_WEIGHT)


@dataclass(frozen=True, slots=True)
class TrainedCandidate:
    """How a network stands after a round.

    Attributes:
        estimate: The network.
        network: sha256 after training.
        drop: Of the metric against the original on the select split, as a fraction.
        predicted_bound: Of that drop, as the select split predicts it for the certify split.
        is_sparse: Whether it has zeros that must stay.
        is_stalled: Whether its last round left most of its drop.
    """

    estimate: CandidateEstimate
    network: str
    drop: float
    predicted_bound: float = math.inf
    is_sparse: bool = False
    is_stalled: bool = False


def trained_candidate(
    estimate: CandidateEstimate, network: TrainedNetwork, *, before: float = math.inf, sparse: bool = False
) -> TrainedCandidate | None:
    """Return how a network stands after its training; None if nothing came of it.

    Args:
        estimate: The network.
        network: The record of its training.
        before: Its drop before, infinite if it was not trained yet.
        sparse: Whether it has zeros that must stay.
    """
    if not network.network_sha256 or network.drop is None:
        return None
    bound = math.inf if network.predicted_bound is None else network.predicted_bound
    stalled = math.isfinite(before) and network.drop > _STALLED * before > 0
    return TrainedCandidate(estimate, network.network_sha256, network.drop, bound, sparse, stalled)


def affordable_candidates(
    prospects: Sequence[CandidateEstimate], core_seconds: float, available: int
) -> list[CandidateEstimate]:
    """Return the networks that can be shown enough rows in time; if they are few, those that come closest.

    Args:
        prospects: All that there are.
        core_seconds: What training one network to the end may take.
        available: Rows that there are.
    """

    def shortage(prospect: CandidateEstimate) -> float:
        needed = _WARM_PASSES if prospect.origin == "pruned" else _COLD_PASSES
        return needed * min(available, _MANY_ROWS) * prospect.seconds_per_row / max(core_seconds, 1e-9)

    enough = [prospect for prospect in prospects if shortage(prospect) <= 1]
    return enough if len(enough) >= _FEW else sorted(prospects, key=shortage)[:_FEW]


def select_shortlist(
    prospects: Sequence[CandidateEstimate], count: int, max_latency_ratio: float
) -> list[CandidateEstimate]:
    """Return the networks of the first round: spread over cost, each the most able of its cost.

    Networks whose weights come from the original start far ahead, so they get up to a third of the places; others
    are of use where they cost less than most of these.

    Args:
        prospects: All that were measured or predicted.
        count: Places.
        max_latency_ratio: Latency ratio of what needs no training; slower networks are left out if there are others.
    """
    fast = [p for p in prospects if p.latency_ratio < _FASTER * max_latency_ratio] or list(prospects)
    warm = _spread([p for p in fast if p.origin == "pruned"], max(round(count / 3), min(_MIN_WARM, count - 1)))
    fresh = [p for p in fast if p.origin != "pruned"]
    below = warm[len(warm) // 2].cost if warm else math.inf
    cold = _mixed([p for p in fresh if p.cost < below] or fresh, count - len(warm))
    warm = _spread([p for p in fast if p.origin == "pruned"], count - len(cold))
    return sorted([*warm, *cold], key=lambda p: p.latency_ratio)


def _mixed(prospects: Sequence[CandidateEstimate], count: int) -> list[CandidateEstimate]:
    """Return prospects as `_spread` does, of each family at most half: figures compare families badly."""
    most = max(1, math.ceil(count / 2))
    chosen: list[CandidateEstimate] = []
    rest = list(prospects)
    while rest and len(chosen) < count:
        for prospect in _spread(rest, count - len(chosen)):
            if sum(other.family == prospect.family for other in chosen) < most:
                chosen.append(prospect)
        full = {family for family in {p.family for p in rest} if sum(c.family == family for c in chosen) >= most}
        left = [p for p in rest if p not in chosen and p.family not in full]
        if len(left) == len(rest):
            break
        rest = left
    return chosen


def _spread(prospects: Sequence[CandidateEstimate], count: int) -> list[CandidateEstimate]:
    """Return at most `count` prospects, evenly over the logarithm of cost, the most able of each step."""
    best: dict[int, CandidateEstimate] = {}
    for prospect in prospects:
        step = math.floor(math.log(prospect.cost) / math.log(_STEP))
        if step not in best or _expected_accuracy(prospect) > _expected_accuracy(best[step]):
            best[step] = prospect
    front: list[CandidateEstimate] = []
    for step in sorted(best):  # what costs more must be able to do more
        if not front or _expected_accuracy(best[step]) > _expected_accuracy(front[-1]):
            front.append(best[step])
    if len(front) <= count or count < 1:
        return front[: max(0, count)]
    if count == 1:
        return [front[len(front) // 2]]
    places = [round(i * (len(front) - 1) / (count - 1)) for i in range(count)]
    return [front[place] for place in dict.fromkeys(places)]


def _expected_accuracy(estimate: CandidateEstimate) -> float:
    """Return what to expect of a network before it is trained: much of many weights that are used often."""
    return estimate.parameters * math.sqrt(max(estimate.macs, 1))


def promise_score(cost: float, drop: float, max_drop: float, round_number: int) -> float:
    """Return how promising a network is, lower is better: its cost, and a price for the drop that will be left.

    Args:
        cost: Of the network.
        drop: Of the metric against the original.
        max_drop: The limit.
        round_number: 0 for the first round.

    >>> promise_score(0.5, 0.0, 0.01, 0) < promise_score(0.6, 0.0, 0.01, 0) < promise_score(0.5, 0.06, 0.01, 0)
    True
    """
    left = _expected_final_drop(drop, round_number)
    excess = math.log(max(left / (_MARGIN * max(max_drop, 1e-6)), 1.0))
    return math.log(cost) + _DEAR * excess + _DEARER * excess**2


def _expected_final_drop(drop: float, round_number: int) -> float:
    """Return what is expected to be left of a drop after all training."""
    return max(drop, 0.0) * _RECOVERED_SHARE[min(round_number, len(_RECOVERED_SHARE) - 1)]


def select_survivors(
    candidates: Sequence[TrainedCandidate], count: int, *, max_drop: float, round_number: int
) -> list[TrainedCandidate]:
    """Return who is trained on, most promising first; the most accurate one is always among them.

    What will break the limit by far is given up, as long as a few are left.
    """

    def counted(standing: TrainedCandidate) -> int:
        # What got little better in its last round will not get much better in the next ones.
        return len(_RECOVERED_SHARE) if standing.is_stalled else round_number

    ranked = sorted(candidates, key=lambda s: promise_score(s.estimate.cost, s.drop, max_drop, counted(s)))
    hopeless = [s for s in ranked if _expected_final_drop(s.drop, counted(s)) > _HOPELESS_FACTOR * max_drop]
    given_up = hopeless[max(0, _MIN_SURVIVORS - (len(ranked) - len(hopeless))) :]
    chosen = [s for s in ranked if s not in given_up][:count]
    surest = min(candidates, key=lambda s: (s.drop, s.estimate.cost), default=None)
    if surest is not None and surest not in chosen and count > 1:
        chosen = [*chosen[: count - 1], surest]
    return chosen


def meets_drop_limit(candidate: TrainedCandidate, max_drop: float) -> bool:
    """Whether a network would be certified by what is known, so that only cheaper ones need training."""
    return candidate.predicted_bound <= max_drop


def cheapest_candidate(kept: Sequence[TrainedCandidate]) -> TrainedCandidate | None:
    """Return the network of the lowest cost, None if there is none."""
    return min(kept, key=lambda standing: standing.estimate.cost, default=None)


def parent_for_pruning(
    kept: Sequence[TrainedCandidate], ranked: Sequence[TrainedCandidate], *, max_drop: float, round_number: int
) -> TrainedCandidate | None:
    """Return whose smaller versions to train: the cheapest that keeps the drop.

    As long as none does, one that is expected to: the model itself made smaller, for what was drawn fresh has been
    trained too little to tell which of its channels matter.
    """
    if kept:
        return cheapest_candidate(kept)
    warm = (standing for standing in ranked if standing.estimate.origin == "pruned")
    return next(
        (standing for standing in warm if _expected_final_drop(standing.drop, round_number) <= max_drop), None
    )


def select_baseline(
    known: Sequence[TrainedCandidate], max_latency_ratio: float, *, max_drop: float
) -> TrainedCandidate | None:
    """Return the network that is trained until it is sure to keep the drop, while others are to become cheaper.

    Args:
        known: How all networks stand, each after its last round.
        max_latency_ratio: Latency ratio of what needs no training; only what is much faster is worth it.
        max_drop: The limit.

    Returns:
        The most accurate; None if that is sure already, or too far off to become so.
    """
    able = [
        s for s in known if s.estimate.latency_ratio <= _ANCHORED * max_latency_ratio and s.drop <= _NEAR * max_drop
    ]
    surest = min(able, key=lambda standing: (standing.drop, standing.estimate.cost), default=None)
    return None if surest is None or surest.predicted_bound <= _SURE * max_drop else surest


def near_misses(
    kept: Sequence[TrainedCandidate], others: Sequence[TrainedCandidate], *, max_drop: float
) -> list[TrainedCandidate]:
    """Return what is worth more time: much cheaper than what keeps the drop, and close to keeping it."""
    limit = _MUCH_CHEAPER * min((standing.estimate.cost for standing in kept), default=math.inf)
    near = [s for s in others if s not in kept and s.estimate.cost < limit and s.drop <= _NEAR * max_drop]
    return sorted(near, key=lambda standing: standing.estimate.cost)


def select_finalists(
    kept: Sequence[TrainedCandidate], others: Sequence[TrainedCandidate], *, max_drop: float, round_number: int
) -> list[TrainedCandidate]:
    """Return whose forms are tried: of those that keep the drop the cheapest two and the surest, then one other."""
    cheap = sorted(kept, key=lambda standing: standing.estimate.cost)[:2]
    cheap += sorted((s for s in kept if s not in cheap), key=lambda standing: standing.predicted_bound)[:1]
    rest = [standing for standing in others if standing not in kept and math.isfinite(standing.drop)]
    return [*cheap, *select_survivors(rest, 1 if cheap else 2, max_drop=max_drop, round_number=round_number)]


def rows_per_network(core_seconds: float, seconds_per_row: Sequence[float]) -> int:
    """Return how many rows each network can be shown if all are shown as many.

    >>> rows_per_network(10.0, [0.001, 0.004])
    2000
    """
    return int(core_seconds / max(sum(seconds_per_row), 1e-12))


def plan_epochs(rows: int, available: int) -> tuple[int, int]:
    """Return epochs and rows per epoch for so many rows in all.

    >>> plan_epochs(500, 2000), plan_epochs(7000, 2000)
    ((1, 500), (4, 1750))
    """
    epochs = min(-(-rows // available), _MAX_PASSES) or 1
    return epochs, max(1, min(rows // epochs, available))


def next_noise_level(
    kept: Sequence[float], failed: Sequence[float], count: int, *, keeps_now: bool = True
) -> list[int]:
    """Return at which tightness integers are trained next, dB of noise before training.

    Args:
        kept: What was tried and kept the limit on the drop.
        failed: What was tried and did not.
        count: How many are tried at the same time.
        keeps_now: Whether the network keeps the limit before; if not, many bits are trained first.

    >>> next_noise_level([], [], 2), next_noise_level([18], [12], 2)
    ([18, 12], [15])
    >>> next_noise_level([18, 12], [], 2), next_noise_level([], [18, 12], 2)
    ([10, 8], [21, 30])
    """
    if not kept and not failed:
        return [18, 12, 24, 8][:count] if keeps_now else [30, 21, 36, 15][:count]
    least = min(kept, default=math.inf)
    worst = max(failed, default=-math.inf)
    open_steps = [db for db in _NOISE_LEVELS_DB if worst < db < least and db not in (*kept, *failed)]
    if kept:
        return open_steps[:count]
    return open_steps[::-1][: 2 * count : 2]
