"""Records that people write or keep in files."""

from pathlib import Path
from typing import TypeVar

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.schema import decode_record

__all__ = ["read_record"]

FileRecord = TypeVar("FileRecord")


def read_record(path: Path, kind: type[FileRecord], what: str, remedy: str) -> FileRecord:
    """Return the record in a JSON file.

    Args:
        path: Of the file.
        kind: Of the record.
        what: It is, for the message.
        remedy: What to do if it is none.

    Raises:
        InputError: It cannot be read, or holds no such record.
    """
    try:
        return decode_record(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(f"{path} holds no {what}: {error}", remedy=remedy) from error
