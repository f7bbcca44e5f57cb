"""Numbers, times and states as people read them: with units, never a colour alone."""

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgewright.contract.units import format_quantity

__all__ = [
    "Badge",
    "DisplayTime",
    "Tone",
    "count_of",
    "display_time",
    "duration",
    "labels_text",
    "latency_text",
    "make_badge",
    "odds_text",
    "percent_text",
    "points_text",
    "short_digest",
    "size_text",
]

Tone = Literal["good", "warn", "bad", "quiet"]
_SIGNS: dict[Tone, str] = {"good": "✓", "warn": "!", "bad": "✗", "quiet": "–"}
_STEPS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Badge:
    """A state: a word, a sign before it, and a tone that only repeats them.

    Attributes:
        tone: For the style.
        sign: For the eye.
        word: That says it.
    """

    tone: Tone
    sign: str
    word: str


@dataclass(frozen=True, slots=True)
class DisplayTime:
    """A time.

    Attributes:
        iso: For machines.
        words: For people, in UTC.
        ago: How long before now, or after.
    """

    iso: str
    words: str
    ago: str


def make_badge(tone: Tone, word: str) -> Badge:
    """Return a state as it is shown."""
    return Badge(tone, _SIGNS[tone], word)


def display_time(unix_time: float | None, now: float) -> DisplayTime | None:
    """Return a time as it is shown, None for never.

    >>> display_time(0.5, 7200.5).words, display_time(3600, 60 * 150).ago
    ('1970-01-01 00:00 UTC', '90 min ago')
    """
    if not unix_time:
        return None
    at = datetime.datetime.fromtimestamp(unix_time, datetime.UTC)
    return DisplayTime(at.isoformat(timespec="seconds"), at.strftime("%Y-%m-%d %H:%M UTC"), _ago(now - unix_time))


def duration(seconds: float) -> str:
    """Return a length of time in its largest unit of which there are two.

    >>> duration(7200), duration(90), duration(200000)
    ('2 h', '90 s', '2 d')
    """
    for step, unit in _STEPS:
        if seconds >= 2 * step:
            return f"{seconds / step:.0f} {unit}"
    return f"{seconds:.3g} s"


def percent_text(share: float | None, places: int = 1) -> str:
    """Return a share.

    >>> percent_text(0.0213), percent_text(None)
    ('2.1 %', '–')
    """
    return _UNKNOWN if share is None or not math.isfinite(share) else f"{100 * share:.{places}f} %"


def points_text(difference: float | None) -> str:
    """Return a difference of shares, in percentage points, with its sign.

    >>> points_text(-0.0213), points_text(math.inf)
    ('-2.13 pp', '–')
    """
    if difference is None or not math.isfinite(difference):
        return _UNKNOWN
    return f"{100 * difference:+.2f} pp"


def odds_text(log: float) -> str:
    """Return evidence from its natural logarithm.

    >>> odds_text(0.0), odds_text(math.log(20)), odds_text(40.0), odds_text(-3.0)
    ('1 to 1', '20 to 1', 'over a million to 1', '1 to 20.1')
    """
    if log > math.log(1e6):
        return "over a million to 1"
    if log < -math.log(1e6):
        return "1 to over a million"
    many = math.exp(abs(log))
    words = f"{many:,.0f}" if many >= 100 else f"{many:.3g}"
    return f"{words} to 1" if log >= 0 else f"1 to {words}"


def size_text(size_bytes: float | None) -> str:
    """Return a size.

    >>> size_text(194_120)
    '194 KB'
    """
    return _UNKNOWN if size_bytes is None else format_quantity(size_bytes, "size")


def latency_text(seconds: float | None) -> str:
    """Return a short time, such as a latency.

    >>> latency_text(0.0123)
    '12.3 ms'
    """
    return _UNKNOWN if seconds is None else format_quantity(seconds, "time")


def count_of(number: int, what: str, many: str = "") -> str:
    """Return how many there are of something.

    >>> count_of(1, "device"), count_of(12_000, "device")
    ('1 device', '12,000 devices')
    """
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def short_digest(digest: str) -> str:
    """Return the beginning of a digest or of a device's name, which is enough to tell it."""
    return digest[:12]


def labels_text(given: Mapping[str, str]) -> str:
    """Return labels in one line.

    >>> labels_text({"site": "berlin", "floor": "2"})
    'floor=2, site=berlin'
    """
    return ", ".join(f"{name}={value}" for name, value in sorted(given.items()))


def _ago(seconds: float) -> str:
    if abs(seconds) < 2:
        return "now"
    return f"{duration(seconds)} ago" if seconds > 0 else f"in {duration(-seconds)}"
