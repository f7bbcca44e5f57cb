"""The version of everything that is stored or sent: one number for all records, refused when it is another.

A record carries it as its field `schema`. Version 1 was never released; nothing reads it.
"""

from typing import Final, Literal, TypeVar

import msgspec

__all__ = ["SCHEMA_VERSION", "SchemaVersion", "decode_record"]

SchemaVersion = Literal[2]
SCHEMA_VERSION: Final[SchemaVersion] = 2

_Record = TypeVar("_Record")


class _Versioned(msgspec.Struct):
    schema: int | None = None


def decode_record(content: bytes | str, *, type: type[_Record]) -> _Record:  # noqa: A002 - as msgspec calls it
    """Decode one JSON record, and say so where it is of another version.

    Args:
        content: JSON text.
        type: The record's class.

    Raises:
        msgspec.ValidationError: It does not fit the class; for another schema version the text names both versions.
        msgspec.DecodeError: It is not JSON.

    >>> class Device(msgspec.Struct, frozen=True):
    ...     name: str
    ...     schema: SchemaVersion = SCHEMA_VERSION
    >>> decode_record('{"name": "camera-1", "schema": 2}', type=Device).name
    'camera-1'
    >>> decode_record('{"name": "camera-1", "schema": 1}', type=Device)
    Traceback (most recent call last):
    msgspec.ValidationError: schema version 1, but this version reads schema version 2: create it anew
    """
    try:
        return msgspec.json.decode(content, type=type)
    except msgspec.ValidationError:
        try:
            found = msgspec.json.decode(content, type=_Versioned).schema
        except msgspec.ValidationError:
            found = None
        if found is None or found == SCHEMA_VERSION:
            raise
        newer = found > SCHEMA_VERSION
        advice = "update Edgewright" if newer else "create it anew"
        raise msgspec.ValidationError(
            f"schema version {found}, but this version reads schema version {SCHEMA_VERSION}: {advice}"
        ) from None
