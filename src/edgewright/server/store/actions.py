"""What alerts set off: each thing once, from wanted to ended; and how far readers of changes have come."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, insert, select, update

from edgewright.server.store.database import Database, insert_new
from edgewright.server.store.records import ActionState, AutomatedAction, ReaderPosition
from edgewright.server.store.tables import automated_actions, reader_positions

__all__ = ["ActionStore", "ReaderPositions"]

_PAGE = 1000
_ENDED = ("done", "failed", "refused")


@dataclass(frozen=True, slots=True)
class ActionStore:
    """What alerts set off, or would if somebody approved.

    Attributes:
        database: That holds them.
    """

    database: Database

    def add(self, act: AutomatedAction) -> bool:
        """Keep an act, and return whether it is new; one that is there stays as it is."""
        row = msgspec.structs.asdict(act)
        return bool(self.database.write(lambda connection: insert_new(connection, automated_actions, [row])))

    def transition(
        self,
        act_id: str,
        before: Sequence[ActionState],
        after: ActionState,
        *,
        reason: str,
        at: float,
        by: str = "",
    ) -> bool:
        """Bring an act from one of some states to another.

        Args:
            act_id: Which.
            before: States that it may be in.
            after: State that it comes to.
            reason: Of the state.
            at: When.
            by: Who granted or refused it; "" where nobody does.

        Returns:
            Whether it did; not if it is in another state, or there is none.
        """
        values: dict[str, Any] = {"state": after, "state_reason": reason}
        if by:
            values |= {"decided_by": by} | ({"decided_at": at} if after == "granted" else {})
        if after in _ENDED:
            values["ended_at"] = at
        change = (
            update(automated_actions)
            .where(automated_actions.c.id == act_id, automated_actions.c.state.in_(before))
            .values(**values)
        )
        return bool(self.database.write(lambda connection: connection.execute(change).rowcount))

    def get(self, act_id: str) -> AutomatedAction | None:
        """Return an act, None if there is none of that name."""
        found = self._some(select(automated_actions).where(automated_actions.c.id == act_id))
        return found[0] if found else None

    def all(self, *states: ActionState, limit: int = 100) -> list[AutomatedAction]:
        """Return automated_actions, those in some states or all, the newest first; at most 1,000."""
        query = (
            select(automated_actions)
            .order_by(automated_actions.c.asked_at.desc(), automated_actions.c.id)
            .limit(min(limit, _PAGE))
        )
        return self._some(query.where(automated_actions.c.state.in_(states)) if states else query)

    def granted_since(self, at: float) -> list[AutomatedAction]:
        """Return automated_actions that were granted from then on, in order."""
        return self._some(
            select(automated_actions)
            .where(automated_actions.c.decided_at >= at)
            .order_by(automated_actions.c.decided_at, automated_actions.c.id)
        )

    def _some(self, query: Select[Any]) -> list[AutomatedAction]:
        return self.database.read(lambda connection: [_act(row) for row in connection.execute(query)])


@dataclass(frozen=True, slots=True)
class ReaderPositions:
    """How far readers of changes have come.

    Attributes:
        database: That holds them.
    """

    database: Database

    def get(self, name: str) -> ReaderPosition | None:
        """Return a reader's position, None if it has none yet."""
        query = select(reader_positions).where(reader_positions.c.name == name)
        row = self.database.read(lambda connection: connection.execute(query).mappings().first())
        return None if row is None else ReaderPosition(**row)

    def put(self, position: ReaderPosition) -> None:
        """Keep a reader's position."""
        row = msgspec.structs.asdict(position)

        def run(connection: Connection) -> None:
            mine = update(reader_positions).where(reader_positions.c.name == position.name).values(**row)
            if not connection.execute(mine).rowcount:
                connection.execute(insert(reader_positions).values(**row))

        self.database.write(run)


def _act(row: Row[Any]) -> AutomatedAction:
    return AutomatedAction(**row._mapping)
