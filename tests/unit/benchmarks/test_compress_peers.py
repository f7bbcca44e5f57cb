import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "compress_peers.py"


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    """The last line of a smoke run."""
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    last: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return last


def test_the_last_line_has_the_form_that_scripts_rely_on(smoke: dict[str, Any]) -> None:
    assert set(smoke) == {"benchmark", "figures", "holds"}
    assert smoke["benchmark"] == "compress_peers"
    assert isinstance(smoke["holds"], bool)
    for figure in smoke["figures"].values():
        assert set(figure) >= {"value", "interval", "limit", "peer", "holds"}
        low, high = figure["interval"]
        assert low <= figure["value"] <= high
        assert isinstance(figure["holds"], bool)


def test_no_figure_of_a_task_is_missing(smoke: dict[str, Any]) -> None:
    assert set(smoke["figures"]) == {
        "quick.drop_bound",
        "quick.latency_to_original",
        "quick.tool_seconds",
        "quick.latency_to_best_peer",
        "quick.gain_over_peers",
        "quick.latency_to_ort_default",
        "tasks_better_than_every_peer",
    }


def test_the_choice_is_certified(smoke: dict[str, Any]) -> None:
    assert smoke["figures"]["quick.drop_bound"]["holds"]
