"""Cohorts: even, stable as the fraction rises, and independent of the arm."""

import numpy as np
import pytest

from edgewright.rollout.assignment import arm_of, bucket_of, is_in, is_in_holdout

DEVICES = [f"device-{number}" for number in range(4000)]
SALT = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_as_many_are_in_as_the_fraction_says(fraction: float) -> None:
    share = np.mean([is_in(fraction, "r", SALT, device) for device in DEVICES])
    assert abs(share - fraction) <= 4 * np.sqrt(fraction * (1 - fraction) / len(DEVICES))


def test_who_is_in_stays_in() -> None:
    for device in DEVICES[:200]:
        entries = [is_in(fraction, "r", SALT, device) for fraction in np.linspace(0, 1, 21)]
        assert entries == sorted(entries)


def test_a_canary_has_all_arms() -> None:
    canary = [device for device in DEVICES if is_in(0.1, "r", SALT, device)]
    share = np.mean([arm_of([1.0, 1.0], "r", SALT, device) for device in canary])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(canary))


def test_arms_follow_their_weights() -> None:
    counts = np.bincount([arm_of([1.0, 2.0, 1.0], "r", SALT, device) for device in DEVICES], minlength=3)
    assert np.abs(counts / len(DEVICES) - [0.25, 0.5, 0.25]).max() < 4 * 0.5 / np.sqrt(len(DEVICES))


def test_another_salt_or_experiment_is_another_draw() -> None:
    for other in (("s", SALT), ("r", SALT[::-1])):
        both = [is_in(0.5, "r", SALT, device) == is_in(0.5, *other, device) for device in DEVICES]
        assert abs(np.mean(both) - 0.5) < 4 * 0.5 / np.sqrt(len(DEVICES))


def test_a_holdback_does_not_depend_on_the_experiment() -> None:
    assert sum(is_in_holdout(0.05, SALT, device) for device in DEVICES) == pytest.approx(200, abs=60)


def test_no_two_inputs_read_the_same() -> None:
    assert bucket_of(b"d", "ab", "c", "d") != bucket_of(b"d", "a", "bc", "d")
