"""The record of a run: `report.json`, with the chosen model beside it."""

import platform
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

import edgewright
from edgewright.compress.certify.final_measurement import Measured
from edgewright.compress.certify.ranking import front_of
from edgewright.compress.context import Run
from edgewright.compress.metrics.metric import agreement, sqnr_db
from edgewright.compress.model.fusion_lint import lint
from edgewright.compress.quantize.preprocess_folding import FoldPreprocess
from edgewright.compress.search.recipe import Recipe
from edgewright.compress.uncertainty.reference_profile import reference_profile
from edgewright.contract.certificate import Certificate
from edgewright.contract.compression_report import BudgetOutcome, Figures, Report
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import InputContract
from edgewright.contract.schema import SCHEMA_VERSION
from edgewright.runtime.options import RuntimeOptions, session_options

__all__ = ["record"]


def record(
    run: Run,
    original: Measured,
    chosen: Measured,
    certificate: Certificate,
    outcome: BudgetOutcome,
    verdict: str,
) -> Report:
    """Write the chosen model and `report.json`, and return the record."""
    request = run.request
    request.tell("writing the report", 0.97)
    content = Path(chosen.figures.path).read_bytes()
    is_original = chosen.figures.recipe is None
    final = run.folder.write("model.onnx", content)
    front = front_of(run.trials)
    on_front = {trial.number for trial in front}
    trials = tuple(msgspec.structs.replace(trial, on_front=trial.number in on_front) for trial in run.trials)
    run.folder.keep_candidates({trial.sha256 for trial in front})
    run.folder.end_training()
    outputs = run.proof.reference if is_original else run.proof.outputs(content, len(run.proof.indices))
    share = agreement(run.proof.reference, outputs)
    proto = onnx.load_from_string(content)
    report = Report(
        schema=SCHEMA_VERSION,
        verdict=verdict,
        original=msgspec.structs.replace(original.figures, path=str(request.model)),
        chosen=msgspec.structs.replace(chosen.figures, path=str(final)),
        certificate=certificate,
        budget=outcome,
        front=tuple(trial for trial in trials if trial.on_front),
        trials=trials,
        fidelity={
            "sqnr_db": sqnr_db(run.proof.reference, outputs),
            "agreement": None if np.isnan(share) else share,
        },
        contract=_with_ranges(run, is_original=is_original),
        lint={"original": _lint(run.loaded.proto), "chosen": _lint(proto)},
        sensitivity=run.probe_noise,
        effects=tuple(_effects(run, chosen.figures)),
        training=run.training,
        faster_options=run.faster_options,
        latencies={
            "original": [float(v) * 1e3 for v in original.latency.rounds_s],
            "chosen": [float(v) * 1e3 for v in chosen.latency.rounds_s],
        },
        data={
            "source": request.data,
            "samples": len(run.dataset),
            "select": len(run.select.indices),
            "certify": len(run.proof.indices),
            "calibrate": run.calibrated,
            "task": run.dataset.task,
            "notes": list(run.dataset.notes) + ([run.metric.note] if run.metric.note else []),
            "fingerprint": run.dataset.fingerprint,
        },
        machine=msgspec.to_builtins(run.machine),
        search={
            "seconds": time.monotonic() - run.began,
            "time_limit_s": request.time_limit_s,
            "seed": request.seed,
            "trials": {state: sum(t.state == state for t in trials) for state in ("complete", "pruned", "failed")},
        },
        versions={
            "edgewright": edgewright.__version__,
            "onnxruntime": ort.__version__,
            "onnx": onnx.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        report=str(run.folder.path / "report.html"),
        folder=str(run.folder.path),
        snippet=_snippet(final, run.loaded.contract if is_original else run.proof.contract, _options(run)),
    )
    # Value ranges were taken from the calibrate part and choices made by the select part; nothing by this one.
    unseen = (run.dataset if is_original else run.proof.fed).subset(run.proof.indices)
    profile = reference_profile(content, unseen, report.contract, seed=request.seed, answers=outputs)
    if profile is not None:
        run.folder.write("profile.json", msgspec.json.encode(profile))
    run.folder.write("report.json", msgspec.json.format(msgspec.json.encode(report), indent=1))
    return report


def _with_ranges(run: Run, *, is_original: bool) -> InputContract:
    """Return the chosen model's contract with the range of values in the data."""
    contract = run.loaded.contract if is_original else run.proof.contract
    arrays = (run.dataset if is_original else run.proof.fed).inputs
    inputs = tuple(
        msgspec.structs.replace(spec, low=float(arrays[spec.name].min()), high=float(arrays[spec.name].max()))
        for spec in contract.inputs
    )
    return msgspec.structs.replace(contract, inputs=inputs)


def _lint(model: onnx.ModelProto) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.to_builtins(lint(model))
    except CandidateError as error:
        return {"error": error.message}
    return found


def _effects(run: Run, chosen: Figures) -> list[dict[str, Any]]:
    """Return what each step of the chosen recipe did to size and noise, one after the other."""
    if chosen.recipe is None:
        return []
    steps = msgspec.convert({"steps": chosen.recipe}, Recipe).steps
    effects = []
    few = run.select.indices[:64]
    reference = [output[: len(few)] for output in run.select.reference]
    # What comes before folding takes other inputs.
    folded = [place for place, step in enumerate(steps) if isinstance(step, FoldPreprocess)]
    for count in range(1 + max(folded, default=0), len(steps) + 1):
        content = run.bench.build(Recipe(steps[:count])).SerializeToString()
        outputs = run.select.outputs(content, len(few))
        effects.append(
            {
                "step": str(type(steps[count - 1]).__struct_config__.tag),
                "size_bytes": len(content),
                "sqnr_db": sqnr_db(reference, outputs),
            }
        )
    return effects


def _options(run: Run) -> RuntimeOptions:
    """Return the best options that are known."""
    faster = run.faster_options
    return run.options if faster is None else msgspec.convert(faster.options, RuntimeOptions)


def _snippet(path: Path, contract: InputContract, options: RuntimeOptions) -> str:
    feeds = ", ".join(f"{spec.name!r}: {_identifier(spec.name)}" for spec in contract.inputs)
    providers = list(options.providers)
    return (
        "import onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        f"options.intra_op_num_threads = {options.threads}\n"
        f"{_beside_threads(options)}"
        f"session = ort.InferenceSession({str(path)!r}, options, providers={providers})\n"
        f"outputs = session.run(None, {{{feeds}}})"
    )


def _beside_threads(options: RuntimeOptions) -> str:
    """Return the lines that set what differs from the usual options."""
    lines = ""
    if options.optimization != "all":
        level = session_options(options).graph_optimization_level.name
        lines += f"options.graph_optimization_level = ort.GraphOptimizationLevel.{level}\n"
    if options.threads > 1:
        spinning = int(options.spinning)
        lines += f'options.add_session_config_entry("session.intra_op.allow_spinning", "{spinning}")\n'
    return lines


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isalnum() else "_" for c in name)
    return cleaned if cleaned.isidentifier() else f"x_{cleaned}"
