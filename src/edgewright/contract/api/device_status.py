"""What a device says by name: how it is and what it runs, and nothing that comes from its inputs.

How often its guard rejected, how sure it was and whether its inputs drift are only ever summed (`query.py`).
"""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_digest, checked_name, checked_version
from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import HEALTH_EVENTS
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.contract.timestamps import checked_iso8601

__all__ = ["DeviceStatus", "StageOutcome", "UpdateState"]

# As `device/update/state_machine.py` names them; a test compares.
UpdateState = Literal["empty", "idle", "waiting", "fetching", "staged", "testing", "probation"]

_MAX_REASON = 500
_MAX_FAILED = 32
_MAX_COUNT = 1 << 53
# A lifetime: what adds such numbers up must not run over.
_MAX_SECONDS = 1e10


class DeviceStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device is.

    Attributes:
        model: That it runs, "" for none; and likewise below.
        version: Of the release that serves.
        digest: sha256 of that release's manifest.
        state: Of its update.
        proven: Version in the proven slot.
        trial: Version in the slot on trial.
        previous: Version that it could go back to.
        target: Version that it is getting.
        refusal: What it refused last, since the last success.
        notice: What serves though the offline keys would not have it installed any more.
        failed_releases: sha256 of the manifests of releases that failed on it.
        corrupt_releases: sha256 of the manifests of releases whose bytes are broken on it.
        restart_needed: Whether its platform must restart before the trial.
        failed_inferences: Inferences that failed for the model's sake since it was started.
        latency_seconds: Median of an inference, as measured there.
        uptime_seconds: Since the agent was started.
        free_bytes: On the disk that holds its state.
        battery_level: State of charge, 0 to 1; None on mains.
        agent_version: Version of Edgewright.
        snapshot_digest: sha256 of the snapshot that it acted on last; two for one version are an alarm.
        metadata_checked_at: When it last believed what the repository said, UTC, ISO 8601.
    """

    model: str = ""
    version: str = ""
    digest: str = ""
    state: UpdateState = "empty"
    proven: str = ""
    trial: str = ""
    previous: str = ""
    target: str = ""
    refusal: Refusal | None = None
    notice: Refusal | None = None
    failed_releases: tuple[str, ...] = ()
    corrupt_releases: tuple[str, ...] = ()
    restart_needed: bool = False
    failed_inferences: int = 0
    latency_seconds: float | None = None
    uptime_seconds: float | None = None
    free_bytes: int | None = None
    battery_level: float | None = None
    agent_version: str = ""
    snapshot_digest: str = ""
    metadata_checked_at: str = ""
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse what no device could say."""
        if self.model:
            checked_name("model", self.model)
        for version in (self.version, self.proven, self.trial, self.previous, self.target):
            if version:
                checked_version(version)
        for what, digest in (("manifest", self.digest), ("snapshot", self.snapshot_digest)):
            if digest:
                checked_digest(what, digest)
        for digest in (*self.failed_releases, *self.corrupt_releases):
            checked_digest("manifest", digest)
        if self.agent_version:
            checked_name("agent", self.agent_version)
        checked_iso8601("metadata_checked_at", self.metadata_checked_at)
        _checked_number("failed_inferences", self.failed_inferences, _MAX_COUNT)
        _checked_number("free_bytes", self.free_bytes, _MAX_COUNT)
        _checked_number("latency_seconds", self.latency_seconds, _MAX_SECONDS)
        _checked_number("uptime_seconds", self.uptime_seconds, _MAX_SECONDS)
        _checked_number("battery_level", self.battery_level, 1)
        long = max((len(said.file) + len(said.reason) for said in (self.refusal, self.notice) if said), default=0)
        if long > _MAX_REASON or max(len(self.failed_releases), len(self.corrupt_releases)) > _MAX_FAILED:
            raise InputError(
                f"a reason of {long} letters, {len(self.failed_releases)} failed and "
                f"{len(self.corrupt_releases)} broken releases",
                remedy=f"Say at most {_MAX_REASON} letters and the newest {_MAX_FAILED} releases.",
            )


class StageOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device fared in one stage of a rollout: one answer, bounded, that is never changed.

    Attributes:
        rollout: Its name.
        stage: Of the rollout, counted from 0.
        arm: Version that the device was assigned, "" for what it had before: the control and the holdback.
        failed_metrics: Metrics in which it failed, in order; none if it did well.
        latency_seconds: Median of an inference in the stage.
        age_seconds: How long ago the device first saw the rollout at this stage. What it says counts from a certain age
            on, the same for all devices, and whatever it says later changes nothing.
    """

    rollout: str
    stage: int
    arm: str = ""
    failed_metrics: tuple[str, ...] = ()
    latency_seconds: float | None = None
    age_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no outcome."""
        checked_name("rollout", self.rollout)
        if self.arm:
            checked_version(self.arm)
        _checked_number("stage", self.stage, 1000)
        _checked_number("latency_seconds", self.latency_seconds, _MAX_SECONDS)
        _checked_number("age_seconds", self.age_seconds, math.inf)
        if list(self.failed_metrics) != sorted(set(self.failed_metrics)) or len(self.failed_metrics) > _MAX_FAILED:
            raise InputError(
                f"{len(self.failed_metrics)} failed metrics, not each once and in order",
                remedy=f"Name at most {_MAX_FAILED}, each once, in alphabetical order.",
            )
        for metric in self.failed_metrics:
            if metric not in HEALTH_EVENTS:
                kind, _, name = metric.partition(":")
                if kind != "outcome":
                    raise InputError(
                        f"there is no metric {metric[:80]!r}",
                        remedy=f"Use {', '.join(HEALTH_EVENTS)} or outcome:NAME.",
                    )
                checked_name("outcome", name)


def _checked_number(what: str, value: float | None, most: float) -> None:
    """Refuse what is no finite number from 0 to `most`; None is none."""
    if value is not None and not (0 <= value <= most and math.isfinite(value)):
        raise InputError(f"{what} is {value:g}", remedy=f"It is a number from 0 to {most:g}, or left out.")
