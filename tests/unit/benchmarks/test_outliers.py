"""A smoke run of the evaluation on digits; and its judges against independent implementations."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.unusual.attack import ATTACKS
from benchmarks.unusual.judge import auroc, kept_coverage, share
from benchmarks.unusual.material import MATERIALS
from benchmarks.unusual.network import trained
from scipy import stats
from sklearn.metrics import roc_auc_score

from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "outliers.py"


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    """The figures of a smoke run."""
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=400, check=False
    )
    assert run.returncode == 0, run.stderr
    figures: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])["figures"]
    return figures


@pytest.mark.slow
def test_every_promise_holds_on_usual_samples(smoke: dict[str, Any]) -> None:
    promised = {name: figure for name, figure in smoke.items() if figure["limit"] is not None}
    assert sum(name.endswith("false rejections") for name in promised) == 10
    assert sum(name.endswith("coverage") for name in promised) == 3
    assert [name for name, figure in promised.items() if not figure["holds"]] == []


@pytest.mark.slow
def test_noise_is_found_by_the_embedding_and_shifts_are_reported(smoke: dict[str, Any]) -> None:
    assert smoke["digits.far: noise.mahalanobis.rejected"]["value"] > 0.9
    near = smoke["digits.near: held-out digits.mahalanobis.rejected"]
    assert float(near["note"].split()[1]) > 0.85  # AUROC
    shifted = smoke["digits.shifted by a pixel.sets lac.coverage"]
    assert shifted["value"] < 0.8
    assert shifted["limit"] is None
    assert "nothing is promised" in shifted["note"]


def test_auroc_is_scikit_learns_and_its_interval_covers() -> None:
    random = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    covered = 0
    for _ in range(200):
        usual, strange = random.normal(size=150), random.normal(1, 1, 80)
        found = auroc(usual, strange)
        joint = np.concatenate([usual, strange])
        assert found.value == pytest.approx(roc_auc_score(np.repeat([0, 1], [150, 80]), joint))
        covered += found.low <= truth <= found.high
    assert covered >= stats.binom.isf(1 - 1e-3, 200, 0.95)


def test_judges_tell_chance_from_broken_promises() -> None:
    assert share(np.arange(100) < 5).low < 0.05 < share(np.arange(100) < 5).high
    assert kept_coverage(880, 1000, 500, 0.9)
    assert not kept_coverage(850, 1000, 500, 0.9)


@pytest.mark.slow
def test_attacks_stay_within_their_strength_and_beat_noise() -> None:
    material = MATERIALS["digits"](Path(), quick=True)
    network = TrainableGraph(trained(material))
    network.eval()
    x, y = (torch.from_numpy(part[:100]) for part in material.usual)
    noise = (x + 0.15 * torch.sign(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))).clamp(0, 1)

    def wrong(samples: torch.Tensor) -> float:
        return float((network(samples)[0].argmax(dim=1) != y).float().mean())

    for name, attack in ATTACKS.items():
        made = attack(network, x, y, 0.15, (0.0, 1.0))
        assert float((made - x).abs().max()) <= 0.15 + 1e-5
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        assert wrong(made) > wrong(noise) + 0.1, name
