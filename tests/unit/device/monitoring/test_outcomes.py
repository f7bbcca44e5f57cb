"""Outcomes: bounded, kept, and no reason to send a release back by chance."""

from pathlib import Path

import numpy as np
import pytest

from edgewright.contract.errors import InputError
from edgewright.device.filesystem import FileSystem
from edgewright.device.monitoring.outcomes import OutcomeStore, OutcomeTotal, is_worse


def test_what_was_counted_is_there_after_a_restart(tmp_path: Path) -> None:
    outcomes = OutcomeStore.read(tmp_path, FileSystem())
    for value in (0.0, 1.0, 0.5):
        outcomes.add("a" * 64, "tap", value)
    outcomes.write()
    again = OutcomeStore.read(tmp_path, FileSystem()).for_release("a" * 64)["tap"]
    assert (again.count, again.mean) == (3, 0.5)


def test_what_is_damaged_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "outcomes.json").write_bytes(b"{torn")
    assert not OutcomeStore.read(tmp_path, FileSystem()).totals


@pytest.mark.parametrize(
    ("name", "value"), [("tap", -0.1), ("tap", 1.1), ("tap", float("nan")), ("../x", 0.5), ("", 0)]
)
def test_what_is_no_outcome_is_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(InputError):
        OutcomeStore.read(tmp_path, FileSystem()).add("a" * 64, name, value)


def test_names_and_releases_are_bounded(tmp_path: Path) -> None:
    outcomes = OutcomeStore.read(tmp_path, FileSystem())
    for number in range(32):
        outcomes.add("a", f"name-{number}", 0.0)
    with pytest.raises(InputError, match="32 names"):
        outcomes.add("a", "one-more", 0.0)
    for release in "bcdef":
        outcomes.add(release, "tap", 0.0)
    assert len(outcomes.totals) == 3


def test_a_release_that_is_as_good_is_not_sent_back_however_often_one_looks() -> None:
    """1,000 devices that look after every single outcome: hardly one is wrong, and 5 % were allowed."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        trial, proven = random.random(300) < 0.2, random.random(300) < 0.2
        sums = np.cumsum(trial), np.cumsum(proven)
        wrong += any(
            is_worse(
                OutcomeTotal(n, float(sums[0][n - 1])),
                OutcomeTotal(n, float(sums[1][n - 1])),
                margin=0.02,
                confidence=0.95,
            )
            for n in range(30, 300, 3)
        )
    assert wrong <= 50


def test_a_release_that_is_much_worse_is_found() -> None:
    assert is_worse(OutcomeTotal(300, 150), OutcomeTotal(300, 30), margin=0.05, confidence=0.95)
    assert not is_worse(OutcomeTotal(29, 29), OutcomeTotal(300, 0), margin=0.05, confidence=0.95)
