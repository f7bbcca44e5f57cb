"""What the project file says of a running fleet: how evidence is counted, when people are told, what follows."""

import math

import msgspec

from edgewright.contract.alert import ActionPolicy, AlertRule
from edgewright.contract.errors import InputError

__all__ = ["Fleet", "Looking", "Mail", "Notices", "Retraining", "WebhookTarget"]


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
    tls: str = "starttls"


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


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it.

    Attributes:
        looking: How it is counted.
        alerts: When people are told.
        actions: What may follow by itself.
        notices: Who is told.
        retraining: What retraining is, None if there is none.
    """

    looking: Looking = Looking()
    alerts: tuple[AlertRule, ...] = ()
    actions: tuple[ActionPolicy, ...] = ()
    notices: Notices = Notices()
    retraining: Retraining | None = None
