"""What every verb that works on a repository shares: its options, and opening it."""

import argparse
from contextlib import suppress
from pathlib import Path

from edgewright.contract.errors import InputError
from edgewright.trust.repository.bootstrap import read_trusted_root
from edgewright.trust.repository.repository import Repository, TrustError
from edgewright.trust.storage.open_storage import open_repository_storage

__all__ = ["add_options", "open_repository"]

_SEEN = "seen-timestamp"


def add_options(act: argparse.ArgumentParser, *, signs: bool, served: bool = False) -> None:
    """Add the options of an act on a repository.

    Args:
        act: That they are for.
        signs: Whether it needs private keys; what only reads can do with a root that is believed.
        served: Whether a control plane can do it instead.
    """
    act.add_argument(
        "--keys", metavar="KEYS", type=Path, required=signs and not served, help="folder with the keys"
    )
    act.add_argument("--repo", metavar="REPO", required=not served, help="folder or URL of the repository")
    if not signs:
        act.add_argument("--root", metavar="FILE", type=Path, help="root that is believed, instead of --keys")
    act.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def open_repository(arguments: argparse.Namespace, *, finishing: bool = False) -> Repository:
    """Return the repository of the arguments, verified.

    Args:
        arguments: With `repo`, and `keys` or `root`.
        finishing: See `Repository`.

    Raises:
        InputError: There is none, or no root to verify it with.
        TrustError: It cannot be believed.
    """
    if arguments.repo is None:
        raise InputError(
            "neither a repository nor a control plane is named",
            remedy="Give --repo with --keys, or --fleet DIR or --server URL.",
        )
    root = getattr(arguments, "root", None)
    if root is not None:
        try:
            anchor = root.read_bytes()
        except OSError as error:
            raise InputError(f"{root} cannot be read: {error.strerror}", remedy="Name a root.") from error
    elif arguments.keys is not None:
        anchor = read_trusted_root(arguments.keys)
    else:
        raise InputError(
            "there is no root to verify the repository with", remedy="Name --keys, or --root with a root."
        )
    repository = Repository(open_repository_storage(arguments.repo), anchor, accept_former_root=finishing)
    if repository.timestamp is None:
        raise InputError(
            f"there is no repository in {arguments.repo}",
            remedy="Check the path, or make one with 'edgewright keys init'.",
        )
    if arguments.keys is not None:
        _must_not_go_back(arguments.keys / _SEEN, repository.timestamp.signed.version)
    return repository


def _must_not_go_back(path: Path, version: int) -> None:
    """See to it that a repository is not older than it was when these keys saw it last.

    Whoever can write to the store could put an old copy there, and have it signed anew as the newest.

    Raises:
        TrustError: It is older.
    """
    try:
        seen = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        seen = 0
    if version < seen:
        raise TrustError(
            f"the repository's timestamp is version {version}, it was {seen} when {path.parent} saw it last",
            remedy=f"Find out who put an old copy there. If it was you, remove {path}.",
        )
    if version > seen:
        with suppress(OSError):  # a folder that is read only remembers nothing
            path.write_text(str(version), encoding="ascii")
