"""The project file `edgewright.toml`: model, data, metric, device classes and their budgets, search limits, pilot.

What it says of a running fleet is read by `fleet.py`, which needs none of these.

Whatever is unknown, of the wrong type or unit, or impossible is refused with its place and what to write instead.
"""

import math
import re
from pathlib import Path

import msgspec

from edgewright.contract.config.fleet import FLEET_SECTIONS, read_fleet
from edgewright.contract.config.sections import (
    DataSection,
    MetricSection,
    ModelSection,
    PilotSection,
    SearchSection,
    TrainingSection,
)
from edgewright.contract.config.toml_location import TomlLocation
from edgewright.contract.config.toml_reader import (
    did_you_mean,
    parse_tables,
    read_quantity,
    read_table_list,
    read_text,
    read_toml_table,
    refuse_unknown_keys,
    with_location,
)
from edgewright.contract.device_class import DEFAULT_DEVICE_CLASS, Budget, DeviceClass
from edgewright.contract.errors import ProjectError
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.units import Dimension

__all__ = ["Project", "load_project", "parse_project"]


class Project(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A project file, checked."""

    model: ModelSection
    data: DataSection
    metric: MetricSection = MetricSection()
    preprocess: Preprocess | None = None
    training: TrainingSection | None = None
    device_classes: tuple[DeviceClass, ...] = (DEFAULT_DEVICE_CLASS,)
    search: SearchSection = SearchSection()
    pilot: PilotSection = PilotSection()

    def device_class(self, name: str) -> DeviceClass:
        """Return a device class; "default" always exists.

        Raises:
            ProjectError: There is none of that name.
        """
        known = {entry.name: entry for entry in (DEFAULT_DEVICE_CLASS, *self.device_classes)}
        if name not in known:
            raise ProjectError(
                f"there is no device class {name!r}",
                remedy=f"Use one of {', '.join(known)}{did_you_mean(name, known)}.",
            )
        return known[name]


class _BudgetText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    latency_p50: str | None = None
    latency_p95: str | None = None
    peak_memory: str | None = None
    size: str | None = None
    energy: str | None = None
    min_metric: float | None = None
    max_drop: float | None = None
    confidence: float = 0.95


class _DeviceClassText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    target: str = "local"
    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    watts_per_core: str = "2.5W"
    budget: _BudgetText = _BudgetText()


class _SearchText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    time_limit: str = "120s"
    seed: int = 0
    trials: int | None = None


class _ProjectText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's tables; each is checked by itself so that errors name their place."""

    model: ModelSection
    data: DataSection
    metric: MetricSection = MetricSection()
    preprocess: Preprocess | None = None
    training: TrainingSection | None = None
    device_class: tuple[_DeviceClassText, ...] = ()
    search: _SearchText = _SearchText()
    pilot: PilotSection = PilotSection()
    # Read by `read_fleet`.
    fleet: object = None
    alert: object = None
    action: object = None
    notify: object = None
    retraining: object = None


# Key in a budget: its field in the record, and what it measures.
_QUANTITIES: dict[str, tuple[str, Dimension]] = {
    "latency_p50": ("latency_p50_seconds", "time"),
    "latency_p95": ("latency_p95_seconds", "time"),
    "peak_memory": ("peak_memory_bytes", "size"),
    "size": ("size_bytes", "size"),
    "energy": ("energy_j", "energy"),
}


def load_project(path: Path) -> Project:
    """Read a project file; relative paths in it are resolved from its folder.

    Raises:
        ProjectError: The file cannot be read, or `parse_project` refuses it.
    """
    project = parse_project(read_text(path), path.name)

    def found(source: str) -> str:
        return source if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) else str(path.parent / source)

    training = project.training
    if training is not None:
        training = msgspec.structs.replace(
            training, source=found(training.source), teachers=tuple(map(found, training.teachers))
        )
    return msgspec.structs.replace(
        project,
        model=ModelSection(path=found(project.model.path)),
        data=msgspec.structs.replace(project.data, source=found(project.data.source)),
        training=training,
    )


def parse_project(text: str, file: str = "edgewright.toml") -> Project:
    r"""Check the text of a project file.

    Args:
        text: TOML.
        file: Its name, for messages.

    Raises:
        ProjectError: Not TOML, an unknown key, a wrong type or unit, an impossible value; the message gives the
            place and the line.

    >>> project = parse_project('model.path = "m.onnx"\ndata.source = "d.npz"')
    >>> project.device_class("default").budget.confidence
    0.95
    """
    tables, whole = parse_tables(text, file)
    refuse_unknown_keys(tables, _ProjectText, whole)
    for key in ("model", "data"):
        if key not in tables:
            raise ProjectError(
                f"{file} has no section [{key}]",
                remedy='Add it with path = "model.onnx".' if key == "model" else 'Add it with source = "data.npz".',
            )
    sections = {
        field.encode_name: read_toml_table(tables[field.encode_name], field.type, whole / field.encode_name)
        for field in msgspec.structs.fields(_ProjectText)
        if field.encode_name in tables and field.encode_name not in ("device_class", "search", *FLEET_SECTIONS)
    }
    # What the control plane reads is checked with the rest, so that a mistake in it is found early.
    read_fleet(tables, whole)
    if "search" in tables:
        sections["search"] = _search(tables["search"], whole / "search")
    if "device_class" in tables:
        sections["device_classes"] = _device_classes(tables["device_class"], whole / "device_class")
    return Project(**sections)


def _device_classes(entries: object, place: TomlLocation) -> tuple[DeviceClass, ...]:
    classes = read_table_list(entries, place, _device_class, of="name")
    for number, entry in enumerate(classes):
        if not re.fullmatch(r"[\w.-]+", entry.name):
            raise ProjectError(
                f"{place[number] / 'name'} is {entry.name!r}",
                remedy="Use letters, digits, '-', '_' and '.', no spaces.",
            )
    return classes or (DEFAULT_DEVICE_CLASS,)


def _device_class(entry: object, place: TomlLocation) -> DeviceClass:
    written = read_toml_table(entry, _DeviceClassText, place)
    at = place / "budget"
    limits = {
        name: read_quantity(value, dimension, at / key)
        for key, (name, dimension) in _QUANTITIES.items()
        if (value := getattr(written.budget, key)) is not None
    }
    budget = written.budget
    if budget.min_metric is not None and not math.isfinite(budget.min_metric):
        raise ProjectError(f"{at / 'min_metric'} is {budget.min_metric}", remedy="Give a finite number.")
    watts = read_quantity(written.watts_per_core, "power", place / "watts_per_core")
    return with_location(
        place,
        lambda: DeviceClass(
            name=written.name,
            target=written.target,
            threads=written.threads,
            providers=written.providers,
            watts_per_core=watts,
            budget=with_location(
                at,
                lambda: Budget(
                    **limits,
                    min_metric=budget.min_metric,
                    max_drop=budget.max_drop,
                    confidence=budget.confidence,
                ),
            ),
        ),
    )


def _search(table: object, place: TomlLocation) -> SearchSection:
    written = read_toml_table(table, _SearchText, place)
    limit = read_quantity(written.time_limit, "time", place / "time_limit")
    return with_location(
        place, lambda: SearchSection(time_limit_seconds=limit, seed=written.seed, trials=written.trials)
    )
