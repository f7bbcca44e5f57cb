"""A device's answers to private sums over HTTP, and what must outlive the process that gives them.

The protocols are `edgewright.privacy`'s. Here their letters are stored before they are sent and sent until they
arrive, so a device that lost power says the same again. The helper's record of used seeds is a file likewise.
"""

import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec
import urllib3

from edgewright.contract.errors import OutputError
from edgewright.device.control_plane_client import UnansweredError, send
from edgewright.device.filesystem import Files
from edgewright.privacy import secagg_client
from edgewright.privacy.aggregation_handler import Refused
from edgewright.privacy.bit_packing import Words
from edgewright.privacy.helper import UsedInMemory, give
from edgewright.privacy.roster import DeclinedError, Enrolment, Terms
from edgewright.trust.keys.device_identity import DeviceKey
from edgewright.trust.keys.keystore import write_secret

__all__ = ["Kept", "Progress", "SumClient", "UnansweredError", "UsedFile", "post"]

Progress = Literal["joined", "shared", "masked", "revealed", "given", "waiting"]

_OK, _EARLY = 200, 409
# For a whole answer, seconds.
_PATIENCE_S = 60.0
_LARGEST = 64 << 20
_RECORD = struct.Struct(">32s32sI")  # key of the answer, what was asked, number of tags
_TAG_BYTES, _CHECK_BYTES = 16, 16
_STEPS = {"joined": "join", "shared": "share", "masked": "mask", "revealed": "reveal"}


