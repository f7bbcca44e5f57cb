"""Rules for what may reach a model and what may leave it."""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError

__all__ = ["GuardAction", "GuardCheck", "GuardRules", "InputRule"]

GuardCheck = Literal["range", "not finite", "missing", "stuck", "dead", "rate"]
GuardAction = Literal["reject", "clamp", "impute", "count"]


class InputRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done if an input breaks a check.

    Attributes:
        check: `range` of the contract; `not finite` values; the whole input `missing`; `stuck`: the same values as
            before, `max_repeats` times; `dead`: all values equal; `rate`: more than `max_per_second` inputs a second.
        action: `reject` the input; `clamp` to the range; `impute` the value `fill`; only `count`.
        input: Name of the input, "" for each.
        fill: For `impute`.
        max_repeats: For `stuck`, how often the same values may come.
        max_per_second: For `rate`.
    """

    check: GuardCheck
    action: GuardAction
    input: str = ""
    fill: float = 0.0
    max_repeats: int = 100
    max_per_second: float = math.inf

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        possible: dict[GuardCheck, tuple[GuardAction, ...]] = {
            "range": ("reject", "clamp", "impute", "count"),
            "not finite": ("reject", "impute"),
            "missing": ("reject", "impute"),
            "stuck": ("reject", "count"),
            "dead": ("reject", "count"),
            "rate": ("reject", "count"),
        }
        if self.action not in possible[self.check]:
            raise InputError(
                f"a guard cannot {self.action} what is {self.check!r}",
                remedy=f"It can {' or '.join(possible[self.check])}.",
            )
        if not math.isfinite(self.fill) or self.max_repeats < 1 or not self.max_per_second > 0:
            raise InputError(
                f"guard {self.check!r}: fill {self.fill}, patience {self.max_repeats}, "
                f"most_per_s {self.max_per_second}",
                remedy="A fill is finite, a patience at least 1, a rate more than 0.",
            )


class GuardRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of one variant.

    What is not named is rejected if broken; rate, stuck and dead inputs are checked only where a rule names them.

    Attributes:
        inputs: For inputs.
        output_low: Least value of an output, None for no limit.
        output_high: Greatest value of an output.
        drop_fields: Fields of what the application sends along that are never stored or sent.
        redact_fields: Fields that are replaced by whether they were there.
    """

    inputs: tuple[InputRule, ...] = ()
    output_low: float | None = None
    output_high: float | None = None
    drop_fields: tuple[str, ...] = ()
    redact_fields: tuple[str, ...] = ()
