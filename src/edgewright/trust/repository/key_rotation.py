"""Changing whose keys count: adding one, replacing one that is lost or known to others, changing thresholds.

A new root says whose keys count; it must be signed by enough keys of the old root and of the new one. What a role
signed with keys that do not count any more is signed again, in the same change, so nothing is left in between.
"""

from collections.abc import Sequence
from typing import Any

from tuf.api.metadata import Metadata, Root, Targets

from edgewright.contract.errors import InputError
from edgewright.trust.keys.signing_keys import OFFLINE_ROLES, ONLINE_ROLES, KeyFolder, PublicKey
from edgewright.trust.repository.metadata_rules import (
    BINS,
    LIFETIMES,
    ROLLOUTS,
    bin_delegations,
    top_level_delegations,
)
from edgewright.trust.repository.repository import Repository, TrustError
from edgewright.trust.repository.staging import (
    add_signatures,
    draft_metadata,
    publish_staged_if_online,
    stage_metadata,
)

__all__ = ["KeyOwner", "change_keys", "keys_by_role"]

KeyOwner = str
# What the keys of each kind sign in TUF's words; the online ones are one key for three roles.
_TUF: dict[KeyOwner, tuple[str, ...]] = {
    "root": (Root.type,),
    "releases": (Targets.type,),
    "online": ("snapshot", "timestamp", ROLLOUTS),
}


def keys_by_role(repository: Repository) -> dict[KeyOwner, tuple[list[str], int]]:
    """Return for `root`, `releases` and `online` whose keys count, and how many of them must sign."""
    roles = repository.root.signed.roles
    return {
        "root": (list(roles[Root.type].keyids), roles[Root.type].threshold),
        "releases": (list(roles[Targets.type].keyids), roles[Targets.type].threshold),
        "online": (list(roles["timestamp"].keyids), roles["timestamp"].threshold),
    }


def change_keys(
    repository: Repository,
    keys: KeyFolder,
    key_owner: KeyOwner,
    *,
    add: PublicKey | None = None,
    remove: Sequence[str] = (),
    threshold: int | None = None,
    only_stage: bool = False,
) -> bool:
    """Change whose keys count, and return whether that landed; else it waits for signatures.

    Args:
        repository: As of now.
        keys: Those that are here sign.
        key_owner: `root`, `releases` or `online`.
        add: Counts from now on.
        remove: Key ids that count no more.
        threshold: How many must sign; as before if not given.
        only_stage: Leave all signing to `repo sign`.

    Raises:
        InputError: There is no such key, or the threshold cannot be met.
    """
    with repository.locked():
        ids, needed = _new_keys_and_threshold(repository, key_owner, add, remove, threshold)
        root = _changed_root(repository, key_owner, ids, needed, add)
        changed: dict[str, Metadata[Any]] = {Root.type: root}
        changed |= _delegated(repository, key_owner, root.signed, again=bool(remove) or threshold is not None)
        for role in OFFLINE_ROLES if not only_stage else ():
            add_signatures(repository, changed, role, keys)
        stage_metadata(repository, changed)
        return publish_staged_if_online(repository, keys)


def _new_keys_and_threshold(
    repository: Repository, key_owner: KeyOwner, add: PublicKey | None, remove: Sequence[str], threshold: int | None
) -> tuple[list[str], int]:
    """Return whose keys count from now on, and how many of them must sign."""
    known, needed = keys_by_role(repository)[key_owner]
    wanted = OFFLINE_ROLES if key_owner in OFFLINE_ROLES else ONLINE_ROLES
    if add is not None and not set(add.roles) & set(wanted if key_owner == "online" else (key_owner,)):
        raise InputError(
            f"the key {add.name} was made for {', '.join(add.roles)}, not for {key_owner}",
            remedy="Make one for that role.",
        )
    for keyid in remove:
        if keyid not in known:
            raise InputError(
                f"no key {keyid[:16]} counts for {key_owner}", remedy="See 'edgewright keys show --repo REPO'."
            )
    ids = [keyid for keyid in known if keyid not in remove]
    if add is not None and add.keyid not in ids:
        ids.append(add.keyid)
    needed = needed if threshold is None else threshold
    if not 1 <= needed <= len(ids):
        raise InputError(
            f"{needed} of {len(ids)} keys are to sign for {key_owner}",
            remedy="The threshold is at least 1 and at most their number.",
        )
    return ids, needed


def _changed_root(
    repository: Repository, key_owner: KeyOwner, ids: Sequence[str], threshold: int, add: PublicKey | None
) -> Metadata[Root]:
    signed = Root.from_dict(repository.root.signed.to_dict())
    signed.version += 1
    signed.expires = repository.now() + LIFETIMES[Root.type]
    if add is not None:
        signed.keys[add.keyid] = add.for_metadata()
    for role in _TUF[key_owner]:
        if role in signed.roles:
            signed.roles[role].keyids = list(ids)
            signed.roles[role].threshold = threshold
    counting = {keyid for role in signed.roles.values() for keyid in role.keyids}
    signed.keys = {keyid: key for keyid, key in signed.keys.items() if keyid in counting}
    return Metadata(signed)


def _delegated(repository: Repository, key_owner: KeyOwner, root: Root, *, again: bool) -> dict[str, Metadata[Any]]:
    """Return what says the same as the root to those who ask for releases and rollouts.

    Args:
        repository: As of now.
        key_owner: Whose keys change.
        root: The new one.
        again: Whether what the role signed before may not be signed by enough keys any more.
    """
    if key_owner == "root":
        return {}
    changed: dict[str, Metadata[Any]] = {}
    top = draft_metadata(repository, Targets.type)
    top.signed.delegations = top_level_delegations(root)
    changed[Targets.type] = top
    if key_owner == "online":
        changed[ROLLOUTS] = draft_metadata(repository, ROLLOUTS)
        return changed
    bins, spread = draft_metadata(repository, BINS), repository.bin_delegations()
    if spread is None:
        raise TrustError("the repository has no bins", remedy="Restore it from a copy.")
    bins.signed.delegations = bin_delegations(root, spread.bit_length)
    changed[BINS] = bins
    if again:
        changed |= {name: draft_metadata(repository, name) for name in spread.get_roles()}
    return changed
