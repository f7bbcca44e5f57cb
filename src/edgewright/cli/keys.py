"""`edgewright keys`: make and show the keys of a repository."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edgewright.cli.passphrase import ask, ask_new
from edgewright.cli.terminal import SCHEMA_VERSION, print_json
from edgewright.trust.found import BITS, found
from edgewright.trust.keys import KeyFolder
from edgewright.trust.store import open_store

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright keys init --keys KEYS --repo REPO
  edgewright keys init --keys KEYS --repo s3://bucket/models --offline 3 --threshold 2
  edgewright keys show --keys KEYS

The keys of `root` and `releases` are encrypted: keep them off line, best on different machines. The key of the
other roles is readable by its owner only and stays on the machine that advances rollouts.
exit codes: 0 done; 1 the repository cannot be written; 2 the input or usage is wrong.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "keys",
        help="make and show the keys that sign releases and rollouts",
        description="Make and show the keys that sign releases and rollouts.",
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
        "--bits", metavar="N", type=int, default=BITS, help=f"spread releases over 2^N files of metadata ({BITS})"
    )
    init.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    init.set_defaults(run=run_init)
    show = acts.add_parser("show", help="show the keys of a folder")
    show.add_argument("--keys", metavar="KEYS", type=Path, required=True, help="folder with the keys")
    show.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    show.set_defaults(run=run_show)


def run_init(arguments: argparse.Namespace) -> int:
    """Make keys and an empty repository.

    Raises:
        InputError: There are keys or a repository already.
        OutputError: Something cannot be written.
    """
    keys = KeyFolder(arguments.keys, ask)
    repository = found(
        open_store(arguments.repo),
        keys,
        passphrase=ask_new(),
        offline=arguments.offline,
        threshold=arguments.threshold,
        bits=arguments.bits,
    )
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


def run_show(arguments: argparse.Namespace) -> int:
    """Show the keys of a folder."""
    keys = KeyFolder(arguments.keys, ask).public_keys()
    if arguments.json:
        entries = [{"name": key.name, "roles": key.roles, "keyid": key.keyid, "public": key.value} for key in keys]
        print_json({"schema": SCHEMA_VERSION, "keys": entries})
        return 0
    table = Table("name", "roles", "keyid")
    for key in keys:
        table.add_row(key.name, ", ".join(key.roles), key.keyid[:16])
    Console().print(table)
    return 0
