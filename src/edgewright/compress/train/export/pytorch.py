"""A PyTorch module as an ONNX graph: a free batch axis, its own names, BatchNormalization left standing."""

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.compress.model.graph import Graph, session_bytes
from edgewright.compress.output_folder import write_file
from edgewright.compress.train.export.static_shapes import fix_shapes
from edgewright.contract.errors import CandidateError, InputError, ModelError

__all__ = ["EXPORT_OPSET", "export_torch_module"]

EXPORT_OPSET = 20

_KEPT_NAME = "edgewright.kept"  # a domain that the exporter's folding does not know, and so leaves alone


def export_torch_module(
    module: nn.Module, examples: Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]], path: Path | None = None
) -> onnx.ModelProto:
    """Return the module as an ONNX graph whose answers are the module's.

    Args:
        module: Taken in evaluation mode.
        examples: Inputs of real samples [n, ...], n >= 1, in the order of `forward`'s arguments or by their names.
        path: Where to write the graph as well.

    Returns:
        A graph with a free batch axis, or with a batch of one where the module fixes it. Inputs are named as
        `forward`'s arguments, outputs as the keys of a returned dict, else "output" or "output_0", ...

    Raises:
        InputError: The module does not take the examples.
        ModelError: An operation has no ONNX form, or the graph answers otherwise; the message names it.
    """
    module = module.eval()
    names, arrays = _named(module, examples)
    given = tuple(torch.from_numpy(np.ascontiguousarray(array[:8])) for array in arrays)
    wanted = _answers(module, given)
    two = tuple(part[:2] if len(part) > 1 else torch.cat([part, part]) for part in given)
    one = tuple(part[:1] for part in given)
    outputs = list(wanted)
    attempts: tuple[Callable[[], onnx.ModelProto], ...] = (
        lambda: _captured(module, two, names, outputs, free=True),
        lambda: _captured(module, one, names, outputs, free=False),
        lambda: _traced(module, two, names, outputs),
    )
    first: Exception | None = None
    for attempt in attempts:
        try:
            with _silence_exporter():
                graph = _clean_exported(attempt(), names, given)
            _check(graph, module, names, given)
        except Exception as error:  # exporters raise what they like
            first = first or error
            if _line(error):  # control flow that follows the data: another attempt would freeze one branch
                break
        else:
            if path is not None:
                write_file(path, graph.SerializeToString())
            return graph
    assert first is not None  # noqa: S101 # every attempt that does not return has raised
    raise ModelError(
        f"the module cannot be exported to ONNX: {_reason(first)}",
        remedy="Rewrite that part with other operations, or export the module yourself and give the ONNX file: "
        "compressing works without the module.",
    ) from first


