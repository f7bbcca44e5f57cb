"""Changing whose keys count: adding one, replacing one that is lost or known to others, changing thresholds.

A new root says whose keys count; it must be signed by enough keys of the old root and of the new one. What a role
signed with keys that do not count any more is signed again, in the same change, so nothing is left in between.
"""

from collections.abc import Sequence
from typing import Any

from tuf.api.metadata import Metadata, Root, Targets

from edgewright.contract.errors import InputError
from edgewright.trust.keys.signing_keys import OFFLINE, ONLINE, KeyFolder, PublicKey
from edgewright.trust.repository.metadata_rules import BINS, LIFETIMES, ROLLOUTS, delegations_of, spread_of
from edgewright.trust.repository.repository import Repository, TrustError
from edgewright.trust.repository.staging import draft, land_if_online, sign, stage

__all__ = ["Who", "change_keys", "whose"]

Who = str
# What the keys of each kind sign in TUF's words; the online ones are one key for three roles.
_TUF: dict[Who, tuple[str, ...]] = {
    "root": (Root.type,),
    "releases": (Targets.type,),
    "online": ("snapshot", "timestamp", ROLLOUTS),
}


def whose(repository: Repository) -> dict[Who, tuple[list[str], int]]:
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
    who: Who,
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
        who: `root`, `releases` or `online`.
        add: Counts from now on.
        remove: Key ids that count no more.
        threshold: How many must sign; as before if not given.
        only_stage: Leave all signing to `repo sign`.

    Raises:
        InputError: There is no such key, or the threshold cannot be met.
    """
    with repository.locked():
        ids, needed = _counting(repository, who, add, remove, threshold)
        root = _changed_root(repository, who, ids, needed, add)
        changed: dict[str, Metadata[Any]] = {Root.type: root}
        changed |= _delegated(repository, who, root.signed, again=bool(remove) or threshold is not None)
        for role in OFFLINE if not only_stage else ():
            sign(repository, changed, role, keys)
        stage(repository, changed)
        return land_if_online(repository, keys)


def _counting(
    repository: Repository, who: Who, add: PublicKey | None, remove: Sequence[str], threshold: int | None
) -> tuple[list[str], int]:
    """Return whose keys count from now on, and how many of them must sign."""
    known, needed = whose(repository)[who]
    wanted = OFFLINE if who in OFFLINE else ONLINE
    if add is not None and not set(add.roles) & set(wanted if who == "online" else (who,)):
        raise InputError(
            f"the key {add.name} was made for {', '.join(add.roles)}, not for {who}",
            remedy="Make one for that role.",
        )
    for keyid in remove:
        if keyid not in known:
            raise InputError(
                f"no key {keyid[:16]} counts for {who}", remedy="See 'edgewright keys show --repo REPO'."
            )
    ids = [keyid for keyid in known if keyid not in remove]
    if add is not None and add.keyid not in ids:
        ids.append(add.keyid)
    needed = needed if threshold is None else threshold
    if not 1 <= needed <= len(ids):
        raise InputError(
            f"{needed} of {len(ids)} keys are to sign for {who}",
            remedy="The threshold is at least 1 and at most their number.",
        )
    return ids, needed


def _changed_root(
    repository: Repository, who: Who, ids: Sequence[str], threshold: int, add: PublicKey | None
) -> Metadata[Root]:
    signed = Root.from_dict(repository.root.signed.to_dict())
    signed.version += 1
    signed.expires = repository.now() + LIFETIMES[Root.type]
    if add is not None:
        signed.keys[add.keyid] = add.for_metadata()
    for role in _TUF[who]:
        if role in signed.roles:
            signed.roles[role].keyids = list(ids)
            signed.roles[role].threshold = threshold
    counting = {keyid for role in signed.roles.values() for keyid in role.keyids}
    signed.keys = {keyid: key for keyid, key in signed.keys.items() if keyid in counting}
    return Metadata(signed)


def _delegated(repository: Repository, who: Who, root: Root, *, again: bool) -> dict[str, Metadata[Any]]:
    """Return what says the same as the root to those who ask for releases and rollouts.

    Args:
        repository: As of now.
        who: Whose keys change.
        root: The new one.
        again: Whether what the role signed before may not be signed by enough keys any more.
    """
    if who == "root":
        return {}
    changed: dict[str, Metadata[Any]] = {}
    top = draft(repository, Targets.type)
    top.signed.delegations = delegations_of(root)
    changed[Targets.type] = top
    if who == "online":
        changed[ROLLOUTS] = draft(repository, ROLLOUTS)
        return changed
    bins, spread = draft(repository, BINS), repository.spread()
    if spread is None:
        raise TrustError("the repository has no bins", remedy="Restore it from a copy.")
    bins.signed.delegations = spread_of(root, spread.bit_length)
    changed[BINS] = bins
    if again:
        changed |= {name: draft(repository, name) for name in spread.get_roles()}
    return changed
