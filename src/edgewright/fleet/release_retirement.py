"""Which old releases may go: a pure proposal to raise the floor, which the offline keys sign or do not.

The floor is the lowest version that devices install or go back to, so releases go from the lowest on: one that must
stay keeps all above it.
"""

from collections.abc import Sequence

import msgspec

from edgewright.contract.config.fleet import RetirementPolicy
from edgewright.contract.names import version_key

__all__ = ["RetirementInputs", "RetirementProposal", "propose_retirement"]


class RetirementInputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a proposal depends on.

    Attributes:
        rule: Of the project file.
        versions: Of the releases.
        versions_in_use: Versions that devices run, or ran in the time in which one may not have been used.
        versions_in_rollouts: Versions that a rollout gives to devices.
        min_version: Of the policy at present.
    """

    rule: RetirementPolicy
    versions: tuple[str, ...]
    versions_in_use: tuple[str, ...]
    versions_in_rollouts: tuple[str, ...]
    min_version: str


class RetirementProposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What would be retired.

    Attributes:
        min_version: That the policy would have.
        retired: Versions below it that were not before.
        reason: For who signs.
    """

    min_version: str
    retired: tuple[str, ...]
    reason: str


def propose_retirement(inputs: RetirementInputs) -> RetirementProposal | None:
    """Return the highest floor under which nothing goes that has to stay; None if there is nothing to retire.

    The newest release stays, as does every one that a device uses or a rollout gives.

    >>> policy = RetirementPolicy(after_newer_versions=2)
    >>> old = RetirementInputs(
    ...     policy, ("1.0", "1.1", "2.0"), versions_in_use=("1.1",), versions_in_rollouts=(), min_version="0"
    ... )
    >>> propose_retirement(old).min_version
    '1.1'
    """
    if not inputs.rule.active or not inputs.versions:
        return None
    newest_first = sorted(inputs.versions, key=version_key, reverse=True)
    stays = {
        newest_first[0],
        *newest_first[: inputs.rule.after_newer_versions or 1],
        *inputs.versions_in_use,
        *inputs.versions_in_rollouts,
    }
    floor = min(stays, key=version_key)
    retired = _between(newest_first, inputs.min_version, floor)
    if not retired:
        return None
    reasons = [f"no device uses {', '.join(retired)}"]
    if inputs.rule.unused_seconds is not None:
        reasons = [f"no device has used {', '.join(retired)} for {inputs.rule.unused_seconds / 86400:g} days"]
    if inputs.rule.after_newer_versions is not None:
        reasons.append(f"{inputs.rule.after_newer_versions} newer ones are there")
    return RetirementProposal(floor, retired, "; ".join(reasons))


def _between(newest_first: Sequence[str], low: str, high: str) -> tuple[str, ...]:
    return tuple(each for each in newest_first[::-1] if version_key(low) <= version_key(each) < version_key(high))
