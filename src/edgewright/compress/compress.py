"""From a trained model and data to the best model that keeps a budget, with its evidence."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

import edgewright
from edgewright.compress.certify import certify
from edgewright.compress.choice import contenders, front_of, ranking
from edgewright.compress.data import Dataset, load_data, split
from edgewright.compress.dataset import Task
from edgewright.compress.figures import Finalist, Measured, judge_budget, measure_finalists
from edgewright.compress.fold import FoldPreprocess, raw_contract, raw_dataset
from edgewright.compress.graph import Graph
from edgewright.compress.ledger import LookLedger
from edgewright.compress.lint import lint
from edgewright.compress.metric import Metric, agreement, choose_metric, sqnr_db
from edgewright.compress.model import LoadedModel, read_model
from edgewright.compress.output import OutputFolder, open_folder
from edgewright.compress.outputs import outputs_of
from edgewright.compress.recipe import CleanUp, Recipe, Step, Workbench
from edgewright.compress.search import Search, SearchLimits
from edgewright.compress.sensitivity import Probe, integer_noise, probe_on, weight_noise
from edgewright.compress.space import Space, space_of
from edgewright.compress.static import StaticInt8, integer_layers
from edgewright.compress.trials import Judge, TrialRunner
from edgewright.contract.candidate import REPORT_SCHEMA, BudgetOutcome, Figures, Report, Trial
from edgewright.contract.device import DEFAULT_DEVICE_CLASS, Budget, DeviceClass
from edgewright.contract.errors import CandidateError, InputError
from edgewright.contract.evidence import Certificate
from edgewright.contract.preprocess import Preprocess
from edgewright.profile.target import Machine, Target, machine_of, open_target
from edgewright.runtime.options import RuntimeOptions

__all__ = ["Request", "compress_model"]

# Unlabelled answers may lose 30 dB; labelled metrics one percentage point.
DEFAULT_DROP = 0.01
DEFAULT_FIDELITY_DROP = 0.001
# Candidates that may look at the certify split in one run; each look costs confidence.
_LOOKS = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks for.

    Attributes:
        model: ONNX file.
        data: Path or `module:function`.
        out: Output folder.
        device: Device class with its budget.
        label: Column or array of labels.
        features: Columns or arrays of features.
        group: Column or array of groups.
        task: What the labels mean.
        metric: Name or `module:function`.
        preprocess: How raw samples become inputs.
        fold: Fold the preprocessing into the graph, so that the chosen model takes raw samples.
        time_limit_s: Wall time for everything.
        trials: Most candidates.
        seed: Of every random choice.
        resume: Go on with the search in `out`.
        state: Folder of the ledger of looks.
        tell: Is told each stage and the share of the whole that is done.
    """

    model: Path
    data: str
    out: Path
    state: Path
    device: DeviceClass = DEFAULT_DEVICE_CLASS
    label: str | None = None
    features: tuple[str, ...] = ()
    group: str | None = None
    task: Task | None = None
    metric: str | None = None
    preprocess: Preprocess | None = None
    fold: bool = False
    time_limit_s: float = 120.0
    trials: int = 200
    seed: int = 0
    resume: bool = False
    tell: Callable[[str, float], None] = lambda _stage, _share: None


@dataclass(slots=True)
class _Run:
    """The parts of one run, in the order in which they come to be."""

    request: Request
    began: float
    loaded: LoadedModel
    dataset: Dataset
    metric: Metric
    budget: Budget
    target: Target
    machine: Machine
    folder: OutputFolder
    options: RuntimeOptions
    bench: Workbench
    space: Space
    probe_noise: dict[str, dict[str, float]]
    select: Judge
    proof: Judge
    fingerprint: str
    trials: list[Trial] = field(default_factory=list)

    def left(self) -> float:
        """Seconds until the time limit."""
        return self.request.time_limit_s - (time.monotonic() - self.began)


