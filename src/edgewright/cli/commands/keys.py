"""`edgewright keys`: make, show, add and replace the keys of a repository."""

import argparse
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.cli.passphrase import ask_new_passphrase, ask_passphrase
from edgewright.cli.repository_options import add_options, open_repository
from edgewright.cli.signing_progress import signing
from edgewright.contract.errors import InputError
from edgewright.trust.keys.signing_keys import (
    OFFLINE_ROLES,
    ONLINE_ROLES,
    KeyFolder,
    KeyRole,
    PublicKey,
    read_public_key,
)
from edgewright.trust.repository.bootstrap import DEFAULT_BIN_BITS, create_repository, move_online_keys
from edgewright.trust.repository.key_rotation import change_keys, keys_by_role
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import pending_signatures, staged_metadata
from edgewright.trust.storage.open_storage import open_repository_storage

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright keys init --keys KEYS --repo REPO
  edgewright keys init --keys KEYS --repo s3://bucket/models --offline 3 --threshold 2
  edgewright keys init --keys KEYS --repo FLEET/repo --online FLEET/keys
  edgewright keys handover --keys KEYS --to FLEET/keys
  edgewright keys show --keys KEYS --repo REPO
  edgewright keys add releases --name releases-4 --keys KEYS
  edgewright keys add releases --name releases-4 --threshold 2 --keys KEYS --repo REPO
  edgewright keys add releases --public releases-5.pub.json --keys KEYS --repo REPO
  edgewright keys rotate online --keys KEYS --repo REPO
  edgewright keys rotate releases --old releases-1 --keys KEYS --repo REPO --stage

Passphrases are asked for, or taken from EDGEWRIGHT_PASSPHRASE. The keys of `root` and `releases` are encrypted:
keep them off line, best on different machines. The online key is readable by its owner only and stays on the
machine that advances rollouts.
exit codes: 0 done; 1 the repository cannot be written; 2 the input or usage is wrong.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "keys",
        help="make, show, add and replace the keys that sign releases and rollouts",
        description="Make, show, add and replace the keys that sign releases and rollouts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    init = acts.add_parser("init", help="make keys and an empty repository")
    init.add_argument("--keys", metavar="KEYS", type=Path, required=True, help="new folder for the keys")
    init.add_argument("--repo", metavar="REPO", required=True, help="folder or URL of a store for the repository")
    init.add_argument(
        "--offline", metavar="N", type=int, default=1, help="keys for root, and as many for releases (1)"
    )
    init.add_argument("--threshold", metavar="N", type=int, default=1, help="how many of them must sign (1)")
    init.add_argument(
        "--bits",
        metavar="N",
        type=int,
        default=DEFAULT_BIN_BITS,
        help=f"spread releases over 2^N files of metadata ({DEFAULT_BIN_BITS})",
    )
    init.add_argument("--online", metavar="FOLDER", type=Path, help="new folder for the online key: the server's")
    init.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    init.set_defaults(run=run_init)
    hands = acts.add_parser("handover", help="move the online key to the folder of the machine that signs rollouts")
    hands.add_argument("--keys", metavar="KEYS", type=Path, required=True, help="folder with the keys")
    hands.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="new folder")
    hands.set_defaults(run=run_hand_over)
    show = acts.add_parser("show", help="show the keys of a folder")
    show.add_argument("--keys", metavar="KEYS", type=Path, required=True, help="folder with the keys")
    show.add_argument("--repo", metavar="REPO", help="repository, to show which of them count")
    show.set_defaults(run=run_show)
    adds = acts.add_parser("add", help="have one more key count")
    adds.add_argument("--public", metavar="FILE", type=Path, help="public key of another folder; else one is made")
    adds.set_defaults(run=run_add)
    rotates = acts.add_parser("rotate", help="have a new key count instead of an old one")
    rotates.add_argument("--old", metavar="KEY", help="name or key id of the old one (the only one)")
    rotates.set_defaults(run=run_rotate)
    for changes in (adds, rotates):
        changes.add_argument("role", metavar="ROLE", choices=("root", "releases", "online"), help="whose key it is")
        changes.add_argument("--name", metavar="NAME", help="of the new key")
        changes.add_argument("--threshold", metavar="N", type=int, help="how many must sign from now on")
        changes.add_argument("--stage", action="store_true", help="leave the signing to 'repo sign'")
    adds.add_argument("--keys", metavar="KEYS", type=Path, required=True, help="folder with the keys")
    adds.add_argument("--repo", metavar="REPO", help="in which it counts; without it the key is only made")
    for act in (show, adds, hands):
        act.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    add_options(rotates, signs=True)


def run_init(arguments: argparse.Namespace) -> int:
    """Make keys and an empty repository.

    Raises:
        InputError: There are keys or a repository already.
        OutputError: Something cannot be written.
    """
    passphrase = ask_new_passphrase()
    with signing(arguments.keys, "making keys") as keys:
        repository = create_repository(
            open_repository_storage(arguments.repo),
            keys,
            passphrase=passphrase,
            offline=arguments.offline,
            threshold=arguments.threshold,
            bits=arguments.bits,
        )
    if arguments.online is not None:
        move_online_keys(keys, arguments.online)
    if arguments.json:
        print_json(
            {
                "schema": SCHEMA_VERSION,
                "repo": arguments.repo,
                "keys": str(arguments.keys),
                "root": repository.root.signed.version,
                "threshold": arguments.threshold,
            }
        )
    else:
        console = Console()
        console.print(
            f"Made {len(keys.public_keys())} keys in {arguments.keys} and a repository in {arguments.repo}."
        )
        console.print(f"Devices are enrolled with {arguments.repo}/metadata/1.root.json.")
    return 0


