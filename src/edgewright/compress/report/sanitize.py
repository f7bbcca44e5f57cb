"""Names from models, data and paths, made safe to show.

A control character can recolour a terminal or move its cursor, a bidirectional one can make text read as something
else, and XML cannot hold most of them at all.
"""

from typing import Any

import msgspec

from edgewright.contract.compression_report import CompressionReport

__all__ = ["printable", "printable_report"]


def printable(text: str) -> str:
    r"""Replace every character that is neither visible nor a line feed or tab.

    >>> printable("conv\x1b[31m")
    'conv�[31m'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\t\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def printable_report(report: CompressionReport) -> CompressionReport:
    """Return the report with every text in it printable."""
    return msgspec.convert(_walk(msgspec.to_builtins(report)), CompressionReport)


def _walk(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case dict():
            return {_walk(key): _walk(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_walk(entry) for entry in value]
        case _:
            return value
