"""From a trained model and data to the best model that keeps a budget, with its evidence."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

import edgewright
from edgewright.compress.certify.final_measurement import Finalist, MeasuredFinalist, measure_finalists
from edgewright.compress.certify.look_ledger import alpha_of_look
from edgewright.compress.certify.ranking import (
    certification_candidates,
    move_to_front,
    pool_changed_answers,
    rank_trials,
)
from edgewright.compress.context import CompressionRequest, CompressionRun
from edgewright.compress.data.loader import Dataset, load_data, split_dataset
from edgewright.compress.data.model_outputs import model_outputs
from edgewright.compress.data.splits import Splits
from edgewright.compress.finalist_selection import choose_finalist
from edgewright.compress.metrics.metric import Metric, choose_metric
from edgewright.compress.model.loading import LoadedModel, read_model
from edgewright.compress.output_folder import OutputFolder, open_folder
from edgewright.compress.quantize.preprocess_folding import FoldPreprocess, raw_contract, raw_dataset
from edgewright.compress.report.json_report import write_json_report
from edgewright.compress.runtime_options import find_faster_options
from edgewright.compress.search.layer_analysis import analyse_layers
from edgewright.compress.search.recipe import CandidateBuilder, CleanGraph, Recipe, RecipeStep
from edgewright.compress.search.search import Search, SearchLimits
from edgewright.compress.search.trial_runner import SplitEvaluator, TrialRunner
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.contract.compression_report import CompressionReport, SearchTrial
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError, InputError
from edgewright.contract.training_report import TrainingReport, sparse_networks
from edgewright.profiling.latency import Workload
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.target import open_target, query_machine
from edgewright.runtime.options import RuntimeOptions

__all__ = ["CompressionRequest", "compress_model"]

TrainFunction: TypeAlias = Callable[..., TrainingReport]
"""Trains, given the run, the search and seconds."""

# Unlabelled answers may lose 30 dB; labelled metrics one percentage point.
_DEFAULT_MAX_DROP = 0.01
_DEFAULT_MAX_FIDELITY_DROP = 0.001
# Shares of the time: for the search without training, for the search before training, for what follows training.
_SEARCH_TIME_SHARE, _SEARCH_BEFORE_TRAINING_SHARE, _CONCLUSION_TIME_SHARE = 0.72, 0.08, 0.07
_MIN_CONCLUSION_SECONDS, _MAX_CONCLUSION_SECONDS = 9.0, 60.0
# Candidates that may look at the certify split in one run; each look costs confidence.
_MAX_LOOKS = 3
# Kinds of candidates whose memory is measured; each takes about half a second.
_MEMORY_PROBES = 12


def compress_model(request: CompressionRequest) -> CompressionReport:
    """Search, certify, and write the output folder.

    Raises:
        InputError: The model, the data or the folder cannot be used.
        WorkError: The target or the disk failed.
    """
    began = time.monotonic()
    request.report_progress("reading the model", 0.0)
    if request.module is not None:
        _export(request)
    loaded = read_model(request.model)
    request.report_progress("reading the data", 0.01)
    dataset = load_data(
        request.data,
        loaded.contract,
        label=request.label,
        features=request.features,
        group=request.group,
        task=request.task,
        preprocess=request.preprocess,
        model=request.model,
        seed=request.seed,
    )
    parts = split_dataset(dataset, seed=request.seed)
    if request.module is None and request.model.resolve().is_relative_to(request.output_folder.resolve()):
        raise InputError(
            f"the output folder {request.output_folder} holds the model that is to be compressed",
            remedy="Name another folder with --out.",
        )
    folder = open_folder(request.output_folder, resume=request.resume)
    original_outputs = model_outputs(loaded.proto, dataset, np.arange(len(dataset)), loaded.contract)
    metric = choose_metric(dataset, loaded.contract, request.metric, original_outputs)
    budget = _with_default_drop(request.device.budget, metric)
    train = None if request.training is None else _trainer(request, loaded, dataset)
    request.report_progress("looking at the target", 0.03)
    target = open_target(request.device.target)
    machine = query_machine(target)
    fed, contract = dataset, loaded.contract
    first: tuple[RecipeStep, ...] = (CleanGraph(),)
    if request.fold_preprocessing:
        fed = raw_dataset(dataset)
        assert dataset.preprocess is not None  # noqa: S101 - raw_dataset refuses data without it
        fold = FoldPreprocess(dataset.preprocess)
        first = (CleanGraph(), fold)
        contract = raw_contract(loaded.contract, fold)
    if not request.resume:
        folder.delete_earlier_run()
    feeds = list(fed.batches(parts.calibrate, contract, 16))
    bench = CandidateBuilder(loaded.proto, feeds, request.seed, TrainingStore(folder.path).load_network)
    request.report_progress("measuring each layer's sensitivity", 0.05)
    space, noise = analyse_layers(
        bench,
        first,
        machine,
        seconds=(0.1 if request.training is None else 0.02) * request.time_limit_seconds,
        cache_path=folder.analysis_cache,
    )

    def judge(indices: NDArray[np.intp]) -> SplitEvaluator:
        return SplitEvaluator(
            dataset, fed, indices, contract, metric, [output[indices] for output in original_outputs]
        )

    run = CompressionRun(
        request=request,
        started_at=began,
        loaded=loaded,
        model_path=_whole_file(loaded, folder),
        dataset=dataset,
        metric=metric,
        budget=budget,
        target=target,
        machine=machine,
        folder=folder,
        options=RuntimeOptions(threads=request.device.threads, providers=request.device.providers),
        builder=bench,
        search_space=space,
        layer_noise=noise,
        select_evaluator=judge(_selection_samples(parts, training=request.training is not None, seed=request.seed)),
        certify_evaluator=judge(parts.certify),
        fingerprint=parts.fingerprint_certify,
        calibration_samples=len(parts.calibrate),
    )
    _search(run, train)
    return _conclude(run)


def _selection_samples(parts: Splits, *, training: bool, seed: int) -> NDArray[np.intp]:
    """Return the samples by which the search chooses.

    Networks that were trained apart differ in more than the select split can tell, so those that calibrate count as
    well: training never sees them, and value ranges hardly depend on single ones.
    """
    if not training:
        return parts.select
    return np.random.default_rng(seed).permutation(np.concatenate([parts.select, parts.calibrate]))


def _export(request: CompressionRequest) -> None:
    """Write the request's PyTorch module to its ONNX file."""
    # PyTorch takes seconds to load: only who needs it waits for it.
    from edgewright.compress.train.export.module_to_onnx import export_module

    open_folder(request.output_folder, resume=request.resume)
    export_module(
        request.module,
        request.data,
        request.model,
        label=request.label,
        features=request.features,
        group=request.group,
        preprocess=request.preprocess,
    )


