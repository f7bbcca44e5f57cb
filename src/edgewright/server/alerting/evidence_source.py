"""What the store and the repository hold, brought together for the pure judges of `fleet/`."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from edgewright.contract.alert import MetricReading
from edgewright.contract.errors import EdgewrightError
from edgewright.contract.query.query import Query
from edgewright.contract.schema import decode_record
from edgewright.fleet.cohort_drift import CohortSums, cohort_readings, disjoint_cohorts
from edgewright.fleet.health import CheckInTotals, DeviceGroup, HealthEvidence, SampledDevice
from edgewright.server.services import Services
from edgewright.server.store.records import DeviceGroupCount, StoredDevice, StoredQuery
from edgewright.trust.publishing.publish import list_releases
from edgewright.trust.publishing.signed_queries import reference_profile_of
from edgewright.trust.repository.repository import Repository

__all__ = ["HealthSource"]

_LOG = logging.getLogger("edgewright.watching")
_SAMPLE_SIZE = 1000
_HOUR_SECONDS = 3600.0
_SUMS_SECONDS, _SUMS_EVERY_SECONDS = 14 * 86400.0, 300.0
_SNAPSHOTS = 1000


@dataclass(slots=True)
class HealthSource:
    """Gathers, and remembers what does not change; nothing is lost with it.

    Attributes:
        services: Of the server.
    """

    services: Services
    _snapshots: dict[str, str] = field(default_factory=dict)
    _sums: list[MetricReading] = field(default_factory=list)
    _sums_checked_at: float = float("-inf")

    def evidence(self, now: float) -> HealthEvidence:
        """Return how devices are, by what they said by name."""
        store, looking = self.services.store, self.services.fleet_config.monitoring
        everyone = store.devices.groups()
        heard = store.devices.groups(seen_since=now - looking.offline_after_seconds)
        began = (now // _HOUR_SECONDS - 1) * _HOUR_SECONDS
        said = [
            CheckInTotals(
                each.device_class,
                each.version,
                each.arm,
                each.check_ins,
                each.with_failures,
                each.latency_count,
                each.latency_sum_seconds,
            )
            for each in store.check_ins.rollups(began, now + _HOUR_SECONDS)
        ]
        classes = sorted({group.device_class for group in heard})
        seen = [one for name in classes for one in self._sample(name, now)]
        return HealthEvidence(_device_groups(everyone, heard), said, seen, self._known_snapshots(), now)

    def sum_readings(self, now: float) -> list[MetricReading]:
        """Return what private sums say; they come seldom, so they are looked at seldom."""
        if now - self._sums_checked_at >= _SUMS_EVERY_SECONDS or now < self._sums_checked_at:
            self._sums = list(self._read_sums(self.services.store.queries.done_since(now - _SUMS_SECONDS)))
            self._sums_checked_at = now
        return self._sums

    def _sample(self, device_class: str, now: float) -> list[SampledDevice]:
        """Return devices of a class that are not offline: others each time, for their names are hashes."""
        looking, devices = self.services.fleet_config.monitoring, self.services.store.devices
        begin = hashlib.sha256(f"{device_class} {now // looking.evaluation_interval_seconds}".encode()).hexdigest()[
            :32
        ]
        try:
            found = devices.list_devices(after=begin, limit=_SAMPLE_SIZE, device_class=device_class)
            if left := _SAMPLE_SIZE - len(found):
                first = devices.list_devices(limit=left, device_class=device_class)
                found += [one for one in first if one.id <= begin]
        except EdgewrightError as error:  # a device of a later release: the others are counted all the same
            _LOG.warning("no devices of %s were looked at: %s", device_class, error.message)
            return []
        return [_sampled_device(one) for one in found if one.last_seen_at >= now - looking.offline_after_seconds]

    def _known_snapshots(self) -> frozenset[str]:
        """Return sha256 of the snapshots that the repository had; none if it cannot be read."""
        try:
            store = self.services.repository().store
            names = [name for name in store.names("metadata") if name.endswith(".snapshot.json")]
            for name in sorted(names, key=_number)[-_SNAPSHOTS:]:
                if name not in self._snapshots and (content := store.read(name)) is not None:
                    self._snapshots[name] = hashlib.sha256(content).hexdigest()
        except (EdgewrightError, OSError) as error:
            _LOG.warning("the repository cannot be read: %s", error)
            return frozenset()
        return frozenset(self._snapshots.values())

    def _read_sums(self, queries: Iterable[StoredQuery]) -> Iterable[MetricReading]:
        """Return readings of the newest sums of each class: of the template and release that were asked last."""
        groups: dict[tuple[str, str, str, str], list[tuple[StoredQuery, CohortSums]]] = {}
        for kept in queries:
            try:
                asked = decode_record(kept.body, type=Query)
                found = msgspec.json.decode(kept.result or b"", type=CohortSums)
            except msgspec.MsgspecError as error:
                _LOG.warning("the result of query %s cannot be read: %s", kept.id, error)
                continue
            key = (kept.device_class, kept.model, asked.template_digest, asked.release)
            groups.setdefault(key, []).append((kept, found))
        newest = {key[0]: key for key in sorted(groups, key=lambda key: groups[key][-1][0].ended_at or 0.0)}
        for device_class, model, template, release in newest.values():
            pairs = groups[device_class, model, template, release]
            at = max(kept.ended_at or 0.0 for kept, _ in pairs)
            try:
                repository = self.services.repository()
                version = _version_of(repository, model, release)
                profile = reference_profile_of(repository, model, version, device_class)
                cohorts = disjoint_cohorts([found for _, found in pairs])
                yield from cohort_readings(profile, cohorts, device_class=device_class, release=release, at=at)
            except (EdgewrightError, OSError) as error:
                _LOG.warning("sums over %s on %s cannot be judged: %s", model, device_class, error)


def _version_of(repository: Repository, model: str, release: str) -> str:
    """Return the version of a release, "" if it is not published."""
    return next((version for version, digest in list_releases(repository, model) if digest == release), "0")


def _device_groups(
    everyone: Iterable[DeviceGroupCount], recent_devices: Iterable[DeviceGroupCount]
) -> list[DeviceGroup]:
    def key(group: DeviceGroupCount) -> tuple[str, str, str, str]:
        return group.device_class, group.version, group.arm, group.refusal

    counts: dict[tuple[str, str, str, str], list[int]] = {}
    for number, groups in enumerate((everyone, recent_devices)):
        for group in groups:
            counts.setdefault(key(group), [0, 0])[number] += group.devices
    # A device that checked in between the two counts is in the second alone.
    return [DeviceGroup(*each, max(devices, live), live) for each, (devices, live) in sorted(counts.items())]


def _sampled_device(device: StoredDevice) -> SampledDevice:
    return SampledDevice(device.device_class, device.status.version, device.arm, device.status)


def _number(name: str) -> int:
    digits = name.rpartition("/")[2].partition(".")[0]
    return int(digits) if digits.isdigit() else 0
