"""From bytes on a server to what a device believes: a policy, a plan within it, a manifest that both name.

The rules, besides TUF's own:

- Policies and manifests count only if the offline keys signed them, plans only if the key for rollouts did.
- What was once believed is never taken back: the versions of timestamp, policy and plan only rise. A device keeps
  the highest that it has seen in its own journal, which it syncs; TUF's client does not.
- The lowest time that is believable is the latest that anybody with a key has signed, so a clock that was set back
  brings no old metadata to life. The device's own clock is never remembered, so one glitch into the future does not
  end updates. Expired metadata ends installations, never inference.
- What is fetched is limited in size and time before it is parsed.
"""

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient import Updater, UpdaterConfig

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_digest
from edgewright.contract.query.permit import LiveQueries, QueryPermit
from edgewright.contract.query.query import Query
from edgewright.contract.refusal import RefusalCode, RefusedError
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy, policy_violations
from edgewright.contract.schema import decode_record
from edgewright.trust.client.fetcher import Fetcher, refusal_code_of
from edgewright.trust.fsync import fsync_path
from edgewright.trust.target_paths import permit_path, plan_path, policy_path, queries_path, release_path

__all__ = ["TrustState", "TrustedVersions", "TrustedView", "refresh", "verified_root"]

VerifiedRecord = TypeVar("VerifiedRecord")

_LIMITS = UpdaterConfig(
    max_root_rotations=4096,
    max_delegations=4,
    root_max_length=64_000,
    timestamp_max_length=4_000,
    snapshot_max_length=200_000,
    targets_max_length=2_000_000,
)
_MAX_MANIFEST = 2_000_000
# A device follows one model; one that asks for several forgets the oldest.
_MAX_MODELS = 64


class TrustedVersions(msgspec.Struct, frozen=True):
    """What a device has believed of one model.

    Attributes:
        policy_revision: Highest revision.
        epoch: Of that policy.
        plan_counter: Highest counter of a plan of that epoch.
        permit_revision: Highest revision of what may be asked.
    """

    policy_revision: int = 0
    epoch: int = 0
    plan_counter: int = 0
    permit_revision: int = 0


class TrustState(msgspec.Struct, frozen=True):
    """What a device has believed; it never goes back behind it.

    Attributes:
        timestamp_version: Highest version.
        timestamp_key_ids: Of the key that signed it; another key begins anew.
        latest_signed_at: Latest signed time, UTC, ISO 8601.
        models: By name; the newest few.
    """

    timestamp_version: int = 0
    timestamp_key_ids: tuple[str, ...] = ()
    latest_signed_at: str = ""
    models: dict[str, TrustedVersions] = {}


def verified_root(content: bytes) -> bytes:
    """Return a root that a device may be enrolled with.

    Raises:
        InputError: It is none, or not signed by its own keys.
    """
    try:
        root: Metadata[Root] = Metadata.from_bytes(content)
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except (tuf.RepositoryError, AttributeError, ValueError) as error:
        raise InputError(
            f"this is no root of a repository: {error}", remedy="Name its metadata/1.root.json."
        ) from error
    return content


