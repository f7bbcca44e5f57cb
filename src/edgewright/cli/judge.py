"""What sums over cohorts say together: has a fleet moved, do subgroups fare alike. For `edgewright query judge`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewright.contract.errors import InputError
from edgewright.contract.profile import Profile
from edgewright.signals.fleet import FleetVerdict, Rate, compare_cohorts, difference, rate

__all__ = ["Collected", "judged", "read_collected"]


class Collected(msgspec.Struct, frozen=True):
    """A sum, as `edgewright query collect --json` prints it.

    Attributes:
        query: Its id.
        devices: In it.
        noise_sd: Of each number.
        sums: By signal.
        subgroup: Labels and values of its devices, besides the template's.
    """

    query: str
    devices: int
    noise_sd: float
    sums: dict[str, list[float]]
    subgroup: dict[str, str] = {}


def read_collected(path: Path) -> Collected:
    """Return a sum from its file.

    Raises:
        InputError: It holds none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Collected)
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(
            f"{path} holds no sum: {error}", remedy="Keep what 'edgewright query collect --json' prints."
        ) from error


def judged(profile: Profile, cohorts: Sequence[Collected], *, size: float, alpha: float) -> dict[str, Any]:
    """Return what disjoint cohorts say: by signal whether they have moved, by outcome how often and how unlike.

    Args:
        profile: Of the release that the sums are about.
        cohorts: Each of other devices.
        size: Shift worth finding, as total variation.
        alpha: False alarms allowed, over all signals together.
    """
    tested = [s for s in profile.signals if all(len(c.sums.get(s.name, ())) == len(s.counts) for c in cohorts)]
    sigma = max(cohort.noise_sd for cohort in cohorts)
    signals = {}
    for signal in tested:
        # What is not finite has no place in the order.
        reference = np.array(signal.counts[:-1], np.float64)
        found = compare_cohorts(
            [cohort.sums[signal.name][:-1] for cohort in cohorts],
            reference / reference.sum(),
            n_ref=float(reference.sum()),
            sigma=sigma,
            size=size,
            alpha=alpha / len(tested),
        )
        signals[signal.name] = {
            "verdict": str(found.verdict),
            "says": found.sentence,
            "p_value": found.p_value,
            "power": found.power,
            "detectable": found.detectable,
        }
    names = sorted({name for cohort in cohorts for name in cohort.sums if name.startswith("outcome.")})
    drifting = [name for name, one in signals.items() if one["verdict"] == str(FleetVerdict.DRIFT)]
    return {
        "cohorts": len(cohorts),
        "devices": sum(cohort.devices for cohort in cohorts),
        "drifting": drifting,
        "signals": signals,
        "outcomes": {name: _rates(name, cohorts, alpha / max(1, len(names))) for name in names},
    }


def _rates(name: str, cohorts: Sequence[Collected], alpha: float) -> dict[str, Any]:
    """Return how often an outcome was bad, by subgroup, and the greatest difference with its interval."""
    groups: dict[str, list[Collected]] = {}
    for cohort in cohorts:
        groups.setdefault(_label(cohort.subgroup), []).append(cohort)
    rates: dict[str, Rate] = {}
    for label, members in groups.items():
        sums = np.sum([member.sums.get(name, [0.0, 0.0]) for member in members], axis=0)
        # The noise of the total is that of all counts that it is made of.
        noise = float(np.sqrt(2 * sum(member.noise_sd**2 for member in members)))
        rates[label] = rate(float(sums[1]), float(sums.sum()), sigma=noise, alpha=alpha / len(groups))
    known = {label: found for label, found in rates.items() if found.value is not None}
    shown: dict[str, Any] = {"rates": {label: _shown(found) for label, found in rates.items()}}
    if len(known) > 1:
        worst, best = (pick(known, key=lambda label: known[label].value or 0.0) for pick in (max, min))
        shown |= {"worst": worst, "best": best, "difference": _shown(difference(known[worst], known[best]))}
    return shown


def _label(subgroup: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(subgroup.items())) or "all"


def _shown(found: Rate) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "why": found.why}
