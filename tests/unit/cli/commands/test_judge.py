"""What sums over cohorts say together, through the same noise that devices add."""

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.cli.commands.judge import read_cohort_sums
from edgewright.contract.errors import InputError
from edgewright.contract.model.reference_profile import ReferenceProfile, ReferenceSignal
from edgewright.contract.query.query import CountedSignal, Query, QueryTemplate
from edgewright.fleet.cohort_drift import CohortSums, assess_cohorts
from edgewright.privacy.private_sum import contribution, recover_sum
from edgewright.privacy.query_calibration import fill_template

SHARES = np.full(16, 1 / 16)
PROFILE = ReferenceProfile(
    "x",
    4,
    tuple(
        ReferenceSignal(name, tuple(np.linspace(-1, 1, 15).tolist()), (*[400] * 16, 0)) for name in ("mean", "std")
    ),
)
NOISE = 20.0
NUMBERS = itertools.count()


def collected(
    sums: dict[str, list[float]], *, devices: int, noise: float, site: str = "", **more: Any
) -> CohortSums:
    """A sum of a query of its own."""
    said: dict[str, Any] = {
        "query": "q",
        "query_digest": f"d{next(NUMBERS)}",
        "template": "signals",
        "template_digest": "t",
        "release": "r",
        "window": ("2026-06-01", "2026-06-02"),
        "out_of_range": 0,
        "subgroup": {"site": site} if site else {},
    }
    return CohortSums(device_count=devices, noise_sd=noise, sums=sums, **(said | more))


def cohort(
    random: np.random.Generator, *, moved: float = 0.0, devices: int = 40, bad: float = 0.1, site: str = ""
) -> CohortSums:
    """Devices that differ a little, 100 observations each, and noise on every number."""
    shifted = SHARES.copy()
    shifted[:8] -= moved / 8
    shifted[8:] += moved / 8

    def counts(shares: NDArray[Any]) -> list[float]:
        own = random.dirichlet(shares * 200, devices)
        total = sum(random.multinomial(100, each) for each in own)
        return [*(total + random.normal(0, NOISE, 16)).tolist(), float(random.normal(0, NOISE))]

    wrong = random.binomial(100 * devices, bad)
    outcome = np.array([100 * devices - wrong, wrong]) + random.normal(0, NOISE, 2)
    sums = {"mean": counts(shifted), "std": counts(SHARES), "outcome.wrong": outcome.tolist()}
    return collected(sums, devices=devices, noise=NOISE, site=site)


def test_a_fleet_that_has_moved_is_found_and_the_signal_named() -> None:
    random = np.random.default_rng(0)
    found = assess_cohorts(
        PROFILE, [cohort(random, moved=0.08) for _ in range(24)], release="r", size=0.05, alpha=0.05
    )
    assert found["drifting"] == ["mean"]
    assert found["devices"] == 24 * 40


def test_a_fleet_that_stayed_is_said_to_have_stayed_with_its_power_or_to_be_too_small() -> None:
    random = np.random.default_rng(1)
    many = assess_cohorts(PROFILE, [cohort(random) for _ in range(40)], release="r", size=0.05, alpha=0.05)
    assert many["drifting"] == []
    assert "no shift of 0.05 or more" in many["signals"]["mean"]["says"]
    assert many["signals"]["mean"]["power"] > 0.9
    few = assess_cohorts(PROFILE, [cohort(random) for _ in range(6)], release="r", size=0.05, alpha=0.05)
    assert "too few" in few["signals"]["mean"]["says"]


def test_harmless_fleets_alarm_no_more_than_stated() -> None:
    random = np.random.default_rng(2)
    alarms = sum(
        bool(
            assess_cohorts(PROFILE, [cohort(random) for _ in range(16)], release="r", size=0.05, alpha=0.05)[
                "drifting"
            ]
        )
        for _ in range(60)
    )
    assert alarms <= 8  # of 60 at .05, more than 8 have a chance of one in 1,000


