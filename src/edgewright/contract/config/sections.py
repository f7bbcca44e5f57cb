"""The sections of a project file as records: what each holds, and which values are possible."""

import re
from typing import Literal

import msgspec

from edgewright.contract.errors import ProjectError

__all__ = [
    "DataSection",
    "MetricSection",
    "ModelSection",
    "PilotSection",
    "SearchSection",
    "TaskKind",
    "TrainingSection",
]

TaskKind = Literal["classification", "regression", "multilabel", "reconstruction", "fidelity"]


class ModelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model.

    Attributes:
        path: Of the .onnx file, or module:function that makes a PyTorch module; relative paths start at the
            project file's folder.
    """

    path: str


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which samples, and what they mean.

    Attributes:
        source: .npz, .csv or .parquet file, folder of images, or module:function; relative to the project file.
        label: Column or array of labels; without it `y`, if present.
        features: Columns of a table, or arrays in the order of the model's inputs.
        group: Column or array that names each sample's subject, speaker or device.
        task: What the labels mean; found out if not stated.
    """

    source: str
    label: str | None = None
    features: tuple[str, ...] = ()
    group: str | None = None
    task: TaskKind | None = None


class MetricSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How answers are judged.

    Attributes:
        name: Of a built-in metric, or module:function; the task's own if not stated.
    """

    name: str | None = None


class TrainingSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to train with.

    Attributes:
        source: Training data, as in the data section; nothing of it may be in the data that is certified.
        teachers: .onnx files of further teachers beside the model itself.
        recipe: The model's own training, module:function; a sensible one if not stated.
        engine: Where networks are trained: local, ray, or ray://host:port.
        workers: Networks trained at the same time, one thread each; one per core if not stated.
        temperature: Divides the teachers' and the students' scores before they are compared.
        feature_loss_weight: Weight of the distance to what the model's last layer reads, added to the loss.
        relation_loss_weight: Weight of the distances and angles among samples, added to the loss.
        sparsity: Zeros for hardware that gains by them: a share of the weights, or N:M, N kept of every M.
    """

    source: str
    teachers: tuple[str, ...] = ()
    recipe: str | None = None
    engine: str = "local"
    workers: int | None = None
    temperature: float = 4.0
    feature_loss_weight: float = 0.0
    relation_loss_weight: float = 0.0
    sparsity: float | str | None = None

    def __post_init__(self) -> None:
        """Refuse what could not train."""
        if self.sparsity is not None and not _is_sparsity(self.sparsity):
            raise ProjectError(
                f"sparsity is {self.sparsity!r}, it must be a share from 0.05 to 0.95 or N:M with N below M, "
                "such as 2:4",
                remedy="Leave it out where the device gains nothing by zeros.",
            )
        for name, least in (("temperature", 0.1), ("feature_loss_weight", 0.0), ("relation_loss_weight", 0.0)):
            if not least <= getattr(self, name) <= 1000:
                raise ProjectError(
                    f"{name} is {getattr(self, name):g}, it must be {least:g} to 1000", remedy="Leave it out."
                )
        if self.workers is not None and self.workers < 1:
            raise ProjectError(
                f"workers is {self.workers}, it must be at least 1", remedy="Leave it out for one per core."
            )


def _is_sparsity(value: float | str) -> bool:
    if not isinstance(value, str):
        return 0.05 <= value <= 0.95
    found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", value)
    return found is not None and int(found[1]) < int(found[2])


class SearchSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and from where to search.

    Attributes:
        time_limit_seconds: Wall time, seconds.
        seed: Of every random choice.
        trials: Most candidates to build; None is no limit but time.
    """

    time_limit_seconds: float = 120.0
    seed: int = 0
    trials: int | None = None

    def __post_init__(self) -> None:
        """Refuse searches that could not begin."""
        if not 0 <= self.seed < 2**32:
            raise ProjectError(f"seed is {self.seed}, it must be 0 to 2^32 - 1", remedy="Any such number will do.")
        if self.trials is not None and self.trials < 1:
            raise ProjectError(
                f"trials is {self.trials}, it must be at least 1", remedy="Leave it out for no limit."
            )


class PilotSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a small pilot on real devices counts as a success.

    Attributes:
        devices: How many devices take part.
        days: How long.
        min_devices_in_budget: Least share of devices on which the model keeps its budget.
        max_failure_rate: Largest share of inferences that fail.
        max_rollbacks: Most devices that go back to the model they had before.
    """

    devices: int = 20
    days: int = 14
    min_devices_in_budget: float = 0.95
    max_failure_rate: float = 0.001
    max_rollbacks: int = 0

    def __post_init__(self) -> None:
        """Refuse pilots that could show nothing."""
        for name, least in (("devices", 1), ("days", 1), ("max_rollbacks", 0)):
            if getattr(self, name) < least:
                raise ProjectError(
                    f"{name} is {getattr(self, name)}, it must be at least {least}", remedy="Give a whole number."
                )
        for name in ("min_devices_in_budget", "max_failure_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ProjectError(
                    f"{name} is {getattr(self, name)}, it must lie between 0 and 1", remedy="It is a share."
                )
