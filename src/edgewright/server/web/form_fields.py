"""What people typed into forms, read strictly: a number that is none is said to be none."""

import math
from typing import Annotated

from litestar.enums import RequestEncodingType
from litestar.params import Body

from edgewright.contract.errors import InputError

__all__ = ["FormData", "local_path", "parse_number", "read_text_field"]

FormData = Annotated[dict[str, str], Body(media_type=RequestEncodingType.URL_ENCODED)]
"""What a form sends."""

_LONGEST = 2000


def read_text_field(form: dict[str, str], name: str, default: str = "") -> str:
    """Return what was typed into a field.

    Raises:
        InputError: It is too long.
    """
    found = form.get(name, default).strip()
    if len(found) > _LONGEST:
        raise InputError(f"{name} has {len(found)} letters", remedy=f"Write at most {_LONGEST}.")
    return found


def parse_number(form: dict[str, str], name: str, *, least: float, most: float) -> float:
    """Return a number.

    Raises:
        InputError: It is none, or outside of its limits.

    >>> parse_number({"hours": "8"}, "hours", least=0, most=24)
    8.0
    """
    told = form.get(name, "")
    try:
        found = float(told)
    except ValueError:
        found = math.nan
    if not least <= found <= most:
        raise InputError(f"{name} is {told[:40]!r}", remedy=f"Give a number from {least:g} to {most:g}.")
    return found


def local_path(place: str) -> str:
    r"""Return a place of this server, "/" for any other: nobody is sent elsewhere by a link that says `next`.

    >>> [local_path(path) for path in ("/rollouts", "//other.example", "https://other.example", "/\\x")]
    ['/rollouts', '/', '/', '/']
    """
    plain = place.startswith("/") and not place.startswith(("//", "/\\")) and place.isprintable()
    return place if plain and "\\" not in place else "/"
