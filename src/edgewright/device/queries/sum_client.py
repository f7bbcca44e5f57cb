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
from edgewright.device.control_plane_client import ServerUnavailableError, send_http
from edgewright.device.filesystem import FileSystem
from edgewright.privacy import secagg_client
from edgewright.privacy.aggregation_handler import AggregationRefusal
from edgewright.privacy.bit_packing import UnsignedArray
from edgewright.privacy.helper import InMemoryUsedSeeds, submit
from edgewright.privacy.roster import DeclinedError, EnrolmentList, ProtocolTerms
from edgewright.trust.keys.device_identity import DeviceKey
from edgewright.trust.keys.keystore import write_secret

__all__ = ["MessageStore", "ServerUnavailableError", "SumClient", "SumProgress", "UsedSeedsFile", "post_bytes"]

SumProgress = Literal["advertised", "shared", "masked", "revealed", "submitted", "waiting"]

_OK, _CONFLICT = 200, 409
# For a whole answer, seconds.
_TIMEOUT_SECONDS = 60.0
_MAX_REPLY_BYTES = 64 << 20
_USED_SEED_RECORD = struct.Struct(">32s32sI")  # key of the answer, what was asked, number of tags
_TAG_BYTES, _CHECK_BYTES = 16, 16
_STEP_ENDPOINTS = {"advertised": "advertise", "shared": "share", "masked": "mask", "revealed": "reveal"}


class MessageStore:
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

    def delete_except(self, retained_sums: Iterable[str]) -> None:
        """Remove what need not be said again: all but what is stored for these sums."""
        kept = set(retained_sums)
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name.partition(".")[0] not in kept:
                    path.unlink(missing_ok=True)


def post_bytes(pool: urllib3.PoolManager, url: str, body: bytes) -> bytes:
    """Send bytes to a desk, and return its answer.

    Raises:
        DeclinedError: The desk refuses; with reason `step` if it does so for now.
        UnansweredError: It cannot be reached, or the answer is none of a desk.
    """
    answer = send_http(pool, url, body, max_bytes=_MAX_REPLY_BYTES, timeout_seconds=_TIMEOUT_SECONDS)
    if answer.status == _OK:
        return answer.content
    try:
        refused = msgspec.msgpack.decode(answer.content, type=AggregationRefusal)
    except msgspec.MsgspecError:
        raise ServerUnavailableError(f"{url} answered {answer.status}", remedy="It is tried again.") from None
    raise DeclinedError(refused.reason, refused.message, refused.blamed_devices)


