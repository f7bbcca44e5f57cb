"""Keeping the repository believable: what all have signed lands, what expires is renewed by the online key."""

from datetime import timedelta

from edgewright.server.services import Services
from edgewright.trust.repository.metadata_renewal import renew_metadata
from edgewright.trust.repository.metadata_rules import LIFETIMES
from edgewright.trust.repository.staging import pending_signatures, publish_staged, staged_metadata

__all__ = ["maintain_metadata"]

# Devices believe nothing after a timestamp expires; it is signed anew when so much of its life is left.
_RENEW_AT = 0.75


def maintain_metadata(services: Services, now: float) -> list[str]:
    """Land what all have signed, renew the timestamp when it is due, and return what was done, in words.

    Raises:
        TrustError: The repository cannot be believed.
        ExistsError: Another publisher was faster; the next look goes on from there.
    """
    if services.online_keys is None:
        return []
    repository = services.repository()
    changed = staged_metadata(repository)
    ready = bool(changed) and all(part.is_complete for part in pending_signatures(repository, changed))
    timestamp = repository.timestamp
    left = timedelta(0) if timestamp is None else timestamp.signed.expires - repository.now()
    due = left < _RENEW_AT * LIFETIMES["timestamp"]
    if not ready and not due:
        return []
    with repository.locked():
        done = ["landed what was signed"] if ready and publish_staged(repository, services.online_keys) else []
        if not done and due:
            done = [f"renewed {', '.join(renew_metadata(repository, services.online_keys))}"]
    for words in done:
        services.store.audit.write("controller", "sign", words, at=now)
    return done
