"""What every verb that works on a repository shares: its options, and opening it."""

import argparse
from pathlib import Path

from edgewright.contract.errors import InputError
from edgewright.trust.found import read_anchor
from edgewright.trust.places import open_store
from edgewright.trust.repository import Repository

__all__ = ["add_options", "opened"]


def add_options(act: argparse.ArgumentParser, *, signs: bool) -> None:
    """Add the options of an act on a repository.

    Args:
        act: That they are for.
        signs: Whether it needs private keys; what only reads can do with a root that is believed.
    """
    act.add_argument("--keys", metavar="KEYS", type=Path, required=signs, help="folder with the keys")
    act.add_argument("--repo", metavar="REPO", required=True, help="folder or URL of the repository")
    if not signs:
        act.add_argument("--root", metavar="FILE", type=Path, help="root that is believed, instead of --keys")
    act.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def opened(arguments: argparse.Namespace, *, finishing: bool = False) -> Repository:
    """Return the repository of the arguments, verified.

    Args:
        arguments: With `repo`, and `keys` or `root`.
        finishing: See `Repository`.

    Raises:
        InputError: There is none, or no root to verify it with.
        TrustError: It cannot be believed.
    """
    root = getattr(arguments, "root", None)
    if root is not None:
        try:
            anchor = root.read_bytes()
        except OSError as error:
            raise InputError(f"{root} cannot be read: {error.strerror}", remedy="Name a root.") from error
    elif arguments.keys is not None:
        anchor = read_anchor(arguments.keys)
    else:
        raise InputError(
            "there is no root to verify the repository with", remedy="Name --keys, or --root with a root."
        )
    repository = Repository(open_store(arguments.repo), anchor, finishing=finishing)
    if repository.timestamp is None:
        raise InputError(
            f"there is no repository in {arguments.repo}",
            remedy="Check the path, or make one with 'edgewright keys init'.",
        )
    return repository
