"""Small records that lie in signed metadata: policies, permits, plans, questions; and how any target changes."""

from collections.abc import Mapping
from typing import TypeVar

from tuf.api.metadata import Metadata, TargetFile, Targets

from edgewright.contract.errors import InputError
from edgewright.contract.schema import decode_record
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.metadata_rules import ROLLOUTS
from edgewright.trust.repository.repository import Repository, target_name
from edgewright.trust.repository.staging import (
    add_signatures,
    draft_metadata,
    online_signers,
    publish_staged_if_online,
    stage_metadata,
)
from edgewright.trust.storage.storage import AlreadyExistsError
from edgewright.trust.target_paths import is_online

__all__ = ["change_offline", "change_online", "signed_record_at", "store_blob"]

SignedRecord = TypeVar("SignedRecord")


def signed_record_at(repository: Repository, path: str, kind: type[SignedRecord]) -> SignedRecord | None:
    """Return the record that is signed under a path, None if there is none."""
    target = repository.target(ROLLOUTS if is_online(path) else repository.bin_of(path), path)
    return None if target is None else decode_record(str(target.custom["record"]), type=kind)


def change_offline(
    repository: Repository, keys: KeyFolder, targets: Mapping[str, bytes], *, only_stage: bool
) -> bool:
    """Have the offline keys sign bytes under paths, and return whether they landed.

    Args:
        repository: Locked by the caller.
        keys: Those that are here sign.
        targets: Bytes by path.
        only_stage: Leave all signing to `repo sign`.
    """
    changed: dict[str, Metadata[Targets]] = {}
    for path, content in targets.items():
        role = repository.bin_of(path)
        changed[role] = changed.get(role) or draft_metadata(repository, role)
        target = _put(changed[role], path, content)
        store_blob(repository, target_name(path, target), content)
    if not only_stage:
        add_signatures(repository, changed, "releases", keys)
    stage_metadata(repository, changed)
    return publish_staged_if_online(repository, keys)


def change_online(repository: Repository, keys: KeyFolder, path: str, content: bytes) -> None:
    """Sign bytes under a path with the online key.

    Args:
        repository: Locked by the caller.
        keys: With the online ones.
        path: One that the online keys may sign.
        content: A record.

    Raises:
        InputError: The keys are not here.
    """
    changed = draft_metadata(repository, ROLLOUTS)
    store_blob(repository, target_name(path, _put(changed, path, content)), content)
    if not add_signatures(repository, {ROLLOUTS: changed}, ROLLOUTS, keys):
        raise InputError(f"{keys.path} holds no key for rollouts", remedy="Use the folder with the online keys.")
    repository.commit({ROLLOUTS: changed}, online_signers(repository.root, keys))


def store_blob(repository: Repository, name: str, content: bytes) -> int:
    """Store bytes under a name that stands for them, and return how many were not there yet."""
    if repository.store.size(name) == len(content):
        return 0
    try:
        repository.store.create(name, content)
    except AlreadyExistsError:  # of another size: left by an upload that was broken off
        repository.store.replace(name, content)
    return len(content)


def _put(metadata: Metadata[Targets], path: str, content: bytes) -> TargetFile:
    """Name bytes in metadata; all but manifests lie in it whole, which saves devices a request."""
    target = TargetFile.from_data(path, content, ["sha256"])
    if not path.startswith("releases/"):
        target.unrecognized_fields["custom"] = {"record": content.decode()}
    metadata.signed.targets[path] = target
    return target
