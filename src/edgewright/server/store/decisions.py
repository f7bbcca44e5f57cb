"""What rollouts are judged by, and what was decided: one outcome per device and stage, decisions that stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, select

from edgewright.contract.api.device_status import StageOutcome
from edgewright.contract.errors import WorkError
from edgewright.server.store.database import Database, insert_new
from edgewright.server.store.records import ArmOutcomeCount, StoredDecision
from edgewright.server.store.tables import decisions, outcomes

__all__ = ["DecisionExistsError", "DecisionStore", "StageOutcomeStore"]

_PAGE = 1000


class DecisionExistsError(WorkError):
    """Another decision has this number: somebody else decides here too, or has already."""

    code = "conflict"


@dataclass(frozen=True, slots=True)
class StageOutcomeStore:
    """How devices fared in stages of rollouts.

    Attributes:
        database: That holds them.
    """

    database: Database

    def put(
        self, rollout: str, reported: Sequence[tuple[str, StageOutcome]], *, at: float, deadline_at: float
    ) -> int:
        """Keep each device's first outcome of a stage; a later one of the same device changes nothing.

        Args:
            rollout: From `rollout_key`.
            reported: Devices and what they said, or what was found of those that said nothing.
            at: When it came.
            deadline_at: Of the stage; what came after is marked.

        Returns:
            How many were new.
        """
        rows = [
            {
                "rollout": rollout,
                "stage": one.stage,
                "device_id": device_id,
                "arm": one.arm,
                "failed": " ".join(one.failed_metrics),
                "latency_seconds": one.latency_seconds,
                "at": at,
                "late": at > deadline_at,
            }
            for device_id, one in sorted(reported, key=lambda pair: (pair[1].stage, pair[0]))
        ]
        return self.database.write(lambda connection: insert_new(connection, outcomes, rows))

    def counts(self, rollout: str, stage: int) -> list[ArmOutcomeCount]:
        """Return how many devices of each arm fared alike."""
        alike = (outcomes.c.arm, outcomes.c.failed, outcomes.c.late)
        query = (
            select(*alike, func.count().label("devices"))
            .where(outcomes.c.rollout == rollout, outcomes.c.stage == stage)
            .group_by(*alike)
            .order_by(*alike)
        )
        return self.database.read(
            lambda connection: [
                ArmOutcomeCount(row.arm, tuple(row.failed.split()), row.late, row.devices)
                for row in connection.execute(query)
            ]
        )

    def for_stage(self, rollout: str, stage: int) -> list[tuple[str, float, bool, StageOutcome]]:
        """Return devices, when they said it, whether that was late, and what; in the order in which it came."""
        query = (
            select(outcomes)
            .where(outcomes.c.rollout == rollout, outcomes.c.stage == stage)
            .order_by(outcomes.c.at, outcomes.c.device_id)
        )
        name = rollout.rpartition("/")[2]

        def run(connection: Connection) -> list[tuple[str, float, bool, StageOutcome]]:
            return [
                (
                    row.device_id,
                    row.at,
                    row.late,
                    StageOutcome(name, stage, row.arm, tuple(row.failed.split()), row.latency_seconds),
                )
                for row in connection.execute(query)
            ]

        return self.database.read(run)

    def between(
        self, rollout: str, stage: int, first: str, last: str
    ) -> dict[str, list[tuple[int, str, tuple[str, ...], float]]]:
        """Return what the devices from one name to another said, up to a stage: its number, arm, failures, when.

        In order of the stages.
        """
        query = (
            select(outcomes.c.device_id, outcomes.c.stage, outcomes.c.arm, outcomes.c.failed, outcomes.c.at)
            .where(
                outcomes.c.rollout == rollout,
                outcomes.c.stage <= stage,
                outcomes.c.device_id >= first,
                outcomes.c.device_id <= last,
            )
            .order_by(outcomes.c.stage)
        )
        found: dict[str, list[tuple[int, str, tuple[str, ...], float]]] = {}
        rows = self.database.read(lambda connection: connection.execute(query).all())
        for name, number, arm, failed, at in rows:
            found.setdefault(name, []).append((number, arm, tuple(failed.split()), at))
        return found


@dataclass(frozen=True, slots=True)
class DecisionStore:
    """What was decided. Nothing here changes or removes one, and the database itself refuses to.

    Attributes:
        database: That holds them.
    """

    database: Database

    def put(self, decision: StoredDecision) -> None:
        """Keep a decision. Whoever was interrupted may say the same again.

        Raises:
            TakenError: There is another one of that number, or one before it is missing.
        """
        row = msgspec.structs.asdict(decision) | {"inputs": bytes(decision.inputs)}

        def run(connection: Connection) -> None:
            mine = select(decisions).where(
                decisions.c.subject == decision.subject, decisions.c.number == decision.number
            )
            if not (known := connection.execute(mine).first()):
                last = self._last(connection, decision.subject)
                if decision.number != last + 1:
                    raise DecisionExistsError(
                        f"decision {decision.number} about {decision.subject} would follow number {last}",
                        remedy="Read what was decided, and decide anew.",
                    )
                if insert_new(connection, decisions, [row]):
                    return
                known = connection.execute(mine).one()
            if _decision(known) != decision:
                raise DecisionExistsError(
                    f"decision {decision.number} about {decision.subject} is already {known.verdict!r}",
                    remedy="Read what was decided, and decide anew.",
                )

        self.database.write(run)

    def last_number(self, subject: str) -> int:
        """Return the number of the last decision about something, 0 if there is none."""
        return self.database.read(lambda connection: self._last(connection, subject))

    def last(self, subject: str, verdict: str | None = None) -> StoredDecision | None:
        """Return the last decision about something, or the last one with some verdict; None if there is none."""
        query = select(decisions).where(decisions.c.subject == subject)
        if verdict is not None:
            query = query.where(decisions.c.verdict == verdict)
        query = query.order_by(decisions.c.number.desc()).limit(1)
        row = self.database.read(lambda connection: connection.execute(query).first())
        return None if row is None else _decision(row)

    def subjects(self, rollout: str) -> list[str]:
        """Return the keys of the rollouts of a name that anything was decided about."""
        query = select(decisions.c.subject).distinct().order_by(decisions.c.subject)
        query = query.where(decisions.c.subject.endswith(f"/{rollout}", autoescape=True))
        return self.database.read(lambda connection: list(connection.execute(query).scalars()))

    def for_subject(self, subject: str) -> list[StoredDecision]:
        """Return all decisions about something, in order."""
        query = select(decisions).where(decisions.c.subject == subject).order_by(decisions.c.number)
        return self.database.read(lambda connection: [_decision(row) for row in connection.execute(query)])

    def latest(self, *, limit: int = 100) -> list[StoredDecision]:
        """Return the newest decisions about anything, at most 1,000."""
        query = select(decisions).order_by(decisions.c.at.desc(), decisions.c.subject).limit(min(limit, _PAGE))
        return self.database.read(lambda connection: [_decision(row) for row in connection.execute(query)])

    @staticmethod
    def _last(connection: Connection, subject: str) -> int:
        found = connection.execute(select(func.max(decisions.c.number)).where(decisions.c.subject == subject))
        return found.scalar() or 0


def _decision(row: Row[Any]) -> StoredDecision:
    return StoredDecision(row.subject, row.number, row.at, row.verdict, row.reason, msgspec.Raw(row.inputs))
