"""Style, scripts and icon: read once, served by their names alone, so that no path can lead anywhere else."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["ASSETS", "Asset", "address_of"]

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_NAMES = (
    "edgewright.css",
    "edgewright.js",
    "edgewright.svg",
    "vendor/htmx.min.js",
    "vendor/uPlot.iife.min.js",
    "vendor/uPlot.min.css",
)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that pages name.

    Attributes:
        content: Of it.
        kind: Its media type.
        digest: The beginning of its sha256, which is in its address.
    """

    content: bytes
    kind: str
    digest: str


def _read(name: str) -> Asset:
    content = (files(__package__) / "static" / name).read_bytes()
    return Asset(content, _TYPES[name.rpartition(".")[2]], hashlib.sha256(content).hexdigest()[:16])


ASSETS = {name.rpartition("/")[2]: _read(name) for name in _NAMES}
"""By name, without the folder."""


def address_of(name: str) -> str:
    """Return where a file is; another version of it has another address."""
    return f"/static/{ASSETS[name].digest}/{name}"
