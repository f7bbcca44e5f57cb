"""Publishing: a release and its policy for the offline keys, a plan for the online one.

Bytes are uploaded before what names them, and what is signed last makes it all visible at once. Uploading again
what is there already costs nothing, so an upload that was broken off is just begun again.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import next_version, version_key
from edgewright.contract.release import EncryptedFile, FileDelta, Manifest, StoredFile, Variant, stored_form
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy, policy_violations
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import parse_iso8601
from edgewright.trust.delta import smallest_delta
from edgewright.trust.keys.file_encryption import decrypt_file, encrypt_file
from edgewright.trust.keys.keystore import KeyStore
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.release_documents import bill_of_materials, model_card
from edgewright.trust.repository.metadata_rules import ROLLOUTS
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.signed_records import change_offline, change_online, signed_record_at, store_blob
from edgewright.trust.target_paths import blob_name, plan_path, policy_path, release_path

__all__ = [
    "PublishResult",
    "current_plan",
    "current_policy",
    "list_releases",
    "new_salt",
    "plan_keys",
    "publish_plan",
    "publish_release",
    "republish",
    "set_policy",
]

# A delta that saves less is not worth its place.
_WORTH = 0.9


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What became of a release.

    Attributes:
        manifest: As published, with what is stored where.
        digest: sha256 of the manifest.
        published: Whether devices see it; else it waits for signatures.
        uploaded_bytes: Bytes that were not there yet.
    """

    manifest: Manifest
    digest: str
    published: bool
    uploaded_bytes: int


def publish_release(
    repository: Repository,
    keys: KeyFolder,
    manifest: Manifest,
    contents: Mapping[str, Mapping[str, bytes]],
    *,
    deltas_from: int = 3,
    fleet: tuple[str, KeyStore] | None = None,
    only_stage: bool = False,
) -> PublishResult:
    """Upload a release's files, name them in its manifest, and have it signed.

    Args:
        repository: As of now.
        keys: Those that are here sign.
        manifest: Its variants name their files; where these lie is filled in.
        contents: By device class, then by name of the file.
        deltas_from: From how many of the last releases deltas are made.
        fleet: Name and keys to encrypt the files to.
        only_stage: Leave all signing to `repo sign`.

    Raises:
        InputError: The version is there already, or not above its parent.
        TrustError: The repository cannot be believed.
        ExistsError: Another publisher was faster.
    """
    path = release_path(manifest.name, manifest.version)
    with repository.locked():
        if repository.target(repository.bin_of(path), path) is not None:
            raise InputError(
                f"{manifest.name} {manifest.version} is published already",
                remedy="A release never changes: publish a higher version.",
            )
        uploaded = 0
        earlier = _earlier(repository, manifest.name, deltas_from)
        variants = []
        for variant in manifest.variants:
            files = []
            for file in variant.files:
                bases = _bases(repository, earlier, variant, file, fleet)
                there, count = _upload(repository, file, contents[variant.device_class][file.name], bases, fleet)
                files.append(there)
                uploaded += count
            variants.append(msgspec.structs.replace(variant, files=tuple(files)))
        manifest = msgspec.structs.replace(manifest, variants=tuple(variants))
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        targets = {path: content}
        for variant in manifest.variants:
            if current_policy(repository, manifest.name, variant.device_class) is None:
                policy = RolloutPolicy(manifest.name, variant.device_class, revision=1, salt=new_salt())
                targets[policy_path(manifest.name, variant.device_class)] = msgspec.json.encode(policy)
        _describe(repository, manifest)
        landed = change_offline(repository, keys, targets, only_stage=only_stage)
    return PublishResult(manifest, hashlib.sha256(content).hexdigest(), landed, uploaded)


