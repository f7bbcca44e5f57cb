"""A smoke run of what private sums cost; what must hold on any machine must hold here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "sums.py"


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    """The last line of a smoke run."""
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    last: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return last


@pytest.mark.slow
@pytest.mark.parametrize("name", ["device.bytes_up", "histogram.bytes_up", "memory.histogram_mb", "memory.mask_mb"])
def test_what_must_hold_anywhere_holds(smoke: dict[str, Any], name: str) -> None:
    figure = smoke["figures"][name]
    assert figure["limit"] is not None
    assert figure["holds"], figure


@pytest.mark.slow
def test_no_part_is_missing(smoke: dict[str, Any]) -> None:
    parts = {name.partition(".")[0] for name in smoke["figures"]}
    assert parts == {"device", "server", "helper", "histogram", "memory"}
