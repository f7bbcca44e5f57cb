"""What may reach the model, and what may leave it: checked before and after each inference, in microseconds.

Two reductions decide in the usual case: NaN and infinity fail a comparison with the range as anything outside does.
Only an input that breaks something is looked at more closely.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.guard import Action, GuardRules, InputRule
from edgewright.contract.signature import InputContract, TensorSpec

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


@dataclass(slots=True)
class _Watch:
    """One input and what is known of it."""

    spec: TensorSpec
    dtype: np.dtype[Any]
    tail: tuple[int | str, ...]
    low: float
    high: float
    rules: dict[str, InputRule]
    fixed: tuple[int, ...] | None
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
    _limited: list[InputRule] = field(init=False)
    _second: float = field(init=False, default=-math.inf)
    _in_second: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Prepare what every call needs."""
        self._watches = {spec.name: self._watch(spec) for spec in self.contract.inputs}
        self._limited = [rule for rule in self.rules.inputs if rule.check == "rate"]

    def admit(self, feed: Feed) -> Feed | Rejection:
        """Return what the model gets: the feed itself, a mended one, or why it gets none."""
        if self._limited:
            fast = self._too_fast()
            if fast is not None:
                return fast
        mended: dict[str, NDArray[Any]] = {}
        for name, watch in self._watches.items():
            array = feed.get(name)
            if array is None:
                found = self._missing(watch)
            elif array.dtype != watch.dtype or not _fits(array.shape, watch):
                return self._reject("form", name, f"{name} is {array.dtype} of shape {list(array.shape)}")
            else:
                low, high = _ends(array)
                if watch.low <= low and high <= watch.high and not watch.rules:
                    continue
                found = self._looked_at(watch, array, low, high)
                if found is array:
                    continue
            if isinstance(found, Rejection):
                return found
            mended[name] = found
        if len(feed) > len(self._watches):
            unknown = next(name for name in feed if name not in self._watches)
            return self._reject("form", unknown, f"the model has no input {unknown!r}")
        return {**feed, **mended} if mended else feed

    def release(self, outputs: list[NDArray[Any]]) -> Rejection | None:
        """Return why outputs must not leave, None if they may."""
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
        sizes = [size for size in spec.shape if isinstance(size, int)]
        return _Watch(
            spec,
            dtype,
            spec.shape,
            least if spec.low is None else spec.low,
            most if spec.high is None else spec.high,
            rules,
            tuple(sizes) if len(sizes) == len(spec.shape) else None,
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
    if watch.fixed is not None:
        return shape == watch.fixed
    return len(shape) == len(watch.tail) and all(
        isinstance(want, str) or want == have for want, have in zip(watch.tail, shape, strict=True)
    )


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
