"""Why a rollout is where it is: every decision about it in words, and whether it follows from what was kept."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from edgewright.contract.errors import InputError
from edgewright.server.ground import Explained, why
from edgewright.server.store.store import open_store

__all__ = ["STORE", "print_why", "told"]

STORE = "fleet.db"
"""Name of the database in a server's state."""

_AGAIN = {True: "decided again, the same", False: "decided again, and NOT the same", None: ""}


def told(state: Path, rollout: str) -> Sequence[Explained]:
    """Return all that a server decided about a rollout; nothing is written.

    Args:
        state: Folder of the server, which may run.
        rollout: Its name, or MODEL/CLASS/NAME.

    Raises:
        InputError: There is no such rollout, or no state.
        WorkError: What was kept cannot be read.
    """
    path = state / STORE
    if not path.is_file():
        raise InputError(
            f"{state} is no state of a server", remedy="Name the folder of 'edgewright serve --state'."
        )
    store = open_store(f"sqlite:///{path.absolute()}")
    try:
        return why(store, rollout)
    finally:
        store.close()


def print_why(console: Console, decisions: Sequence[Explained]) -> None:
    """Print decisions, the oldest first.

    Args:
        console: To print on.
        decisions: From `told`, or from a server.
    """
    for one in decisions:
        at = datetime.datetime.fromtimestamp(one.at_s, datetime.UTC)
        console.print(f"{one.number:>4}  {at:%Y-%m-%d %H:%M:%S}  {one.verdict.replace('_', ' ')}", highlight=False)
        console.print(f"      {one.reason}", markup=False, highlight=False)
        made = one.ground.decision
        if made is not None:
            counted = f"{sum(made.inputs.evidence.waiting)} devices waited for"
            console.print(f"      {counted}; {_AGAIN[one.replayed]}", markup=False, highlight=False)
