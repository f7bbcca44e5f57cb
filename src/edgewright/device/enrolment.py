"""What a device was told when it was enrolled; it changes only by enrolling again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urljoin

import msgspec

from edgewright.contract.errors import InputError, OutputError, WorkError
from edgewright.contract.names import checked_name
from edgewright.contract.query.query import Limits
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion, decode_record
from edgewright.device.control_plane_client import join
from edgewright.device.encryption_keys import IDENTITY, MADE, keep_fleet_keys, own_keys
from edgewright.device.filesystem import Files
from edgewright.trust.client.fetcher import checked_url, open_pool
from edgewright.trust.client.verification import checked_root
from edgewright.trust.keys.device_identity import device_id_of, new_device_key

__all__ = ["ANCHOR", "Settings", "enrol", "enrol_at", "read_settings"]

ANCHOR, _SETTINGS = "root.json", "settings.json"
# Longest wait for the server, seconds.
_PATIENCE_S = 20.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device's enrolment.

    Attributes:
        url: Of the repository, with a slash at its end.
        device_class: Its own; it installs nothing for another.
        device_id: Its own, which its key alone can prove.
        model: Which; "" for the only one that there is a plan for.
        labels: By which rollouts select.
        channel: By which rollouts select, "" for none.
        sealed: Whether models are encrypted at rest.
        installer: Command that images are handed to; none if this device takes no images.
        tpm: Registers of the TPM that the device's key is sealed to; "" for a key in a file.
        limits: What this device's owner lets it tell in private sums.
        server: URL of the control plane, with a slash at its end; "" for none.
        audience: Whom requests to it are signed for.
        bench: Whether this device takes profiling jobs.
        schema: Version of the device's state folder.
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
    server: str = ""
    audience: str = ""
    bench: bool = False
    schema: SchemaVersion


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
    url = checked_url(url)
    checked_root(root)
    settings = Settings(
        schema=SCHEMA_VERSION,
        url=url,
        device_class=device_class,
        device_id=_own_id(state),
        model=model,
        labels=dict(labels or {}),
        channel=channel,
        sealed=sealed,
        installer=tuple(installer),
        tpm=tpm,
        limits=limits or Limits(),
    )
    return _kept(state, settings, root, fleet or {})


def enrol_at(
    state: Path,
    *,
    server: str,
    token: str,
    root: bytes,
    model: str = "",
    sealed: bool = True,
    installer: Sequence[str] = (),
    tpm: str = "",
    fleet: Mapping[str, bytes] | None = None,
    limits: Limits | None = None,
) -> Settings:
    """Make a device's state as a control plane says: it gives class, labels, channel and repository.

    What it cannot give is the root. If this breaks off, it can be done again with the same token: the device's key
    stays.

    Args:
        state: As for `enrol`, and likewise below.
        server: URL of the control plane.
        token: That somebody was given there for this device.
        root: Of the fleet; it must have come over a way that can be trusted, so never from the server.
        model: As for `enrol`.
        sealed: As for `enrol`.
        installer: As for `enrol`.
        tpm: As for `enrol`.
        fleet: As for `enrol`.
        limits: As for `enrol`.

    Raises:
        InputError: The folder is not empty, something is no name, token or URL, or the root is none.
        WorkError: The server does not enrol this device, or the TPM cannot be used.
        OutputError: The folder cannot be written.
    """
    if model:
        checked_name("model", model)
    server = checked_url(server, "a control plane")
    checked_root(root)
    device_id = _own_id(state)
    said = join(open_pool(_PATIENCE_S), server, token, new_device_key(state / IDENTITY))
    try:
        url = checked_url(urljoin(server, said.repository))
    except (InputError, ValueError) as error:
        raise WorkError(
            f"{server} names the repository {said.repository[:80]!r}", remedy="Ask whoever runs it."
        ) from error
    settings = Settings(
        schema=SCHEMA_VERSION,
        url=url,
        device_class=said.device_class,
        device_id=device_id,
        model=model,
        labels=said.labels,
        channel=said.channel,
        sealed=sealed,
        installer=tuple(installer),
        tpm=tpm,
        limits=limits or Limits(),
        server=server,
        audience=said.audience,
        bench=said.bench,
    )
    return _kept(state, settings, root, fleet or {})


def _own_id(state: Path) -> str:
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
        if not remains <= {*MADE, IDENTITY, ANCHOR, _SETTINGS} or _SETTINGS in names:
            raise InputError(f"{state} is not empty", remedy="Enrol into a new folder; each device has its own.")
        for name in names - {IDENTITY}:
            Files().remove(state / name)
    except OSError as error:
        raise _unwritable(state, error) from error
    return device_id_of(new_device_key(state / IDENTITY).public)


def _kept(state: Path, settings: Settings, root: bytes, fleet: Mapping[str, bytes]) -> Settings:
    files = Files()
    try:
        own = own_keys(state, settings.tpm, make=True) if settings.sealed else None
        keep_fleet_keys(state, fleet, own)
        files.write(state / ANCHOR, root)
        files.write(state / _SETTINGS, msgspec.json.format(msgspec.json.encode(settings), indent=1))
    except OSError as error:
        raise _unwritable(state, error) from error
    return settings


def _unwritable(state: Path, error: OSError) -> OutputError:
    return OutputError(f"{state} cannot be written: {error.strerror}", remedy="Name another folder.")


def read_settings(state: Path) -> tuple[Settings, bytes]:
    """Return a device's settings and the root that it was enrolled with.

    Raises:
        InputError: The folder holds no enrolled device.
    """
    try:
        settings = decode_record((state / _SETTINGS).read_bytes(), type=Settings)
        return settings, (state / ANCHOR).read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{state} holds no enrolled device", remedy="Run 'edgewright device enrol' first."
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(
            f"{state} cannot be read, or was made by another version: {error}",
            remedy=f"Enrol the device again in a new folder; this version reads schema version {SCHEMA_VERSION}.",
        ) from error