def _named(
    module: nn.Module, examples: Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]]
) -> tuple[list[str], list[NDArray[Any]]]:
    """Return the names of `forward`'s arguments and the arrays in their order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    arguments = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]
    arrays = list(examples.values() if isinstance(examples, Mapping) else examples)
    if isinstance(examples, Mapping) and set(examples) <= set(arguments):
        arrays = [examples[name] for name in arguments if name in examples]
        arguments = [name for name in arguments if name in examples]
    if not arrays or any(array.ndim == 0 or len(array) == 0 for array in arrays):
        raise InputError("there is no sample to export the module with", remedy="Give data of one sample or more.")
    names = [arguments[i] if i < len(arguments) else f"input_{i}" for i in range(len(arrays))]
    return names, arrays


def _answers(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the module's outputs by name."""
    try:
        with torch.no_grad():
            result = module(*inputs)
    except Exception as error:  # the user's code may raise anything
        shapes = ", ".join(f"{list(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in inputs)
        raise InputError(
            f"the module raised {type(error).__name__} for inputs of {shapes}: {_first_line(error)}",
            remedy="Give data in the form that its forward takes.",
        ) from error
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        flat = {str(name): value for name, value in result.items()}
    elif isinstance(result, list | tuple):
        flat = {f"output_{i}": value for i, value in enumerate(result)}
    else:
        flat = {}
    if not flat or not all(isinstance(value, Tensor) for value in flat.values()):
        raise InputError(
            f"the module's forward returns {type(result).__name__}",
            remedy="Return a tensor, or a tuple or dict of tensors.",
        )
    return flat


def _captured(
    module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str], *, free: bool
) -> onnx.ModelProto:
    """Export by torch.export."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        opset_version=EXPORT_OPSET,
        input_names=names,
        output_names=outputs,
        dynamic_shapes=tuple({0: batch} for _ in inputs) if free else None,
        verbose=False,
        optimize=False,
    )
    if program is None:
        raise CandidateError("the exporter returned nothing", remedy="Export the module yourself.")
    # The exporter's own folding puts BatchNormalization into the convolution before it; training wants it there.
    for node in program.model.graph.all_nodes():
        if node.op_type == "BatchNormalization":
            node.domain = _KEPT_NAME
    program.optimize()
    for node in program.model.graph.all_nodes():
        if node.domain == _KEPT_NAME:
            node.domain = ""
    return program.model_proto


def _traced(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str]) -> onnx.ModelProto:
    """Export by TorchScript, which knows some operations that torch.export does not."""
    stream = BytesIO()
    # A branch would be frozen silently.
    warnings.filterwarnings("error", category=torch.jit.TracerWarning)  # type: ignore[attr-defined] # not in __all__
    torch.onnx.export(
        module,
        inputs,
        stream,  # type: ignore[arg-type] # a stream works and is not in the annotation
        dynamo=False,
        opset_version=EXPORT_OPSET,
        input_names=names,
        output_names=outputs,
        dynamic_axes={name: {0: "batch"} for name in (*names, *outputs)},
        training=torch.onnx.TrainingMode.EVAL,
    )
    return onnx.load_from_string(stream.getvalue())


def _clean_exported(model: onnx.ModelProto, names: Sequence[str], given: Sequence[Tensor]) -> onnx.ModelProto:
    """Take out the exporter's notes about Python sources and the shapes that it computes."""
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "module"
    del model.metadata_props[:], model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    if not _is_free(model):
        return Graph(model).to_model()
    small, large = (
        {name: _rows(part, count).numpy() for name, part in zip(names, given, strict=True)} for count in (2, 3)
    )
    return Graph(fix_shapes(model, small, large)).to_model()


def _check(model: onnx.ModelProto, module: nn.Module, names: Sequence[str], given: Sequence[Tensor]) -> None:
    """Raise CandidateError unless the graph answers as the module, for one sample and for several."""
    session = session_bytes(model)
    for count in (1, 5) if _is_free(model) else (1,):
        inputs = [_rows(part, count) for part in given]
        feed = {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
        feed = {value.name: feed[value.name] for value in session.get_inputs()}
        for (name, right), answer in zip(_answers(module, inputs).items(), session.run(None, feed), strict=True):
            expected = right.numpy()
            largest = float(np.abs(expected).max(initial=1e-3))
            if answer.shape != expected.shape or not np.allclose(answer, expected, rtol=1e-3, atol=1e-4 * largest):
                raise CandidateError(
                    f"the exported graph gives another {name!r} than the module for {count} samples",
                    remedy="Look for randomness, or for state that forward keeps.",
                )


def _rows(part: Tensor, count: int) -> Tensor:
    """Return this many rows, from the last backwards and again from there."""
    return part[[-1 - i % len(part) for i in range(count)]].contiguous()


def _is_free(model: onnx.ModelProto) -> bool:
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input]
    return all(shape and not shape[0].HasField("dim_value") for shape in shapes)


def _reason(error: Exception) -> str:
    """Return the operation or the Python line that an exporter failed at."""
    if isinstance(error, CandidateError):
        return error.message
    text = _plain(error)
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text):
        return f"the operation {found[1]} has no ONNX form"
    if line := _line(error):
        return f"what it does depends on values in {line}"
    cause = error
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    return f"{type(cause).__name__}: {_first_line(cause)}"


def _line(error: Exception) -> str:
    """Return the line where Python would have to look at a value, "" if it is not that."""
    text = _plain(error)
    if "data-dependent" not in text and "DataDependent" not in text:
        return ""
    if found := re.search(r'raised this error:\s+File "([^"]+)", line (\d+), in \w+\n\s*(.+)', text):
        return f"{Path(found[1]).name}, line {found[2]}: {found[3].strip()}"
    return "its forward"


def _plain(error: BaseException) -> str:
    parts = []
    link: BaseException | None = error
    while link is not None:
        parts.append(str(link))
        link = link.__cause__
    return re.sub(r"\x1b\[\d+m", "", "\n".join(parts))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["without a message"])[0][:300]


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Keep the exporter's remarks off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