def run_hand_over(arguments: argparse.Namespace) -> int:
    """Move the online key to another folder.

    Raises:
        InputError: It is not here, or the other folder is not empty.
        OutputError: Something cannot be written.
    """
    moved = move_online_keys(KeyFolder(arguments.keys, ask_passphrase), arguments.to)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "moved": moved, "to": str(arguments.to)})
    else:
        print(f"Moved {', '.join(moved)} to {arguments.to}: bring that folder to the machine that signs rollouts.")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Show the keys of a folder, and which of them count."""
    keys = KeyFolder(arguments.keys, ask_passphrase).public_keys()
    counting: dict[str, list[str]] = {}
    needed: dict[str, int] = {}
    if arguments.repo is not None:
        for who, (ids, threshold) in keys_by_role(open_repository(arguments)).items():
            needed[who] = threshold
            for keyid in ids:
                counting.setdefault(keyid, []).append(who)
    if arguments.json:
        entries = [
            {
                "name": key.name,
                "roles": key.roles,
                "keyid": key.keyid,
                "public": key.value,
                "counts_for": counting.get(key.keyid, []),
            }
            for key in keys
        ]
        print_json({"schema": SCHEMA_VERSION, "keys": entries, "thresholds": needed})
        return 0
    table = Table("name", "roles", "keyid", "counts for")
    for key in keys:
        table.add_row(key.name, ", ".join(key.roles), key.keyid[:16], ", ".join(counting.get(key.keyid, [])))
    console = Console()
    console.print(table)
    for who, threshold in needed.items():
        console.print(f"{who}: {threshold} of {sum(who in roles for roles in counting.values())} keys must sign")
    return 0


def run_add(arguments: argparse.Namespace) -> int:
    """Have one more key count.

    Raises:
        InputError: There is no such key, or the threshold cannot be met.
    """
    keys = KeyFolder(arguments.keys, ask_passphrase)
    if arguments.repo is None:
        return _print_result(arguments, _create_key(arguments, keys), [], None)
    repository = open_repository(arguments)
    new = read_public_key(arguments.public) if arguments.public is not None else _create_key(arguments, keys)
    with _unless_refused(arguments, new), signing(arguments.keys, "signing") as signers:
        change_keys(
            repository, signers, arguments.role, add=new, threshold=arguments.threshold, only_stage=arguments.stage
        )
    return _print_result(arguments, new, [], repository)


def run_rotate(arguments: argparse.Namespace) -> int:
    """Have a new key count instead of an old one.

    Raises:
        InputError: There is no such key, or the threshold cannot be met.
    """
    keys = KeyFolder(arguments.keys, ask_passphrase)
    repository = open_repository(arguments)
    counting, _ = keys_by_role(repository)[arguments.role]
    names = {key.keyid: key.name for key in keys.public_keys()}
    old = [keyid for keyid in counting if arguments.old in (None, keyid, names.get(keyid))]
    if len(old) != 1:
        known = ", ".join(names.get(keyid, keyid[:16]) for keyid in counting)
        raise InputError(
            f"{arguments.old or 'the old key'} is not one of the keys that count for {arguments.role}",
            remedy=f"Name one with --old: {known}.",
        )
    new = _create_key(arguments, keys)
    with _unless_refused(arguments, new), signing(arguments.keys, "signing") as signers:
        change_keys(
            repository,
            signers,
            arguments.role,
            add=new,
            remove=old,
            threshold=arguments.threshold,
            only_stage=arguments.stage,
        )
    return _print_result(arguments, new, old, repository)


def _create_key(arguments: argparse.Namespace, keys: KeyFolder) -> PublicKey:
    roles: tuple[KeyRole, ...] = ONLINE_ROLES if arguments.role == "online" else (arguments.role,)
    taken = {key.name for key in keys.public_keys()}
    numbered = (f"{arguments.role}-{number}" for number in itertools.count(1))
    name = arguments.name or next(name for name in numbered if name not in taken)
    return keys.create(name, roles, passphrase=None if arguments.role == "online" else ask_new_passphrase())


@contextmanager
def _unless_refused(arguments: argparse.Namespace, new: PublicKey) -> Iterator[None]:
    """Remove a key that was made for a change which is then refused.

    Only what is refused before anything is staged is an InputError. After that the key may count already, and
    removing it would lock everybody out.
    """
    try:
        yield
    except InputError:
        if getattr(arguments, "public", None) is None:
            for kind in ("key", "pub"):
                (arguments.keys / f"{new.name}.{kind}.json").unlink(missing_ok=True)
        raise


def _print_result(
    arguments: argparse.Namespace, new: PublicKey, old: list[str], repository: Repository | None
) -> int:
    waits = [] if repository is None else pending_signatures(repository, staged_metadata(repository))
    lacking = sorted({part.role for part in waits if not part.is_complete and part.role in OFFLINE_ROLES})
    if arguments.json:
        print_json(
            {
                "schema": SCHEMA_VERSION,
                "name": new.name,
                "keyid": new.keyid,
                "removed": old,
                "landed": repository is not None and not waits,
                "lacking": lacking,
            }
        )
        return 0
    if repository is None:
        state = f"is made; have it count with 'edgewright keys add --public {new.name}.pub.json'"
    elif lacking:
        state = f"will count when more people have signed ('edgewright repo sign {lacking[0]}')"
    elif waits:
        state = "will count after 'edgewright repo refresh' where the online keys are"
    else:
        state = "counts from now on"
    Console().print(f"The key {new.name} ({new.keyid[:16]}) {state}.")
    return 0
