"""What sums over cohorts say together: has a fleet moved, do subgroups fare alike. Pure.

As readings for alert rules:

==================  ====================================================================================
`drift.SIGNAL`      -log10 of the p-value, times the number of signals: above 1.3 is the 5 % level over all
                    of them together, above 3 a false alarm in 1,000 looks; None if devices are too few to
                    say that nothing moved
`power.SIGNAL`      chance that a shift of the stated size would have been found
`outcome.NAME`      by how much the worst subgroup surely fares worse than the best: the lower end of the
                    interval of the difference, 0 if that holds 0
`confidence`        mean of the confidences, from the bins' middles
`rejected`          inputs that the guard rejected, by device: the lower end of the interval that the noise
                    leaves; of each device no more than the template's clip is counted
`unusual`           share of the inputs that the model was not made for
==================  ====================================================================================
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from edgewright.contract.alert import MetricReading
from edgewright.contract.errors import InputError
from edgewright.contract.model.reference_profile import ReferenceProfile, ReferenceSignal
from edgewright.stats.cohort_tests import (
    CohortVerdict,
    RateEstimate,
    cohort_rate,
    compare_cohorts,
    noised_rate,
    rate_difference,
)

__all__ = ["CohortSums", "assess_cohorts", "cohort_readings", "disjoint_cohorts"]

# Sums within so many standard deviations of their noise are not divided by.
_CLEAR = 4.0
_TWO_SIDED = 1.96


class CohortSums(msgspec.Struct, frozen=True, kw_only=True):
    """A sum, as `edgewright query collect --json` prints it.

    Attributes:
        query: Its id.
        query_digest: Of the query.
        template: Name of the query's template.
        template_digest: Of it.
        release: sha256 of the manifest in whose reference profile the bins are.
        window: What was counted, from and to.
        device_count: Devices in it.
        noise_sd: Of each number.
        out_of_range: Numbers that lie where no honest sum does.
        sums: By signal.
        subgroup: Labels and values of its devices, besides the template's.
    """

    query: str
    query_digest: str
    template: str
    template_digest: str
    release: str
    window: tuple[str, str]
    device_count: int
    noise_sd: float
    out_of_range: int
    sums: dict[str, list[float]]
    subgroup: dict[str, str]


def disjoint_cohorts(sums: Sequence[CohortSums]) -> list[CohortSums]:
    """Return sums of the newest window that are of different devices, as many as there are.

    Devices have one value of a label, so sums by the same labels and of different values share no device; a sum
    over all of them is one alone.

    Args:
        sums: Of one template and one release, the oldest first.
    """
    newest = max((each.window[1] for each in sums), default="")
    groups: dict[tuple[tuple[str, str], tuple[str, ...]], dict[str, CohortSums]] = {}
    for each in sums:
        if each.window[1] == newest:
            # Of two sums over the same devices the later one counts.
            labels = tuple(sorted(each.subgroup))
            groups.setdefault((each.window, labels), {})[_label(each.subgroup)] = each
    return list(max(groups.values(), key=len, default={}).values())


def cohort_readings(
    profile: ReferenceProfile,
    cohorts: Sequence[CohortSums],
    *,
    device_class: str,
    release: str,
    at: float,
    size: float = 0.05,
    alpha: float = 0.05,
) -> list[MetricReading]:
    """Return what disjoint cohorts say as numbers that rules can compare; see the table above.

    Args:
        profile: Of the release that the sums are about.
        cohorts: From `disjoint_cohorts`.
        device_class: Of the devices.
        release: sha256 of the release's manifest.
        at: When the last of the sums came.
        size: Shift worth finding, as total variation.
        alpha: False alarms allowed, over all signals together.
    """
    try:
        found = assess_cohorts(profile, cohorts, release=release, size=size, alpha=alpha)
    except InputError as error:
        # Nothing can be tested; what else the sums hold still says something.
        found, nothing = {"signals": {}, "outcomes": {}}, error.message
    else:
        nothing = "the sums do not hold it in the profile's bins"

    def reading(metric: str, value: float | None, why: str) -> MetricReading:
        return MetricReading(metric, device_class, value, at, why)

    said = []
    tested = len(found["signals"])
    for signal in profile.signals:
        one = found["signals"].get(signal.name)
        if one is None:
            said.append(reading(f"drift.{signal.name}", None, nothing))
            continue
        unknown = one["verdict"] == str(CohortVerdict.TOO_FEW_DEVICES)
        p_value = min(1.0, max(one["p_value"] * tested, 1e-300))
        said.append(reading(f"drift.{signal.name}", None if unknown else -math.log10(p_value), one["says"]))
        said.append(reading(f"power.{signal.name}", one["power"], one["says"]))
    for name, one in found["outcomes"].items():
        gap = one.get("difference")
        if gap is None or gap["value"] is None:
            why = "there are no two subgroups to compare" if gap is None else gap["reason"]
            said.append(reading(name, None, why))
        else:
            why = f"{one['worst']} less {one['best']}: {gap['value']:.3f} [{gap['low']:.3f}, {gap['high']:.3f}]"
            said.append(reading(name, max(0.0, gap["low"]), why))
    return [*said, *(reading(*each) for each in _signal_levels(profile, cohorts, alpha))]


def _signal_levels(
    profile: ReferenceProfile, cohorts: Sequence[CohortSums], alpha: float
) -> list[tuple[str, float | None, str]]:
    """Return metric, value and reason of what needs no reference."""
    said: list[tuple[str, float | None, str]] = []
    confidence = next((each for each in profile.signals if each.name == "confidence"), None)
    sure = [
        each for each in cohorts if confidence and len(each.sums.get("confidence", ())) == len(confidence.counts)
    ]
    if confidence is not None and sure:
        counts = np.sum([each.sums["confidence"][:-1] for each in sure], axis=0)
        edges = np.clip([0.0, *confidence.edges, 1.0], 0.0, 1.0)
        noise = math.hypot(*(each.noise_sd for each in sure)) * math.sqrt(len(counts))
        total = float(counts.sum())
        clear = total > _CLEAR * noise
        value = float(counts @ (edges[:-1] + edges[1:]) / 2 / total) if clear else None
        said.append(("confidence", value, f"{total:.0f} answers, noise {noise:.0f}"))
    guarded = [each for each in cohorts if each.sums.get("rejected")]
    if guarded:
        total = sum(sum(each.sums["rejected"]) for each in guarded)
        noise = math.sqrt(sum(len(each.sums["rejected"]) * each.noise_sd**2 for each in guarded))
        devices = sum(each.device_count for each in guarded)
        least = max(0.0, total - _TWO_SIDED * noise) / devices
        said.append(("rejected", least, f"{total:.0f} of {devices} devices, noise {noise:.0f}"))
    strange = [each for each in cohorts if len(each.sums.get("out_of_distribution", ())) == 2]
    if strange:
        sums = [each.sums["out_of_distribution"] for each in strange]
        noises = [2**0.5 * each.noise_sd for each in strange]
        found = _share([one[1] for one in sums], [sum(one) for one in sums], noises, alpha)
        said.append(("out_of_distribution", found.value, found.reason or f"[{found.low:.3f}, {found.high:.3f}]"))
    return said


def assess_cohorts(
    profile: ReferenceProfile, cohorts: Sequence[CohortSums], *, release: str, size: float, alpha: float
) -> dict[str, Any]:
    """Return what disjoint cohorts say: by signal whether they have moved, by subgroup how it fares.

    Args:
        profile: Of the release that the sums are about.
        cohorts: Each of other devices.
        release: sha256 of the release's manifest.
        size: Shift worth finding, as total variation.
        alpha: False alarms allowed, over all signals together.

    Raises:
        InputError: The sums are not of different queries of one template about this release, or hold nothing to
            test.
    """
    _check_comparable(cohorts, release)
    tested = [signal for signal in profile.signals if _can_test(signal, cohorts)]
    if not tested:
        raise InputError(
            "no signal of the release's profile can be tested in these sums",
            remedy="Ask a template that 'edgewright query permit --signals' made of this release.",
        )
    sigma = max(cohort.noise_sd for cohort in cohorts)
    signals = {}
    for signal in tested:
        # What is not finite has no place in the order.
        reference = np.array(signal.counts[:-1], np.float64)
        found = compare_cohorts(
            [cohort.sums[signal.name][:-1] for cohort in cohorts],
            reference / reference.sum(),
            reference_count=float(reference.sum()),
            noise_sd=sigma,
            shift_size=size,
            alpha=alpha / len(tested),
        )
        signals[signal.name] = {
            "verdict": str(found.verdict),
            "says": found.describe,
            "p_value": found.p_value,
            "power": found.power,
            "detectable": found.detectable_shift,
        }
    outcomes, tenths = (_named(cohorts, kind) for kind in ("outcome.", "calibration."))
    return {
        "cohorts": len(cohorts),
        "devices": sum(cohort.device_count for cohort in cohorts),
        "warnings": [_beyond(cohort) for cohort in cohorts if cohort.out_of_range],
        "drifting": [name for name, one in signals.items() if one["verdict"] == str(CohortVerdict.DRIFT)],
        "signals": signals,
        "outcomes": {name: _outcome(name, cohorts, alpha / len(outcomes)) for name in outcomes},
        "classes": _classes(cohorts, alpha),
        "calibration": {name: _calibration_by_decile(name, cohorts, alpha / len(tenths)) for name in tenths},
    }


def _check_comparable(cohorts: Sequence[CohortSums], release: str) -> None:
    if other := [cohort.query for cohort in cohorts if cohort.release != release]:
        raise InputError(
            f"the sum of query {other[0]} is about another release", remedy="Name with --release what it is about."
        )
    if len({cohort.template_digest for cohort in cohorts}) > 1:
        raise InputError(
            f"the sums are of different templates, such as {cohorts[0].template} and {cohorts[-1].template}",
            remedy="Judge sums of one template, as it was signed once.",
        )
    if len({cohort.query_digest for cohort in cohorts}) < len(cohorts):
        raise InputError("two sums are of one query", remedy="Give one sum of each query: cohorts are disjoint.")
    if len({msgspec.json.encode(cohort.sums) for cohort in cohorts}) < len(cohorts):
        raise InputError(
            "two sums hold the same numbers, which noise never leaves", remedy="One is a copy: give each once."
        )


def _can_test(signal: ReferenceSignal, cohorts: Sequence[CohortSums]) -> bool:
    """Whether a signal was summed in the profile's bins, of which there are two at least, and scatters."""
    if len(signal.counts) < 3 or not sum(signal.counts[:-1]):
        return False
    if any(len(cohort.sums.get(signal.name, ())) != len(signal.counts) for cohort in cohorts):
        return False
    found = np.array([cohort.sums[signal.name][:-1] for cohort in cohorts])
    # Sums without any scatter are none that noise was in.
    return len(cohorts) < 2 or bool(np.ptp(found * found[0].sum() - found[0] * found.sum(axis=1)[:, None]))


