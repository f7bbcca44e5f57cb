"""Who did what, and who may: the audit log, users, tokens, invitations."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.server.store.records import ApiToken, AuditEntry, EnrolmentToken, UserAccount
from edgewright.server.web.view_models.formatting import Badge, DisplayTime, display_time, labels_text, make_badge

__all__ = [
    "EntryRow",
    "InvitedRow",
    "TokenRow",
    "UserRow",
    "chain",
    "entry_rows",
    "invited_rows",
    "token_rows",
    "user_rows",
]


@dataclass(frozen=True, slots=True)
class EntryRow:
    """An entry of the audit log.

    Attributes:
        number: Of it.
        at: When.
        actor: Who.
        action: What.
        subject: To what.
        detail: More, as JSON; "" for none.
        digest: Of it, which the next one holds.
    """

    number: int
    at: DisplayTime | None
    actor: str
    action: str
    subject: str
    detail: str
    digest: str


@dataclass(frozen=True, slots=True)
class UserRow:
    """Somebody who may log in.

    Attributes:
        name: Theirs.
        role: Theirs.
        state: Whether they still may.
        made: Since when.
        alive: Whether they can be retired.
    """

    name: str
    role: str
    state: Badge
    made: DisplayTime | None
    alive: bool


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token of a script.

    Attributes:
        name: Of it.
        role: Of it.
        created_by: Who made it.
        state: Whether it still counts.
        expires: When it is void.
        used: When it was used last.
        alive: Whether it can be retired.
    """

    name: str
    role: str
    created_by: str
    state: Badge
    expires: DisplayTime | None
    used: DisplayTime | None
    alive: bool


@dataclass(frozen=True, slots=True)
class InvitedRow:
    """A device that may still enrol.

    Attributes:
        device_class: That it enrols into.
        labels: That it gets.
        channel: That it gets.
        profiling: Whether it takes profiling jobs.
        created_by: Who invited.
        expires: When the invitation is void.
    """

    device_class: str
    labels: str
    channel: str
    profiling: bool
    created_by: str
    expires: DisplayTime | None


def entry_rows(entries: Sequence[AuditEntry], now: float) -> tuple[EntryRow, ...]:
    """Return entries in the order given."""
    return tuple(
        EntryRow(
            one.number,
            display_time(one.at, now),
            one.actor,
            one.action,
            one.subject,
            "" if bytes(one.detail) == b"{}" else bytes(one.detail).decode(),
            one.digest,
        )
        for one in entries
    )


def chain(broken: int | None, head: tuple[int, str]) -> Badge:
    """Return whether the log is as it was written.

    Args:
        broken: Number of the first entry that is not.
        head: Number and digest of the last entry.
    """
    if broken is not None:
        return make_badge("bad", f"entry {broken} is not as it was written")
    return make_badge("good", f"all {head[0]:,} entries are as they were written")


def user_rows(users: Sequence[UserAccount], now: float) -> tuple[UserRow, ...]:
    """Return users in the order given."""
    return tuple(
        UserRow(
            one.name,
            one.role,
            make_badge("good", "may log in") if one.retired_at is None else make_badge("quiet", "retired"),
            display_time(one.created_at, now),
            one.retired_at is None,
        )
        for one in users
    )


def token_rows(tokens: Sequence[ApiToken], now: float) -> tuple[TokenRow, ...]:
    """Return tokens in the order given."""
    found = []
    for one in tokens:
        alive = one.retired_at is None and one.expires_at > now
        state = (
            make_badge("good", "counts")
            if alive
            else make_badge("quiet", "expired" if one.retired_at is None else "retired")
        )
        times = display_time(one.expires_at, now), display_time(one.last_used_at, now)
        found.append(TokenRow(one.name, one.role, one.created_by, state, *times, alive))
    return tuple(found)


def invited_rows(invited: Sequence[EnrolmentToken], now: float) -> tuple[InvitedRow, ...]:
    """Return invitations in the order given."""
    return tuple(
        InvitedRow(
            one.device_class,
            labels_text(one.labels),
            one.channel,
            one.profiling,
            one.created_by,
            display_time(one.expires_at, now),
        )
        for one in invited
    )
