"""Getting bytes from a server that may be slow, endless or hostile."""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar
from urllib.parse import urlsplit

import urllib3
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    SlowRetrievalError,
)
from tuf.ngclient.fetcher import FetcherInterface

from edgewright.contract.errors import InputError
from edgewright.contract.refusal import RefusalCode, RefusedError
from edgewright.trust.fsync import fsync_path

__all__ = ["Fetcher", "checked_url", "open_pool", "refusal_code_of"]

_CHUNK = 64 * 1024
_MAX_METADATA = 4_000_000
_WHOLE, _PART, _NO_SUCH_RANGE = 200, 206, 416


class Fetcher(FetcherInterface):
    """Fetches over HTTP with limits that a slow or endless server cannot pass.

    Attributes:
        timeout_seconds: Longest wait for a connection and for the next bytes.
        timeout_seconds: After so long, a download must have been faster than `min_rate` on the average.
        least_rate: Bytes per second.
        clock: Monotonic, seconds.
        requests: Made so far.
        received: Bytes of bodies received so far.
        latest: Name of the file that was asked for last.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = 20.0,
        deadline_seconds: float = 30.0,
        min_rate: float = 256.0,
        clock: Callable[[], float] = time.monotonic,
        certificates: str | None = None,
    ) -> None:
        self.timeout_seconds, self.deadline_seconds, self.min_rate, self.clock = (
            timeout_seconds,
            deadline_seconds,
            min_rate,
            clock,
        )
        self.requests = 0
        self.received = 0
        self.latest = ""
        self._pool = open_pool(timeout_seconds, certificates)

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """Yield a file of metadata; a length that an online key has signed does not fill the memory."""
        with super().download_file(url, min(max_length, _MAX_METADATA)) as stream:
            yield stream

    def _fetch(self, url: str) -> Iterator[bytes]:
        response = self._get(url, {})
        if response.status != _WHOLE:
            response.close()
            raise DownloadHTTPError(f"{url} answers with status {response.status}", response.status)
        return self._chunks(response, url)

    def download(self, url: str, path: Path, *, sha256: str, size: int) -> None:
        """Download a file of known content; one that was broken off is gone on with.

        Args:
            url: Of the file.
            path: Where it goes; whole and on the disk on return.
            sha256: Of its bytes, hexadecimal.
            size: Of the file, bytes.

        Raises:
            RefusedError: The server does not answer, is too slow, or has other bytes.
            OSError: The disk is full or broken.
        """
        partial = path.with_name(f"{path.name}.part")
        try:
            have = partial.stat().st_size
        except FileNotFoundError:
            have = 0
        if have != size:
            self._resume(url, partial, have if have < size else 0, size)
        if _digest(partial) != sha256:
            partial.unlink()
            if have:  # what was there before may have been torn by a power cut
                self._resume(url, partial, 0, size)
            if not have or _digest(partial) != sha256:
                partial.unlink(missing_ok=True)
                raise RefusedError("tampered", path.name, f"{url} holds other bytes than were signed")
        partial.replace(path)
        fsync_path(path.parent)

    def _resume(self, url: str, partial: Path, have: int, size: int) -> None:
        name = partial.name.removesuffix(".part")
        try:
            response = self._get(url, {"Range": f"bytes={have}-"} if have else {})
            if response.status not in (_WHOLE, _PART):
                response.close()
                if response.status == _NO_SUCH_RANGE:
                    partial.unlink(missing_ok=True)
                raise DownloadHTTPError(f"{url} answers with status {response.status}", response.status)
            have = have if response.status == _PART else 0
            with partial.open("r+b" if have else "wb") as stream:
                stream.seek(have)
                stream.truncate()
                for chunk in self._chunks(response, url):
                    have += len(chunk)
                    if have > size:
                        stream.truncate(0)
                        raise DownloadLengthMismatchError(f"{url} is longer than the {size} bytes that were signed")
                    stream.write(chunk)
        except DownloadError as error:
            raise RefusedError(
                refusal_code_of(error), name, str(error), remedy="The download goes on later."
            ) from error
        if have < size:
            raise RefusedError(
                "unreachable",
                name,
                f"{url} ended after {have} of {size} bytes",
                remedy="The download goes on later.",
            )

    def _get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        self.requests += 1
        self.latest = urlsplit(url).path.rpartition("/")[2]
        try:
            return self._pool.request(
                "GET",
                url,
                headers={**self._pool.headers, **headers},
                preload_content=False,
                redirect=False,
            )
        except urllib3.exceptions.TimeoutError as error:
            raise SlowRetrievalError(f"{url} does not answer within {self.timeout_seconds:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{url} cannot be reached: {error}") from error

    def _chunks(self, response: urllib3.BaseHTTPResponse, url: str) -> Iterator[bytes]:
        began, received, whole = self.clock(), 0, False
        try:
            while chunk := response.read1(_CHUNK):
                received += len(chunk)
                self.received += len(chunk)
                elapsed = self.clock() - began
                if elapsed > self.deadline_seconds and received < self.min_rate * elapsed:
                    raise SlowRetrievalError(f"{url} gives {received / elapsed:.0f} bytes per second")
                yield chunk
            whole = True
        except urllib3.exceptions.TimeoutError as error:
            raise SlowRetrievalError(f"{url} gave nothing for {self.timeout_seconds:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{url} broke off: {error}") from error
        finally:
            if not whole:  # what is left of the body must not be taken for the next answer
                response.close()
            response.release_conn()


def _digest(path: Path) -> str:
    """Return the sha256 of a file, whose bytes are on the disk on return."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return found


class _DeadlineConnection:
    """A connection whose answer's head must come within a time, however it trickles in."""

    head_seconds: ClassVar[float] = 60.0

    def getresponse(self) -> Any:
        """Return the answer's head, or cut the connection."""
        cut = threading.Timer(self.head_seconds, self._cut)
        cut.daemon = True
        cut.start()
        try:
            return super().getresponse()  # type: ignore[misc]
        finally:
            cut.cancel()

    def _cut(self) -> None:
        sock = getattr(self, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class _HttpConnection(_DeadlineConnection, urllib3.connection.HTTPConnection):
    pass


class _HttpsConnection(_DeadlineConnection, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def open_pool(timeout_seconds: float, certificates: str | None = None) -> urllib3.PoolManager:
    """Return connections that no server holds up for long before it answers; nothing is tried twice.

    Args:
        timeout_seconds: Longest wait for a connection and for the next bytes.
        certificates: File with those that are trusted, the system's if not given.
    """
    pool = urllib3.PoolManager(
        retries=False,
        timeout=urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds),
        headers={"User-Agent": "edgewright", "Accept-Encoding": "identity"},
        ca_certs=certificates,
    )
    pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool


# In this order: the first that an error is an instance of.
_CODES: tuple[tuple[type[Exception], RefusalCode], ...] = (
    (DownloadLengthMismatchError, "oversized"),
    (SlowRetrievalError, "slow"),
    (DownloadHTTPError, "missing"),
    (DownloadError, "unreachable"),
)


def refusal_code_of(error: DownloadError) -> RefusalCode:
    """Return what a failed download is refused as."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def checked_url(url: str, what: str = "a repository") -> str:
    """Return the URL of a repository, with a slash at its end.

    Args:
        url: With http or https.
        what: It is of, for the message.

    Raises:
        InputError: It is none that devices may fetch from.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(
            f"{url!r} is no URL of {what}",
            remedy="Give http:// or https:// with a host, without ? and #. What is fetched is signed in any case.",
        )
    return url if url.endswith("/") else f"{url}/"
