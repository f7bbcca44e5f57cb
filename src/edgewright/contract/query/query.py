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
from edgewright.contract.rollout.plan import DeviceSelector
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.contract.timestamps import checked_iso8601, parse_iso8601

__all__ = [
    "MAX_SIGMA",
    "MIN_SIGMA",
    "CountedSignal",
    "DeviceQueryLimits",
    "NoiseKind",
    "Query",
    "QueryBackend",
    "QueryKind",
    "QueryTemplate",
    "canonical_bytes",
    "grid_clip",
    "limit_violation",
    "record_digest",
    "response_bytes",
    "template_violation",
    "timing_violation",
    "vector_size",
]

QueryBackend = Literal["helper", "secagg"]
QueryKind = Literal["histogram", "vector"]
NoiseKind = Literal["gaussian", "skellam"]

# In grid units. Below, sums of discrete Gaussians are far from one: at a million values their divergence is 573 at
# sigma 1 and 0.002 at 1.5 (arXiv:2102.06387, tau times d).
MIN_SIGMA = 1.5
# The table of the sampler grows with sigma, and with it its error.
MAX_SIGMA = 4096.0
_MAX_VALUES = 1 << 26
_MAX_GRID = 1 << 30
_MAX_COHORT = 1 << 24


class CountedSignal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class QueryTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the offline keys allow to be asked; a query fills in when, of how many, and how fine.

    Attributes:
        name: Of the template.
        kind: Counts over bins, or a vector of numbers.
        device_class: Whose devices are asked.
        clip: Of a histogram, the most observations of one signal that a device adds. Of a vector, the most that
            its L2 norm may be.
        min_noise: Least standard deviation of one device's own noise, in units of the clip.
        min_cohort: Least number of devices in an answer.
        max_rho: Most that one answer may cost, in zCDP, when the others are honest.
        min_interval_seconds: Least seconds between two answers of a device.
        expires_at: No answer after, UTC, ISO 8601.
        model: Which, "" for any.
        signals: What a histogram counts, in order.
        vector_length: Numbers in a vector.
        selector: Labels that the devices all have, and their channel.
        max_norm: Of a histogram, the most that the L2 norm of a device's counts may be; 0 for what the clip alone
            gives.
        max_example_weight: Greatest weight of an example; 0 if examples have none. A weighted vector is summed with its
            weight, so its length grows by one.
        noise: Which distribution.
        assumed_colluders: How many of them are assumed to tell their noise.
        min_verified_peers: How many other devices are proved to a device to be in the sum; 0 where the whole cohort is.
        delta: For which epsilon is stated.
        backends: Over which it may be answered.
        subgroups: Names of labels by which a query may single out part of the devices.
    """

    name: str
    kind: QueryKind
    device_class: str
    clip: float
    min_noise: float
    min_cohort: int
    max_rho: float
    min_interval_seconds: float
    expires_at: str
    model: str = ""
    signals: tuple[CountedSignal, ...] = ()
    vector_length: int = 0
    selector: DeviceSelector = DeviceSelector()
    max_norm: float = 0.0
    max_example_weight: float = 0.0
    noise: NoiseKind = "gaussian"
    assumed_colluders: int = 0
    min_verified_peers: int = 0
    delta: float = 1e-6
    backends: tuple[QueryBackend, ...] = ("helper",)
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
            ("min_noise", self.min_noise),
            ("max_rho", self.max_rho),
            ("interval_seconds", self.min_interval_seconds),
        ):
            _checked_positive(what, value)
        for what, value in (("max_norm", self.max_norm), ("max_example_weight", self.max_example_weight)):
            if value:
                _checked_positive(what, value)
        if not 0 < self.delta <= 0.01:
            raise InputError(
                f"delta is {self.delta:g}", remedy="It lies between 0 and 0.01; one in a million is usual."
            )
        _checked_whole("min_cohort", self.min_cohort, 2, _MAX_COHORT)
        _checked_whole("min_verified_peers", self.min_verified_peers, 0, self.min_cohort - 1)
        _checked_whole(
            "assumed_colluders", self.assumed_colluders, 0, self.min_verified_peers or self.min_cohort - 1
        )
        if not self.expires_at or not self.backends:
            raise InputError(
                f"template {self.name} never expires or has no backend",
                remedy="Give both: an end, and helper or secagg.",
            )
        checked_iso8601("expires_at", self.expires_at)
        self._check_kind()

    def _check_kind(self) -> None:
        names = [signal.name for signal in self.signals]
        fits = {
            "histogram": bool(names) and not self.vector_length and not self.max_example_weight,
            "vector": not names and self.vector_length > 0 and not self.max_norm,
        }
        if not fits[self.kind] or len(set(names)) < len(names):
            raise InputError(
                f"template {self.name} is a {self.kind} with {len(names)} signals and length {self.vector_length}",
                remedy="A histogram names its signals, each once; a vector its length. Only a histogram has a norm "
                "beside its clip, only a vector has weights.",
            )
        _checked_whole("values", self.values, 1, _MAX_VALUES)

    @property
    def values(self) -> int:
        """How many numbers are summed, before any projection."""
        if self.kind == "histogram":
            return sum(signal.bins for signal in self.signals)
        return self.vector_length + (1 if self.max_example_weight else 0)


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question, made of a template.

    Attributes:
        id: Of the query; no two have the same.
        template: Name of the template.
        template_digest: Of the template, by `record_digest`.
        window_start: What is counted began then, UTC, ISO 8601.
        window_end: And ended then.
        deadline: No answer after.
        bits: Width of each summed number, 2 to 32.
        scale: Grid units per unit of the values.
        sigma: Standard deviation of one device's own noise, in grid units.
        min_cohort: Devices whose answers are in the sum at least: of fewer, no sum may be opened.
        max_cohort: And at most: more could wrap around.
        rho: What an answer costs, in zCDP, when the others are honest.
        backend: Over which it is answered.
        seed: Of rotation and projection, 64 hexadecimal digits; it is no secret.
        release: sha256 of the manifest in whose reference profile the bins are; "" if it is not about a release.
        projected_length: Numbers after the projection; 0 for none.
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
    min_cohort: int
    max_cohort: int
    rho: float
    backend: QueryBackend
    seed: str
    release: str = ""
    projected_length: int = 0
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
            if not checked_iso8601(what, getattr(self, what)):
                raise InputError(f"query {self.id} has no {what}", remedy="Write it as 2027-12-31T23:59:00+00:00.")
        if parse_iso8601(self.window_start) >= parse_iso8601(self.window_end):
            raise InputError(
                f"the window of query {self.id} ends before it begins", remedy="Give an end after the start."
            )
        for name, value in (("scale", self.scale), ("sigma", self.sigma), ("rho", self.rho)):
            _checked_positive(name, value)
        _checked_whole("bits", self.bits, 2, 32)
        _checked_whole("min_cohort", self.min_cohort, 2, _MAX_COHORT)
        _checked_whole("max_cohort", self.max_cohort, self.min_cohort, _MAX_COHORT)
        _checked_whole("projected_length", self.projected_length, 0, _MAX_VALUES)


class DeviceQueryLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device's owner permits, whoever signed the question.

    Attributes:
        rho_per_period: Most zCDP in any stretch of time as long as a period.
        period_seconds: Length of a period.
        min_cohort: Least number of devices in an answer.
        max_bytes: Largest answer.
        max_queries: Most answers in any period.
    """

    rho_per_period: float = 0.5
    period_seconds: float = 30 * 86400.0
    min_cohort: int = 50
    max_bytes: int = 8 << 20
    max_queries: int = 200

    def __post_init__(self) -> None:
        """Refuse limits that limit nothing."""
        for what, value in (("rho_per_period", self.rho_per_period), ("period_seconds", self.period_seconds)):
            _checked_positive(what, value)
        _checked_whole("min_cohort", self.min_cohort, 2, _MAX_COHORT)
        _checked_whole("max_bytes", self.max_bytes, 1, 1 << 40)
        _checked_whole("max_queries", self.max_queries, 0, 1 << 20)


