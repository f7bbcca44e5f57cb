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
from edgewright.compress.certify.final_measurement import Finalist, Measured, measure_finalists
from edgewright.compress.certify.look_ledger import look_alpha
from edgewright.compress.certify.ranking import contenders, foremost, pooled, ranking
from edgewright.compress.context import Request, Run
from edgewright.compress.data.loader import Dataset, load_data, split
from edgewright.compress.data.model_outputs import outputs_of
from edgewright.compress.data.splits import Splits
from edgewright.compress.finalist_selection import choose
from edgewright.compress.metrics.metric import Metric, choose_metric
from edgewright.compress.model.loading import LoadedModel, read_model
from edgewright.compress.output_folder import OutputFolder, open_folder
from edgewright.compress.quantize.preprocess_folding import FoldPreprocess, raw_contract, raw_dataset
from edgewright.compress.report.json_report import record
from edgewright.compress.runtime_options import faster_options
from edgewright.compress.search.layer_analysis import lay_out
from edgewright.compress.search.recipe import CleanUp, Recipe, Step, Workbench
from edgewright.compress.search.search import Search, SearchLimits
from edgewright.compress.search.trial_runner import Judge, TrialRunner
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.contract.compression_report import Report, Trial
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError, InputError
from edgewright.contract.training_report import TrainingReport, sparse_of
from edgewright.profiling.latency import Subject
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.target import machine_of, open_target
from edgewright.runtime.options import RuntimeOptions

__all__ = ["Request", "compress_model"]

Train: TypeAlias = Callable[..., TrainingReport]
"""Trains, given the run, the search and seconds."""

# Unlabelled answers may lose 30 dB; labelled metrics one percentage point.
_DROP = 0.01
_FIDELITY_DROP = 0.001
# Shares of the time: for the search without training, for the search before training, for what follows training.
_SEARCH, _SEARCH_BEFORE_TRAINING, _CONCLUSION = 0.72, 0.08, 0.07
_LEAST_CONCLUSION_S, _MOST_CONCLUSION_S = 9.0, 60.0
# Candidates that may look at the certify split in one run; each look costs confidence.
_LOOKS = 3
# Kinds of candidates whose memory is measured; each takes about half a second.
_MEMORY_PROBES = 12


def compress_model(request: Request) -> Report:
    """Search, certify, and write the output folder.

    Raises:
        InputError: The model, the data or the folder cannot be used.
        WorkError: The target or the disk failed.
    """
    began = time.monotonic()
    request.tell("reading the model", 0.0)
    if request.module is not None:
        _export(request)
    loaded = read_model(request.model)
    request.tell("reading the data", 0.01)
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
    parts = split(dataset, seed=request.seed)
    if request.module is None and request.model.resolve().is_relative_to(request.out.resolve()):
        raise InputError(
            f"the output folder {request.out} holds the model that is to be compressed",
            remedy="Name another folder with --out.",
        )
    folder = open_folder(request.out, resume=request.resume)
    original_outputs = outputs_of(loaded.proto, dataset, np.arange(len(dataset)), loaded.contract)
    metric = choose_metric(dataset, loaded.contract, request.metric, original_outputs)
    budget = _with_default_drop(request.device.budget, metric)
    train = None if request.training is None else _trainer(request, loaded, dataset)
    request.tell("looking at the target", 0.03)
    target = open_target(request.device.target)
    machine = machine_of(target)
    fed, contract = dataset, loaded.contract
    first: tuple[Step, ...] = (CleanUp(),)
    if request.fold:
        fed = raw_dataset(dataset)
        assert dataset.preprocess is not None  # noqa: S101 - raw_dataset refuses data without it
        fold = FoldPreprocess(dataset.preprocess)
        first = (CleanUp(), fold)
        contract = raw_contract(loaded.contract, fold)
    if not request.resume:
        folder.clear()
    feeds = list(fed.feeds(parts.calibrate, contract, 16))
    bench = Workbench(loaded.proto, feeds, request.seed, TrainingStore(folder.path).network)
    request.tell("measuring each layer's sensitivity", 0.05)
    space, noise = lay_out(
        bench,
        first,
        machine,
        seconds=(0.1 if request.training is None else 0.02) * request.time_limit_s,
        kept=folder.layouts,
    )

    def judge(indices: NDArray[np.intp]) -> Judge:
        return Judge(dataset, fed, indices, contract, metric, [output[indices] for output in original_outputs])

    run = Run(
        request=request,
        began=began,
        loaded=loaded,
        source=_whole_file(loaded, folder),
        dataset=dataset,
        metric=metric,
        budget=budget,
        target=target,
        machine=machine,
        folder=folder,
        options=RuntimeOptions(threads=request.device.threads, providers=request.device.providers),
        bench=bench,
        space=space,
        probe_noise=noise,
        select=judge(_choosing(parts, training=request.training is not None, seed=request.seed)),
        proof=judge(parts.certify),
        fingerprint=parts.fingerprint_certify,
        calibrated=len(parts.calibrate),
    )
    _search(run, train)
    return _conclude(run)


