"""Counting devices: one outcome each, once its deadline has passed; whoever was silent until then has failed."""

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping

from edgewright.contract.decision import CONTROL, DeviceOutcome, Evidence, Tally, digest_of
from edgewright.contract.errors import InputError
from edgewright.contract.plan import METRICS, Plan
from edgewright.contract.times import time_of

__all__ = ["collect", "share_of", "watched"]

# Values are counted in steps of this many to one, so that a tally stays short.
_STEPS = 1000


def watched(plan: Plan) -> tuple[str, ...]:
    """Return the metrics that a rollout is stopped for: those of all its rules, or every named one without rules."""
    return tuple(dict.fromkeys(rule.metric for stage in plan.stages for rule in stage.rules)) or METRICS


def share_of(plan: Plan, holdback: float, arm: int, against: int) -> float:
    """Return the chance with which a device of two arms is assigned to the first of them; 0 or 1 if one is empty.

    Devices beyond the stage's fraction are control, and so is the holdback, from which the fraction is not taken.
    """
    sizes = _sizes(plan, holdback)
    total = sizes[arm] + sizes[against]
    return sizes[arm] / total if total > 0 else 0.0


def _sizes(plan: Plan, holdback: float) -> dict[int, float]:
    joined = plan.fraction * (1 - holdback)
    total = sum(arm.weight for arm in plan.arms)
    return {CONTROL: 1 - joined} | {index: joined * arm.weight / total for index, arm in enumerate(plan.arms)}


def collect(
    plan: Plan,
    outcomes: Iterable[DeviceOutcome],
    now: datetime.datetime,
    *,
    centres: Mapping[str, float] | None = None,
) -> Evidence:
    """Count what is fixed of a stage.

    A failure counts when its device's deadline has passed and not before, as a success does: else the devices that
    are known would be the ones that fail. What a device did not report counts as failed, in every arm.

    Args:
        plan: The rollout, at the stage that the outcomes are of.
        outcomes: One per device, in any order: all that were assigned and can be told apart by their arm alone, so
            without devices that had no model before, or that the policy lets install nothing.
        now: Later deadlines are still to come.
        centres: As for `Evidence`.

    Raises:
        InputError: A device twice, or an arm that the plan does not have.
    """
    metrics = watched(plan)
    arms = range(CONTROL, len(plan.arms))
    counts = {(metric, arm): Counter[float]() for metric in metrics for arm in arms}
    waiting = dict.fromkeys(arms, 0)
    rows: dict[str, DeviceOutcome] = {}
    seen: set[str] = set()
    for row in outcomes:
        if row.device in seen or row.arm not in waiting:
            raise InputError(
                f"device {row.device[:80]!r} has a second outcome, or arm {row.arm}, in rollout {plan.rollout}",
                remedy="A device has one outcome in a stage, in the arm that it was assigned to.",
            )
        seen.add(row.device)
        if time_of(row.deadline) > now:
            waiting[row.arm] += 1
            continue
        rows[row.device] = row
        for metric in metrics:
            counts[metric, row.arm][_value(row, metric)] += 1
    tallies = [_tally(metric, arm, counted) for (metric, arm), counted in counts.items()]
    return Evidence(
        plan.rollout,
        plan.stage,
        tuple(tallies),
        tuple(waiting.values()),
        digest_of(tuple(rows[device] for device in sorted(rows))),
        dict(centres or {}),
    )


def _value(row: DeviceOutcome, metric: str) -> float:
    if row.values is None:
        return 1.0
    if metric == "silent":
        return 0.0
    return round(row.values.get(metric, 1.0) * _STEPS) / _STEPS


def _tally(metric: str, arm: int, counted: Counter[float]) -> Tally:
    values = sorted(counted)
    return Tally(metric, arm, tuple(values), tuple(counted[value] for value in values))