def test_subgroups_are_compared_with_the_noise_in_their_intervals() -> None:
    random = np.random.default_rng(3)
    cohorts = [cohort(random, site="berlin") for _ in range(8)]
    cohorts += [cohort(random, bad=0.2, site="paris") for _ in range(8)]
    found = assess_cohorts(PROFILE, cohorts, release="r", size=0.05, alpha=0.05)["outcomes"]["outcome.wrong"]
    assert (found["worst"], found["best"]) == ("site=paris", "site=berlin")
    assert 0.05 < found["difference"]["low"] < 0.1 < found["difference"]["high"] < 0.15
    tiny = [cohort(random, devices=1, site=site) for site in ("a", "b")]
    nothing = assess_cohorts(PROFILE, tiny, release="r", size=0.05, alpha=0.05)["outcomes"]["outcome.wrong"]
    assert all(each["reason"] or each["high"] - each["low"] > 0.05 for each in nothing["rates"].values())


CLASSES = np.array([0.9, 0.07, 0.03])
CLASS_PROFILE = ReferenceProfile("x", 4, (ReferenceSignal("class", (0.5, 1.5), (900, 70, 30, 0)),))


def busy(random: np.random.Generator, shares: NDArray[Any]) -> CohortSums:
    """30 devices that each saw 10,000 observations, asked for 100 of them at most, through the whole of a sum."""
    template = QueryTemplate(
        *("signals", "histogram", "default"),
        clip=100.0,
        min_noise=0.05,
        min_cohort=30,
        max_rho=1.0,
        min_interval_seconds=1.0,
        expires_at="2027-01-01",
        signals=(CountedSignal("class", 4),),
    )
    times = ("2026-06-01", "2026-06-02", "2026-06-20")
    whole = Query("q", "signals", "0" * 64, *times, 32, 1.0, 2.0, 30, 100, 1.0, "helper", "ab" * 32)
    query = fill_template(whole, template, 2.0)
    seen = [random.multinomial(10_000, random.dirichlet(shares * 300)) for _ in range(30)]
    parts = [contribution(np.append(one, 0).astype(float), template, query) for one in seen]
    total = np.asarray(np.sum(parts, axis=0, dtype=np.uint64) % (1 << query.bits), np.uint32)
    found = recover_sum(total, template, query, 30)
    return collected({"class": found.values.tolist()}, devices=30, noise=found.noise_sd)


def test_devices_that_saw_far_more_than_the_clip_still_tell_the_shape() -> None:
    random = np.random.default_rng(5)
    stayed = assess_cohorts(
        CLASS_PROFILE, [busy(random, CLASSES) for _ in range(24)], release="r", size=0.3, alpha=0.001
    )
    assert stayed["drifting"] == []
    moved = np.array([0.6, 0.22, 0.18])
    found = assess_cohorts(
        CLASS_PROFILE, [busy(random, moved) for _ in range(24)], release="r", size=0.3, alpha=0.001
    )
    assert found["drifting"] == ["class"]


