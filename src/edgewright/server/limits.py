"""How often somebody may ask: token buckets, for as many names as there is room for. No clock of their own."""

from collections import OrderedDict
from dataclasses import dataclass, field

__all__ = ["Limiter"]


@dataclass(slots=True)
class Limiter:
    """Who may ask how often.

    Attributes:
        per_s: Requests a second that may go on for ever.
        burst: Requests at once, after a pause.
        most: Names that are remembered; the ones that asked longest ago are forgotten, and begin anew.
    """

    per_s: float
    burst: float
    most: int = 200_000
    _left: OrderedDict[str, tuple[float, float]] = field(init=False, default_factory=OrderedDict)

    def allows(self, name: str, now_s: float) -> bool:
        """Whether a request is within its limit; then it is counted.

        Args:
            name: Of whoever asks.
            now_s: Seconds, never less than before.

        >>> limiter = Limiter(per_s=1.0, burst=2)
        >>> [limiter.allows("a", 0.0) for _ in range(3)], limiter.allows("a", 1.0)
        ([True, True, False], True)
        """
        left, at_s = self._left.get(name, (self.burst, now_s))
        left = min(self.burst, left + (now_s - at_s) * self.per_s)
        allowed = left >= 1
        self._left[name] = (left - 1 if allowed else left, now_s)
        self._left.move_to_end(name)
        if len(self._left) > self.most:
            self._left.popitem(last=False)
        return allowed