def compress_model(request: Request) -> Report:
    """Search, certify, and write the output folder.

    Raises:
        InputError: The model, the data or the folder cannot be used.
        WorkError: The target or the disk failed.
    """
    began = time.monotonic()
    request.tell("reading the model", 0.0)
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
    if request.model.resolve().is_relative_to(request.out.resolve()):
        raise InputError(
            f"the output folder {request.out} holds the model that is to be compressed",
            remedy="Name another folder with --out.",
        )
    folder = open_folder(request.out, resume=request.resume)
    original_outputs = outputs_of(loaded.proto, dataset, np.arange(len(dataset)), loaded.contract)
    metric = choose_metric(dataset, loaded.contract, request.metric, original_outputs)
    budget = _with_default_drop(request.device.budget, metric)
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
    bench = Workbench(loaded.proto, list(fed.feeds(parts.calibrate, contract, 16)), seed=request.seed)
    request.tell("measuring each layer's sensitivity", 0.05)
    space, noise = _survey(bench, request, machine, first)

    def judge(indices: NDArray[np.intp]) -> Judge:
        return Judge(dataset, fed, indices, contract, metric, [output[indices] for output in original_outputs])

    run = _Run(
        request,
        began,
        loaded,
        dataset,
        metric,
        budget,
        target,
        machine,
        folder,
        RuntimeOptions(threads=request.device.threads, providers=request.device.providers),
        bench,
        space,
        noise,
        judge(parts.select),
        judge(parts.certify),
        parts.fingerprint_certify,
    )
    _search(run)
    return _conclude(run)


def _with_default_drop(budget: Budget, metric: Metric) -> Budget:
    if budget.max_drop is not None:
        return budget
    default = DEFAULT_FIDELITY_DROP if metric.name == "fidelity" else DEFAULT_DROP
    return msgspec.structs.replace(budget, max_drop=default)


def _survey(
    bench: Workbench, request: Request, machine: Machine, first: tuple[Step, ...]
) -> tuple[Space, dict[str, dict[str, float]]]:
    """Measure how much noise each layer brings, within a tenth of the time limit, and lay out the recipes."""
    start = time.monotonic()
    cleaned = bench.after(first)
    probe = probe_on(cleaned, _few(bench.feeds, 8))
    one_run = _seconds_of(probe, cleaned)
    layers = [weight.layer for weight in integer_layers(Graph(cleaned))]
    allowed = max(1.0, 0.1 * request.time_limit_s)
    affordable = max(1, int(allowed / max(1e-4, 2.5 * one_run * max(1, len(layers)))))
    if affordable < len(probe.feeds):
        probe = probe_on(cleaned, _few(bench.feeds, affordable))
    weights = weight_noise(cleaned, probe)
    integers: dict[str, float] = {}
    quantized = any(node.op_type == "QuantizeLinear" for node in cleaned.graph.node)
    if layers and not quantized and time.monotonic() - start < allowed:
        integers = integer_noise(cleaned, probe, StaticInt8(), bench.seen_after(first), layers)
    space = space_of(
        cleaned,
        weights,
        integers,
        signed_first=machine.arch.startswith(("aarch64", "arm")),
        fold=tuple(step for step in first if isinstance(step, FoldPreprocess)),
    )
    return space, {"few bits": weights, "integers": integers}


def _few(feeds: Sequence[Any], count: int) -> list[Any]:
    """Return a few feeds, large batches cut down to 8 samples."""
    few = list(feeds[:count])
    return [
        {name: array[:8] if len(feed) == 1 and array.ndim else array for name, array in feed.items()}
        for feed in few
    ]


def _seconds_of(probe: Probe, model: onnx.ModelProto) -> float:
    start = time.monotonic()
    probe.noise(model)
    return time.monotonic() - start


def _search(run: _Run) -> None:
    request = run.request
    groups = run.dataset.groups
    certify_groups = 0 if groups is None else len(np.unique(groups[run.proof.indices]))
    runner = TrialRunner(
        run.bench,
        run.space,
        run.select,
        len(run.proof.indices),
        certify_groups,
        run.budget,
        run.target,
        run.options,
        run.folder,
        request.model,
        request.seed,
    )
    identity = {
        "model": run.loaded.sha256,
        "data": run.dataset.fingerprint,
        "metric": run.metric.name,
        "budget": msgspec.to_builtins(run.budget),
        "device": [request.device.target, request.device.threads, *request.device.providers],
        "fold": request.fold,
        "seed": request.seed,
        "version": edgewright.__version__,
    }
    seconds = max(1.0, 0.72 * run.left())

    def tell(stage: str, share: float) -> None:
        request.tell(stage, 0.1 + 0.7 * min(share, 1.0))

    search = Search(runner, run.folder, identity, SearchLimits(seconds, request.trials), tell)
    run.trials = search.run()


