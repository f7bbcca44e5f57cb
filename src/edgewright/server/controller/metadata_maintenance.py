"""Keeping the repository believable: what all have signed lands, what expires is renewed by the online key."""

from datetime import timedelta

from edgewright.server.services import Services
from edgewright.trust.repository.metadata_renewal import renew
from edgewright.trust.repository.metadata_rules import LIFETIMES
from edgewright.trust.repository.staging import land, staged, waiting

__all__ = ["keep_believable"]

# Devices believe nothing after a timestamp expires; it is signed anew when so much of its life is left.
_LEFT = 0.75


def keep_believable(services: Services, now_s: float) -> list[str]:
    """Land what all have signed, renew the timestamp when it is due, and return what was done, in words.

    Raises:
        TrustError: The repository cannot be believed.
        ExistsError: Another publisher was faster; the next look goes on from there.
    """
    if services.keys is None:
        return []
    repository = services.repository()
    changed = staged(repository)
    ready = bool(changed) and all(part.complete for part in waiting(repository, changed))
    timestamp = repository.timestamp
    left = timedelta(0) if timestamp is None else timestamp.signed.expires - repository.now()
    due = left < _LEFT * LIFETIMES["timestamp"]
    if not ready and not due:
        return []
    with repository.locked():
        done = ["landed what was signed"] if ready and land(repository, services.keys) else []
        if not done and due:
            done = [f"renewed {', '.join(renew(repository, services.keys))}"]
    for words in done:
        services.store.audit.write("controller", "sign", words, at_s=now_s)
    return done
