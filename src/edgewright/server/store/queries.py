"""Questions to the fleet: queries, the letters that devices send for them, what came out and what it cost."""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, update

from edgewright.contract.errors import WorkError
from edgewright.contract.query.query import Query, QueryTemplate
from edgewright.server.store.database import Database, insert_new
from edgewright.server.store.records import QueryState, StoredMessage, StoredQuery
from edgewright.server.store.tables import queries, sum_messages

__all__ = ["QueryStore"]


@dataclass(frozen=True, slots=True)
class QueryStore:
    """Private sums.

    Attributes:
        database: That holds them.
    """

    database: Database

    def store_query(self, query: Query, template: QueryTemplate, model: str, *, now: float) -> None:
        """Keep a query. Whoever was interrupted may say the same again.

        Raises:
            WorkError: There is another query of that name.
        """
        row = {
            "id": query.id,
            "model": model,
            "device_class": template.device_class,
            "state": "open",
            "body": msgspec.json.encode(query),
            "template": msgspec.json.encode(template),
            "asked_at": now,
            "rho": query.rho,
        }

        def run(connection: Connection) -> None:
            if insert_new(connection, queries, [row]):
                return
            known = connection.execute(select(queries.c.body).where(queries.c.id == query.id)).scalar_one()
            if known != row["body"]:
                raise WorkError(f"there is another query {query.id} already", remedy="Give it another name.")

        self.database.write(run)

    def finish_query(
        self, query_id: str, *, result: dict[str, Any] | None, devices: int | None, now: float
    ) -> bool:
        """Keep what came out of a query, None for nothing; the first to say it counts.

        Returns:
            Whether this was the first.
        """
        change = (
            update(queries)
            .where(queries.c.id == query_id, queries.c.state == "open")
            .values(
                state="failed" if result is None else "done",
                result=None if result is None else msgspec.json.encode(result),
                devices=devices,
                ended_at=now,
            )
        )
        return bool(self.database.write(lambda connection: connection.execute(change).rowcount))

    def get(self, query_id: str) -> StoredQuery | None:
        """Return a query, None if there is none of that name."""
        query = select(queries).where(queries.c.id == query_id)
        row = self.database.read(lambda connection: connection.execute(query).first())
        return None if row is None else _query(row)

    def all(self, state: QueryState | None = None) -> list[StoredQuery]:
        """Return queries, those in a state or all, the newest first."""
        query = select(queries).order_by(queries.c.asked_at.desc(), queries.c.id)
        if state is not None:
            query = query.where(queries.c.state == state)
        return self.database.read(lambda connection: [_query(row) for row in connection.execute(query)])

    def done_since(self, since: float, *, limit: int = 1000) -> list[StoredQuery]:
        """Return queries that ended with a result since then, the newest of them, the oldest first."""
        query = (
            select(queries)
            .where(queries.c.state == "done", queries.c.ended_at >= since)
            .order_by(queries.c.ended_at.desc(), queries.c.id)
            .limit(limit)
        )
        return self.database.read(lambda connection: [_query(row) for row in connection.execute(query)])[::-1]

    def spent_rho(self, device_class: str, *, since: float) -> float:
        """Return what the queries since then cost a device that answered them all, in zCDP.

        What is asked counts, answered or not: a device debits before it sends. Devices keep their own ledgers, and
        those alone decide.
        """
        query = select(func.coalesce(func.sum(queries.c.rho), 0.0)).where(
            queries.c.device_class == device_class, queries.c.asked_at >= since
        )
        return float(self.database.read(lambda connection: connection.execute(query).scalar_one()))

    def store_message(self, message: StoredMessage) -> Literal["new", "same", "other"]:
        """Keep a device's first letter of a step.

        Returns:
            "same" if it had sent the very same before, "other" if it had sent another one, which stays.
        """
        row = msgspec.structs.asdict(message)

        def run(connection: Connection) -> Literal["new", "same", "other"]:
            if insert_new(connection, sum_messages, [row]):
                return "new"
            query = select(sum_messages.c.body).where(
                sum_messages.c.sum_id == message.sum_id,
                sum_messages.c.step == message.step,
                sum_messages.c.sender == message.sender,
            )
            return "same" if connection.execute(query).scalar_one() == message.body else "other"

        return self.database.write(run)

    def store_marker(self, marker: StoredMessage) -> None:
        """Keep what the server itself noted of a step, in the place of what it noted before."""
        row = msgspec.structs.asdict(marker)
        mine = (
            sum_messages.c.sum_id == marker.sum_id,
            sum_messages.c.step == marker.step,
            sum_messages.c.sender == marker.sender,
        )

        def run(connection: Connection) -> None:
            if not insert_new(connection, sum_messages, [row]):
                connection.execute(update(sum_messages).where(*mine).values(body=marker.body, at=marker.at))

        self.database.write(run)

    def messages(
        self, sum_id: str, step: str, *, after: bytes = b"", limit: int = 100, marker: bool = False
    ) -> list[StoredMessage]:
        """Return letters of a step in order of their senders, page by page.

        Args:
            sum_id: Of the sum.
            step: Of the sum.
            after: Sender of the last letter of the page before.
            limit: Most that are returned.
            marker: Whether to return what the server itself noted, which has no sender, instead.
        """
        whose = sum_messages.c.sender == b"" if marker else sum_messages.c.sender > after
        query = (
            select(sum_messages)
            .where(sum_messages.c.sum_id == sum_id, sum_messages.c.step == step, whose)
            .order_by(sum_messages.c.sender)
            .limit(limit)
        )
        return self.database.read(
            lambda connection: [StoredMessage(**row) for row in connection.execute(query).mappings()]
        )

    def count_messages(self, sum_id: str, step: str) -> int:
        """Return how many devices sent a letter of a step."""
        query = select(func.count()).where(sum_messages.c.sum_id == sum_id, sum_messages.c.step == step)
        return self.database.read(lambda connection: connection.execute(query).scalar_one())

    def delete_messages(self, sum_id: str) -> int:
        """Remove the letters of a sum that is over, and return how many they were."""
        gone = delete(sum_messages).where(sum_messages.c.sum_id == sum_id)
        return self.database.write(lambda connection: connection.execute(gone).rowcount)


def _query(row: Row[Any]) -> StoredQuery:
    return StoredQuery(
        id=row.id,
        model=row.model,
        device_class=row.device_class,
        state=row.state,
        body=msgspec.Raw(row.body),
        template=msgspec.Raw(row.template),
        asked_at=row.asked_at,
        rho=row.rho,
        ended_at=row.ended_at,
        devices=row.devices,
        result=None if row.result is None else msgspec.Raw(row.result),
    )
