"""What a device may still tell, as a pure filter: a question is refused whose cost the budget does not hold.

The budget is in zCDP and holds for *every* stretch of time as long as a period, so nothing is gained by asking at a
period's end and again at the next one's start. Costs add up however questions were chosen (rho-zCDP filters:
Rogers, Roth, Ullman and Vadhan 2016; Feldman and Zrnic 2021, arXiv:2008.11193). What was debited is never given
back. A question is answered once; asked again, the same bytes are sent again.

Time never goes back here: a clock that was set back counts as standing still. One that was set ahead would free the
budget, so what is handed in should be the lesser of the clock and the latest time that the repository has signed.
"""

import hashlib
import math

import msgspec

from edgewright.contract.query.query import (
    Limits,
    Query,
    Template,
    answer_bytes,
    beyond,
    digest_of,
    laxer,
    untimely,
)
from edgewright.contract.refusal import Refusal, RefusalCode
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.privacy.accountant import cost_of, epsilon_of, understated

__all__ = ["Answered", "Ledger", "answered", "debit", "growth", "spent"]

# Entries older than every period are kept for the owner, up to this many.
_KEPT = 512


class Answered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question that was answered, as the device's owner is shown it.

    Attributes:
        query: Its id.
        digest: Its digest, which binds the template too.
        template: Name of the template.
        counted: What was summed: names of signals, or the vector's length and model.
        subgroup: Labels and values that singled this device out, besides its class.
        window_start: Of what was counted.
        window_end: Of what was counted.
        backend: Over which it was answered.
        cohort: Least number of devices in the sum.
        when_s: When it was debited, seconds since 1970, UTC.
        rho: Cost when the others are honest; what the budget lost.
        rho_own: Cost from this device's own noise alone.
        epsilon: Of rho, at delta.
        epsilon_own: Of rho_own, at delta.
        delta: For which the epsilons are.
        size_bytes: Of the numbers that were sent.
        answer: sha256 of what was sent, hexadecimal.
    """

    query: str
    digest: str
    template: str
    counted: tuple[str, ...]
    subgroup: dict[str, str]
    window_start: str
    window_end: str
    backend: str
    cohort: int
    when_s: float
    rho: float
    rho_own: float
    epsilon: float
    epsilon_own: float
    delta: float
    size_bytes: int
    answer: str


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was spent.

    Attributes:
        seen_s: Latest time seen.
        entries: Answers, in order of time; old ones are dropped when no period reaches them.
        rho_ever: Spent since the ledger began, with what was dropped.
        count_ever: How many answers since then.
        last_s: When each template was answered last, by its name.
    """

    seen_s: float = 0.0
    entries: tuple[Answered, ...] = ()
    rho_ever: float = 0.0
    count_ever: int = 0
    last_s: dict[str, float] = {}
    schema: SchemaVersion = SCHEMA_VERSION


def answered(ledger: Ledger, query: Query) -> Answered | None:
    """Return the entry of a question, None if it was not answered: who asks again gets the same bytes again."""
    digest = digest_of(query)
    return next((entry for entry in ledger.entries if entry.digest == digest), None)


def spent(ledger: Ledger, limits: Limits, now_s: float) -> float:
    """Return what was spent in the period that ends now."""
    return math.fsum(entry.rho for entry in _within(ledger, limits, now_s))


def debit(
    ledger: Ledger, query: Query, template: Template, limits: Limits, *, answer: bytes, now_s: float
) -> Ledger | Refusal:
    """Take the cost of an answer off the budget, or refuse; only when the result is on the disk may it be sent.

    The cost is computed here, whatever the query claims. Debiting the same answer to the same question again
    changes nothing; another answer to it is refused.

    Args:
        ledger: As it is.
        query: That is answered.
        template: That the offline keys signed.
        limits: Of this device.
        answer: The numbers as `sum.contribute` gave them, as bytes: what masks are put on. Never sent as they are.
        now_s: Seconds since 1970, UTC: the lesser of the clock and the latest signed time.
    """
    about, now_s = f"query {query.id}", max(now_s, ledger.seen_s)

    def refused(code: RefusalCode, reason: str) -> Refusal:
        return Refusal(code, about, reason)

    digest, given = digest_of(query), hashlib.sha256(answer).hexdigest()
    for entry in ledger.entries:
        if entry.digest == digest and entry.answer == given:
            return ledger
        if entry.query == query.id or entry.digest == digest:
            return refused("policy", f"{query.id} was answered, only the same bytes may be sent again")
    if not math.isfinite(now_s):
        return refused("expired", "the time is not known")
    if reason := laxer(query, template) or understated(query, template) or beyond(query, template, limits):
        return refused("policy", reason)
    if reason := untimely(query, template, now_s):
        return refused("expired", reason)
    if (since := now_s - ledger.last_s.get(template.name, -math.inf)) < template.every_s:
        return refused(
            "policy", f"{template.name} was answered {since:.0f} s ago, it may be every {template.every_s:.0f} s"
        )
    recent, cost = _within(ledger, limits, now_s), cost_of(query, template)
    if len(recent) >= limits.most_queries:
        return refused("budget", f"{len(recent)} questions were answered in {_days(limits)}, no more are")
    gone = math.fsum(entry.rho for entry in recent)
    # Not "more than": a cost that is no number is refused too.
    if not math.fsum((gone, cost.rho)) <= limits.rho_per_period:
        return refused(
            "budget",
            f"it costs {cost.rho:.3g}, of {limits.rho_per_period:.3g} for {_days(limits)} there is left "
            f"{limits.rho_per_period - gone:.3g}",
        )
    entry = Answered(
        query=query.id,
        digest=digest,
        template=template.name,
        counted=tuple(signal.name for signal in template.signals) or (f"{template.length} of {template.model}",),
        subgroup=query.subgroup,
        window_start=query.window_start,
        window_end=query.window_end,
        backend=query.backend,
        cohort=query.cohort,
        when_s=now_s,
        rho=cost.rho,
        rho_own=cost.rho_own,
        epsilon=cost.epsilon,
        epsilon_own=cost.epsilon_own,
        delta=cost.delta,
        size_bytes=answer_bytes(query, template),
        answer=given,
    )
    old = len(ledger.entries) - len(recent)
    return Ledger(
        seen_s=now_s,
        entries=(*ledger.entries[max(0, min(old, len(ledger.entries) + 1 - _KEPT)) :], entry),
        rho_ever=ledger.rho_ever + cost.rho,
        count_ever=ledger.count_ever + 1,
        last_s={**ledger.last_s, template.name: now_s},
    )


def growth(limits: Limits, years: float, delta: float) -> float:
    """Return the most that epsilon can be after years of asking: a budget per period is none for ever.

    >>> limits = Limits(rho_per_period=0.1, period_s=30 * 86400.0)
    >>> [round(growth(limits, years, 1e-6), 1) for years in (0, 1, 5)]
    [2.1, 9.1, 24.3]
    """
    periods = math.floor(years * 365.25 * 86400 / limits.period_s) + 1
    return epsilon_of(periods * limits.rho_per_period, delta)


def _within(ledger: Ledger, limits: Limits, now_s: float) -> tuple[Answered, ...]:
    """Return the answers of the period that ends now; they are the last ones."""
    first = max(now_s, ledger.seen_s) - limits.period_s
    return tuple(entry for entry in ledger.entries if entry.when_s > first)


def _days(limits: Limits) -> str:
    return f"{limits.period_s / 86400:g} days"
