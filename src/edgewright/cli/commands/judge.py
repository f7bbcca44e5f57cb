"""Sums over cohorts as files, for `edgewright query judge`; `fleet/cohort_drift.py` says what they say together."""

from pathlib import Path

from edgewright.cli.records import read_record
from edgewright.fleet.cohort_drift import Collected

__all__ = ["read_collected"]


def read_collected(path: Path) -> Collected:
    """Return a sum from its file.

    Raises:
        InputError: It holds none.
    """
    return read_record(path, Collected, "sum", "Keep what 'edgewright query collect --json' prints.")
