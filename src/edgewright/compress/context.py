"""What one run of `compress` is asked for, and its parts as they come to be."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgewright.compress.data.dataset import TaskKind
from edgewright.compress.data.loader import Dataset
from edgewright.compress.metrics.metric import Metric
from edgewright.compress.model.loading import LoadedModel
from edgewright.compress.output_folder import OutputFolder
from edgewright.compress.search.recipe import CandidateBuilder
from edgewright.compress.search.space import SearchSpace
from edgewright.compress.search.trial_runner import SplitEvaluator
from edgewright.contract.compression_report import FasterOptions, SearchTrial
from edgewright.contract.device_class import DEFAULT_DEVICE_CLASS, Budget, DeviceClass
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.training_report import TrainingReport
from edgewright.profiling.target import Machine, MeasurementTarget
from edgewright.runtime.options import RuntimeOptions

__all__ = ["CompressionRequest", "CompressionRun", "TrainingRequest"]


class TrainingRequest(msgspec.Struct, frozen=True):
    """What a person gives for training.

    Attributes:
        data: Training data: a path, or `module:function`.
        teachers: ONNX files of further teachers beside the original.
        recipe: The model's own training, `module:function`; None is ours.
        engine: `local`, `ray`, or `ray://host:port`.
        workers: Networks trained at the same time, one thread each.
        temperature: Of distillation.
        feature_loss_weight: Weight of the teacher's features in the loss.
        relation_loss_weight: Weight of the relations among samples in the loss.
        sparsity: Zeros among the weights: a share, or "2:4", two kept of every four; None asks for none.
    """

    data: str
    teachers: tuple[str, ...] = ()
    recipe: str | None = None
    engine: str = "local"
    workers: int = os.cpu_count() or 1
    temperature: float = 4.0
    feature_loss_weight: float = 0.0
    relation_loss_weight: float = 0.0
    sparsity: float | str | None = None


@dataclass(frozen=True, slots=True)
class CompressionRequest:
    """What a person asks for.

    Attributes:
        model: ONNX file; of a module, where that is to be exported to: `original.onnx` in `output_folder`, say.
        data: Path or `module:function`.
        output_folder: Output folder.
        module: A trained `torch.nn.Module`, or `module:function` that makes one; None if there is an ONNX file.
        device: Device class with its budget.
        label: Column or array of labels.
        features: Columns or arrays of features.
        group: Column or array of groups.
        task: What the labels mean.
        metric: Name or `module:function`.
        preprocess: How raw samples become inputs.
        training: What to train with; None searches without training.
        fold_preprocessing: Fold the preprocessing into the graph, so that the chosen model takes raw samples.
        time_limit_seconds: Wall time for everything.
        max_trials: Most candidates.
        seed: Of every random choice.
        resume: Go on with the search in `output_folder`.
        state_folder: Folder of the ledger of looks.
        report_progress: Is told each stage and the share of the whole that is done.
    """

    model: Path
    data: str
    output_folder: Path
    state_folder: Path
    module: Any = None
    device: DeviceClass = DEFAULT_DEVICE_CLASS
    label: str | None = None
    features: tuple[str, ...] = ()
    group: str | None = None
    task: TaskKind | None = None
    metric: str | None = None
    preprocess: Preprocess | None = None
    training: TrainingRequest | None = None
    fold_preprocessing: bool = False
    time_limit_seconds: float = 120.0
    max_trials: int = 200
    seed: int = 0
    resume: bool = False
    report_progress: Callable[[str, float], None] = lambda _stage, _share: None


@dataclass(slots=True)
class CompressionRun:
    """The parts of one run, in the order in which they come to be."""

    request: CompressionRequest
    started_at: float
    loaded: LoadedModel
    model_path: Path
    dataset: Dataset
    metric: Metric
    budget: Budget
    target: MeasurementTarget
    machine: Machine
    folder: OutputFolder
    options: RuntimeOptions
    builder: CandidateBuilder
    search_space: SearchSpace
    layer_noise: dict[str, dict[str, float]]
    select_evaluator: SplitEvaluator
    certify_evaluator: SplitEvaluator
    fingerprint: str
    calibration_samples: int
    trials: list[SearchTrial] = field(default_factory=list)
    training: TrainingReport | None = None
    faster_options: FasterOptions | None = None

    def seconds_left(self) -> float:
        """Seconds until the time limit."""
        return self.request.time_limit_seconds - (time.monotonic() - self.started_at)

    @property
    def max_drop(self) -> float:
        """The limit on the drop; the budget of a run always has one."""
        assert self.budget.max_drop is not None  # noqa: S101 - compress_model fills it in
        return self.budget.max_drop