def _whole_file(loaded: LoadedModel, folder: OutputFolder) -> Path:
    """Return the original as one file: a copy with its weights inside where they lie beside it."""
    if loaded.size_bytes == loaded.path.stat().st_size:
        return loaded.path
    return folder.store_candidate(loaded.proto.SerializeToString())[1]


def _with_default_drop(budget: Budget, metric: Metric) -> Budget:
    if budget.max_drop is not None:
        return budget
    default = _DEFAULT_MAX_FIDELITY_DROP if metric.name == "fidelity" else _DEFAULT_MAX_DROP
    return msgspec.structs.replace(budget, max_drop=default)


def _trainer(request: CompressionRequest, loaded: LoadedModel, dataset: Dataset) -> TrainFunction:
    """Read what there is to train with: whatever is wrong with it is told before anything else is done."""
    # PyTorch takes seconds to load: only who trains waits for it.
    from edgewright.compress.train.pipeline import run_training
    from edgewright.compress.train.training_inputs import load_training_inputs

    request.report_progress("reading the training data", 0.02)
    return partial(run_training, load_training_inputs(request, loaded, dataset))


def _search(run: CompressionRun, train: TrainFunction | None) -> None:
    request = run.request
    groups = run.dataset.groups
    certify_groups = 0 if groups is None else len(np.unique(groups[run.certify_evaluator.indices]))
    runner = TrialRunner(
        builder=run.builder,
        evaluator=run.select_evaluator,
        certify_samples=len(run.certify_evaluator.indices),
        certify_groups=certify_groups,
        budget=run.budget,
        target=run.target,
        options=run.options,
        folder=run.folder,
        original=run.model_path,
        seed=request.seed,
    )
    identity = {
        "model": run.loaded.sha256,
        "data": run.dataset.fingerprint,
        "metric": run.metric.name,
        "budget": run.budget,
        "device": [request.device.target, request.device.threads, *request.device.providers],
        "machine": [run.machine.summary, run.machine.runtime],
        "preprocess": run.dataset.preprocess,
        "fold": request.fold_preprocessing,
        "seed": request.seed,
        "training": request.training,
        "version": edgewright.__version__,
    }
    identity = msgspec.json.decode(msgspec.json.encode(identity))  # as the journal will give it back
    share = _SEARCH_TIME_SHARE if request.training is None else _SEARCH_BEFORE_TRAINING_SHARE
    seconds = max(1.0, share * run.seconds_left())

    def tell(stage: str, _share: float) -> None:
        request.report_progress(stage, min(0.8, 1 - run.seconds_left() / request.time_limit_seconds))

    search = Search(runner, run.search_space, run.folder, identity, SearchLimits(seconds, request.max_trials), tell)
    run.trials = search.run()
    if train is not None:
        reserve = min(
            _MAX_CONCLUSION_SECONDS,
            max(_MIN_CONCLUSION_SECONDS, _CONCLUSION_TIME_SHARE * request.time_limit_seconds),
        )
        left = run.seconds_left() - reserve
        run.training = train(run, search, seconds=max(1.0, left))


