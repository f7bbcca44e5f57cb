"""How often a rollout is stopped that does no harm, how soon one that does, and what it takes to advance.

    python benchmarks/rollouts.py            everything, ten minutes; writes benchmarks/results/rollouts.json
    python benchmarks/rollouts.py --quick    a smoke run of less than a minute
    python benchmarks/rollouts.py --only found

Devices differ: each has its own rate of failures, and those that settle early fail less. Every comparison is looked
at 48 times. Shares have Clopper-Pearson intervals of 95 %, numbers of devices are medians with the 5th and the 95th
percentile.
"""

import datetime
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
from benchmarks.parts import Part, run_parts
from benchmarks.report import Figure, Interval
from numpy.typing import NDArray
from scipy import special, stats

from edgewright.contract.rollout.decision import CONTROL_ARM, OutcomeCounts, StageEvidence
from edgewright.contract.rollout.plan import (
    HEALTH_EVENTS,
    HealthRule,
    RolloutArm,
    RolloutPlan,
    RolloutPolicy,
    RolloutStage,
)
from edgewright.rollout.comparison_design import arm_shares, assignment_share
from edgewright.rollout.decision import decide_rollout
from edgewright.rollout.power_analysis import devices_to_clear
from edgewright.stats import sequential_ab

NAME = "rollouts"
PACKAGES = ("edgewright", "numpy", "scipy")
ALPHA, LOOKS = 0.05, 48
# What one of five metrics may spend in the first and in a later one of three stages.
FIRST, LATER = ALPHA / 2 / 5, ALPHA / 4 / 5
PAIRS = 700
RATE, HARM, MARGIN = 0.02, 0.08, 0.01
NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
# Values that the mean of a device's outcomes takes.
GRID = np.linspace(0, 1, 21)

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stream:
    """Devices at every look.

    Attributes:
        values: Shape [values], that outcomes take.
        treated: Shape [looks, values], devices so far.
        control: Shape [looks, values].
    """

    values: Floats
    treated: Counts
    control: Counts


Test = Callable[[Stream, float, float], NDArray[np.bool_]]
"""From a stream, the share of the treated and an error to whether harm is seen at each look."""


def _share(name: str, hits: int, runs: int, limit: float | None, note: str, peer: str | None = None) -> Figure:
    """Return a share with its Clopper-Pearson interval of 95 %."""
    found = stats.binomtest(hits, runs).proportion_ci(0.95, method="exact")
    holds = limit is None or hits / runs <= limit
    return Figure(
        name, Interval(hits / runs, float(found.low), float(found.high)), limit, peer, holds, f"{runs} runs; {note}"
    )


def _number(name: str, found: list[float], most: float, note: str, peer: str | None = None) -> Figure:
    """Return a median with the 5th and 95th percentile; what was not seen counts as the most that was looked at."""
    low, middle, high = (float(value) for value in np.quantile(np.minimum(found, most), (0.05, 0.5, 0.95)))
    return Figure(name, Interval(middle, low, high), None, peer, True, f"{note}; looked at {most:g} at most")


def _rates(devices: int, mean: float, random: np.random.Generator) -> Floats:
    """Return a rate per device, in the order in which they settle: uneven, and rising by half on the way."""
    frail = random.beta(0.5, 0.5 / mean - 0.5, size=devices)
    return np.asarray(np.clip(frail * np.linspace(0.8, 1.2, devices), 0, 1))


def failures(random: np.random.Generator, devices: int, share: float, worse: float | None = None) -> Stream:
    """Draw devices that fail or do not, at 2 % or, treated, at the rate `worse`."""
    rates, treated = _rates(devices, RATE, random), random.random(devices) < share
    if worse is not None:
        rates = np.where(treated, rates + (1 - rates) * (worse - RATE) / (1 - RATE), rates)
    return _stream(np.array([0.0, 1.0]), (random.random(devices) < rates).astype(np.int64), treated)


