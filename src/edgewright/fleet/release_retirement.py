"""Which old releases may go: a pure proposal to raise the floor, which the offline keys sign or do not.

The floor is the lowest version that devices install or go back to, so releases go from the lowest on: one that must
stay keeps all above it.
"""

from collections.abc import Sequence

import msgspec

from edgewright.contract.config.fleet import Retirement
from edgewright.contract.names import version_key

__all__ = ["Old", "Proposal", "propose"]


class Old(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a proposal depends on.

    Attributes:
        rule: Of the project file.
        versions: Of the releases.
        used: Versions that devices run, or ran in the time in which one may not have been used.
        planned: Versions that a rollout gives to devices.
        floor: Of the policy at present.
    """

    rule: Retirement
    versions: tuple[str, ...]
    used: tuple[str, ...]
    planned: tuple[str, ...]
    floor: str


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What would be retired.

    Attributes:
        floor: That the policy would have.
        retired: Versions below it that were not before.
        why: For who signs.
    """

    floor: str
    retired: tuple[str, ...]
    why: str


def propose(old: Old) -> Proposal | None:
    """Return the highest floor under which nothing goes that has to stay; None if there is nothing to retire.

    The newest release stays, as does every one that a device uses or a rollout gives.

    >>> old = Old(Retirement(after_versions=2), ("1.0", "1.1", "2.0"), used=("1.1",), planned=(), floor="0")
    >>> propose(old).floor
    '1.1'
    """
    if not old.rule.active or not old.versions:
        return None
    newest_first = sorted(old.versions, key=version_key, reverse=True)
    stays = {newest_first[0], *newest_first[: old.rule.after_versions or 1], *old.used, *old.planned}
    floor = min(stays, key=version_key)
    retired = _between(newest_first, old.floor, floor)
    if not retired:
        return None
    reasons = [f"no device uses {', '.join(retired)}"]
    if old.rule.unused_s is not None:
        reasons = [f"no device has used {', '.join(retired)} for {old.rule.unused_s / 86400:g} days"]
    if old.rule.after_versions is not None:
        reasons.append(f"{old.rule.after_versions} newer ones are there")
    return Proposal(floor, retired, "; ".join(reasons))


def _between(newest_first: Sequence[str], low: str, high: str) -> tuple[str, ...]:
    return tuple(each for each in newest_first[::-1] if version_key(low) <= version_key(each) < version_key(high))
