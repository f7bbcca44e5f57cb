"""What private sums say, for the page: drift, rates by subgroup and calibration, with power."""

from collections.abc import Callable
from typing import Any

import msgspec

from edgewright.contract.query.query import Query
from edgewright.contract.schema import decode_record
from edgewright.fleet.cohort_drift import CohortSums, assess_cohorts, disjoint_cohorts
from edgewright.server.services import Services
from edgewright.trust.publishing.publish import list_releases
from edgewright.trust.publishing.signed_queries import reference_profile_of

__all__ = ["cohort_findings"]

_BACK_SECONDS = 90 * 86400.0
_SIZE, _ALPHA = 0.05, 0.05


def cohort_findings(services: Services) -> Callable[[str, str], dict[str, Any] | None]:
    """Return what tells of a model and a device class what its newest sums say, None if there are none."""

    def run(model: str, device_class: str) -> dict[str, Any] | None:
        groups: dict[tuple[str, str], list[CohortSums]] = {}
        newest: tuple[float, tuple[str, str]] | None = None
        for kept in services.store.queries.done_since(services.now() - _BACK_SECONDS):
            if (kept.model, kept.device_class) != (model, device_class):
                continue
            asked = decode_record(kept.body, type=Query)
            key = (asked.template_digest, asked.release)
            groups.setdefault(key, []).append(msgspec.json.decode(kept.result or b"", type=CohortSums))
            if newest is None or (kept.ended_at or 0.0) >= newest[0]:
                newest = (kept.ended_at or 0.0, key)
        if newest is None:
            return None
        release = newest[1][1]
        repository = services.repository()
        version = next((each for each, digest in list_releases(repository, model) if digest == release), "")
        profile = reference_profile_of(repository, model, version, device_class)
        return assess_cohorts(
            profile, disjoint_cohorts(groups[newest[1]]), release=release, size=_SIZE, alpha=_ALPHA
        )

    return run