def _beyond(cohort: CohortSums) -> str:
    return (
        f"query {cohort.query}: {cohort.out_of_range} numbers lie where no honest sum does; "
        "a device lied, or it wrapped"
    )


def _named(cohorts: Sequence[CohortSums], kind: str) -> list[str]:
    return sorted({name for cohort in cohorts for name in cohort.sums if name.startswith(kind)})


def _groups(cohorts: Sequence[CohortSums], name: str) -> dict[str, list[CohortSums]]:
    """Return the cohorts that have a signal, by subgroup."""
    groups: dict[str, list[CohortSums]] = {}
    for cohort in cohorts:
        if name in cohort.sums:
            groups.setdefault(_label(cohort.subgroup), []).append(cohort)
    return groups


def _share(hits: Sequence[float], counts: Sequence[float], noises: Sequence[float], alpha: float) -> RateEstimate:
    """Return a share over cohorts: from how they scatter if there are two, else as if of independent observations.

    Args:
        hits: By cohort.
        counts: By cohort.
        noises: Standard deviation of the noise on each count; that on hits is no more.
        alpha: Two-sided error.
    """
    if len(counts) > 1:
        return cohort_rate(hits, counts, noise_sd=max(noises), alpha=alpha)
    return noised_rate(hits[0], counts[0], noise_sd=noises[0], alpha=alpha)


