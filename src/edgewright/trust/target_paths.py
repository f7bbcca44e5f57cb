"""Under which paths things are signed and lie: who signs a path decides what it may be."""

from edgewright.contract.names import checked_name, checked_version

__all__ = ["blob_name", "is_online", "permit_path", "plan_path", "policy_path", "queries_path", "release_path"]


def release_path(model: str, version: str) -> str:
    """Return where a manifest is; the releases' keys sign it.

    >>> release_path("digits", "1.0.0")
    'releases/digits/1.0.0.json'
    """
    return f"releases/{checked_name('model', model)}/{checked_version(version)}.json"


def policy_path(model: str, device_class: str) -> str:
    """Return where a policy is; the releases' keys sign it."""
    return f"policies/{checked_name('model', model)}/{checked_name('device class', device_class)}.json"


def plan_path(model: str, device_class: str) -> str:
    """Return where a plan is; the key for rollouts signs it."""
    return f"rollouts/{checked_name('model', model)}/{checked_name('device class', device_class)}.json"


def permit_path(model: str, device_class: str) -> str:
    """Return where it is said what devices may be asked; the releases' keys sign it."""
    return f"permits/{checked_name('model', model)}/{checked_name('device class', device_class)}.json"


def queries_path(model: str, device_class: str) -> str:
    """Return where it is said what devices are asked; the key for rollouts signs it."""
    return f"questions/{checked_name('model', model)}/{checked_name('device class', device_class)}.json"


def is_online(path: str) -> bool:
    """Whether the online keys sign a path."""
    return path.partition("/")[0] in ("rollouts", "questions")


def blob_name(digest: str) -> str:
    """Return where the bytes of a digest lie."""
    return f"blobs/{digest[:2]}/{digest}"
