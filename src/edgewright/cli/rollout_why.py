"""Why a rollout is where it is: every decision about it in words, and whether it follows from what was kept."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from edgewright.cli.api_client import ControlPlaneApi, quote_path
from edgewright.contract.errors import InputError
from edgewright.server.controller.decision_records import (
    ExplainedDecision,
    explain_decision,
    explain_rollout,
    only_subject,
)
from edgewright.server.store import records

__all__ = ["STORE", "explain_by", "print_explanation", "print_why"]

STORE = "fleet.db"
"""Name of the database in a server's state."""

# As many as the control plane lists at once.
_MOST = 1000
_AGAIN = {True: "decided again, the same", False: "decided again, and NOT the same", None: ""}


class _Shown(msgspec.Struct):
    """A decision, as the control plane shows it.

    Attributes:
        subject: What it is about.
        number: Counts the subject's decisions.
        at: When.
        verdict: In a word.
        reason: In a sentence.
        decision: What it was made from.
    """

    subject: str
    number: int
    at: float
    verdict: str
    reason: str
    decision: msgspec.Raw = msgspec.Raw(b"{}")


def explain_by(remote: ControlPlaneApi, rollout: str, *, last: int) -> Sequence[ExplainedDecision]:
    """Return what a control plane decided about a rollout; it is decided again here, not there.

    Args:
        remote: The control plane.
        rollout: Its name, or MODEL/CLASS/NAME.
        last: Most that are returned, the newest of all.

    Raises:
        InputError: There is no such rollout.
        WorkError: The control plane cannot be reached, or what was kept cannot be read.
    """
    subject = rollout
    if "/" not in rollout:
        newest = remote.get("decisions", list[_Shown], {"limit": _MOST})
        subject = only_subject(rollout, {each.subject for each in newest if each.subject.endswith(f"/{rollout}")})
    listed = remote.get("decisions", list[_Shown], {"subject": subject, "limit": min(last, _MOST)})
    if not listed:
        raise InputError(f"nothing was decided about {subject[:200]!r}", remedy="Name it as MODEL/CLASS/NAME.")
    found = []
    for each in reversed(listed):
        one = remote.get(quote_path("decisions", *subject.split("/"), str(each.number)), _Shown)
        found.append(
            explain_decision(
                records.StoredDecision(one.subject, one.number, one.at, one.verdict, one.reason, one.decision)
            )
        )
    return found


def print_explanation(state: Path, rollout: str) -> Sequence[ExplainedDecision]:
    """Return all that a server decided about a rollout; nothing is written.

    Args:
        state: Folder of the server, which may run.
        rollout: Its name, or MODEL/CLASS/NAME.

    Raises:
        InputError: There is no such rollout, or no state.
        WorkError: What was kept cannot be read.
    """
    # Where a control plane does not run, nothing is there to open its store with.
    from edgewright.server.store.store import open_fleet_store

    path = state / STORE
    if not path.is_file():
        raise InputError(
            f"{state} is no state of a server", remedy="Name the folder of 'edgewright serve --state'."
        )
    store = open_fleet_store(f"sqlite:///{path.absolute()}")
    try:
        return explain_rollout(store, rollout)
    finally:
        store.close()


def print_why(console: Console, decisions: Sequence[ExplainedDecision]) -> None:
    """Print decisions, the oldest first.

    Args:
        console: To print on.
        decisions: From `print_explanation`, or from a server.
    """
    for one in decisions:
        at = datetime.datetime.fromtimestamp(one.at, datetime.UTC)
        console.print(f"{one.number:>4}  {at:%Y-%m-%d %H:%M:%S}  {one.verdict.replace('_', ' ')}", highlight=False)
        console.print(f"      {one.reason}", markup=False, highlight=False)
        made = one.basis.decision
        if made is not None:
            counted = f"{sum(made.inputs.evidence.pending)} devices waited for"
            console.print(f"      {counted}; {_AGAIN[one.replays]}", markup=False, highlight=False)