def _conclude(run: CompressionRun) -> CompressionReport:
    request = run.request
    request.report_progress("measuring the finalists", 0.82)
    sample = int(run.certify_evaluator.indices[0])
    feed = run.certify_evaluator.model_dataset.inputs_of(sample)
    first = Finalist(run.model_path, None, "original", run.dataset.inputs_of(sample))
    seconds = max(1.5, min(12.0, 0.25 * run.seconds_left()))
    baseline = _measured(run, [first], min(2.0, seconds))[0]
    assert baseline is not None  # noqa: S101 - measure_finalists raises if the original cannot run
    original_seconds = baseline.model.latency_p50_ms.value / 1e3
    energy = baseline.model.energy_mj
    energy_j = None if energy is None else energy.value / 1e3
    sparse = frozenset() if run.training is None else sparse_networks(run.training.networks)
    run.trials = pool_changed_answers(
        run.trials, len(run.certify_evaluator.indices), alpha_of_look(1 - run.budget.confidence, 1)
    )

    def ranked_now() -> list[SearchTrial]:
        found = rank_trials(run.trials, run.budget, original_seconds, energy_j, preferred=sparse)
        return move_to_front(found, run.budget, original_seconds, energy_j, preferred=sparse)

    peaks = _measure_peak_memory(run, ranked_now(), feed)
    run.trials = [
        msgspec.structs.replace(
            trial,
            peak_memory_bytes=peaks.get(trial.title),
            energy_mj=None if energy is None or trial.latency_ratio is None else energy.value * trial.latency_ratio,
        )
        for trial in run.trials
    ]
    ranked = _within_memory_limit(run, ranked_now())
    looks = _MAX_LOOKS if run.training is None else _MAX_LOOKS + 1
    finalists = [first] + [
        Finalist(_candidate(run, trial), trial.recipe, trial.title, feed)
        for trial in certification_candidates(ranked, looks, run.budget.max_drop)
    ]
    measured = _measured(run, finalists, seconds)
    original = measured[0]
    assert original is not None  # noqa: S101 - measure_finalists raises if the original cannot run
    request.report_progress("certifying", 0.92)
    chosen, certificate, outcome, verdict = choose_finalist(run, original, measured[1:])
    request.report_progress("trying runtime options", 0.95)
    is_original = chosen.model.recipe is None
    run.faster_options = find_faster_options(
        run, chosen.model, run.dataset.inputs_of(sample) if is_original else feed
    )
    return write_json_report(run, original, chosen, certificate, outcome, verdict)


def _measure_peak_memory(
    run: CompressionRun, ranked: Sequence[SearchTrial], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """Measure the peak memory of one candidate of each title, best ones first, as far as time allows.

    Candidates of one title run alike: they differ in the bits of single layers.
    """
    peaks: dict[str, float] = {}
    wanted = list(dict.fromkeys(trial.title for trial in ranked))[:_MEMORY_PROBES]
    enough = run.started_at + 0.9 * run.request.time_limit_seconds
    for trial in ranked:
        limited = run.budget.peak_memory_bytes is not None
        if trial.title not in wanted or trial.title in peaks or (time.monotonic() > enough and not limited):
            continue
        subject = Workload(trial.title, _candidate(run, trial), run.options, inputs)
        try:
            peaks[trial.title] = measure_memory(run.target, subject).session_peak.value
        except CandidateError:
            continue
    return peaks


def _within_memory_limit(run: CompressionRun, ranked: Sequence[SearchTrial]) -> list[SearchTrial]:
    """Return the candidates that keep the memory limit; if none does, all of them, the lightest first."""
    limit = run.budget.peak_memory_bytes
    if limit is None:
        return list(ranked)

    def peak(trial: SearchTrial) -> float:
        return float("inf") if trial.peak_memory_bytes is None else trial.peak_memory_bytes

    return [trial for trial in ranked if peak(trial) <= limit] or sorted(ranked, key=peak)


def _candidate(run: CompressionRun, trial: SearchTrial) -> Path:
    """Return a candidate's file; one that an earlier run of a resumed search has cleared away is made anew."""
    path = run.folder.path / "candidates" / f"{trial.sha256[:16]}.onnx"
    if path.exists():
        return path
    recipe = msgspec.convert({"steps": trial.recipe}, Recipe)
    return run.folder.store_candidate(run.builder.build(recipe).SerializeToString())[1]


def _measured(run: CompressionRun, finalists: Sequence[Finalist], seconds: float) -> list[MeasuredFinalist | None]:
    return measure_finalists(
        run.target, finalists, run.request.device, run.options, seconds=seconds, seed=run.request.seed
    )
