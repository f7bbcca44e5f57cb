"""Sums over cohorts as files, for `edgewright query judge`; `fleet/cohort_drift.py` says what they say together."""

from pathlib import Path

from edgewright.cli.records import read_record
from edgewright.fleet.cohort_drift import CohortSums

__all__ = ["read_cohort_sums"]


def read_cohort_sums(path: Path) -> CohortSums:
    """Return a sum from its file.

    Raises:
        InputError: It holds none.
    """
    return read_record(path, CohortSums, "sum", "Keep what 'edgewright query collect --json' prints.")
