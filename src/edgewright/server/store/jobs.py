"""Work for bench devices: given out for a while, given out again if nothing came back, done once."""

import os
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select, update

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name
from edgewright.server.store.database import Database, insert_new
from edgewright.server.store.records import JobState, ProfilingJob
from edgewright.server.store.tables import devices, jobs

__all__ = ["JobStore"]

_MAX_ATTEMPTS = 3
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class JobStore:
    """Jobs. What was asked is kept until it is answered: it holds whole models.

    Attributes:
        database: That holds them.
    """

    database: Database

    def add(self, device_id: str, kind: str, request: bytes, *, created_by: str, now: float) -> str:
        """Return the name of a new job.

        Raises:
            InputError: The device is no bench device, or the kind no name.
        """
        checked_name("job", kind)
        name = os.urandom(8).hex()
        row = {
            "id": name,
            "device_id": device_id,
            "kind": kind,
            "state": "waiting",
            "request": request,
            "created_by": created_by,
            "created_at": now,
            "attempts": 0,
        }
        bench = select(devices.c.id).where(
            devices.c.id == device_id, devices.c.profiling.is_(True), devices.c.retired_at.is_(None)
        )

        def run(connection: Connection) -> None:
            if connection.execute(bench).first() is None:
                raise InputError(f"{device_id[:80]!r} is no bench device", remedy="Mark it as one first.")
            insert_new(connection, jobs, [row])

        self.database.write(run)
        return name

    def has_waiting(self, device_id: str, *, now: float) -> bool:
        """Whether a device would get a job."""
        due = or_(jobs.c.state == "waiting", (jobs.c.state == "taken") & (jobs.c.lease_until <= now))
        query = select(jobs.c.id).where(jobs.c.device_id == device_id, due).limit(1)
        return self.database.read(lambda connection: connection.execute(query).first() is not None)

    def claim(self, device_id: str, *, now: float, lease_seconds: float) -> ProfilingJob | None:
        """Return the oldest job of a device, None if there is none; it is the device's for a while.

        One that was given out too often without an answer has failed.
        """
        due = or_(jobs.c.state == "waiting", (jobs.c.state == "taken") & (jobs.c.lease_until <= now))
        # On PostgreSQL the row is locked, so that two requests of one device do not both get it.
        query = (
            select(jobs)
            .where(jobs.c.device_id == device_id, due)
            .order_by(jobs.c.created_at, jobs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )

        def run(connection: Connection) -> ProfilingJob | None:
            while (row := connection.execute(query).first()) is not None:
                mine = update(jobs).where(jobs.c.id == row.id)
                if row.attempts < _MAX_ATTEMPTS:
                    connection.execute(
                        mine.values(state="taken", lease_until=now + lease_seconds, attempts=row.attempts + 1)
                    )
                    return _job(connection.execute(select(jobs).where(jobs.c.id == row.id)).one())
                connection.execute(mine.values(state="failed", request=b"", ended_at=now))
            return None

        return self.database.write(run)

    def finish(self, job_id: str, device_id: str, result: bytes, *, succeeded: bool, now: float) -> bool:
        """Keep what came of a job; the first answer counts.

        Returns:
            Whether this was it.
        """
        change = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.device_id == device_id, jobs.c.state == "taken")
            .values(state="done" if succeeded else "failed", result=result, request=b"", ended_at=now)
        )
        return bool(self.database.write(lambda connection: connection.execute(change).rowcount))

    def cancel(self, job_id: str, result: bytes, *, now: float) -> bool:
        """End a job as failed; what its device says later counts for nothing.

        Returns:
            Whether it was not over already.
        """
        change = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state.in_(("waiting", "taken")))
            .values(state="failed", result=result, request=b"", ended_at=now)
        )
        return bool(self.database.write(lambda connection: connection.execute(change).rowcount))

    def count_unanswered(self, device_id: str) -> int:
        """Return how many jobs wait for a device or were given to it and not answered."""
        query = (
            select(func.count())
            .select_from(jobs)
            .where(jobs.c.device_id == device_id, jobs.c.state.in_(("waiting", "taken")))
        )
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))

    def get(self, job_id: str) -> ProfilingJob | None:
        """Return a job, None if there is none of that name."""
        query = select(jobs).where(jobs.c.id == job_id)
        row = self.database.read(lambda connection: connection.execute(query).first())
        return None if row is None else _job(row)

    def all(self, *, state: JobState | None = None, limit: int = 100) -> list[ProfilingJob]:
        """Return jobs, those in a state or all, the newest first; at most 1,000."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(min(limit, _PAGE))
        if state is not None:
            query = query.where(jobs.c.state == state)
        return self.database.read(lambda connection: [_job(row) for row in connection.execute(query)])


def _job(row: Row[Any]) -> ProfilingJob:
    return ProfilingJob(
        id=row.id,
        device_id=row.device_id,
        kind=row.kind,
        state=row.state,
        request=row.request,
        created_by=row.created_by,
        created_at=row.created_at,
        result=row.result,
        lease_until=row.lease_until,
        ended_at=row.ended_at,
        attempts=row.attempts,
    )
