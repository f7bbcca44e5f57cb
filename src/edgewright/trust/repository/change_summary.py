"""What a signer must read of permits and questions: what may be asked and is, in words, with what it was before."""

from collections.abc import Mapping
from typing import Any

import msgspec
from tuf.api.metadata import TargetFile

from edgewright.contract.errors import InputError
from edgewright.contract.query.permit import LiveQueries, QueryPermit
from edgewright.contract.schema import decode_record

__all__ = ["summarize_query_change"]

_KINDS: dict[str, type[QueryPermit] | type[LiveQueries]] = {"permits": QueryPermit, "questions": LiveQueries}
# Shown even where nothing changed; of all other fields what changed.
_PERMIT = ("server_url", "helper_public_key")
_TEMPLATE = ("clip", "min_cohort", "max_rho", "min_interval_seconds", "backends")
_QUERY = ("template", "min_cohort", "rho", "backend", "window_start", "window_end", "deadline", "release")


def summarize_query_change(path: str, before: TargetFile | None, after: TargetFile) -> list[str]:
    """Return lines on a permit or questions about to be signed; none of other records.

    Args:
        path: Of the record.
        before: As it is signed, None if it is not.
        after: As it is staged.
    """
    kind = _KINDS.get(path.partition("/")[0])
    if kind is None:
        return []
    new = _fields(kind, after)
    if new is None:
        return ["  holds nothing that devices can read: do not sign it"]
    old = {} if before is None else _fields(kind, before) or {}
    parts = (
        ("template", "templates", "name", _TEMPLATE) if kind is QueryPermit else ("query", "queries", "id", _QUERY)
    )
    what, many, key, always = parts
    said = _compared("  ", old, new, _PERMIT if kind is QueryPermit else (), without=(many, "revision"))
    known, named = ({each[key]: each for each in record.get(many, ())} for record in (old, new))
    for name, each in named.items():
        said.append(f"  {what} {name}" + ("" if name in known else ", which is new"))
        said += _compared("    ", known.get(name, {}), each, always, without=(key,))
    said += [f"  {what} {name} is no more" for name in known if name not in named]
    return said


def _fields(kind: type[QueryPermit] | type[LiveQueries], target: TargetFile) -> dict[str, Any] | None:
    """Return a record's fields, with those that take their default; None if devices would not read it."""
    custom = target.custom
    content = custom.get("record") if isinstance(custom, dict) else None
    try:
        found: dict[str, Any] = msgspec.to_builtins(decode_record(str(content), type=kind))
    except (msgspec.MsgspecError, InputError):
        return None
    return found


def _compared(
    indent: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    always: tuple[str, ...],
    *,
    without: tuple[str, ...],
) -> list[str]:
    said = []
    for name, value in new.items():
        changed = bool(old) and old.get(name) != value
        if name in without or not (changed or name in always):
            continue
        was = f", before {_text(old.get(name))}" if changed else ""
        said.append(f"{indent}{name}: {_text(value)}{was}")
    return said


def _text(value: Any) -> str:
    # As JSON in ASCII, so that what somebody staged cannot move the cursor of who reads it.
    return ascii(value) if isinstance(value, str) else ascii(msgspec.json.encode(value).decode())[1:-1]
