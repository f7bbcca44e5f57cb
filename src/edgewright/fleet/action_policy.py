"""What an alert may set off by itself: a pure decision with its reason, from a policy and what was done before."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgewright.contract.alert import ActionPolicy, AlertAction

__all__ = ["ActionPermission", "ActionRequest", "PastAction", "check_policy", "decide_action"]

_DAY_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class PastAction:
    """An action that was set off.

    Attributes:
        action: Which.
        subject: Device class or rollout.
        performed_at: Unix time.
    """

    action: AlertAction
    subject: str
    performed_at: float


@dataclass(frozen=True, slots=True)
class ActionPermission:
    """Whether an action may be set off.

    Attributes:
        allowed: At once, without anybody.
        needs_approval: Whether a person is to be asked.
        reason: For people.
    """

    allowed: bool
    needs_approval: bool
    reason: str


def check_policy(
    action: AlertAction,
    subject: str,
    policies: Sequence[ActionPolicy],
    history: Sequence[PastAction],
    *,
    now: float,
) -> ActionPermission:
    """Decide.

    Args:
        action: That a rule wants.
        subject: Device class or rollout.
        policies: Of the project file; an action without one is not automatic.
        history: What was done before, in any order.
        now: Unix time.
    """
    policy = next((each for each in policies if each.action == action), None)
    if action == "notify":
        return ActionPermission(True, needs_approval=False, reason="people are always told")
    if policy is None:
        return ActionPermission(False, needs_approval=True, reason=f"no policy makes {action!r} automatic")
    # A clock that was set back must not grant again what was done in its future.
    same = [done for done in history if done.action == action]
    recent = [done for done in same if now - done.performed_at < _DAY_SECONDS]
    if len(recent) >= policy.max_per_day:
        return ActionPermission(
            False, needs_approval=True, reason=f"{action!r} was done {len(recent)} times in 24 hours"
        )
    waits = [policy.cooldown_seconds - (now - done.performed_at) for done in same if done.subject == subject]
    if waits and max(waits) > 0:
        return ActionPermission(
            False, needs_approval=False, reason=f"{action!r} cools down for {max(waits):.0f} s more"
        )
    if policy.needs_approval:
        return ActionPermission(False, needs_approval=True, reason=f"{action!r} takes a person's approval")
    return ActionPermission(True, needs_approval=False, reason=f"{action!r} is within its policy")


class ActionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that an action is permitted or refused by, so that it can be decided again.

    Attributes:
        id: Name of the action that is wanted; no two have the same.
        action: Which.
        subject: Device class.
        alert: Rule that wants it.
        policies: Of the project file.
        history: What was done before.
        now: Unix time.
        approval_pending: Whether the same waits for a person's approval already.
    """

    id: str
    action: AlertAction
    subject: str
    alert: str
    policies: tuple[ActionPolicy, ...]
    history: tuple[PastAction, ...]
    now: float
    approval_pending: bool = False


def decide_action(request: ActionRequest) -> ActionPermission:
    """Return whether what is wanted may be done: the same whenever it is asked."""
    found = check_policy(request.action, request.subject, request.policies, request.history, now=request.now)
    if found.needs_approval and request.approval_pending:
        return ActionPermission(
            False, needs_approval=False, reason=f"{request.action!r} waits for approval already"
        )
    return found
