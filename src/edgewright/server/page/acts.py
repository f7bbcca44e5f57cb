"""What people have done from the page, and what the page asks of those who watch: whoever runs the server gives both.

Every act is written to the audit log by who performs it. The page has checked that the person may.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgewright.contract.decision import Decision
from edgewright.server.access import Role

__all__ = ["Acts", "Awaiting", "Sources", "nothing_found"]


@dataclass(frozen=True, slots=True)
class Awaiting:
    """An action that an alert wants, and that a person must agree to.

    Attributes:
        id: Of the action.
        action: What would be done.
        about: Device class or rollout.
        why: For people.
        since_s: Unix time.
    """

    id: str
    action: str
    about: str
    why: str
    since_s: float


class Acts(Protocol):
    """What can be done; `by` is `user:NAME`.

    Each raises an `EdgewrightError` if it cannot be.
    """

    def pause(self, model: str, device_class: str, *, by: str, why: str) -> None:
        """Let no further device into a rollout."""

    def resume(self, model: str, device_class: str, *, by: str, why: str) -> None:
        """Go on with a rollout that was paused."""

    def advance(self, model: str, device_class: str, *, by: str, why: str) -> None:
        """Take a rollout to its next stage, whatever the evidence."""

    def abort(self, model: str, device_class: str, *, by: str, why: str) -> None:
        """Take the devices of a rollout back to what they had."""

    def silence(self, rule: str, subject: str, *, hours: float, by: str) -> None:
        """Tell nobody of an alert for some hours."""

    def approve(self, action_id: str, *, by: str) -> None:
        """Have an action done that waits for it."""

    def refuse(self, action_id: str, *, by: str) -> None:
        """Have an action dropped that waits."""

    def invite(
        self,
        device_class: str,
        *,
        labels: dict[str, str],
        channel: str,
        bench: bool,
        hours: float,
        by: str,
    ) -> str:
        """Return a token that enrols one device."""

    def retire_device(self, device_id: str, *, by: str) -> None:
        """Believe a device no more."""

    def mark_bench(self, device_id: str, *, bench: bool, by: str) -> None:
        """Say whether a device takes profiling jobs."""

    def add_token(self, name: str, role: Role, *, days: float, by: str) -> str:
        """Return a new token for a script."""

    def retire_token(self, name: str, *, by: str) -> None:
        """Make a token void."""

    def add_user(self, name: str, role: Role, password: str, *, by: str) -> None:
        """Let somebody log in."""


def nothing_found(_model: str, _device_class: str) -> None:
    """Say that nobody knows."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What the page is told by who watches the fleet.

    Attributes:
        standing: What would be decided now about a model's rollout on a device class; None if nobody knows, and
            then the last decision that was kept is shown.
        findings: What private sums say about a model on a device class, in the form of `edgewright query judge
            --json`; None if none was judged.
        awaiting: Actions that wait for somebody.
    """

    standing: Callable[[str, str], Decision | None] = nothing_found
    findings: Callable[[str, str], dict[str, Any] | None] = nothing_found
    awaiting: Callable[[], Sequence[Awaiting]] = tuple
