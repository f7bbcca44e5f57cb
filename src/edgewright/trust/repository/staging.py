"""Changes that wait for signatures: prepared on one machine, signed on others that each hold a key, then landed.

What is staged lies beside the repository, so devices do not see it, and carries the signatures that it has so far.
All of it lands at once, and only when every part is signed by enough keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Targets

from edgewright.contract.errors import InputError
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.change_summary import summarize_query_change
from edgewright.trust.repository.metadata_rules import BIN_PREFIX, BINS, ROLLOUTS, lifetime_of
from edgewright.trust.repository.repository import Repository, TrustError
from edgewright.trust.storage.storage import AlreadyExistsError

__all__ = [
    "ChangedMetadata",
    "PendingSignatures",
    "add_signatures",
    "describe_changes",
    "discard_staged",
    "draft_metadata",
    "key_role_of",
    "online_signers",
    "pending_signatures",
    "publish_staged",
    "publish_staged_if_online",
    "sign_staged",
    "stage_metadata",
    "staged_metadata",
]

_STAGED = "staged.json"


class OnlineKeysAbsentError(InputError):
    """The online keys are on another machine."""

    code = "online_keys_elsewhere"


# Metadata of `root`, or of `targets` and what it delegates to, by name.
ChangedMetadata = Mapping[str, Metadata[Any]]


@dataclass(frozen=True, slots=True)
class PendingSignatures:
    """What staged metadata lacks.

    Attributes:
        role: Whose it is: `root`, `releases` or `rollouts`.
        name: Of the metadata.
        signature_count: How many of the role's keys have signed.
        threshold: How many must.
    """

    role: str
    name: str
    signature_count: int
    threshold: int

    @property
    def is_complete(self) -> bool:
        """Whether nothing is lacking."""
        return self.signature_count >= self.threshold


def key_role_of(name: str) -> str:
    """Return whose keys sign metadata of a name.

    >>> key_role_of("bin-0f"), key_role_of("targets"), key_role_of("rollouts")
    ('releases', 'releases', 'rollouts')
    """
    return "releases" if name in (Targets.type, BINS) or name.startswith(f"{BIN_PREFIX}-") else name


def draft_metadata(repository: Repository, name: str) -> Metadata[Targets]:
    """Return unsigned metadata of a role to be changed, with a new version.

    It starts from what is signed. What is staged is not: whoever can write to the store could have added to it.

    Raises:
        TrustError: There is no such role.
    """
    current = repository.role(name)
    if current is None:
        raise TrustError(f"there is no role {name}", remedy="Make the repository with 'edgewright keys init'.")
    signed = Targets.from_dict(current.signed.to_dict())
    signed.version = repository.next_version(name)
    signed.expires = repository.now() + lifetime_of(name)
    return Metadata(signed)


def stage_metadata(repository: Repository, changed: ChangedMetadata) -> None:
    """Put changed metadata among what waits for signatures: all of it or nothing.

    Raises:
        InputError: Something waits already.
    """
    try:
        repository.store.create(_STAGED, _bundle(changed))
    except AlreadyExistsError:
        raise InputError(
            f"{len(staged_metadata(repository))} staged files wait for signatures already",
            remedy="Sign them with 'edgewright repo sign', or drop them with 'edgewright repo discard'.",
        ) from None


def staged_metadata(repository: Repository) -> dict[str, Metadata[Any]]:
    """Return what waits, by name.

    Raises:
        TrustError: It is damaged.
    """
    content = repository.store.read(_STAGED)
    if content is None:
        return {}
    try:
        documents = msgspec.json.decode(content, type=dict[str, str])
    except msgspec.MsgspecError as error:
        raise TrustError(
            f"what is staged cannot be read: {error}", remedy="Discard it and stage it anew."
        ) from error
    return {name: repository.parse(name, document.encode()) for name, document in documents.items()}


def discard_staged(repository: Repository) -> int:
    """Drop what is staged, and return how many pieces of metadata that were."""
    count = len(staged_metadata(repository))
    repository.store.delete(_STAGED)
    return count


def describe_changes(repository: Repository, changed: ChangedMetadata) -> list[str]:
    """Return in words what signing staged metadata would make true; whoever signs must have read it."""
    found = []
    for name, metadata in sorted(changed.items()):
        if isinstance(metadata.signed, Root):
            found += _describe_root_changes(repository.root.signed, metadata.signed)
            continue
        before = repository.role(name)
        old = {} if before is None else before.signed.targets
        new = metadata.signed.targets
        for path in sorted({*old, *new}):
            if path not in new:
                found.append(f"remove {path}")
            elif path not in old or old[path].hashes != new[path].hashes:
                found.append(f"{'change' if path in old else 'add'} {path} sha256 {new[path].hashes.get('sha256')}")
                found += summarize_query_change(path, old.get(path), new[path])
        if before is not None and before.signed.delegations != metadata.signed.delegations:
            found.append(f"change whose keys count for what {name} delegates")
    return found


def _describe_root_changes(before: Root, after: Root) -> list[str]:
    found = []
    for name, new in after.roles.items():
        old, role = before.roles[name], key_role_of(name)
        found += [f"{role}: key {keyid[:16]} counts from now on" for keyid in new.keyids if keyid not in old.keyids]
        found += [f"{role}: key {keyid[:16]} counts no more" for keyid in old.keyids if keyid not in new.keyids]
        if new.threshold != old.threshold:
            found.append(f"{role}: {new.threshold} keys must sign, before {old.threshold}")
    return found or [f"root {after.version} says the same as {before.version}"]


def pending_signatures(repository: Repository, changed: ChangedMetadata) -> list[PendingSignatures]:
    """Return for everything that is staged how many signatures it has and needs."""
    found = []
    for name, metadata in changed.items():
        parents: list[Root | Targets] = []
        if name == Root.type:
            parents = [repository.root.signed, metadata.signed]
        else:
            parents = [_delegator(repository, changed, name)]
        results = [p.get_verification_result(name, metadata.signed_bytes, metadata.signatures) for p in parents]
        least = min(results, key=lambda result: len(result.signed) - result.threshold)
        found.append(PendingSignatures(key_role_of(name), name, len(least.signed), least.threshold))
    return found


def add_signatures(repository: Repository, changed: ChangedMetadata, role: str, keys: KeyFolder) -> int:
    """Add this folder's signatures for a role to metadata, in memory, and return how many.

    What is signed is what the caller has made or read: the store is not asked again, for others may write there.

    Raises:
        TrustError: It says what nobody should sign.
    """
    wrong = repository.faults(changed)
    if wrong:
        raise TrustError("; ".join(wrong), remedy="Discard what is staged, and prepare it anew.")
    added = 0
    opened: dict[tuple[str, ...], list[CryptoSigner]] = {}
    for name, metadata in changed.items():
        if key_role_of(name) != role:
            continue
        keyids = _keyids(repository, changed, name)
        if keyids not in opened:
            opened[keyids] = keys.signers(keyids)
        for signer in opened[keyids]:
            metadata.sign(signer, append=True)
            added += 1
    return added


def sign_staged(
    repository: Repository, changed: ChangedMetadata, role: str, keys: KeyFolder
) -> list[PendingSignatures]:
    """Sign what a person has read of what is staged, put the signatures there, and return what is still lacking.

    Args:
        repository: As of now.
        changed: From `staged_metadata`, as it was read.
        role: To sign for.
        keys: Of the person.

    Raises:
        InputError: Nothing is staged for the role, or no key of this folder counts for it.
    """
    if not any(key_role_of(name) == role for name in changed):
        raise InputError(
            f"nothing is staged for {role}", remedy="Prepare it first, such as with 'edgewright publish --stage'."
        )
    if not add_signatures(repository, changed, role, keys):
        raise InputError(
            f"{keys.path} holds no private key that counts for {role}", remedy="Use the folder of one that does."
        )
    meanwhile = staged_metadata(repository)
    if {name: part.signed_bytes for name, part in meanwhile.items()} != {
        name: part.signed_bytes for name, part in changed.items()
    }:
        raise TrustError("what is staged has changed since it was read", remedy="Read it again.")
    for name, metadata in meanwhile.items():  # somebody else may have signed it as well
        changed[name].signatures.update(metadata.signatures | changed[name].signatures)
    repository.store.replace(_STAGED, _bundle(changed))
    return pending_signatures(repository, changed)


def publish_staged(repository: Repository, keys: KeyFolder) -> bool:
    """Make what is staged the repository's, if all of it is signed; a new root goes first.

    Args:
        repository: Locked by the caller.
        keys: Of the online roles.

    Returns:
        Whether it landed; False if signatures are lacking or nothing is staged.

    Raises:
        ExistsError: Another publisher was faster.
    """
    changed = staged_metadata(repository)
    if changed and all(_is_there(repository, name, metadata) for name, metadata in changed.items()):
        repository.store.delete(_STAGED)  # all that was left to do when it was broken off
        return True
    lacking = [part for part in pending_signatures(repository, changed) if part.name != ROLLOUTS]
    if not lacking or not all(part.is_complete for part in lacking):
        return False
    root = changed.pop(Root.type, None)
    targets = {name: metadata for name, metadata in changed.items() if isinstance(metadata.signed, Targets)}
    if ROLLOUTS in targets:
        # Whoever can write to the store could have staged other rollouts: what is signed is what was signed before.
        targets[ROLLOUTS] = draft_metadata(repository, ROLLOUTS)
        for signer in keys.signers(_delegator(repository, targets, ROLLOUTS).get_delegated_role(ROLLOUTS).keyids):
            targets[ROLLOUTS].sign(signer, append=True)
    newest = repository.root if root is None else root
    repository.commit(targets, online_signers(newest, keys), root=root)
    repository.store.delete(_STAGED)
    return True


def _is_there(repository: Repository, name: str, metadata: Metadata[Any]) -> bool:
    current = repository.root if name == Root.type else repository.role(name)
    return current is not None and (name == ROLLOUTS or current.signed_bytes == metadata.signed_bytes)


def _bundle(changed: ChangedMetadata) -> bytes:
    return msgspec.json.encode({name: metadata.to_bytes().decode() for name, metadata in changed.items()})


def publish_staged_if_online(repository: Repository, keys: KeyFolder) -> bool:
    """As `publish_staged`; where the online keys are elsewhere nothing lands, and `repo refresh` there does it."""
    try:
        return publish_staged(repository, keys)
    except OnlineKeysAbsentError:
        return False


def online_signers(root: Metadata[Root], keys: KeyFolder) -> dict[str, list[CryptoSigner]]:
    """Return who signs `snapshot` and `timestamp` here.

    Args:
        root: Says whose keys count.
        keys: Of the online roles.

    Raises:
        AwayError: The keys are not in this folder.
        InputError: One of them is damaged, or the passphrase is wrong.
    """
    found = {role: keys.signers(root.signed.roles[role].keyids) for role in ("snapshot", "timestamp")}
    if not all(found.values()):
        raise OnlineKeysAbsentError(
            f"{keys.path} holds no keys for snapshot and timestamp",
            remedy="Run 'edgewright repo refresh' where the online keys are.",
        )
    return found


def _keyids(repository: Repository, changed: ChangedMetadata, name: str) -> tuple[str, ...]:
    if name == Root.type:
        new = changed[name].signed
        ids = {*repository.root.signed.roles[Root.type].keyids}
        ids |= {*new.roles[Root.type].keyids} if isinstance(new, Root) else set()
        return tuple(sorted(ids))
    return tuple(_delegator(repository, changed, name).get_delegated_role(name).keyids)


def _delegator(repository: Repository, changed: ChangedMetadata, name: str) -> Root | Targets:
    parent = repository.delegating_role(name)
    if parent in changed:
        found: Root | Targets = changed[parent].signed
        return found
    return repository.delegator(name)
