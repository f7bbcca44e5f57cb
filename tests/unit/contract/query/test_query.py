"""Queries keep their templates, devices keep their limits, and what is bound is bound to every field."""

from typing import Any

import msgspec
import pytest
from tests.unit.privacy.examples import HISTOGRAM, NOW_SECONDS, VECTOR, query_of, template_like

from edgewright.contract.errors import InputError
from edgewright.contract.query.query import (
    CountedSignal,
    DeviceQueryLimits,
    Query,
    QueryTemplate,
    canonical_bytes,
    limit_violation,
    record_digest,
    response_bytes,
    template_violation,
    timing_violation,
    vector_size,
)

WEIGHTED = template_like(VECTOR, max_example_weight=8.0)

LAXER: dict[str, tuple[QueryTemplate, dict[str, Any], str]] = {
    "another template": (HISTOGRAM, {"template": "other"}, "of template other"),
    "another version of the template": (HISTOGRAM, {"template_digest": "0" * 64}, "as it is signed"),
    "another backend": (HISTOGRAM, {"backend": "secagg"}, "backend secagg"),
    "a smaller cohort": (HISTOGRAM, {"min_cohort": 7}, "cohort of 7"),
    "a dearer answer": (HISTOGRAM, {"rho": 51.0}, "costs 51"),
    "less noise": (VECTOR, {"sigma": 1.6, "scale": 200.0}, "noise of 0.008 clips"),
    "noise finer than the grid": (VECTOR, {"sigma": 1.4, "scale": 2.0}, "1.4 grid units"),
    "noise coarser than the table": (VECTOR, {"sigma": 5000.0}, "5000 grid units"),
    "a clip below the grid": (VECTOR, {"scale": 0.5}, "0.5 grid units"),
    "a projection of counts": (HISTOGRAM, {"projected_length": 4}, "projection"),
    "a projection that lengthens": (VECTOR, {"projected_length": 24}, "projection"),
    "a projection with weights": (WEIGHTED, {"projected_length": 4}, "projection"),
    "a subgroup": (HISTOGRAM, {"subgroup": {"site": "a"}}, "subgroups by site"),
    "a late deadline": (HISTOGRAM, {"deadline": "2027-01-02"}, "after the template expires"),
}


@pytest.mark.parametrize("template", [HISTOGRAM, VECTOR, WEIGHTED])
def test_a_query_that_keeps_its_template_is_not_laxer(template: QueryTemplate) -> None:
    assert template_violation(query_of(template), template) is None


@pytest.mark.parametrize("what", LAXER)
def test_a_laxer_query_is_refused_for_what_is_laxer(what: str) -> None:
    template, changes, reason = LAXER[what]
    query = msgspec.structs.replace(query_of(template), **changes)
    assert reason in str(template_violation(query, template))


def test_a_permitted_subgroup_is_no_laxer() -> None:
    template = template_like(HISTOGRAM, subgroups=("site",))
    assert template_violation(query_of(template, subgroup={"site": "a"}), template) is None


def test_a_device_s_own_limits_stand_above_the_signed_ones() -> None:
    query = query_of(HISTOGRAM)
    assert limit_violation(query, HISTOGRAM, DeviceQueryLimits(min_cohort=8, rho_per_period=query.rho)) is None
    assert "cohort" in str(
        limit_violation(query, HISTOGRAM, DeviceQueryLimits(min_cohort=9, rho_per_period=query.rho))
    )
    assert "costs" in str(
        limit_violation(query, HISTOGRAM, DeviceQueryLimits(min_cohort=8, rho_per_period=0.9 * query.rho))
    )
    size = response_bytes(query, HISTOGRAM)
    assert size == -(-8 * query.bits // 8)
    assert "bytes" in str(
        limit_violation(
            query, HISTOGRAM, DeviceQueryLimits(min_cohort=8, rho_per_period=query.rho, max_bytes=size - 1)
        )
    )


def test_there_is_no_answer_before_the_window_ends_or_after_the_deadline() -> None:
    query = query_of(HISTOGRAM)
    assert timing_violation(query, HISTOGRAM, NOW_SECONDS) is None
    assert "window" in str(timing_violation(query, HISTOGRAM, NOW_SECONDS - 86400))
    assert "deadline" in str(timing_violation(query, HISTOGRAM, NOW_SECONDS + 30 * 86400))
    assert "template expired" in str(timing_violation(query, HISTOGRAM, NOW_SECONDS + 365 * 86400))


def test_every_field_of_a_query_and_of_its_template_changes_the_digest() -> None:
    query = query_of(VECTOR)
    others: dict[str, Any] = {
        "id": "q9",
        "template": "t9",
        "template_digest": "1" * 64,
        "window_start": "2026-05-31",
        "window_end": "2026-06-03",
        "deadline": "2026-06-21",
        "bits": query.bits + 1,
        "scale": 65.0,
        "sigma": 4.5,
        "min_cohort": 9,
        "max_cohort": 17,
        "rho": 9.0,
        "backend": "secagg",
        "seed": "2" * 64,
        "release": "3" * 64,
        "projected_length": 3,
        "subgroup": {"site": "a"},
        "schema": 3,
    }
    assert set(others) == set(query.__struct_fields__)
    digests = {record_digest(msgspec.structs.replace(query, **{name: value})) for name, value in others.items()}
    assert len(digests | {record_digest(query)}) == len(others) + 1
    assert query.template_digest == record_digest(VECTOR) != record_digest(template_like(VECTOR, clip=1.5))


def test_records_read_from_bytes_have_the_digest_of_those_that_were_written() -> None:
    query = query_of(template_like(HISTOGRAM, subgroups=("site", "year")), subgroup={"year": "1", "site": "a"})
    again = msgspec.json.decode(msgspec.json.encode(query), type=Query)
    reordered = msgspec.structs.replace(query, subgroup={"site": "a", "year": "1"})
    assert record_digest(again) == record_digest(query) == record_digest(reordered)
    assert canonical_bytes(query).startswith(b"edgewright.query.1\n")
    assert canonical_bytes(HISTOGRAM).startswith(b"edgewright.template.1\n")


def test_what_a_query_sends_is_as_long_as_its_template_says() -> None:
    assert vector_size(query_of(HISTOGRAM), HISTOGRAM) == 8
    assert vector_size(query_of(VECTOR), VECTOR) == 24
    assert vector_size(query_of(VECTOR, projected_length=5), VECTOR) == 5
    assert vector_size(query_of(WEIGHTED), WEIGHTED) == 25


@pytest.mark.parametrize(
    "changes",
    [
        {"signals": ()},
        {"signals": (CountedSignal("mean", 4), CountedSignal("mean", 4))},
        {"vector_length": 3},
        {"max_example_weight": 1.0},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"max_rho": float("nan")},
        {"min_cohort": 1},
        {"assumed_colluders": 8},
        {"min_verified_peers": 3, "assumed_colluders": 4},
        {"delta": 0.0},
        {"backends": ()},
        {"expires_at": ""},
    ],
)
def test_a_template_that_promises_nothing_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        template_like(HISTOGRAM, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 1},
        {"bits": 33},
        {"sigma": float("nan")},
        {"scale": float("inf")},
        {"rho": 0.0},
        {"min_cohort": 1},
        {"max_cohort": 7},
        {"window_end": "2026-06-01"},
        {"deadline": ""},
        {"seed": "00"},
        {"id": "../x"},
    ],
)
def test_a_query_that_no_device_could_answer_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        msgspec.structs.replace(query_of(HISTOGRAM), **changes)
