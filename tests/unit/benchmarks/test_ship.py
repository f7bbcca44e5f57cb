"""A smoke run of what updates cost and survive; what must hold on any machine must hold here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "ship.py"
# Counts and sizes; times are of a quiet machine.
ALWAYS = (
    "check.warm.requests",
    "check.changed.requests",
    "check.changed.kb",
    "check.cold.kb",
    "memory.core_mb",
    "memory.running_mb",
    "switch.lost",
    "switch.wrong",
    "kills.unverified",
    "faults.unverified",
)


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    """The last line of a smoke run."""
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=400, check=False
    )
    assert run.returncode == 0, run.stderr
    last: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return last


@pytest.mark.slow
@pytest.mark.parametrize("name", ALWAYS)
def test_what_must_hold_anywhere_holds(smoke: dict[str, Any], name: str) -> None:
    figure = smoke["figures"][name]
    assert figure["limit"] is not None
    assert figure["holds"], figure


@pytest.mark.slow
def test_no_part_is_missing(smoke: dict[str, Any]) -> None:
    parts = {name.partition(".")[0] for name in smoke["figures"]}
    assert parts == {"check", "delta", "predict", "memory", "switch", "kills", "faults"}
    assert len([name for name in smoke["figures"] if name.startswith("delta.")]) == 5
