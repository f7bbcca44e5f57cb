"""What the project file says of a running fleet: how evidence is counted, when people are told, what follows."""

import ipaddress
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from edgewright.contract.alert import ActionPolicy, AlertAction, AlertRule, Severity
from edgewright.contract.config.toml_location import TomlLocation
from edgewright.contract.config.toml_reader import (
    did_you_mean,
    parse_tables,
    read_quantity,
    read_table_list,
    read_text,
    read_toml_table,
    with_location,
)
from edgewright.contract.errors import InputError, ProjectError

__all__ = [
    "FLEET_SECTIONS",
    "EmailTarget",
    "FleetConfig",
    "FleetMonitoring",
    "NotificationTargets",
    "RetirementPolicy",
    "RetrainingConfig",
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


class FleetMonitoring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the control plane counts devices and how often it looks.

    Attributes:
        outcome_age_seconds: Age from which on a device's outcome of a stage counts.
        offline_after_seconds: A device that has not checked in for so long is offline. Those that were not when a
            stage began and have told no outcome `outcome_age_seconds + offline_after_seconds` later have failed it.
        evaluation_interval_seconds: Between two looks at the rollouts and alerts.
        alpha: Chance with which a harmless rollout may be stopped.
    """

    outcome_age_seconds: float = 3600.0
    offline_after_seconds: float = 7200.0
    evaluation_interval_seconds: float = 10.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what is no time or chance."""
        for what in ("outcome_age_seconds", "offline_after_seconds", "evaluation_interval_seconds"):
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


class EmailTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """People who are told of alerts by e-mail.

    Attributes:
        host: Of the mail server.
        sender: Address.
        recipients: Addresses.
        port: Of the mail server.
        user: For the mail server, "" for none.
        password_env: Variable of the environment that holds its password.
        tls: `starttls`, `tls` from the start, or `none`.
    """

    host: str
    sender: str
    recipients: tuple[str, ...]
    port: int = 587
    user: str = ""
    password_env: str = ""
    tls: Literal["starttls", "tls", "none"] = "starttls"

    def __post_init__(self) -> None:
        """Refuse what is no address, and a password that could be read on its way."""
        for address in (self.sender, *self.recipients):
            if not _ADDRESS.fullmatch(address):
                raise InputError(f"{address[:200]!r} is no address", remedy="Write name@host.example.")
        if not self.recipients or not 0 < self.port < 65536 or not re.fullmatch(r"[\w.:-]+", self.host):
            raise InputError(
                f"email to {len(self.recipients)} addresses over {self.host[:200]!r}, port {self.port}",
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


class NotificationTargets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is told, beside the log.

    Attributes:
        webhooks: Services.
        email: People.
    """

    webhooks: tuple[WebhookTarget, ...] = ()
    email: tuple[EmailTarget, ...] = ()


class RetrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What retraining is: named here alone, so that nobody can have anything run through the API.

    Attributes:
        command: Program and arguments; none for `function`.
        function: `module:function`, "" for `command`.
        timeout_seconds: After which it is ended.
    """

    command: tuple[str, ...] = ()
    function: str = ""
    timeout_seconds: float = 6 * 3600.0

    def __post_init__(self) -> None:
        """Refuse both and neither."""
        if bool(self.command) == bool(self.function):
            raise InputError("retraining needs a command or a function", remedy="Give one of them.")
        if self.function and not _FUNCTION.fullmatch(self.function):
            raise InputError(f"function is {self.function!r}", remedy="Write module:function.")


class RetirementPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which old releases are proposed for retirement: those that fulfil all that is set; none if nothing is.

    Attributes:
        after_newer_versions: So many newer ones there must be.
        unused_seconds: For so long no device may have run it.
    """

    after_newer_versions: int | None = None
    unused_seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would retire everything."""
        if self.after_newer_versions is not None and self.after_newer_versions < 1:
            raise InputError(
                f"retire_after_versions is {self.after_newer_versions}",
                remedy="Keep one version or more; 5 is usual.",
            )

    @property
    def active(self) -> bool:
        """Whether anything is proposed at all."""
        return self.after_newer_versions is not None or self.unused_seconds is not None


class FleetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it.

    Attributes:
        monitoring: How it is counted.
        alerts: When people are told.
        actions: What may follow by itself.
        notifications: Who is told.
        retraining: What retraining is, None if there is none.
        retirement: Which old releases are proposed for retirement.
    """

    monitoring: FleetMonitoring = FleetMonitoring()
    alerts: tuple[AlertRule, ...] = ()
    actions: tuple[ActionPolicy, ...] = ()
    notifications: NotificationTargets = NotificationTargets()
    retraining: RetrainingConfig | None = None
    retirement: RetirementPolicy = RetirementPolicy()

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
    outcome_age: str = "1h"
    offline_after: str = "2h"
    evaluation_interval: str = "10s"
    alpha: float = 0.05
    retire_after_versions: int | None = None
    retire_unused: str | None = None


class _AlertText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    metric: str
    above: float | None = None
    below: float | None = None
    clear_at: float | None = None
    for_duration: str | None = msgspec.field(default=None, name="for")
    device_class: str = ""
    severity: Severity = "warning"
    actions: tuple[AlertAction, ...] = ("notify",)


class _ActionText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    action: AlertAction
    cooldown: str = "1h"
    max_per_day: int = 4
    needs_approval: bool = False


class _NotifyText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    webhook: object = None
    email: object = None


class _RetrainingText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: tuple[str, ...] = ()
    function: str = ""
    timeout: str = "6h"


def load_fleet(path: Path) -> FleetConfig:
    """Read what a project file says of a fleet; it needs no model and no data.

    Raises:
        ProjectError: The file cannot be read, or `parse_fleet` refuses it.
    """
    return parse_fleet(read_text(path), path.name)


def parse_fleet(text: str, file: str = "edgewright.toml") -> FleetConfig:
    r"""Check what the text of a project file says of a fleet.

    Args:
        text: TOML.
        file: Its name, for messages.

    Raises:
        ProjectError: Not TOML, an unknown key, a wrong type or unit, an impossible value; the message gives the
            place and the line.

    >>> parse_fleet('[[alert]]\nname = "dark"\nmetric = "offline"\nabove = 0.1\nfor = "10min"').alerts[0].for_seconds
    600.0
    """
    tables, whole = parse_tables(text, file)
    known = (*FLEET_SECTIONS, *_OTHERS)
    for key in tables:
        if key not in known:
            raise ProjectError(
                f"{whole / key}: unknown key {key!r}",
                remedy=f"Known here: {', '.join(known)}{did_you_mean(key, known)}.",
            )
    return read_fleet(tables, whole)


def read_fleet(tables: Mapping[str, Any], whole: TomlLocation) -> FleetConfig:
    """Return what a project file's tables say of a fleet; the others are left alone.

    Raises:
        ProjectError: See `parse_fleet`.
    """
    at = whole / "fleet"
    said = read_toml_table(tables.get("fleet", {}), _FleetText, at)
    times = {
        f"{key}_seconds": read_quantity(getattr(said, key), "time", at / key)
        for key in ("outcome_age", "offline_after", "evaluation_interval")
    }
    unused = said.retire_unused
    looking = with_location(at, lambda: FleetMonitoring(**times, alpha=said.alpha))
    retirement = with_location(
        at,
        lambda: RetirementPolicy(
            said.retire_after_versions,
            None if unused is None else read_quantity(unused, "time", at / "retire_unused"),
        ),
    )
    alerts = read_table_list(tables.get("alert", []), whole / "alert", _alert, of="name")
    actions = read_table_list(tables.get("action", []), whole / "action", _action, of="action")
    retraining = _retraining(tables["retraining"], whole / "retraining") if "retraining" in tables else None
    notices = _notices(tables.get("notify", {}), whole / "notify")
    return with_location(whole, lambda: FleetConfig(looking, alerts, actions, notices, retraining, retirement))


def _alert(table: object, place: TomlLocation) -> AlertRule:
    said = read_toml_table(table, _AlertText, place)
    for_seconds = 0.0 if said.for_duration is None else read_quantity(said.for_duration, "time", place / "for")
    return with_location(
        place,
        lambda: AlertRule(
            name=said.name,
            metric=said.metric,
            above=said.above,
            below=said.below,
            clear_at=said.clear_at,
            for_seconds=for_seconds,
            device_class=said.device_class,
            severity=said.severity,
            actions=said.actions,
        ),
    )


def _action(table: object, place: TomlLocation) -> ActionPolicy:
    said = read_toml_table(table, _ActionText, place)
    cooldown = read_quantity(said.cooldown, "time", place / "cooldown")
    return with_location(place, lambda: ActionPolicy(said.action, cooldown, said.max_per_day, said.needs_approval))


def _notices(table: object, place: TomlLocation) -> NotificationTargets:
    said = read_toml_table(table, _NotifyText, place)
    return NotificationTargets(
        read_table_list([] if said.webhook is None else said.webhook, place / "webhook", _webhook, of="url"),
        read_table_list([] if said.email is None else said.email, place / "email", _email),
    )


def _webhook(table: object, place: TomlLocation) -> WebhookTarget:
    found: WebhookTarget = read_toml_table(table, WebhookTarget, place)
    return found


def _email(table: object, place: TomlLocation) -> EmailTarget:
    found: EmailTarget = read_toml_table(table, EmailTarget, place)
    return found


def _retraining(table: object, place: TomlLocation) -> RetrainingConfig:
    said = read_toml_table(table, _RetrainingText, place)
    timeout = read_quantity(said.timeout, "time", place / "timeout")
    return with_location(place, lambda: RetrainingConfig(said.command, said.function, timeout))


def _checked_variable(what: str, name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise InputError(f"{what} is {name[:80]!r}", remedy="Name a variable of the environment.")
