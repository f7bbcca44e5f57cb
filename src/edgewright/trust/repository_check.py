"""A whole repository, verified as a device would: every signature, every name, every byte."""

import datetime
import hashlib
from dataclasses import dataclass, field

import msgspec
from tuf.api.metadata import Targets

from edgewright.contract.errors import EdgewrightError
from edgewright.contract.query.permit import LiveQueries
from edgewright.contract.query.query import template_violation
from edgewright.contract.release import FileDelta, Manifest, StoredFile, stored_form
from edgewright.contract.rollout.plan import RolloutPlan, policy_violations
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import parse_iso8601
from edgewright.trust.publishing.publish import current_policy, list_releases
from edgewright.trust.publishing.signed_queries import current_permit
from edgewright.trust.repository.metadata_rules import BINS, ROLLOUTS
from edgewright.trust.repository.repository import Repository, TrustError
from edgewright.trust.target_paths import blob_name, release_path

__all__ = ["RepositoryCheck", "check_repository"]

# What expires within so many days is worth a warning.
_DAYS = 14


@dataclass(slots=True)
class RepositoryCheck:
    """What was found.

    Attributes:
        faults: What a device would refuse.
        warnings: What it will refuse soon, or what nobody should run any more.
        releases: How many were checked.
        plans: How many were checked.
        files: Blobs that were read and verified.
    """

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    releases: int = 0
    plans: int = 0
    files: int = 0


def check_repository(repository: Repository) -> RepositoryCheck:
    """Verify a repository; the chain of roots was verified when it was opened."""
    found = RepositoryCheck()
    now = repository.now()
    if repository.timestamp is None or repository.snapshot is None:
        found.faults.append("there is no timestamp: nothing was ever completed")
        return found
    for name, expires in (
        ("root", repository.root.signed.expires),
        ("timestamp", repository.timestamp.signed.expires),
        ("snapshot", repository.snapshot.signed.expires),
    ):
        _check_expiry(found, name, expires, now)
    names = [name.removesuffix(".json") for name in repository.snapshot.signed.meta]
    order = {Targets.type: 0, ROLLOUTS: 1, BINS: 2}
    for name in sorted(names, key=lambda name: (order.get(name, 3), name)):
        try:
            metadata = repository.role(name)
        except TrustError as error:
            found.faults.append(str(error))
            continue
        if metadata is None:
            continue
        _check_expiry(found, name, metadata.signed.expires, now)
        for path in metadata.signed.targets:
            _check_target(found, repository, name, path)
    return found


def _check_expiry(found: RepositoryCheck, name: str, expires: datetime.datetime, now: datetime.datetime) -> None:
    if expires <= now:
        found.faults.append(f"{name} expired on {expires:%Y-%m-%d}")
    elif name not in ("timestamp", "snapshot", ROLLOUTS) and expires - now < datetime.timedelta(days=_DAYS):
        found.warnings.append(f"{name} expires on {expires:%Y-%m-%d}: it needs the offline keys")


def _check_target(found: RepositoryCheck, repository: Repository, role: str, path: str) -> None:
    try:
        content = repository.read_target(role, path)
    except EdgewrightError as error:
        found.faults.append(str(error))
        return
    if content is None:
        return
    try:
        if path.startswith("releases/"):
            _check_release(found, repository, decode_record(content, type=Manifest))
        elif path.startswith("rollouts/"):
            _check_plan(found, repository, decode_record(content, type=RolloutPlan))
        elif path.startswith("questions/"):
            _check_queries(found, repository, decode_record(content, type=LiveQueries))
    except (msgspec.MsgspecError, EdgewrightError) as error:
        found.faults.append(f"{path} cannot be read: {error}")


def _check_release(found: RepositoryCheck, repository: Repository, manifest: Manifest) -> None:
    found.releases += 1
    if manifest.end_of_life_at and parse_iso8601(manifest.end_of_life_at) <= repository.now():
        found.warnings.append(f"{manifest.name} {manifest.version} is retired since {manifest.end_of_life_at}")
    for variant in manifest.variants:
        for file in variant.files:
            parts: list[StoredFile | FileDelta] = [file, *file.deltas]
            for part in parts:
                digest, size = stored_form(part)
                content = repository.store.read(blob_name(digest))
                what = file.name if isinstance(part, StoredFile) else f"delta of {file.name}"
                if content is None:
                    found.faults.append(f"{manifest.name} {manifest.version}: {what} is missing")
                elif len(content) != size or hashlib.sha256(content).hexdigest() != digest:
                    found.faults.append(f"{manifest.name} {manifest.version}: {what} is not what was signed")
                else:
                    found.files += 1


def _check_queries(found: RepositoryCheck, repository: Repository, questions: LiveQueries) -> None:
    permit = current_permit(repository, questions.model, questions.device_class)
    for query in questions.queries:
        template = None if permit is None else permit.template(query)
        reason = "there is no such template" if template is None else template_violation(query, template)
        if reason is not None:
            found.faults.append(f"query {query.id}: {reason}")


def _check_plan(found: RepositoryCheck, repository: Repository, plan: RolloutPlan) -> None:
    found.plans += 1
    policy = current_policy(repository, plan.model, plan.device_class)
    if policy is None:
        found.faults.append(f"rollout {plan.rollout} has no policy")
        return
    found.faults += [f"rollout {plan.rollout}: {reason}" for reason in policy_violations(plan, policy)]
    published = dict(list_releases(repository, plan.model))
    for arm in plan.arms:
        if published.get(arm.version) != arm.manifest_sha256:
            found.faults.append(
                f"rollout {plan.rollout} points at {release_path(plan.model, arm.version)}, which is not signed"
            )
