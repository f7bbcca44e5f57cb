"""Telling people what alerts do: each channel by itself, in order, at least once.

How far a channel has come is in the store: a change that was told and not noted, because the process ended between
the two, is told once more. A channel that fails is tried again after ever longer pauses, and holds up no other. Who
calls waits only so long; what is still under way then goes on beside.
"""

import ipaddress
import logging
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import msgspec

from edgewright.contract.alert import AlertRule
from edgewright.contract.config.fleet import EmailTarget, FleetConfig, WebhookTarget
from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.server.alerting.email import compose_email, send_email
from edgewright.server.alerting.webhook import Webhook, deliver_webhook
from edgewright.server.store.records import AlertChange, ReaderPosition
from edgewright.server.store.store import FleetStore

__all__ = ["Notification", "NotificationChannel", "Notifier", "open_channels"]

_LOG = logging.getLogger("edgewright.alerts")
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 5.0, 3600.0
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


class Notification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What people are told, and services get as JSON.

    Attributes:
        number: Of the change; who gets one twice can tell.
        fleet_name: Its name.
        rule: Name of the rule.
        device_class: Of the devices.
        state: What the alert does now.
        severity: For people.
        message: In words.
        at: When, Unix time.
    """

    number: int
    fleet_name: str
    rule: str
    device_class: str
    state: str
    severity: str
    message: str
    at: float
    schema: SchemaVersion = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class NotificationChannel:
    """Somebody who is told.

    Attributes:
        name: By which the store knows how far it has come.
        send: Tells one thing; raises if it may not have arrived.
    """

    name: str
    send: Callable[[Notification, float], None]


@dataclass(slots=True)
class Notifier:
    """Tells.

    Attributes:
        store: That knows what changed, and who was told.
        fleet_name: Its name.
        rules: Of the project file, for their severity.
        channels: Who is told.
        timeout_seconds: How long `send_new` waits.
    """

    store: FleetStore
    fleet_name: str
    rules: Sequence[AlertRule]
    channels: Sequence[NotificationChannel]
    timeout_seconds: float = 2.0
    _in_flight: dict[str, Future[None]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(init=False)
    _closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Give each channel a thread, so that none waits for another."""
        self._pool = ThreadPoolExecutor(max(1, len(self.channels)), thread_name_prefix="tell")

    def begin_channels(self) -> None:
        """Note where channels that are new begin: with what changes from now on."""
        for channel in self.channels:
            if self.store.positions.get(channel.name) is None:
                self.store.positions.put(ReaderPosition(channel.name, self.store.alerts.last_change()))

    def send_new(self, now: float) -> int:
        """Tell all channels what they do not know yet, and return how many are still at it."""
        for channel in self.channels:
            if channel.name not in self._in_flight:
                self._in_flight[channel.name] = self._pool.submit(self._send_pending, channel, now)
        wait(self._in_flight.values(), self.timeout_seconds)
        for name, flight in list(self._in_flight.items()):
            if flight.done():
                del self._in_flight[name]
                flight.result()  # what is no failure to tell is a failure of the store, and the caller's
        return len(self._in_flight)

    def close(self) -> None:
        """Begin nothing more."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send_pending(self, channel: NotificationChannel, now: float) -> None:
        at = self.store.positions.get(channel.name) or ReaderPosition(channel.name, 0)
        if now < at.next_attempt_at:
            return
        while changes := self.store.alerts.changes_after(at.number):
            silences = {(one.rule, one.subject): one.silenced_until or 0.0 for one in self.store.alerts.all()}
            for change in changes:
                if self._closed.is_set():
                    return
                if _is_notified(change) and not now < silences.get((change.rule, change.subject), 0.0):
                    try:
                        channel.send(self._notification(change), now)
                    except (EdgewrightError, OSError, ValueError) as error:
                        pause_seconds = min(_MAX_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(at.attempts, 20))
                        self.store.positions.put(
                            ReaderPosition(channel.name, at.number, at.attempts + 1, now + pause_seconds)
                        )
                        _LOG.warning("%s is tried again in %.0f s: %s", channel.name, pause_seconds, error)
                        return
                    self.store.positions.put(ReaderPosition(channel.name, change.number))
                at = ReaderPosition(channel.name, change.number)
            self.store.positions.put(at)

    def _notification(self, change: AlertChange) -> Notification:
        severity = next((rule.severity for rule in self.rules if rule.name == change.rule), "info")
        return Notification(
            number=change.number,
            fleet_name=self.fleet_name,
            rule=change.rule,
            device_class=change.subject,
            state=change.after,
            severity=severity,
            message=change.message,
            at=change.at,
        )


def open_channels(
    fleet: FleetConfig, environment: Mapping[str, str], *, trust: ssl.SSLContext | None = None
) -> list[NotificationChannel]:
    """Return who a project file wants told: the log always.

    Args:
        fleet: Of the project file.
        environment: With the secrets.
        trust: Of certificates; the system's if not given.

    Raises:
        InputError: A secret is missing or too short.
    """

    def secret(name: str) -> str:
        if not environment.get(name):
            raise InputError(f"the variable {name} is not set", remedy="Set it to the secret before you start.")
        return environment[name]

    notices = fleet.notifications
    found = [
        NotificationChannel("log", _log),
        *(_webhook(target, secret(target.secret_env).encode(), trust) for target in notices.webhooks),
        *(_mail(mail, secret(mail.password_env) if mail.user else "", trust) for mail in notices.email),
    ]
    names = [channel.name for channel in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{twice} is told twice", remedy="Name each once under [notify].")
    return found


def _is_notified(change: AlertChange) -> bool:
    return change.after == "firing" or (change.before == "firing" and change.after == "resolved")


def _log(notice: Notification, _now: float) -> None:
    said = {"event": notice.message, "alert": notice}
    _LOG.log(_LEVELS[notice.severity], "%s", msgspec.json.encode(said).decode())


def _webhook(target: WebhookTarget, secret: bytes, trust: ssl.SSLContext | None) -> NotificationChannel:
    hook = Webhook(target.url, secret, tuple(ipaddress.ip_network(each) for each in target.networks))

    def send(notice: Notification, now: float) -> None:
        deliver_webhook(hook, msgspec.json.encode(notice), now=now, trust=trust)

    return NotificationChannel(f"webhook {target.url}", send)


def _mail(mail: EmailTarget, password: str, trust: ssl.SSLContext | None) -> NotificationChannel:
    def send(notice: Notification, _now: float) -> None:
        body = "\n".join(f"{name}: {value}" for name, value in msgspec.to_builtins(notice).items())
        subject = f"[{notice.fleet_name}] {notice.state}: {notice.message}"
        name = f"edgewright.{notice.fleet_name}.{notice.number}"
        send_email(
            mail, compose_email(mail, subject, body, name=name, at=notice.at), password=password, trust=trust
        )

    return NotificationChannel(f"mail {mail.host} {' '.join(mail.recipients)}", send)
