"""The loop: it checks, settles and verifies, and goes on after what fails."""

import threading
from typing import Any

from edgewright.contract.errors import WorkError
from edgewright.device.run_loop import run_forever


class Settings:
    device_id = "d"


class Pretender:
    """Counts what is asked of it; its time passes by waiting."""

    settings = Settings()

    def __init__(self, *, broken: bool = False, is_awaited: bool = False) -> None:
        self.broken, self.is_awaited, self.calls, self.at = broken, is_awaited, [], 0.0  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        def act() -> None:
            self.calls.append(name)
            if self.broken and name == "check_for_update":
                raise WorkError("the disk is full", remedy="Free space.")

        return act


class Ended(threading.Event):
    """Ends after so long, and passes time instead of waiting."""

    def __init__(self, pretender: Pretender, after: float) -> None:
        super().__init__()
        self.pretender, self.after = pretender, after

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert timeout > 0
        self.pretender.at += timeout
        if self.pretender.at >= self.after:
            self.set()
        return self.is_set()


def kept(pretender: Pretender, after: float, **more: float) -> list[str]:
    run_forever(pretender, Ended(pretender, after), clock=lambda: pretender.at, **more)  # type: ignore[arg-type]
    return pretender.calls


def test_checks_come_about_as_often_as_asked_and_probations_are_looked_at_between() -> None:
    calls = kept(Pretender(), 10_000.0, check_interval_seconds=100.0)
    assert 85 <= calls.count("check_for_update") <= 115
    assert calls.count("settle_probation") > 500
    assert calls.count("verify_slots") == 0


def test_bytes_are_looked_at_each_day() -> None:
    assert kept(Pretender(), 3.5 * 86_400, check_interval_seconds=3600.0).count("verify_slots") == 3


def test_what_fails_is_tried_again() -> None:
    assert kept(Pretender(broken=True), 1000.0, check_interval_seconds=100.0).count("check_for_update") >= 8


def test_who_is_awaited_in_a_sum_checks_again_soon() -> None:
    assert kept(Pretender(is_awaited=True), 3600.0, check_interval_seconds=36_000.0).count("check_for_update") > 60
    assert kept(Pretender(), 3600.0, check_interval_seconds=36_000.0).count("check_for_update") == 1
