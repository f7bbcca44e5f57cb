"""What may reach the model, and what may leave it: checked before and after each inference, in microseconds.

One pass decides in the usual case, compiled for float32 (`signals.look`). Elsewhere least and greatest value are
compared; NaN fails that as anything outside does. Only an input that breaks something is looked at closely.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.model.guard import GuardAction, GuardRules, InputRule
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.stats.input_stats import all_within

__all__ = ["Guard", "Rejection"]

ModelInputs = Mapping[str, NDArray[Any]]
# Blocks that stay in the cache between the two reductions.
_VALUES_PER_BLOCK = 16_384


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an input did not reach the model, or an output did not leave.

    Attributes:
        check: What was broken.
        tensor: Its name.
        reason: For people.
    """

    check: str
    tensor: str
    reason: str


QuickCheck = Callable[[NDArray[Any]], Any]


@dataclass(slots=True)
class _InputState:
    """One input and what is known of it.

    Attributes:
        spec: Of the contract.
        dtype: Of the input.
        min_value: Least value that is allowed.
        max_value: Greatest value that is allowed.
        rules: By check.
        rank: Of the input.
        trailing_shape: Its shape but for the first axis; None if another axis is free too.
        first_axis_size: Size of the first axis, None if it is free.
        quick_check: True for arrays that surely keep the range, in one pass.
        always_checked: Whether each input is looked at closely, passing or not.
    """

    spec: TensorSpec
    dtype: np.dtype[Any]
    min_value: float
    max_value: float
    rules: dict[str, InputRule]
    rank: int
    trailing_shape: tuple[int, ...] | None
    first_axis_size: int | None
    quick_check: QuickCheck
    always_checked: bool
    last_range: tuple[float, float] = (math.nan, math.nan)
    last_bytes: bytes = b""
    repeats: int = 0


