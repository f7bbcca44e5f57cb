"""Devices: invited by a token that is kept as its hash, enrolled once, retired, listed and counted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.names import checked_name
from edgewright.contract.schema import decode_record
from edgewright.server.access_control import new_secret, secret_hash
from edgewright.server.store.database import Database
from edgewright.server.store.records import DeviceGroupCount, EnrolmentToken, RolloutCandidate, StoredDevice
from edgewright.server.store.tables import device_labels, devices, enrolment_tokens, statuses
from edgewright.trust.keys.device_identity import AuthenticationError, device_id_of

__all__ = ["DeviceCredentials", "DeviceStore"]

_PAGE = 1000
# For the hot path: one statement, however many devices are asked for.
_KNOWN_SQLITE = """
SELECT id, public_key, device_class, profiling FROM devices
WHERE retired_at IS NULL AND id IN (SELECT value FROM json_each(?))
"""
_KNOWN_POSTGRES = """
SELECT id, public_key, device_class, profiling FROM devices WHERE retired_at IS NULL AND id = ANY(%b::text[])
"""
_CANDIDATES = 2000
_DEVICE = (devices, statuses.c.last_seen_at, statuses.c.arm, statuses.c.body)


@dataclass(frozen=True, slots=True)
class DeviceCredentials:
    """What it takes to believe a device's requests.

    Attributes:
        id: Its name.
        public_key: Its Ed25519 key, 32 bytes.
        device_class: Its own.
        profiling: Whether it takes profiling jobs.
    """

    id: str
    public_key: bytes
    device_class: str
    profiling: bool


@dataclass(frozen=True, slots=True)
class DeviceStore:
    """The devices of a fleet.

    Attributes:
        database: That holds them.
    """

    database: Database

    def create_enrolment_token(
        self,
        device_class: str,
        *,
        created_by: str,
        now: float,
        lifetime_seconds: float,
        labels: Mapping[str, str] | None = None,
        channel: str = "",
        profiling: bool = False,
    ) -> str:
        """Return a token that enrols one device; only its hash is kept.

        Raises:
            InputError: A class, a label or a channel is no name.
        """
        checked_name("device class", device_class)
        for name in (*(labels or {}), *([channel] if channel else [])):
            checked_name("label or channel", name)
        token = new_secret("invitation")
        row = {
            "hash": secret_hash(token),
            "device_class": device_class,
            "channel": channel,
            "labels": msgspec.json.encode(dict(labels or {})),
            "profiling": profiling,
            "created_by": created_by,
            "created_at": now,
            "expires_at": now + lifetime_seconds,
        }
        self.database.write(
            lambda connection: (
                connection.execute(
                    select(enrolment_tokens.c.hash).where(enrolment_tokens.c.hash == row["hash"])
                ).first()
                or connection.execute(insert(enrolment_tokens).values(row))
            )
        )
        return token

    def open_enrolment_tokens(self, *, now: float) -> list[EnrolmentToken]:
        """Return who may still enrol, the newest first."""
        query = (
            select(enrolment_tokens)
            .where(enrolment_tokens.c.last_used_at.is_(None), enrolment_tokens.c.expires_at > now)
            .order_by(enrolment_tokens.c.created_at.desc())
        )
        return self.database.read(lambda connection: [_invited(row) for row in connection.execute(query)])

    def enrol(self, token: str, public_key: bytes, *, now: float) -> StoredDevice:
        """Enrol a device; the token is used up. The same device may say the same again, should the answer be lost.

        Raises:
            UnknownError: The token is none, void, or another device's, or the device was retired.
        """
        key = secret_hash(token)
        device_id = device_id_of(public_key)

        def run(connection: Connection) -> StoredDevice:
            # Of two devices with one token the first to write here has it; the other then sees it as used.
            taken = connection.execute(
                update(enrolment_tokens)
                .where(
                    enrolment_tokens.c.hash == key,
                    enrolment_tokens.c.last_used_at.is_(None),
                    enrolment_tokens.c.expires_at > now,
                )
                .values(device_id=device_id, last_used_at=now)
            ).rowcount
            row = connection.execute(select(enrolment_tokens).where(enrolment_tokens.c.hash == key)).first()
            if row is None:
                raise AuthenticationError("the token is none of this fleet", remedy="Ask for a new one.")
            if row.last_used_at is None:
                raise AuthenticationError("the token is void", remedy="Ask for a new one.")
            if row.device_id != device_id:
                raise AuthenticationError(
                    "the token was used already",
                    remedy="Ask for a new one; if nobody used it, somebody has copied it.",
                )
            if taken:
                _enter(connection, device_id, public_key, _invited(row), now)
            found = connection.execute(_one(device_id)).first()
            if found is None or found.retired_at is not None:
                raise AuthenticationError("the device was retired", remedy="Have it make a new key.")
            return _device(found)

        return self.database.write(run)

    def get(self, device_id: str) -> StoredDevice | None:
        """Return a device, None if it was never enrolled."""
        row = self.database.read(lambda connection: connection.execute(_one(device_id)).first())
        return None if row is None else _device(row)

    def credentials(self, device_ids: Sequence[str]) -> dict[str, DeviceCredentials]:
        """Return those that are enrolled and not retired, by name."""

        def run(connection: Connection) -> dict[str, DeviceCredentials]:
            if connection.dialect.name == "sqlite":
                found = connection.exec_driver_sql(_KNOWN_SQLITE, (msgspec.json.encode(device_ids).decode(),))
            else:
                found = connection.exec_driver_sql(_KNOWN_POSTGRES, (list(device_ids),))
            return {row[0]: DeviceCredentials(row[0], bytes(row[1]), row[2], bool(row[3])) for row in found}

        return self.database.read(run)

    def public_keys(self, device_class: str) -> frozenset[bytes]:
        """Return the keys of all devices of a class that are not retired."""
        query = select(devices.c.public_key).where(
            devices.c.device_class == device_class, devices.c.retired_at.is_(None)
        )
        return self.database.read(lambda connection: frozenset(connection.execute(query).scalars()))

    def retire(self, device_id: str, *, now: float) -> None:
        """Believe a device no more; what it said stays.

        Raises:
            UnknownError: There is none of that name.
        """
        change = (
            update(devices)
            .where(devices.c.id == device_id)
            .values(retired_at=func.coalesce(devices.c.retired_at, now))
        )
        if not self.database.write(lambda connection: connection.execute(change).rowcount):
            raise AuthenticationError(f"there is no device {device_id[:80]!r}", remedy="List the devices.")

    def set_profiling(self, device_id: str, *, profiling: bool) -> None:
        """Say whether a device takes profiling jobs.

        Raises:
            UnknownError: There is none of that name.
        """
        change = update(devices).where(devices.c.id == device_id).values(profiling=profiling)
        if not self.database.write(lambda connection: connection.execute(change).rowcount):
            raise AuthenticationError(f"there is no device {device_id[:80]!r}", remedy="List the devices.")

    def list_devices(
        self,
        *,
        after: str = "",
        limit: int = 100,
        device_class: str = "",
        version: str | None = None,
        labels: Mapping[str, str] | None = None,
        offline_since: float | None = None,
        profiling: bool | None = None,
        retired: bool = False,
    ) -> list[StoredDevice]:
        """Return devices in order of their names.

        Args:
            after: Name of the last device of the page before.
            limit: Most that are returned, at most 1,000.
            device_class: Only of that class; "" for all.
            version: Only those that run it; "" for those that run nothing.
            labels: Only those that have all of these.
            offline_since: Only those that did not check in since then.
            profiling: Only bench devices, or only others.
            retired: Retired ones instead of the others.
        """
        chosen = [devices.c.id > after, devices.c.retired_at.is_not(None) == retired]
        if device_class:
            chosen.append(devices.c.device_class == device_class)
        if version is not None:
            chosen.append(statuses.c.version == version)
        if offline_since is not None:
            chosen.append(statuses.c.last_seen_at < offline_since)
        if profiling is not None:
            chosen.append(devices.c.profiling == profiling)
        chosen += [
            devices.c.id.in_(
                select(device_labels.c.device_id).where(
                    device_labels.c.name == name, device_labels.c.value == value
                )
            )
            for name, value in (labels or {}).items()
        ]
        query = _all().where(*chosen).order_by(devices.c.id).limit(min(limit, _PAGE))
        return self.database.read(lambda connection: [_device(row) for row in connection.execute(query)])

    def iterate(self, device_class: str = "") -> Iterator[StoredDevice]:
        """Return all that are not retired, page by page: those that enrol meanwhile may be among them or not."""
        page = self.list_devices(limit=_PAGE, device_class=device_class)
        while page:
            yield from page
            page = self.list_devices(after=page[-1].id, limit=_PAGE, device_class=device_class)

    def candidates(self, device_class: str) -> Iterator[list[RolloutCandidate]]:
        """Return what rollouts ask of a class's devices that are not retired, in pages, by their names."""
        after = ""
        decoder = msgspec.json.Decoder(_Slots)
        labels = msgspec.json.Decoder(dict[str, str])
        of = select(
            devices.c.id,
            devices.c.labels,
            devices.c.channel,
            devices.c.enrolled_at,
            statuses.c.last_seen_at,
            statuses.c.body,
        ).join(statuses, statuses.c.device_id == devices.c.id)
        while True:
            query = (
                of.where(
                    devices.c.device_class == device_class, devices.c.id > after, devices.c.retired_at.is_(None)
                )
                .order_by(devices.c.id)
                .limit(_CANDIDATES)
            )
            rows = self.database.read(partial(_rows, query))
            if not rows:
                return
            page = []
            for name, labelled, channel, enrolled_at, last_seen_at, body in rows:
                slots = decoder.decode(body)
                page.append(
                    RolloutCandidate(
                        id=name,
                        labels=labels.decode(labelled),
                        channel=channel,
                        enrolled_at=enrolled_at,
                        last_seen_at=last_seen_at,
                        model=slots.model,
                        proven=slots.proven,
                        previous=slots.previous,
                    )
                )
            yield page
            after = page[-1].id

    def last_check_in_at(self) -> float:
        """Return when any device checked in last, 0 for never."""
        query = select(func.max(statuses.c.last_seen_at))
        return self.database.read(lambda connection: connection.execute(query).scalar()) or 0.0

    def label_counts(self, device_class: str, label: str) -> dict[str, int]:
        """Return how many devices of a class, not retired, have each value of a label."""
        query = (
            select(device_labels.c.value, func.count())
            .join(devices, devices.c.id == device_labels.c.device_id)
            .where(
                device_labels.c.name == label,
                devices.c.device_class == device_class,
                devices.c.retired_at.is_(None),
            )
            .group_by(device_labels.c.value)
            .order_by(device_labels.c.value)
        )
        return self.database.read(lambda connection: {row[0]: row[1] for row in connection.execute(query)})

    def groups(self, *, seen_since: float = 0.0) -> list[DeviceGroupCount]:
        """Return how many devices are alike, of those that checked in since then and are not retired."""
        alike = (
            devices.c.device_class,
            statuses.c.model,
            statuses.c.version,
            statuses.c.arm,
            statuses.c.state,
            statuses.c.refusal,
        )
        query = (
            select(*alike, func.count().label("devices"))
            .join(devices, devices.c.id == statuses.c.device_id)
            .where(statuses.c.last_seen_at >= seen_since, devices.c.retired_at.is_(None))
            .group_by(*alike)
            .order_by(*alike)
        )
        return self.database.read(
            lambda connection: [DeviceGroupCount(**row) for row in connection.execute(query).mappings()]
        )


