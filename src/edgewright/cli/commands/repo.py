"""`edgewright repo`: check a repository as a device would, sign what is staged, renew what expires."""

import argparse

from rich.console import Console
from rich.prompt import Confirm

from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.cli.repository_options import add_options, open_repository
from edgewright.cli.signing_progress import signing
from edgewright.contract.errors import InputError, WorkError
from edgewright.trust.repository.metadata_renewal import renew_metadata
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import (
    describe_changes,
    discard_staged,
    pending_signatures,
    publish_staged,
    sign_staged,
    staged_metadata,
)
from edgewright.trust.repository_check import check_repository

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright repo check --keys KEYS --repo REPO
  edgewright repo sign releases --keys KEYS --repo REPO
  edgewright repo refresh --keys KEYS --repo REPO

exit codes: 0 done; 1 something is wrong with the repository; 2 the input or usage is wrong.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "repo",
        help="check a repository, sign what is staged, renew what expires",
        description="Check a repository as a device would, sign what is staged, renew what expires.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    checks = acts.add_parser("check", help="verify everything as a device would")
    checks.set_defaults(run=run_check)
    shows = acts.add_parser("staged", help="show what waits for signatures, and how many")
    shows.set_defaults(run=run_staged)
    signs = acts.add_parser("sign", help="add this folder's signatures to what is staged")
    signs.add_argument("role", metavar="ROLE", choices=("root", "releases"), help="root or releases")
    signs.add_argument("--yes", action="store_true", help="what is signed was read before")
    signs.set_defaults(run=run_sign)
    renews = acts.add_parser("refresh", help="land what is signed, and renew what expires; for a timer")
    renews.add_argument("--finish", action="store_true", help="go on with a change of keys that was broken off")
    renews.set_defaults(run=run_refresh)
    drops = acts.add_parser("discard", help="drop what is staged")
    drops.set_defaults(run=run_discard)
    unlocks = acts.add_parser("unlock", help="remove the lock of a publisher that was killed")
    unlocks.set_defaults(run=run_unlock)
    for act in acts.choices.values():
        add_options(act, signs=act in (signs, renews))


def run_check(arguments: argparse.Namespace) -> int:
    """Verify everything as a device would; 1 if something is wrong."""
    with Console(stderr=True).status("verifying every signature and every byte"):
        found = check_repository(open_repository(arguments))
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "check": found})
    else:
        for fault in found.faults:
            print(f"fault: {fault}")
        for warning in found.warnings:
            print(f"warning: {warning}")
        print(
            f"{found.releases} releases, {found.plans} rollouts, {found.files} files: {len(found.faults)} faults."
        )
    return 1 if found.faults else 0


def run_sign(arguments: argparse.Namespace) -> int:
    """Sign what is staged, once it was read.

    Raises:
        InputError: Nothing is staged, no key counts, or nobody said yes.
    """
    repository = open_repository(arguments)
    changed = staged_metadata(repository)  # what is shown is what is signed
    found = describe_changes(repository, changed)
    console = Console(stderr=True)
    for change in found:
        console.print(f"  {change}", markup=False, highlight=False)
    if found and not arguments.yes:
        if arguments.json or not console.is_terminal:
            raise InputError("what is to be signed was not confirmed", remedy="Read it, then add --yes.")
        if not Confirm.ask("Sign this?", console=console):
            raise WorkError("it was not signed", remedy="Drop it with 'edgewright repo discard'.")
    with signing(arguments.keys, "signing") as keys:
        sign_staged(repository, changed, arguments.role, keys)
    left = _lacking(repository)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "changes": found, "waiting": left})
    else:
        print("Signed." if left else "Signed; all signatures are there, 'edgewright repo refresh' lands it.")
        _print_lacking(left)
    return 0


def run_refresh(arguments: argparse.Namespace) -> int:
    """Land what is signed, and renew what expires.

    Raises:
        InputError: The online keys are not in this folder.
    """
    repository = open_repository(arguments, finishing=arguments.finish)
    with signing(arguments.keys, "signing") as keys, repository.locked():
        landed = publish_staged(repository, keys)
        renewed = [] if landed else renew_metadata(repository, keys)
    left = _lacking(repository)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "landed": landed, "renewed": renewed, "waiting": left})
    else:
        print(f"{'Landed what was staged. ' if landed else ''}Renewed {', '.join(renewed) or 'nothing more'}.")
        _print_lacking(left)
    return 0


def run_staged(arguments: argparse.Namespace) -> int:
    """Show what waits for signatures."""
    repository = open_repository(arguments)
    changed = staged_metadata(repository)
    found, left = describe_changes(repository, changed), _lacking(repository)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "changes": found, "waiting": left})
    else:
        for change in found or ["nothing waits"]:
            print(change)
        _print_lacking(left)
    return 0


def _lacking(repository: Repository) -> dict[str, int]:
    """Return how many signatures the parts of each role lack at most."""
    found: dict[str, int] = {}
    for part in pending_signatures(repository, staged_metadata(repository)):
        if not part.is_complete:
            found[part.role] = max(found.get(part.role, 0), part.threshold - part.signature_count)
    return found


def _print_lacking(left: dict[str, int]) -> None:
    for role, count in left.items():
        print(f"What is staged for {role} lacks {count} more signatures: edgewright repo sign {role}.")


def run_discard(arguments: argparse.Namespace) -> int:
    """Drop what is staged."""
    count = discard_staged(open_repository(arguments))
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "discarded": count})
    else:
        print(f"Dropped {count} staged files.")
    return 0


def run_unlock(arguments: argparse.Namespace) -> int:
    """Remove the lock."""
    open_repository(arguments).unlock()
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "unlocked": True})
    else:
        print("The lock is removed.")
    return 0
