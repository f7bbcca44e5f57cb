"""Names and versions that become paths: what could lead out of a folder is no name."""

import re
from functools import lru_cache

from edgewright.contract.errors import InputError

__all__ = ["checked_digest", "checked_name", "checked_version", "next_version", "version_key"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?", re.ASCII)
_VERSION = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){0,3}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


# The same few names come again and again; only what is right is remembered, so it is short.
_remembered = lru_cache(maxsize=1024)


@_remembered
def checked_name(what: str, name: str) -> str:
    """Return a name that is safe in a path, a URL and a shell.

    Args:
        what: What it names, for the message.
        name: 1 to 64 letters, digits, '.', '_' and '-'; the first is a letter or digit, the last no dot.

    Raises:
        InputError: It is none.

    >>> checked_name("model", "digits-v2")
    'digits-v2'
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InputError(
            f"{what} {name[:80]!r} is no name",
            remedy="Use 1 to 64 letters, digits, '.', '_' and '-'; begin with a letter or digit, without '..'.",
        )
    return name


@_remembered
def checked_version(version: str) -> str:
    """Return a version of one to four numbers.

    Raises:
        InputError: It is none.
    """
    if not _VERSION.fullmatch(version):
        raise InputError(
            f"version {version[:80]!r} is none", remedy="Use one to four numbers with dots, such as 1.0.0."
        )
    return version


@_remembered
def checked_digest(what: str, digest: str) -> str:
    """Return a sha256 in lower-case hexadecimal digits.

    Raises:
        InputError: It is none.
    """
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"{what} {digest[:80]!r} is no sha256", remedy="Give 64 hexadecimal digits, lower case.")
    return digest


def next_version(version: str) -> str:
    """Return the least version that is higher and has as many numbers.

    >>> next_version("1.9.3"), next_version("2")
    ('1.9.4', '3')
    """
    first, dot, last = checked_version(version).rpartition(".")
    return f"{first}{dot}{int(last) + 1}"


def version_key(version: str) -> tuple[int, int, int, int]:
    """Return what versions are ordered by; numbers that are left out are 0.

    >>> version_key("1.10") > version_key("1.9.3")
    True
    """
    numbers = [int(part) for part in checked_version(version).split(".")]
    first, second, third, fourth = [*numbers, 0, 0, 0][:4]
    return first, second, third, fourth
