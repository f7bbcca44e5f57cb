"""How alert rules stand, and when they changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, func, insert, select, update

from edgewright.server.store.database import Database
from edgewright.server.store.records import Alert, AlertChange, StoredAlertState
from edgewright.server.store.tables import alert_changes, alerts

__all__ = ["AlertStore"]

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class AlertStore:
    """Alerts; the leader alone judges them, operators silence them.

    Attributes:
        database: That holds them.
    """

    database: Database

    def put(self, judged: Sequence[Alert]) -> None:
        """Keep how rules stand, and note those that went to another state. A silence stays as it is."""

        def run(connection: Connection) -> None:
            for alert in sorted(judged, key=lambda one: (one.rule, one.subject)):
                mine = (alerts.c.rule == alert.rule, alerts.c.subject == alert.subject)
                row = msgspec.structs.asdict(alert) | {"inputs": bytes(alert.inputs)}
                del row["silenced_until"]
                before = connection.execute(select(alerts.c.state).where(*mine)).scalar()
                if before is None:
                    connection.execute(insert(alerts).values(**row))
                else:
                    connection.execute(update(alerts).where(*mine).values(**row))
                if before != alert.state:
                    change = {name: row[name] for name in ("rule", "subject", "at", "message")}
                    change |= {"before": before or "", "after": alert.state}
                    connection.execute(insert(alert_changes).values(**change))

        self.database.write(run)

    def silence(self, rule: str, subject: str, *, until: float | None) -> bool:
        """Tell nobody before then, None for telling again; whether there is such an alert."""
        change = (
            update(alerts).where(alerts.c.rule == rule, alerts.c.subject == subject).values(silenced_until=until)
        )
        return bool(self.database.write(lambda connection: connection.execute(change).rowcount))

    def end_silences(self, *, now: float) -> int:
        """End silences that are over, and return how many; what still fires is noted, so that people are told."""

        def run(connection: Connection) -> int:
            over = alerts.c.silenced_until <= now
            for row in connection.execute(select(alerts).where(over, alerts.c.state == "firing")).all():
                change = {"rule": row.rule, "subject": row.subject, "at": now, "message": row.message}
                connection.execute(insert(alert_changes).values(before="silenced", after="firing", **change))
            return connection.execute(update(alerts).where(over).values(silenced_until=None)).rowcount

        return self.database.write(run)

    def last_change(self) -> int:
        """Return the number of the newest change, 0 if there was none."""
        query = select(func.coalesce(func.max(alert_changes.c.id), 0))
        return int(self.database.read(lambda connection: connection.execute(query).scalar_one()))

    def all(self, state: StoredAlertState | None = None) -> list[Alert]:
        """Return alerts, those in a state or all, by rule and subject."""
        query = select(alerts).order_by(alerts.c.rule, alerts.c.subject)
        if state is not None:
            query = query.where(alerts.c.state == state)
        return self.database.read(lambda connection: [_alert(row) for row in connection.execute(query)])

    def changes(self, *, limit: int = 100) -> list[AlertChange]:
        """Return the newest changes first, at most 1,000."""
        return self._changes(select(alert_changes).order_by(alert_changes.c.id.desc()).limit(min(limit, _PAGE)))

    def changes_after(self, number: int) -> list[AlertChange]:
        """Return changes in order, at most 1,000: who tells people goes on after the last that was told."""
        query = select(alert_changes).where(alert_changes.c.id > number).order_by(alert_changes.c.id)
        return self._changes(query.limit(_PAGE))

    def _changes(self, query: Select[Any]) -> list[AlertChange]:
        return self.database.read(lambda connection: [AlertChange(*row) for row in connection.execute(query)])


def _alert(row: Row[Any]) -> Alert:
    return Alert(
        rule=row.rule,
        subject=row.subject,
        state=row.state,
        since=row.since,
        at=row.at,
        message=row.message,
        inputs=msgspec.Raw(row.inputs),
        silenced_until=row.silenced_until,
    )