def _choosing(parts: Splits, *, training: bool, seed: int) -> NDArray[np.intp]:
    """Return the samples by which the search chooses.

    Networks that were trained apart differ in more than the select split can tell, so those that calibrate count as
    well: training never sees them, and value ranges hardly depend on single ones.
    """
    if not training:
        return parts.select
    return np.random.default_rng(seed).permutation(np.concatenate([parts.select, parts.calibrate]))


def _export(request: Request) -> None:
    """Write the request's PyTorch module to its ONNX file."""
    # PyTorch takes seconds to load: only who needs it waits for it.
    from edgewright.compress.train.export.module_to_onnx import export_module

    open_folder(request.out, resume=request.resume)
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
    return folder.candidate(loaded.proto.SerializeToString())[1]


def _with_default_drop(budget: Budget, metric: Metric) -> Budget:
    if budget.max_drop is not None:
        return budget
    default = _FIDELITY_DROP if metric.name == "fidelity" else _DROP
    return msgspec.structs.replace(budget, max_drop=default)


def _trainer(request: Request, loaded: LoadedModel, dataset: Dataset) -> Train:
    """Read what there is to train with: whatever is wrong with it is told before anything else is done."""
    # PyTorch takes seconds to load: only who trains waits for it.
    from edgewright.compress.train.pipeline import explore
    from edgewright.compress.train.training_inputs import gather

    request.tell("reading the training data", 0.02)
    return partial(explore, gather(request, loaded, dataset))


def _search(run: Run, train: Train | None) -> None:
    request = run.request
    groups = run.dataset.groups
    certify_groups = 0 if groups is None else len(np.unique(groups[run.proof.indices]))
    runner = TrialRunner(
        bench=run.bench,
        select=run.select,
        certify_samples=len(run.proof.indices),
        certify_groups=certify_groups,
        budget=run.budget,
        target=run.target,
        options=run.options,
        folder=run.folder,
        original=run.source,
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
        "fold": request.fold,
        "seed": request.seed,
        "training": request.training,
        "version": edgewright.__version__,
    }
    identity = msgspec.json.decode(msgspec.json.encode(identity))  # as the journal will give it back
    share = _SEARCH if request.training is None else _SEARCH_BEFORE_TRAINING
    seconds = max(1.0, share * run.left())

    def tell(stage: str, _share: float) -> None:
        request.tell(stage, min(0.8, 1 - run.left() / request.time_limit_s))

    search = Search(runner, run.space, run.folder, identity, SearchLimits(seconds, request.trials), tell)
    run.trials = search.run()
    if train is not None:
        reserve = min(_MOST_CONCLUSION_S, max(_LEAST_CONCLUSION_S, _CONCLUSION * request.time_limit_s))
        left = run.left() - reserve
        run.training = train(run, search, seconds=max(1.0, left))


