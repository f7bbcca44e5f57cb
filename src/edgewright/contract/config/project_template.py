"""A project as the commented text of `edgewright.toml`: the way back from `project.parse_project`."""

import json
from collections.abc import Mapping, Sequence

from edgewright.contract.config.project import Project
from edgewright.contract.config.sections import TrainingSection
from edgewright.contract.device_class import Budget, DeviceClass
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.units import Dimension, format_quantity, parse_quantity

__all__ = ["project_text", "quantity_text"]

_BASES: dict[Dimension, str] = {"time": "s", "size": "B", "energy": "J", "power": "W"}

# Per line: key, an example for a key that is left out, what it means.
_Line = tuple[str, str | None, str, str]


def project_text(project: Project, remarks: Mapping[str, Sequence[str]] | None = None) -> str:
    """Write a project with a comment on every key; keys that are not set stand as commented examples.

    Args:
        project: To write.
        remarks: Sentences to put under a section's heading, by section: "model", "data", "budget", and so on.
    """
    said = remarks or {}
    parts = [
        "# What Edgewright needs to know about this project.\n"
        "# Quantities carry their unit: 5ms, 200KB (1000 bytes), 20MiB (1024² bytes), 2mJ, 2.5W.\n"
        "# Remove the '#' before a key to set it.",
        _section("[model]", said.get("model"), [("path", _string(project.model.path), "", "the ONNX file")]),
        _section(
            "[data]",
            said.get("data"),
            [
                (
                    "source",
                    _string(project.data.source),
                    "",
                    ".npz, .csv, .parquet, a folder of class folders of images, or module:function",
                ),
                ("label", _string(project.data.label), '"y"', "column or array of labels"),
                ("features", _strings(project.data.features), '["a", "b"]', "columns, or arrays in input order"),
                ("group", _string(project.data.group), '"subject"', "samples of one group are not independent"),
                ("task", _string(project.data.task), '"classification"', "found out from the labels if left out"),
            ],
        ),
        _section(
            "[metric]",
            said.get("metric"),
            [("name", _string(project.metric.name), '"accuracy"', "or module:function(labels, outputs)")],
        ),
        _preprocess(project.preprocess, said.get("preprocess")),
        _training(project.training, said.get("training")),
        *(_device_class(entry, said) for entry in project.device_classes),
        _section(
            "[search]",
            said.get("search"),
            [
                ("time_limit", quantity_text(project.search.time_limit_seconds, "time"), "", "wall time"),
                ("seed", str(project.search.seed), "", "same seed, same choices"),
                ("trials", _number(project.search.trials), "50", "most candidates to build"),
            ],
        ),
        _section(
            "[pilot]",
            said.get("pilot"),
            [
                ("devices", str(project.pilot.devices), "", "how many real devices take part"),
                ("days", str(project.pilot.days), "", "how long they run the new model"),
                (
                    "min_devices_in_budget",
                    repr(project.pilot.min_devices_in_budget),
                    "",
                    "success: share of devices that keep the budget above",
                ),
                (
                    "max_failure_rate",
                    repr(project.pilot.max_failure_rate),
                    "",
                    "success: share of inferences that may fail",
                ),
                ("max_rollbacks", str(project.pilot.max_rollbacks), "", "success: devices that may go back"),
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def quantity_text(value: float, dimension: Dimension) -> str:
    """Write a quantity so that reading it gives exactly the same number, in quotes.

    >>> quantity_text(0.005, "time"), quantity_text(200_000, "size"), quantity_text(1 / 3, "time")
    ('"5ms"', '"200KB"', '"0.3333333333333333s"')
    """
    number, unit = format_quantity(value, dimension).split(" ")
    short = f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}"
    exact = f"{value!r}{_BASES[dimension]}"
    return f'"{short}"' if parse_quantity(short, dimension) == value else f'"{exact}"'


def _preprocess(preprocess: Preprocess | None, remarks: Sequence[str] | None) -> str:
    known = preprocess or Preprocess()
    lines: list[_Line] = [
        ("dtype", _string(known.dtype), "", "of the raw samples: uint8, int16 or float32"),
        ("scale", repr(known.scale), "", "factor on each value; 0.00392156862745098 makes 0..255 into 0..1"),
        ("mean", _numbers(known.mean), "[0.485, 0.456, 0.406]", "subtracted after scaling"),
        ("std", _numbers(known.std), "[0.229, 0.224, 0.225]", "divisor after that"),
        ("layout", _string(known.layout), '"NCHW"', "NCHW moves the channels, last in raw samples, to the front"),
        ("colour", _string(known.colour), "", "order of channels that the model takes: RGB or BGR"),
        ("size", _numbers(known.size or ()), "[224, 224]", "height and width to which images are resized"),
    ]
    if preprocess is None:
        lines = [(key, None, value or example, meaning) for key, value, example, meaning in lines]
        return _section("# [preprocess]", remarks, lines)
    return _section("[preprocess]", remarks, lines)


def _training(training: TrainingSection | None, remarks: Sequence[str] | None) -> str:
    known = training or TrainingSection(source="train.npz")
    zeros = known.sparsity
    sparsity = _string(zeros) if zeros is None or isinstance(zeros, str) else repr(zeros)
    lines: list[_Line] = [
        ("source", _string(known.source), "", "what may be trained on; nothing of it may be in [data]"),
        ("teachers", _strings(known.teachers), '["large.onnx"]', "further teachers beside the model itself"),
        ("recipe", _string(known.recipe), '"mytraining:recipe"', "the model's own training"),
        ("engine", _string(known.engine), "", '"local", "ray", or "ray://host:port"'),
        ("workers", _number(known.workers), "2", "networks trained at the same time; one per core if left out"),
        ("temperature", repr(known.temperature), "", "divides teachers' and students' scores before comparing"),
        (
            "feature_loss_weight",
            repr(known.feature_loss_weight),
            "",
            "weight of the distance to what the model's last layer reads",
        ),
        (
            "relation_loss_weight",
            repr(known.relation_loss_weight),
            "",
            "weight of the distances and angles among samples",
        ),
        ("sparsity", sparsity, '"2:4"', "zeros for hardware that gains by them: a share, or N kept of every M"),
    ]
    if training is None:
        lines = [(key, None, value or example, meaning) for key, value, example, meaning in lines]
        return _section("# [training]", remarks, lines)
    return _section("[training]", remarks, lines)


def _device_class(entry: DeviceClass, remarks: Mapping[str, Sequence[str]]) -> str:
    budget: Budget = entry.budget
    return "\n\n".join(
        (
            _section(
                "[[device_class]]",
                remarks.get("device_class"),
                [
                    ("name", _string(entry.name), "", "for --device-class"),
                    (
                        "target",
                        _string(entry.target),
                        "",
                        '"local", or "ssh://user@host" or "bench:NAME" to measure there',
                    ),
                    ("threads", str(entry.threads), "", "threads that one inference may use"),
                    ("providers", _strings(entry.providers), "", "execution providers, best first"),
                    (
                        "watts_per_core",
                        quantity_text(entry.watts_per_core, "power"),
                        "",
                        "for the energy estimate where there is no sensor",
                    ),
                ],
            ),
            _section(
                "[device_class.budget]",
                remarks.get("budget"),
                [
                    (
                        "latency_p50",
                        _quantity(budget.latency_p50_seconds, "time"),
                        '"5ms"',
                        "median of one inference",
                    ),
                    ("latency_p95", _quantity(budget.latency_p95_seconds, "time"), '"8ms"', "95th percentile"),
                    (
                        "peak_memory",
                        _quantity(budget.peak_memory_bytes, "size"),
                        '"20MB"',
                        "beyond the runtime's own",
                    ),
                    ("size", _quantity(budget.size_bytes, "size"), '"200KB"', "of the artifact"),
                    ("energy", _quantity(budget.energy_j, "energy"), '"2mJ"', "per inference"),
                    ("min_metric", _number(budget.min_metric), "0.9", "least value of the metric"),
                    ("max_drop", _number(budget.max_drop), "0.01", "largest loss; 0.01 is one percentage point"),
                    ("confidence", repr(budget.confidence), "", "with which that must be certified"),
                ],
            ),
        )
    )


def _section(heading: str, remarks: Sequence[str] | None, lines: Sequence[_Line]) -> str:
    written = [heading, *(f"# {_printable(remark)}" for remark in remarks or ())]
    for key, value, example, meaning in lines:
        written.append(
            f"{key} = {value}  # {meaning}" if value is not None else f"# {key} = {example}  # {meaning}"
        )
    return "\n".join(written)


def _printable(remark: str) -> str:
    """Return one line; remarks may quote names from the data, which may hold anything."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in remark).split())


def _string(value: str | None) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _strings(values: Sequence[str]) -> str | None:
    return f"[{', '.join(_string(value) or '' for value in values)}]" if values else None


def _numbers(values: Sequence[float]) -> str | None:
    return f"[{', '.join(map(repr, values))}]" if values else None


def _number(value: float | None) -> str | None:
    return None if value is None else repr(value)


def _quantity(value: float | None, dimension: Dimension) -> str | None:
    return None if value is None else quantity_text(value, dimension)
