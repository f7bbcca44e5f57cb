"""One request over HTTP and its whole answer, within limits of size and time; never sent on to another address."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
import urllib3

from edgewright.contract.door import Problem
from edgewright.contract.errors import InputError, TargetError

__all__ = ["Answer", "checked_server", "exchange", "new_pool"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CONNECT_S, _READ_S, _PATIENCE_S = 10.0, 60.0, 600.0
_PIECE = 1 << 18
_LARGEST_PROBLEM = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered.

    Attributes:
        status: Of HTTP.
        headers: By names in lower case.
        content: The body.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def problem(self) -> Problem:
        """Why the request was not done, as far as the server said so."""
        try:
            return msgspec.json.decode(self.content[:_LARGEST_PROBLEM], type=Problem)
        except (msgspec.DecodeError, ValueError):
            return Problem("", f"the answer has status {self.status}")


def checked_server(url: str, *, secret: bool) -> str:
    """Return the address of a server, with a slash at its end.

    Args:
        url: As it was given.
        secret: Whether what is sent there must not be overheard.

    Raises:
        InputError: It is none, or everybody on the way would read along.

    >>> checked_server("https://fleet.example", secret=True)
    'https://fleet.example/'
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or parts.username or parts.password:
        raise InputError(
            f"{url[:200]!r} is no address of a server", remedy="Give it as https://host, with a :port if need be."
        )
    if secret and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise InputError(
            f"{url[:200]} would send the token without encryption",
            remedy="Use https. Only this machine's own addresses may do without.",
        )
    return url if url.endswith("/") else f"{url}/"


def new_pool() -> urllib3.PoolManager:
    """Return a pool of connections."""
    return urllib3.PoolManager(
        retries=False,
        timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
        headers={"User-Agent": "edgewright", "Accept-Encoding": "identity"},
    )


def exchange(
    pool: urllib3.PoolManager,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes = b"",
    most_bytes: int = _LARGEST_PROBLEM,
    patience_s: float = _PATIENCE_S,
) -> Answer:
    """Send a request and return the answer, whatever its status is.

    Args:
        pool: Of connections.
        method: Of the request.
        url: Of the request.
        headers: Of the request.
        body: Of the request.
        most_bytes: Of the answer's body.
        patience_s: For the whole answer.

    Raises:
        TargetError: The server cannot be reached, or its answer is too long or too slow.
    """
    ends = time.monotonic() + patience_s
    content = bytearray()
    try:
        answer = pool.request(
            method,
            url,
            body=body,
            headers={**pool.headers, **headers},
            preload_content=False,
            redirect=False,
            timeout=urllib3.Timeout(connect=min(_CONNECT_S, patience_s), read=min(_READ_S, patience_s)),
        )
        try:
            # Whoever sends a byte now and then keeps a timeout per read for ever.
            while piece := answer.read1(_PIECE):
                content += piece
                if len(content) > most_bytes or time.monotonic() > ends:
                    raise urllib3.exceptions.HTTPError("its answer is too long or too slow")
        except BaseException:
            answer.close()
            raise
        answer.release_conn()
    except urllib3.exceptions.HTTPError as error:
        raise TargetError(
            f"{url.partition('?')[0]} cannot be reached: {error}",
            remedy="Check that the server runs and that this machine reaches it.",
        ) from error
    return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, bytes(content))
