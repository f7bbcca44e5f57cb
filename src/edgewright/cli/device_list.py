"""Which devices there are, from a file that whoever enrols them keeps."""

from pathlib import Path

from edgewright.contract.errors import InputError
from edgewright.privacy.roster import EnrolmentList

__all__ = ["read_enrolled"]

_KEY_BYTES = 32


def read_enrolled(path: Path) -> EnrolmentList:
    """Return the list in a file: a public key a line, hexadecimal; what follows # is for people.

    Raises:
        InputError: It is none.
    """
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
        devices = frozenset(bytes.fromhex(line) for line in lines if line)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} holds no list of devices: {error}", remedy="Write one public key a line, hexadecimal."
        ) from error
    if any(len(device) != _KEY_BYTES for device in devices):
        raise InputError(f"{path} holds a key of another length", remedy="A key has 64 hexadecimal digits.")
    return EnrolmentList(1, devices)
