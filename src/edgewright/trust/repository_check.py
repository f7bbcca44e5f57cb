"""A whole repository, verified as a device would: every signature, every name, every byte."""

import datetime
import hashlib
from dataclasses import dataclass, field

import msgspec
from tuf.api.metadata import Targets

from edgewright.contract.errors import EdgewrightError
from edgewright.contract.query.permit import Questions
from edgewright.contract.query.query import laxer
from edgewright.contract.release import Delta, Manifest, StoredFile, stored
from edgewright.contract.rollout.plan import Plan, refusals
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import time_of
from edgewright.trust.publishing.publish import known_policy, releases
from edgewright.trust.publishing.signed_queries import known_permit
from edgewright.trust.repository.metadata_rules import BINS, ROLLOUTS
from edgewright.trust.repository.repository import Repository, TrustError
from edgewright.trust.target_paths import blob_name, release_path

__all__ = ["Check", "check_repository"]

# What expires within so many days is worth a warning.
_DAYS = 14


@dataclass(slots=True)
class Check:
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


def check_repository(repository: Repository) -> Check:
    """Verify a repository; the chain of roots was verified when it was opened."""
    found = Check()
    now = repository.now()
    if repository.timestamp is None or repository.snapshot is None:
        found.faults.append("there is no timestamp: nothing was ever completed")
        return found
    for name, expires in (
        ("root", repository.root.signed.expires),
        ("timestamp", repository.timestamp.signed.expires),
        ("snapshot", repository.snapshot.signed.expires),
    ):
        _age(found, name, expires, now)
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
        _age(found, name, metadata.signed.expires, now)
        for path in metadata.signed.targets:
            _target(found, repository, name, path)
    return found


def _age(found: Check, name: str, expires: datetime.datetime, now: datetime.datetime) -> None:
    if expires <= now:
        found.faults.append(f"{name} expired on {expires:%Y-%m-%d}")
    elif name not in ("timestamp", "snapshot", ROLLOUTS) and expires - now < datetime.timedelta(days=_DAYS):
        found.warnings.append(f"{name} expires on {expires:%Y-%m-%d}: it needs the offline keys")


def _target(found: Check, repository: Repository, role: str, path: str) -> None:
    try:
        content = repository.read_target(role, path)
    except EdgewrightError as error:
        found.faults.append(str(error))
        return
    if content is None:
        return
    try:
        if path.startswith("releases/"):
            _release(found, repository, decode_record(content, type=Manifest))
        elif path.startswith("rollouts/"):
            _plan(found, repository, decode_record(content, type=Plan))
        elif path.startswith("questions/"):
            _questions(found, repository, decode_record(content, type=Questions))
    except (msgspec.MsgspecError, EdgewrightError) as error:
        found.faults.append(f"{path} cannot be read: {error}")


def _release(found: Check, repository: Repository, manifest: Manifest) -> None:
    found.releases += 1
    if manifest.end_of_life and time_of(manifest.end_of_life) <= repository.now():
        found.warnings.append(f"{manifest.name} {manifest.version} is retired since {manifest.end_of_life}")
    for variant in manifest.variants:
        for file in variant.files:
            parts: list[StoredFile | Delta] = [file, *file.deltas]
            for part in parts:
                digest, size = stored(part)
                content = repository.store.read(blob_name(digest))
                what = file.name if isinstance(part, StoredFile) else f"delta of {file.name}"
                if content is None:
                    found.faults.append(f"{manifest.name} {manifest.version}: {what} is missing")
                elif len(content) != size or hashlib.sha256(content).hexdigest() != digest:
                    found.faults.append(f"{manifest.name} {manifest.version}: {what} is not what was signed")
                else:
                    found.files += 1


def _questions(found: Check, repository: Repository, questions: Questions) -> None:
    permit = known_permit(repository, questions.model, questions.device_class)
    for query in questions.queries:
        template = None if permit is None else permit.template(query)
        reason = "there is no such template" if template is None else laxer(query, template)
        if reason is not None:
            found.faults.append(f"query {query.id}: {reason}")


def _plan(found: Check, repository: Repository, plan: Plan) -> None:
    found.plans += 1
    policy = known_policy(repository, plan.model, plan.device_class)
    if policy is None:
        found.faults.append(f"rollout {plan.rollout} has no policy")
        return
    found.faults += [f"rollout {plan.rollout}: {reason}" for reason in refusals(plan, policy)]
    published = dict(releases(repository, plan.model))
    for arm in plan.arms:
        if published.get(arm.version) != arm.manifest:
            found.faults.append(
                f"rollout {plan.rollout} points at {release_path(plan.model, arm.version)}, which is not signed"
            )