class TrustedView:
    """The repository at one moment, as this device believes it.

    Attributes:
        memory: What the device must remember from now on.
        snapshot: sha256 of the snapshot that this is, hexadecimal.
    """

    def __init__(self, updater: Updater, fetcher: Fetcher, memory: TrustState, snapshot: str) -> None:
        self._updater, self._fetcher = updater, fetcher
        self.memory, self.snapshot = memory, snapshot

    def models(self, device_class: str) -> list[str]:
        """Return the models that there is a plan for on a device class."""
        with _refusing(self._fetcher):
            self._updater.get_targetinfo(plan_path("any", device_class))  # loads the role
            role: Any = self._updater._trusted_set["rollouts"]
            targets = role.targets
        found = []
        for path in targets:
            folder, _, rest = path.partition("/")
            model, _, name = rest.partition("/")
            if folder == "rollouts" and name == f"{device_class}.json":
                found.append(model)
        return sorted(found)

    def policy(self, model: str, device_class: str) -> RolloutPolicy:
        """Return what the offline keys allow; from then on the device remembers its revision.

        Raises:
            RefusedError: There is none, it is older than one seen before, or it is for something else.
        """
        path = policy_path(model, device_class)
        policy = self._inline(path, RolloutPolicy)
        if policy is None:
            raise RefusedError(
                "policy", path, f"the offline keys have signed no policy for {model} on {device_class}"
            )
        if (policy.model, policy.device_class) != (model, device_class):
            raise RefusedError("wrong class", path, f"the policy is for {policy.model} on {policy.device_class}")
        known = self.memory.models.get(model, TrustedVersions())
        if policy.revision < known.policy_revision:
            raise RefusedError(
                "rollback",
                path,
                f"policy revision {policy.revision} is older than {known.policy_revision}, seen before",
            )
        plan = known.plan_counter if policy.epoch == known.epoch else 0
        self._record_trust(model, TrustedVersions(policy.revision, policy.epoch, plan, known.permit_revision))
        return policy

    def _record_trust(self, model: str, believed: TrustedVersions) -> None:
        others = [entry for entry in self.memory.models.items() if entry[0] != model]
        models = dict([*others[-(_MAX_MODELS - 1) :], (model, believed)])
        self.memory = msgspec.structs.replace(self.memory, models=models)

    def plan(self, policy: RolloutPolicy) -> RolloutPlan | None:
        """Return the plan within a policy, None if there is none; from then on the device remembers its counter.

        Raises:
            RefusedError: It is laxer than the policy, older than one seen before, or for something else.
        """
        path = plan_path(policy.model, policy.device_class)
        plan = self._inline(path, RolloutPlan)
        if plan is None:
            return None
        laxer = policy_violations(plan, policy)
        if laxer:
            denied = any("denied" in reason for reason in laxer)
            raise RefusedError(
                "denied" if denied else "policy", path, f"the plan breaks the policy: {'; '.join(laxer)}"
            )
        known = self.memory.models.get(policy.model, TrustedVersions())
        if plan.counter < known.plan_counter:
            raise RefusedError(
                "rollback", path, f"plan {plan.counter} is older than {known.plan_counter}, seen before"
            )
        self._record_trust(policy.model, msgspec.structs.replace(known, plan_counter=plan.counter))
        return plan

    def live_queries(self, model: str, device_class: str) -> tuple[QueryPermit, tuple[Query, ...]] | None:
        """Return what is asked, and what the offline keys permit to be asked; None if nothing is asked.

        Raises:
            RefusedError: There is no permit, or one is for something else or older than one seen before.
        """
        path = queries_path(model, device_class)
        questions = self._inline(path, LiveQueries)
        if questions is None or not questions.queries:
            return None
        permitted = permit_path(model, device_class)
        permit = self._inline(permitted, QueryPermit)
        if permit is None:
            raise RefusedError("policy", permitted, "the offline keys have permitted no questions")
        for where, record in ((path, questions), (permitted, permit)):
            if (record.model, record.device_class) != (model, device_class):
                raise RefusedError("wrong class", where, f"it is for {record.model} on {record.device_class}")
        known = self.memory.models.get(model, TrustedVersions())
        if permit.revision < known.permit_revision:
            raise RefusedError(
                "rollback",
                permitted,
                f"permit {permit.revision} is older than {known.permit_revision}, seen before",
            )
        self._record_trust(model, msgspec.structs.replace(known, permit_revision=permit.revision))
        return permit, questions.queries

    def manifest(self, model: str, version: str, digest: str) -> tuple[Manifest, bytes]:
        """Return the manifest that the offline keys signed for a version, and its bytes.

        Args:
            model: Of the release.
            version: Of the release.
            digest: sha256 that the plan names.

        Raises:
            RefusedError: It was not signed by the releases' keys, or is another one than the plan names.
        """
        path = release_path(model, version)
        checked_digest("manifest", digest)
        with _refusing(self._fetcher):
            target = self._updater.get_targetinfo(path)
            if target is None:
                raise RefusedError(
                    "unsigned", path, f"{model} {version} is no release that the offline keys have signed"
                )
            if target.hashes.get("sha256") != digest:
                raise RefusedError("tampered", path, f"the plan names another manifest of {model} {version}")
            content = self._bytes(target)
        manifest = _decoded(content, Manifest, path)
        if (manifest.name, manifest.version) != (model, version):
            raise RefusedError("tampered", path, f"the manifest is of {manifest.name} {manifest.version}")
        return manifest, content

    def _inline(self, path: str, kind: type[VerifiedRecord]) -> VerifiedRecord | None:
        """Return a record that lies in the metadata itself, which saves a request."""
        with _refusing(self._fetcher):
            target = self._updater.get_targetinfo(path)
        if target is None:
            return None
        custom = target.custom
        content = custom.get("record") if isinstance(custom, dict) else None
        if not isinstance(content, str):
            raise RefusedError("tampered", path, f"{path} holds no record")
        with _refusing(self._fetcher):
            target.verify_length_and_hashes(content.encode())
        return _decoded(content.encode(), kind, path)

    def _bytes(self, target: TargetFile) -> bytes:
        if target.length > _MAX_MANIFEST:
            raise RefusedError(
                "oversized", target.path, f"it has {target.length} bytes, at most {_MAX_MANIFEST} are read"
            )
        folder, _, base = target.path.rpartition("/")
        url = f"{self._updater._target_base_url}{folder}/{target.hashes['sha256']}.{base}"
        content = self._fetcher.download_bytes(url, target.length)
        target.verify_length_and_hashes(content)
        return content


