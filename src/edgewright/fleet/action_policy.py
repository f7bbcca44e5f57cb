"""What an alert may set off by itself: a pure decision with its reason, from a policy and what was done before."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgewright.contract.alert import Action, ActionPolicy

__all__ = ["Done", "Permission", "Wish", "decide", "permitted"]

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Done:
    """An action that was set off.

    Attributes:
        action: Which.
        about: Device class or rollout.
        at_s: Unix time.
    """

    action: Action
    about: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether an action may be set off.

    Attributes:
        granted: At once, without anybody.
        asks: Whether a person is to be asked.
        why: For people.
    """

    granted: bool
    asks: bool
    why: str


def permitted(
    action: Action, about: str, policies: Sequence[ActionPolicy], history: Sequence[Done], *, now_s: float
) -> Permission:
    """Decide.

    Args:
        action: That a rule wants.
        about: Device class or rollout.
        policies: Of the project file; an action without one is not automatic.
        history: What was done before, in any order.
        now_s: Unix time.
    """
    policy = next((each for each in policies if each.action == action), None)
    if action == "notify":
        return Permission(True, asks=False, why="people are always told")
    if policy is None:
        return Permission(False, asks=True, why=f"no policy makes {action!r} automatic")
    # A clock that was set back must not grant again what was done in its future.
    same = [done for done in history if done.action == action]
    recent = [done for done in same if now_s - done.at_s < _DAY_S]
    if len(recent) >= policy.per_day:
        return Permission(False, asks=True, why=f"{action!r} was done {len(recent)} times in 24 hours")
    waits = [policy.cooldown_s - (now_s - done.at_s) for done in same if done.about == about]
    if waits and max(waits) > 0:
        return Permission(False, asks=False, why=f"{action!r} cools down for {max(waits):.0f} s more")
    if policy.approval:
        return Permission(False, asks=True, why=f"{action!r} takes a person's approval")
    return Permission(True, asks=False, why=f"{action!r} is within its policy")


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that an action is permitted or refused by, so that it can be decided again.

    Attributes:
        item: Name of the action that is wanted; no two have the same.
        action: Which.
        about: Device class.
        alert: Rule that wants it.
        policies: Of the project file.
        history: What was done before.
        now_s: Unix time.
        waiting: Whether the same waits for a person's approval already.
    """

    item: str
    action: Action
    about: str
    alert: str
    policies: tuple[ActionPolicy, ...]
    history: tuple[Done, ...]
    now_s: float
    waiting: bool = False


def decide(wish: Wish) -> Permission:
    """Return whether what is wanted may be done: the same whenever it is asked."""
    found = permitted(wish.action, wish.about, wish.policies, wish.history, now_s=wish.now_s)
    if found.asks and wish.waiting:
        return Permission(False, asks=False, why=f"{wish.action!r} waits for approval already")
    return found
