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

from edgewright.contract.model.guard import Action, GuardRules, InputRule
from edgewright.contract.model.signature import InputContract, TensorSpec
from edgewright.stats.input_stats import within

__all__ = ["Guard", "Rejection"]

Feed = Mapping[str, NDArray[Any]]
# Blocks that stay in the cache between the two reductions.
_BLOCK = 16_384


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


Quick = Callable[[NDArray[Any]], Any]


@dataclass(slots=True)
class _Watch:
    """One input and what is known of it.

    Attributes:
        spec: Of the contract.
        dtype: Of the input.
        low: Least value that is allowed.
        high: Greatest value that is allowed.
        rules: By check.
        rank: Of the input.
        tail: Its shape but for the first axis; None if another axis is free too.
        first: Size of the first axis, None if it is free.
        passes: True for arrays that surely keep the range, in one pass.
        close: Whether each input is looked at closely, passing or not.
    """

    spec: TensorSpec
    dtype: np.dtype[Any]
    low: float
    high: float
    rules: dict[str, InputRule]
    rank: int
    tail: tuple[int, ...] | None
    first: int | None
    passes: Quick
    close: bool
    ends: tuple[float, float] = (math.nan, math.nan)
    last: bytes = b""
    same: int = 0


@dataclass(slots=True)
class Guard:
    """Checks inputs and outputs against the contract.

    Attributes:
        contract: Tensors in and out.
        rules: What is done where they are broken.
        clock: Monotonic, seconds.
        counts: How often each check was broken, by check and tensor.
    """

    contract: InputContract
    rules: GuardRules = field(default_factory=GuardRules)
    clock: Callable[[], float] = time.monotonic
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _watches: dict[str, _Watch] = field(init=False)
    _order: list[tuple[str, _Watch]] = field(init=False)
    _releases: list[Quick | None] = field(init=False)
    _only_output: Quick | None = field(init=False)
    _only_input: _Watch | None = field(init=False)
    _passes: Quick = field(init=False)
    _limited: list[InputRule] = field(init=False)
    _second: float = field(init=False, default=-math.inf)
    _in_second: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Prepare what every call needs."""
        self._watches = {spec.name: self._watch(spec) for spec in self.contract.inputs}
        self._order = list(self._watches.items())
        single = self._order[0][1] if len(self._order) == 1 else None
        watched = single is None or single.close or any(rule.check == "rate" for rule in self.rules.inputs)
        self._only_input = None if watched else single
        self._passes = (lambda _: False) if single is None else single.passes
        low, high = self.rules.output_low, self.rules.output_high
        self._releases = [
            None if np.dtype(spec.dtype).kind != "f" else _quick(np.dtype(spec.dtype), low, high)
            for spec in self.contract.outputs
        ]
        self._only_output = self._releases[0] if len(self._releases) == 1 else None
        self._limited = [rule for rule in self.rules.inputs if rule.check == "rate"]

    def admit(self, feed: Feed) -> Feed | Rejection:
        """Return what the model gets: the feed itself, a mended one, or why it gets none."""
        if self._limited:
            fast = self._too_fast()
            if fast is not None:
                return fast
        array = self.only(feed)
        if array is not None and self._passes(array):  # the usual case, without a loop
            return feed
        mended: dict[str, NDArray[Any]] | None = None
        for name, watch in self._order:
            array = feed.get(name)
            if array is None:
                found = self._missing(watch)
            elif not (array.dtype is watch.dtype or array.dtype == watch.dtype) or not _fits(array.shape, watch):
                return self._reject("form", name, f"{name} is {array.dtype} of shape {list(array.shape)}")
            elif not watch.close and watch.passes(array):
                continue
            else:
                found = self._looked_at(watch, array, *_ends(array))
                if found is array:
                    continue
            if isinstance(found, Rejection):
                return found
            mended = {**(mended or {}), name: found}
        if len(feed) > len(self._order):
            unknown = next(name for name in feed if name not in self._watches)
            return self._reject("form", unknown, f"the model has no input {unknown!r}")
        return {**feed, **mended} if mended is not None else feed

    def only(self, feed: Feed) -> NDArray[Any] | None:
        """Return the array of the only input if its form fits and no rule wants a closer look, else None."""
        only = self._only_input
        if only is None or len(feed) != 1:
            return None
        array = feed.get(only.spec.name)
        if array is None or array.dtype is not only.dtype:
            return None
        shape = array.shape
        return array if shape[1:] == only.tail and shape[:1] and only.first in (None, shape[0]) else None

    def release(self, outputs: list[NDArray[Any]]) -> Rejection | None:
        """Return why outputs must not leave, None if they may."""
        if self._only_output is not None and len(outputs) == 1:
            return None if self._only_output(outputs[0]) else self._held(outputs)
        for array, passes in zip(outputs, self._releases, strict=False):
            if passes is not None and not passes(array):
                return self._held(outputs)
        return None

    def _held(self, outputs: list[NDArray[Any]]) -> Rejection | None:
        low = -math.inf if self.rules.output_low is None else self.rules.output_low
        high = math.inf if self.rules.output_high is None else self.rules.output_high
        for spec, array in zip(self.contract.outputs, outputs, strict=False):
            if array.dtype.kind != "f" or not array.size:
                continue
            least, most = _ends(array)
            if not (low <= least and most <= high and math.isfinite(least) and math.isfinite(most)):
                return self._reject("output", spec.name, f"{spec.name} ranges from {least:g} to {most:g}")
        return None

    def storable(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of an application's fields may be stored or sent."""
        kept = {name: value for name, value in fields.items() if name not in self.rules.drop}
        return {name: value is not None if name in self.rules.redact else value for name, value in kept.items()}

    def _watch(self, spec: TensorSpec) -> _Watch:
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
        return _Watch(
            spec=spec,
            dtype=dtype,
            low=least if spec.low is None else spec.low,
            high=most if spec.high is None else spec.high,
            rules=rules,
            rank=len(spec.shape),
            tail=tuple(size for size in tail if isinstance(size, int))
            if all(isinstance(size, int) for size in tail)
            else None,
            first=first if isinstance(first, int) else None,
            passes=_quick(dtype, spec.low, spec.high),
            close=bool(rules.keys() & {"stuck", "dead"}),
        )

    def _looked_at(self, watch: _Watch, array: NDArray[Any], low: float, high: float) -> NDArray[Any] | Rejection:
        name, rules = watch.spec.name, watch.rules
        if not (math.isfinite(low) and math.isfinite(high)):
            rule = rules.get("not finite")
            if rule is None or rule.action == "reject":
                return self._reject("not finite", name, f"{name} holds NaN or infinity")
            self.counts["not finite", name] += 1
            array = np.where(np.isfinite(array), array, array.dtype.type(rule.fill))
            low, high = _ends(array)
        if not (watch.low <= low and high <= watch.high):
            rule = rules.get("range")
            action: Action = "reject" if rule is None else rule.action
            if action == "reject" or rule is None:
                return self._reject(
                    "range",
                    name,
                    f"{name} ranges from {low:g} to {high:g}, {watch.low:g} to {watch.high:g} is allowed",
                )
            self.counts["range", name] += 1
            if action == "clamp":
                array = np.clip(array, watch.low, watch.high).astype(array.dtype)
            elif action == "impute":
                outside = (array < watch.low) | (array > watch.high)
                array = np.where(outside, array.dtype.type(rule.fill), array)
        if "dead" in rules and low == high and array.size > 1:
            if rules["dead"].action == "reject":
                return self._reject("dead", name, f"all values of {name} are {low:g}")
            self.counts["dead", name] += 1
        if "stuck" in rules and self._is_stuck(watch, array, (low, high)):
            if rules["stuck"].action == "reject":
                return self._reject("stuck", name, f"{name} was the same {watch.same} times")
            self.counts["stuck", name] += 1
        return array

    def _is_stuck(self, watch: _Watch, array: NDArray[Any], ends: tuple[float, float]) -> bool:
        """Whether the same values came too often; the ends are compared first, which costs nothing."""
        content = array.tobytes() if ends == watch.ends else b""
        if content and content == watch.last:
            watch.same += 1
        else:
            watch.same = 1
            watch.last = array.tobytes()
        watch.ends = ends
        return watch.same > watch.rules["stuck"].patience

    def _missing(self, watch: _Watch) -> NDArray[Any] | Rejection:
        name, rule = watch.spec.name, watch.rules.get("missing")
        if rule is None or rule.action == "reject":
            return self._reject("missing", name, f"there is no {name}")
        self.counts["missing", name] += 1
        shape = tuple(size if isinstance(size, int) else 1 for size in watch.spec.shape)
        return np.full(shape, rule.fill, watch.dtype)

    def _too_fast(self) -> Rejection | None:
        now = self.clock()
        if now - self._second >= 1:
            self._second, self._in_second = now, 0
        self._in_second += 1
        for rule in self._limited:
            if self._in_second > rule.most_per_s:
                if rule.action == "reject":
                    return self._reject("rate", rule.input, f"more than {rule.most_per_s:g} inputs in a second")
                self.counts["rate", rule.input] += 1
        return None

    def _reject(self, check: str, tensor: str, reason: str) -> Rejection:
        self.counts[check, tensor] += 1
        return Rejection(check, tensor, reason)


