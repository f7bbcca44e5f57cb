"""A repository as its publishers see it: what is there is verified before anything is signed on top of it.

Whoever can write to the store could plant a release, or a whole repository of his own, and wait for an honest
publisher to sign it with the next change. So the chain of roots begins with one that the publisher keeps beside his
keys, and every piece of metadata is believed only as a device would believe it, its age aside.

Layout: `metadata/` as TUF has it, with versions in the names; `targets/` manifests, policies and plans; `blobs/`
what they name by digest; `cards/` releases told to people; `staged.json` what waits for signatures; `lock.json` who
is publishing.
"""

import datetime
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, SuccinctRoles, TargetFile, Targets, Timestamp

from edgewright.contract.errors import WorkError
from edgewright.trust.repository.metadata_rules import BIN_PREFIX, BINS, LIFETIMES, metadata_faults
from edgewright.trust.storage.storage import AlreadyExistsError, Storage

__all__ = ["Repository", "TrustError", "target_name", "utc_now"]

_LOCK = "lock.json"


class TrustError(WorkError):
    """Signed metadata is missing, damaged, or not signed by enough of the keys that count."""

    code = "untrusted_metadata"


def utc_now() -> datetime.datetime:
    """Return the time, to the second, as metadata holds it."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


@dataclass(slots=True)
class Repository:
    """A repository, as of its last timestamp.

    Attributes:
        store: Where it lies.
        trusted_root: A root that its publisher believes.
        now: The clock.
        accept_former_root: Whether what the keys of the root before the newest one signed is believed: a change of
            keys was broken off between the two, and a person wants it finished.
        root: The newest, verified from the anchor on.
        timestamp: Verified; None in a repository that was never completed.
        snapshot: Verified.
    """

    store: Storage
    trusted_root: bytes
    now: Callable[[], datetime.datetime] = utc_now
    accept_former_root: bool = False
    root: Metadata[Root] = field(init=False)
    timestamp: Metadata[Timestamp] | None = field(init=False, default=None)
    snapshot: Metadata[Snapshot] | None = field(init=False, default=None)
    _former: Metadata[Root] = field(init=False)
    _read: dict[str, Metadata[Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Read what is there."""
        self.reopen()

    def reopen(self) -> None:
        """Read and verify the chain of roots, the timestamp and the snapshot.

        Raises:
            TrustError: Something is missing or not signed as it must be.
        """
        self._former, self.root = self._newest_roots()
        self._read = {}
        stamp = self.store.read("metadata/timestamp.json")
        if stamp is None:
            return
        root = self.root.signed
        try:
            self.timestamp = self._verified(Timestamp.type, stamp, root)
        except TrustError:
            if not self.accept_former_root:
                raise
            root = self._former.signed
            self.timestamp = self._verified(Timestamp.type, stamp, root)
        meta = self.timestamp.signed.snapshot_meta
        self.snapshot = self._verified(Snapshot.type, self._versioned(Snapshot.type, meta), root)

    def role(self, name: str) -> Metadata[Targets] | None:
        """Return the metadata of `targets` or of a role that it delegates to, None if there is none yet.

        Raises:
            TrustError: It is not what the snapshot says, or not signed as it must be.
        """
        if name in self._read or self.snapshot is None:
            return self._read.get(name)
        meta = self.snapshot.signed.meta.get(f"{name}.json")
        if meta is None:
            return None
        content = self._versioned(name, meta)
        try:
            found = self._verified(name, content, self.delegator(name))
        except TrustError:
            if not self.accept_former_root or name != Targets.type:
                raise
            found = self._verified(name, content, self._former.signed)
        self._read[name] = found
        return found

    def delegator(self, name: str) -> Root | Targets:
        """Return who says whose signatures count for a role.

        Raises:
            TrustError: The delegation is missing.
        """
        if name in (Root.type, Timestamp.type, Snapshot.type, Targets.type):
            return self.root.signed
        parent = self.role(BINS if name.startswith(f"{BIN_PREFIX}-") else Targets.type)
        if parent is None:
            raise TrustError(
                f"nobody delegates to {name}", remedy="Make the repository with 'edgewright keys init'."
            )
        return parent.signed

    def parse(self, name: str, content: bytes) -> Metadata[Any]:
        """Return metadata whose signatures are still to be checked.

        Raises:
            TrustError: It is none, or of another type.
        """
        return _parsed(name, content)

    def bin_of(self, path: str) -> str:
        """Return the role that holds a release's or policy's path."""
        spread = self.bin_delegations()
        if spread is None:
            raise TrustError("the repository has no bins", remedy="Make it with 'edgewright keys init'.")
        return spread.get_role_for_target(path)

    def bin_delegations(self) -> SuccinctRoles | None:
        """Return over which roles releases and policies are spread, None if there are none yet."""
        bins = self.role(BINS)
        return None if bins is None or bins.signed.delegations is None else bins.signed.delegations.succinct_roles

    def target(self, role: str, path: str) -> TargetFile | None:
        """Return what a role says of a path, None if nothing."""
        metadata = self.role(role)
        return None if metadata is None else metadata.signed.targets.get(path)

    def read_target(self, role: str, path: str) -> bytes | None:
        """Return the verified bytes of a path, None if the role names none.

        Raises:
            TrustError: The bytes are missing or others.
        """
        target = self.target(role, path)
        if target is None:
            return None
        content = self.store.read(target_name(path, target))
        if content is None:
            raise TrustError(
                f"{path} is signed and its bytes are missing", remedy="Restore the repository from a copy."
            )
        _check_digest(path, content, target)
        return content

    def next_version(self, role: str) -> int:
        """Return a version that no metadata of a role has, complete or left over by a killed publisher."""
        versions = [0]
        for name in self.store.names("metadata"):
            number, _, rest = name.removeprefix("metadata/").partition(".")
            if rest == f"{role}.json" and number.isdigit():
                versions.append(int(number))
        return max(versions) + 1

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository's lock, and read what is there now: another publisher may have been there before.

        Raises:
            WorkError: Another publisher holds it.
            TrustError: What is there is not to be believed.
        """
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": self.now().isoformat()}
        try:
            self.store.create(_LOCK, json.dumps(holder).encode())
        except AlreadyExistsError:
            other = json.loads(self.store.read(_LOCK) or b"{}")
            raise WorkError(
                f"{other.get('host', 'somebody')} has been publishing here since {other.get('since', 'just now')} "
                f"(process {other.get('process', '?')})",
                remedy="Wait for it. If it was killed, remove the lock with 'edgewright repo unlock'.",
            ) from None
        try:
            self.reopen()
            yield
        finally:
            self.store.delete(_LOCK)

    def lock_holder(self) -> dict[str, Any] | None:
        """Return who is publishing: `host`, `process` and since when; None if nobody is."""
        content = self.store.read(_LOCK)
        try:
            found = {} if content is None else json.loads(content)
        except ValueError:
            found = {}
        return None if content is None else found if isinstance(found, dict) else {}

    def unlock(self) -> None:
        """Remove the lock of a publisher that is gone."""
        self.store.delete(_LOCK)

    def commit(
        self,
        changed: Mapping[str, Metadata[Targets]],
        signers: Mapping[str, Sequence[CryptoSigner]],
        *,
        root: Metadata[Root] | None = None,
    ) -> None:
        """Make signed metadata the repository's, in an order in which no reader sees what is not there yet.

        Args:
            changed: By role, each signed by enough keys; none for a mere renewal.
            signers: Of `snapshot` and `timestamp`.
            root: A new one; it appears just before the timestamp that its keys signed.

        Raises:
            TrustError: Something is not signed by enough keys.
            ExistsError: Another publisher was faster.
        """
        meta = {} if self.snapshot is None else dict(self.snapshot.signed.meta)
        everything = self._roles_with_changed_keys(changed, root, meta) | dict(changed)
        wrong = self.faults(changed if root is None else {Root.type: root, **changed})
        if wrong:
            raise TrustError("; ".join(wrong), remedy="Discard what is staged: 'edgewright repo discard'.")
        if root is not None:
            _verify(Root.type, root, self.root.signed)
            _verify(Root.type, root, root.signed)
            self.root = root
        for name, metadata in everything.items():
            parent = self.delegating_role(name)
            _verify(name, metadata, changed[parent].signed if parent in changed else self.delegator(name))
        for name, metadata in changed.items():
            self._put(f"metadata/{metadata.signed.version}.{name}.json", metadata.to_bytes())
            meta[f"{name}.json"] = MetaFile(metadata.signed.version)
        now = self.now()
        snapshot = Metadata(
            Snapshot(version=self.next_version(Snapshot.type), expires=now + LIFETIMES[Snapshot.type], meta=meta)
        )
        _signed(snapshot, signers[Snapshot.type])
        _verify(Snapshot.type, snapshot, self.root.signed)
        content = snapshot.to_bytes()
        self.store.create(f"metadata/{snapshot.signed.version}.snapshot.json", content)
        before = 0 if self.timestamp is None else self.timestamp.signed.version
        timestamp = Metadata(
            Timestamp(
                version=before + 1,
                expires=now + LIFETIMES[Timestamp.type],
                snapshot_meta=MetaFile(
                    snapshot.signed.version, len(content), {"sha256": hashlib.sha256(content).hexdigest()}
                ),
                unrecognized_fields={"issued": now.isoformat()},
            )
        )
        _signed(timestamp, signers[Timestamp.type])
        _verify(Timestamp.type, timestamp, self.root.signed)
        if root is not None:
            self._put(f"metadata/{root.signed.version}.root.json", root.to_bytes())
        self.store.replace("metadata/timestamp.json", timestamp.to_bytes())
        self.timestamp, self.snapshot = timestamp, snapshot
        self._read = {}

    def _roles_with_changed_keys(
        self, changed: Mapping[str, Metadata[Targets]], root: Metadata[Root] | None, meta: Mapping[str, MetaFile]
    ) -> dict[str, Metadata[Targets]]:
        """Return what stays as it is while those who say whose keys count for it change: it must count still."""
        found = {}
        for name in (file.removesuffix(".json") for file in meta):
            parent = self.delegating_role(name)
            if name not in changed and (parent in changed or (parent == Root.type and root is not None)):
                metadata = self.role(name)
                if metadata is not None:
                    found[name] = metadata
        return found

    def delegating_role(self, name: str) -> str:
        """Return the role that delegates to a role."""
        if name.startswith(f"{BIN_PREFIX}-"):
            return BINS
        return Root.type if name == Targets.type else Targets.type

    def faults(self, changed: Mapping[str, Metadata[Any]]) -> list[str]:
        """Return in words what changed metadata must not say, nothing if it may be signed and landed."""
        new = changed.get(Root.type)
        root = self.root.signed if new is None else new.signed
        meta = {} if self.snapshot is None else self.snapshot.signed.meta
        spread = self.bin_delegations()
        bits = None if spread is None else spread.bit_length
        found = []
        for name, metadata in changed.items():
            known = meta.get(f"{name}.json")
            before = 0 if known is None else known.version
            if name == Root.type:
                before = self.root.signed.version
                if self.accept_former_root and metadata.signed.version == before:  # it has landed already
                    before = self._former.signed.version
            found += metadata_faults(name, metadata, root, bits=bits, before=before, now=self.now())
        return found

    def _put(self, name: str, content: bytes) -> None:
        """Create what is named by its version; what a commit that was broken off has left of it is the same."""
        try:
            self.store.create(name, content)
        except AlreadyExistsError:
            if self.store.read(name) != content:
                raise

    def _newest_roots(self) -> tuple[Metadata[Root], Metadata[Root]]:
        """Return the newest root and the one before it."""
        former = trusted = _parsed(Root.type, self.trusted_root)
        _verify(Root.type, trusted, trusted.signed)
        while (content := self.store.read(f"metadata/{trusted.signed.version + 1}.root.json")) is not None:
            newer = self._verified(Root.type, content, trusted.signed)
            _verify(Root.type, newer, newer.signed)
            if newer.signed.version != trusted.signed.version + 1:
                raise TrustError(
                    f"root {trusted.signed.version + 1} says that it is {newer.signed.version}",
                    remedy="Restore the repository from a copy.",
                )
            former, trusted = trusted, newer
        return former, trusted

    def _versioned(self, name: str, meta: MetaFile) -> bytes:
        content = self.store.read(f"metadata/{meta.version}.{name}.json")
        if content is None:
            raise TrustError(
                f"version {meta.version} of {name} is missing", remedy="Restore the repository from a copy."
            )
        try:
            meta.verify_length_and_hashes(content)
        except RepositoryError as error:
            raise TrustError(f"{name} is not what was signed: {error}", remedy="Restore it from a copy.") from error
        return content

    def _verified(self, name: str, content: bytes, delegator: Root | Targets) -> Metadata[Any]:
        metadata = _parsed(name, content)
        _verify(name, metadata, delegator)
        return metadata


def target_name(path: str, target: TargetFile) -> str:
    """Return where the bytes of a target lie."""
    folder, _, base = path.rpartition("/")
    return f"targets/{folder}/{target.hashes['sha256']}.{base}"


def _check_digest(path: str, content: bytes, target: TargetFile) -> None:
    try:
        target.verify_length_and_hashes(content)
    except RepositoryError as error:
        raise TrustError(
            f"{path} is not what was signed: {error}", remedy="Restore the repository from a copy."
        ) from error


def _parsed(name: str, content: bytes) -> Metadata[Any]:
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(content)
    except RepositoryError as error:
        raise TrustError(f"{name} is no metadata: {error}", remedy="Restore it from a copy.") from error
    kind = name if name in (Root.type, Timestamp.type, Snapshot.type) else Targets.type
    if metadata.signed.type != kind:
        raise TrustError(
            f"{name} holds metadata of the type {metadata.signed.type}", remedy="Restore it from a copy."
        )
    return metadata


def _verify(name: str, metadata: Metadata[Any], delegator: Root | Targets) -> None:
    try:
        delegator.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(
            f"{name} is not signed by enough of its keys: {error}",
            remedy=_signature_error(name),
        ) from error


def _signed(metadata: Metadata[Any], signers: Sequence[CryptoSigner]) -> None:
    for signer in signers:
        metadata.sign(signer, append=True)


def _signature_error(name: str) -> str:
    if name in (Timestamp.type, Snapshot.type):
        return "If a change of keys was broken off, finish it: edgewright repo refresh --finish."
    role = "root" if name == Root.type else "releases"
    return f"Have it signed: edgewright repo sign {role} --keys FOLDER."
