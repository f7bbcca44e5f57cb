"""What sums say as numbers that rules can compare."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewright.contract.alert import AlertRule, MetricReading
from edgewright.contract.model.reference_profile import ReferenceProfile, ReferenceSignal
from edgewright.fleet.alert_rules import evaluate_rules
from edgewright.fleet.cohort_drift import CohortSums, assess_cohorts, cohort_readings, disjoint_cohorts

SHARES = np.full(16, 1 / 16)
EDGES = tuple(np.linspace(-1, 1, 15).tolist())
SURE = tuple(np.linspace(0.1, 0.9, 9).tolist())
PROFILE = ReferenceProfile(
    "x",
    4,
    (
        ReferenceSignal("mean", EDGES, (*[400] * 16, 0)),
        ReferenceSignal("confidence", SURE, (*[640] * 10, 0)),
    ),
)
NOISE = 20.0


def cohort(
    random: np.random.Generator,
    number: int,
    *,
    moved: float = 0.0,
    bad: float = 0.1,
    devices: int = 40,
    subgroup: dict[str, str] | None = None,
    **more: Any,
) -> CohortSums:
    shares = SHARES.copy()
    shares[:8] -= moved / 8
    shares[8:] += moved / 8

    def noised(counts: Any) -> list[float]:
        return [float(each) for each in np.asarray(counts) + random.normal(0, NOISE, len(counts))]

    total = 100 * devices
    wrong = random.binomial(total, bad)
    sums = {
        "mean": noised([*random.multinomial(total, shares), 0]),
        "confidence": noised([*[0] * 8, total // 2, total // 2, 0]),
        "outcome.wrong": noised([total - wrong, wrong]),
        "rejected": noised([0] * 8),
        "out_of_distribution": noised([total * 0.8, total * 0.2]),
    }
    said: dict[str, Any] = {
        "query": f"q{number}",
        "query_digest": f"d{number}",
        "template": "signals",
        "template_digest": "t",
        "release": "r",
        "window": ("2026-06-01", "2026-06-02"),
        "device_count": devices,
        "noise_sd": NOISE,
        "out_of_range": 0,
        "sums": sums,
        "subgroup": subgroup if subgroup is not None else {"site": str(number)},
    }
    return CohortSums(**(said | more))


def told(cohorts: list[CohortSums]) -> dict[str, MetricReading]:
    found = cohort_readings(PROFILE, cohorts, device_class="camera", release="r", at=5.0)
    assert {(each.device_class, each.at) for each in found} == {("camera", 5.0)}
    return {each.metric: each for each in found}


def test_a_fleet_that_moved_is_far_above_the_level_and_one_that_stayed_below() -> None:
    random = np.random.default_rng(0)
    moved = told([cohort(random, n, moved=0.08) for n in range(24)])
    stayed = told([cohort(random, n) for n in range(40)])
    assert (moved["drift.mean"].value or 0) > 3
    assert stayed["drift.mean"].value is not None
    assert stayed["drift.mean"].value < 1.3
    assert (stayed["power.mean"].value or 0) > 0.9
    assert "no shift" in stayed["drift.mean"].reason


def test_the_level_is_that_of_the_verdict() -> None:
    random = np.random.default_rng(1)
    for moved in (0.0, 0.02, 0.04):
        cohorts = [cohort(random, n, moved=moved) for n in range(40)]
        verdict = assess_cohorts(PROFILE, cohorts, release="r", size=0.05, alpha=0.05)["signals"]["mean"]["verdict"]
        value = told(cohorts)["drift.mean"].value
        assert (verdict == "drift") == (value is not None and value >= -math.log10(0.05))


def test_too_few_devices_say_nothing_and_so_end_no_alert() -> None:
    random = np.random.default_rng(2)
    rule = AlertRule("moved", "drift.mean", above=1.3)
    states, events = evaluate_rules([rule], {}, told([cohort(random, n, moved=0.08) for n in range(24)]).values())
    assert [event.kind for event in events] == ["fired"]
    few = told([cohort(random, n) for n in range(6)])
    assert few["drift.mean"].value is None
    assert "too few" in few["drift.mean"].reason
    assert few["power.mean"].value == 0.0
    later = [msgspec.structs.replace(each, at=99.0) for each in few.values()]
    assert evaluate_rules([rule], states, later)[1] == []


def test_an_outcome_is_by_how_much_a_subgroup_surely_fares_worse() -> None:
    random = np.random.default_rng(3)
    apart = [cohort(random, n, subgroup={"site": "a"}, bad=0.1) for n in range(8)]
    apart += [cohort(random, 8 + n, subgroup={"site": "b"}, bad=0.2) for n in range(8)]
    value = told(apart)["outcome.wrong"].value
    assert value is not None
    assert 0.05 < value < 0.1
    alike = [cohort(random, n, subgroup={"site": "ab"[n % 2]}) for n in range(16)]
    assert (told(alike)["outcome.wrong"].value or 0) < 0.02
    alone = told([cohort(random, n, subgroup={}) for n in range(16)])["outcome.wrong"]
    assert (alone.value, alone.reason) == (None, "there are no two subgroups to compare")


def test_levels_are_told_with_the_noise_taken_off() -> None:
    random = np.random.default_rng(4)
    found = told([cohort(random, n) for n in range(16)])
    assert found["confidence"].value == pytest.approx(0.9, abs=0.01)
    assert found["out_of_distribution"].value == pytest.approx(0.2, abs=0.02)
    assert (found["rejected"].value or 0) < 0.1  # nothing was rejected: all of it is noise
    lost = told([cohort(random, n, devices=1) for n in range(3)])
    assert lost["confidence"].value is None


def test_rejections_are_by_device() -> None:
    random = np.random.default_rng(5)
    cohorts = [cohort(random, n) for n in range(16)]
    busy = [
        msgspec.structs.replace(each, sums=each.sums | {"rejected": (random.normal(0, NOISE, 8) + 50).tolist()})
        for each in cohorts
    ]
    value = told(busy)["rejected"].value
    assert value is not None
    assert 9 < value < 10  # 8 checks, 50 each, of 40 devices: 10 less what may be noise


def test_no_two_cohorts_share_a_device() -> None:
    random = np.random.default_rng(6)
    old = cohort(random, 0, window=("2026-05-01", "2026-05-02"))
    whole = cohort(random, 1, subgroup={})
    sites = [cohort(random, 2 + n, subgroup={"site": str(n)}) for n in range(3)]
    boards = [cohort(random, 5 + n, subgroup={"board": str(n)}) for n in range(2)]
    again = cohort(random, 9, subgroup={"site": "1"})
    found = disjoint_cohorts([old, whole, *sites, *boards, again])
    assert [each.query for each in found] == ["q2", "q9", "q4"]
    assert disjoint_cohorts([]) == []
