"""From a signed query to the terms that both protocols are bound to: device, server and helper compute the same."""

from edgewright.contract.query.query import Query, QueryTemplate, record_digest, vector_size
from edgewright.privacy.roster import DIGEST_BYTES, ProtocolTerms

__all__ = ["NEIGHBOUR_DEGREE", "protocol_terms", "share_threshold"]

# With 17 neighbours of whom 12 must return, a tenth of devices dropping out costs a sum less than once in 10,000.
NEIGHBOUR_DEGREE = 17
"""Neighbours of a device, where the cohort has as many."""


def share_threshold(degree: int) -> int:
    """Return how many neighbours' shares unmask a device.

    >>> share_threshold(NEIGHBOUR_DEGREE)
    12
    """
    return (2 * degree + 2) // 3


def protocol_terms(query: Query, template: QueryTemplate) -> ProtocolTerms:
    """Return the terms of a query.

    Args:
        query: That passed all checks.
        template: Of the query.

    Raises:
        InputError: The cohort is too small for neighbours.
    """
    degree = min(NEIGHBOUR_DEGREE, query.min_cohort - 1) if query.backend == "secagg" else 0
    return ProtocolTerms(
        query_digest=bytes.fromhex(record_digest(query)),
        window=f"{query.window_start}/{query.window_end}",
        bits=query.bits,
        vector_length=vector_size(query, template),
        min_cohort=query.min_cohort,
        model_digest=bytes.fromhex(query.release) if query.release else bytes(DIGEST_BYTES),
        degree=degree,
        threshold=share_threshold(degree) if degree else 0,
    )