class SumClient:
    """Answers a server's private sums.

    Args:
        url: Of the server's desk, without a slash at its end.
        key: Of the device.
        kept: What it has said.
        pool: Of connections; its timeouts hold for each request.
    """

    def __init__(self, url: str, key: DeviceKey, messages: MessageStore, pool: urllib3.PoolManager) -> None:
        self._url, self._key, self._messages, self._pool = url, key, messages, pool

    def submit(
        self, terms: ProtocolTerms, helper_public_key: bytes, values: Callable[[], UnsignedArray]
    ) -> SumProgress:
        """Answer a sum that has a helper.

        Args:
            terms: From the device's own check of the signed query.
            helper_public_key: Public key of the helper, from the same query.
            values: Returns the noised values; called once in the life of a query and its window.

        Raises:
            DeclinedError: This was asked before under other terms, or the server refuses.
            UnansweredError: The server cannot be reached.
        """
        name = terms.query_window_digest.hex()
        stored = self._messages.read(name)
        if stored is None:
            stored = terms.digest + submit(
                terms, helper_public_key, values(), self._key.public, self._key.private.sign
            )
            self._messages.write(name, stored)
        if stored[:32] != terms.digest:
            raise DeclinedError("equivocation", "this query was answered for this window under other terms")
        if self._messages.read(f"{name}.sent") is None:
            self._send(terms, "submit", stored[32:])
            self._messages.write(f"{name}.sent", b"submitted")
        return "submitted"

    def poll_step(
        self,
        terms: ProtocolTerms,
        values: Callable[[], UnsignedArray],
        *,
        enrolment_list: EnrolmentList | None = None,
    ) -> SumProgress:
        """Do the next step of a sum without a helper, if the server has what it takes.

        Args:
            terms: From the device's own check of the signed query.
            values: Returns the noised values; called once in the life of a query and its window, unless power is
                cut while they are masked. Nothing was sent then.
            enrolment_list: Devices that exist, where the device has such a list.

        Returns:
            The step that was done; "waiting" if it was not the time for one, "revealed" if none is left.

        Raises:
            DeclinedError: The device does not go on with this, or the server refuses.
            UnansweredError: The server cannot be reached.
        """
        name, sign = terms.query_window_digest.hex(), self._key.private.sign
        stored = self._messages.read(name)
        if stored is None:
            return self._store_and_send(terms, secagg_client.advertise_keys(terms, self._key.public, sign))
        member = msgspec.msgpack.decode(stored, type=secagg_client.ClientState)
        if member.terms != terms:
            raise DeclinedError("equivocation", "this query was answered for this window under other terms")
        if self._messages.read(f"{name}.sent") != member.step.encode():
            return self._send_message(terms, member)
        try:
            if member.step == "advertised":
                return self._store_and_send(
                    terms,
                    secagg_client.share_keys(
                        member, self._pull(terms, "participants"), sign, enrolment_list=enrolment_list
                    ),
                )
            if member.step == "shared":
                inbox = self._pull(terms, f"inbox/{member.device.hex()}")
                return self._store_and_send(terms, secagg_client.mask_values(member, inbox, values(), sign))
            if member.step == "masked":
                return self._store_and_send(
                    terms, secagg_client.reveal_shares(member, self._pull(terms, "survivors"), sign)
                )
        except _NotReadyError:
            return "waiting"
        return "revealed"

    def _store_and_send(self, terms: ProtocolTerms, state: secagg_client.ClientState) -> SumProgress:
        self._messages.write(terms.query_window_digest.hex(), msgspec.msgpack.encode(state))
        return self._send_message(terms, state)

    def _send_message(self, terms: ProtocolTerms, state: secagg_client.ClientState) -> SumProgress:
        self._send(terms, _STEP_ENDPOINTS[state.step], state.last_message)
        self._messages.write(f"{terms.query_window_digest.hex()}.sent", state.step.encode())
        return state.step

    def _send(self, terms: ProtocolTerms, endpoint: str, content: bytes) -> None:
        post_bytes(self._pool, f"{self._url}/sums/{terms.digest.hex()}/{endpoint}", content)

    def _pull(self, terms: ProtocolTerms, endpoint: str) -> bytes:
        try:
            return post_bytes(self._pool, f"{self._url}/sums/{terms.digest.hex()}/{endpoint}", b"")
        except DeclinedError as error:
            if error.reason == "step":
                raise _NotReadyError from error
            raise


class _NotReadyError(Exception):
    """The server does not have what is pulled yet."""


class UsedSeedsFile(InMemoryUsedSeeds):
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
            FileSystem().sync(path.parent)
        except OSError as error:
            raise OutputError(
                f"the record of used seeds {path} cannot be opened: {error.strerror}",
                remedy="Permit writing there, and end the helper that has it open.",
            ) from error
        self._path = path
        self._broken = False

    def claim_seeds(self, query_window_digest: bytes, request_digest: bytes, seed_tags: Iterable[bytes]) -> None:
        """See `Used`.

        Raises:
            OutputError: The record cannot be written, so there is no answer.
        """
        listed = list(seed_tags)
        content = _USED_SEED_RECORD.pack(query_window_digest, request_digest, len(listed)) + b"".join(listed)
        content += _record_checksum(content)
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
        super().claim_seeds(query_window_digest, request_digest, listed)

    def close(self) -> None:
        """Let others open the file."""
        os.close(self._descriptor)

    def _load(self, content: bytes) -> int:
        """Take over what is in the file, and return how much of it is whole."""
        start = 0
        while start + _USED_SEED_RECORD.size <= len(content):
            once, asked, count = _USED_SEED_RECORD.unpack_from(content, start)
            tags = start + _USED_SEED_RECORD.size
            end = tags + count * _TAG_BYTES
            if end + _CHECK_BYTES > len(content):
                break
            if content[end : end + _CHECK_BYTES] != _record_checksum(content[start:end]):
                raise OSError(0, "it is damaged")
            super().claim_seeds(once, asked, (content[at : at + _TAG_BYTES] for at in range(tags, end, _TAG_BYTES)))
            start = end + _CHECK_BYTES
        return start


def _record_checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECK_BYTES]
