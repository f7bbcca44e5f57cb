"""Why a device did not do what it was told: a code for scripts, the file, and a sentence for people."""

from typing import Literal

import msgspec

from edgewright.contract.errors import WorkError

__all__ = ["Refusal", "RefusalCode", "RefusedError"]

RefusalCode = Literal[
    "unreachable",
    "missing",
    "slow",
    "oversized",
    "tampered",
    "unsigned",
    "rollback",
    "expired",
    "policy",
    "denied",
    "wrong class",
    "requirement",
    "external data",
    "retired",
    "disk",
    "battery",
    "hours",
    "self-test",
    "budget",
    "probation",
    "locked",
    "installer",
]


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device refused.

    Attributes:
        code: The kind of reason.
        file: What it is about: metadata, a manifest, an artifact; "" for none.
        reason: One sentence for people.
    """

    code: RefusalCode
    file: str
    reason: str


class RefusedError(WorkError):
    """The device refuses; the proven model goes on serving."""

    code = "release_refused"

    def __init__(self, code: RefusalCode, file: str, reason: str, *, remedy: str = "") -> None:
        self.refusal = Refusal(code, file, reason)
        super().__init__(reason, remedy=remedy or "The proven model goes on serving.")
