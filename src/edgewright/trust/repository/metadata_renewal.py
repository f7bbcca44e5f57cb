"""Renewing what expires: what the online keys sign, by a timer; of the rest it is said in time."""

import datetime

from tuf.api.metadata import Metadata, Targets

from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.metadata_rules import ROLLOUTS, lifetime_of
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import add_signatures, draft_metadata, online_signers

__all__ = ["renew_metadata"]

# What expires within this share of its lifetime is renewed.
_SOON = 0.5


def renew_metadata(repository: Repository, keys: KeyFolder) -> list[str]:
    """Sign timestamp and snapshot anew, and the rollouts if they expire soon; return what was renewed.

    Raises:
        InputError: The online keys are not in this folder.
    """
    changed: dict[str, Metadata[Targets]] = {}
    rollouts = repository.role(ROLLOUTS)
    if rollouts is not None and _is_old(rollouts.signed.expires, repository.now(), lifetime_of(ROLLOUTS)):
        renewed = draft_metadata(repository, ROLLOUTS)
        add_signatures(repository, {ROLLOUTS: renewed}, ROLLOUTS, keys)
        changed[ROLLOUTS] = renewed
    repository.commit(changed, online_signers(repository.root, keys))
    return [*changed, "snapshot", "timestamp"]


def _is_old(expires: datetime.datetime, now: datetime.datetime, lifetime: datetime.timedelta) -> bool:
    return expires - now < _SOON * lifetime
