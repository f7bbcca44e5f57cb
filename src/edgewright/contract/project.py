"""The project file `edgewright.toml`: model, data, metric, device classes and their budgets, search limits, pilot.

Whatever is unknown, of the wrong type or unit, or impossible is refused with its place and what to write instead.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgewright.contract.device import DEFAULT_DEVICE_CLASS, Budget, DeviceClass
from edgewright.contract.errors import EdgewrightError, ProjectError
from edgewright.contract.place import Place
from edgewright.contract.preprocess import Preprocess
from edgewright.contract.sections import (
    DataSection,
    MetricSection,
    ModelSection,
    PilotSection,
    SearchSection,
    TrainingSection,
)
from edgewright.contract.units import Dimension, parse_quantity

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
                f"there is no device class {name!r}", remedy=f"Use one of {', '.join(known)}{_meant(name, known)}."
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


# Key in a budget: its field in the record, and what it measures.
_QUANTITIES: dict[str, tuple[str, Dimension]] = {
    "latency_p50": ("latency_p50_s", "time"),
    "latency_p95": ("latency_p95_s", "time"),
    "peak_memory": ("peak_memory_bytes", "size"),
    "size": ("size_bytes", "size"),
    "energy": ("energy_j", "energy"),
}
_EXAMPLES = {
    "latency_p50": '"5ms"',
    "latency_p95": '"8ms"',
    "peak_memory": '"20MB"',
    "size": '"200KB"',
    "energy": '"2mJ"',
    "watts_per_core": '"2.5W"',
    "time_limit": '"120s"',
}

Record = TypeVar("Record")


def load_project(path: Path) -> Project:
    """Read a project file; relative paths in it are resolved from its folder.

    Raises:
        ProjectError: The file cannot be read, or `parse_project` refuses it.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ProjectError(f"{path} does not exist", remedy="Write one with 'edgewright init'.") from error
    except UnicodeDecodeError as error:
        raise ProjectError(f"{path} is not UTF-8 text", remedy="Save it as UTF-8.") from error
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror}", remedy="Check its permissions.") from error
    project = parse_project(text, path.name)

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
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProjectError(f"{file} is not valid TOML: {error}", remedy="Mend that line.") from error
    whole = Place(file, text)
    _check_keys(tables, _ProjectText, whole)
    for key in ("model", "data"):
        if key not in tables:
            raise ProjectError(
                f"{file} has no section [{key}]",
                remedy='Add it with path = "model.onnx".' if key == "model" else 'Add it with source = "data.npz".',
            )
    sections = {
        field.encode_name: _read_section(tables[field.encode_name], field.type, whole / field.encode_name)
        for field in msgspec.structs.fields(_ProjectText)
        if field.encode_name in tables and field.encode_name not in ("device_class", "search")
    }
    if "search" in tables:
        sections["search"] = _search(tables["search"], whole / "search")
    if "device_class" in tables:
        sections["device_classes"] = _device_classes(tables["device_class"], whole / "device_class")
    return Project(**sections)


def _device_classes(entries: object, place: Place) -> tuple[DeviceClass, ...]:
    if not isinstance(entries, list):
        raise ProjectError(
            f"{place} must be a list of tables", remedy="Write [[device_class]] with two brackets on either side."
        )
    classes = tuple(_device_class(entry, place[number]) for number, entry in enumerate(entries))
    names = [entry.name for entry in classes]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ProjectError(
                f"{place[number] / 'name'} is {name!r} again", remedy="Give each class its own name."
            )
        if not re.fullmatch(r"[\w.-]+", name):
            raise ProjectError(
                f"{place[number] / 'name'} is {name!r}", remedy="Use letters, digits, '-', '_' and '.', no spaces."
            )
    return classes or (DEFAULT_DEVICE_CLASS,)


def _device_class(entry: object, place: Place) -> DeviceClass:
    written = _read_section(entry, _DeviceClassText, place)
    at = place / "budget"
    limits = {
        name: _quantity(value, dimension, at / key)
        for key, (name, dimension) in _QUANTITIES.items()
        if (value := getattr(written.budget, key)) is not None
    }
    budget = written.budget
    if budget.min_metric is not None and not math.isfinite(budget.min_metric):
        raise ProjectError(f"{at / 'min_metric'} is {budget.min_metric}", remedy="Give a finite number.")
    watts = _quantity(written.watts_per_core, "power", place / "watts_per_core")
    return _placed(
        place,
        lambda: DeviceClass(
            name=written.name,
            target=written.target,
            threads=written.threads,
            providers=written.providers,
            watts_per_core=watts,
            budget=_placed(
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


def _search(table: object, place: Place) -> SearchSection:
    written = _read_section(table, _SearchText, place)
    limit = _quantity(written.time_limit, "time", place / "time_limit")
    return _placed(place, lambda: SearchSection(time_limit_s=limit, seed=written.seed, trials=written.trials))


def _read_section(table: object, kind: Any, place: Place) -> Any:
    """Convert one table into its record, naming the place of whatever is wrong."""
    record = next((part for part in getattr(kind, "__args__", (kind,)) if part is not type(None)), kind)
    if not isinstance(table, dict):
        raise ProjectError(f"{place} must be a table", remedy=f"Write [{'.'.join(place.path)}] and its keys below.")
    _check_keys(table, record, place)
    try:
        return _placed(place, lambda: msgspec.convert(table, record))
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        where = place
        for key in re.findall(r"\.(\w+)", path):
            where = where / key
        if missing := re.search(r"missing required field `(\w+)`", reason):
            raise ProjectError(f"{where} has no {missing[1]}", remedy=f"Add {missing[1]} = …") from error
        wrong = f"{where}: {reason[0].lower()}{reason[1:].replace('`', '').replace(' | null', '')}"
        raise ProjectError(wrong, remedy=_remedy(where.path[-1], reason, record)) from error


def _remedy(key: str, reason: str, record: Any) -> str:
    if "`str" in reason and key in _EXAMPLES:
        return f"Write a number and a unit in quotes, such as {key} = {_EXAMPLES[key]}."
    kinds = [field.type for field in msgspec.structs.fields(record) if field.encode_name == key]
    choices = [str(word) for kind in kinds for word in re.findall(r"'(\w+)'", str(kind))]
    if choices:
        return f"Write one of {', '.join(choices)}."
    return "Write numbers without quotes, text in quotes, lists in brackets."


def _check_keys(table: Mapping[str, object], record: Any, place: Place) -> None:
    """Refuse keys that the record does not have, also in tables inside."""
    known = {field.encode_name: field.type for field in msgspec.structs.fields(record)}
    for key, value in table.items():
        if key not in known:
            raise ProjectError(
                f"{place / key}: unknown key {key!r}", remedy=f"Known here: {', '.join(known)}{_meant(key, known)}."
            )
        if isinstance(value, dict) and isinstance(known[key], type) and issubclass(known[key], _BudgetText):
            _check_keys(value, known[key], place / key)


def _quantity(text: str, dimension: Dimension, place: Place) -> float:
    return _placed(place, lambda: parse_quantity(text, dimension))


def _placed(place: Place, make: Callable[[], Record]) -> Record:
    """Call `make`; an error of this package gets the place in front."""
    try:
        return make()
    except EdgewrightError as error:
        raise ProjectError(_behind(place, error.message), remedy=error.remedy) from error


def _behind(place: Place, message: str) -> str:
    """Return the message behind the place, which an inner call may already have given."""
    return message if message.startswith(f"{place.file}: ") else f"{place}: {message}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
