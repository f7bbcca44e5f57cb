"""A smoke run of how often rollouts are stopped; shares of few runs prove nothing, only their presence counts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import rollouts
from scipy import stats

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "rollouts.py"


@pytest.mark.slow
def test_every_part_runs_and_stands_beside_its_peers() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])["figures"]
    for test in ("e-process", "z-test", "Mann-Whitney"):
        assert f"harmless.failures.{test}" in figures
        assert f"found.first stage.missed.{test}" in figures
    assert {"cleared.wrongly", "rollouts.harmless.stopped", "rollouts.harmful.missed"} <= set(figures)


def test_the_peers_are_what_they_are_called() -> None:
    stream = rollouts.outcomes(np.random.default_rng(3), 480, 0.5)
    treated, control = (np.repeat(stream.values, arm[-1]) for arm in (stream.treated, stream.control))
    rank = stats.mannwhitneyu(treated, control, alternative="greater", method="asymptotic", use_continuity=False)
    mean = stats.ttest_ind(treated, control, equal_var=True, alternative="greater")
    for test, p_value in ((rollouts.mann_whitney, rank.pvalue), (rollouts.z_test, mean.pvalue)):
        assert test(stream, 0.5, p_value * 1.05)[-1]
        assert not test(stream, 0.5, p_value * 0.95)[-1]
