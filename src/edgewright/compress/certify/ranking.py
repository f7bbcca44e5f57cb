"""Which candidate to choose: pure functions from trials and a budget."""

import math
from collections.abc import Collection, Sequence

import msgspec
from scipy.special import ndtr

from edgewright.contract.compression_report import SearchTrial
from edgewright.contract.device_class import Budget
from edgewright.stats.exact_paired_bound import likelihood_ratio_limit

__all__ = [
    "SIZE_WEIGHT",
    "budget_violation",
    "certification_candidates",
    "certification_chance",
    "is_better",
    "move_to_front",
    "pareto_front",
    "pool_changed_answers",
    "rank_trials",
]

# Latencies closer than this are the same: then size decides.
LATENCY_TIE_TOLERANCE = 0.03
# A default choice may not be slower than the original by more than measuring noise.
_SLOWDOWN_TOLERANCE = 1.02
# Candidates whose noise differs by less are equally noisy, dB.
_SIMILAR_NOISE_DB = 3.0
# What a shrinkage is worth beside a speed-up, in logarithms, where networks were trained.
SIZE_WEIGHT = 1 / 3
# A chance like this is nearly sure, or worth a look.
_LIKELY, _AS_LIKELY_AS_NOT = 0.9, 0.5
# What is certified at a second look is worth less, for each look costs confidence.
_SECOND = 0.9
# Standard errors of a drop in a predicted bound above it, of those in a first look, and what is luck.
_ERRORS, _LOOK_PENALTY, _SELECTION_BIAS = 2.4, 1.87, 0.5
# Noise this far below the answers changes hardly any of them, dB.
_LOW_NOISE_DB = 30.0
# Beyond a limit, candidates whose excess differs by less than this share are equally close: then speed decides.
_SIMILAR_VIOLATION = 0.05


