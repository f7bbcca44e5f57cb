"""Questions to a fleet: what may be asked is signed offline, what is asked within that online."""

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.model.reference_profile import ReferenceProfile
from edgewright.contract.query.permit import LiveQueries, QueryPermit
from edgewright.contract.query.query import Query, template_violation
from edgewright.contract.release import Manifest, stored_form
from edgewright.contract.schema import decode_record
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.signed_records import change_offline, change_online, signed_record_at
from edgewright.trust.target_paths import blob_name, permit_path, queries_path, release_path

__all__ = ["current_permit", "current_queries", "publish_permit", "publish_query", "reference_profile_of"]


def current_permit(repository: Repository, model: str, device_class: str) -> QueryPermit | None:
    """Return what may be asked, None if nothing may be."""
    return signed_record_at(repository, permit_path(model, device_class), QueryPermit)


def current_queries(repository: Repository, model: str, device_class: str) -> LiveQueries:
    """Return what is asked."""
    found = signed_record_at(repository, queries_path(model, device_class), LiveQueries)
    return found or LiveQueries(model, device_class)


def reference_profile_of(repository: Repository, model: str, version: str, device_class: str) -> ReferenceProfile:
    """Return the reference profile of a release: in whose bins devices count.

    Raises:
        InputError: There is no such release, it has none, or it is encrypted.
    """
    path = release_path(model, version)
    content = repository.read_target(repository.bin_of(path), path)
    manifest = None if content is None else decode_record(content, type=Manifest)
    variant = None if manifest is None else manifest.variant(device_class)
    if manifest is None or variant is None or not variant.reference_profile:
        raise InputError(
            f"{model} {version} is not published for {device_class}, or without a reference profile",
            remedy="Publish what compress wrote, or with --reference.",
        )
    file = variant.file(variant.reference_profile)
    if file.encrypted is not None:
        raise InputError(
            f"the profile of {model} {version} is encrypted to {file.encrypted.key_name}",
            remedy="Write the template by hand, and name it with --template.",
        )
    held = repository.store.read(blob_name(stored_form(file)[0]))
    if held is None:
        raise InputError(f"the profile of {model} {version} is missing", remedy="Run 'edgewright repo check'.")
    return decode_record(held, type=ReferenceProfile)


def publish_permit(
    repository: Repository, keys: KeyFolder, record: QueryPermit, *, only_stage: bool = False
) -> bool:
    """Have the offline keys sign what may be asked, and return whether it landed.

    Raises:
        InputError: Its revision is not above the one before.
    """
    with repository.locked():
        before = current_permit(repository, record.model, record.device_class)
        if before is not None and record.revision <= before.revision:
            raise InputError(
                f"the permit has revision {record.revision}, the one before {before.revision}",
                remedy="Devices never go back: give it a higher revision.",
            )
        path = permit_path(record.model, record.device_class)
        return change_offline(repository, keys, {path: msgspec.json.encode(record)}, only_stage=only_stage)


def publish_query(
    repository: Repository,
    keys: KeyFolder,
    model: str,
    device_class: str,
    *,
    query: Query | None = None,
    without: str = "",
) -> LiveQueries:
    """Sign what is asked with the online key: one query more, or one less.

    Args:
        repository: As of now.
        keys: With the online ones.
        model: About which.
        device_class: Whose devices.
        query: That is added.
        without: Id of a query that is taken away.

    Raises:
        InputError: The query is laxer than its template, or there is no such template or query.
    """
    with repository.locked():
        questions = current_queries(repository, model, device_class)
        queries = questions.queries
        if without:
            if without not in {each.id for each in queries}:
                raise InputError(f"query {without} is not asked", remedy="See 'edgewright query status'.")
            queries = tuple(each for each in queries if each.id != without)
        if query is not None:
            known = current_permit(repository, model, device_class)
            template = None if known is None else known.template(query)
            if template is None:
                raise InputError(
                    f"no template {query.template} is permitted for {model} on {device_class}",
                    remedy="Have the offline keys sign it with 'edgewright query permit'.",
                )
            reason = template_violation(query, template)
            if reason is not None:
                raise InputError(f"query {query.id}: {reason}", remedy="Keep to the template, or have it changed.")
            queries = (*queries, query)
        questions = LiveQueries(model, device_class, queries)
        change_online(repository, keys, queries_path(model, device_class), msgspec.json.encode(questions))
        return questions
