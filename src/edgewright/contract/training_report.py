"""What training found: learning curves, and what pruning, distillation and trained integers each contributed."""

from collections.abc import Sequence
from typing import Literal

import msgspec

__all__ = ["AblationResult", "CurvePoint", "NetworkOrigin", "TrainedNetwork", "TrainingReport", "sparse_networks"]

NetworkOrigin = Literal["fresh", "inherited", "pruned", "sparse", "continued", "integers"]


class CurvePoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One epoch.

    Attributes:
        epoch: Passes that were complete; 0 is the start, before any training.
        training_rows: Training rows shown so far, repetitions counted.
        train_loss: Mean over the epoch's rows; None at the start.
        validation_loss: Mean over the validation rows, of labels or of the teacher's answers.
        validation_metric: Higher is better: share of right answers, R², or agreement with the teacher.
        learning_rate: Learning rate at the epoch's end.
        elapsed_seconds: Wall time since the training began, without pauses between resumed parts.
        note: What happened besides, for people.
    """

    epoch: int
    training_rows: int
    train_loss: float | None
    validation_loss: float
    validation_metric: float
    learning_rate: float
    elapsed_seconds: float
    note: str = ""


class TrainedNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network that was trained, whether or not anything came of it.

    Attributes:
        network_sha256: sha256 of its ONNX file; "" if training failed.
        title: What it is, in a few words.
        origin: `fresh` weights; `inherited` from the original where shapes allow; `pruned` from the original;
            `sparse`, with zeros that stay; `continued` in full precision; `integers`, quantisation-aware.
        parent_sha256: sha256 of the network that it started from.
        search_round: Of the search; later rounds train fewer networks for longer.
        training_rows: Training rows that it was shown, repetitions counted.
        distilled: Whether it learned from the teachers' answers.
        parameters: Weights of its layers.
        latency_ratio: Of its 8-bit form, measured against the original on the target.
        validation_metric: Best on the rows of the training data that were kept back.
        drop: Of the metric against the original on the select split, before any rounding.
        predicted_bound: Bound of the drop that the certify split would give at these rates.
        training_seconds: Of training.
        learning_curve: One point per epoch.
        error: Why nothing came of it; "" otherwise.
    """

    network_sha256: str
    title: str
    origin: NetworkOrigin
    parent_sha256: str
    search_round: int
    training_rows: int
    distilled: bool
    parameters: int
    latency_ratio: float | None
    validation_metric: float | None
    drop: float | None
    training_seconds: float
    learning_curve: tuple[CurvePoint, ...] = ()
    error: str = ""
    predicted_bound: float | None = None


def sparse_networks(networks: Sequence[TrainedNetwork]) -> frozenset[str]:
    """Return the digests of networks with zeros that stay: those made sparse, and what was trained from them."""
    sparse = {
        network.network_sha256 for network in networks if network.origin == "sparse" and network.network_sha256
    }
    return frozenset(sparse | {network.network_sha256 for network in networks if network.parent_sha256 in sparse})


class AblationResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one step gave: two networks or trials of this search that differ in that step alone.

    Attributes:
        step: `distillation`, `pruning`, `sparsity`, or `training of integers`.
        compared_on: What it was tried on, in a few words.
        measured_on: `validation rows` of the training data, or the `select split`.
        metric_without: Without the step.
        metric_with: With it.
        size_ratio: Size with the step relative to without it, None if it does not change it.
        latency_ratio: Latency likewise.
    """

    step: str
    compared_on: str
    measured_on: str
    metric_without: float
    metric_with: float
    size_ratio: float | None = None
    latency_ratio: float | None = None


class TrainingReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What training did in one run of `compress`.

    Attributes:
        engine: Where networks were trained.
        workers: Networks trained at the same time.
        total_seconds: Wall time of training and of what prepares it.
        training_rows: Training rows.
        validation_rows: Rows kept back from training to compare networks by.
        augmentations: What the rows were varied by.
        notes: What was found out, assumed or left out, in sentences for people.
        networks: All that were trained, in the order of the search.
        ablations: What the steps gave, from the trials themselves.
    """

    engine: str
    workers: int
    total_seconds: float
    training_rows: int
    validation_rows: int
    augmentations: tuple[str, ...]
    notes: tuple[str, ...]
    networks: tuple[TrainedNetwork, ...]
    ablations: tuple[AblationResult, ...]
