"""What the project file says of a running fleet: how evidence is counted, when people are told, what follows."""

import ipaddress
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from edgewright.contract.alert import Action, ActionPolicy, AlertRule, Severity
from edgewright.contract.config.toml_location import Place
from edgewright.contract.config.toml_reader import (
    meant,
    parse_tables,
    placed,
    quantity,
    read_list,
    read_table,
    read_text,
)
from edgewright.contract.errors import InputError, ProjectError

__all__ = [
    "FLEET_SECTIONS",
    "Fleet",
    "Looking",
    "Mail",
    "Notices",
    "Retirement",
    "Retraining",
    "WebhookTarget",
    "load_fleet",
    "parse_fleet",
    "read_fleet",
]

FLEET_SECTIONS = ("fleet", "alert", "action", "notify", "retraining")
"""Of a project file; the others are for `project.py`."""

_OTHERS = ("model", "data", "metric", "preprocess", "training", "device_class", "search", "pilot")
# One address, and nothing that could end a line of a letter's head.
_ADDRESS = re.compile(r"[^\s<>,;:\"@\x00-\x20\x7f]+@[^\s<>,;:\"@\x00-\x20\x7f]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Looking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the control plane counts devices and how often it looks.

    Attributes:
        outcome_s: Age from which on a device's outcome of a stage counts.
        silent_s: A device that has not checked in for so long is silent. Those that were not when a stage began and
            have told no outcome `outcome_s + silent_s` later have failed it.
        look_s: Between two looks at the rollouts and alerts.
        alpha: Chance with which a harmless rollout may be stopped.
    """

    outcome_s: float = 3600.0
    silent_s: float = 7200.0
    look_s: float = 10.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what is no time or chance."""
        for what in ("outcome_s", "silent_s", "look_s"):
            if not 0 < getattr(self, what) < math.inf:
                raise InputError(f"{what} is {getattr(self, what)}", remedy="It is a time greater than 0.")
        if not 0 < self.alpha < 0.5:
            raise InputError(f"alpha is {self.alpha}", remedy="It lies between 0 and 0.5.")


class WebhookTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A service that is told of alerts.

    Attributes:
        url: With https.
        secret_env: Variable of the environment that holds the secret shared with it.
        networks: Private networks that it may lie in, such as 10.0.0.0/8.
    """

    url: str
    secret_env: str
    networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would not be safe, or is no address."""
        parts = urlsplit(self.url)
        if parts.scheme != "https" or not parts.hostname:
            raise InputError(f"url is {self.url[:200]!r}", remedy="Write https://host/path.")
        _checked_variable("secret_env", self.secret_env)
        for network in self.networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise InputError(f"networks: {error}", remedy="Write networks such as 10.0.0.0/8.") from error


class Mail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """People who are told of alerts by e-mail.

    Attributes:
        host: Of the mail server.
        sender: Address.
        to: Addresses.
        port: Of the mail server.
        user: For the mail server, "" for none.
        password_env: Variable of the environment that holds its password.
        tls: `starttls`, `tls` from the start, or `none`.
    """

    host: str
    sender: str
    to: tuple[str, ...]
    port: int = 587
    user: str = ""
    password_env: str = ""
    tls: Literal["starttls", "tls", "none"] = "starttls"

    def __post_init__(self) -> None:
        """Refuse what is no address, and a password that could be read on its way."""
        for address in (self.sender, *self.to):
            if not _ADDRESS.fullmatch(address):
                raise InputError(f"{address[:200]!r} is no address", remedy="Write name@host.example.")
        if not self.to or not 0 < self.port < 65536 or not re.fullmatch(r"[\w.:-]+", self.host):
            raise InputError(
                f"mail to {len(self.to)} addresses over {self.host[:200]!r}, port {self.port}",
                remedy="Name a mail server, its port, and at least one address in to.",
            )
        if bool(self.user) != bool(self.password_env):
            raise InputError(
                f"user is {self.user!r}, password_env {self.password_env!r}", remedy="Give both or neither."
            )
        if self.user:
            _checked_variable("password_env", self.password_env)
        if self.user and self.tls == "none":
            raise InputError("a password would be sent in the clear", remedy='Set tls = "starttls" or "tls".')


class Notices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is told, beside the log.

    Attributes:
        webhooks: Services.
        mail: People.
    """

    webhooks: tuple[WebhookTarget, ...] = ()
    mail: tuple[Mail, ...] = ()


class Retraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What retraining is: named here alone, so that nobody can have anything run through the API.

    Attributes:
        command: Program and arguments; none for `function`.
        function: `module:function`, "" for `command`.
        timeout_s: After which it is ended.
    """

    command: tuple[str, ...] = ()
    function: str = ""
    timeout_s: float = 6 * 3600.0

    def __post_init__(self) -> None:
        """Refuse both and neither."""
        if bool(self.command) == bool(self.function):
            raise InputError("retraining needs a command or a function", remedy="Give one of them.")
        if self.function and not _FUNCTION.fullmatch(self.function):
            raise InputError(f"function is {self.function!r}", remedy="Write module:function.")


class Retirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which old releases are proposed for retirement: those that fulfil all that is set; none if nothing is.

    Attributes:
        after_versions: So many newer ones there must be.
        unused_s: For so long no device may have run it.
    """

    after_versions: int | None = None
    unused_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would retire everything."""
        if self.after_versions is not None and self.after_versions < 1:
            raise InputError(
                f"retire_after_versions is {self.after_versions}", remedy="Keep one version or more; 5 is usual."
            )

    @property
    def active(self) -> bool:
        """Whether anything is proposed at all."""
        return self.after_versions is not None or self.unused_s is not None


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it.

    Attributes:
        looking: How it is counted.
        alerts: When people are told.
        actions: What may follow by itself.
        notices: Who is told.
        retraining: What retraining is, None if there is none.
        retirement: Which old releases are proposed for retirement.
    """

    looking: Looking = Looking()
    alerts: tuple[AlertRule, ...] = ()
    actions: tuple[ActionPolicy, ...] = ()
    notices: Notices = Notices()
    retraining: Retraining | None = None
    retirement: Retirement = Retirement()

    def __post_init__(self) -> None:
        """Refuse rules that want what is not there, or that have one name."""
        for what, names in (
            ("alerts", [rule.name for rule in self.alerts]),
            ("actions", [str(policy.action) for policy in self.actions]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise InputError(f"two {what} are named {twice[0]!r}", remedy="Give each its own.")
        wants = [rule.name for rule in self.alerts if "retrain" in rule.actions]
        if wants and self.retraining is None:
            raise InputError(
                f"alert {wants[0]} wants to retrain, and nothing says how",
                remedy="Add [retraining] with a command or a function.",
            )


class _FleetText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    outcome: str = "1h"
    silent: str = "2h"
    look: str = "10s"
    alpha: float = 0.05
    retire_after_versions: int | None = None
    retire_unused: str | None = None


class _AlertText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    metric: str
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    lasting: str | None = msgspec.field(default=None, name="for")
    device_class: str = ""
    severity: Severity = "warning"
    actions: tuple[Action, ...] = ("notify",)


class _ActionText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    action: Action
    cooldown: str = "1h"
    per_day: int = 4
    approval: bool = False


class _NotifyText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    webhook: object = None
    mail: object = None


class _RetrainingText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: tuple[str, ...] = ()
    function: str = ""
    timeout: str = "6h"


def load_fleet(path: Path) -> Fleet:
    """Read what a project file says of a fleet; it needs no model and no data.

    Raises:
        ProjectError: The file cannot be read, or `parse_fleet` refuses it.
    """
    return parse_fleet(read_text(path), path.name)


def parse_fleet(text: str, file: str = "edgewright.toml") -> Fleet:
    r"""Check what the text of a project file says of a fleet.

    Args:
        text: TOML.
        file: Its name, for messages.

    Raises:
        ProjectError: Not TOML, an unknown key, a wrong type or unit, an impossible value; the message gives the
            place and the line.

    >>> parse_fleet('[[alert]]\nname = "dark"\nmetric = "silent"\nabove = 0.1\nfor = "10min"').alerts[0].for_s
    600.0
    """
    tables, whole = parse_tables(text, file)
    known = (*FLEET_SECTIONS, *_OTHERS)
    for key in tables:
        if key not in known:
            raise ProjectError(
                f"{whole / key}: unknown key {key!r}", remedy=f"Known here: {', '.join(known)}{meant(key, known)}."
            )
    return read_fleet(tables, whole)


def read_fleet(tables: Mapping[str, Any], whole: Place) -> Fleet:
    """Return what a project file's tables say of a fleet; the others are left alone.

    Raises:
        ProjectError: See `parse_fleet`.
    """
    at = whole / "fleet"
    said = read_table(tables.get("fleet", {}), _FleetText, at)
    times = {f"{key}_s": quantity(getattr(said, key), "time", at / key) for key in ("outcome", "silent", "look")}
    unused = said.retire_unused
    looking = placed(at, lambda: Looking(**times, alpha=said.alpha))
    retirement = placed(
        at,
        lambda: Retirement(
            said.retire_after_versions,
            None if unused is None else quantity(unused, "time", at / "retire_unused"),
        ),
    )
    alerts = read_list(tables.get("alert", []), whole / "alert", _alert, of="name")
    actions = read_list(tables.get("action", []), whole / "action", _action, of="action")
    retraining = _retraining(tables["retraining"], whole / "retraining") if "retraining" in tables else None
    notices = _notices(tables.get("notify", {}), whole / "notify")
    return placed(whole, lambda: Fleet(looking, alerts, actions, notices, retraining, retirement))


def _alert(table: object, place: Place) -> AlertRule:
    said = read_table(table, _AlertText, place)
    for_s = 0.0 if said.lasting is None else quantity(said.lasting, "time", place / "for")
    return placed(
        place,
        lambda: AlertRule(
            name=said.name,
            metric=said.metric,
            above=said.above,
            below=said.below,
            clear=said.clear,
            for_s=for_s,
            device_class=said.device_class,
            severity=said.severity,
            actions=said.actions,
        ),
    )


def _action(table: object, place: Place) -> ActionPolicy:
    said = read_table(table, _ActionText, place)
    cooldown = quantity(said.cooldown, "time", place / "cooldown")
    return placed(place, lambda: ActionPolicy(said.action, cooldown, said.per_day, said.approval))


def _notices(table: object, place: Place) -> Notices:
    said = read_table(table, _NotifyText, place)
    return Notices(
        read_list([] if said.webhook is None else said.webhook, place / "webhook", _webhook, of="url"),
        read_list([] if said.mail is None else said.mail, place / "mail", _mail),
    )


def _webhook(table: object, place: Place) -> WebhookTarget:
    found: WebhookTarget = read_table(table, WebhookTarget, place)
    return found


def _mail(table: object, place: Place) -> Mail:
    found: Mail = read_table(table, Mail, place)
    return found


def _retraining(table: object, place: Place) -> Retraining:
    said = read_table(table, _RetrainingText, place)
    timeout = quantity(said.timeout, "time", place / "timeout")
    return placed(place, lambda: Retraining(said.command, said.function, timeout))


def _checked_variable(what: str, name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise InputError(f"{what} is {name[:80]!r}", remedy="Name a variable of the environment.")