@dataclass(slots=True)
class Guard:
    """Checks inputs and outputs against the contract.

    Attributes:
        contract: Tensors in and out.
        rules: What is done where they are broken.
        clock: Monotonic, seconds.
        counts: How often each check was broken, by check and tensor.
    """

    contract: ModelSignature
    rules: GuardRules = field(default_factory=GuardRules)
    clock: Callable[[], float] = time.monotonic
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _input_rules: dict[str, _InputState] = field(init=False)
    _input_order: list[tuple[str, _InputState]] = field(init=False)
    _output_checks: list[QuickCheck | None] = field(init=False)
    _only_output: QuickCheck | None = field(init=False)
    _only_input: _InputState | None = field(init=False)
    _quick_check: QuickCheck = field(init=False)
    _rate_limit: list[InputRule] = field(init=False)
    _current_second: float = field(init=False, default=-math.inf)
    _count_in_second: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Prepare what every call needs."""
        self._input_rules = {spec.name: self._rules_for(spec) for spec in self.contract.inputs}
        self._input_order = list(self._input_rules.items())
        single = self._input_order[0][1] if len(self._input_order) == 1 else None
        watched = single is None or single.always_checked or any(rule.check == "rate" for rule in self.rules.inputs)
        self._only_input = None if watched else single
        self._quick_check = (lambda _: False) if single is None else single.quick_check
        low, high = self.rules.output_low, self.rules.output_high
        self._output_checks = [
            None if np.dtype(spec.dtype).kind != "f" else _quick_check(np.dtype(spec.dtype), low, high)
            for spec in self.contract.outputs
        ]
        self._only_output = self._output_checks[0] if len(self._output_checks) == 1 else None
        self._rate_limit = [rule for rule in self.rules.inputs if rule.check == "rate"]

    def check_inputs(self, inputs: ModelInputs) -> ModelInputs | Rejection:
        """Return what the model gets: the feed itself, a mended one, or why it gets none."""
        if self._rate_limit:
            fast = self._is_too_fast()
            if fast is not None:
                return fast
        array = self.check_only_input(inputs)
        if array is not None and self._quick_check(array):  # the usual case, without a loop
            return inputs
        mended: dict[str, NDArray[Any]] | None = None
        for name, watch in self._input_order:
            array = inputs.get(name)
            if array is None:
                found = self._check_missing(watch)
            elif not (array.dtype is watch.dtype or array.dtype == watch.dtype) or not _shape_fits(
                array.shape, watch
            ):
                return self._reject("tensor_spec", name, f"{name} is {array.dtype} of shape {list(array.shape)}")
            elif not watch.always_checked and watch.quick_check(array):
                continue
            else:
                found = self._check_closely(watch, array, *_value_range(array))
                if found is array:
                    continue
            if isinstance(found, Rejection):
                return found
            mended = {**(mended or {}), name: found}
        if len(inputs) > len(self._input_order):
            unknown = next(name for name in inputs if name not in self._input_rules)
            return self._reject("tensor_spec", unknown, f"the model has no input {unknown!r}")
        return {**inputs, **mended} if mended is not None else inputs

    def check_only_input(self, inputs: ModelInputs) -> NDArray[Any] | None:
        """Return the array of the only input if its form fits and no rule wants a closer look, else None."""
        only = self._only_input
        if only is None or len(inputs) != 1:
            return None
        array = inputs.get(only.spec.name)
        if array is None or array.dtype is not only.dtype:
            return None
        shape = array.shape
        return (
            array
            if shape[1:] == only.trailing_shape and shape[:1] and only.first_axis_size in (None, shape[0])
            else None
        )

    def check_outputs(self, outputs: list[NDArray[Any]]) -> Rejection | None:
        """Return why outputs must not leave, None if they may."""
        if self._only_output is not None and len(outputs) == 1:
            return None if self._only_output(outputs[0]) else self._first_output_problem(outputs)
        for array, passes in zip(outputs, self._output_checks, strict=False):
            if passes is not None and not passes(array):
                return self._first_output_problem(outputs)
        return None

    def _first_output_problem(self, outputs: list[NDArray[Any]]) -> Rejection | None:
        low = -math.inf if self.rules.output_low is None else self.rules.output_low
        high = math.inf if self.rules.output_high is None else self.rules.output_high
        for spec, array in zip(self.contract.outputs, outputs, strict=False):
            if array.dtype.kind != "f" or not array.size:
                continue
            least, most = _value_range(array)
            if not (low <= least and most <= high and math.isfinite(least) and math.isfinite(most)):
                return self._reject("output", spec.name, f"{spec.name} ranges from {least:g} to {most:g}")
        return None

    def filter_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of an application's fields may be stored or sent."""
        kept = {name: value for name, value in fields.items() if name not in self.rules.drop_fields}
        return {
            name: value is not None if name in self.rules.redact_fields else value for name, value in kept.items()
        }

    def _rules_for(self, spec: TensorSpec) -> _InputState:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            least, most = float(np.finfo(dtype).min), float(np.finfo(dtype).max)
        elif dtype.kind in "iu":
            least, most = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
        else:
            least, most = -math.inf, math.inf
        rules: dict[str, InputRule] = {
            r.check: r for r in self.rules.inputs if r.input in ("", spec.name) and r.check != "rate"
        }
        first, *tail = spec.shape or (None,)
        return _InputState(
            spec=spec,
            dtype=dtype,
            min_value=least if spec.low is None else spec.low,
            max_value=most if spec.high is None else spec.high,
            rules=rules,
            rank=len(spec.shape),
            trailing_shape=tuple(size for size in tail if isinstance(size, int))
            if all(isinstance(size, int) for size in tail)
            else None,
            first_axis_size=first if isinstance(first, int) else None,
            quick_check=_quick_check(dtype, spec.low, spec.high),
            always_checked=bool(rules.keys() & {"stuck", "dead"}),
        )

    def _check_closely(
        self, watch: _InputState, array: NDArray[Any], low: float, high: float
    ) -> NDArray[Any] | Rejection:
        name, rules = watch.spec.name, watch.rules
        if not (math.isfinite(low) and math.isfinite(high)):
            rule = rules.get("not finite")
            if rule is None or rule.action == "reject":
                return self._reject("not finite", name, f"{name} holds NaN or infinity")
            self.counts["not finite", name] += 1
            array = np.where(np.isfinite(array), array, array.dtype.type(rule.fill))
            low, high = _value_range(array)
        if not (watch.min_value <= low and high <= watch.max_value):
            rule = rules.get("range")
            action: GuardAction = "reject" if rule is None else rule.action
            if action == "reject" or rule is None:
                return self._reject(
                    "range",
                    name,
                    f"{name} ranges from {low:g} to {high:g}, {watch.min_value:g} to {watch.max_value:g} is allowed",
                )
            self.counts["range", name] += 1
            if action == "clamp":
                array = np.clip(array, watch.min_value, watch.max_value).astype(array.dtype)
            elif action == "impute":
                outside = (array < watch.min_value) | (array > watch.max_value)
                array = np.where(outside, array.dtype.type(rule.fill), array)
        if "dead" in rules and low == high and array.size > 1:
            if rules["dead"].action == "reject":
                return self._reject("dead", name, f"all values of {name} are {low:g}")
            self.counts["dead", name] += 1
        if "stuck" in rules and self._is_stuck(watch, array, (low, high)):
            if rules["stuck"].action == "reject":
                return self._reject("stuck", name, f"{name} was the same {watch.repeats} times")
            self.counts["stuck", name] += 1
        return array

    def _is_stuck(self, watch: _InputState, array: NDArray[Any], ends: tuple[float, float]) -> bool:
        """Whether the same values came too often; the ends are compared first, which costs nothing."""
        content = array.tobytes() if ends == watch.last_range else b""
        if content and content == watch.last_bytes:
            watch.repeats += 1
        else:
            watch.repeats = 1
            watch.last_bytes = array.tobytes()
        watch.last_range = ends
        return watch.repeats > watch.rules["stuck"].max_repeats

    def _check_missing(self, watch: _InputState) -> NDArray[Any] | Rejection:
        name, rule = watch.spec.name, watch.rules.get("missing")
        if rule is None or rule.action == "reject":
            return self._reject("missing", name, f"there is no {name}")
        self.counts["missing", name] += 1
        shape = tuple(size if isinstance(size, int) else 1 for size in watch.spec.shape)
        return np.full(shape, rule.fill, watch.dtype)

    def _is_too_fast(self) -> Rejection | None:
        now = self.clock()
        if now - self._current_second >= 1:
            self._current_second, self._count_in_second = now, 0
        self._count_in_second += 1
        for rule in self._rate_limit:
            if self._count_in_second > rule.max_per_second:
                if rule.action == "reject":
                    return self._reject("rate", rule.input, f"more than {rule.max_per_second:g} inputs in a second")
                self.counts["rate", rule.input] += 1
        return None

    def _reject(self, check: str, tensor: str, reason: str) -> Rejection:
        self.counts[check, tensor] += 1
        return Rejection(check, tensor, reason)


