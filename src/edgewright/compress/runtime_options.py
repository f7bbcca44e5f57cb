"""Runtime options under which the chosen model is faster on its target, and answers the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.compress.context import Run
from edgewright.compress.data.model_outputs import open_session, outputs_of
from edgewright.contract.compression_report import FasterOptions, Figures
from edgewright.contract.errors import CandidateError
from edgewright.profiling.runtime_tuning import best_options

__all__ = ["faster_options"]

# Below so many seconds the intervals are too wide to tell options apart.
_LEAST_S, _MOST_S, _SHARE = 2.0, 8.0, 0.3


def faster_options(run: Run, chosen: Figures, feed: Mapping[str, NDArray[Any]]) -> FasterOptions | None:
    """Return clearly faster options within the device class's threads and providers.

    The certificate is about answers under the usual options, so options under which any score on the certify split
    differs are not returned.

    Args:
        run: With the target.
        chosen: The model that was certified.
        feed: Its inputs for one inference.

    Returns:
        None if none are clearly faster, or if no time is left to find out.
    """
    seconds = min(_MOST_S, _SHARE * run.left())
    if seconds < _LEAST_S:
        return None
    path = Path(chosen.path)
    try:
        result = best_options(
            run.target,
            path,
            feed,
            seconds=seconds,
            seed=run.request.seed,
            threads_limit=run.options.threads,
            default=run.options,
        )
        # Another provider rounds otherwise: which ones there may be is the device class's to say.
        if result.gain is None or result.best.providers != run.options.providers:
            return None
        is_original = chosen.recipe is None
        fed = run.dataset if is_original else run.proof.fed
        contract = run.loaded.contract if is_original else run.proof.contract
        outputs = outputs_of(open_session(path, result.best), fed, run.proof.indices, contract)
    except CandidateError:
        return None
    count = len(run.proof.indices)
    usual = run.proof.reference if is_original else run.proof.outputs(path.read_bytes(), count)
    if not np.array_equal(run.proof.score(outputs, count), run.proof.score(usual, count)):
        return None
    return FasterOptions(msgspec.to_builtins(result.best), result.gain, len(result.tried))
