"""What a device was told when it was enrolled; it changes only by enrolling again."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgewright.contract.errors import InputError, OutputError
from edgewright.contract.names import checked_name
from edgewright.contract.query import Limits
from edgewright.device.files import Files
from edgewright.device.keys import keep_fleet_keys, own_keys
from edgewright.trust.fetch import checked_url
from edgewright.trust.verify import checked_root

__all__ = ["ANCHOR", "Settings", "enrol", "read_settings"]

ANCHOR, _SETTINGS = "root.json", "settings.json"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's enrolment.

    Attributes:
        url: Of the repository, with a slash at its end.
        device_class: Its own; it installs nothing for another.
        device_id: Its own, made here.
        model: Which; "" for the only one that there is a plan for.
        labels: By which rollouts select.
        channel: By which rollouts select, "" for none.
        sealed: Whether models are encrypted at rest.
        installer: Command that images are handed to; none if this device takes no images.
        tpm: Registers of the TPM that the device's key is sealed to; "" for a key in a file.
        limits: What this device's owner lets it tell in private sums.
    """

    url: str
    device_class: str
    device_id: str
    model: str = ""
    labels: dict[str, str] = {}
    channel: str = ""
    sealed: bool = True
    installer: tuple[str, ...] = ()
    tpm: str = ""
    limits: Limits = Limits()


def enrol(
    state: Path,
    *,
    url: str,
    root: bytes,
    device_class: str,
    model: str = "",
    labels: Mapping[str, str] | None = None,
    channel: str = "",
    sealed: bool = True,
    installer: Sequence[str] = (),
    tpm: str = "",
    fleet: Mapping[str, bytes] | None = None,
    limits: Limits | None = None,
) -> Settings:
    """Make a device's state.

    Args:
        state: A new or empty folder.
        url: Of the repository.
        root: That the device believes from now on; it must have come over a way that can be trusted.
        device_class: Of the device.
        model: Which; "" for the only one that there is a plan for.
        labels: By which rollouts select.
        channel: By which rollouts select.
        sealed: Whether models are encrypted at rest.
        installer: Command that images are handed to, such as `rauc`.
        tpm: Registers of the TPM that the device's key is sealed to, such as `sha256:0,2,4,7`.
        fleet: Keys of the fleet by name.
        limits: What its owner lets it tell in private sums.

    Raises:
        InputError: The folder is not empty, something is no name or URL, or the root is none.
        WorkError: The TPM cannot be used.
        OutputError: The folder cannot be written.
    """
    checked_name("device class", device_class)
    for name in filter(None, (model, channel, *(labels or {}))):
        checked_name("label, channel or model", name)
    settings = Settings(
        checked_url(url),
        device_class,
        os.urandom(16).hex(),
        model,
        dict(labels or {}),
        channel,
        sealed,
        tuple(installer),
        tpm,
        limits or Limits(),
    )
    checked_root(root)
    files = Files()
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(state.iterdir()):
            raise InputError(f"{state} is not empty", remedy="Enrol into a new folder; each device has its own.")
        own = own_keys(state, tpm, make=True) if sealed else None
        keep_fleet_keys(state, fleet or {}, own)
        files.write(state / ANCHOR, root)
        files.write(state / _SETTINGS, msgspec.json.format(msgspec.json.encode(settings), indent=1))
    except OSError as error:
        raise OutputError(f"{state} cannot be written: {error.strerror}", remedy="Name another folder.") from error
    return settings


def read_settings(state: Path) -> tuple[Settings, bytes]:
    """Return a device's settings and the root that it was enrolled with.

    Raises:
        InputError: The folder holds no enrolled device.
    """
    try:
        settings = msgspec.json.decode((state / _SETTINGS).read_bytes(), type=Settings)
        return settings, (state / ANCHOR).read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{state} holds no enrolled device", remedy="Run 'edgewright device enrol' first."
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(f"{state} cannot be read: {error}", remedy="Enrol the device again.") from error
