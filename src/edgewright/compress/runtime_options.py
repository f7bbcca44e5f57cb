"""Runtime options under which the chosen model is faster on its target, and answers the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.compress.context import CompressionRun
from edgewright.compress.data.model_outputs import model_outputs, open_cpu_session
from edgewright.contract.compression_report import FasterOptions, ModelFigures
from edgewright.contract.errors import CandidateError
from edgewright.profiling.runtime_tuning import find_best_options

__all__ = ["find_faster_options"]

# Below so many seconds the intervals are too wide to tell options apart.
_MIN_SECONDS, _MAX_SECONDS, _TIME_SHARE = 2.0, 8.0, 0.3


def find_faster_options(
    run: CompressionRun, chosen: ModelFigures, inputs: Mapping[str, NDArray[Any]]
) -> FasterOptions | None:
    """Return clearly faster options within the device class's threads and providers.

    The certificate is about answers under the usual options, so options under which any score on the certify split
    differs are not returned.

    Args:
        run: With the target.
        chosen: The model that was certified.
        inputs: Its inputs for one inference.

    Returns:
        None if none are clearly faster, or if no time is left to find out.
    """
    seconds = min(_MAX_SECONDS, _TIME_SHARE * run.seconds_left())
    if seconds < _MIN_SECONDS:
        return None
    path = Path(chosen.path)
    try:
        result = find_best_options(
            run.target,
            path,
            inputs,
            seconds=seconds,
            seed=run.request.seed,
            threads_limit=run.options.threads,
            default=run.options,
        )
        # Another provider rounds otherwise: which ones there may be is the device class's to say.
        if result.gain is None or result.best.providers != run.options.providers:
            return None
        is_original = chosen.recipe is None
        fed = run.dataset if is_original else run.certify_evaluator.model_dataset
        contract = run.loaded.contract if is_original else run.certify_evaluator.contract
        outputs = model_outputs(open_cpu_session(path, result.best), fed, run.certify_evaluator.indices, contract)
    except CandidateError:
        return None
    count = len(run.certify_evaluator.indices)
    usual = (
        run.certify_evaluator.reference if is_original else run.certify_evaluator.outputs(path.read_bytes(), count)
    )
    if not np.array_equal(run.certify_evaluator.score(outputs, count), run.certify_evaluator.score(usual, count)):
        return None
    return FasterOptions(msgspec.to_builtins(result.best), result.gain, len(result.trials))
