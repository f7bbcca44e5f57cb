"""What people and their programs ask of the control plane, under /api/. All bodies are JSON."""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name
from edgewright.contract.query.query import QueryBackend
from edgewright.contract.rollout.plan import DeviceSelector, InstallHours, RolloutStage

__all__ = [
    "CreateEnrolmentTokens",
    "CreateQuery",
    "CreateToken",
    "CreateUser",
    "CreatedResource",
    "CreatedSecrets",
    "ReasonBody",
    "RequestedArm",
    "RolloutAction",
    "SetProfiling",
    "SilenceAlert",
    "StartRollout",
]

RolloutAction = Literal["advance", "pause", "resume", "abort"]
"""What a person may do with a rollout by hand."""

_MAX_SECONDS = 366 * 86400.0
_MAX_TEXT = 500


def _checked_time(what: str, seconds: float) -> None:
    if not (0 < seconds <= _MAX_SECONDS and math.isfinite(seconds)):
        raise InputError(f"{what} is {seconds:g} s", remedy=f"Give more than 0 and at most {_MAX_SECONDS:g} s.")


def _checked_text(what: str, text: str) -> None:
    if len(text) > _MAX_TEXT:
        raise InputError(f"{what} has {len(text)} letters", remedy=f"Write at most {_MAX_TEXT}.")


class RequestedArm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A release that a rollout brings.

    Attributes:
        version: Of the release.
        weight: Its share among the arms, in proportion.
    """

    version: str
    weight: float = 1.0


class StartRollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout that somebody wants to begin.

    Attributes:
        model: Which.
        device_class: Which.
        arms: Releases; several are an experiment.
        stages: In order of their fractions.
        selector: Which devices it is for.
        start_at: Not before, UTC, ISO 8601; "" for at once.
        end_at: Not after; "" for no end.
        min_battery_level: Least state of charge for an installation, 0 to 1.
        hours: When devices may install; None for at any time.
        shadow: Whether it only runs beside.
        replace: Whether it may take the place of one that is not at its end.
        force: Whether to begin though the fleet can never decide it.
    """

    model: str
    device_class: str
    arms: tuple[RequestedArm, ...]
    stages: tuple[RolloutStage, ...]
    selector: DeviceSelector = DeviceSelector()
    start_at: str = ""
    end_at: str = ""
    min_battery_level: float = 0.0
    hours: InstallHours | None = None
    shadow: bool = False
    replace: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse what names nothing."""
        checked_name("model", self.model)
        checked_name("device class", self.device_class)


class CreateQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question to the fleet, within what the offline keys permit.

    Attributes:
        id: Its name.
        template: Of the permit.
        version: Release that it is about.
        window_start: Of what is counted: a whole hour, UTC, ISO 8601.
        window_end: Of what is counted, likewise.
        deadline: No answer after; a day after the end if "".
        epsilon: That an answer may cost, when the others are honest.
        backend: Over which it is answered.
        min_cohort: Devices that must answer; the template's least if 0.
        max_cohort: Devices that may; a hundred times the cohort if 0.
        subgroup: Labels and values that they have.
    """

    id: str
    template: str
    version: str
    window_start: str
    window_end: str
    deadline: str = ""
    epsilon: float = 1.0
    backend: QueryBackend = "helper"
    min_cohort: int = 0
    max_cohort: int = 0
    subgroup: dict[str, str] = {}


class ReasonBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why something is done, for whoever reads the audit log.

    Attributes:
        reason: In words.
    """

    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse a novel."""
        _checked_text("the reason", self.reason)


class CreateEnrolmentTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token that one device may enrol with.

    Attributes:
        device_class: That it enrols into.
        labels: That it gives.
        channel: That it gives.
        profiling: Whether the device takes profiling jobs.
        lifetime_seconds: After which it is void.
        count: How many tokens.
    """

    device_class: str = "default"
    labels: dict[str, str] = {}
    channel: str = ""
    profiling: bool = False
    lifetime_seconds: float = 86400.0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no time or number."""
        _checked_time("lifetime_seconds", self.lifetime_seconds)
        if not 1 <= self.count <= 1000 or len(self.labels) > 64:
            raise InputError(
                f"{self.count} tokens with {len(self.labels)} labels", remedy="Ask for 1 to 1000, with 64 labels."
            )
        for name, value in self.labels.items():
            _checked_text(f"label {name[:80]!r}", value)


class SetProfiling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether a device takes profiling jobs.

    Attributes:
        profiling: Whether.
    """

    profiling: bool


class SilenceAlert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An alert that nobody is to be told of for a while.

    Attributes:
        rule: Its name.
        device_class: That it is about.
        for_seconds: How long; 0 for telling again.
        reason: For whoever looks later.
    """

    rule: str
    device_class: str = ""
    for_seconds: float = 3600.0
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        if self.for_seconds:
            _checked_time("for_seconds", self.for_seconds)
        _checked_text("the reason", self.reason)


class CreateToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token for a program.

    Attributes:
        name: For people.
        role: `viewer`, `operator` or `release manager`; none above the asker's own.
        lifetime_seconds: After which it is void.
    """

    name: str
    role: str = "viewer"
    lifetime_seconds: float = 90 * 86400.0

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        _checked_time("lifetime_seconds", self.lifetime_seconds)


class CreateUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who may log in.

    Attributes:
        name: By which they log in.
        role: `viewer`, `operator` or `release manager`.
        password: 12 letters or more.
    """

    name: str
    role: str
    password: str


class CreatedSecrets(msgspec.Struct, frozen=True):
    """Secrets that were made; they are shown this once.

    Attributes:
        secrets: Tokens.
    """

    secrets: tuple[str, ...]


class CreatedResource(msgspec.Struct, frozen=True):
    """Something that was made or changed.

    Attributes:
        id: Its name.
        notes: What whoever asked should know.
    """

    id: str
    notes: tuple[str, ...] = ()
