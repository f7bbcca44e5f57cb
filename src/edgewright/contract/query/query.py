"""What a fleet may be asked: the template of the offline keys, the query that online keys make of it, and limits.

A query instantiates a template and may only be stricter; a device's own limits stand above both. All three are
data: what a query costs is computed in `privacy/accountant.py`, and what was spent
is kept in `privacy/budget_ledger.py`.
"""

import hashlib
import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_digest, checked_name
from edgewright.contract.rollout.plan import Selector
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.contract.timestamps import checked_time, time_of

__all__ = [
    "LEAST_SIGMA",
    "MOST_SIGMA",
    "Backend",
    "Counted",
    "Kind",
    "Limits",
    "Noise",
    "Query",
    "Template",
    "answer_bytes",
    "beyond",
    "canonical",
    "digest_of",
    "grid_clip",
    "laxer",
    "size_of",
    "untimely",
]

Backend = Literal["helper", "secagg"]
Kind = Literal["histogram", "vector"]
Noise = Literal["gaussian", "skellam"]

# In grid units. Below, sums of discrete Gaussians are far from one: at a million values their divergence is 573 at
# sigma 1 and 0.002 at 1.5 (arXiv:2102.06387, tau times d).
LEAST_SIGMA = 1.5
# The table of the sampler grows with sigma, and with it its error.
MOST_SIGMA = 4096.0
_MOST_VALUES = 1 << 26
_MOST_GRID = 1 << 30
_MOST_COHORT = 1 << 24


