"""One unlabelled model from end to end: compress it, then measure it against the original."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.comparison import latencies, ratio, snr_db, top_agreement
from benchmarks.environments import CACHE, digest
from benchmarks.figures import ModelRun
from benchmarks.tasks import peer_models, sound
from benchmarks.tasks.preparation import write_arrays
from benchmarks.tools import SEED, compress_by_edgewright

from edgewright.compress.data.loader import load_data
from edgewright.compress.data.model_outputs import model_outputs
from edgewright.compress.data.splits import split_dataset
from edgewright.compress.model.loading import read_model
from edgewright.contract.errors import EdgewrightError
from edgewright.profiling.latency import LatencyResult

__all__ = ["run_model"]

_MEASURE_SECONDS = 10.0


def run_model(
    model: Path, shared: Path, state: Path, *, time_limit_seconds: float, fresh: bool
) -> tuple[ModelRun, list[str], dict[str, Any]]:
    """Return the figures' material, a row for the table, and the record; what fails is None and has its error."""
    name = model.stem
    key = digest(model, Path(peer_models.__file__), Path(sound.__file__))
    data = CACHE / "inputs" / f"{name}-{key}.npz"
    if not data.exists():
        write_arrays(data, peer_models.INPUTS[name](model, shared))
    tool = compress_by_edgewright(
        model,
        data,
        group=None,
        max_drop=None,
        time_limit_seconds=time_limit_seconds,
        state=state / name,
        fresh=fresh,
    )
    record: dict[str, Any] = {
        "error": tool.error,
        "tool_wall_seconds": tool.wall_seconds,
        "tool_cpu_seconds": tool.cpu_seconds,
        "tool_peak_bytes": tool.peak_bytes,
        "size_bytes": model.stat().st_size,
    }
    missing = ModelRun(name, None, None, None, None)
    if tool.model is None:
        return missing, [name, *["-"] * 8, f"{tool.wall_seconds:.0f}"], record
    chosen = Path(tool.model)
    contract = read_model(model).contract
    dataset = load_data(str(data), contract, model=model, seed=SEED)
    certify = np.sort(split_dataset(dataset, seed=SEED).certify)
    same = hashlib.sha256(chosen.read_bytes()).digest() == hashlib.sha256(model.read_bytes()).digest()
    try:
        reference, outputs = (model_outputs(str(path), dataset, certify, contract) for path in (model, chosen))
        models = {"original": model, "chosen": chosen}
        measured = latencies(models, dataset.inputs_of(int(certify[0])), seconds=_MEASURE_SECONDS, seed=SEED)
    except EdgewrightError as error:
        record["error"] = error.message
        return missing, [name, *["-"] * 8, f"{tool.wall_seconds:.0f}"], record
    to_original = ratio(measured["chosen"], measured["original"], same_bytes=same)
    snr, agreement = snr_db(reference, outputs), top_agreement(reference, outputs)
    report = tool.report or {}
    p50_us = [
        entry.p50.value * 1e6 if isinstance(entry, LatencyResult) else float("nan") for entry in measured.values()
    ]
    record |= {
        "chosen_size_bytes": chosen.stat().st_size,
        "p50_us": p50_us,
        "latency_to_original": to_original and [to_original.value, to_original.low, to_original.high],
        "snr_db": snr,
        "agreement": agreement,
        "recipe": (report.get("chosen") or {}).get("recipe"),
        "certificate": report.get("certificate"),
    }
    row = [
        name,
        f"{model.stat().st_size / 1e3:.1f}",
        f"{chosen.stat().st_size / 1e3:.1f}",
        *(f"{value:.1f}" for value in p50_us),
        "-" if to_original is None else f"{to_original.value:.3f}",
        "-" if to_original is None else f"{to_original.low:.3f}-{to_original.high:.3f}",
        f"{snr:.1f}",
        "-" if agreement is None else f"{agreement:.2%}",
        f"{tool.wall_seconds:.0f}",
    ]
    return ModelRun(name, tool.wall_seconds, to_original, snr, agreement), row, record
