"""Tables of a TOML file as records: whatever is wrong is refused with its place and what to write instead."""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgewright.contract.config.toml_location import TomlLocation
from edgewright.contract.errors import EdgewrightError, ProjectError
from edgewright.contract.units import Dimension, parse_quantity

__all__ = [
    "did_you_mean",
    "parse_tables",
    "read_quantity",
    "read_table_list",
    "read_text",
    "read_toml_table",
    "refuse_unknown_keys",
    "with_location",
]

_EXAMPLES = {
    "latency_p50": '"5ms"',
    "latency_p95": '"8ms"',
    "peak_memory": '"20MB"',
    "size": '"200KB"',
    "energy": '"2mJ"',
    "watts_per_core": '"2.5W"',
    "time_limit": '"120s"',
    "outcome_age": '"1h"',
    "offline_after": '"2h"',
    "evaluation_interval": '"10s"',
    "retire_unused": '"90d"',
    "for": '"10min"',
    "cooldown": '"1h"',
    "timeout": '"6h"',
}

# Keys of version 0.1 that have another name since 0.2.
_RENAMED = {
    "approval": "needs_approval",
    "clear": "clear_at",
    "features": "feature_loss_weight",
    "look": "evaluation_interval",
    "mail": "email",
    "outcome": "outcome_age",
    "per_day": "max_per_day",
    "relations": "relation_loss_weight",
    "silent": "offline_after",
    "to": "recipients",
}

ConfigRecord = TypeVar("ConfigRecord")


def read_text(path: Path) -> str:
    """Return a project file's text.

    Raises:
        ProjectError: It cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ProjectError(f"{path} does not exist", remedy="Write one with 'edgewright init'.") from error
    except UnicodeDecodeError as error:
        raise ProjectError(f"{path} is not UTF-8 text", remedy="Save it as UTF-8.") from error
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror}", remedy="Check its permissions.") from error


def parse_tables(text: str, file: str) -> tuple[dict[str, Any], TomlLocation]:
    """Return a file's tables and the place of the whole.

    Raises:
        ProjectError: It is not TOML.
    """
    try:
        return tomllib.loads(text), TomlLocation(file, text)
    except tomllib.TOMLDecodeError as error:
        raise ProjectError(f"{file} is not valid TOML: {error}", remedy="Mend that line.") from error


def read_table_list(
    tables: object, place: TomlLocation, read: Callable[[object, TomlLocation], ConfigRecord], *, of: str = ""
) -> tuple[ConfigRecord, ...]:
    """Convert a list of tables, each by `read`.

    Args:
        tables: That should be a list.
        place: Of the list.
        read: Makes one of them.
        of: Attribute that no two have the same, "" for none.

    Raises:
        ProjectError: It is no list, or two are of one name.
    """
    if not isinstance(tables, list):
        raise ProjectError(
            f"{place} must be a list of tables",
            remedy=f"Write [[{'.'.join(place.path)}]] with two brackets on either side.",
        )
    found = tuple(read(entry, place[number]) for number, entry in enumerate(tables))
    names = [getattr(entry, of) for entry in found] if of else []
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ProjectError(f"{place[number] / of} is {name!r} again", remedy=f"Give each its own {of}.")
    return found


def read_toml_table(table: object, kind: Any, place: TomlLocation) -> Any:
    """Convert one table into its record, naming the place of whatever is wrong."""
    record = next((part for part in getattr(kind, "__args__", (kind,)) if part is not type(None)), kind)
    if not isinstance(table, dict):
        raise ProjectError(f"{place} must be a table", remedy=f"Write [{'.'.join(place.path)}] and its keys below.")
    refuse_unknown_keys(table, record, place)
    try:
        return with_location(place, lambda: msgspec.convert(table, record))
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        where = place
        for key in re.findall(r"\.(\w+)", path):
            where = where / key
        if missing := re.search(r"missing required field `(\w+)`", reason):
            raise ProjectError(f"{where} has no {missing[1]}", remedy=f"Add {missing[1]} = …") from error
        wrong = f"{where}: {reason[0].lower()}{reason[1:].replace('`', '').replace(' | null', '')}"
        raise ProjectError(wrong, remedy=_remedy(where.path[-1], reason, record)) from error


def _remedy(key: str, reason: str, record: Any) -> str:
    if "`str" in reason and key in _EXAMPLES:
        return f"Write a number and a unit in quotes, such as {key} = {_EXAMPLES[key]}."
    kinds = [field.type for field in msgspec.structs.fields(record) if field.encode_name == key]
    choices = [str(word) for kind in kinds for word in re.findall(r"'([\w ]+)'", str(kind))]
    if choices:
        return f"Write one of {', '.join(choices)}."
    return "Write numbers without quotes, text in quotes, lists in brackets."


def refuse_unknown_keys(table: Mapping[str, object], record: Any, place: TomlLocation) -> None:
    """Refuse keys that the record does not have, also in tables inside."""
    known = {field.encode_name: field.type for field in msgspec.structs.fields(record)}
    renamed = {key: _RENAMED[key] for key in table if key not in known and _RENAMED.get(key) in known}
    if renamed:
        first = next(iter(renamed))
        changes = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        raise ProjectError(
            f"{place / first}: {first!r} is a key of Edgewright 0.1", remedy=f"Rename it: {changes}."
        )
    for key, value in table.items():
        if key not in known:
            raise ProjectError(
                f"{place / key}: unknown key {key!r}",
                remedy=f"Known here: {', '.join(known)}{did_you_mean(key, known)}.",
            )
        if isinstance(value, dict) and isinstance(known[key], type) and issubclass(known[key], msgspec.Struct):
            refuse_unknown_keys(value, known[key], place / key)


def read_quantity(text: str, dimension: Dimension, place: TomlLocation) -> float:
    """Read a quantity, naming the place if it is none."""
    return with_location(place, lambda: parse_quantity(text, dimension))


def with_location(place: TomlLocation, make: Callable[[], ConfigRecord]) -> ConfigRecord:
    """Call `make`; an error of this package gets the place in front."""
    try:
        return make()
    except EdgewrightError as error:
        raise ProjectError(_behind(place, error.message), remedy=error.remedy) from error


def _behind(place: TomlLocation, message: str) -> str:
    """Return the message behind the place, which an inner call may already have given."""
    return message if message.startswith(f"{place.file}: ") else f"{place}: {message}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question about a name that is close, "" if none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