class Counted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signal whose counts are summed.

    Attributes:
        name: Of the signal.
        bins: How many it has in the release's reference profile.
    """

    name: str
    bins: int

    def __post_init__(self) -> None:
        """Refuse what is no signal."""
        checked_name("signal", self.name)
        _checked_whole(f"bins of {self.name}", self.bins, 1, 4096)


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the offline keys allow to be asked; a query fills in when, of how many, and how fine.

    Attributes:
        name: Of the template.
        kind: Counts over bins, or a vector of numbers.
        device_class: Whose devices are asked.
        clip: Of a histogram, the most observations of one signal that a device adds. Of a vector, the most that
            its L2 norm may be.
        least_noise: Least standard deviation of one device's own noise, in units of the clip.
        min_cohort: Least number of devices in an answer.
        dearest_rho: Most that one answer may cost, in zCDP, when the others are honest.
        every_s: Least seconds between two answers of a device.
        expires: No answer after, UTC, ISO 8601.
        model: Which, "" for any.
        signals: What a histogram counts, in order.
        length: Numbers in a vector.
        selector: Labels that the devices all have, and their channel.
        norm: Of a histogram, the most that the L2 norm of a device's counts may be; 0 for what the clip alone
            gives.
        most_weight: Greatest weight of an example; 0 if examples have none. A weighted vector is summed with its
            weight, so its length grows by one.
        noise: Which distribution.
        colluders: How many of them are assumed to tell their noise.
        vouched: How many other devices are proved to a device to be in the sum; 0 where the whole cohort is.
        delta: For which epsilon is stated.
        backends: Over which it may be answered.
        subgroups: Names of labels by which a query may single out part of the devices.
    """

    name: str
    kind: Kind
    device_class: str
    clip: float
    least_noise: float
    min_cohort: int
    dearest_rho: float
    every_s: float
    expires: str
    model: str = ""
    signals: tuple[Counted, ...] = ()
    length: int = 0
    selector: Selector = Selector()
    norm: float = 0.0
    most_weight: float = 0.0
    noise: Noise = "gaussian"
    colluders: int = 0
    vouched: int = 0
    delta: float = 1e-6
    backends: tuple[Backend, ...] = ("helper",)
    subgroups: tuple[str, ...] = ()
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a template that promises nothing."""
        checked_name("template", self.name)
        checked_name("device class", self.device_class)
        if self.model:
            checked_name("model", self.model)
        for label in (*self.subgroups, *self.selector.labels):
            checked_name("label", label)
        for what, value in (
            ("clip", self.clip),
            ("least_noise", self.least_noise),
            ("dearest_rho", self.dearest_rho),
            ("every_s", self.every_s),
        ):
            _checked_positive(what, value)
        for what, value in (("norm", self.norm), ("most_weight", self.most_weight)):
            if value:
                _checked_positive(what, value)
        if not 0 < self.delta <= 0.01:
            raise InputError(
                f"delta is {self.delta:g}", remedy="It lies between 0 and 0.01; one in a million is usual."
            )
        _checked_whole("min_cohort", self.min_cohort, 2, _MOST_COHORT)
        _checked_whole("vouched", self.vouched, 0, self.min_cohort - 1)
        _checked_whole("colluders", self.colluders, 0, self.vouched or self.min_cohort - 1)
        if not self.expires or not self.backends:
            raise InputError(
                f"template {self.name} never expires or has no backend",
                remedy="Give both: an end, and helper or secagg.",
            )
        checked_time("expires", self.expires)
        self._check_kind()

    def _check_kind(self) -> None:
        names = [signal.name for signal in self.signals]
        fits = {
            "histogram": bool(names) and not self.length and not self.most_weight,
            "vector": not names and self.length > 0 and not self.norm,
        }
        if not fits[self.kind] or len(set(names)) < len(names):
            raise InputError(
                f"template {self.name} is a {self.kind} with {len(names)} signals and length {self.length}",
                remedy="A histogram names its signals, each once; a vector its length. Only a histogram has a norm "
                "beside its clip, only a vector has weights.",
            )
        _checked_whole("values", self.values, 1, _MOST_VALUES)

    @property
    def values(self) -> int:
        """How many numbers are summed, before any projection."""
        if self.kind == "histogram":
            return sum(signal.bins for signal in self.signals)
        return self.length + (1 if self.most_weight else 0)


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question, made of a template.

    Attributes:
        id: Of the query; no two have the same.
        template: Name of the template.
        template_digest: Of the template, by `digest_of`.
        window_start: What is counted began then, UTC, ISO 8601.
        window_end: And ended then.
        deadline: No answer after.
        bits: Width of each summed number, 2 to 32.
        scale: Grid units per unit of the values.
        sigma: Standard deviation of one device's own noise, in grid units.
        cohort: Devices whose answers are in the sum at least: of fewer, no sum may be opened.
        largest: And at most: more could wrap around.
        rho: What an answer costs, in zCDP, when the others are honest.
        backend: Over which it is answered.
        seed: Of rotation and projection, 64 hexadecimal digits; it is no secret.
        release: sha256 of the manifest in whose reference profile the bins are; "" if it is not about a release.
        projected: Numbers after the projection; 0 for none.
        subgroup: Labels and values that a device must have, besides the template's.
    """

    id: str
    template: str
    template_digest: str
    window_start: str
    window_end: str
    deadline: str
    bits: int
    scale: float
    sigma: float
    cohort: int
    largest: int
    rho: float
    backend: Backend
    seed: str
    release: str = ""
    projected: int = 0
    subgroup: dict[str, str] = {}
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a query that no device could answer."""
        checked_name("query", self.id)
        checked_name("template", self.template)
        checked_digest("template", self.template_digest)
        checked_digest("seed", self.seed)
        if self.release:
            checked_digest("release", self.release)
        for label in self.subgroup:
            checked_name("label", label)
        for what in ("window_start", "window_end", "deadline"):
            if not checked_time(what, getattr(self, what)):
                raise InputError(f"query {self.id} has no {what}", remedy="Write it as 2027-12-31T23:59:00+00:00.")
        if time_of(self.window_start) >= time_of(self.window_end):
            raise InputError(
                f"the window of query {self.id} ends before it begins", remedy="Give an end after the start."
            )
        for name, value in (("scale", self.scale), ("sigma", self.sigma), ("rho", self.rho)):
            _checked_positive(name, value)
        _checked_whole("bits", self.bits, 2, 32)
        _checked_whole("cohort", self.cohort, 2, _MOST_COHORT)
        _checked_whole("largest", self.largest, self.cohort, _MOST_COHORT)
        _checked_whole("projected", self.projected, 0, _MOST_VALUES)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device's owner permits, whoever signed the question.

    Attributes:
        rho_per_period: Most zCDP in any stretch of time as long as a period.
        period_s: Length of a period.
        least_cohort: Least number of devices in an answer.
        most_bytes: Largest answer.
        most_queries: Most answers in any period.
    """

    rho_per_period: float = 0.5
    period_s: float = 30 * 86400.0
    least_cohort: int = 50
    most_bytes: int = 8 << 20
    most_queries: int = 200

    def __post_init__(self) -> None:
        """Refuse limits that limit nothing."""
        for what, value in (("rho_per_period", self.rho_per_period), ("period_s", self.period_s)):
            _checked_positive(what, value)
        _checked_whole("least_cohort", self.least_cohort, 2, _MOST_COHORT)
        _checked_whole("most_bytes", self.most_bytes, 1, 1 << 40)
        _checked_whole("most_queries", self.most_queries, 0, 1 << 20)