def _fits(shape: tuple[int, ...], watch: _Watch) -> bool:
    if len(shape) != watch.rank:
        return False
    if watch.tail is not None:
        return shape[1:] == watch.tail and (watch.first is None or watch.first == shape[0])
    return all(isinstance(want, str) or want == have for want, have in zip(watch.spec.shape, shape, strict=True))


def _quick(dtype: np.dtype[Any], low: float | None, high: float | None) -> Quick:
    """Return what says in one pass, or nearly so, that an array surely keeps a range and is finite."""
    if dtype.kind not in "fiu" or (dtype.kind in "iu" and low is None and high is None):
        return lambda _: True
    least = -math.inf if low is None else low
    most = math.inf if high is None else high
    if dtype == np.float32:
        largest = float(np.finfo(np.float32).max)
        ends = max(least, -largest), min(most, largest)
        return lambda array: within(array, *ends)

    def keeps(array: NDArray[Any]) -> bool:
        found = _ends(array)
        return least <= found[0] and found[1] <= most and math.isfinite(found[0]) and math.isfinite(found[1])

    return keeps


def _ends(array: NDArray[Any]) -> tuple[float, float]:
    """Return the least and the greatest value, NaN if there is one."""
    flat = array.reshape(-1)
    if flat.size <= _BLOCK:
        if not flat.size:
            return 0.0, 0.0
        return np.minimum.reduce(flat), np.maximum.reduce(flat)
    lows, highs = [], []
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        lows.append(np.minimum.reduce(block))
        highs.append(np.maximum.reduce(block))
    return float(np.minimum.reduce(lows)), float(np.maximum.reduce(highs))
