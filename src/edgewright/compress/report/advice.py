"""What a verdict means and what to do next, in sentences for the page and the terminal alike."""

import math
from dataclasses import dataclass
from functools import partial

from edgewright.compress.report import formatting
from edgewright.compress.report.comparison import is_original
from edgewright.compress.report.formatting import FormatFunction, is_known
from edgewright.contract.certificate import Certificate
from edgewright.contract.compression_report import CompressionReport

__all__ = [
    "BudgetLimitView",
    "budget_limits",
    "certified_model",
    "method_sentence",
    "multiplicity_sentence",
    "next_steps",
]

_METHODS = {
    "exact": "an exact bound on paired right and wrong answers; it holds for any number of samples",
    "betting": "a betting bound on paired scores between 0 and 1; it holds for any number of samples",
    "t (asymptotic)": "Student's t on paired differences; it relies on many samples",
    "BCa bootstrap (asymptotic)": "a bootstrap of the whole metric; it relies on many samples",
    "cluster t (asymptotic in clusters)": "Student's t over groups, since samples of one group are alike; "
    "it relies on many groups",
    "the same model": "none is needed, the model is the original",
}
_LIMITS: dict[str, tuple[str, str, FormatFunction]] = {
    "latency_p50_ms": ("median latency", "--max-latency-p50", formatting.format_latency),
    "latency_p95_ms": ("95th percentile of the latency", "--max-latency", formatting.format_latency),
    "size_bytes": ("size of the file", "--max-size", formatting.format_size),
    "peak_memory_bytes": ("peak memory", "--max-memory", formatting.format_size),
    "energy_mj": ("energy per inference", "--max-energy", formatting.format_energy),
    "max_drop": ("bound of the drop", "--max-drop", formatting.format_number),
    "min_metric": ("least metric", "--min-metric", formatting.format_number),
}


@dataclass(frozen=True, slots=True)
class BudgetLimitView:
    """One limit of the budget in words.

    Attributes:
        name: What is limited.
        flag: Option that sets the limit.
        limit: Allowed.
        value: Reached.
        share_of_limit: Value over limit; over 1 is broken; None where unknown.
        is_kept: Whether it is kept.
        is_binding: Whether it is the one that decides.
        is_estimated: Whether the value is an estimate.
    """

    name: str
    flag: str
    limit: str
    value: str
    share_of_limit: float | None
    is_kept: bool
    is_binding: bool
    is_estimated: bool

    @property
    def reached_text(self) -> str:
        """The value, labelled where it is an estimate."""
        return f"{self.value} (estimated)" if self.is_estimated else self.value


def budget_limits(report: CompressionReport) -> list[BudgetLimitView]:
    """Return the budget's limits, the binding one first."""
    found = []
    for name, entry in report.budget.limits.items():
        title, flag, write = _LIMITS.get(name, (name, "", formatting.format_number))
        if name == "max_drop":
            write = partial(formatting.format_drop, report.certificate.metric)
        elif name == "min_metric":
            write = partial(formatting.format_metric, report.certificate.metric)
        figure = getattr(report.chosen, name, None)
        share = entry.get("share")
        found.append(
            BudgetLimitView(
                name=title,
                flag=flag,
                limit=write(entry.get("limit")),
                value=write(entry.get("value")),
                share_of_limit=share if is_known(share) else None,
                is_kept=bool(entry.get("kept")),
                is_binding=name == report.budget.binding_limit,
                is_estimated=figure is not None and figure.origin.kind == "estimated",
            )
        )
    return sorted(found, key=lambda limit: not limit.is_binding)


def certified_model(report: CompressionReport) -> str:
    """Name the model that certificate and budget are about.

    A certificate that failed is about the best candidate, which was then not returned.
    """
    if is_original(report):
        return "the best candidate, which is not returned" if report.certificate.look else "the original"
    return "the chosen model"


def method_sentence(certificate: Certificate) -> str:
    """Explain the bound's method."""
    return _METHODS.get(certificate.method, certificate.method)


