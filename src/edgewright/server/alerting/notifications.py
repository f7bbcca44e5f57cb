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
from edgewright.contract.config.fleet import Fleet, Mail, WebhookTarget
from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.server.alerting.email import letter, post
from edgewright.server.alerting.webhook import Webhook, deliver
from edgewright.server.store.records import AlertChange, Position
from edgewright.server.store.store import Store

__all__ = ["Channel", "Notice", "Teller", "channels_of"]

_LOG = logging.getLogger("edgewright.alerts")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 3600.0
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


class Notice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What people are told, and services get as JSON.

    Attributes:
        number: Of the change; who gets one twice can tell.
        fleet: Its name.
        rule: Name of the rule.
        device_class: Of the devices.
        state: What the alert does now.
        severity: For people.
        message: In words.
        at_s: When, Unix time.
    """

    number: int
    fleet: str
    rule: str
    device_class: str
    state: str
    severity: str
    message: str
    at_s: float
    schema: SchemaVersion = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Channel:
    """Somebody who is told.

    Attributes:
        name: By which the store knows how far it has come.
        send: Tells one thing; raises if it may not have arrived.
    """

    name: str
    send: Callable[[Notice, float], None]


@dataclass(slots=True)
class Teller:
    """Tells.

    Attributes:
        store: That knows what changed, and who was told.
        fleet: Its name.
        rules: Of the project file, for their severity.
        channels: Who is told.
        patience_s: How long `tell` waits.
    """

    store: Store
    fleet: str
    rules: Sequence[AlertRule]
    channels: Sequence[Channel]
    patience_s: float = 2.0
    _flying: dict[str, Future[None]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(init=False)
    _closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Give each channel a thread, so that none waits for another."""
        self._pool = ThreadPoolExecutor(max(1, len(self.channels)), thread_name_prefix="tell")

    def begin(self) -> None:
        """Note where channels that are new begin: with what changes from now on."""
        for channel in self.channels:
            if self.store.positions.get(channel.name) is None:
                self.store.positions.put(Position(channel.name, self.store.alerts.last_change()))

    def tell(self, now_s: float) -> int:
        """Tell all channels what they do not know yet, and return how many are still at it."""
        for channel in self.channels:
            if channel.name not in self._flying:
                self._flying[channel.name] = self._pool.submit(self._catch_up, channel, now_s)
        wait(self._flying.values(), self.patience_s)
        for name, flight in list(self._flying.items()):
            if flight.done():
                del self._flying[name]
                flight.result()  # what is no failure to tell is a failure of the store, and the caller's
        return len(self._flying)

    def close(self) -> None:
        """Begin nothing more."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _catch_up(self, channel: Channel, now_s: float) -> None:
        at = self.store.positions.get(channel.name) or Position(channel.name, 0)
        if now_s < at.next_s:
            return
        while changes := self.store.alerts.changes_after(at.number):
            silences = {(one.rule, one.subject): one.silenced_until_s or 0.0 for one in self.store.alerts.all()}
            for change in changes:
                if self._closed.is_set():
                    return
                if _is_told(change) and not now_s < silences.get((change.rule, change.subject), 0.0):
                    try:
                        channel.send(self._notice(change), now_s)
                    except (EdgewrightError, OSError, ValueError) as error:
                        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(at.tries, 20))
                        self.store.positions.put(Position(channel.name, at.number, at.tries + 1, now_s + pause_s))
                        _LOG.warning("%s is tried again in %.0f s: %s", channel.name, pause_s, error)
                        return
                    self.store.positions.put(Position(channel.name, change.number))
                at = Position(channel.name, change.number)
            self.store.positions.put(at)

    def _notice(self, change: AlertChange) -> Notice:
        severity = next((rule.severity for rule in self.rules if rule.name == change.rule), "info")
        return Notice(
            number=change.number,
            fleet=self.fleet,
            rule=change.rule,
            device_class=change.subject,
            state=change.after,
            severity=severity,
            message=change.message,
            at_s=change.at_s,
        )


def channels_of(
    fleet: Fleet, environment: Mapping[str, str], *, trust: ssl.SSLContext | None = None
) -> list[Channel]:
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

    notices = fleet.notices
    found = [
        Channel("log", _log),
        *(_webhook(target, secret(target.secret_env).encode(), trust) for target in notices.webhooks),
        *(_mail(mail, secret(mail.password_env) if mail.user else "", trust) for mail in notices.mail),
    ]
    names = [channel.name for channel in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{twice} is told twice", remedy="Name each once under [notify].")
    return found


def _is_told(change: AlertChange) -> bool:
    return change.after == "firing" or (change.before == "firing" and change.after == "resolved")


def _log(notice: Notice, _now_s: float) -> None:
    said = {"event": notice.message, "alert": notice}
    _LOG.log(_LEVELS[notice.severity], "%s", msgspec.json.encode(said).decode())


def _webhook(target: WebhookTarget, secret: bytes, trust: ssl.SSLContext | None) -> Channel:
    hook = Webhook(target.url, secret, tuple(ipaddress.ip_network(each) for each in target.networks))

    def send(notice: Notice, now_s: float) -> None:
        deliver(hook, msgspec.json.encode(notice), now_s=now_s, trust=trust)

    return Channel(f"webhook {target.url}", send)


def _mail(mail: Mail, password: str, trust: ssl.SSLContext | None) -> Channel:
    def send(notice: Notice, _now_s: float) -> None:
        body = "\n".join(f"{name}: {value}" for name, value in msgspec.to_builtins(notice).items())
        subject = f"[{notice.fleet}] {notice.state}: {notice.message}"
        name = f"edgewright.{notice.fleet}.{notice.number}"
        post(mail, letter(mail, subject, body, name=name, at_s=notice.at_s), password=password, trust=trust)

    return Channel(f"mail {mail.host} {' '.join(mail.to)}", send)
