"""What metadata may say, besides being signed: who signs must not be made to sign more than a person was shown.

Whose keys count follows from the root alone. So the delegations of `targets` and `bins` are not a matter of trust
but of arithmetic: they are compared with what the root gives.
"""

import datetime
from typing import Any

from tuf.api.metadata import DelegatedRole, Delegations, Key, Metadata, Root, SuccinctRoles, Targets

from edgewright.trust.keys.signing_keys import PublicKey
from edgewright.trust.target_paths import is_online

__all__ = [
    "BINS",
    "BIN_PREFIX",
    "LIFETIMES",
    "ROLLOUTS",
    "bin_delegations",
    "lifetime_of",
    "metadata_faults",
    "top_level_delegations",
]

ROLLOUTS, BINS, BIN_PREFIX = "rollouts", "bins", "bin"
_DAY = datetime.timedelta(days=1)
LIFETIMES: dict[str, datetime.timedelta] = {
    "timestamp": _DAY,
    "snapshot": 7 * _DAY,
    ROLLOUTS: 7 * _DAY,
    Targets.type: 90 * _DAY,
    BINS: 90 * _DAY,
    BIN_PREFIX: 90 * _DAY,
    Root.type: 365 * _DAY,
}
_RELEASES = ("releases/*/*", "policies/*/*", "permits/*/*")
_ROLLOUTS = ("rollouts/*/*", "questions/*/*")
# What was prepared on a machine whose clock is a little ahead.
_MAX_CLOCK_SKEW = datetime.timedelta(hours=1)


def lifetime_of(name: str) -> datetime.timedelta:
    """Return how long new metadata of a role is valid."""
    return LIFETIMES[BIN_PREFIX if name.startswith(f"{BIN_PREFIX}-") else name]


def top_level_delegations(root: Root) -> Delegations:
    """Return to whom `targets` delegates: what is offline to the releases' keys, the rest to the online."""
    releases, online = root.roles[Targets.type], root.roles["timestamp"]
    return Delegations(
        keys={keyid: root.keys[keyid] for keyid in (*releases.keyids, *online.keyids)},
        roles={
            ROLLOUTS: DelegatedRole(ROLLOUTS, list(online.keyids), online.threshold, True, list(_ROLLOUTS)),
            BINS: DelegatedRole(BINS, list(releases.keyids), releases.threshold, True, list(_RELEASES)),
        },
    )


def bin_delegations(root: Root, bits: int) -> Delegations:
    """Return to whom `bins` delegates: 2**bits roles of the releases' keys."""
    releases = root.roles[Targets.type]
    return Delegations(
        keys={keyid: root.keys[keyid] for keyid in releases.keyids},
        succinct_roles=SuccinctRoles(list(releases.keyids), releases.threshold, bits, BIN_PREFIX),
    )


def metadata_faults(
    name: str, metadata: Metadata[Any], root: Root, *, bits: int | None, before: int, now: datetime.datetime
) -> list[str]:
    """Return in words what metadata must not say, nothing if it may be signed and landed.

    Args:
        name: Of the metadata.
        metadata: About to be signed or landed.
        root: That counts from then on.
        bits: Of the bins that there are; None if there are none yet.
        before: Version that it replaces, 0 if it is the first.
        now: The clock.
    """
    signed = metadata.signed
    found = []
    if signed.version <= before:
        found.append(f"{name} {signed.version} does not follow {before}")
    if signed.expires > now + lifetime_of(name) + _MAX_CLOCK_SKEW:
        found.append(f"{name} is to be valid until {signed.expires:%Y-%m-%d}, too long")
    if isinstance(signed, Root):
        return found + _of_root(signed, before)
    if not isinstance(signed, Targets):
        return [*found, f"{name} is metadata of the type {signed.type}"]
    expected: Delegations | None = None
    if name == Targets.type:
        expected = top_level_delegations(root)
    elif name == BINS:
        given = signed.delegations.succinct_roles if signed.delegations is not None else None
        expected = bin_delegations(root, bits if bits is not None else 0 if given is None else given.bit_length)
    if _as_dict(signed.delegations) != _as_dict(expected):
        found.append(f"{name} delegates otherwise than the root says")
    return found + [f"{name} must not name {path}" for path in signed.targets if not _may_name(name, path, bits)]


def _of_root(root: Root, before: int) -> list[str]:
    found = [] if root.version == before + 1 else [f"root {root.version} does not follow {before}"]
    if set(root.roles) != {Root.type, Targets.type, "snapshot", "timestamp"} or not root.consistent_snapshot:
        found.append("the root has other roles than it must have")
    found += [
        f"the key {keyid[:16]} is another one than its name says" for keyid in root.keys if not _is(root, keyid)
    ]
    return found


def _is(root: Root, keyid: str) -> bool:
    """Whether a key's name is the digest of its value: a person recognises keys by their names."""
    key: Key = root.keys[keyid]
    value = str(key.keyval.get("public", ""))
    try:
        named = PublicKey("", (), value).keyid
    except ValueError:
        return False
    return keyid == named and (key.keytype, key.scheme) == ("ed25519", "ed25519")


def _may_name(name: str, path: str, bits: int | None) -> bool:
    folder = path.partition("/")[0]
    if name == ROLLOUTS:
        return is_online(path)
    if not name.startswith(f"{BIN_PREFIX}-") or bits is None:
        return False
    return (
        folder in ("releases", "policies", "permits")
        and SuccinctRoles([], 1, bits, BIN_PREFIX).get_role_for_target(path) == name
    )


def _as_dict(delegations: Delegations | None) -> dict[str, Any] | None:
    return None if delegations is None else delegations.to_dict()
