"""What is fixed about a rollout's comparison before any device is seen: arms, metrics, and how error is spent."""

from edgewright.contract.rollout.decision import CONTROL_ARM
from edgewright.contract.rollout.plan import HEALTH_EVENTS, RolloutPlan

__all__ = ["arm_shares", "assignment_share", "stage_alpha", "stopping_metrics"]


def stopping_metrics(plan: RolloutPlan) -> tuple[str, ...]:
    """Return the metrics that a rollout is stopped for: those of all its rules, every named one without rules.

    Silence is always among them.
    """
    ruled = [rule.metric for stage in plan.stages for rule in stage.rules] or HEALTH_EVENTS
    return tuple(dict.fromkeys([*ruled, "offline"]))


def arm_shares(plan: RolloutPlan, stage: int, holdback: float) -> dict[int, float]:
    """Return each arm's share of the devices that a rollout is for, by its index, and `CONTROL`'s.

    Control are the devices beyond the stage's fraction and, within it, the holdback.

    Args:
        plan: The rollout.
        stage: Which.
        holdback: Of the policy.
    """
    joined = plan.stages[stage].fraction * (1 - holdback)
    total = sum(arm.weight for arm in plan.arms)
    return {CONTROL_ARM: 1 - joined} | {index: joined * arm.weight / total for index, arm in enumerate(plan.arms)}


def assignment_share(arms: dict[int, float], arm: int, against: int) -> float | None:
    """Return the chance with which a device of two arms is in the first; None if one has no devices.

    >>> assignment_share({-1: 0.75, 0: 0.25}, 0, -1)
    0.25
    """
    return arms[arm] / (arms[arm] + arms[against]) if min(arms[arm], arms[against]) > 0 else None


def stage_alpha(alpha: float, stage: int, stages: int) -> float:
    """Return a stage's share of the chance that a harmless rollout is stopped.

    Half of what is left goes to each stage and all of it to the last: harm should be found where it is small.

    Args:
        alpha: Of the whole rollout.
        stage: Which, from 0.
        stages: How many there are.

    >>> [stage_alpha(0.08, stage, 3) for stage in range(3)]
    [0.04, 0.02, 0.02]
    """
    return alpha * 0.5 ** min(stage + 1, stages - 1)
