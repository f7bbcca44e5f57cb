"""What was promised compared with what is kept: check-ins, outcomes, decisions."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import psycopg
from benchmarks.serving.crowd import MODEL, Accepted, Crowd, Plans

from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.server.controller.decision_records import CHANGING_ACTIONS, basis_of, explain_decision
from edgewright.server.controller.stage_participants import rollout_subject
from edgewright.server.store.store import FleetStore
from edgewright.trust.publishing.publish import current_plan
from edgewright.trust.repository.repository import Repository

__all__ = ["Judge", "behind", "decided", "lost_outcomes"]

# An answer that was given while the worker still believed the plan before is no outcome of the stage.
_PLANS_SECONDS = 6.0


@dataclass(slots=True)
class Judge:
    """Looks for every check-in that was answered, while it can still be found by its nonce.

    Attributes:
        address: Of the database.
        crowds: That were answered.
        found: How many are there.
        lost: Those that are not.
    """

    address: str
    crowds: Sequence[Crowd]
    found: int = 0
    lost: list[Accepted] = field(default_factory=list)
    _at: dict[int, int] = field(default_factory=dict)

    def run(self, ended: threading.Event) -> None:
        """Look every few seconds until the end."""
        while not ended.wait(5.0):
            self._look()

    def finish(self) -> None:
        """Look for the last ones."""
        self._look()

    def _look(self) -> None:
        with psycopg.connect(self.address) as connection:
            for number, crowd in enumerate(self.crowds):
                begin_, end = self._at.get(number, 0), len(crowd.accepted)
                some = crowd.accepted[begin_:end]
                rows = connection.execute(
                    "SELECT nonce FROM nonces WHERE nonce = ANY(%s)", ([one.spent for one in some],)
                )
                there = {row[0] for row in rows}
                self.found += len(there)
                self.lost += [one for one in some if one.spent not in there]
                self._at[number] = end


def behind(store: FleetStore, accepted: Iterable[Accepted]) -> int:
    """Return how many devices' last status is older than one that was accepted."""
    last: dict[str, int] = {}
    for one in accepted:
        last[one.device] = max(last.get(one.device, 0), one.said)
    return sum((device.status.uptime_seconds or 0) < last.get(device.id, 0) for device in store.devices.iterate())


def lost_outcomes(
    store: FleetStore, accepted: Iterable[Accepted], plans: Plans, outcome_seconds: float
) -> tuple[int, int]:
    """Return how many outcomes must have been kept, and how many were not."""
    owed: dict[tuple[str, int], set[str]] = {}
    for one in accepted:
        first_at, last_at = plans.seen.get((one.subject, one.stage, "running"), (0.0, 0.0))
        old = one.age_seconds >= outcome_seconds and one.at > first_at + outcome_seconds + _PLANS_SECONDS
        if one.subject and old and one.at < last_at:
            owed.setdefault((one.subject, one.stage), set()).add(one.device)
    lost = 0
    for (subject, stage), devices in owed.items():
        lost += len(devices - {name for name, *_ in store.outcomes.for_stage(subject, stage)})
    return sum(map(len, owed.values())), lost


def decided(
    store: FleetStore, repository: Repository, started: Sequence[RolloutPlan]
) -> tuple[Counter[str], int, int]:
    """Return verdicts, how many plans were decided about twice or changed undecided, and what is not replayed."""
    verdicts, double, unlike = Counter[str](), 0, 0
    for plan in started:
        kept = store.decisions.for_subject(rollout_subject(plan))
        verdicts.update(one.verdict for one in kept)
        unlike += sum(explain_decision(one).replays is False for one in kept)
        about = []
        for one in kept:
            decision = basis_of(one).decision if one.verdict in CHANGING_ACTIONS else None
            if decision is not None:
                about.append(decision.inputs.plan.counter)
        double += len(about) - len(set(about)) + ([one.number for one in kept] != list(range(1, len(kept) + 1)))
        last = current_plan(repository, MODEL, plan.device_class)
        if last is not None and last.rollout == plan.rollout:
            # The last decision may still wait to be signed: it was killed in between.
            changes = last.counter - plan.counter
            double += changes not in (len(about), len(about) - 1)
    return verdicts, double, unlike
