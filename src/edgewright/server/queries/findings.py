"""What private sums say, for the page: drift, rates by subgroup and calibration, with power."""

from collections.abc import Callable
from typing import Any

import msgspec

from edgewright.contract.query.query import Query
from edgewright.contract.schema import decode_record
from edgewright.fleet.cohort_drift import Collected, disjoint, judged
from edgewright.server.services import Services
from edgewright.trust.publishing.publish import releases
from edgewright.trust.publishing.signed_queries import profile_of

__all__ = ["findings_of"]

_BACK_S = 90 * 86400.0
_SIZE, _ALPHA = 0.05, 0.05


def findings_of(services: Services) -> Callable[[str, str], dict[str, Any] | None]:
    """Return what tells of a model and a device class what its newest sums say, None if there are none."""

    def run(model: str, device_class: str) -> dict[str, Any] | None:
        groups: dict[tuple[str, str], list[Collected]] = {}
        newest: tuple[float, tuple[str, str]] | None = None
        for kept in services.store.sums.done_since(services.now() - _BACK_S):
            if (kept.model, kept.device_class) != (model, device_class):
                continue
            asked = decode_record(kept.body, type=Query)
            key = (asked.template_digest, asked.release)
            groups.setdefault(key, []).append(msgspec.json.decode(kept.result or b"", type=Collected))
            if newest is None or (kept.ended_s or 0.0) >= newest[0]:
                newest = (kept.ended_s or 0.0, key)
        if newest is None:
            return None
        release = newest[1][1]
        repository = services.repository()
        version = next((each for each, digest in releases(repository, model) if digest == release), "")
        profile = profile_of(repository, model, version, device_class)
        return judged(profile, disjoint(groups[newest[1]]), release=release, size=_SIZE, alpha=_ALPHA)

    return run
