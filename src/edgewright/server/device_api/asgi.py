"""Plain ASGI for devices: a body whose length was told, an answer, a refusal. Nothing here knows what is asked."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from edgewright.contract.api.device_api import ErrorResponse
from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.server.errors import error_body

__all__ = [
    "UNREADABLE_ERRORS",
    "AsgiReceive",
    "AsgiScope",
    "AsgiSend",
    "ResponseError",
    "bad_request",
    "not_found",
    "read_body",
    "send_response",
    "service_unavailable",
    "too_many_requests",
]

AsgiScope = dict[str, Any]
AsgiReceive = Callable[[], Awaitable[dict[str, Any]]]
AsgiSend = Callable[[dict[str, Any]], Awaitable[None]]

# What a request that cannot be decoded raises: no UTF-8 is none of msgspec's own errors, and what is nested deeply
# enough ends in the interpreter's limit.
UNREADABLE_ERRORS = (msgspec.MsgspecError, InputError, UnicodeDecodeError, RecursionError)

_PIECE = 1 << 18
# Answers without a body say nothing of one's length or kind, RFC 9110, 8.6.
_BODILESS = (204, 304)


class ResponseError(Exception):
    """A request that ends here.

    Attributes:
        status: Of HTTP.
        problem: Why.
        extra: More headers.
    """

    def __init__(self, status: int, problem: ErrorResponse, *extra: tuple[bytes, bytes]) -> None:
        self.status, self.problem, self.extra = status, problem, extra
        super().__init__(problem.message)


async def read_body(scope: AsgiScope, receive: AsgiReceive, max_bytes: int, timeout_seconds: float) -> bytes:
    """Return a request's body, whose length was told and is within the limit, if it comes in time.

    Args:
        scope: Of the request.
        receive: Of the request.
        max_bytes: Bytes that are read; a request that tells of more is refused before it is read.
        timeout_seconds: Until all of it must have come.

    Raises:
        AnswerError: It is refused.
    """
    length = b""
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = value
        elif name == b"content-encoding" and value != b"identity":
            raise ResponseError(
                415, ErrorResponse("invalid_input", "compressed requests are not read", "Send it plain.")
            )
    if not (length.isdigit() and len(length) < 12):
        raise ResponseError(411, ErrorResponse("invalid_input", "the request does not tell its length", "Tell it."))
    if int(length) > max_bytes:
        message = f"the request has {int(length)} bytes, at most {max_bytes} are read"
        raise ResponseError(413, ErrorResponse("invalid_input", message, "Send less."))
    parts: list[bytes] = []
    left = int(length)
    try:
        async with asyncio.timeout(timeout_seconds):
            while left > 0:
                message_ = await receive()
                if message_["type"] != "http.request":
                    raise ResponseError(
                        400, ErrorResponse("invalid_input", "the request broke off", "Send it again.")
                    )
                parts.append(message_.get("body", b""))
                left -= len(parts[-1])
                if not message_.get("more_body", False):
                    break
    except TimeoutError:
        raise ResponseError(
            408, ErrorResponse("invalid_input", "the request came too slowly", "Send it again.")
        ) from None
    if left:
        raise ResponseError(
            400, ErrorResponse("invalid_input", "the request is not as long as it says", "Send it again.")
        )
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def send_response(
    send: AsgiSend,
    status: int,
    content: bytes,
    extra: Iterable[tuple[bytes, bytes]] = (),
    kind: bytes = b"application/json",
    *,
    head_of: int | None = None,
) -> None:
    """Answer; a long answer goes out in pieces, so that no more of it lies here twice than a reader is behind.

    Args:
        send: Of the request.
        status: Of HTTP.
        content: Of the answer.
        extra: More headers.
        kind: Of the content.
        head_of: How long the content would be of which only the headers are wanted.
    """
    headers = [*extra]
    if status not in _BODILESS:
        length = len(content) if head_of is None else head_of
        headers += [(b"content-type", kind), (b"content-length", str(length).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if head_of is not None or status in _BODILESS:
        content = b""
    if len(content) <= _PIECE:
        await send({"type": "http.response.body", "body": content})
        return
    for begin in range(0, len(content), _PIECE):
        piece = content[begin : begin + _PIECE]
        more = begin + _PIECE < len(content)
        await send({"type": "http.response.body", "body": piece, "more_body": more})


def bad_request(error: Exception) -> ResponseError:
    """Return that a request cannot be read."""
    if isinstance(error, EdgewrightError):
        return ResponseError(400, error_body(error))
    words = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return ResponseError(
        400, ErrorResponse("invalid_input", f"the request cannot be read: {words[:300]}", "See /openapi.json.")
    )


def service_unavailable(reason: str) -> ResponseError:
    """Return that something that is needed does not answer at present."""
    return ResponseError(503, ErrorResponse("unavailable", reason, "Come again later."), (b"retry-after", b"5"))


def too_many_requests(reason: str) -> ResponseError:
    """Return that somebody asks too often."""
    return ResponseError(
        429, ErrorResponse("too_many_requests", reason, "Come again later."), (b"retry-after", b"60")
    )


def not_found(path: str) -> ResponseError:
    """Return that there is nothing at a path."""
    return ResponseError(404, ErrorResponse("not_found", f"there is nothing at {path[:80]}", "See /openapi.json."))
