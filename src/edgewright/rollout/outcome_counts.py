"""Counting devices: one outcome each, once its deadline has passed; whoever was offline until then has failed."""

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.decision import (
    CONTROL_ARM,
    DeviceOutcome,
    OutcomeCounts,
    StageEvidence,
    inputs_digest,
)
from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.contract.timestamps import parse_iso8601
from edgewright.rollout.comparison_design import stopping_metrics

__all__ = ["count_outcomes"]

# Values are counted in steps of this many to one, so that a tally stays short.
_STEPS = 1000


def count_outcomes(
    plan: RolloutPlan,
    outcomes: Iterable[DeviceOutcome],
    now: datetime.datetime,
    *,
    baseline_rates: Mapping[str, float] | None = None,
) -> StageEvidence:
    """Count what is fixed of a stage.

    A failure counts when its device's deadline has passed and not before, as a success does: else the devices that
    are known would be the ones that fail. What a device did not report counts as failed, in every arm.

    Args:
        plan: The rollout, at the stage that the outcomes are of.
        outcomes: One per device, in any order: all that were assigned and can be told apart by their arm alone, so
            without devices that had no model before, or that the policy lets install nothing.
        now: Later deadlines are still to come.
        baseline_rates: As for `Evidence`.

    Raises:
        InputError: A device twice, or an arm that the plan does not have.
    """
    metrics = stopping_metrics(plan)
    arms = range(CONTROL_ARM, len(plan.arms))
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
        if parse_iso8601(row.deadline) > now:
            waiting[row.arm] += 1
            continue
        rows[row.device] = row
        for metric in metrics:
            counts[metric, row.arm][_value(row, metric)] += 1
    tallies = [_counts_of(metric, arm, counted) for (metric, arm), counted in counts.items()]
    return StageEvidence(
        plan.rollout,
        plan.stage,
        tuple(tallies),
        tuple(waiting.values()),
        inputs_digest(*(rows[device] for device in sorted(rows))),
        dict(baseline_rates or {}),
    )


def _value(row: DeviceOutcome, metric: str) -> float:
    if row.values is None:
        return 1.0
    if metric == "offline":
        return 0.0
    return round(row.values.get(metric, 1.0) * _STEPS) / _STEPS


def _counts_of(metric: str, arm: int, counted: Counter[float]) -> OutcomeCounts:
    values = sorted(counted)
    return OutcomeCounts(metric, arm, tuple(values), tuple(counted[value] for value in values))
