"""Faster runtime options are given only if they are clearly faster and no answer is scored otherwise."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.compress import runtime_options
from edgewright.compress.context import CompressionRun
from edgewright.compress.runtime_options import find_faster_options
from edgewright.contract.compression_report import ModelFigures
from edgewright.contract.errors import CandidateError
from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.profiling.runtime_tuning import OptionsSearchResult
from edgewright.runtime.options import RuntimeOptions

USUAL = RuntimeOptions(threads=2)
FASTER = RuntimeOptions(threads=1, optimization="basic")
GAIN = Measurement(
    0.7, "ratio", MeasurementOrigin(kind="measured", machine="any", method="given"), low=0.6, high=0.8
)


def result_of(best: RuntimeOptions, gain: Measurement | None) -> OptionsSearchResult:
    return OptionsSearchResult(default=USUAL, best=best, gain=gain, trials=())


Tried = Callable[..., Any]


@pytest.fixture
def tried(
    digits_model: Path, digits: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Tried:
    """Look for options of the digits model, with what measuring them gives and what candidates score."""
    answers = [np.zeros((8, 10))]

    def look(result: OptionsSearchResult | Exception, *, left: float = 30.0, changes: bool = False) -> Any:
        def measured(*_: Any, **__: Any) -> OptionsSearchResult:
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(runtime_options, "find_best_options", measured)
        monkeypatch.setattr(runtime_options, "model_outputs", lambda *_: ["others"])
        scores = {"others": np.ones(8) - changes * (np.arange(8) == 3)}
        proof = SimpleNamespace(
            indices=np.arange(8),
            model_dataset=None,
            contract=None,
            reference=answers,
            outputs=lambda _model, _count: ["usual"],
            score=lambda outputs, _count: scores.get(outputs[0], np.ones(8)),
        )
        run = SimpleNamespace(
            options=USUAL,
            target=None,
            certify_evaluator=proof,
            seconds_left=lambda: left,
            request=SimpleNamespace(seed=0),
        )
        figures = SimpleNamespace(path=str(digits_model), recipe=[])
        return find_faster_options(cast(CompressionRun, run), cast(ModelFigures, figures), {})

    return look


def test_clearly_faster_options_with_the_same_scores_are_given(tried: Tried) -> None:
    found = tried(result_of(FASTER, GAIN))
    assert msgspec.convert(found.options, RuntimeOptions) == FASTER
    assert found.latency_ratio == GAIN


NOT_GIVEN: dict[str, tuple[OptionsSearchResult | Exception, dict[str, Any]]] = {
    "not faster": (result_of(USUAL, None), {}),
    "one answer scores otherwise": (result_of(FASTER, GAIN), {"changes": True}),
    "another provider": (result_of(RuntimeOptions(providers=("OtherExecutionProvider",)), GAIN), {}),
    "no time": (result_of(FASTER, GAIN), {"left": 3.0}),
    "it does not run": (CandidateError("no kernel", remedy=""), {}),
}


@pytest.mark.parametrize(("result", "more"), NOT_GIVEN.values(), ids=NOT_GIVEN)
def test_otherwise_none_are_given(
    tried: Tried, result: OptionsSearchResult | Exception, more: dict[str, Any]
) -> None:
    assert tried(result, **more) is None


def test_the_runtime_is_asked_with_the_options_that_were_found(
    monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    opened: list[RuntimeOptions] = []
    monkeypatch.setattr(runtime_options, "open_cpu_session", lambda _path, options: opened.append(options))
    tried(result_of(FASTER, GAIN))
    assert opened == [FASTER]
