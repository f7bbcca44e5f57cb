"""Questions to a fleet: what may be asked is signed offline, what is asked within that online."""

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.model.reference_profile import Profile
from edgewright.contract.query.permit import Permit, Questions
from edgewright.contract.query.query import Query, laxer
from edgewright.contract.release import Manifest, stored
from edgewright.contract.schema import decode_record
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.signed_records import change_offline, change_online, record_at
from edgewright.trust.target_paths import blob_name, permit_path, questions_path, release_path

__all__ = ["ask", "known_permit", "known_questions", "permit", "profile_of"]


def known_permit(repository: Repository, model: str, device_class: str) -> Permit | None:
    """Return what may be asked, None if nothing may be."""
    return record_at(repository, permit_path(model, device_class), Permit)


def known_questions(repository: Repository, model: str, device_class: str) -> Questions:
    """Return what is asked."""
    found = record_at(repository, questions_path(model, device_class), Questions)
    return found or Questions(model, device_class)


def profile_of(repository: Repository, model: str, version: str, device_class: str) -> Profile:
    """Return the reference profile of a release: in whose bins devices count.

    Raises:
        InputError: There is no such release, it has none, or it is encrypted.
    """
    path = release_path(model, version)
    content = repository.read_target(repository.bin_of(path), path)
    manifest = None if content is None else decode_record(content, type=Manifest)
    variant = None if manifest is None else manifest.variant(device_class)
    if manifest is None or variant is None or not variant.reference:
        raise InputError(
            f"{model} {version} is not published for {device_class}, or without a reference profile",
            remedy="Publish what compress wrote, or with --reference.",
        )
    file = variant.file(variant.reference)
    if file.sealed is not None:
        raise InputError(
            f"the profile of {model} {version} is encrypted to {file.sealed.key}",
            remedy="Write the template by hand, and name it with --template.",
        )
    held = repository.store.read(blob_name(stored(file)[0]))
    if held is None:
        raise InputError(f"the profile of {model} {version} is missing", remedy="Run 'edgewright repo check'.")
    return decode_record(held, type=Profile)


def permit(repository: Repository, keys: KeyFolder, record: Permit, *, only_stage: bool = False) -> bool:
    """Have the offline keys sign what may be asked, and return whether it landed.

    Raises:
        InputError: Its revision is not above the one before.
    """
    with repository.locked():
        before = known_permit(repository, record.model, record.device_class)
        if before is not None and record.revision <= before.revision:
            raise InputError(
                f"the permit has revision {record.revision}, the one before {before.revision}",
                remedy="Devices never go back: give it a higher revision.",
            )
        path = permit_path(record.model, record.device_class)
        return change_offline(repository, keys, {path: msgspec.json.encode(record)}, only_stage=only_stage)


def ask(
    repository: Repository,
    keys: KeyFolder,
    model: str,
    device_class: str,
    *,
    query: Query | None = None,
    without: str = "",
) -> Questions:
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
        questions = known_questions(repository, model, device_class)
        queries = questions.queries
        if without:
            if without not in {each.id for each in queries}:
                raise InputError(f"query {without} is not asked", remedy="See 'edgewright query status'.")
            queries = tuple(each for each in queries if each.id != without)
        if query is not None:
            known = known_permit(repository, model, device_class)
            template = None if known is None else known.template(query)
            if template is None:
                raise InputError(
                    f"no template {query.template} is permitted for {model} on {device_class}",
                    remedy="Have the offline keys sign it with 'edgewright query permit'.",
                )
            reason = laxer(query, template)
            if reason is not None:
                raise InputError(f"query {query.id}: {reason}", remedy="Keep to the template, or have it changed.")
            queries = (*queries, query)
        questions = Questions(model, device_class, queries)
        change_online(repository, keys, questions_path(model, device_class), msgspec.json.encode(questions))
        return questions
