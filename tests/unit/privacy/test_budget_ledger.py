"""The budget: nothing is told that it does not hold, nothing is told twice, and nothing is given back."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.privacy.examples import HISTOGRAM, NOW_SECONDS, query_of, template_like

from edgewright.contract.query.query import DeviceQueryLimits, Query
from edgewright.contract.refusal import Refusal, RefusedError
from edgewright.device.filesystem import FileSystem
from edgewright.device.queries.ledger_file import LedgerFile
from edgewright.privacy.budget_ledger import (
    PrivacyLedger,
    debit_budget,
    epsilon_after_years,
    find_answer,
    spent_in_period,
)

LIMITS = DeviceQueryLimits(min_cohort=8, rho_per_period=1.0, period_seconds=10 * 86400.0, max_queries=50)
# A quarter of the budget each, at any time.
TEMPLATE = template_like(HISTOGRAM, max_norm=0.0, min_interval_seconds=1.0)
HOUR = 3600.0


# Two signals of at most 4 and their rounding: a squared norm of 41, over 8 devices' noise.
def quarter(number: int = 0, **changes: Any) -> Query:
    return query_of(TEMPLATE, number, sigma=math.sqrt(41) / 2 * 1.0001, **changes)


def debited(
    ledger: PrivacyLedger, number: int, now: float, limits: DeviceQueryLimits = LIMITS
) -> PrivacyLedger | Refusal:
    return debit_budget(ledger, quarter(number), TEMPLATE, limits, answer=b"%d" % number, now=now)


def kept(after: PrivacyLedger | Refusal) -> PrivacyLedger:
    assert isinstance(after, PrivacyLedger), after
    return after


def refused(after: PrivacyLedger | Refusal, code: str, reason: str) -> None:
    assert isinstance(after, Refusal)
    assert after.code == code
    assert reason in after.reason


def test_the_example_costs_a_quarter() -> None:
    assert quarter().rho == pytest.approx(0.25, rel=1e-3)
    assert quarter().rho < 0.25


def test_a_fifth_quarter_is_refused_until_the_first_is_a_period_ago() -> None:
    ledger = PrivacyLedger()
    for number in range(4):
        ledger = kept(debited(ledger, number, NOW_SECONDS + number * HOUR))
    assert spent_in_period(ledger, LIMITS, NOW_SECONDS + 4 * HOUR) == pytest.approx(1, rel=1e-3)
    refused(debited(ledger, 4, NOW_SECONDS + 4 * HOUR), "budget", "10 days there is left")
    refused(debited(ledger, 4, NOW_SECONDS + 10 * 86400 - 1), "budget", "left")
    after = kept(debited(ledger, 4, NOW_SECONDS + 10 * 86400 + 1))
    refused(debited(after, 5, NOW_SECONDS + 10 * 86400 + 2), "budget", "left")
    assert after.total_rho == pytest.approx(1.25, rel=1e-3)
    assert (after.total_answers, len(after.answers)) == (5, 5)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-3 * 86400, 6 * 86400), st.floats(4.0, 60.0)), max_size=30))
def test_no_stretch_of_a_period_ever_costs_more_than_the_budget(asked: list[tuple[float, float]]) -> None:
    ledger, clock, told = PrivacyLedger(), NOW_SECONDS, []
    limits = msgspec.structs.replace(LIMITS, period_seconds=4 * 86400.0)
    for number, (step, sigma) in enumerate(asked):
        clock += step
        # Each of a template of its own, so that the budget alone refuses.
        template = template_like(TEMPLATE, name=f"t{number}", expires_at="2030-01-01")
        query = query_of(
            template, number, sigma=sigma, deadline="2029-01-01", window_start="2020-01-01", window_end="2020-01-02"
        )
        after = debit_budget(ledger, query, template, limits, answer=b"", now=clock)
        if isinstance(after, PrivacyLedger):
            assert after.latest_seen_at >= max(clock, ledger.latest_seen_at)
            told.append((after.latest_seen_at, query.rho))
            ledger = after
    for start, _ in told:
        within = math.fsum(rho for when, rho in told if start <= when < start + limits.period_seconds)
        assert within <= limits.rho_per_period * (1 + 1e-9)
    assert ledger.total_rho == pytest.approx(math.fsum(rho for _, rho in told))


def test_a_clock_that_is_set_back_frees_nothing() -> None:
    ledger = PrivacyLedger()
    for number in range(4):
        ledger = kept(debited(ledger, number, NOW_SECONDS + number * HOUR))
    # Of another template, which was not answered just now.
    other = template_like(TEMPLATE, name="other")
    query = query_of(other, 9, sigma=quarter().sigma, window_start="2020-01-01", window_end="2020-01-02")
    for back in (HOUR, 8 * 86400.0):
        refused(debit_budget(ledger, query, other, LIMITS, answer=b"", now=NOW_SECONDS - back), "budget", "left")
        assert spent_in_period(ledger, LIMITS, NOW_SECONDS - back) == pytest.approx(1, rel=1e-3)


def test_the_same_answer_is_sent_again_for_nothing_and_another_never() -> None:
    ledger = kept(debited(PrivacyLedger(), 0, NOW_SECONDS))
    assert debited(ledger, 0, NOW_SECONDS + 30 * HOUR) is ledger
    refused(
        debit_budget(ledger, quarter(), TEMPLATE, LIMITS, answer=b"noised afresh", now=NOW_SECONDS + HOUR),
        "policy",
        "answered",
    )
    # Nor does a changed question under the same name get another one.
    changed = quarter(0, deadline="2026-06-19")
    refused(
        debit_budget(ledger, changed, TEMPLATE, LIMITS, answer=b"0", now=NOW_SECONDS + HOUR), "policy", "answered"
    )
    found = find_answer(ledger, quarter())
    assert found is not None
    assert (found.query_id, found.summed, found.min_cohort) == ("q0", ("mean", "confidence"), 8)
    assert 0 < found.epsilon < found.local_epsilon
    assert find_answer(ledger, quarter(1)) is None


def test_the_cost_is_what_it_is_and_not_what_is_claimed() -> None:
    cheap = msgspec.structs.replace(quarter(), rho=0.01)
    refused(debit_budget(PrivacyLedger(), cheap, TEMPLATE, LIMITS, answer=b"", now=NOW_SECONDS), "policy", "claims")
    dear = msgspec.structs.replace(quarter(), rho=0.9)
    after = kept(debit_budget(PrivacyLedger(), dear, TEMPLATE, LIMITS, answer=b"", now=NOW_SECONDS))
    assert after.total_rho == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "limits", "code", "reason"),
    [
        ({"min_cohort": 7}, {}, "policy", "cohort of 7"),
        ({"sigma": 1.0}, {}, "policy", "noise"),
        ({"template_digest": "0" * 64}, {}, "policy", "as it is signed"),
        ({}, {"min_cohort": 9}, "policy", "this device's 9"),
        ({}, {"rho_per_period": 0.2}, "policy", "this device gives"),
        ({}, {"max_queries": 0}, "budget", "no more"),
        ({"deadline": "2026-06-02T11:59:00"}, {}, "expired", "deadline"),
        ({"window_end": "2026-06-02T12:01:00"}, {}, "expired", "window"),
    ],
)
def test_what_is_beyond_the_template_the_limits_or_the_time_is_refused(
    change: dict[str, Any], limits: dict[str, Any], code: str, reason: str
) -> None:
    query = msgspec.structs.replace(quarter(), **change)
    after = debit_budget(
        PrivacyLedger(), query, TEMPLATE, msgspec.structs.replace(LIMITS, **limits), answer=b"", now=NOW_SECONDS
    )
    refused(after, code, reason)


@pytest.mark.parametrize("now", [math.nan, math.inf])
def test_without_a_time_nothing_is_told(now: float) -> None:
    assert isinstance(debited(PrivacyLedger(), 0, now), Refusal)


def test_a_template_is_answered_no_more_often_than_it_says() -> None:
    template = template_like(TEMPLATE, min_interval_seconds=2 * HOUR)
    ledger = PrivacyLedger()
    for number, (when, told) in enumerate([(0.0, True), (1.9, False), (2.0, True), (3.0, False), (4.0, True)]):
        after = debit_budget(
            ledger,
            query_of(template, number, sigma=16.0),
            template,
            LIMITS,
            answer=b"",
            now=NOW_SECONDS + when * HOUR,
        )
        assert isinstance(after, PrivacyLedger) is told
        ledger = after if isinstance(after, PrivacyLedger) else ledger


def test_old_entries_are_dropped_but_never_those_of_a_period() -> None:
    limits = msgspec.structs.replace(LIMITS, rho_per_period=1e6, max_queries=10_000, period_seconds=700.0)
    ledger = PrivacyLedger()
    for number in range(800):
        query = msgspec.structs.replace(quarter(), id=f"n{number}")
        ledger = kept(debit_budget(ledger, query, TEMPLATE, limits, answer=b"", now=NOW_SECONDS + number))
    assert len(ledger.answers) == 700
    assert ledger.total_answers == 800
    assert spent_in_period(ledger, limits, NOW_SECONDS + 799) == pytest.approx(700 * 0.25, rel=1e-3)
    later = msgspec.structs.replace(quarter(), id="later")
    assert (
        len(kept(debit_budget(ledger, later, TEMPLATE, limits, answer=b"", now=NOW_SECONDS + 5000)).answers) == 512
    )


def test_epsilon_grows_over_the_years() -> None:
    figures = [epsilon_after_years(LIMITS, years, 1e-6) for years in (0, 1, 5, 10)]
    assert figures == sorted(figures)
    assert figures[1] > 3 * figures[0]


class BrokenDisk(FileSystem):
    """A disk that fails at the n-th write from now on."""

    def __init__(self) -> None:
        self.left = 10**9

    def write(self, path: Path, content: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is full")
        super().write(path, content)


def opened(folder: Path, files: FileSystem | None = None) -> LedgerFile:
    return LedgerFile(folder, files or FileSystem(), LIMITS)


def test_what_was_debited_is_known_after_a_restart_and_can_be_sent_again(tmp_path: Path) -> None:
    book = opened(tmp_path)
    assert book.stored_answer(quarter()) is None
    assert book.debit(quarter(), TEMPLATE, b"the answer", now=NOW_SECONDS) is None
    again = opened(tmp_path)
    assert again.ledger == book.ledger
    assert again.stored_answer(quarter()) == b"the answer"
    assert again.debit(quarter(), TEMPLATE, b"the answer", now=NOW_SECONDS + HOUR) is None
    assert again.ledger.total_answers == 1
    assert again.debit(quarter(), TEMPLATE, b"another answer", now=NOW_SECONDS + HOUR) is not None
    again.delete_answers()
    with pytest.raises(RefusedError, match="the answer is lost"):
        again.stored_answer(quarter())


@pytest.mark.parametrize("name", ["privacy.0", "privacy.1"])
@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_one_damaged_copy_loses_nothing(tmp_path: Path, name: str, damage: bytes | None) -> None:
    book = opened(tmp_path)
    for number in range(3):
        assert book.debit(quarter(number), TEMPLATE, b"%d" % number, now=NOW_SECONDS + number * HOUR) is None
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    again = opened(tmp_path)
    assert again.ledger == book.ledger
    # It is mended before anything is sent.
    assert again.stored_answer(quarter(1)) == b"1"
    assert (tmp_path / "privacy.0").read_bytes() == (tmp_path / "privacy.1").read_bytes()


@pytest.mark.parametrize("damage", ["gone", "rotten", "one gone, one rotten", "swapped for another's"])
def test_a_lost_ledger_tells_nothing_any_more(tmp_path: Path, damage: str) -> None:
    assert opened(tmp_path).debit(quarter(), TEMPLATE, b"", now=NOW_SECONDS) is None
    first, second = tmp_path / "privacy.0", tmp_path / "privacy.1"
    if damage == "gone":
        first.unlink()
        second.unlink()
    elif damage == "rotten":
        first.write_bytes(first.read_bytes()[:-1])
        second.write_bytes(b"\0" * 100)
    elif damage == "one gone, one rotten":
        first.unlink()
        second.write_bytes(second.read_bytes().replace(b"q0", b"q1"))
    else:
        for path in (first, second):
            path.write_bytes(b"{}")
    with pytest.raises(RefusedError, match="ledger is lost"):
        opened(tmp_path)


@pytest.mark.parametrize("writes", range(8))
def test_wherever_the_power_is_cut_nothing_that_could_have_been_sent_is_forgotten(
    tmp_path: Path, writes: int
) -> None:
    disk = BrokenDisk()
    book = opened(tmp_path, disk)
    disk.left, sent = writes, []
    for number in range(2):
        try:
            if book.debit(quarter(number), TEMPLATE, b"%d" % number, now=NOW_SECONDS + number * HOUR) is None:
                sent.append(number)
        except OSError:
            break
    again = opened(tmp_path)
    assert {f"q{number}" for number in sent} <= {entry.query_id for entry in again.ledger.answers}
    # The device is not locked out by it, and asks itself for the answer before it makes another.
    for number in range(2):
        before = again.stored_answer(quarter(number))
        assert before in (None, b"%d" % number)
        if before is None:
            assert (
                again.debit(quarter(number), TEMPLATE, b"%d" % number, now=NOW_SECONDS + 5 * HOUR + number) is None
            )
    assert again.ledger.total_answers == 2


def test_a_debit_that_could_not_be_written_twice_is_written_before_it_counts(tmp_path: Path) -> None:
    disk = BrokenDisk()
    book = opened(tmp_path, disk)
    assert book.debit(quarter(0), TEMPLATE, b"0", now=NOW_SECONDS) is None
    disk.left = 2  # the answer and the first copy
    with pytest.raises(OSError, match="full"):
        book.debit(quarter(1), TEMPLATE, b"1", now=NOW_SECONDS + HOUR)
    assert book.outdated_copies == ("privacy.1",)
    with pytest.raises(OSError, match="full"):
        book.debit(quarter(1), TEMPLATE, b"1", now=NOW_SECONDS + HOUR)
    disk.left = 1
    assert book.debit(quarter(1), TEMPLATE, b"1", now=NOW_SECONDS + HOUR) is None
    (tmp_path / "privacy.0").write_bytes(b"rot")
    assert opened(tmp_path).ledger.total_answers == 2


def test_what_the_owner_is_shown_survives_as_it_is(tmp_path: Path) -> None:
    book = opened(tmp_path)
    assert book.debit(quarter(), TEMPLATE, b"", now=NOW_SECONDS) is None
    shown = msgspec.to_builtins(opened(tmp_path).ledger.answers[0])
    assert shown["summed"] == ("mean", "confidence")
    assert set(shown) == {
        *(
            "query_id query_digest template summed subgroup window_start window_end backend min_cohort debited_at"
        ).split(),
        *("rho local_rho epsilon local_epsilon delta size_bytes answer_sha256").split(),
    }
