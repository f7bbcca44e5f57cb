"""A histogram and a vector to be asked for, and what a test changes of them."""

import hashlib
from typing import Any

import msgspec

from edgewright.contract.query.query import Counted, Query, Template, digest_of
from edgewright.contract.timestamps import time_of
from edgewright.privacy.accountant import cost_of
from edgewright.privacy.private_sum import span_of

HISTOGRAM = Template(
    name="inputs",
    kind="histogram",
    device_class="camera",
    signals=(Counted("mean", 4), Counted("confidence", 4)),
    clip=4.0,
    norm=6.0,
    least_noise=0.1,
    min_cohort=8,
    dearest_rho=50.0,
    every_s=3600.0,
    expires="2027-01-01",
)
VECTOR = Template(
    name="update",
    kind="vector",
    device_class="camera",
    model="digits",
    length=24,
    clip=1.0,
    least_noise=0.01,
    min_cohort=8,
    dearest_rho=50.0,
    every_s=3600.0,
    expires="2027-01-01",
)
NOW_S = time_of("2026-06-02T12:00:00").timestamp()


def template_like(template: Template, **changes: Any) -> Template:
    return msgspec.structs.replace(template, **changes)


def query_of(template: Template, number: int = 0, **changes: Any) -> Query:
    """A query that keeps its template, with the bits and the cost that it has, unless they are given."""
    asked: dict[str, Any] = {
        "id": f"q{number}",
        "template": template.name,
        "template_digest": digest_of(template),
        "window_start": "2026-06-01",
        "window_end": "2026-06-02",
        "deadline": "2026-06-20",
        "bits": 32,
        "scale": 1.0 if template.kind == "histogram" else 64.0,
        "sigma": 4.0 if template.kind == "histogram" else 16.0,
        "cohort": 8,
        "largest": 16,
        "rho": 1.0,
        "backend": "helper",
        "seed": hashlib.sha256(f"seed {number}".encode()).hexdigest(),
    }
    query = Query(**(asked | changes))
    if "rho" not in changes:
        query = msgspec.structs.replace(query, rho=cost_of(query, template).rho)
    if "bits" not in changes:
        query = msgspec.structs.replace(query, bits=span_of(query, template).bits)
    return query