def _conclude(run: _Run) -> Report:
    request = run.request
    request.tell("measuring the finalists", 0.82)
    sample = int(run.proof.indices[0])
    feed = run.proof.fed.feed(sample)
    first = Finalist(request.model, None, "original", run.dataset.feed(sample))
    seconds = max(1.5, min(12.0, 0.25 * run.left()))
    baseline = _measured(run, [first], min(2.0, seconds))[0]
    original_s = baseline.figures.latency_p50_ms.value / 1e3 if baseline else 0.0
    ranked = ranking(run.trials, run.budget, original_s)
    finalists = [first] + [
        Finalist(_candidate(run, trial), trial.recipe, trial.title, feed) for trial in contenders(ranked, _LOOKS)
    ]
    measured = _measured(run, finalists, seconds)
    original = measured[0]
    assert original is not None  # noqa: S101 - measure_finalists raises if the original cannot run
    request.tell("certifying", 0.92)
    chosen, certificate, outcome, verdict = _choose(run, original, measured[1:])
    return _report(run, original, chosen, certificate, outcome, verdict)


def _candidate(run: _Run, trial: Trial) -> Path:
    """Return a candidate's file; one that an earlier run of a resumed search has cleared away is made anew."""
    path = run.folder.path / "candidates" / f"{trial.sha256[:16]}.onnx"
    if path.exists():
        return path
    recipe = msgspec.convert({"steps": trial.recipe}, Recipe)
    return run.folder.candidate(run.bench.build(recipe).SerializeToString())[1]


def _measured(run: _Run, finalists: Sequence[Finalist], seconds: float) -> list[Measured | None]:
    return measure_finalists(
        run.target, finalists, run.request.device, run.options, seconds=seconds, seed=run.request.seed
    )


def _choose(
    run: _Run, original: Measured, candidates: Sequence[Measured | None]
) -> tuple[Measured, Certificate, BudgetOutcome, str]:
    """Certify candidates in order until one keeps everything; otherwise return the original or the closest."""
    same = _identity_certificate(run)
    original_outcome = judge_budget(original.figures, same, run.budget)
    tried: list[tuple[Measured, Certificate, BudgetOutcome]] = []
    for candidate in [c for c in candidates if c is not None]:
        if not _is_worth_it(candidate.figures, original.figures, run.budget):
            continue
        certificate = _certificate(run, candidate.figures)
        outcome = judge_budget(candidate.figures, certificate, run.budget)
        tried.append((candidate, certificate, outcome))
        if outcome.met:
            return candidate, certificate, outcome, _good_news(candidate.figures, original.figures, certificate)
    if original_outcome.met and not tried:
        return (
            original,
            same,
            original_outcome,
            "Nothing helps: no candidate is smaller or faster. Ship the original.",
        )
    if not tried:
        return (
            original,
            same,
            original_outcome,
            (f"The budget cannot be met: {original_outcome.binding} of the original, and no candidate is closer."),
        )
    certified = [entry for entry in tried if entry[1].verdict == "certified"]
    if certified:
        closest = min(certified, key=lambda entry: max(float(e["share"]) for e in entry[2].limits.values()))
        candidate, certificate, outcome = closest
        return (
            candidate,
            certificate,
            outcome,
            (f"The budget cannot be met: {outcome.binding} binds. This is the closest certified candidate."),
        )
    _, certificate, outcome = tried[0]
    outcome = BudgetOutcome(met=False, binding="max_drop", limits=outcome.limits)
    return original, certificate, outcome, f"The original is returned: {certificate.reason}"


def _is_worth_it(candidate: Figures, original: Figures, budget: Budget) -> bool:
    """Whether a candidate is smaller, or clearly faster, or keeps a limit that the original breaks."""
    smaller = candidate.size_bytes.value < original.size_bytes.value
    faster = candidate.latency_ratio.high is not None and candidate.latency_ratio.high < 1
    limited = budget.latency_p50_s or budget.latency_p95_s or budget.size_bytes or budget.peak_memory_bytes
    return smaller or faster or bool(limited)


def _certificate(run: _Run, figures: Figures) -> Certificate:
    content = Path(figures.path).read_bytes()
    outputs = run.proof.outputs(content, len(run.proof.indices))
    groups = run.dataset.groups
    scalar = None
    if run.metric.kind == "scalar":
        labels = None if run.dataset.labels is None else run.dataset.labels[run.proof.indices]

        def scalar(picked: NDArray[np.intp]) -> tuple[float, float]:
            some = None if labels is None else labels[picked]
            both = [
                run.metric.scores([o[picked] for o in each], None, some, {})[0]
                for each in (run.proof.reference, outputs)
            ]
            return float(both[0]), float(both[1])

    return certify(
        run.proof.scores,
        run.proof.score(outputs, len(run.proof.indices)),
        kind=run.metric.kind,
        metric=run.metric.name,
        max_drop=run.budget.max_drop or DEFAULT_DROP,
        confidence=run.budget.confidence,
        groups=None if groups is None else groups[run.proof.indices],
        candidate_digest=figures.sha256,
        data_fingerprint=run.fingerprint,
        ledger=LookLedger(run.request.state),
        min_metric=run.budget.min_metric,
        scalar=scalar,
        seed=run.request.seed,
    )


