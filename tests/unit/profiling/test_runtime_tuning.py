from collections.abc import Callable

import pytest

from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.profiling.latency import Workload
from edgewright.profiling.runtime_tuning import OptionsTrial, choose_best_options, find_best_options
from edgewright.profiling.target import LocalTarget
from edgewright.runtime.options import RuntimeOptions

ORIGIN = MeasurementOrigin(kind="measured", machine="-", method="-")


def _row(options: RuntimeOptions, value: float, spread: float = 0.02) -> OptionsTrial:
    ratio = Measurement(value, "ratio", ORIGIN, value - spread, value + spread)
    return OptionsTrial(options, Measurement(value, "s", ORIGIN), ratio)


DEFAULT = _row(RuntimeOptions(), 1.0, 0.0)


def test_the_default_stays_unless_another_is_clearly_faster() -> None:
    rows = [DEFAULT, _row(RuntimeOptions(threads=2), 0.97, 0.05), _row(RuntimeOptions(threads=4), 1.3)]
    assert choose_best_options(rows) == RuntimeOptions()


def test_a_clear_win_is_taken() -> None:
    rows = [DEFAULT, _row(RuntimeOptions(threads=2), 0.6), _row(RuntimeOptions(threads=4), 0.4)]
    assert choose_best_options(rows).threads == 4


def test_of_equals_the_one_with_fewer_threads_wins() -> None:
    rows = [
        DEFAULT,
        _row(RuntimeOptions(threads=8), 0.50),
        _row(RuntimeOptions(threads=4, spinning=True), 0.51),
        _row(RuntimeOptions(threads=4), 0.52),
    ]
    assert choose_best_options(rows) == RuntimeOptions(threads=4)


def test_what_does_not_run_is_never_chosen() -> None:
    broken = OptionsTrial(RuntimeOptions(threads=2), None, None, "no such provider")
    assert choose_best_options([DEFAULT, broken]) == RuntimeOptions()


@pytest.mark.parametrize("limit", [1, 2])
def test_the_limit_on_threads_is_kept(subject: Callable[..., Workload], limit: int) -> None:
    made = subject(64)
    result = find_best_options(LocalTarget(), made.model, made.inputs, seconds=0.5, threads_limit=limit)
    assert result.trials[0].options == RuntimeOptions()
    assert {row.options.threads for row in result.trials} <= set(range(1, limit + 1))
    assert {row.options.optimization for row in result.trials} == {"all", "layout", "extended", "basic"}
    assert (result.gain is None) == (result.best == result.default)
    if result.gain is not None and result.gain.high is not None:
        assert result.gain.high < 1
