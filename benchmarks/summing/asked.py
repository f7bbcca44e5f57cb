"""Questions as they are asked: a histogram of many signals, and a long vector, with noise, ledger and masks."""

import datetime
import os

import msgspec
import numpy as np

from edgewright.contract.query.query import CountedSignal, DeviceQueryLimits, Query, QueryTemplate, record_digest
from edgewright.contract.refusal import Refusal
from edgewright.privacy.budget_ledger import PrivacyLedger, debit_budget
from edgewright.privacy.helper import submit
from edgewright.privacy.private_sum import contribution
from edgewright.privacy.protocol_params import protocol_terms
from edgewright.privacy.query_calibration import fill_template

__all__ = ["NOW_SECONDS", "Gift", "question"]

_NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
NOW_SECONDS = _NOW.timestamp()
"""When the question is answered."""

_COHORT, _LARGEST = 1000, 2000


def question(signals: int, bins: int, length: int = 0) -> tuple[Query, QueryTemplate]:
    """Return a query of epsilon 1 to a thousand devices: a histogram, or a vector of a length."""
    hour = datetime.timedelta(hours=1)
    counted = tuple(CountedSignal(f"s{number}", bins) for number in range(signals))
    template = QueryTemplate(
        "t",
        "vector" if length else "histogram",
        "default",
        clip=1.0 if length else 100.0,
        min_noise=1e-4,
        min_cohort=_COHORT,
        max_rho=1.0,
        min_interval_seconds=60.0,
        expires_at=(_NOW + 1000 * hour).isoformat(),
        signals=() if length else counted,
        vector_length=length,
        max_norm=0.0 if length else 100.0 * signals**0.5,
    )
    whole = Query(
        id="q",
        template="t",
        template_digest=record_digest(template),
        window_start=(_NOW - 2 * hour).isoformat(),
        window_end=(_NOW - hour).isoformat(),
        deadline=(_NOW + hour).isoformat(),
        bits=32,
        scale=256.0 if length else 1.0,
        sigma=2.0,
        min_cohort=_COHORT,
        max_cohort=_LARGEST,
        rho=1.0,
        backend="helper",
        seed=os.urandom(32).hex(),
    )
    return fill_template(whole, template, 1.0), template


class Gift:
    """All that a device does for one answer, but for the disk and the network.

    Args:
        query: That is answered.
        template: Of the query.
        helper: Key of the helper, 32 bytes.
        public: Key of the device, 32 bytes.
        sign: Signs with it.
    """

    def __init__(self, query: Query, template: QueryTemplate, helper: bytes, public: bytes, sign: object) -> None:
        self._query, self._template, self._helper, self._public, self._sign = query, template, helper, public, sign
        self._values = np.random.default_rng(0).poisson(6.0, template.values).astype(np.float64)

    def __call__(self) -> bytes:
        """Clip, round, noise, debit, mask, seal, sign."""
        noised = contribution(self._values, self._template, self._query)
        after = debit_budget(
            PrivacyLedger(),
            self._query,
            self._template,
            DeviceQueryLimits(),
            answer=noised.tobytes(),
            now=NOW_SECONDS,
        )
        if isinstance(after, Refusal):
            raise RuntimeError(after.reason)
        msgspec.json.encode(after)
        return submit(protocol_terms(self._query, self._template), self._helper, noised, self._public, self._sign)  # type: ignore[arg-type]