def _identity_certificate(run: _Run) -> Certificate:
    """Return the certificate of the original against itself, which loses nothing by definition."""
    value = float(run.proof.scores.mean())
    return Certificate(
        verdict="certified",
        metric=run.metric.name,
        original=value,
        chosen=value,
        drop=0.0,
        upper_bound=0.0,
        lower_bound=0.0,
        confidence=run.budget.confidence,
        samples=len(run.proof.indices),
        max_drop=run.budget.max_drop or DEFAULT_DROP,
        method="the same model",
        look=0,
        look_confidence=1.0,
        clusters=None,
        more_samples=None,
        reason="The original against itself loses nothing.",
        data=run.fingerprint,
    )


def _good_news(chosen: Figures, original: Figures, certificate: Certificate) -> str:
    size = original.size_bytes.value / chosen.size_bytes.value
    return (
        f"{size:.1f} times smaller, {chosen.latency_ratio.value:.2f} times the latency, "
        f"{certificate.metric} drops at most {certificate.upper_bound:.2%} "
        f"(certified at {certificate.confidence:.0%} on {certificate.samples} unseen samples)."
    )


def _report(
    run: _Run,
    original: Measured,
    chosen: Measured,
    certificate: Certificate,
    outcome: BudgetOutcome,
    verdict: str,
) -> Report:
    request = run.request
    request.tell("writing the report", 0.97)
    content = Path(chosen.figures.path).read_bytes()
    is_original = chosen.figures.recipe is None
    final = run.folder.write("model.onnx", content)
    front = front_of(run.trials)
    on_front = {trial.number for trial in front}
    trials = tuple(msgspec.structs.replace(trial, on_front=trial.number in on_front) for trial in run.trials)
    run.folder.keep_candidates({trial.sha256 for trial in front})
    outputs = run.proof.reference if is_original else run.proof.outputs(content, len(run.proof.indices))
    share = agreement(run.proof.reference, outputs)
    proto = onnx.load_from_string(content)
    report = Report(
        schema=REPORT_SCHEMA,
        verdict=verdict,
        original=original.figures,
        chosen=msgspec.structs.replace(chosen.figures, path=str(final)),
        certificate=certificate,
        budget=outcome,
        front=tuple(trial for trial in trials if trial.on_front),
        trials=trials,
        fidelity={
            "sqnr_db": sqnr_db(run.proof.reference, outputs),
            "agreement": None if np.isnan(share) else share,
        },
        lint={"original": _lint(run.loaded.proto), "chosen": _lint(proto)},
        sensitivity=run.probe_noise,
        effects=tuple(_effects(run, chosen.figures)),
        latencies={
            "original": [float(v) * 1e3 for v in original.latency.rounds_s],
            "chosen": [float(v) * 1e3 for v in chosen.latency.rounds_s],
        },
        data={
            "source": request.data,
            "samples": len(run.dataset),
            "select": len(run.select.indices),
            "certify": len(run.proof.indices),
            "calibrate": len(run.dataset) - len(run.select.indices) - len(run.proof.indices),
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
        snippet=_snippet(final, proto, run.options),
    )
    run.folder.write("report.json", msgspec.json.format(msgspec.json.encode(report), indent=1))
    return report


def _lint(model: onnx.ModelProto) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.to_builtins(lint(model))
    except CandidateError as error:
        return {"error": error.message}
    return found


def _effects(run: _Run, chosen: Figures) -> list[dict[str, Any]]:
    """Return what each step of the chosen recipe did to size and noise, one after the other."""
    if chosen.recipe is None:
        return []
    steps = msgspec.convert({"steps": chosen.recipe}, Recipe).steps
    effects = []
    few = run.select.indices[:64]
    reference = [output[: len(few)] for output in run.select.reference]
    folded = sum(isinstance(step, FoldPreprocess) for step in steps)
    for count in range(1 + folded, len(steps) + 1):
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


def _snippet(path: Path, model: onnx.ModelProto, options: RuntimeOptions) -> str:
    feeds = ", ".join(f'"{value.name}": {_identifier(value.name)}' for value in model.graph.input)
    return (
        "import onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        f"options.intra_op_num_threads = {options.threads}\n"
        f'session = ort.InferenceSession("{path}", options)\n'
        f"outputs = session.run(None, {{{feeds}}})"
    )


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isalnum() else "_" for c in name)
    return cleaned if cleaned.isidentifier() else f"x_{cleaned}"
