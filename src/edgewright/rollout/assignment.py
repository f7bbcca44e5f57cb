"""Is this device in? Each works it out by itself, from what is signed and its own name."""

import hashlib
from collections.abc import Sequence

__all__ = ["arm_of", "bucket_of", "is_in", "is_in_holdout", "ramp_step_of"]

# Who is in, and with which arm, must not depend on each other: else a whole canary would get one arm.
_JOINS, _ARM, _HELD = b"edgewright.cohort.1", b"edgewright.arm.1", b"edgewright.holdback.1"
_WHOLE = 1 << 64


def bucket_of(domain: bytes, experiment: str, salt: str, device_id: str) -> int:
    """Return a device's place in an experiment, even over 0 to 2**64 - 1.

    Args:
        domain: What is asked.
        experiment: What is tried: the digest of a release's manifest, so that whoever advances rollouts cannot draw
            the cohorts anew by giving them another name; of an A/B test, the rollout's name.
        salt: Signed by the offline keys, so that whoever advances rollouts cannot choose who is in.
        device_id: Of the device.
    """
    digest = hashlib.sha256()
    for part in (domain, experiment.encode(), salt.encode(), device_id.encode()):
        digest.update(len(part).to_bytes(4, "big"))  # so that no two inputs read the same
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "big")


def is_in(fraction: float, experiment: str, salt: str, device_id: str) -> bool:
    """Whether a device is among this fraction; who is in stays in as the fraction rises.

    >>> is_in(1.0, "r", "00", "d"), is_in(0.0, "r", "00", "d")
    (True, False)
    """
    return bucket_of(_JOINS, experiment, salt, device_id) < int(fraction * _WHOLE)


def ramp_step_of(step: float, experiment: str, salt: str, device_id: str) -> int:
    """Return in which step of a ramp, from 0, a device is reached at the earliest.

    Args:
        step: By how much of the devices a step may grow.
        experiment: As for `is_in`.
        salt: As for `is_in`.
        device_id: Of the device.
    """
    return int(bucket_of(_JOINS, experiment, salt, device_id) / _WHOLE / step)


def is_in_holdout(share: float, salt: str, device_id: str) -> bool:
    """Whether a device belongs to the holdback, which is compared with and keeps what it has."""
    return bucket_of(_HELD, "", salt, device_id) < int(share * _WHOLE)


def arm_of(weights: Sequence[float], experiment: str, salt: str, device_id: str) -> int:
    """Return the index of a device's arm, in proportion to the weights.

    >>> arm_of([1.0], "r", "00", "d")
    0
    """
    at = bucket_of(_ARM, experiment, salt, device_id)
    total, upto = sum(weights), 0.0
    for index, weight in enumerate(weights):
        upto += weight
        if at < int(upto / total * _WHOLE):
            return index
    return len(weights) - 1