def _shape_fits(shape: tuple[int, ...], watch: _InputState) -> bool:
    if len(shape) != watch.rank:
        return False
    if watch.trailing_shape is not None:
        return shape[1:] == watch.trailing_shape and (
            watch.first_axis_size is None or watch.first_axis_size == shape[0]
        )
    return all(isinstance(want, str) or want == have for want, have in zip(watch.spec.shape, shape, strict=True))


def _quick_check(dtype: np.dtype[Any], low: float | None, high: float | None) -> QuickCheck:
    """Return what says in one pass, or nearly so, that an array surely keeps a range and is finite."""
    if dtype.kind not in "fiu" or (dtype.kind in "iu" and low is None and high is None):
        return lambda _: True
    least = -math.inf if low is None else low
    most = math.inf if high is None else high
    if dtype == np.float32:
        largest = float(np.finfo(np.float32).max)
        ends = max(least, -largest), min(most, largest)
        return lambda array: all_within(array, *ends)

    def keeps(array: NDArray[Any]) -> bool:
        found = _value_range(array)
        return least <= found[0] and found[1] <= most and math.isfinite(found[0]) and math.isfinite(found[1])

    return keeps


def _value_range(array: NDArray[Any]) -> tuple[float, float]:
    """Return the least and the greatest value, NaN if there is one."""
    flat = array.reshape(-1)
    if flat.size <= _VALUES_PER_BLOCK:
        if not flat.size:
            return 0.0, 0.0
        return np.minimum.reduce(flat), np.maximum.reduce(flat)
    lows, highs = [], []
    for start in range(0, flat.size, _VALUES_PER_BLOCK):
        block = flat[start : start + _VALUES_PER_BLOCK]
        lows.append(np.minimum.reduce(block))
        highs.append(np.maximum.reduce(block))
    return float(np.minimum.reduce(lows)), float(np.maximum.reduce(highs))
