"""Which questions narrow down why an alert fired: the same counts by subgroup, over the last hours. Pure.

Nothing is asked that the offline keys did not permit: of their templates the first that can be asked now is taken,
and split by the label that splits it into the most subgroups that are large enough.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from edgewright.contract.query.permit import Permit
from edgewright.contract.query.query import Template
from edgewright.contract.timestamps import time_of

__all__ = ["Asking", "Subgroup", "narrow"]

_WINDOW = datetime.timedelta(hours=6)
_PATIENCE = datetime.timedelta(days=1)
_MOST_SUBGROUPS = 16


@dataclass(frozen=True, slots=True)
class Subgroup:
    """Devices that are asked together.

    Attributes:
        labels: That they have, besides the template's; none for all.
        devices: How many there are.
    """

    labels: dict[str, str]
    devices: int


@dataclass(frozen=True, slots=True)
class Asking:
    """What is to be asked.

    Attributes:
        template: Of the permit.
        start: Of what is counted.
        end: Of what is counted.
        deadline: No answers after.
        subgroups: Disjoint; one query for each.
    """

    template: Template
    start: datetime.datetime
    end: datetime.datetime
    deadline: datetime.datetime
    subgroups: tuple[Subgroup, ...]


def narrow(
    permit: Permit | None,
    devices: int,
    labels: Mapping[str, Mapping[str, int]],
    asked_s: Mapping[str, float],
    *,
    now_s: float,
) -> Asking | str:
    """Return what to ask, or why nothing can be.

    Args:
        permit: Of the offline keys, None if there is none.
        devices: Of the class.
        labels: How many of them have each value of each label.
        asked_s: When each template was asked last, by its name.
        now_s: Unix time.
    """
    if permit is None or not permit.templates:
        return "no permit is signed for these devices"
    end = datetime.datetime.fromtimestamp(now_s // 3600 * 3600, datetime.UTC)
    deadline = end + _PATIENCE
    reasons = []
    for template in permit.templates:
        subgroups = _subgroups(template, devices, labels)
        if template.kind != "histogram":
            reasons.append(f"{template.name} counts nothing")
        elif deadline > time_of(template.expires):
            reasons.append(f"{template.name} expires {template.expires}")
        elif now_s - asked_s.get(template.name, float("-inf")) < template.every_s:
            reasons.append(f"{template.name} was asked less than {template.every_s:g} s ago")
        elif not subgroups:
            reasons.append(f"{template.name} takes {template.min_cohort} devices, there are {devices}")
        else:
            return Asking(template, end - _WINDOW, end, deadline, subgroups)
    return "; ".join(reasons)


def _subgroups(template: Template, devices: int, labels: Mapping[str, Mapping[str, int]]) -> tuple[Subgroup, ...]:
    best: list[Subgroup] = []
    for label in template.subgroups:
        large = {value: count for value, count in labels.get(label, {}).items() if count >= template.min_cohort}
        ordered = sorted(large, key=lambda value: (-large[value], value))[:_MOST_SUBGROUPS]
        if len(ordered) > max(1, len(best)):  # one subgroup is compared with nothing
            best = [Subgroup({label: value}, large[value]) for value in ordered]
    if best:
        return tuple(best)
    return (Subgroup({}, devices),) if devices >= template.min_cohort else ()