def multiplicity_sentence(certificate: Certificate) -> str:
    """Explain what the number of looks did to the bound."""
    if certificate.look < 1:
        return "No look at the certify split was spent."
    single = f"{certificate.look_confidence:.2%}"
    return (
        f"This was look number {certificate.look} at this certify split: every further candidate that is judged on "
        f"the same samples must pass a stricter test, here {single}, so that all looks together keep "
        f"{certificate.confidence:.0%}."
    )


def next_steps(report: CompressionReport) -> list[str]:
    """Return what to do, the most promising first; nothing if the result is good as it is."""
    certificate = report.certificate
    match certificate.verdict:
        case "insufficient data":
            return _insufficient(report)
        case "refuted":
            return [
                "More data will not help: even the most favourable bound breaks the limit.",
                "Accept a larger loss: raise --max-drop (now "
                f"{formatting.format_number(certificate.max_drop)}), or lower "
                "--min-metric if you set it.",
                "Give the search room: a longer --time-limit, and looser limits on size and latency, if set.",
                "Check that the data is what the model sees in use, scaled as in training.",
            ]
        case "certified":
            return [] if report.budget.met else _over_budget(report)


def _insufficient(report: CompressionReport) -> list[str]:
    certificate = report.certificate
    steps = []
    kind = "unlabelled" if certificate.metric in ("agreement", "fidelity") else "labelled"
    if certificate.additional_samples_needed:
        more = certificate.additional_samples_needed
        whole = report.data.get("samples") or 0
        held = report.data.get("certify") or 0
        total = ""
        if whole and held:
            every = math.ceil(more * whole / held)
            total = f", at most {_rounded_up(every)} in all, since {held / whole:.0%} of the data go there"
        steps.append(
            f"Add about {_rounded_up(more)} more {kind} samples to the certify split{total}. They must not come from "
            "the training data, and should not repeat the ones you have."
        )
    elif certificate.cluster_count is not None:
        steps.append("Add samples of more groups: the bound counts groups, not samples.")
    else:
        steps.append("The drop seen is no smaller than the limit: more samples would more likely refute it.")
    if is_known(certificate.upper_bound) and certificate.max_drop < certificate.upper_bound < 1:
        bound = math.ceil(certificate.upper_bound * 1.1e4) / 1e4
        steps.append(
            "Or accept what this data can show, a drop of at most "
            f"{formatting.format_drop(certificate.metric, certificate.upper_bound)}: "
            f"--max-drop {bound:g} leaves room for it."
        )
    if certificate.look > 1:
        steps.append("Fresh samples also start the count of looks anew.")
    return steps


def _rounded_up(count: int) -> str:
    """Write an estimated count with two digits of meaning, rounded up.

    >>> _rounded_up(3088), _rounded_up(7), _rounded_up(1204321)
    ('3,100', '7', '1,300,000')
    """
    step = 10 ** max(0, len(str(count)) - 2)
    return f"{math.ceil(count / step) * step:,}"


def _over_budget(report: CompressionReport) -> list[str]:
    broken = [limit for limit in budget_limits(report) if not limit.is_kept]
    steps = []
    for limit in broken:
        factor = "" if limit.share_of_limit is None else f", {limit.share_of_limit:.3g} times the limit"
        what = f"{limit.reached_text} against {limit.limit}{factor}"
        steps.append(
            f"The {limit.name} is {what}. Raise {limit.flag}, or take a larger device." if limit.flag else what
        )
    if any(limit.flag in ("--max-size", "--max-latency", "--max-latency-p50") for limit in broken):
        steps.append("The front may hold a candidate that is closer at a larger loss: see --max-drop.")
    if report.training is None:
        steps.append(
            "A longer --time-limit tries more candidates; beyond that only a smaller network helps: --train DATA "
            "trains some with this one as their teacher."
        )
    else:
        steps.append("A longer --time-limit tries more candidates, and trains the smaller networks for longer.")
    return steps