def canonical(record: Template | Query) -> bytes:
    """Return the bytes that stand for a record: equal records have equal bytes, and no others have them."""
    kind = b"template" if isinstance(record, Template) else b"query"
    return b"edgewright." + kind + b".1\n" + msgspec.json.encode(record, order="sorted")


def digest_of(record: Template | Query) -> str:
    """Return the sha256 of the canonical bytes, hexadecimal.

    A query names its template's digest, so its own binds both: masks are bound to it.
    """
    return hashlib.sha256(canonical(record)).hexdigest()


def size_of(query: Query, template: Template) -> int:
    """Return how many numbers are sent."""
    return query.projected or template.values


def grid_clip(query: Query, template: Template) -> float:
    """Return the clip in grid units; of a histogram a whole number, so that rounding never exceeds it."""
    clip = template.clip * query.scale
    return float(math.floor(clip + 1e-9)) if template.kind == "histogram" else clip


def answer_bytes(query: Query, template: Template) -> int:
    """Return how large the packed numbers of an answer are."""
    return -(-size_of(query, template) * query.bits // 8)


def laxer(query: Query, template: Template) -> str | None:
    """Return in what a query is laxer than its template, None if it keeps it.

    A device asks before it answers, and whoever makes the query before it is signed. What the query costs is not
    believed but computed elsewhere; here only its claim is compared.
    """
    if query.template != template.name or query.template_digest != digest_of(template):
        return f"the query is of template {query.template}, not of {template.name} as it is signed"
    if query.backend not in template.backends:
        return f"backend {query.backend} is not among {', '.join(template.backends)}"
    if query.cohort < template.min_cohort:
        return f"a cohort of {query.cohort} is below the template's {template.min_cohort}"
    if query.rho > template.dearest_rho:
        return f"it costs {query.rho:.3g}, the template permits {template.dearest_rho:.3g}"
    clip = grid_clip(query, template)
    if not 1 <= clip <= _MOST_GRID:
        return f"the clip is {clip:g} grid units, which must be from 1 to {_MOST_GRID}"
    if query.sigma < template.least_noise * clip:
        return f"noise of {query.sigma / clip:.3g} clips is below the template's {template.least_noise:.3g}"
    if not LEAST_SIGMA <= query.sigma <= MOST_SIGMA:
        return f"noise of {query.sigma:g} grid units is outside of {LEAST_SIGMA:g} to {MOST_SIGMA:g}"
    if query.projected and (
        template.kind == "histogram" or template.most_weight or query.projected >= template.values
    ):
        return (
            f"a projection of {template.values} to {query.projected}: only vectors without weights are made shorter"
        )
    if strange := sorted(set(query.subgroup) - set(template.subgroups)):
        return f"subgroups by {', '.join(strange)} are not permitted"
    if time_of(query.deadline) > time_of(template.expires):
        return f"its deadline is after the template expires, {template.expires}"
    return None


def untimely(query: Query, template: Template, now_s: float) -> str | None:
    """Return why there is no answer at this time, None if there may be one.

    Args:
        query: To be answered.
        template: Of the query.
        now_s: The clock, seconds since 1970, UTC.
    """
    if now_s >= time_of(template.expires).timestamp():
        return f"the template expired, {template.expires}"
    if now_s >= time_of(query.deadline).timestamp():
        return f"its deadline has passed, {query.deadline}"
    if now_s < time_of(query.window_end).timestamp():
        return f"its window has not ended, {query.window_end}"
    return None


def beyond(query: Query, template: Template, limits: Limits) -> str | None:
    """Return in what a query exceeds a device's own limits, None if it keeps them; the budget is not looked at."""
    if query.cohort < limits.least_cohort:
        return f"a cohort of {query.cohort} is below this device's {limits.least_cohort}"
    if (size := answer_bytes(query, template)) > limits.most_bytes:
        return f"an answer of {size} bytes is above this device's {limits.most_bytes}"
    if query.rho > limits.rho_per_period:
        return f"it costs {query.rho:.3g}, this device gives {limits.rho_per_period:.3g} a period"
    return None


def _checked_positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{what} is {value:g}", remedy="It must be a finite number greater than 0.")


def _checked_whole(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{what}: {value}", remedy=f"It must be from {least} to {most}.")
