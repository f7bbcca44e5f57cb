"""A smoke run of what watching costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "monitor.py"


@pytest.mark.slow
def test_every_part_runs_and_what_is_kept_is_small() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])["figures"]
    assert {name.partition(".")[0] for name in figures} == {"predict", "slowest", "kept"}
    assert figures["kept.kb"]["value"] < 30
