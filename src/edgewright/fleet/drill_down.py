"""Which questions narrow down why an alert fired: the same counts by subgroup, over the last hours. Pure.

Nothing is asked that the offline keys did not permit: of their templates the first that can be asked now is taken,
and split by the label that splits it into the most subgroups that are large enough.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from edgewright.contract.query.permit import QueryPermit
from edgewright.contract.query.query import QueryTemplate
from edgewright.contract.timestamps import parse_iso8601

__all__ = ["DrillDownQuery", "Subgroup", "plan_drill_down"]

_WINDOW = datetime.timedelta(hours=6)
_TIMEOUT = datetime.timedelta(days=1)
_MAX_SUBGROUPS = 16


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
class DrillDownQuery:
    """What is to be asked.

    Attributes:
        template: Of the permit.
        window_start: Of what is counted.
        window_end: Of what is counted.
        deadline: No answers after.
        subgroups: Disjoint; one query for each.
    """

    template: QueryTemplate
    window_start: datetime.datetime
    window_end: datetime.datetime
    deadline: datetime.datetime
    subgroups: tuple[Subgroup, ...]


def plan_drill_down(
    permit: QueryPermit | None,
    devices: int,
    labels: Mapping[str, Mapping[str, int]],
    last_asked_at: Mapping[str, float],
    *,
    now: float,
) -> DrillDownQuery | str:
    """Return what to ask, or why nothing can be.

    Args:
        permit: Of the offline keys, None if there is none.
        devices: Of the class.
        labels: How many of them have each value of each label.
        last_asked_at: When each template was asked last, by its name.
        now: Unix time.
    """
    if permit is None or not permit.templates:
        return "no permit is signed for these devices"
    end = datetime.datetime.fromtimestamp(now // 3600 * 3600, datetime.UTC)
    deadline = end + _TIMEOUT
    reasons = []
    for template in permit.templates:
        subgroups = _subgroups(template, devices, labels)
        if template.kind != "histogram":
            reasons.append(f"{template.name} counts nothing")
        elif deadline > parse_iso8601(template.expires_at):
            reasons.append(f"{template.name} expires {template.expires_at}")
        elif now - last_asked_at.get(template.name, float("-inf")) < template.min_interval_seconds:
            reasons.append(f"{template.name} was asked less than {template.min_interval_seconds:g} s ago")
        elif not subgroups:
            reasons.append(f"{template.name} takes {template.min_cohort} devices, there are {devices}")
        else:
            return DrillDownQuery(template, end - _WINDOW, end, deadline, subgroups)
    return "; ".join(reasons)


def _subgroups(
    template: QueryTemplate, devices: int, labels: Mapping[str, Mapping[str, int]]
) -> tuple[Subgroup, ...]:
    best: list[Subgroup] = []
    for label in template.subgroups:
        large = {value: count for value, count in labels.get(label, {}).items() if count >= template.min_cohort}
        ordered = sorted(large, key=lambda value: (-large[value], value))[:_MAX_SUBGROUPS]
        if len(ordered) > max(1, len(best)):  # one subgroup is compared with nothing
            best = [Subgroup({label: value}, large[value]) for value in ordered]
    if best:
        return tuple(best)
    return (Subgroup({}, devices),) if devices >= template.min_cohort else ()