class Kept:
    """What a device has said, in files that only it can read, there before anything is sent.

    Args:
        folder: For them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        """Return what was stored under a name, None if nothing was."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Store bytes under a name; they survive a power cut from the return on.

        Raises:
            OutputError: They cannot be written.
        """
        write_secret(self._folder / name, content)

    def forget(self, keep: Iterable[str]) -> None:
        """Remove what need not be said again: all but what is stored for these sums."""
        kept = set(keep)
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name.partition(".")[0] not in kept:
                    path.unlink(missing_ok=True)


def post(pool: urllib3.PoolManager, url: str, body: bytes) -> bytes:
    """Send bytes to a desk, and return its answer.

    Raises:
        DeclinedError: The desk refuses; with reason `step` if it does so for now.
        UnansweredError: It cannot be reached, or the answer is none of a desk.
    """
    answer = send(pool, url, body, largest=_LARGEST, patience_s=_PATIENCE_S)
    if answer.status == _OK:
        return answer.content
    try:
        refused = msgspec.msgpack.decode(answer.content, type=Refused)
    except msgspec.MsgspecError:
        raise UnansweredError(f"{url} answered {answer.status}", remedy="It is tried again.") from None
    raise DeclinedError(refused.reason, refused.message, refused.culprits)


class SumClient:
    """Answers a server's private sums.

    Args:
        url: Of the server's desk, without a slash at its end.
        key: Of the device.
        kept: What it has said.
        pool: Of connections; its timeouts hold for each request.
    """

    def __init__(self, url: str, key: DeviceKey, kept: Kept, pool: urllib3.PoolManager) -> None:
        self._url, self._key, self._kept, self._pool = url, key, kept, pool

    def give(self, terms: Terms, helper: bytes, values: Callable[[], Words]) -> Progress:
        """Answer a sum that has a helper.

        Args:
            terms: From the device's own check of the signed query.
            helper: Public key of the helper, from the same query.
            values: Returns the noised values; called once in the life of a query and its window.

        Raises:
            DeclinedError: This was asked before under other terms, or the server refuses.
            UnansweredError: The server cannot be reached.
        """
        name = terms.once.hex()
        stored = self._kept.read(name)
        if stored is None:
            stored = terms.digest + give(terms, helper, values(), self._key.public, self._key.private.sign)
            self._kept.write(name, stored)
        if stored[:32] != terms.digest:
            raise DeclinedError("repeat", "this query was answered for this window under other terms")
        if self._kept.read(f"{name}.sent") is None:
            self._send(terms, "gift", stored[32:])
            self._kept.write(f"{name}.sent", b"given")
        return "given"

    def poll(self, terms: Terms, values: Callable[[], Words], *, enrolled: Enrolment | None = None) -> Progress:
        """Do the next step of a sum without a helper, if the server has what it takes.

        Args:
            terms: From the device's own check of the signed query.
            values: Returns the noised values; called once in the life of a query and its window, unless power is
                cut while they are masked. Nothing was sent then.
            enrolled: Devices that exist, where the device has such a list.

        Returns:
            The step that was done; "waiting" if it was not the time for one, "revealed" if none is left.

        Raises:
            DeclinedError: The device does not go on with this, or the server refuses.
            UnansweredError: The server cannot be reached.
        """
        name, sign = terms.once.hex(), self._key.private.sign
        stored = self._kept.read(name)
        if stored is None:
            return self._keep(terms, secagg_client.join(terms, self._key.public, sign))
        member = msgspec.msgpack.decode(stored, type=secagg_client.Member)
        if member.terms != terms:
            raise DeclinedError("repeat", "this query was answered for this window under other terms")
        if self._kept.read(f"{name}.sent") != member.step.encode():
            return self._tell(terms, member)
        try:
            if member.step == "joined":
                return self._keep(
                    terms, secagg_client.share(member, self._pull(terms, "roster"), sign, enrolled=enrolled)
                )
            if member.step == "shared":
                inbox = self._pull(terms, f"inbox/{member.device.hex()}")
                return self._keep(terms, secagg_client.mask(member, inbox, values(), sign))
            if member.step == "masked":
                return self._keep(terms, secagg_client.reveal(member, self._pull(terms, "lists"), sign))
        except _TooEarly:
            return "waiting"
        return "revealed"

    def _keep(self, terms: Terms, member: secagg_client.Member) -> Progress:
        self._kept.write(terms.once.hex(), msgspec.msgpack.encode(member))
        return self._tell(terms, member)

    def _tell(self, terms: Terms, member: secagg_client.Member) -> Progress:
        self._send(terms, _STEPS[member.step], member.said)
        self._kept.write(f"{terms.once.hex()}.sent", member.step.encode())
        return member.step

    def _send(self, terms: Terms, act: str, content: bytes) -> None:
        post(self._pool, f"{self._url}/sums/{terms.digest.hex()}/{act}", content)

    def _pull(self, terms: Terms, act: str) -> bytes:
        try:
            return post(self._pool, f"{self._url}/sums/{terms.digest.hex()}/{act}", b"")
        except DeclinedError as error:
            if error.reason == "step":
                raise _TooEarly from error
            raise


class _TooEarly(Exception):  # noqa: N818 - nothing went wrong
    """The server does not have what is pulled yet."""


class UsedFile(UsedInMemory):
    """What a helper must never forget, at the end of a file that only grows. See `privacy.helper.Used`.

    A record that a power cut left half is of an answer that was never given; it is cut off.

    Args:
        path: Of the file; one process at a time may have it open.

    Raises:
        OutputError: The file cannot be opened, another process has it, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = path.read_bytes()
            sound = self._load(content)
            if sound < len(content):
                os.ftruncate(self._descriptor, sound)
            os.fsync(self._descriptor)
            Files().sync(path.parent)
        except OSError as error:
            raise OutputError(
                f"the record of used seeds {path} cannot be opened: {error.strerror}",
                remedy="Permit writing there, and end the helper that has it open.",
            ) from error
        self._path = path
        self._broken = False

    def claim(self, once: bytes, asked: bytes, tags: Iterable[bytes]) -> None:
        """See `Used`.

        Raises:
            OutputError: The record cannot be written, so there is no answer.
        """
        listed = list(tags)
        content = _RECORD.pack(once, asked, len(listed)) + b"".join(listed)
        content += _check(content)
        try:
            if self._broken:  # what was written last may be half a record, and nothing may follow it
                raise OSError(0, "writing failed before")
            self._broken = True
            if os.write(self._descriptor, content) != len(content):
                raise OSError(0, "the disk is full")
            os.fsync(self._descriptor)
            self._broken = False
        except OSError as error:
            raise OutputError(
                f"the record of used seeds {self._path} cannot be written: {error.strerror}",
                remedy="Free space; start the helper again.",
            ) from error
        super().claim(once, asked, listed)

    def close(self) -> None:
        """Let others open the file."""
        os.close(self._descriptor)

    def _load(self, content: bytes) -> int:
        """Take over what is in the file, and return how much of it is whole."""
        start = 0
        while start + _RECORD.size <= len(content):
            once, asked, count = _RECORD.unpack_from(content, start)
            tags = start + _RECORD.size
            end = tags + count * _TAG_BYTES
            if end + _CHECK_BYTES > len(content):
                break
            if content[end : end + _CHECK_BYTES] != _check(content[start:end]):
                raise OSError(0, "it is damaged")
            super().claim(once, asked, (content[at : at + _TAG_BYTES] for at in range(tags, end, _TAG_BYTES)))
            start = end + _CHECK_BYTES
        return start


def _check(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECK_BYTES]
