"""How alert rules stand, and when they changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, insert, select, update

from edgewright.server.store.database import Database
from edgewright.server.store.kept import Alert, AlertChange, AlertState
from edgewright.server.store.records import alert_changes, alerts

__all__ = ["Alerts"]

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Alerts:
    """Alerts; the leader alone judges them, operators silence them.

    Attributes:
        database: That holds them.
    """

    database: Database

    def put(self, judged: Sequence[Alert]) -> list[AlertChange]:
        """Keep how rules stand, and return those that went to another state. A silence stays as it is."""

        def run(connection: Connection) -> list[AlertChange]:
            changes = []
            for alert in sorted(judged, key=lambda one: (one.rule, one.subject)):
                mine = (alerts.c.rule == alert.rule, alerts.c.subject == alert.subject)
                row = msgspec.structs.asdict(alert) | {"inputs": bytes(alert.inputs)}
                del row["silenced_until_s"]
                known = connection.execute(select(alerts.c.state).where(*mine)).scalar()
                if known is None:
                    connection.execute(insert(alerts).values(**row))
                else:
                    connection.execute(update(alerts).where(*mine).values(**row))
                if known != alert.state:
                    change = AlertChange(
                        alert.rule, alert.subject, known or "", alert.state, alert.at_s, alert.message
                    )
                    connection.execute(insert(alert_changes).values(**msgspec.structs.asdict(change)))
                    changes.append(change)
            return changes

        return self.database.write(run)

    def silence(self, rule: str, subject: str, *, until_s: float | None) -> bool:
        """Tell nobody before then, None for telling again; whether there is such an alert."""
        change = (
            update(alerts)
            .where(alerts.c.rule == rule, alerts.c.subject == subject)
            .values(silenced_until_s=until_s)
        )
        return bool(self.database.write(lambda connection: connection.execute(change).rowcount))

    def all(self, state: AlertState | None = None) -> list[Alert]:
        """Return alerts, those in a state or all, by rule and subject."""
        query = select(alerts).order_by(alerts.c.rule, alerts.c.subject)
        if state is not None:
            query = query.where(alerts.c.state == state)
        return self.database.read(lambda connection: [_alert(row) for row in connection.execute(query)])

    def changes(self, *, limit: int = 100) -> list[AlertChange]:
        """Return the newest changes first, at most 1,000."""
        query = select(alert_changes).order_by(alert_changes.c.id.desc()).limit(min(limit, _PAGE))
        return self.database.read(
            lambda connection: [
                AlertChange(row.rule, row.subject, row.before, row.after, row.at_s, row.message)
                for row in connection.execute(query)
            ]
        )


def _alert(row: Row[Any]) -> Alert:
    return Alert(
        row.rule,
        row.subject,
        row.state,
        row.since_s,
        row.at_s,
        row.message,
        msgspec.Raw(row.inputs),
        row.silenced_until_s,
    )
