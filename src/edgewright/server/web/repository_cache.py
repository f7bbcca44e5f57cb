"""Releases, plans and policies as they are signed, read once for each state of the repository."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from edgewright.contract.names import version_key
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.contract.schema import decode_record
from edgewright.trust.publishing.publish import current_policy
from edgewright.trust.repository.metadata_rules import ROLLOUTS
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import staged_metadata

__all__ = ["RepositoryCache", "RepositoryContents"]


@dataclass(frozen=True, slots=True)
class RepositoryContents:
    """What a repository holds.

    Attributes:
        version: Of the snapshot, 0 for an empty repository.
        releases: sha256 of the manifest, by model and version, the newest version first.
        plans: By model and device class.
        awaiting: Signed roles that wait for offline keys.
    """

    version: int
    releases: dict[tuple[str, str], str]
    plans: dict[tuple[str, str], RolloutPlan]
    awaiting: tuple[str, ...]


@dataclass(slots=True)
class RepositoryCache:
    """What a repository holds, kept as long as it stays.

    Attributes:
        repository: Opens it and verifies it.
    """

    repository: Callable[[], Repository]
    _held: RepositoryContents | None = field(init=False, default=None)
    _manifests: dict[str, Manifest] = field(init=False, default_factory=dict)
    _lock: Lock = field(init=False, default_factory=Lock)

    def contents(self) -> RepositoryContents:
        """Return what the repository holds now.

        Raises:
            TrustError: It cannot be believed.
        """
        repository = self.repository()
        version = 0 if repository.snapshot is None else repository.snapshot.signed.version
        awaiting = tuple(sorted(staged_metadata(repository)))
        with self._lock:
            known = self._held
            if known is None or (known.version, known.awaiting) != (version, awaiting):
                known = self._held = RepositoryContents(
                    version, _releases(repository), _plans(repository), awaiting
                )
            return known

    def manifest(self, model: str, version: str) -> Manifest | None:
        """Return a release, None if there is none.

        Raises:
            TrustError: It cannot be believed.
        """
        digest = self.contents().releases.get((model, version))
        if digest is None:
            return None
        with self._lock:
            known = self._manifests.get(digest)
        if known is None:
            repository = self.repository()
            path = f"releases/{model}/{version}.json"
            content = repository.read_target(repository.bin_of(path), path)
            if content is None:
                return None
            known = decode_record(content, type=Manifest)
            with self._lock:
                self._manifests[digest] = known
        return known

    def policy(self, model: str, device_class: str) -> RolloutPolicy | None:
        """Return what the offline keys allow, None if nothing."""
        return current_policy(self.repository(), model, device_class)


def _releases(repository: Repository) -> dict[tuple[str, str], str]:
    found = []
    spread = repository.bin_delegations()
    for name in () if spread is None else spread.get_roles():
        metadata = repository.role(name)
        for path, target in () if metadata is None else metadata.signed.targets.items():
            kind, _, rest = path.partition("/")
            if kind == "releases":
                model, _, version = rest.removesuffix(".json").partition("/")
                found.append((model, version, target.hashes["sha256"]))
    found.sort(key=lambda one: version_key(one[1]), reverse=True)
    found.sort(key=lambda one: one[0])
    return {(model, version): digest for model, version, digest in found}


def _plans(repository: Repository) -> dict[tuple[str, str], RolloutPlan]:
    metadata = repository.role(ROLLOUTS)
    found = {}
    for path, target in () if metadata is None else sorted(metadata.signed.targets.items()):
        if path.startswith("rollouts/"):
            plan = decode_record(str(target.custom["record"]), type=RolloutPlan)
            found[plan.model, plan.device_class] = plan
    return found