def test_what_is_no_sum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sum.json"
    with pytest.raises(InputError, match="holds no sum"):
        read_cohort_sums(path)
    path.write_text(json.dumps({"query": "q"}))
    with pytest.raises(InputError, match="holds no sum"):
        read_cohort_sums(path)
    path.write_bytes(msgspec.json.encode(cohort(np.random.default_rng(4))))
    assert read_cohort_sums(path).device_count == 40


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "of another release": ({"release": "other"}, "about another release"),
    "of another template": ({"template_digest": "other"}, "different templates"),
    "of one query twice": ({"query_digest": "d"}, "of one query"),
    "of a copied file": ({"sums": None}, "the same numbers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_sums_that_do_not_belong_together_are_refused(what: str) -> None:
    changes, reason = REFUSED[what]
    random = np.random.default_rng(6)
    first, *others = (cohort(random) for _ in range(13))
    if "query_digest" in changes:
        first = msgspec.structs.replace(first, query_digest="d")
    if "sums" in changes:
        changes = {"sums": first.sums}
    others[-1] = msgspec.structs.replace(others[-1], **changes)
    with pytest.raises(InputError, match=reason):
        assess_cohorts(PROFILE, [first, *others], release="r", size=0.05, alpha=0.05)


def test_where_nothing_can_be_tested_nothing_is_said() -> None:
    sums = [collected({"other": [1.0 + n, 2.0]}, devices=40, noise=1.0) for n in range(14)]
    with pytest.raises(InputError, match="no signal"):
        assess_cohorts(PROFILE, sums, release="r", size=0.05, alpha=0.05)


def test_sums_that_do_not_scatter_are_no_evidence_and_no_crash() -> None:
    alike = [
        collected({"mean": [100.0] * 17, "std": [100.0] * 17, "n": [float(n)]}, devices=40, noise=1.0)
        for n in range(14)
    ]
    with pytest.raises(InputError, match="no signal"):
        assess_cohorts(PROFILE, alike, release="r", size=0.05, alpha=0.05)


def test_numbers_where_no_honest_sum_lies_are_warned_of() -> None:
    random = np.random.default_rng(7)
    cohorts = [cohort(random) for _ in range(12)]
    assert assess_cohorts(PROFILE, cohorts, release="r", size=0.05, alpha=0.05)["warnings"] == []
    cohorts[3] = msgspec.structs.replace(cohorts[3], out_of_range=2, query="monday")
    (warning,) = assess_cohorts(PROFILE, cohorts, release="r", size=0.05, alpha=0.05)["warnings"]
    assert "monday: 2 numbers" in warning


def test_intervals_of_several_cohorts_hold_what_devices_that_differ_scatter_by() -> None:
    """A site of few, unlike devices: an interval of independent observations would be far too narrow."""
    random, held = np.random.default_rng(8), 0
    for _ in range(100):
        cohorts = []
        for _ in range(10):
            wrong = sum(random.binomial(1000, each) for each in random.beta(1, 9, 4))
            counts = np.array([4000 - wrong, wrong]) + random.normal(0, NOISE, 2)
            shifted = {"mean": random.normal(100, 5, 17).tolist(), "outcome.wrong": counts.tolist()}
            cohorts.append(collected(shifted, devices=4, noise=NOISE, site="paris"))
        found = assess_cohorts(PROFILE, cohorts, release="r", size=0.05, alpha=0.05)["outcomes"]["outcome.wrong"]
        one = found["rates"]["site=paris"]
        assert one["assumes"] == ""
        held += one["low"] <= 0.1 <= one["high"]
    assert held >= 86  # of 100 at .95, fewer have a chance of one in 1,000
    alone = assess_cohorts(PROFILE, cohorts[:1], release="r", size=0.05, alpha=0.05)["outcomes"]["outcome.wrong"]
    assert alone["rates"]["site=paris"]["assumes"] == "one observation a device"


def test_classes_and_confidence_are_told_by_subgroup() -> None:
    random = np.random.default_rng(9)
    right = {"berlin": np.linspace(0.1, 0.95, 10), "paris": np.full(10, 0.5)}
    shares = {"berlin": [0.5, 0.3, 0.2], "paris": [0.2, 0.3, 0.5]}
    cohorts = []
    for site in ("berlin", "paris"):
        for _ in range(8):
            hits = random.binomial(1000, right[site])
            sums = {
                "class": [*(random.multinomial(9000, shares[site]) + random.normal(0, NOISE, 3)).tolist(), 0.0],
                "calibration.wrong": (
                    np.stack([hits, 1000 - hits], 1).ravel() + random.normal(0, NOISE, 20)
                ).tolist(),
            }
            cohorts.append(collected(sums, devices=40, noise=NOISE, site=site))
    found = assess_cohorts(CLASS_PROFILE, cohorts, release="r", size=0.05, alpha=0.05)
    for site in ("berlin", "paris"):
        classes, tenths = (
            found["classes"][f"site={site}"],
            found["calibration"]["calibration.wrong"][f"site={site}"],
        )
        assert len(classes) == 3
        assert len(tenths) == 10
        for wanted, one in zip([*shares[site], *right[site]], [*classes, *tenths], strict=True):
            assert one["low"] <= wanted <= one["high"]
            assert one["high"] - one["low"] < 0.1
