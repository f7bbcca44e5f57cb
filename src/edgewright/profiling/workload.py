"""One thing to measure, and how it travels to a target."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from edgewright.contract.errors import ModelError, TargetError
from edgewright.profiling.target import FREE_SPACE_ADVICE
from edgewright.runtime.options import RuntimeOptions

__all__ = ["PackedWorkloads", "Workload", "external_files", "pack_workloads"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A model with the way it is run.

    Attributes:
        label: For messages and tables.
        model: ONNX file.
        options: Of the session.
        inputs: The inputs of one inference, by name.
    """

    label: str
    model: Path
    options: RuntimeOptions
    inputs: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class PackedWorkloads:
    """Subjects as the worker's request names them, and the files that must be there."""

    workloads: list[dict[str, Any]]
    files: dict[str, Path]


def external_files(model: Path) -> list[str]:
    """Return the paths, relative to the model, of the files that hold its external tensors.

    Raises:
        ModelError: The file is missing, is no ONNX model, or a file that it names is missing or outside its folder.
    """
    if not model.is_file():
        raise ModelError(f"{model} does not exist", remedy="Check the path of the model.")
    try:
        proto = onnx.load(str(model), load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{model} is truncated or is no ONNX model",
            remedy="Export it again; see the page on exporting to ONNX.",
        ) from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{model} holds no graph", remedy="Export it again; see the page on exporting to ONNX.")
    locations = {
        entry.value
        for tensor in _all_tensors(proto.graph)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in locations:
        path = PurePosixPath(location)
        if path.is_absolute() or ".." in path.parts:
            raise ModelError(
                f"{model} keeps tensors in {location!r}, outside its folder",
                remedy="Save it with its data beside it.",
            )
        if not (model.parent / path).is_file():
            raise ModelError(
                f"{model} keeps tensors in {location!r}, which is missing",
                remedy=f"Put {location} beside the model, or save the model as one file.",
            )
    return sorted(locations)


def _all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _all_tensors(inner)


@contextmanager
def pack_workloads(workloads: Sequence[Workload]) -> Iterator[PackedWorkloads]:
    """Write the feeds to files and list everything that the worker needs.

    Raises:
        ModelError: As `external_files`.
        TargetError: The disk here is full.
    """
    with tempfile.TemporaryDirectory(prefix="edgewright-feeds-") as folder:
        files: dict[str, Path] = {}
        entries = []
        for index, subject in enumerate(workloads):
            name = f"{index}/model.onnx"
            files[name] = subject.model
            for location in external_files(subject.model):
                files[f"{index}/{location}"] = subject.model.parent / location
            feed = Path(folder, f"{index}.npz")
            try:
                with feed.open("wb") as file:
                    np.savez(file, *subject.inputs.values(), allow_pickle=False)
            except OSError as error:
                raise TargetError(
                    f"the inputs could not be written here: {error}", remedy=FREE_SPACE_ADVICE
                ) from error
            files[f"{index}.npz"] = feed
            entries.append(
                {
                    "model": name,
                    "inputs_file": f"{index}.npz",
                    "input_names": list(subject.inputs),
                    "options": msgspec.to_builtins(subject.options),
                }
            )
        yield PackedWorkloads(entries, files)
