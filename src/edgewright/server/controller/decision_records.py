"""What a decision about a rollout was made from, as it is kept, and whether it would be made again."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.rollout.decision import ExperimentResult, RolloutDecision
from edgewright.rollout.decision import replay_decision
from edgewright.rollout.experiment import replay_experiment
from edgewright.server.store import records

if TYPE_CHECKING:  # who asks a control plane has no store
    from edgewright.server.store.store import FleetStore

__all__ = [
    "CHANGING_ACTIONS",
    "DecisionBasis",
    "ExplainedDecision",
    "StageFact",
    "basis_of",
    "encode_basis",
    "explain_decision",
    "explain_rollout",
    "only_subject",
]

CHANGING_ACTIONS = ("advance", "finish", "roll_back")
"""Verdicts after which the plan is signed anew."""


class StageFact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class DecisionBasis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is kept with a decision.

    Attributes:
        decision: Made from the evidence; in its plan the stage's least time lasts until the last deadline.
        experiment: Of an experiment.
        fact: Where nothing was decided.
        mismatched_arms: Devices that named another arm than theirs; they were counted in theirs.
    """

    decision: RolloutDecision | None = None
    experiment: ExperimentResult | None = None
    fact: StageFact | None = None
    mismatched_arms: int = 0


class ExplainedDecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decision that was kept, and whether it follows from its inputs.

    Attributes:
        subject: What it is about.
        number: Counts the subject's decisions.
        at: When.
        verdict: In a word.
        reason: In a sentence.
        waiting_for: What had to happen before it could go on.
        replays: Whether the same is decided again from what was kept; None where there is nothing to decide.
        basis: All that it was decided from.
    """

    subject: str
    number: int
    at: float
    verdict: str
    reason: str
    waiting_for: tuple[str, ...]
    replays: bool | None
    basis: DecisionBasis


def encode_basis(basis: DecisionBasis) -> msgspec.Raw:
    """Return what is kept."""
    return msgspec.Raw(msgspec.json.encode(basis))


def basis_of(decision: records.StoredDecision) -> DecisionBasis:
    """Return what a decision was made from.

    Raises:
        WorkError: It cannot be read.
    """
    try:
        return msgspec.json.decode(bytes(decision.inputs), type=DecisionBasis)
    except (msgspec.MsgspecError, InputError) as error:
        raise WorkError(
            f"decision {decision.number} about {decision.subject} cannot be read: {error}",
            remedy="Use the release that made it.",
        ) from error


def explain_decision(decision: records.StoredDecision) -> ExplainedDecision:
    """Decide again, and compare.

    Raises:
        WorkError: What was kept cannot be read.
    """
    ground = basis_of(decision)
    again: list[bool] = []
    if ground.decision is not None:
        again.append(replay_decision(ground.decision) == ground.decision)
    if ground.experiment is not None:
        again.append(replay_experiment(ground.experiment) == ground.experiment)
    return ExplainedDecision(
        subject=decision.subject,
        number=decision.number,
        at=decision.at,
        verdict=decision.verdict,
        reason=decision.reason,
        waiting_for=() if ground.decision is None else ground.decision.waiting_for,
        replays=all(again) if again else None,
        basis=ground,
    )


def explain_rollout(store: "FleetStore", rollout: str) -> Sequence[ExplainedDecision]:
    """Return all that was decided about a rollout, in order, each decided again.

    Args:
        store: Of the fleet.
        rollout: Its key, or its name if no other has it.

    Raises:
        InputError: There is none, or there are several.
        WorkError: What was kept cannot be read.
    """
    subject = rollout if "/" in rollout else only_subject(rollout, store.decisions.subjects(rollout))
    found = [explain_decision(decision) for decision in store.decisions.for_subject(subject)]
    if not found:
        raise _unknown(rollout)
    return found


def only_subject(rollout: str, subjects: Collection[str]) -> str:
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
