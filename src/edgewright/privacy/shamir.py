"""A secret of 16 bytes in shares, of which any t give it back and t - 1 say nothing (Shamir 1979).

Polynomials over the integers mod 2^130 - 5, in Python's own integers: a share takes 40 us for 17 holders, where the
pure-Python field of 2^128 elements in pycryptodome takes milliseconds, and devices need no second cryptographic
library. Neither of them runs in constant time. Here each secret and each coefficient is drawn for one sum and used
once, by the process that drew it, so there is nothing that an observer could average over.
"""

import os
from collections.abc import Callable, Mapping, Sequence

__all__ = ["SECRET_BYTES", "SHARE_BYTES", "combine_shares", "split_secret"]

SECRET_BYTES, SHARE_BYTES = 16, 17
_PRIME = (1 << 130) - 5


def split_secret(
    secret: bytes, threshold: int, share_count: int, *, entropy: Callable[[int], bytes] = os.urandom
) -> list[bytes]:
    """Return a share for each holder; the first holder's is the polynomial at 1.

    Args:
        secret: 16 bytes.
        threshold: Shares that give it back.
        share_count: How many there are.
        entropy: Returns so many random bytes; anything else than the system's own is for tests.

    Raises:
        ValueError: Another size, or fewer holders than are needed.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= share_count:
        raise ValueError(f"a secret of {len(secret)} bytes, {threshold} of {share_count} holders")
    coefficients = [*(_random_field_element(entropy) for _ in range(threshold - 1)), int.from_bytes(secret, "big")]
    shares = []
    for point in range(1, share_count + 1):
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % _PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


def combine_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret.

    Args:
        shares: By holder, counted from 1; all of them have to fit together.
        threshold: Shares that give it back.

    Raises:
        ValueError: Too few of them, one is malformed, or they are not of one secret.
    """
    if len(shares) < threshold or threshold < 1:
        raise ValueError(f"{len(shares)} shares, {threshold} are needed")
    values = {}
    for holder, share in shares.items():
        value = int.from_bytes(share, "big")
        if len(share) != SHARE_BYTES or value >= _PRIME or holder < 1:
            raise ValueError(f"the share of holder {holder} is malformed")
        values[holder] = value
    points = list(values)[:threshold]
    secret = _interpolate(points, values, 0)
    # A share too many is not thrown away: it must lie on the same polynomial.
    if secret >> (8 * SECRET_BYTES) or any(
        _interpolate(points, values, other) != values[other] for other in list(values)[threshold:]
    ):
        raise ValueError("the shares are not of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def _random_field_element(entropy: Callable[[int], bytes]) -> int:
    """Return an element of the field, each as likely as any other."""
    while (value := int.from_bytes(entropy(SHARE_BYTES), "big") >> (8 * SHARE_BYTES - 130)) >= _PRIME:
        pass
    return value


def _interpolate(points: Sequence[int], values: Mapping[int, int], x: int) -> int:
    """Return the polynomial through the points at another one (Lagrange)."""
    total = 0
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above = above * (x - other) % _PRIME
                below = below * (point - other) % _PRIME
        total += values[point] * above * pow(below, -1, _PRIME)
    return total % _PRIME
