"""A histogram and a vector to be asked for, and what a test changes of them."""

import hashlib
from typing import Any

import msgspec

from edgewright.contract.query.query import CountedSignal, Query, QueryTemplate, record_digest
from edgewright.contract.timestamps import parse_iso8601
from edgewright.privacy.accountant import cost_of
from edgewright.privacy.private_sum import query_sum_range

HISTOGRAM = QueryTemplate(
    name="inputs",
    kind="histogram",
    device_class="camera",
    signals=(CountedSignal("mean", 4), CountedSignal("confidence", 4)),
    clip=4.0,
    max_norm=6.0,
    min_noise=0.1,
    min_cohort=8,
    max_rho=50.0,
    min_interval_seconds=3600.0,
    expires_at="2027-01-01",
)
VECTOR = QueryTemplate(
    name="update",
    kind="vector",
    device_class="camera",
    model="digits",
    vector_length=24,
    clip=1.0,
    min_noise=0.01,
    min_cohort=8,
    max_rho=50.0,
    min_interval_seconds=3600.0,
    expires_at="2027-01-01",
)
NOW_SECONDS = parse_iso8601("2026-06-02T12:00:00").timestamp()


def template_like(template: QueryTemplate, **changes: Any) -> QueryTemplate:
    return msgspec.structs.replace(template, **changes)


def query_of(template: QueryTemplate, number: int = 0, **changes: Any) -> Query:
    """A query that keeps its template, with the bits and the cost that it has, unless they are given."""
    asked: dict[str, Any] = {
        "id": f"q{number}",
        "template": template.name,
        "template_digest": record_digest(template),
        "window_start": "2026-06-01",
        "window_end": "2026-06-02",
        "deadline": "2026-06-20",
        "bits": 32,
        "scale": 1.0 if template.kind == "histogram" else 64.0,
        "sigma": 4.0 if template.kind == "histogram" else 16.0,
        "min_cohort": 8,
        "max_cohort": 16,
        "rho": 1.0,
        "backend": "helper",
        "seed": hashlib.sha256(f"seed {number}".encode()).hexdigest(),
    }
    query = Query(**(asked | changes))
    if "rho" not in changes:
        query = msgspec.structs.replace(query, rho=cost_of(query, template).rho)
    if "bits" not in changes:
        query = msgspec.structs.replace(query, bits=query_sum_range(query, template).bits)
    return query
