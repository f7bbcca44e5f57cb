"""What a device was told when it was enrolled; it changes only by enrolling again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urljoin

import msgspec

from edgewright.contract.errors import InputError, OutputError, WorkError
from edgewright.contract.names import checked_name
from edgewright.contract.query.query import DeviceQueryLimits
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion, decode_record
from edgewright.device.control_plane_client import enrol_with_token
from edgewright.device.encryption_keys import IDENTITY_KEY_FILE, KEY_FILES, open_device_keys, store_fleet_keys
from edgewright.device.filesystem import FileSystem
from edgewright.trust.client.fetcher import checked_url, open_pool
from edgewright.trust.client.verification import verified_root
from edgewright.trust.keys.device_identity import device_id_of, load_or_create_device_key

__all__ = ["ROOT_FILE", "DeviceSettings", "enrol_at_server", "enrol_offline", "read_settings"]

ROOT_FILE, _SETTINGS_FILE = "root.json", "settings.json"
# Longest wait for the server, seconds.
_TIMEOUT_SECONDS = 20.0


class DeviceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device's enrolment.

    Attributes:
        repository_url: Of the repository, with a slash at its end.
        device_class: Its own; it installs nothing for another.
        device_id: Its own, which its key alone can prove.
        model: Which; "" for the only one that there is a plan for.
        labels: By which rollouts select.
        channel: By which rollouts select, "" for none.
        encrypted: Whether models are encrypted at rest.
        installer: Command that images are handed to; none if this device takes no images.
        tpm_pcrs: Registers of the TPM that the device's key is sealed to; "" for a key in a file.
        query_limits: What this device's owner lets it tell in private sums.
        server_url: URL of the control plane, with a slash at its end; "" for none.
        audience: Whom requests to it are signed for.
        profiling: Whether this device takes profiling jobs.
        schema: Version of the device's state folder.
    """

    repository_url: str
    device_class: str
    device_id: str
    model: str = ""
    labels: dict[str, str] = {}
    channel: str = ""
    encrypted: bool = True
    installer: tuple[str, ...] = ()
    tpm_pcrs: str = ""
    query_limits: DeviceQueryLimits = DeviceQueryLimits()
    server_url: str = ""
    audience: str = ""
    profiling: bool = False
    schema: SchemaVersion


def enrol_offline(
    state_folder: Path,
    *,
    repository_url: str,
    root: bytes,
    device_class: str,
    model: str = "",
    labels: Mapping[str, str] | None = None,
    channel: str = "",
    encrypted: bool = True,
    installer: Sequence[str] = (),
    tpm_pcrs: str = "",
    fleet_keys: Mapping[str, bytes] | None = None,
    query_limits: DeviceQueryLimits | None = None,
) -> DeviceSettings:
    """Make a device's state.

    Args:
        state_folder: A new or empty folder.
        repository_url: Of the repository.
        root: That the device believes from now on; it must have come over a way that can be trusted.
        device_class: Of the device.
        model: Which; "" for the only one that there is a plan for.
        labels: By which rollouts select.
        channel: By which rollouts select.
        encrypted: Whether models are encrypted at rest.
        installer: Command that images are handed to, such as `rauc`.
        tpm_pcrs: Registers of the TPM that the device's key is sealed to, such as `sha256:0,2,4,7`.
        fleet_keys: Keys of the fleet by name.
        query_limits: What its owner lets it tell in private sums.

    Raises:
        InputError: The folder is not empty, something is no name or URL, or the root is none.
        WorkError: The TPM cannot be used.
        OutputError: The folder cannot be written.
    """
    checked_name("device class", device_class)
    for name in filter(None, (model, channel, *(labels or {}))):
        checked_name("label, channel or model", name)
    repository_url = checked_url(repository_url)
    verified_root(root)
    settings = DeviceSettings(
        schema=SCHEMA_VERSION,
        repository_url=repository_url,
        device_class=device_class,
        device_id=_create_identity(state_folder),
        model=model,
        labels=dict(labels or {}),
        channel=channel,
        encrypted=encrypted,
        installer=tuple(installer),
        tpm_pcrs=tpm_pcrs,
        query_limits=query_limits or DeviceQueryLimits(),
    )
    return _store_settings(state_folder, settings, root, fleet_keys or {})


