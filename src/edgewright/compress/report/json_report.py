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
from edgewright.compress.certify.final_measurement import MeasuredFinalist
from edgewright.compress.certify.ranking import pareto_front
from edgewright.compress.context import CompressionRun
from edgewright.compress.metrics.metric import output_sqnr_db, top1_agreement
from edgewright.compress.model.fusion_lint import lint_model
from edgewright.compress.quantize.preprocess_folding import FoldPreprocess
from edgewright.compress.search.recipe import Recipe
from edgewright.compress.uncertainty.reference_profile import build_reference_profile
from edgewright.contract.certificate import Certificate
from edgewright.contract.compression_report import BudgetOutcome, CompressionReport, ModelFigures
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature
from edgewright.contract.schema import SCHEMA_VERSION
from edgewright.runtime.options import RuntimeOptions, session_options

__all__ = ["write_json_report"]


def write_json_report(
    run: CompressionRun,
    original: MeasuredFinalist,
    chosen: MeasuredFinalist,
    certificate: Certificate,
    outcome: BudgetOutcome,
    verdict: str,
) -> CompressionReport:
    """Write the chosen model and `report.json`, and return the record."""
    request = run.request
    request.report_progress("writing the report", 0.97)
    content = Path(chosen.model.path).read_bytes()
    is_original = chosen.model.recipe is None
    final = run.folder.write("model.onnx", content)
    front = pareto_front(run.trials)
    on_front = {trial.number for trial in front}
    trials = tuple(msgspec.structs.replace(trial, on_pareto_front=trial.number in on_front) for trial in run.trials)
    run.folder.delete_candidates_except({trial.sha256 for trial in front})
    run.folder.end_training()
    outputs = (
        run.certify_evaluator.reference
        if is_original
        else run.certify_evaluator.outputs(content, len(run.certify_evaluator.indices))
    )
    share = top1_agreement(run.certify_evaluator.reference, outputs)
    proto = onnx.load_from_string(content)
    report = CompressionReport(
        schema=SCHEMA_VERSION,
        verdict=verdict,
        original=msgspec.structs.replace(original.model, path=str(request.model)),
        chosen=msgspec.structs.replace(chosen.model, path=str(final)),
        certificate=certificate,
        budget=outcome,
        pareto_front=tuple(trial for trial in trials if trial.on_pareto_front),
        trials=trials,
        fidelity={
            "sqnr_db": output_sqnr_db(run.certify_evaluator.reference, outputs),
            "agreement": None if np.isnan(share) else share,
        },
        contract=_with_ranges(run, is_original=is_original),
        lint={"original": _lint(run.loaded.proto), "chosen": _lint(proto)},
        sensitivity=run.layer_noise,
        step_effects=tuple(_effects(run, chosen.model)),
        training=run.training,
        faster_options=run.faster_options,
        latencies={
            "original": [float(v) * 1e3 for v in original.latency.round_medians_seconds],
            "chosen": [float(v) * 1e3 for v in chosen.latency.round_medians_seconds],
        },
        data={
            "source": request.data,
            "samples": len(run.dataset),
            "select": len(run.select_evaluator.indices),
            "certify": len(run.certify_evaluator.indices),
            "calibrate": run.calibration_samples,
            "task": run.dataset.task,
            "notes": list(run.dataset.notes) + ([run.metric.note] if run.metric.note else []),
            "fingerprint": run.dataset.fingerprint,
        },
        machine=msgspec.to_builtins(run.machine),
        search={
            "seconds": time.monotonic() - run.started_at,
            "time_limit_seconds": request.time_limit_seconds,
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
        report_path=str(run.folder.path / "report.html"),
        output_folder=str(run.folder.path),
        usage_example=_snippet(
            final, run.loaded.contract if is_original else run.certify_evaluator.contract, _options(run)
        ),
    )
    # Value ranges were taken from the calibrate part and choices made by the select part; nothing by this one.
    unseen = (run.dataset if is_original else run.certify_evaluator.model_dataset).subset(
        run.certify_evaluator.indices
    )
    profile = build_reference_profile(content, unseen, report.contract, seed=request.seed, answers=outputs)
    if profile is not None:
        run.folder.write("profile.json", msgspec.json.encode(profile))
    run.folder.write("report.json", msgspec.json.format(msgspec.json.encode(report), indent=1))
    return report


def _with_ranges(run: CompressionRun, *, is_original: bool) -> ModelSignature:
    """Return the chosen model's contract with the range of values in the data."""
    contract = run.loaded.contract if is_original else run.certify_evaluator.contract
    arrays = (run.dataset if is_original else run.certify_evaluator.model_dataset).inputs
    inputs = tuple(
        msgspec.structs.replace(spec, low=float(arrays[spec.name].min()), high=float(arrays[spec.name].max()))
        for spec in contract.inputs
    )
    return msgspec.structs.replace(contract, inputs=inputs)


def _lint(model: onnx.ModelProto) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.to_builtins(lint_model(model))
    except CandidateError as error:
        return {"error": error.message}
    return found


def _effects(run: CompressionRun, chosen: ModelFigures) -> list[dict[str, Any]]:
    """Return what each step of the chosen recipe did to size and noise, one after the other."""
    if chosen.recipe is None:
        return []
    steps = msgspec.convert({"steps": chosen.recipe}, Recipe).steps
    effects = []
    few = run.select_evaluator.indices[:64]
    reference = [output[: len(few)] for output in run.select_evaluator.reference]
    # What comes before folding takes other inputs.
    folded = [place for place, step in enumerate(steps) if isinstance(step, FoldPreprocess)]
    for count in range(1 + max(folded, default=0), len(steps) + 1):
        content = run.builder.build(Recipe(steps[:count])).SerializeToString()
        outputs = run.select_evaluator.outputs(content, len(few))
        effects.append(
            {
                "step": str(type(steps[count - 1]).__struct_config__.tag),
                "size_bytes": len(content),
                "sqnr_db": output_sqnr_db(reference, outputs),
            }
        )
    return effects


def _options(run: CompressionRun) -> RuntimeOptions:
    """Return the best options that are known."""
    faster = run.faster_options
    return run.options if faster is None else msgspec.convert(faster.options, RuntimeOptions)


def _snippet(path: Path, contract: ModelSignature, options: RuntimeOptions) -> str:
    feeds = ", ".join(f"{spec.name!r}: {_identifier(spec.name)}" for spec in contract.inputs)
    providers = list(options.providers)
    return (
        "import onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        f"options.intra_op_num_threads = {options.threads}\n"
        f"{_option_lines(options)}"
        f"session = ort.InferenceSession({str(path)!r}, options, providers={providers})\n"
        f"outputs = session.run(None, {{{feeds}}})"
    )


def _option_lines(options: RuntimeOptions) -> str:
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