def republish(
    repository: Repository,
    keys: KeyFolder,
    model: str,
    version: str,
    *,
    as_version: str = "",
    created: str = "",
    only_stage: bool = False,
) -> PublishResult:
    """Publish a higher version that points at the bytes of an earlier one, which is how devices are taken back.

    Args:
        repository: As of now.
        keys: Those that are here sign.
        model: Of the release.
        version: Whose bytes it gets.
        as_version: Of the new release; the next after the highest if not given.
        created: UTC, ISO 8601.
        only_stage: Leave all signing to `repo sign`.

    Raises:
        InputError: There is no such release, or it is past its end of life.
        TrustError: The repository cannot be believed.
    """
    with repository.locked():
        known = dict(list_releases(repository, model))
        path = release_path(model, version)
        content = repository.read_target(repository.bin_of(path), path)
        if content is None:
            raise InputError(
                f"{model} {version} is not published", remedy=f"There are {', '.join(known) or 'no releases'}."
            )
        before = decode_record(content, type=Manifest)
        if before.end_of_life_at and parse_iso8601(before.end_of_life_at) <= repository.now():
            raise InputError(
                f"{model} {version} is retired since {before.end_of_life_at}", remedy="Go back to another release."
            )
        highest = max(known, key=version_key)
        manifest = msgspec.structs.replace(
            before,
            version=as_version or next_version(highest),
            created_at=created,
            lineage=msgspec.structs.replace(before.lineage, parent=highest, republished_from=version),
        )
        if version_key(manifest.version) <= version_key(highest):
            raise InputError(
                f"version {manifest.version} is not above {highest}",
                remedy="Devices never go back: take a higher one.",
            )
        path = release_path(model, manifest.version)
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        _describe(repository, manifest)
        landed = change_offline(repository, keys, {path: content}, only_stage=only_stage)
    return PublishResult(manifest, hashlib.sha256(content).hexdigest(), landed, 0)


def set_policy(repository: Repository, keys: KeyFolder, policy: RolloutPolicy, *, only_stage: bool = False) -> bool:
    """Have a policy signed by the offline keys, and return whether it landed.

    Raises:
        InputError: Its revision is not above the one before.
    """
    path = policy_path(policy.model, policy.device_class)
    with repository.locked():
        before = current_policy(repository, policy.model, policy.device_class)
        if before is not None and policy.revision <= before.revision:
            raise InputError(
                f"the policy has revision {policy.revision}, the one before {before.revision}",
                remedy="Devices never go back: give it a higher revision.",
            )
        return change_offline(repository, keys, {path: msgspec.json.encode(policy)}, only_stage=only_stage)


def publish_plan(repository: Repository, keys: KeyFolder, plan: RolloutPlan) -> None:
    """Sign a plan with the online key.

    Raises:
        InputError: It breaks its policy, points at no release, or its counter does not rise.
    """
    with repository.locked():
        _check_allowed(repository, plan)
        change_online(repository, keys, plan_path(plan.model, plan.device_class), msgspec.json.encode(plan))


def _check_allowed(repository: Repository, plan: RolloutPlan) -> None:
    policy = current_policy(repository, plan.model, plan.device_class)
    if policy is None:
        raise InputError(
            f"there is no policy for {plan.model} on {plan.device_class}",
            remedy=f"Publish a release of {plan.model} with a variant for {plan.device_class} first.",
        )
    laxer = policy_violations(plan, policy)
    if laxer:
        raise InputError(
            f"the policy forbids it: {'; '.join(laxer)}", remedy="Change the plan, or have the policy changed."
        )
    before = current_plan(repository, plan.model, plan.device_class)
    if before is not None and before.epoch == plan.epoch and plan.counter <= before.counter:
        raise InputError(
            f"the plan has counter {plan.counter}, the one before {before.counter}",
            remedy="Devices never go back: give it a higher counter.",
        )
    for arm in plan.arms:
        path = release_path(plan.model, arm.version)
        target = repository.target(repository.bin_of(path), path)
        if target is None or target.hashes.get("sha256") != arm.manifest_sha256:
            raise InputError(
                f"{plan.model} {arm.version} is no signed release of that digest", remedy="Publish it first."
            )


def list_releases(repository: Repository, model: str) -> list[tuple[str, str]]:
    """Return version and manifest's sha256 of a model's releases, in order of their versions."""
    prefix = release_path(model, "0").rpartition("/")[0] + "/"
    found = []
    spread = repository.bin_delegations()
    for name in () if spread is None else spread.get_roles():
        metadata = repository.role(name)
        if metadata is None:
            continue
        for path, target in metadata.signed.targets.items():
            if path.startswith(prefix):
                found.append((path.removeprefix(prefix).removesuffix(".json"), target.hashes["sha256"]))
    return sorted(found, key=lambda entry: version_key(entry[0]))


