"""What a device says by name: how it is and what it runs, and nothing that comes from its inputs.

How often its guard rejected, how sure it was and whether its inputs drift are only ever summed (`query.py`).
"""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_digest, checked_name, checked_version
from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import METRICS
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.contract.timestamps import checked_time

__all__ = ["StageOutcome", "Status", "UpdateState"]

# As `device/update/state_machine.py` names them; a test compares.
UpdateState = Literal["empty", "idle", "waiting", "fetching", "staged", "testing", "probation"]

_LONGEST_REASON = 500
_MOST_FAILED = 32
_MOST_COUNT = 1 << 53
# A lifetime: what adds such numbers up must not run over.
_MOST_SECONDS = 1e10


class Status(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device is.

    Attributes:
        model: That it runs, "" for none; and likewise below.
        version: Of the release that serves.
        digest: sha256 of that release's manifest.
        state: Of its update.
        proven: Version in the proven slot.
        trial: Version in the slot on trial.
        previous: Version that it could go back to.
        wanted: Version that it is getting.
        refusal: What it refused last, since the last success.
        notice: What serves though the offline keys would not have it installed any more.
        failed: sha256 of the manifests of releases that failed on it.
        broken: sha256 of the manifests of releases whose bytes are broken on it.
        restart_needed: Whether its platform must restart before the trial.
        failures: Inferences that failed for the model's sake since it was started.
        latency_s: Median of an inference, as measured there.
        uptime_s: Since the agent was started.
        free_bytes: On the disk that holds its state.
        battery: State of charge, 0 to 1; None on mains.
        agent: Version of Edgewright.
        snapshot: sha256 of the snapshot that it acted on last; two for one version are an alarm.
        checked: When it last believed what the repository said, UTC, ISO 8601.
    """

    model: str = ""
    version: str = ""
    digest: str = ""
    state: UpdateState = "empty"
    proven: str = ""
    trial: str = ""
    previous: str = ""
    wanted: str = ""
    refusal: Refusal | None = None
    notice: Refusal | None = None
    failed: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    restart_needed: bool = False
    failures: int = 0
    latency_s: float | None = None
    uptime_s: float | None = None
    free_bytes: int | None = None
    battery: float | None = None
    agent: str = ""
    snapshot: str = ""
    checked: str = ""
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse what no device could say."""
        if self.model:
            checked_name("model", self.model)
        for version in (self.version, self.proven, self.trial, self.previous, self.wanted):
            if version:
                checked_version(version)
        for what, digest in (("manifest", self.digest), ("snapshot", self.snapshot)):
            if digest:
                checked_digest(what, digest)
        for digest in (*self.failed, *self.broken):
            checked_digest("manifest", digest)
        if self.agent:
            checked_name("agent", self.agent)
        checked_time("checked", self.checked)
        _checked_number("failures", self.failures, _MOST_COUNT)
        _checked_number("free_bytes", self.free_bytes, _MOST_COUNT)
        _checked_number("latency_s", self.latency_s, _MOST_SECONDS)
        _checked_number("uptime_s", self.uptime_s, _MOST_SECONDS)
        _checked_number("battery", self.battery, 1)
        long = max((len(said.file) + len(said.reason) for said in (self.refusal, self.notice) if said), default=0)
        if long > _LONGEST_REASON or max(len(self.failed), len(self.broken)) > _MOST_FAILED:
            raise InputError(
                f"a reason of {long} letters, {len(self.failed)} failed and {len(self.broken)} broken releases",
                remedy=f"Say at most {_LONGEST_REASON} letters and the newest {_MOST_FAILED} releases.",
            )


class StageOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device fared in one stage of a rollout: one answer, bounded, that is never changed.

    Attributes:
        rollout: Its name.
        stage: Of the rollout, counted from 0.
        arm: Version that the device was assigned, "" for what it had before: the control and the holdback.
        failed: Metrics in which it failed, in order; none if it did well.
        latency_s: Median of an inference in the stage.
        age_s: How long ago the device first saw the rollout at this stage. What it says counts from a certain age
            on, the same for all devices, and whatever it says later changes nothing.
    """

    rollout: str
    stage: int
    arm: str = ""
    failed: tuple[str, ...] = ()
    latency_s: float | None = None
    age_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no outcome."""
        checked_name("rollout", self.rollout)
        if self.arm:
            checked_version(self.arm)
        _checked_number("stage", self.stage, 1000)
        _checked_number("latency_s", self.latency_s, _MOST_SECONDS)
        _checked_number("age_s", self.age_s, math.inf)
        if list(self.failed) != sorted(set(self.failed)) or len(self.failed) > _MOST_FAILED:
            raise InputError(
                f"{len(self.failed)} failed metrics, not each once and in order",
                remedy=f"Name at most {_MOST_FAILED}, each once, in alphabetical order.",
            )
        for metric in self.failed:
            if metric not in METRICS:
                kind, _, name = metric.partition(":")
                if kind != "outcome":
                    raise InputError(
                        f"there is no metric {metric[:80]!r}", remedy=f"Use {', '.join(METRICS)} or outcome:NAME."
                    )
                checked_name("outcome", name)


def _checked_number(what: str, value: float | None, most: float) -> None:
    """Refuse what is no finite number from 0 to `most`; None is none."""
    if value is not None and not (0 <= value <= most and math.isfinite(value)):
        raise InputError(f"{what} is {value:g}", remedy=f"It is a number from 0 to {most:g}, or left out.")
