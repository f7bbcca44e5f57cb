"""What a device tells the control plane, and what it remembers of having told it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgewright import __version__
from edgewright.contract.refusal import Refusal
from edgewright.contract.status import Status
from edgewright.device.files import Files

__all__ = ["Contact", "keep_contact", "read_contact", "status_of"]

_FILE = "server.json"
_LONGEST_REASON, _MOST_FAILED, _MOST_COUNT = 500, 32, 1 << 53


class Contact(msgspec.Struct, frozen=True):
    """How it stands with the control plane.

    Attributes:
        reached: When it took what this device told last, UTC, ISO 8601; "" for never.
        trouble: Why it did not since then, "" for nothing.
    """

    reached: str = ""
    trouble: str = ""


def read_contact(state: Path, files: Files) -> Contact:
    """Return what the disk holds; nothing was told if that is damaged."""
    try:
        return msgspec.json.decode(files.read(state / _FILE), type=Contact)
    except (OSError, msgspec.MsgspecError):
        return Contact()


def keep_contact(state: Path, files: Files, contact: Contact) -> None:
    """Keep it for the device's owner; other processes show it.

    Raises:
        OSError: The disk is full or broken.
    """
    files.write(state / _FILE, msgspec.json.encode(contact))


def status_of(told: Mapping[str, Any]) -> Status:
    """Return what a device says of itself in the form that the control plane takes, cut to its limits.

    Args:
        told: By `Agent.status`.
    """
    free = told["free_bytes"]
    charge = told["battery"]
    return Status(
        model=told["model"] or "",
        version=told["version"] or "",
        digest=told["digest"] or "",
        state=told["state"],
        proven=told["proven"] or "",
        trial=told["trial"] or "",
        previous=told["previous"] or "",
        wanted=told["wanted"] or "",
        refusal=_cut(told["last_refusal"]),
        notice=_cut(told["notice"]),
        failed=tuple(told["failed"])[-_MOST_FAILED:],
        broken=tuple(told["broken"])[-_MOST_FAILED:],
        restart_needed=told["restart_needed"],
        failures=min(told["failures"], _MOST_COUNT),
        latency_s=told["latency_s"],
        uptime_s=told["uptime_s"],
        free_bytes=None if free is None else min(free, _MOST_COUNT),
        battery=None if charge is None else min(1.0, max(0.0, charge)),
        agent=__version__,
        snapshot=told["snapshot"] or "",
        checked=told["checked"] or "",
    )


def _cut(refusal: Refusal | None) -> Refusal | None:
    if refusal is None:
        return None
    file = refusal.file[: _LONGEST_REASON // 2]
    return Refusal(refusal.code, file, refusal.reason[: _LONGEST_REASON - len(file)])
