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
    DeviceQueryLimits,
    Query,
    QueryTemplate,
    limit_violation,
    record_digest,
    response_bytes,
    template_violation,
    timing_violation,
)
from edgewright.contract.refusal import Refusal, RefusalCode
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.privacy.accountant import cost_of, epsilon_of, understated_cost

__all__ = [
    "AnsweredQuery",
    "PrivacyLedger",
    "debit_budget",
    "epsilon_after_years",
    "find_answer",
    "spent_in_period",
]

# Entries older than every period are kept for the owner, up to this many.
_MAX_ENTRIES = 512


class AnsweredQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question that was answered, as the device's owner is shown it.

    Attributes:
        query_id: Its id.
        query_digest: Its digest, which binds the template too.
        template: Name of the template.
        summed: What was summed: names of signals, or the vector's length and model.
        subgroup: Labels and values that singled this device out, besides its class.
        window_start: Of what was counted.
        window_end: Of what was counted.
        backend: Over which it was answered.
        min_cohort: Least number of devices in the sum.
        debited_at: When it was debited, seconds since 1970, UTC.
        rho: Cost when the others are honest; what the budget lost.
        local_rho: Cost from this device's own noise alone.
        epsilon: Of rho, at delta.
        local_epsilon: Of rho_own, at delta.
        delta: For which the epsilons are.
        size_bytes: Of the numbers that were sent.
        answer_sha256: sha256 of what was sent, hexadecimal.
    """

    query_id: str
    query_digest: str
    template: str
    summed: tuple[str, ...]
    subgroup: dict[str, str]
    window_start: str
    window_end: str
    backend: str
    min_cohort: int
    debited_at: float
    rho: float
    local_rho: float
    epsilon: float
    local_epsilon: float
    delta: float
    size_bytes: int
    answer_sha256: str


class PrivacyLedger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was spent.

    Attributes:
        latest_seen_at: Latest time seen.
        answers: Answers, in order of time; old ones are dropped when no period reaches them.
        total_rho: Spent since the ledger began, with what was dropped.
        total_answers: How many answers since then.
        last_answered_at: When each template was answered last, by its name.
    """

    latest_seen_at: float = 0.0
    answers: tuple[AnsweredQuery, ...] = ()
    total_rho: float = 0.0
    total_answers: int = 0
    last_answered_at: dict[str, float] = {}
    schema: SchemaVersion = SCHEMA_VERSION


def find_answer(ledger: PrivacyLedger, query: Query) -> AnsweredQuery | None:
    """Return the entry of a question, None if it was not answered: who asks again gets the same bytes again."""
    digest = record_digest(query)
    return next((entry for entry in ledger.answers if entry.query_digest == digest), None)


def spent_in_period(ledger: PrivacyLedger, limits: DeviceQueryLimits, now: float) -> float:
    """Return what was spent in the period that ends now."""
    return math.fsum(entry.rho for entry in _answers_in_period(ledger, limits, now))


def debit_budget(
    ledger: PrivacyLedger,
    query: Query,
    template: QueryTemplate,
    limits: DeviceQueryLimits,
    *,
    answer: bytes,
    now: float,
) -> PrivacyLedger | Refusal:
    """Take the cost of an answer off the budget, or refuse; only when the result is on the disk may it be sent.

    The cost is computed here, whatever the query claims. Debiting the same answer to the same question again
    changes nothing; another answer to it is refused.

    Args:
        ledger: As it is.
        query: That is answered.
        template: That the offline keys signed.
        limits: Of this device.
        answer: The numbers as `sum.contribute` gave them, as bytes: what masks are put on. Never sent as they are.
        now: Seconds since 1970, UTC: the lesser of the clock and the latest signed time.
    """
    about, now = f"query {query.id}", max(now, ledger.latest_seen_at)

    def refused(code: RefusalCode, reason: str) -> Refusal:
        return Refusal(code, about, reason)

    digest, given = record_digest(query), hashlib.sha256(answer).hexdigest()
    for entry in ledger.answers:
        if entry.query_digest == digest and entry.answer_sha256 == given:
            return ledger
        if entry.query_id == query.id or entry.query_digest == digest:
            return refused("policy", f"{query.id} was answered, only the same bytes may be sent again")
    if not math.isfinite(now):
        return refused("expired", "the time is not known")
    if (
        reason := template_violation(query, template)
        or understated_cost(query, template)
        or limit_violation(query, template, limits)
    ):
        return refused("policy", reason)
    if reason := timing_violation(query, template, now):
        return refused("expired", reason)
    if (since := now - ledger.last_answered_at.get(template.name, -math.inf)) < template.min_interval_seconds:
        return refused(
            "policy",
            f"{template.name} was answered {since:.0f} s ago, it may be every {template.min_interval_seconds:.0f} s",
        )
    recent, cost = _answers_in_period(ledger, limits, now), cost_of(query, template)
    if len(recent) >= limits.max_queries:
        return refused("budget", f"{len(recent)} questions were answered in {_period_days(limits)}, no more are")
    gone = math.fsum(entry.rho for entry in recent)
    # Not "more than": a cost that is no number is refused too.
    if not math.fsum((gone, cost.rho)) <= limits.rho_per_period:
        return refused(
            "budget",
            f"it costs {cost.rho:.3g}, of {limits.rho_per_period:.3g} for {_period_days(limits)} there is left "
            f"{limits.rho_per_period - gone:.3g}",
        )
    entry = AnsweredQuery(
        query_id=query.id,
        query_digest=digest,
        template=template.name,
        summed=tuple(signal.name for signal in template.signals)
        or (f"{template.vector_length} of {template.model}",),
        subgroup=query.subgroup,
        window_start=query.window_start,
        window_end=query.window_end,
        backend=query.backend,
        min_cohort=query.min_cohort,
        debited_at=now,
        rho=cost.rho,
        local_rho=cost.local_rho,
        epsilon=cost.epsilon,
        local_epsilon=cost.local_epsilon,
        delta=cost.delta,
        size_bytes=response_bytes(query, template),
        answer_sha256=given,
    )
    old = len(ledger.answers) - len(recent)
    return PrivacyLedger(
        latest_seen_at=now,
        answers=(*ledger.answers[max(0, min(old, len(ledger.answers) + 1 - _MAX_ENTRIES)) :], entry),
        total_rho=ledger.total_rho + cost.rho,
        total_answers=ledger.total_answers + 1,
        last_answered_at={**ledger.last_answered_at, template.name: now},
    )


def epsilon_after_years(limits: DeviceQueryLimits, years: float, delta: float) -> float:
    """Return the most that epsilon can be after years of asking: a budget per period is none for ever.

    >>> limits = DeviceQueryLimits(rho_per_period=0.1, period_seconds=30 * 86400.0)
    >>> [round(epsilon_after_years(limits, years, 1e-6), 1) for years in (0, 1, 5)]
    [2.1, 9.1, 24.3]
    """
    periods = math.floor(years * 365.25 * 86400 / limits.period_seconds) + 1
    return epsilon_of(periods * limits.rho_per_period, delta)


def _answers_in_period(ledger: PrivacyLedger, limits: DeviceQueryLimits, now: float) -> tuple[AnsweredQuery, ...]:
    """Return the answers of the period that ends now; they are the last ones."""
    first = max(now, ledger.latest_seen_at) - limits.period_seconds
    return tuple(entry for entry in ledger.answers if entry.debited_at > first)


def _period_days(limits: DeviceQueryLimits) -> str:
    return f"{limits.period_seconds / 86400:g} days"
