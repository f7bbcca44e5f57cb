"""What people have done from the page, each written down; who tells the page what was found in sums."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgewright.server.access import Role, role_of
from edgewright.server.fleets import MissingError
from edgewright.server.operate import Acting
from edgewright.server.services import Services

__all__ = ["Acts", "Findings", "nothing_found"]

Findings = Callable[[str, str], dict[str, Any] | None]
"""What private sums say about a model on a device class, as `edgewright query judge --json` has it; None if no sums
were judged."""


_HOUR_S, _DAY_S = 3600.0, 86400.0


def nothing_found(_model: str, _device_class: str) -> None:
    """Say that nobody knows."""


@dataclass(frozen=True, slots=True)
class Acts:
    """What can be done; `by` is `user:NAME`, of whom it is known already that they may.

    Attributes:
        services: What it is done to.
        acting: Who changes rollouts and settles what awaits approval; it writes that down itself.
    """

    services: Services
    acting: Acting

    def silence(self, rule: str, subject: str, *, hours: float, by: str, why: str) -> None:
        """Tell nobody of an alert for some hours, 0 for telling again.

        Raises:
            MissingError: There is none.
        """
        until_s = self.services.now() + hours * _HOUR_S if hours else None
        if not self.services.store.alerts.silence(rule, subject, until_s=until_s):
            raise MissingError(f"there is no alert {rule[:80]!r} for {subject[:80]!r}", remedy="List the alerts.")
        self._note(by, "silence", rule, device_class=subject, for_s=hours * _HOUR_S, reason=why)

    def invite(
        self, device_class: str, *, labels: dict[str, str], channel: str, bench: bool, hours: float, by: str
    ) -> str:
        """Return a token that enrols one device; it is shown this once.

        Raises:
            InputError: A class, a label or a channel is no name.
        """
        token = self.services.store.devices.invite(
            device_class,
            made_by=by,
            now_s=self.services.now(),
            lifetime_s=hours * _HOUR_S,
            labels=labels,
            channel=channel,
            bench=bench,
        )
        self._note(by, "invite", device_class, count=1, labels=labels, bench=bench)
        return token

    def retire_device(self, device_id: str, *, by: str, why: str) -> None:
        """Believe a device no more.

        Raises:
            UnknownError: There is none of that name.
        """
        self.services.store.devices.retire(device_id, now_s=self.services.now())
        self._note(by, "retire device", device_id, reason=why)

    def mark_bench(self, device_id: str, *, bench: bool, by: str) -> None:
        """Say whether a device takes profiling jobs.

        Raises:
            UnknownError: There is none of that name.
        """
        self.services.store.devices.mark_bench(device_id, bench=bench)
        self._note(by, "mark bench", device_id, bench=bench)

    def add_token(self, name: str, role: str, *, days: float, by: str) -> str:
        """Return a new token for a program; it is shown this once.

        Raises:
            InputError: The name is none or taken, or there is no such role.
        """
        now_s, lifetime_s = self.services.now(), days * _DAY_S
        secret = self.services.store.people.add_token(
            name, role_of(role), made_by=by, now_s=now_s, lifetime_s=lifetime_s
        )
        self._note(by, "add token", name, role=role)
        return secret

    def retire_token(self, name: str, *, by: str) -> None:
        """Make a token void.

        Raises:
            InputError: There is none of that name.
        """
        self.services.store.people.retire_token(name, now_s=self.services.now())
        self._note(by, "retire token", name)

    def add_user(self, name: str, role: str, password: str, *, by: str) -> None:
        """Let somebody log in.

        Raises:
            InputError: The name is none or taken, the password too short, or there is no such role.
        """
        chosen: Role = role_of(role)
        self.services.store.people.add_user(name, chosen, password, now_s=self.services.now())
        self._note(by, "add user", name, role=role)

    def retire_user(self, name: str, *, by: str) -> None:
        """Let somebody log in no more.

        Raises:
            InputError: There is none of that name.
        """
        self.services.store.people.change_user(name, retired_s=self.services.now())
        self._note(by, "retire user", name)

    def _note(self, by: str, action: str, subject: str, **detail: Any) -> None:
        self.services.store.audit.write(by, action, subject, at_s=self.services.now(), detail=detail)
