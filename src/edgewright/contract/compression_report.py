"""What a search knows of a candidate, and what it hands over at the end."""

from typing import Any, Literal

import msgspec

from edgewright.contract.certificate import Certificate
from edgewright.contract.measurement import Measurement
from edgewright.contract.model.signature import ModelSignature
from edgewright.contract.schema import SchemaVersion
from edgewright.contract.training_report import TrainingReport

__all__ = ["BudgetOutcome", "CompressionReport", "FasterOptions", "ModelFigures", "SearchTrial"]


class ModelFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model and its figures, each with its origin.

    Attributes:
        path: Of the file.
        sha256: Of the file, hex.
        size_bytes: Of the file.
        compressed_bytes: Of the file under zlib, as a download would weigh.
        latency_p50_ms: Median latency of one inference.
        latency_p95_ms: 95th percentile.
        latency_ratio: Against the original, paired; 1 for the original itself.
        peak_memory_bytes: What loading and running adds to the runtime's own memory.
        energy_mj: Energy of one inference.
        recipe: The steps, as tagged records; None for the original.
        title: The recipe in a few words.
        runtime: Options of the session that the figures hold for.
    """

    path: str
    sha256: str
    size_bytes: Measurement
    compressed_bytes: Measurement
    latency_p50_ms: Measurement
    latency_p95_ms: Measurement
    latency_ratio: Measurement
    peak_memory_bytes: Measurement | None
    energy_mj: Measurement | None
    recipe: Any
    title: str
    runtime: dict[str, Any]


class SearchTrial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One candidate of a search, kept whether it succeeded or not.

    Attributes:
        number: In the order of the search.
        title: The recipe in a few words.
        recipe: The steps, as tagged records.
        state: `complete`; `pruned` by a cheap predictor; `failed` to build or run.
        reason: Why pruned or failed, or what came of it.
        duration_seconds: Wall time of the trial.
        seed: Of the search.
        sha256: Of the candidate's file.
        size_bytes: Of the candidate's file.
        metric: On the select split.
        drop: Of the metric against the original on the select split.
        predicted_bound: Bound of the drop that the certify split would give at these rates.
        changed_answers: Share of samples whose score differs from the original's, for scores of 0 and 1.
        sqnr_db: Signal to quantisation noise ratio against the original's outputs, dB, worst output.
        agreement: Share of samples with the same greatest output, None without classes.
        latency_ratio: Median latency relative to the original's, paired.
        fused_fraction: Share of layers on integers after the runtime's optimisation.
        peak_memory_bytes: Measured on one candidate of this title; None where time did not allow it.
        energy_mj: Estimated: the original's energy times the latency ratio.
        on_pareto_front: Whether no other candidate is at least as good in drop, latency, size, memory and energy.
        network_sha256: sha256 of the trained network that the recipe starts from, "" for the original.
    """

    number: int
    title: str
    recipe: Any
    state: Literal["complete", "pruned", "failed"]
    reason: str
    duration_seconds: float
    seed: int
    sha256: str = ""
    size_bytes: int = 0
    metric: float | None = None
    drop: float | None = None
    predicted_bound: float | None = None
    changed_answers: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    latency_ratio: float | None = None
    fused_fraction: float | None = None
    peak_memory_bytes: float | None = None
    energy_mj: float | None = None
    on_pareto_front: bool = False
    network_sha256: str = ""


class BudgetOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the chosen model keeps the budget.

    Attributes:
        met: All limits are kept, the certified drop included.
        binding_limit: The limit that is broken, or kept by the least margin; None without limits.
        limits: Limit name to the limit, the value, and whether it is kept.
    """

    met: bool
    binding_limit: str | None
    limits: dict[str, dict[str, Any]]


class FasterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Runtime options under which the chosen model is clearly faster and scores the same.

    Attributes:
        options: Of the session.
        latency_ratio: Against the options that the figures hold for, paired, measured again after the choice.
        compared_options: Number of options that were compared.
    """

    options: dict[str, Any]
    latency_ratio: Measurement
    compared_options: int


class CompressionReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that one run of `compress` found; `report.json` and `--json`.

    Attributes:
        schema: Version of this record.
        verdict: One sentence for people.
        original: The model as it came.
        chosen: The model that was chosen; the original itself if nothing helps.
        certificate: Of the chosen model (or of the closest, if the original is returned).
        budget: Whether the limits are kept.
        pareto_front: Candidates that no other beats in drop, latency, size, memory and energy.
        trials: All candidates.
        fidelity: `sqnr_db` and `agreement` of the chosen model against the original, on the certify split.
        contract: Inputs and outputs of the chosen model, with the range of values that it was shown.
        lint: Before and after, findings in words.
        sensitivity: Layer to the noise over signal (power ratio) that it alone brings in few bits or in integers.
        step_effects: What each step of the chosen recipe did, one after the other.
        training: What training found; None if nothing was trained.
        faster_options: Runtime options that are faster still; None if none are, or no time was left to look.
        latencies: Samples for plots: milliseconds per round of the original and the chosen model.
        data: Source, samples, splits, notes, fingerprint.
        machine: Where the figures were measured.
        search: Seconds, seed, limits, trials by state.
        versions: Of the software.
        report_path: Path of the page for people.
        output_folder: The output folder.
        usage_example: Python that runs the chosen model.
    """

    schema: SchemaVersion
    verdict: str
    original: ModelFigures
    chosen: ModelFigures
    certificate: Certificate
    budget: BudgetOutcome
    pareto_front: tuple[SearchTrial, ...]
    trials: tuple[SearchTrial, ...]
    fidelity: dict[str, float | None]
    contract: ModelSignature
    lint: dict[str, Any]
    sensitivity: dict[str, dict[str, float]]
    step_effects: tuple[dict[str, Any], ...]
    latencies: dict[str, list[float]]
    data: dict[str, Any]
    machine: dict[str, Any]
    search: dict[str, Any]
    versions: dict[str, str]
    report_path: str
    output_folder: str
    usage_example: str
    training: TrainingReport | None = None
    faster_options: FasterOptions | None = None