def refresh(
    folder: Path,
    url: str,
    trusted_root: bytes,
    memory: TrustState,
    fetcher: Fetcher,
    *,
    now: Callable[[], datetime.datetime],
) -> TrustedView:
    """Ask the server what is new and return what of it a device believes.

    Args:
        folder: For metadata.
        url: Of the repository, with a slash at its end.
        trusted_root: The root that the device was enrolled with.
        memory: What it has believed.
        fetcher: Gets the bytes.
        now: The device's clock.

    Raises:
        RefusedError: The server does not answer, or what it gives is not to be believed.
        OSError: The disk is full or broken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _refusing(fetcher):
        try:
            updater = _refreshed(folder, url, trusted_root, fetcher, max(now(), _time(memory.latest_signed_at)))
        except tuf.ExpiredMetadataError:
            # A stolen key may have signed that it is 2099. That counts until the key was replaced, and no longer.
            updater = _refreshed(folder, url, trusted_root, fetcher, now())
            if _timestamp_keys(updater) == memory.timestamp_key_ids:
                raise
        stamp, keys = updater._trusted_set.timestamp, _timestamp_keys(updater)
        if keys == memory.timestamp_key_ids and stamp.version < memory.timestamp_version:
            raise RefusedError(
                "rollback",
                "timestamp.json",
                f"timestamp {stamp.version} is older than {memory.timestamp_version}, seen before",
            )
    _sync_all(folder)
    issued = str(stamp.unrecognized_fields.get("issued", ""))
    latest = (
        max(_time(memory.latest_signed_at), _time(issued)) if keys == memory.timestamp_key_ids else _time(issued)
    )
    memory = msgspec.structs.replace(
        memory,
        timestamp_version=stamp.version,
        timestamp_key_ids=keys,
        latest_signed_at=latest.isoformat() if issued else memory.latest_signed_at,
    )
    digest = (stamp.snapshot_meta.hashes or {}).get("sha256", "")
    return TrustedView(updater, fetcher, memory, digest)


def _refreshed(folder: Path, url: str, trusted_root: bytes, fetcher: Fetcher, moment: datetime.datetime) -> Updater:
    """Return TUF's client with everything as of a moment; it has no seam for a clock but its private one."""
    updater = Updater(
        str(folder), f"{url}metadata/", None, f"{url}targets/", fetcher, _LIMITS, bootstrap=trusted_root
    )
    updater._trusted_set.reference_time = moment
    updater.refresh()
    return updater


def _timestamp_keys(updater: Updater) -> tuple[str, ...]:
    return tuple(sorted(updater._trusted_set.root.roles["timestamp"].keyids))


_BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _time(text: str) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return _BEGINNING
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def _decoded(content: bytes, kind: type[VerifiedRecord], path: str) -> VerifiedRecord:
    try:
        return decode_record(content, type=kind)
    except (msgspec.MsgspecError, InputError) as error:
        raise RefusedError("tampered", path, f"{path} is signed and cannot be read: {error}") from error


def _sync_all(folder: Path) -> None:
    """Bring what TUF's client wrote to the disk; it does not."""
    history = folder / "root_history"
    for path in (*folder.iterdir(), *(history.iterdir() if history.is_dir() else ()), folder, history):
        if path.is_symlink() or not path.exists():
            continue
        fsync_path(path)


# In this order: the first that an error is an instance of.
_CODES: tuple[tuple[type[Exception], RefusalCode], ...] = (
    (tuf.ExpiredMetadataError, "expired"),
    (tuf.BadVersionNumberError, "rollback"),
    (tuf.UnsignedMetadataError, "unsigned"),
    (tuf.LengthOrHashMismatchError, "tampered"),
    (tuf.RepositoryError, "tampered"),
)


@contextmanager
def _refusing(fetcher: Fetcher) -> Iterator[None]:
    """Turn the client's errors into refusals."""
    try:
        yield
    except (tuf.RepositoryError, tuf.DownloadError) as error:
        if isinstance(error, tuf.DownloadError):
            code = refusal_code_of(error)
        else:
            code = next(code for kind, code in _CODES if isinstance(error, kind))
        raise RefusedError(code, fetcher.latest, f"{fetcher.latest or 'metadata'}: {error}") from error
