"""What a decision about a rollout was made from, as it is kept, and whether it would be made again."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.rollout.decision import Decision, Trial
from edgewright.rollout.decision import replay
from edgewright.rollout.experiment import rejudge
from edgewright.server.store import records

if TYPE_CHECKING:  # who asks a control plane has no store
    from edgewright.server.store.store import Store

__all__ = ["ACTIONS", "Explained", "Fact", "Ground", "explain", "ground_of", "one_of", "packed", "why"]

ACTIONS = ("advance", "finish", "roll_back")
"""Verdicts after which the plan is signed anew."""


class Fact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found or done on the way, without a decision.

    Attributes:
        stage: Of the rollout.
        since: When the stage began, UTC, ISO 8601.
        devices: How many it is about, by the version of their arm, "" for the control.
        version: Release that it is about, "" for none.
    """

    stage: int
    since: str = ""
    devices: dict[str, int] = {}
    version: str = ""


class Ground(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is kept with a decision.

    Attributes:
        decision: Made from the evidence; in its plan the stage's least time lasts until the last deadline.
        trial: Of an experiment.
        fact: Where nothing was decided.
        askew: Devices that named another arm than theirs; they were counted in theirs.
    """

    decision: Decision | None = None
    trial: Trial | None = None
    fact: Fact | None = None
    askew: int = 0


class Explained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decision that was kept, and whether it follows from its inputs.

    Attributes:
        subject: What it is about.
        number: Counts the subject's decisions.
        at_s: When.
        verdict: In a word.
        reason: In a sentence.
        missing: What had to happen before it could go on.
        replayed: Whether the same is decided again from what was kept; None where there is nothing to decide.
        ground: All that it was decided from.
    """

    subject: str
    number: int
    at_s: float
    verdict: str
    reason: str
    missing: tuple[str, ...]
    replayed: bool | None
    ground: Ground


def packed(ground: Ground) -> msgspec.Raw:
    """Return what is kept."""
    return msgspec.Raw(msgspec.json.encode(ground))


def ground_of(decision: records.Decision) -> Ground:
    """Return what a decision was made from.

    Raises:
        WorkError: It cannot be read.
    """
    try:
        return msgspec.json.decode(bytes(decision.inputs), type=Ground)
    except (msgspec.MsgspecError, InputError) as error:
        raise WorkError(
            f"decision {decision.number} about {decision.subject} cannot be read: {error}",
            remedy="Use the release that made it.",
        ) from error


def explain(decision: records.Decision) -> Explained:
    """Decide again, and compare.

    Raises:
        WorkError: What was kept cannot be read.
    """
    ground = ground_of(decision)
    again: list[bool] = []
    if ground.decision is not None:
        again.append(replay(ground.decision) == ground.decision)
    if ground.trial is not None:
        again.append(rejudge(ground.trial) == ground.trial)
    return Explained(
        subject=decision.subject,
        number=decision.number,
        at_s=decision.at_s,
        verdict=decision.verdict,
        reason=decision.reason,
        missing=() if ground.decision is None else ground.decision.missing,
        replayed=all(again) if again else None,
        ground=ground,
    )


def why(store: "Store", rollout: str) -> Sequence[Explained]:
    """Return all that was decided about a rollout, in order, each decided again.

    Args:
        store: Of the fleet.
        rollout: Its key, or its name if no other has it.

    Raises:
        InputError: There is none, or there are several.
        WorkError: What was kept cannot be read.
    """
    subject = rollout if "/" in rollout else one_of(rollout, store.decisions.subjects(rollout))
    found = [explain(decision) for decision in store.decisions.of(subject)]
    if not found:
        raise _unknown(rollout)
    return found


def one_of(rollout: str, subjects: Collection[str]) -> str:
    """Return the only key of a rollout's name.

    Raises:
        InputError: There is none, or there are several.
    """
    if len(subjects) > 1:
        raise InputError(
            f"several rollouts are named {rollout}", remedy=f"Say which: {', '.join(sorted(subjects))}."
        )
    if not subjects:
        raise _unknown(rollout)
    return next(iter(subjects))


def _unknown(rollout: str) -> InputError:
    return InputError(
        f"nothing was decided about a rollout {rollout[:200]!r}",
        remedy="Name it as 'edgewright rollout status' shows it, or as MODEL/CLASS/NAME.",
    )