def outcomes(random: np.random.Generator, devices: int, share: float) -> Stream:
    """Draw devices whose outcome is a mean of twenty values of their application."""
    places = random.binomial(20, _rates(devices, 0.15, random))
    return _stream(GRID, places, random.random(devices) < share)


def _stream(values: Floats, places: Counts, treated: NDArray[np.bool_]) -> Stream:
    looks = np.arange(places.size) * LOOKS // places.size
    counts = np.zeros((2, LOOKS, values.size), np.int64)
    np.add.at(counts, (treated.astype(np.int64), looks, places), 1)
    control, first = counts.cumsum(axis=1)
    return Stream(values, first, control)


def e_process(stream: Stream, share: float, alpha: float) -> NDArray[np.bool_]:
    """Look with the wealth that rollouts are decided by."""
    found = [
        sequential_ab.log_harm_evidence(sequential_ab.ArmOutcomes(stream.values, treated, control), share)
        for treated, control in zip(stream.treated, stream.control, strict=True)
    ]
    return np.array(found) >= -math.log(alpha)


def z_test(stream: Stream, _: float, alpha: float) -> NDArray[np.bool_]:
    """Look with the z-test of two means, one-sided, with the variance of both arms together."""
    moments = [
        (arm.sum(axis=1), arm @ stream.values, arm @ stream.values**2) for arm in (stream.treated, stream.control)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        (n1, s1, q1), (n0, s0, q0) = moments
        mean = (s1 + s0) / (n1 + n0)
        spread = ((q1 + q0) / (n1 + n0) - mean**2) * (1 / n1 + 1 / n0)
        return np.asarray((s1 / n1 - s0 / n0) / np.sqrt(spread) > special.ndtri(1 - alpha))


def mann_whitney(stream: Stream, _: float, alpha: float) -> NDArray[np.bool_]:
    """Look with the test of Mann and Whitney, one-sided, normal approximation with ties."""
    n1, n0 = stream.treated.sum(axis=1), stream.control.sum(axis=1)
    ties = (stream.treated + stream.control).astype(np.float64)
    total = (n1 + n0).astype(np.float64)
    below = stream.control.cumsum(axis=1) - stream.control / 2
    wins = (stream.treated * below).sum(axis=1) - n1 * n0 / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = n1 * n0 / 12 * (total + 1 - (ties**3 - ties).sum(axis=1) / (total * (total - 1)))
        return np.asarray(wins / np.sqrt(spread) > special.ndtri(1 - alpha))


TESTS: Mapping[str, Test] = {"e-process": e_process, "z-test": z_test, "Mann-Whitney": mann_whitney}


def harmless(*, quick: bool) -> Part:
    """One metric, one stage, nothing changed: how often each test stops it at some look."""
    runs = 100 if quick else 4000
    kinds: dict[str, tuple[Callable[..., Stream], float, int]] = {
        "failures": (failures, 0.5, 2400),
        "failures, a tenth treated": (failures, 0.1, 9600),
        "failures, nine tenths treated": (failures, 0.9, 9600),
        "outcomes": (outcomes, 0.5, 2400),
    }
    figures = []
    for kind, (draw, share, devices) in kinds.items():
        hits = dict.fromkeys(TESTS, 0)
        for run in range(runs):
            stream = draw(np.random.default_rng([run, 1]), devices, share)
            for name, test in TESTS.items():
                hits[name] += bool(test(stream, share, ALPHA).any())
        note = f"{devices} devices, alpha {ALPHA}"
        for name, count in hits.items():
            ours = name == "e-process"
            figures.append(
                _share(
                    f"harmless.{kind}.{name}", count, runs, ALPHA if ours else None, note, None if ours else name
                )
            )
    return figures, {}


def found(*, quick: bool) -> Part:
    """Failures rise from 2 % to 8 %: how often that is missed within 700 pairs, and after how many it is seen."""
    runs = 100 if quick else 4000
    figures = []
    for stage, alpha in (("one test", ALPHA), ("first stage", FIRST), ("later stage", LATER)):
        firsts: dict[str, list[float]] = {name: [] for name in TESTS}
        for run in range(runs):
            stream = failures(np.random.default_rng([run, 2]), 2 * PAIRS, 0.5, HARM)
            for name, test in TESTS.items():
                seen = test(stream, 0.5, alpha)
                firsts[name].append((int(seen.argmax()) + 1) * PAIRS / LOOKS if seen.any() else math.inf)
        for name, pairs in firsts.items():
            ours = name == "e-process"
            note, peer = f"alpha {alpha:g}", None if ours else name
            missed = sum(math.isinf(number) for number in pairs)
            figures += [
                _share(f"found.{stage}.missed.{name}", missed, runs, 0.05 if ours else None, note, peer),
                _number(f"found.{stage}.pairs.{name}", pairs, PAIRS, note, peer),
            ]
    return figures, {}


def cleared(*, quick: bool) -> Part:
    """A margin of 1 point at 2 %: pairs until it clears, and how often it does for a release worse by just that."""
    runs, longest = (20, 4800) if quick else (500, 9600)
    figures, wrong = [], 0
    firsts: dict[str, list[float]] = {name: [] for name in ("e-process", "hedged capital", "empirical Bernstein")}
    for run in range(runs):
        random = np.random.default_rng([run, 3])
        stream = failures(random, 2 * longest, 0.5)
        firsts["e-process"].append(_first_cleared(stream, longest))
        wrong += math.isfinite(_first_cleared(failures(random, 2 * longest, 0.5, RATE + MARGIN), longest))
        pairs = (random.random((2, longest)) < _rates(2 * longest, RATE, random).reshape(longest, 2).T) * 1.0
        scaled = (pairs[0] - pairs[1] + 1) / 2
        firsts["hedged capital"].append(_first(_hedged(scaled, (1 + MARGIN) / 2), longest))
        firsts["empirical Bernstein"].append(_first(_bernstein(scaled) <= (1 + MARGIN) / 2, longest))
    needed = devices_to_clear(RATE, MARGIN) / 2
    for name, numbers in firsts.items():
        ours = name == "e-process"
        note = f"{runs} runs; foreseen {needed:.0f}" if ours else "stakes from the past, pairs of devices"
        figures.append(_number(f"cleared.pairs.{name}", numbers, longest, note, None if ours else name))
    figures.append(_share("cleared.wrongly", wrong, runs, ALPHA, f"worse by just {MARGIN:.0%}, {longest} pairs"))
    return figures, {}


def _first_cleared(stream: Stream, pairs: int) -> float:
    passed = [
        sequential_ab.log_refutation_evidence(
            sequential_ab.ArmOutcomes(stream.values, treated, control), 0.5, MARGIN
        )
        >= -math.log(ALPHA)
        for treated, control in zip(stream.treated, stream.control, strict=True)
    ]
    return (passed.index(True) + 1) * pairs / LOOKS if any(passed) else math.inf


def _first(passed: NDArray[np.bool_], pairs: int) -> float:
    """Return the first look, of those that all tests have, at which a condition held."""
    at_looks = passed[pairs // LOOKS - 1 :: pairs // LOOKS]
    return (int(at_looks.argmax()) + 1) * pairs / LOOKS if at_looks.any() else math.inf


def _plug_in(scaled: Floats) -> tuple[Floats, Floats]:
    """Return stakes and means from the past alone; Waudby-Smith and Ramdas 2024, equations 15 and 26."""
    times = np.arange(1, scaled.size + 1)
    means = (0.5 + scaled.cumsum()) / (times + 1)
    spreads = (0.25 + ((scaled - means) ** 2).cumsum()) / (times + 1)
    before = np.concatenate([[0.25], spreads[:-1]])
    stakes = np.sqrt(2 * math.log(1 / ALPHA) / (before * times * np.log1p(times)))
    return np.asarray(stakes), np.concatenate([[0.5], means[:-1]])


def _hedged(scaled: Floats, mean: float) -> NDArray[np.bool_]:
    """Say at each pair whether a mean is refuted from below by the negative capital process."""
    stakes = np.minimum(_plug_in(scaled)[0], 0.5 / (1 - mean))
    return np.asarray(np.log1p(stakes * (mean - scaled)).cumsum() >= math.log(1 / ALPHA))


def _bernstein(scaled: Floats) -> Floats:
    """Return the upper empirical Bernstein bound after each pair."""
    stakes, means = _plug_in(scaled)
    stakes = np.minimum(stakes, 0.5)
    spread = ((scaled - means) ** 2 * (-np.log1p(-stakes) - stakes)).cumsum()
    return np.asarray(((stakes * scaled).cumsum() + math.log(1 / ALPHA) + spread) / stakes.cumsum())


def rollouts(*, quick: bool) -> Part:
    """Whole rollouts of five metrics and three stages, by `decide`: stopped without harm, not stopped with it."""
    runs, harmful = (3, 3) if quick else (400, 1200)
    rules = tuple(HealthRule(metric, MARGIN) for metric in HEALTH_EVENTS)
    policy = RolloutPolicy("digits", "pi", 1, "0123456789abcdef", holdout_fraction=0.05)
    stages = (RolloutStage(0.1, 0, rules), RolloutStage(1 / 1.9, 0, rules), RolloutStage(1.0, 0, rules))
    plans = [
        RolloutPlan("digits", "pi", "benchmark", 1, 1, (RolloutArm("1.1", "ab" * 32),), stages, stage=number)
        for number in range(len(stages))
    ]
    stopped = missed = 0
    looks: list[float] = []
    for run in range(runs):
        random = np.random.default_rng([run, 4])
        stopped += any(_stops(plan, policy, random, 2000, LOOKS // 3) < math.inf for plan in plans)
    for run in range(harmful):
        took = _stops(plans[1], policy, np.random.default_rng([run, 5]), 2 * PAIRS, LOOKS, HARM)
        missed += math.isinf(took)
        looks.append(took / 2)
    note = "5 metrics, 3 stages of 2,000 devices, 16 looks at each"
    return [
        _share("rollouts.harmless.stopped", stopped, runs, ALPHA, note),
        _share(
            "rollouts.harmful.missed",
            missed,
            harmful,
            0.05,
            "crashes 2 % to 8 %, 700 pairs, second of three stages",
        ),
        _number("rollouts.harmful.pairs", looks, PAIRS, "until rolled back"),
    ], {}


def _stops(
    plan: RolloutPlan,
    policy: RolloutPolicy,
    random: np.random.Generator,
    devices: int,
    looks: int,
    worse: float | None = None,
) -> float:
    """Return after how many devices of a stage a rollout is rolled back, infinity if it is not.

    Three devices in a hundred are offline and fail under every metric, in both arms.
    """
    share = assignment_share(arm_shares(plan, plan.stage, policy.holdout_fraction), 0, CONTROL_ARM) or 0.0
    treated = random.random(devices) < share
    offline = random.random(devices) < 0.03
    failed = random.random((len(HEALTH_EVENTS), devices)) < _rates(devices, RATE, random)
    if worse is not None:
        failed[0] |= treated & (random.random(devices) < (worse - RATE) / (1 - RATE))
    failed[HEALTH_EVENTS.index("offline")] = False
    failed |= offline
    for look in range(1, looks + 1):
        upto = look * devices // looks
        tallies = []
        for metric, hits in zip(HEALTH_EVENTS, failed, strict=True):
            for arm, mask in ((0, treated[:upto]), (CONTROL_ARM, ~treated[:upto])):
                count, total = int(hits[:upto][mask].sum()), int(mask.sum())
                tallies.append(OutcomeCounts(metric, arm, (0.0, 1.0), (total - count, count)))
        evidence = StageEvidence(plan.rollout, plan.stage, tuple(tallies))
        if decide_rollout(plan, policy, evidence, NOW, alpha=ALPHA).action == "roll_back":
            return upto
    return math.inf


PARTS: dict[str, Callable[..., Part]] = {part.__name__: part for part in (harmless, found, cleared, rollouts)}


if __name__ == "__main__":
    sys.exit(run_parts(NAME, PARTS, PACKAGES, __doc__))
