"""Founding a repository: its keys, its first root, and empty metadata for all that will be signed."""

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    Root,
    SuccinctRoles,
    Targets,
)
from tuf.api.metadata import (
    Role as TufRole,
)

from edgewright.contract.errors import InputError
from edgewright.trust.keys import OFFLINE, ONLINE, KeyFolder, PublicKey, Role
from edgewright.trust.repository import BIN, BINS, LIFETIMES, ROLLOUTS, Repository, utc_now
from edgewright.trust.store import Store

__all__ = ["ANCHOR", "found", "read_anchor"]

# The root that a publisher believes lies beside his keys, out of reach of whoever can write to the repository.
ANCHOR = "trusted-root.json"
BITS = 8
_RELEASES = ("releases/*/*", "policies/*/*")


def found(
    store: Store,
    keys: KeyFolder,
    *,
    passphrase: str,
    offline: int = 1,
    threshold: int = 1,
    bits: int = BITS,
    now: Callable[[], datetime.datetime] = utc_now,
) -> Repository:
    """Make keys and an empty repository.

    Args:
        store: Empty.
        keys: Without keys.
        passphrase: Of the offline keys.
        offline: Keys for `root`, and as many for `releases`.
        threshold: How many of them must sign.
        bits: Releases are spread over 2**bits files of metadata.
        now: The clock.

    Raises:
        InputError: There is a repository or there are keys already, or the threshold cannot be met.
    """
    if not 1 <= threshold <= offline:
        raise InputError(
            f"{threshold} of {offline} keys are to sign",
            remedy="The threshold is at least 1 and at most their number.",
        )
    if store.read("metadata/1.root.json") is not None:
        raise InputError(
            "there is a repository already", remedy="Name another place, or use 'edgewright keys add'."
        )
    if keys.path.exists() and any(keys.path.iterdir()):
        raise InputError(f"{keys.path} is not empty", remedy="Name a new folder for the keys.")
    made: dict[Role, list[PublicKey]] = {role: [] for role in (*OFFLINE, *ONLINE)}
    for role in OFFLINE:
        for number in range(1, offline + 1):
            made[role].append(keys.create(f"{role}-{number}", [role], passphrase=passphrase))
    online = keys.create("online", ONLINE, passphrase=None)
    for role in ONLINE:
        made[role].append(online)
    root = _first_root(made, threshold, now() + LIFETIMES[Root.type])
    for signer in keys.signers(root.signed.roles[Root.type].keyids):
        root.sign(signer, append=True)
    content = root.to_bytes()
    (keys.path / ANCHOR).write_bytes(content)
    store.create("metadata/1.root.json", content)
    repository = Repository(store, content, now)
    with repository.locked():
        changed = _empty(made, threshold, bits, now())
        releases = keys.signers(root.signed.roles[Targets.type].keyids)
        rollouts = keys.signers([online.keyid])
        for name, metadata in changed.items():
            for signer in rollouts if name == ROLLOUTS else releases:
                metadata.sign(signer, append=True)
        repository.commit(changed, dict.fromkeys(("snapshot", "timestamp"), rollouts))
    return repository


def read_anchor(folder: Path) -> bytes:
    """Return the root that a publisher believes.

    Raises:
        InputError: There is none beside the keys.
    """
    try:
        return (folder / ANCHOR).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder} holds no {ANCHOR}",
            remedy="Copy metadata/1.root.json of the repository there, over a way that you trust.",
        ) from error


def _first_root(made: dict[Role, list[PublicKey]], threshold: int, expires: datetime.datetime) -> Metadata[Root]:
    of_tuf = {"root": "root", "targets": "releases", "snapshot": "snapshot", "timestamp": "timestamp"}
    roles = {}
    known: dict[str, Key] = {}
    for name, role in of_tuf.items():
        some = made[role]  # type: ignore[index]
        roles[name] = TufRole([key.keyid for key in some], threshold if role in OFFLINE else 1)
        known |= {key.keyid: key.for_metadata() for key in some}
    return Metadata(Root(version=1, expires=expires, keys=known, roles=roles, consistent_snapshot=True))


def _empty(
    made: dict[Role, list[PublicKey]], threshold: int, bits: int, now: datetime.datetime
) -> dict[str, Metadata[Targets]]:
    releases, rollouts = made["releases"], made["rollouts"]
    ids = _ids(releases)
    top = Delegations(
        keys={key.keyid: key.for_metadata() for key in (*releases, *rollouts)},
        roles={
            ROLLOUTS: DelegatedRole(ROLLOUTS, _ids(rollouts), 1, terminating=True, paths=["rollouts/*/*"]),
            BINS: DelegatedRole(BINS, ids, threshold, terminating=True, paths=list(_RELEASES)),
        },
    )
    spread = SuccinctRoles(ids, threshold, bits, BIN)
    bins = Delegations(keys={key.keyid: key.for_metadata() for key in releases}, succinct_roles=spread)
    made_of: dict[str, Metadata[Targets]] = {
        Targets.type: Metadata(Targets(version=1, expires=now + LIFETIMES[Targets.type], delegations=top)),
        ROLLOUTS: Metadata(Targets(version=1, expires=now + LIFETIMES[ROLLOUTS])),
        BINS: Metadata(Targets(version=1, expires=now + LIFETIMES[BINS], delegations=bins)),
    }
    for name in spread.get_roles():
        made_of[name] = Metadata(Targets(version=1, expires=now + LIFETIMES[BIN]))
    return made_of


def _ids(keys: Sequence[PublicKey]) -> list[str]:
    return [key.keyid for key in keys]