def current_policy(repository: Repository, model: str, device_class: str) -> RolloutPolicy | None:
    """Return the policy that is signed, None if there is none."""
    return signed_record_at(repository, policy_path(model, device_class), RolloutPolicy)


def current_plan(repository: Repository, model: str, device_class: str) -> RolloutPlan | None:
    """Return the plan that is signed, None if there is none."""
    return signed_record_at(repository, plan_path(model, device_class), RolloutPlan)


def plan_keys(repository: Repository) -> list[tuple[str, str]]:
    """Return model and device class of all plans that are signed, in order."""
    metadata = repository.role(ROLLOUTS)
    paths = [] if metadata is None else sorted(metadata.signed.targets)
    parts = [path.removesuffix(".json").split("/") for path in paths]
    return [(part[1], part[2]) for part in parts if len(part) == 3 and part[0] == "rollouts"]


def new_salt() -> str:
    """Return a salt for cohorts."""
    return os.urandom(16).hex()


def _describe(repository: Repository, manifest: Manifest) -> None:
    """Put the release's model card and bill of materials beside what is signed."""
    place = f"cards/{manifest.name}/{manifest.version}"
    bill = msgspec.json.format(msgspec.json.encode(bill_of_materials(manifest)), indent=1)
    repository.store.replace(f"{place}.md", model_card(manifest).encode())
    repository.store.replace(f"{place}.cdx.json", bill)


def _upload(
    repository: Repository,
    file: StoredFile,
    content: bytes,
    bases: Sequence[tuple[str, bytes]],
    fleet: tuple[str, KeyStore] | None,
) -> tuple[StoredFile, int]:
    digest = hashlib.sha256(content).hexdigest()
    if (digest, len(content)) != (file.sha256, file.size_bytes):
        raise InputError(f"{file.name} is not what the manifest says", remedy="Publish the folder again.")
    bytes_there, sealed = content, None
    if fleet is not None:
        bytes_there = encrypt_file(content, digest, fleet[1])
        sealed = EncryptedFile(hashlib.sha256(bytes_there).hexdigest(), len(bytes_there), fleet[0])
    count = store_blob(repository, blob_name(digest if sealed is None else sealed.sha256), bytes_there)
    deltas = []
    for base, old in bases:
        made = smallest_delta(old, content, below=int(_WORTH * len(content)))
        if made is None:
            continue
        codec, delta = made
        digest = hashlib.sha256(delta).hexdigest()
        bytes_there, hidden = delta, None
        if fleet is not None:
            bytes_there = encrypt_file(delta, digest, fleet[1])
            hidden = EncryptedFile(hashlib.sha256(bytes_there).hexdigest(), len(bytes_there), fleet[0])
        count += store_blob(repository, blob_name(digest if hidden is None else hidden.sha256), bytes_there)
        deltas.append(FileDelta(base, codec, digest, len(delta), hidden))
    return msgspec.structs.replace(file, encrypted=sealed, deltas=tuple(deltas)), count


def _earlier(repository: Repository, model: str, count: int) -> list[Manifest]:
    found = []
    for version, _digest in list_releases(repository, model)[::-1][:count]:
        path = release_path(model, version)
        content = repository.read_target(repository.bin_of(path), path)
        if content is not None:
            found.append(decode_record(content, type=Manifest))
    return found


def _bases(
    repository: Repository,
    earlier: Sequence[Manifest],
    variant: Variant,
    file: StoredFile,
    fleet: tuple[str, KeyStore] | None,
) -> list[tuple[str, bytes]]:
    """Return digest and bytes of the same file in earlier releases, as far as they can be read here."""
    found: dict[str, bytes] = {}
    for manifest in earlier:
        before = manifest.variant(variant.device_class)
        old = None if before is None else next((each for each in before.files if each.name == file.name), None)
        if old is None or old.sha256 == file.sha256 or old.sha256 in found:
            continue
        content = repository.store.read(blob_name(stored_form(old)[0]))
        if content is None or (old.encrypted is not None and fleet is None):
            continue
        if old.encrypted is not None and fleet is not None:
            content = decrypt_file(content, old.sha256, fleet[1])
        if hashlib.sha256(content).hexdigest() == old.sha256:
            found[old.sha256] = content
    return list(found.items())
