"""What is asked to narrow a cause down, and only within what is permitted."""

from typing import Any

import msgspec
import pytest

from edgewright.contract.query.permit import QueryPermit
from edgewright.contract.query.query import CountedSignal, QueryTemplate
from edgewright.fleet.drill_down import DrillDownQuery, plan_drill_down

NOW = 1_795_000_000.0
TEMPLATE = QueryTemplate(
    *("signals", "histogram", "camera"),
    clip=100.0,
    min_noise=0.05,
    min_cohort=50,
    max_rho=0.05,
    min_interval_seconds=86400.0,
    expires_at="2027-12-31",
    signals=(CountedSignal("mean", 18),),
    subgroups=("site", "board"),
)
LABELS = {"site": {"a": 60, "b": 40, "c": 49}, "board": {"x": 70, "y": 60, "z": 19}}


def permit(*templates: QueryTemplate) -> QueryPermit:
    return QueryPermit("m", "camera", 1, "https://sums.example", "ab" * 32, templates)


def asked(**more: Any) -> DrillDownQuery | str:
    given: dict[str, Any] = {"permit": permit(TEMPLATE), "devices": 149, "labels": LABELS, "last_asked_at": {}}
    return plan_drill_down(**(given | more), now=NOW)


def test_it_splits_by_the_label_with_the_most_large_subgroups() -> None:
    found = asked()
    assert isinstance(found, DrillDownQuery)
    assert [(one.labels, one.devices) for one in found.subgroups] == [({"board": "x"}, 70), ({"board": "y"}, 60)]
    assert found.window_end.timestamp() <= NOW
    assert found.window_end.timestamp() % 3600 == 0
    assert (found.window_end - found.window_start).total_seconds() == 6 * 3600


def test_where_no_label_splits_all_are_asked() -> None:
    found = asked(labels={"site": {"a": 149}})
    assert isinstance(found, DrillDownQuery)
    assert [(one.labels, one.devices) for one in found.subgroups] == [({}, 149)]


def changed(**more: Any) -> QueryPermit:
    return permit(msgspec.structs.replace(TEMPLATE, **more))


NOTHING: dict[str, tuple[dict[str, Any], str]] = {
    "no permit": ({"permit": None}, "no permit"),
    "no template": ({"permit": permit()}, "no permit"),
    "too few": ({"devices": 49, "labels": {}}, "takes 50 devices, there are 49"),
    "asked lately": ({"last_asked_at": {"signals": NOW - 3600}}, "was asked less than"),
    "expired": ({"permit": changed(expires_at="2026-01-01")}, "expires 2026-01-01"),
    "vectors": ({"permit": changed(kind="vector", signals=(), vector_length=3)}, "counts nothing"),
}


@pytest.mark.parametrize("what", NOTHING)
def test_otherwise_nothing_is_asked_and_it_says_why(what: str) -> None:
    changes, why = NOTHING[what]
    found = asked(**changes)
    assert isinstance(found, str)
    assert why in found


def test_the_next_template_is_taken_where_one_cannot_be() -> None:
    other = msgspec.structs.replace(TEMPLATE, name="other")
    found = asked(permit=permit(TEMPLATE, other), last_asked_at={"signals": NOW - 60})
    assert isinstance(found, DrillDownQuery)
    assert found.template.name == "other"
