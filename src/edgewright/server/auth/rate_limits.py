"""How often somebody may ask: token buckets, for as many names as there is room for. No clock of their own."""

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["RateLimiter", "client_address", "limited_network"]


@dataclass(slots=True)
class RateLimiter:
    """Who may ask how often.

    Attributes:
        per_s: Requests a second that may go on for ever.
        burst: Requests at once, after a pause.
        max_names: Names that are remembered; the ones that asked longest ago are forgotten, and begin anew.
    """

    per_s: float
    burst: float
    max_names: int = 200_000
    _left: OrderedDict[str, tuple[float, float]] = field(init=False, default_factory=OrderedDict)

    def allows(self, name: str, now: float) -> bool:
        """Whether a request is within its limit; then it is counted.

        Args:
            name: Of whoever asks.
            now: Seconds, never less than before.

        >>> limiter = RateLimiter(per_s=1.0, burst=2)
        >>> [limiter.allows("a", 0.0) for _ in range(3)], limiter.allows("a", 1.0)
        ([True, True, False], True)
        """
        left, at = self._left.get(name, (self.burst, now))
        left = min(self.burst, left + (now - at) * self.per_s)
        allowed = left >= 1
        self._left[name] = (left - 1 if allowed else left, now)
        self._left.move_to_end(name)
        if len(self._left) > self.max_names:
            self._left.popitem(last=False)
        return allowed


def client_address(peer: str, headers: Iterable[tuple[bytes, bytes]], *, proxies: int) -> str:
    """Return the address that a request comes from.

    Each proxy adds whom it was asked by to the right of X-Forwarded-For; what stands left of what our own proxies
    added, anybody can have written.

    Args:
        peer: Address at the other end of the connection.
        headers: Of the request.
        proxies: Of ours that every request comes through; with 0 the header is not believed.

    >>> client_address("10.0.0.1", [(b"x-forwarded-for", b"made.up, 192.0.2.7")], proxies=1)
    '192.0.2.7'
    """
    if proxies < 1:
        return peer
    hops = [hop.strip() for name, value in headers if name == b"x-forwarded-for" for hop in value.split(b",")]
    if len(hops) < proxies:
        return peer
    hop = hops[-proxies].decode("latin-1")
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return peer


def limited_network(address: str) -> str:
    """Return by what an address is limited: an IPv6 network of 64 bits is one household's, with all its addresses.

    >>> limited_network("2001:db8::1") == limited_network("2001:db8::2"), limited_network("192.0.2.1")
    (True, '192.0.2.1')
    """
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return str(known)
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ipaddress.ip_network((known, 64), strict=False))
