"""The repository's files, as devices fetch them: what is public alone, by names of one form.

A cache in front may keep what is named by its content for ever, and must ask again for the rest.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from edgewright.contract.errors import EdgewrightError
from edgewright.server.device_api.asgi import (
    AsgiScope,
    AsgiSend,
    ResponseError,
    not_found,
    send_response,
    service_unavailable,
)
from edgewright.trust.storage.storage import Storage as Files

__all__ = ["RepositoryFiles"]

_T = TypeVar("_T")

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,180}"
# As `trust/repository/repository.py` lays a repository out; what waits for signatures and
# who writes are nobody's business.
_PUBLIC = re.compile(
    rf"metadata/{_PART}\.json|targets/{_PART}/{_PART}/{_PART}\.json|cards/{_PART}/{_PART}\.(?:md|json)"
    r"|blobs/[0-9a-f]{2}/[0-9a-f]{64}",
    re.ASCII,
)
_IMMUTABLE_CACHE = b"public, max-age=31536000, immutable"
# Bytes of blobs that are read into memory at the same time; one alone may be longer.
_MAX_LENT_BYTES = 512 << 20
_THREADS = 4


@dataclass(slots=True)
class RepositoryFiles:
    """Answers for files.

    Attributes:
        files: Where the repository lies.
    """

    files: Files
    # Its own threads: where the database is away, files still go out.
    _threads: ThreadPoolExecutor = field(init=False, default_factory=lambda: ThreadPoolExecutor(_THREADS, "files"))
    _lent_bytes: int = field(init=False, default=0)

    async def respond(self, name: str, scope: AsgiScope, send: AsgiSend) -> None:
        """Answer for a file.

        Args:
            name: Of the file in the repository.
            scope: Of the request.
            send: Of the request.

        Raises:
            AnswerError: There is none, or the store does not answer.
        """
        if not _PUBLIC.fullmatch(name):
            raise not_found(f"/repo/{name}")
        if name.startswith("blobs/"):
            await self._blob(name, scope, send)
            return
        content = await self._in_thread(self.files.read, name)
        if content is None:
            raise not_found(f"/repo/{name}")
        tag = hashlib.sha256(content).hexdigest()[:32]
        await _give(scope, send, content, len(content), tag, b"no-cache")

    async def _blob(self, name: str, scope: AsgiScope, send: AsgiSend) -> None:
        """Answer for what is named by its content: without reading it, if it is known there already."""
        length = await self._in_thread(self.files.size, name)
        if length is None:
            raise not_found(f"/repo/{name}")
        tag = name.rpartition("/")[2][:32]
        if scope["method"] == "HEAD" or _is_known(dict(scope["headers"]), tag):
            await _give(scope, send, b"", length, tag, _IMMUTABLE_CACHE)
            return
        if self._lent_bytes and self._lent_bytes + length > _MAX_LENT_BYTES:
            raise service_unavailable("too many devices fetch at the same time")
        self._lent_bytes += length
        try:
            content = await self._in_thread(self.files.read, name)
            if content is None:
                raise not_found(f"/repo/{name}")
            await _give(scope, send, content, len(content), tag, _IMMUTABLE_CACHE)
        finally:
            self._lent_bytes -= length

    async def _in_thread(self, work: Callable[[str], _T], name: str) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, name)
        except EdgewrightError as error:
            raise service_unavailable("the repository's store does not answer") from error


async def _give(scope: AsgiScope, send: AsgiSend, content: bytes, length: int, tag: str, cached: bytes) -> None:
    """Answer with a file, or with as much of it as is wanted.

    Args:
        scope: Of the request.
        send: Of the request.
        content: Of the file; not needed if only its headers are wanted.
        length: Of the file.
        tag: That names its content.
        cached: How a cache may keep it.
    """
    headers = dict(scope["headers"])
    extra = [(b"etag", f'"{tag}"'.encode()), (b"cache-control", cached), (b"accept-ranges", b"bytes")]
    kind = b"application/octet-stream"
    if _is_known(headers, tag):
        await send_response(send, 304, b"", extra)
        return
    if scope["method"] == "HEAD":
        await send_response(send, 200, b"", extra, kind, head_of=length)
        return
    wanted = _requested_range(headers, tag, length)
    if wanted is None:
        await send_response(send, 200, content, extra, kind)
    elif wanted[0] >= length:
        raise ResponseError(416, not_found("that range").problem, (b"content-range", f"bytes */{length}".encode()))
    else:
        begin, end = wanted
        extra.append((b"content-range", f"bytes {begin}-{end - 1}/{length}".encode()))
        await send_response(send, 206, content[begin:end], extra, kind)


def _is_known(headers: dict[bytes, bytes], tag: str) -> bool:
    """Whether whoever asks has this content already, RFC 9110, 13.1.2."""
    known = headers.get(b"if-none-match", b"")
    return known.strip() == b"*" or f'"{tag}"'.encode() in {
        each.strip().removeprefix(b"W/") for each in known.split(b",")
    }


def _requested_range(headers: dict[bytes, bytes], tag: str, length: int) -> tuple[int, int] | None:
    """Return which bytes of a file are wanted; None for all of them, also where the wish is not understood."""
    match = re.fullmatch(rb"bytes=(\d{1,15})-(\d{0,15})", headers.get(b"range", b""))
    if match is None or length == 0 or headers.get(b"if-range", f'"{tag}"'.encode()) != f'"{tag}"'.encode():
        return None
    begin, end = int(match[1]), int(match[2]) + 1 if match[2] else length
    return None if end <= begin < length else (begin, min(end, length))
