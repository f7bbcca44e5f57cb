"""A smoke run of how detectors of drift alarm; shares of few streams prove nothing, only their presence counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "drift.py"
DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_every_part_runs_and_stands_beside_its_peers() -> None:
    pytest.importorskip("river")
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=400, check=False
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])["figures"]
    parts = {name.partition(".")[0] for name in figures}
    assert parts == {"null", "subjects", "repeats", "regimes", "pictures", "wearable", "industrial", "cohorts"}
    for peer in ("e-process", "ADWIN", "KSWIN", "Page-Hinkley", "PSI", "chi-square"):
        assert f"null.images.{peer}" in figures
        assert f"pictures.noise.{peer}, before" in figures
