"""Founding a repository: its keys, its first root, and empty metadata for all that will be signed."""

import datetime
from collections.abc import Callable
from pathlib import Path

from tuf.api.metadata import (
    Key,
    Metadata,
    Root,
    Targets,
)
from tuf.api.metadata import (
    Role as TufRole,
)

from edgewright.contract.errors import InputError, OutputError
from edgewright.trust.fsync import fsync_path
from edgewright.trust.keys.keystore import write_secret
from edgewright.trust.keys.signing_keys import OFFLINE_ROLES, ONLINE_ROLES, KeyFolder, KeyRole, PublicKey
from edgewright.trust.repository.metadata_rules import (
    BIN_PREFIX,
    BINS,
    LIFETIMES,
    ROLLOUTS,
    bin_delegations,
    top_level_delegations,
)
from edgewright.trust.repository.repository import Repository, utc_now
from edgewright.trust.storage.storage import Storage

__all__ = ["TRUSTED_ROOT_FILE", "create_repository", "move_online_keys", "read_trusted_root"]

# The root that a publisher believes lies beside his keys, out of reach of whoever can write to the repository.
TRUSTED_ROOT_FILE = "trusted-root.json"
DEFAULT_BIN_BITS = 8


def create_repository(
    store: Storage,
    keys: KeyFolder,
    *,
    passphrase: str,
    offline: int = 1,
    threshold: int = 1,
    bits: int = DEFAULT_BIN_BITS,
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
    made: dict[KeyRole, list[PublicKey]] = {role: [] for role in (*OFFLINE_ROLES, *ONLINE_ROLES)}
    for role in OFFLINE_ROLES:
        for number in range(1, offline + 1):
            made[role].append(keys.create(f"{role}-{number}", [role], passphrase=passphrase))
    online = keys.create("online", ONLINE_ROLES, passphrase=None)
    for role in ONLINE_ROLES:
        made[role].append(online)
    root = _first_root(made, threshold, now() + LIFETIMES[Root.type])
    for signer in keys.signers(root.signed.roles[Root.type].keyids):
        root.sign(signer, append=True)
    content = root.to_bytes()
    (keys.path / TRUSTED_ROOT_FILE).write_bytes(content)
    store.create("metadata/1.root.json", content)
    repository = Repository(store, content, now)
    with repository.locked():
        changed = _empty(root.signed, bits, now())
        releases = keys.signers(root.signed.roles[Targets.type].keyids)
        rollouts = keys.signers([online.keyid])
        for name, metadata in changed.items():
            for signer in rollouts if name == ROLLOUTS else releases:
                metadata.sign(signer, append=True)
        repository.commit(changed, dict.fromkeys(("snapshot", "timestamp"), rollouts))
    return repository


def move_online_keys(keys: KeyFolder, to: Path) -> list[str]:
    """Move the private keys of the online roles to another folder, for the machine that signs rollouts.

    Args:
        keys: All keys.
        to: New or empty folder; it gets the root and the public keys too.

    Returns:
        Names of the keys that were moved.

    Raises:
        InputError: There are none here, or the folder is not empty.
        OutputError: It cannot be written.
    """
    names = [key.name for key in keys.public_keys() if all(role in ONLINE_ROLES for role in key.roles)]
    there = [name for name in names if (keys.path / f"{name}.key.json").exists()]
    if not there or (to.exists() and any(to.iterdir())):
        raise InputError(
            f"{keys.path} holds {len(there)} private keys of online roles, and {to} "
            f"{'is not empty' if to.exists() else 'is new'}",
            remedy="Name the folder that has the online key, and a new one.",
        )
    anchor = read_trusted_root(keys.path)
    try:
        to.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in [keys.path / TRUSTED_ROOT_FILE, *sorted(keys.path.glob("*.pub.json"))]:
            (to / path.name).write_bytes(anchor if path.name == TRUSTED_ROOT_FILE else path.read_bytes())
        for name in there:
            private = keys.path / f"{name}.key.json"
            write_secret(to / private.name, private.read_bytes())
        fsync_path(to)
        for name in there:  # last: until here both folders sign
            (keys.path / f"{name}.key.json").unlink()
    except OSError as error:
        raise OutputError(f"{to} cannot be written: {error.strerror}", remedy="Name another folder.") from error
    return there


def read_trusted_root(folder: Path) -> bytes:
    """Return the root that a publisher believes.

    Raises:
        InputError: There is none beside the keys.
    """
    try:
        return (folder / TRUSTED_ROOT_FILE).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder} holds no {TRUSTED_ROOT_FILE}",
            remedy="Copy metadata/1.root.json of the repository there, over a way that you trust.",
        ) from error


def _first_root(made: dict[KeyRole, list[PublicKey]], threshold: int, expires: datetime.datetime) -> Metadata[Root]:
    of_tuf = {"root": "root", "targets": "releases", "snapshot": "snapshot", "timestamp": "timestamp"}
    roles = {}
    known: dict[str, Key] = {}
    for name, role in of_tuf.items():
        some = made[role]  # type: ignore[index]
        roles[name] = TufRole([key.keyid for key in some], threshold if role in OFFLINE_ROLES else 1)
        known |= {key.keyid: key.for_metadata() for key in some}
    return Metadata(Root(version=1, expires=expires, keys=known, roles=roles, consistent_snapshot=True))


def _empty(root: Root, bits: int, now: datetime.datetime) -> dict[str, Metadata[Targets]]:
    spread = bin_delegations(root, bits)
    made_of: dict[str, Metadata[Targets]] = {
        Targets.type: Metadata(
            Targets(version=1, expires=now + LIFETIMES[Targets.type], delegations=top_level_delegations(root))
        ),
        ROLLOUTS: Metadata(Targets(version=1, expires=now + LIFETIMES[ROLLOUTS])),
        BINS: Metadata(Targets(version=1, expires=now + LIFETIMES[BINS], delegations=spread)),
    }
    for name in () if spread.succinct_roles is None else spread.succinct_roles.get_roles():
        made_of[name] = Metadata(Targets(version=1, expires=now + LIFETIMES[BIN_PREFIX]))
    return made_of