def _outcome(name: str, cohorts: Sequence[CohortSums], alpha: float) -> dict[str, Any]:
    """Return how often an outcome was bad, by subgroup, and the greatest difference with its interval."""
    groups = _groups(cohorts, name)
    rates: dict[str, RateEstimate] = {}
    for label, members in groups.items():
        sums = [member.sums[name] for member in members]
        noises = [2**0.5 * member.noise_sd for member in members]
        rates[label] = _share([one[1] for one in sums], [sum(one) for one in sums], noises, alpha / len(groups))
    known = {label: found for label, found in rates.items() if found.value is not None}
    shown: dict[str, Any] = {"rates": {label: _as_json(found, groups[label]) for label, found in rates.items()}}
    if len(known) > 1:
        worst, best = (pick(known, key=lambda label: known[label].value or 0.0) for pick in (max, min))
        both = (
            [*groups[worst], *groups[best]] if min(len(groups[worst]), len(groups[best])) > 1 else groups[worst][:1]
        )
        shown |= {
            "worst": worst,
            "best": best,
            "difference": _as_json(rate_difference(known[worst], known[best]), both),
        }
    return shown


def _classes(cohorts: Sequence[CohortSums], alpha: float) -> dict[str, list[dict[str, Any]]]:
    """Return by subgroup what share of answers each class has; the last bin, of no class, is not counted."""
    found = {}
    groups = _groups(cohorts, "class")
    for label, members in groups.items():
        sums = [member.sums["class"][:-1] for member in members]
        noises = [len(one) ** 0.5 * member.noise_sd for one, member in zip(sums, members, strict=True)]
        totals, shared = [sum(one) for one in sums], alpha / (len(groups) * max(1, len(sums[0])))
        found[label] = [
            _as_json(_share([one[at] for one in sums], totals, noises, shared), members)
            for at in range(len(sums[0]))
        ]
    return found


def _calibration_by_decile(
    name: str, cohorts: Sequence[CohortSums], alpha: float
) -> dict[str, list[dict[str, Any]]]:
    """Return by subgroup how often answers were right, for each tenth of confidence: pairs of right and wrong."""
    found = {}
    groups = _groups(cohorts, name)
    for label, members in groups.items():
        pairs = [np.reshape(member.sums[name], (-1, 2)) for member in members]
        noises = [2**0.5 * member.noise_sd for member in members]
        found[label] = [
            _as_json(
                _share(
                    [float(one[at, 0]) for one in pairs],
                    [float(one[at].sum()) for one in pairs],
                    noises,
                    alpha / (len(groups) * len(pairs[0])),
                ),
                members,
            )
            for at in range(len(pairs[0]))
        ]
    return found


def _label(subgroup: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(subgroup.items())) or "all"


def _as_json(found: RateEstimate, members: Sequence[CohortSums]) -> dict[str, Any]:
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "reason": found.reason,
        # From one cohort nothing is known of how devices differ.
        "assumes": "" if len(members) > 1 else "one observation a device",
    }