class _Slots(msgspec.Struct):
    """The little of a status that rollouts ask for; the rest is passed over."""

    model: str = ""
    proven: str = ""
    previous: str = ""


def _rows(query: Select[Any], connection: Connection) -> Sequence[Any]:
    return connection.execute(query).all()


def _enter(connection: Connection, device_id: str, public: bytes, invited: EnrolmentToken, now: float) -> None:
    row = {
        "device_class": invited.device_class,
        "channel": invited.channel,
        "labels": msgspec.json.encode(invited.labels),
        "profiling": invited.profiling,
        "enrolled_at": now,
    }
    if not connection.execute(update(devices).where(devices.c.id == device_id).values(row)).rowcount:
        connection.execute(insert(devices).values(id=device_id, public_key=public, **row))
        nothing = {"model": "", "version": "", "digest": "", "arm": "", "refusal": "", "state": "empty"}
        connection.execute(
            insert(statuses).values(
                device_id=device_id, last_seen_at=0.0, body=msgspec.json.encode(DeviceStatus()), **nothing
            )
        )
    connection.execute(delete(device_labels).where(device_labels.c.device_id == device_id))
    if invited.labels:
        connection.execute(
            insert(device_labels),
            [{"device_id": device_id, "name": name, "value": value} for name, value in invited.labels.items()],
        )


def _all() -> Select[Any]:
    return select(*_DEVICE).join(statuses, statuses.c.device_id == devices.c.id)


def _one(device_id: str) -> Select[Any]:
    return _all().where(devices.c.id == device_id)


def _device(row: Row[Any]) -> StoredDevice:
    try:
        status = decode_record(row.body, type=DeviceStatus)
    except (msgspec.MsgspecError, InputError) as error:
        raise WorkError(
            f"what device {row.id} said last cannot be read: {error}", remedy="Wait until it checks in again."
        ) from error
    return StoredDevice(
        id=row.id,
        public_key=row.public_key,
        device_class=row.device_class,
        enrolled_at=row.enrolled_at,
        labels=msgspec.json.decode(row.labels, type=dict[str, str]),
        channel=row.channel,
        profiling=row.profiling,
        last_seen_at=row.last_seen_at,
        arm=row.arm,
        status=status,
        retired_at=row.retired_at,
    )


def _invited(row: Row[Any]) -> EnrolmentToken:
    return EnrolmentToken(
        device_class=row.device_class,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        labels=msgspec.json.decode(row.labels, type=dict[str, str]),
        channel=row.channel,
        profiling=row.profiling,
        device_id=row.device_id or "",
    )