def canonical_bytes(record: QueryTemplate | Query) -> bytes:
    """Return the bytes that stand for a record: equal records have equal bytes, and no others have them."""
    kind = b"template" if isinstance(record, QueryTemplate) else b"query"
    return b"edgewright." + kind + b".1\n" + msgspec.json.encode(record, order="sorted")


def record_digest(record: QueryTemplate | Query) -> str:
    """Return the sha256 of the canonical bytes, hexadecimal.

    A query names its template's digest, so its own binds both: masks are bound to it.
    """
    return hashlib.sha256(canonical_bytes(record)).hexdigest()


def vector_size(query: Query, template: QueryTemplate) -> int:
    """Return how many numbers are sent."""
    return query.projected_length or template.values


def grid_clip(query: Query, template: QueryTemplate) -> float:
    """Return the clip in grid units; of a histogram a whole number, so that rounding never exceeds it."""
    clip = template.clip * query.scale
    return float(math.floor(clip + 1e-9)) if template.kind == "histogram" else clip


def response_bytes(query: Query, template: QueryTemplate) -> int:
    """Return how large the packed numbers of an answer are."""
    return -(-vector_size(query, template) * query.bits // 8)


def template_violation(query: Query, template: QueryTemplate) -> str | None:
    """Return in what a query is laxer than its template, None if it keeps it.

    A device asks before it answers, and whoever makes the query before it is signed. What the query costs is not
    believed but computed elsewhere; here only its claim is compared.
    """
    if query.template != template.name or query.template_digest != record_digest(template):
        return f"the query is of template {query.template}, not of {template.name} as it is signed"
    if query.backend not in template.backends:
        return f"backend {query.backend} is not among {', '.join(template.backends)}"
    if query.min_cohort < template.min_cohort:
        return f"a cohort of {query.min_cohort} is below the template's {template.min_cohort}"
    if query.rho > template.max_rho:
        return f"it costs {query.rho:.3g}, the template permits {template.max_rho:.3g}"
    clip = grid_clip(query, template)
    if not 1 <= clip <= _MAX_GRID:
        return f"the clip is {clip:g} grid units, which must be from 1 to {_MAX_GRID}"
    if query.sigma < template.min_noise * clip:
        return f"noise of {query.sigma / clip:.3g} clips is below the template's {template.min_noise:.3g}"
    if not MIN_SIGMA <= query.sigma <= MAX_SIGMA:
        return f"noise of {query.sigma:g} grid units is outside of {MIN_SIGMA:g} to {MAX_SIGMA:g}"
    if query.projected_length and (
        template.kind == "histogram" or template.max_example_weight or query.projected_length >= template.values
    ):
        return (
            f"a projection of {template.values} to {query.projected_length}: only vectors "
            "without weights are made shorter"
        )
    if strange := sorted(set(query.subgroup) - set(template.subgroups)):
        return f"subgroups by {', '.join(strange)} are not permitted"
    if parse_iso8601(query.deadline) > parse_iso8601(template.expires_at):
        return f"its deadline is after the template expires, {template.expires_at}"
    return None


def timing_violation(query: Query, template: QueryTemplate, now: float) -> str | None:
    """Return why there is no answer at this time, None if there may be one.

    Args:
        query: To be answered.
        template: Of the query.
        now: The clock, seconds since 1970, UTC.
    """
    if now >= parse_iso8601(template.expires_at).timestamp():
        return f"the template expired, {template.expires_at}"
    if now >= parse_iso8601(query.deadline).timestamp():
        return f"its deadline has passed, {query.deadline}"
    if now < parse_iso8601(query.window_end).timestamp():
        return f"its window has not ended, {query.window_end}"
    return None


def limit_violation(query: Query, template: QueryTemplate, limits: DeviceQueryLimits) -> str | None:
    """Return in what a query exceeds a device's own limits, None if it keeps them; the budget is not looked at."""
    if query.min_cohort < limits.min_cohort:
        return f"a cohort of {query.min_cohort} is below this device's {limits.min_cohort}"
    if (size := response_bytes(query, template)) > limits.max_bytes:
        return f"an answer of {size} bytes is above this device's {limits.max_bytes}"
    if query.rho > limits.rho_per_period:
        return f"it costs {query.rho:.3g}, this device gives {limits.rho_per_period:.3g} a period"
    return None


def _checked_positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{what} is {value:g}", remedy="It must be a finite number greater than 0.")


def _checked_whole(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{what}: {value}", remedy=f"It must be from {least} to {most}.")
