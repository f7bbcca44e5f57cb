"""What a model answers to samples: run on the CPU, stacked over samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgewright.compress.data.dataset import Dataset
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature
from edgewright.runtime.options import RuntimeOptions, session_options

__all__ = ["Runnable", "model_outputs", "open_cpu_session"]

Runnable: TypeAlias = ort.InferenceSession | onnx.ModelProto | bytes | Path


def open_cpu_session(model: Runnable, options: RuntimeOptions | None = None) -> ort.InferenceSession:
    """Return a session for a graph, its bytes or its file; a session is returned as it is.

    Raises:
        CandidateError: The runtime cannot load it.
    """
    if isinstance(model, ort.InferenceSession):
        return model
    options = options or RuntimeOptions()
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    try:
        # Without its fallback onnxruntime raises at once instead of printing to stdout and trying again.
        return ort.InferenceSession(
            source, session_options(options), providers=list(options.providers), enable_fallback=0
        )
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise CandidateError(
            f"the runtime cannot load the model: {_first_line(error)}", remedy="Leave this candidate out."
        ) from error


def model_outputs(
    model: Runnable,
    dataset: Dataset,
    indices: Sequence[int] | NDArray[np.intp],
    contract: ModelSignature,
    *,
    batch: int = 64,
) -> list[NDArray[Any]]:
    """Run the samples at `indices` and stack each output over them.

    Samples go in batches where the model takes them *and* answers a batch as it answers single samples; a model
    that quantises its activations on the fly does not, since its scale would depend on the whole batch.

    Returns:
        Per output [n, ...] without the batch axis of single inferences: an output [1, 10] becomes [n, 10].

    Raises:
        CandidateError: Running failed, or an output changes its shape from sample to sample.
    """
    session = open_cpu_session(model)
    chosen = np.asarray(indices, np.intp)
    if batch > 1 and len(chosen) > 1 and contract.has_free_batch_axis:
        together = _batched(session, dataset, chosen, contract, batch)
        if together is not None:
            return together
    singles = [_run(session, feed) for feed in dataset.batches(chosen, contract, batch=1)]
    return [_stacked([single[place] for single in singles], name) for place, name in enumerate(_names(session))]


def _batched(
    session: ort.InferenceSession, dataset: Dataset, chosen: NDArray[np.intp], contract: ModelSignature, batch: int
) -> list[NDArray[Any]] | None:
    """Return the outputs of batches, or None where they are not those of single samples."""
    parts: list[list[NDArray[Any]]] = []
    start = 0
    for feed in dataset.batches(chosen, contract, batch):
        size = len(next(iter(feed.values())))
        try:
            outputs = _run(session, feed)
        except CandidateError:
            return None
        if any(output.ndim == 0 or len(output) != size for output in outputs):
            return None
        if start == 0:
            for place in {0, size - 1}:
                single = _run(session, dataset.inputs_of(int(chosen[place])))
                if not all(
                    _outputs_match(one, many[place : place + 1]) for one, many in zip(single, outputs, strict=True)
                ):
                    return None
        parts.append(outputs)
        start += size
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def _outputs_match(single: NDArray[Any], together: NDArray[Any]) -> bool:
    if single.shape != together.shape:
        return False
    if single.dtype.kind != "f":
        return bool((single == together).all())
    tolerance = 1e-4 * max(float(np.abs(single).max(initial=0)), 1e-6)
    return bool(np.allclose(single, together, rtol=0, atol=tolerance, equal_nan=True))


def _run(session: ort.InferenceSession, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    try:
        return [np.asarray(output) for output in session.run(None, inputs)]
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise CandidateError(
            f"running the model failed: {_first_line(error)}", remedy="Check that the data fits the model."
        ) from error


def _stacked(singles: list[NDArray[Any]], name: str) -> NDArray[Any]:
    shapes = {single.shape for single in singles}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise CandidateError(
            f"output {name!r} changes its shape from sample to sample: {list(first)} and {list(second)}",
            remedy="Cut the graph before the operator that makes it so, such as non-maximum suppression.",
        )
    has_batch_axis = singles[0].ndim > 0 and len(singles[0]) == 1
    return np.concatenate(singles) if has_batch_axis else np.stack(singles)


def _names(session: ort.InferenceSession) -> list[str]:
    return [output.name for output in session.get_outputs()]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
