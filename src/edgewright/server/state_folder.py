"""The control plane of a state folder: with its defaults, or pointed at a database and a repository elsewhere.

What lies in the folder by default: `fleet.db`, `repository` (signed), `keys` (of the online roles alone).
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgewright.contract.config.fleet import FleetConfig
from edgewright.contract.errors import InputError, OutputError
from edgewright.server.access_control import UserRole
from edgewright.server.services import Services
from edgewright.server.store.store import FleetStore, create_store
from edgewright.trust.keys.signing_keys import OFFLINE_ROLES, KeyFolder
from edgewright.trust.repository.bootstrap import read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.open_storage import open_repository_storage

__all__ = ["FIRST_NAME", "ServerLocation", "create_first_access", "fleet_audience", "open_services"]

FIRST_NAME = "first"
"""Name of the token and the user that a new control plane begins with."""

_FIRST_ROOT_FILE = "metadata/1.root.json"
_FIRST_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class ServerLocation:
    """Where a control plane keeps what it has.

    Attributes:
        state: Its folder.
        database: Address, "" for SQLite in the folder.
        repository: Folder or URL of the repository, "" for `repository` in the folder.
        keys: Folder with the keys of the online roles, None for `keys` in the folder.
        root: Root that is believed, None for that of the keys, or the repository's first.
        repository_url: That devices are told, "" for this server.
    """

    state: Path
    database: str = ""
    repository: str = ""
    keys: Path | None = None
    root: Path | None = None
    repository_url: str = ""


def open_services(
    where: ServerLocation,
    fleet: FleetConfig,
    *,
    signs: bool,
    helper_url: str = "",
    now: Callable[[], float] = time.time,
) -> Services:
    """Return what a control plane works with; the database is made or brought to this release's version.

    Args:
        where: Its places.
        fleet: What the project file says.
        signs: Whether this process holds the online key.
        helper_url: Of the second operator of private sums.
        now: Seconds since 1970, UTC.

    Raises:
        InputError: There is no repository, or offline keys lie with the online ones.
        OutputError: The folder cannot be written.
        GoneError: The database does not answer.
    """
    try:
        where.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(
            f"{where.state} cannot be written: {error.strerror}", remedy="Name another folder."
        ) from error
    files = open_repository_storage(where.repository or str(where.state / "repo"))
    first = files.read(_FIRST_ROOT_FILE)
    if first is None:
        raise InputError(
            f"there is no repository in {where.repository or where.state / 'repo'}",
            remedy=f"Make one: edgewright keys init --keys KEYS --repo {where.state / 'repo'} "
            f"--online {where.state / 'keys'}",
        )
    folder = where.keys or where.state / "keys"
    keys = _online(folder) if signs and folder.exists() else None
    anchor = _trusted_root(where, keys, first)

    def repository() -> Repository:
        return Repository(files, anchor, lambda: datetime.fromtimestamp(now(), UTC))

    repository()  # what cannot be believed is told at once
    store = create_store(where.database or f"sqlite:///{(where.state / 'fleet.db').absolute()}")
    return Services(
        store=store,
        audience=fleet_audience(first),
        repository=repository,
        repository_files=files,
        online_keys=keys,
        fleet_config=fleet,
        now=now,
        repository_url=where.repository_url or "/repo/",
        helper_url=helper_url,
    )


def fleet_audience(root: bytes) -> str:
    """Return a fleet's name, for which devices sign their requests: it is its first root's.

    Args:
        root: Metadata of the first root.
    """
    return f"fleet:{hashlib.sha256(root).hexdigest()[:32]}"


def create_first_access(store: FleetStore, *, now: float) -> str | None:
    """Return the first token, which is the first user's password as well; None if somebody has access already."""
    if store.accounts.tokens() or store.accounts.users():
        return None
    try:
        secret = store.accounts.add_token(
            FIRST_NAME, UserRole.RELEASE_MANAGER, created_by="server", now=now, lifetime_seconds=_FIRST_SECONDS
        )
    except InputError:  # another process was faster, and shows it
        return None
    store.accounts.add_user(FIRST_NAME, UserRole.RELEASE_MANAGER, secret, now=now)
    store.audit.write("server", "first access", FIRST_NAME, at=now)
    return secret


def _online(folder: Path) -> KeyFolder:
    """Return the keys of the online roles; a server that holds others is a way to all devices."""
    keys = KeyFolder(folder, _no_passphrase)
    offline = [
        key.name
        for key in keys.public_keys()
        if any(role in OFFLINE_ROLES for role in key.roles) and (folder / f"{key.name}.key.json").exists()
    ]
    if offline:
        raise InputError(
            f"{folder} holds the private keys {', '.join(offline)}, which must never be on a server",
            remedy="Make a folder with the online key alone: edgewright keys handover --keys KEYS --to FOLDER.",
        )
    return keys


def _no_passphrase(key: str) -> str:
    raise InputError(f"the key {key} is none of the online roles", remedy="A server opens no other keys.")


def _trusted_root(where: ServerLocation, keys: KeyFolder | None, first: bytes) -> bytes:
    if where.root is not None:
        try:
            return where.root.read_bytes()
        except OSError as error:
            raise InputError(f"{where.root} cannot be read: {error.strerror}", remedy="Name a root.") from error
    return first if keys is None else read_trusted_root(keys.path)