def pareto_front(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
    """Return the trials that no other beats in drop, latency, size, memory and energy together.

    Energy is estimated from the latency ratio, so it needs no axis of its own.
    """

    def figures(trial: SearchTrial) -> tuple[float, ...]:
        # Noise must not put a candidate on the front: rates and ratios to two digits, memory to a tenth of a MB.
        return (
            round(max(trial.drop or 0.0, 0.0), 4),
            round(trial.latency_ratio or 9.0, 2),
            float(trial.size_bytes),
            round((trial.peak_memory_bytes or 0.0) / 1e5),
        )

    complete = [trial for trial in trials if trial.state == "complete"]
    front = []
    seen: set[tuple[float, ...]] = set()
    for trial in complete:
        mine = figures(trial)
        beaten = any(
            all(a <= b for a, b in zip(figures(other), mine, strict=True)) and figures(other) != mine
            for other in complete
        )
        if not beaten and mine not in seen:
            seen.add(mine)
            front.append(trial)
    return sorted(front, key=lambda trial: trial.size_bytes)


def pool_changed_answers(trials: Sequence[SearchTrial], samples: int, alpha: float) -> list[SearchTrial]:
    """Return the trials with bounds that also count the flips of equally noisy candidates.

    Of many candidates with the same noise the luckiest has the fewest flips on the select split and no fewer
    anywhere else. So each is believed to flip as many answers as those within 3 dB of it do on average, in both
    directions alike, if that is more than what it showed. Networks that were trained apart differ in more than
    noise, so only forms of one network count.

    Args:
        trials: Of one search.
        samples: Size of the certify split.
        alpha: Error that a first look may spend.
    """
    known = [trial for trial in trials if trial.changed_answers is not None and trial.sqnr_db is not None]
    result = []
    for trial in trials:
        if trial.changed_answers is None or trial.sqnr_db is None or trial.predicted_bound is None:
            result.append(trial)
            continue
        near = [
            other.changed_answers or 0.0
            for other in known
            if other.network_sha256 == trial.network_sha256
            and abs((other.sqnr_db or 0.0) - trial.sqnr_db) <= _SIMILAR_NOISE_DB
        ]
        half = sum(near) / len(near) * samples / 2
        bound = likelihood_ratio_limit(half, half, float(samples), alpha)
        result.append(msgspec.structs.replace(trial, predicted_bound=max(trial.predicted_bound, bound)))
    return result


def budget_violation(
    trial: SearchTrial,
    budget: Budget,
    original_latency_seconds: float | None = None,
    original_energy_j: float | None = None,
) -> float:
    """Return by how much the worst limit is broken, as a share of it; 0 or less if all are kept.

    Args:
        trial: A complete trial.
        budget: The limits; only those that a trial knows about count.
        original_latency_seconds: Median latency of the original; without it latency limits do not count.
        original_energy_j: Energy of one inference of the original; that of a candidate is taken to follow its
            latency. Without it the energy limit does not count.
    """
    excesses = [-1.0]
    if budget.max_drop is not None:
        bound = trial.predicted_bound if trial.predicted_bound is not None else 1.0
        excesses.append(bound / budget.max_drop - 1)
    if budget.min_metric is not None and trial.metric is not None:
        excesses.append((budget.min_metric - trial.metric) / max(abs(budget.min_metric), 1e-9))
    if budget.size_bytes is not None:
        excesses.append(trial.size_bytes / budget.size_bytes - 1)
    limits = [limit for limit in (budget.latency_p50_seconds, budget.latency_p95_seconds) if limit is not None]
    if original_latency_seconds is not None and limits and trial.latency_ratio is not None:
        excesses.append(trial.latency_ratio * original_latency_seconds / min(limits) - 1)
    if original_energy_j is not None and budget.energy_j is not None and trial.latency_ratio is not None:
        excesses.append(trial.latency_ratio * original_energy_j / budget.energy_j - 1)
    return max(excesses)


def is_better(trial: SearchTrial, other: SearchTrial, budget: Budget) -> bool:
    """Whether one of two complete trials would be chosen before the other, budget and drop first."""
    mine, theirs = budget_violation(trial, budget), budget_violation(other, budget)
    if mine > 0 or theirs > 0:
        return mine < theirs
    return _rank(trial, min(trial.latency_ratio or 9, other.latency_ratio or 9)) < _rank(
        other, min(trial.latency_ratio or 9, other.latency_ratio or 9)
    )


def _rank(trial: SearchTrial, fastest: float) -> tuple[int, float, float]:
    ratio = trial.latency_ratio or 9.0
    tied = ratio <= fastest * (1 + LATENCY_TIE_TOLERANCE)
    return (0, float(trial.size_bytes), ratio) if tied else (1, ratio, float(trial.size_bytes))


def rank_trials(
    trials: Sequence[SearchTrial],
    budget: Budget,
    original_latency_seconds: float,
    original_energy_j: float | None = None,
    *,
    preferred: Collection[str] = (),
) -> list[SearchTrial]:
    """Return the candidates worth certifying, best first.

    Those that keep every limit come first: of the preferred networks, by their digests, before others; the fastest,
    and among equally fast ones the smallest. Candidates slower than the original count only if nothing else keeps
    the budget. Then follow those that break a limit, the closest first.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    fitting = [
        trial
        for trial in complete
        if budget_violation(trial, budget, original_latency_seconds, original_energy_j) <= 0
    ]
    usual = [trial for trial in fitting if (trial.latency_ratio or 9) <= _SLOWDOWN_TOLERANCE]
    ranked: list[SearchTrial] = []
    first = [trial for trial in usual if trial.network_sha256 in preferred]
    second = [trial for trial in usual if trial not in first]
    for group in (first, second, [trial for trial in fitting if trial not in usual]):
        rest = list(group)
        while rest:
            fastest = min(trial.latency_ratio or 9 for trial in rest)
            rest.sort(key=lambda trial: _rank(trial, fastest))
            ranked.append(rest.pop(0))
    others = [trial for trial in complete if trial not in fitting]

    for_size = budget.size_bytes is not None or budget.peak_memory_bytes is not None

    def distance(trial: SearchTrial) -> tuple[bool, int, float]:
        ratio = trial.latency_ratio or 9.0
        excess = max(budget_violation(trial, budget, original_latency_seconds, original_energy_j), 0.0)
        return (
            ratio > _SLOWDOWN_TOLERANCE and not for_size,
            math.floor(math.log1p(excess) / _SIMILAR_VIOLATION),
            ratio,
        )

    return ranked + sorted(others, key=distance)


def certification_chance(trial: SearchTrial, max_drop: float) -> float:
    """Return how likely a trial is to be certified, by what the select split says of it.

    The predicted bound holds the standard errors of both splits. The best of many is believed to lose half a
    standard error more than it seems to.
    """
    drop, bound = max(trial.drop or 0.0, 0.0), trial.predicted_bound
    if bound is None:
        return 0.0
    error = max(bound - drop, 1e-9) / _ERRORS
    return float(ndtr((max_drop - drop - (_LOOK_PENALTY + _SELECTION_BIAS) * error) / (math.sqrt(2) * error)))


def move_to_front(
    ranked: Sequence[SearchTrial],
    budget: Budget,
    original_latency_seconds: float,
    original_energy_j: float | None = None,
    *,
    preferred: Collection[str] = (),
) -> list[SearchTrial]:
    """Return the ranked with that one first whose gain is greatest on the average over being certified or not.

    Where networks were trained there is one for every drop, so the fastest that keeps the limit on the select split
    keeps it barely. A gain is the logarithm of the speed-up and a third of the shrinkage's: small networks are
    about equally fast, whatever their size. What is not certified is followed by another look at something nearly
    sure, so its failure costs the difference and some confidence. Of those about as fast that are nearly sure, it
    is the smallest. The best form of another trained network comes second: what the select split misjudged in the
    first one it need not have misjudged in that. Without trained networks the order stays.
    """
    limits = msgspec.structs.replace(budget, max_drop=None)
    able = [
        trial
        for trial in ranked
        if (trial.latency_ratio or 9) < 1
        and budget_violation(trial, limits, original_latency_seconds, original_energy_j) <= 0
    ]
    able = [trial for trial in able if trial.network_sha256 in preferred] or able
    if budget.max_drop is None or not any(trial.network_sha256 for trial in able):
        return list(ranked)
    largest = max(trial.size_bytes for trial in able)

    def gain(trial: SearchTrial) -> float:
        return -math.log(trial.latency_ratio or 9) - SIZE_WEIGHT * math.log(trial.size_bytes / largest)

    likely = {trial.number: certification_chance(trial, budget.max_drop) for trial in able}
    nearly_sure = [trial for trial in able if likely[trial.number] >= _LIKELY]
    otherwise = _SECOND * max((likely[trial.number] * gain(trial) for trial in nearly_sure), default=0.0)

    def promise(trial: SearchTrial) -> float:
        return likely[trial.number] * (gain(trial) - otherwise)

    best = max(able, key=promise)
    fastest = (best.latency_ratio or 9) * (1 + LATENCY_TIE_TOLERANCE)
    least = min(_LIKELY, likely[best.number])
    alike = [t for t in able if (t.latency_ratio or 9) <= fastest and likely[t.number] >= least]
    first = min(alike, key=lambda trial: trial.size_bytes)
    rivals = [trial for trial in able if _is_rival(trial, first, budget.max_drop)]
    front = [first, max(rivals, key=promise)] if rivals else [first]
    return [*front, *(trial for trial in ranked if trial not in front)]


def _is_rival(trial: SearchTrial, first: SearchTrial, max_drop: float) -> bool:
    """Whether a trial is worth the second look: as likely certified as not, and of another trained network."""
    trained_apart = first.network_sha256 and trial.network_sha256 not in ("", first.network_sha256)
    return bool(trained_apart) and certification_chance(trial, max_drop) >= _AS_LIKELY_AS_NOT


def certification_candidates(
    ranked: Sequence[SearchTrial], count: int, max_drop: float | None = None
) -> list[SearchTrial]:
    """Return whom to certify in turn: the best, then the best of those that are clearly safer, and so on.

    A second one of another trained network need not be safer.

    Args:
        ranked: From `rank_trials` or `move_to_front`.
        count: Most contenders; each look at the certify split costs confidence.
        max_drop: The limit; None if there is none.
    """
    chosen = list(ranked[: min(1, count)])
    if count > 2 and max_drop is not None and len(ranked) > 1 and _is_rival(ranked[1], ranked[0], max_drop):
        chosen.append(ranked[1])
    for trial in ranked:
        if len(chosen) < count - 1 and all(_is_safer(trial, earlier) for earlier in chosen):
            chosen.append(trial)
    # The last one is the safest of all: better a modest gain than none.
    rest = [trial for trial in ranked if all(_is_safer(trial, earlier) for earlier in chosen)]
    if rest and len(chosen) < count:
        least = min(trial.predicted_bound or 0.0 for trial in rest)
        surest = [trial for trial in rest if (trial.predicted_bound or 0.0) <= least + 0.1 * abs(least)]
        quiet = [trial for trial in surest if (trial.sqnr_db or 0.0) >= _LOW_NOISE_DB]
        chosen.append(quiet[0] if quiet else max(surest, key=lambda trial: trial.sqnr_db or 0.0))
    return chosen


def _is_safer(trial: SearchTrial, other: SearchTrial) -> bool:
    quieter = (trial.sqnr_db or 0.0) >= (other.sqnr_db or 0.0) + 4
    mine, theirs = trial.predicted_bound or 0.0, other.predicted_bound or 0.0
    return mine < theirs - 0.2 * abs(theirs) or (quieter and mine <= theirs)
