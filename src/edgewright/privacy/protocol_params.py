"""From a signed query to the terms that both protocols are bound to: device, server and helper compute the same."""

from edgewright.contract.query.query import Query, Template, digest_of, size_of
from edgewright.privacy.roster import DIGEST_BYTES, Terms

__all__ = ["DEGREE", "terms_of", "threshold_of"]

# With 17 neighbours of whom 12 must return, a tenth of devices dropping out costs a sum less than once in 10,000.
DEGREE = 17
"""Neighbours of a device, where the cohort has as many."""


def threshold_of(degree: int) -> int:
    """Return how many neighbours' shares unmask a device.

    >>> threshold_of(DEGREE)
    12
    """
    return (2 * degree + 2) // 3


def terms_of(query: Query, template: Template) -> Terms:
    """Return the terms of a query.

    Args:
        query: That passed all checks.
        template: Of the query.

    Raises:
        InputError: The cohort is too small for neighbours.
    """
    degree = min(DEGREE, query.cohort - 1) if query.backend == "secagg" else 0
    return Terms(
        query=bytes.fromhex(digest_of(query)),
        window=f"{query.window_start}/{query.window_end}",
        bits=query.bits,
        length=size_of(query, template),
        min_cohort=query.cohort,
        model=bytes.fromhex(query.release) if query.release else bytes(DIGEST_BYTES),
        degree=degree,
        threshold=threshold_of(degree) if degree else 0,
    )