def _conclude(run: Run) -> Report:
    request = run.request
    request.tell("measuring the finalists", 0.82)
    sample = int(run.proof.indices[0])
    feed = run.proof.fed.feed(sample)
    first = Finalist(run.source, None, "original", run.dataset.feed(sample))
    seconds = max(1.5, min(12.0, 0.25 * run.left()))
    baseline = _measured(run, [first], min(2.0, seconds))[0]
    assert baseline is not None  # noqa: S101 - measure_finalists raises if the original cannot run
    original_s = baseline.figures.latency_p50_ms.value / 1e3
    energy = baseline.figures.energy_mj
    energy_j = None if energy is None else energy.value / 1e3
    sparse = frozenset() if run.training is None else sparse_of(run.training.networks)
    run.trials = pooled(run.trials, len(run.proof.indices), look_alpha(1 - run.budget.confidence, 1))

    def ranked_now() -> list[Trial]:
        found = ranking(run.trials, run.budget, original_s, energy_j, preferred=sparse)
        return foremost(found, run.budget, original_s, energy_j, preferred=sparse)

    peaks = _peaks(run, ranked_now(), feed)
    run.trials = [
        msgspec.structs.replace(
            trial,
            peak_memory_bytes=peaks.get(trial.title),
            energy_mj=None if energy is None or trial.latency_ratio is None else energy.value * trial.latency_ratio,
        )
        for trial in run.trials
    ]
    ranked = _light_enough(run, ranked_now())
    looks = _LOOKS if run.training is None else _LOOKS + 1
    finalists = [first] + [
        Finalist(_candidate(run, trial), trial.recipe, trial.title, feed)
        for trial in contenders(ranked, looks, run.budget.max_drop)
    ]
    measured = _measured(run, finalists, seconds)
    original = measured[0]
    assert original is not None  # noqa: S101 - measure_finalists raises if the original cannot run
    request.tell("certifying", 0.92)
    chosen, certificate, outcome, verdict = choose(run, original, measured[1:])
    request.tell("trying runtime options", 0.95)
    is_original = chosen.figures.recipe is None
    run.faster_options = faster_options(run, chosen.figures, run.dataset.feed(sample) if is_original else feed)
    return record(run, original, chosen, certificate, outcome, verdict)


def _peaks(run: Run, ranked: Sequence[Trial], feed: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Measure the peak memory of one candidate of each title, best ones first, as far as time allows.

    Candidates of one title run alike: they differ in the bits of single layers.
    """
    peaks: dict[str, float] = {}
    wanted = list(dict.fromkeys(trial.title for trial in ranked))[:_MEMORY_PROBES]
    enough = run.began + 0.9 * run.request.time_limit_s
    for trial in ranked:
        limited = run.budget.peak_memory_bytes is not None
        if trial.title not in wanted or trial.title in peaks or (time.monotonic() > enough and not limited):
            continue
        subject = Subject(trial.title, _candidate(run, trial), run.options, feed)
        try:
            peaks[trial.title] = measure_memory(run.target, subject).session_peak.value
        except CandidateError:
            continue
    return peaks


def _light_enough(run: Run, ranked: Sequence[Trial]) -> list[Trial]:
    """Return the candidates that keep the memory limit; if none does, all of them, the lightest first."""
    limit = run.budget.peak_memory_bytes
    if limit is None:
        return list(ranked)

    def peak(trial: Trial) -> float:
        return float("inf") if trial.peak_memory_bytes is None else trial.peak_memory_bytes

    return [trial for trial in ranked if peak(trial) <= limit] or sorted(ranked, key=peak)


def _candidate(run: Run, trial: Trial) -> Path:
    """Return a candidate's file; one that an earlier run of a resumed search has cleared away is made anew."""
    path = run.folder.path / "candidates" / f"{trial.sha256[:16]}.onnx"
    if path.exists():
        return path
    recipe = msgspec.convert({"steps": trial.recipe}, Recipe)
    return run.folder.candidate(run.bench.build(recipe).SerializeToString())[1]


def _measured(run: Run, finalists: Sequence[Finalist], seconds: float) -> list[Measured | None]:
    return measure_finalists(
        run.target, finalists, run.request.device, run.options, seconds=seconds, seed=run.request.seed
    )