def enrol_at_server(
    state_folder: Path,
    *,
    server_url: str,
    token: str,
    root: bytes,
    model: str = "",
    encrypted: bool = True,
    installer: Sequence[str] = (),
    tpm_pcrs: str = "",
    fleet_keys: Mapping[str, bytes] | None = None,
    query_limits: DeviceQueryLimits | None = None,
) -> DeviceSettings:
    """Make a device's state as a control plane says: it gives class, labels, channel and repository.

    What it cannot give is the root. If this breaks off, it can be done again with the same token: the device's key
    stays.

    Args:
        state_folder: As for `enrol_offline`, and likewise below.
        server_url: URL of the control plane.
        token: That somebody was given there for this device.
        root: Of the fleet; it must have come over a way that can be trusted, so never from the server.
        model: As for `enrol_offline`.
        encrypted: As for `enrol_offline`.
        installer: As for `enrol_offline`.
        tpm_pcrs: As for `enrol_offline`.
        fleet_keys: As for `enrol_offline`.
        query_limits: As for `enrol_offline`.

    Raises:
        InputError: The folder is not empty, something is no name, token or URL, or the root is none.
        WorkError: The server does not enrol this device, or the TPM cannot be used.
        OutputError: The folder cannot be written.
    """
    if model:
        checked_name("model", model)
    server_url = checked_url(server_url, "a control plane")
    verified_root(root)
    device_id = _create_identity(state_folder)
    said = enrol_with_token(
        open_pool(_TIMEOUT_SECONDS), server_url, token, load_or_create_device_key(state_folder / IDENTITY_KEY_FILE)
    )
    try:
        url = checked_url(urljoin(server_url, said.repository))
    except (InputError, ValueError) as error:
        raise WorkError(
            f"{server_url} names the repository {said.repository[:80]!r}", remedy="Ask whoever runs it."
        ) from error
    settings = DeviceSettings(
        schema=SCHEMA_VERSION,
        repository_url=url,
        device_class=said.device_class,
        device_id=device_id,
        model=model,
        labels=said.labels,
        channel=said.channel,
        encrypted=encrypted,
        installer=tuple(installer),
        tpm_pcrs=tpm_pcrs,
        query_limits=query_limits or DeviceQueryLimits(),
        server_url=server_url,
        audience=said.audience,
        profiling=said.profiling,
    )
    return _store_settings(state_folder, settings, root, fleet_keys or {})


def _create_identity(state: Path) -> str:
    """Return the name of the device to be in a folder; its key is made there.

    Raises:
        InputError: The folder holds something else.
        OutputError: It cannot be written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = {path.name for path in state.iterdir()}
        remains = {name.removeprefix(".").removesuffix(".new") for name in names}
        # The settings come last: without them, all this is of an enrolment that broke off.
        if not remains <= {*KEY_FILES, IDENTITY_KEY_FILE, ROOT_FILE, _SETTINGS_FILE} or _SETTINGS_FILE in names:
            raise InputError(f"{state} is not empty", remedy="Enrol into a new folder; each device has its own.")
        for name in names - {IDENTITY_KEY_FILE}:
            FileSystem().remove(state / name)
    except OSError as error:
        raise _unwritable_state_error(state, error) from error
    return device_id_of(load_or_create_device_key(state / IDENTITY_KEY_FILE).public)


def _store_settings(
    state: Path, settings: DeviceSettings, root: bytes, fleet: Mapping[str, bytes]
) -> DeviceSettings:
    files = FileSystem()
    try:
        own = open_device_keys(state, settings.tpm_pcrs, create=True) if settings.encrypted else None
        store_fleet_keys(state, fleet, own)
        files.write(state / ROOT_FILE, root)
        files.write(state / _SETTINGS_FILE, msgspec.json.format(msgspec.json.encode(settings), indent=1))
    except OSError as error:
        raise _unwritable_state_error(state, error) from error
    return settings


def _unwritable_state_error(state: Path, error: OSError) -> OutputError:
    return OutputError(f"{state} cannot be written: {error.strerror}", remedy="Name another folder.")


def read_settings(state_folder: Path) -> tuple[DeviceSettings, bytes]:
    """Return a device's settings and the root that it was enrolled with.

    Raises:
        InputError: The folder holds no enrolled device.
    """
    try:
        settings = decode_record((state_folder / _SETTINGS_FILE).read_bytes(), type=DeviceSettings)
        return settings, (state_folder / ROOT_FILE).read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{state_folder} holds no enrolled device", remedy="Run 'edgewright device enrol' first."
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(
            f"{state_folder} cannot be read, or was made by another version: {error}",
            remedy=f"Enrol the device again in a new folder; this version reads schema version {SCHEMA_VERSION}.",
        ) from error
