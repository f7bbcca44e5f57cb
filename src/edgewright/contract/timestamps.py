"""Moments as records hold them: ISO 8601, in UTC unless they say otherwise."""

import datetime

from edgewright.contract.errors import InputError

__all__ = ["checked_iso8601", "parse_iso8601", "to_iso8601"]


def parse_iso8601(text: str) -> datetime.datetime:
    """Return a moment.

    Raises:
        InputError: The text is none.

    >>> parse_iso8601("2026-11-21T12:00:00").isoformat()
    '2026-11-21T12:00:00+00:00'
    """
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"{text[:80]!r} is no time", remedy="Write it as 2027-12-31 or 2027-12-31T23:59:00+00:00."
        ) from error
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def to_iso8601(at: float) -> datetime.datetime:
    """Return a Unix time as a moment, to the second.

    >>> to_iso8601(0.5).isoformat()
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.datetime.fromtimestamp(int(at), datetime.UTC)


def checked_iso8601(what: str, text: str) -> str:
    """Return the text of a moment, or "" for none.

    Raises:
        InputError: It is no moment.
    """
    if text:
        try:
            parse_iso8601(text)
        except InputError as error:
            raise InputError(f"{what}: {error.message}", remedy=error.remedy) from error
    return text
